//! Runs instances and builds through containerd: the only crate that names it.
//!
//! `OVERVIEW.md` beside this folder draws the life of a container, the claim, and what survives
//! which failure.

pub mod cgroup;
mod cleanup;
pub mod client;
mod config;
mod container;
mod daemon;
mod driver;
mod firewall;
mod frames;
mod images;
mod instances;
mod labels;
mod launch;
mod logs;
mod machine;
mod mount;
mod names;
mod network;
mod notes;
mod pidfd;
mod sandbox;
mod seccomp;
mod slots;
mod spec;
mod stem;
mod sweep;

pub use cleanup::{CleanupError, cleanup};
pub use config::{Config, EgressPolicy, ShimCommand, StemLimits};
pub use daemon::{Daemon, Error as DaemonError};
pub use driver::ContainerdDriver;
pub use machine::StartError;
pub use names::ClusterId;
