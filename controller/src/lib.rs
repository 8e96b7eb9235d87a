//! The controller: keeps what is replicated, and, while it leads, decides what runs where.
//!
//! [`Config::build`] opens a data directory, [`Controller::run`] serves and leads. `machine` turns
//! the log into a published view; `api` answers gRPC calls; `peers` carries raft's messages; `leader` holds what only a leader knows
//! and the loops that act on it. Decisions are made in `coracle-planner`, which is pure; this crate
//! is the shell around it.

#![forbid(unsafe_code)]

mod api;
pub mod artifacts;
pub mod backup;
mod build_logs;
mod cluster;
mod config;
mod controller;
mod copies;
mod core;
mod feed;
mod forward;
mod leader;
mod machine;
pub mod metrics;
mod peers;
#[doc(hidden)]
pub mod testing;

pub use cluster::{ClusterError, Founded, Founder, Identity};
pub use config::{Config, LeaderConfig, RaftPace, Webhook};
pub use controller::{BootstrapError, BuildError, Controller, FoundError, RunError, Status};
pub use coracle_planner::{
    BackoffConfig, CapacityConfig, PlannerConfig, ScalingConfig, StemConfig,
};
pub use coracle_replica::{
    ChangeError, ChangeRefused, Member, Members, Progress, ReadError, SnapshotPolicy,
};
pub use core::WriteError;
pub use peers::PeerTable;
