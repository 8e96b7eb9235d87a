//! The agent: makes one node match its assignment.
//!
//! Orders come down a session with the leader ([`desired`]), fenced by their stamp ([`ledger`]).
//! A pure function decides ([`reconcile`]) and the instance manager carries it out. What runs goes
//! up in reports. Gateways ask the node service for instances and logs. While no controller can be
//! reached, and while the agent itself is down, instances go on running.

#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")
)]

mod agent;
pub mod artifacts;
pub mod build;
mod config;
mod data_port;
pub mod desired;
pub mod fake;
pub mod fetch;
mod health;
pub mod images;
mod instances;
pub mod ledger;
pub mod logs;
pub mod metrics;
pub mod native;
mod node_service;
pub mod orders;
pub mod reconcile;
mod relay;
mod report;
mod session;
#[doc(hidden)]
pub mod testing;

pub use agent::{Agent, StartError};
pub use build::{BuildFailure, BuildInput, Built, BuiltTar, SourceBuilder};
pub use config::{Config, Limits};
pub use health::Health;
pub use images::{Image, ImageError, RuntimeImages};
pub use instances::{Counts, InstanceLimits, Observed, Outcome, Ready, WaitError};
pub use logs::{LogLimits, LogStore};
pub use native::NodeImages;
pub use session::SessionLimits;
