//! Replication: a group of members that apply the same commands in the same order, and survive
//! losing a minority of themselves, or all their power.
//!
//! The only crate that names raft-rs or sled. It knows nothing of functions: the state is a
//! [`Machine`] that eats bytes. OVERVIEW.md beside this crate draws the paths through it.

#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, reason = "a panic is how a test fails")
)]

mod changes;
mod config;
mod core;
mod driver;
mod error;
pub mod log;
mod logger;
mod machine;
mod membership;
pub mod offline;
mod reads;
mod replica;
#[cfg(test)]
mod rng;
#[cfg(test)]
mod sim;
mod status;
mod storage;
#[cfg(feature = "testing")]
pub mod testing;
mod transport;

pub use crate::{
    config::{Config, ConfigError, SnapshotPolicy},
    error::{
        ChangeError, ChangeRefused, Doubt, Ended, Fatal, MalformedMessage, ProposeError, ReadError,
        StartError,
    },
    log::{COMMAND_BYTES_MAX, LogStore, MemLog, SledLog},
    machine::{Applied, Command, Machine, MachineError, Observer},
    membership::{Change, Group, Member, Members, Progress},
    replica::{Outcome, Replica, Saved},
    status::{Role, Status},
    transport::{NoPeers, PeerMessage, Transport},
};
