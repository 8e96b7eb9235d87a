//! The state machine through its public interface.

#![allow(clippy::unwrap_used, reason = "tests")]

mod cluster;
mod fixture;
mod functions;
mod golden;
mod keys;
mod nodes;
mod random;
mod revisions;
mod tasks;
mod tenancy;
mod writes;
