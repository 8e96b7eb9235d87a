//! A whole controller in the process, an agent that only pretends, and no clock but the real one.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a panic is how a test fails; one crate, no public API"
)]

mod agent;
mod backup;
mod cluster;
mod copies;
mod fixture;
mod join;
mod lifecycle;
mod nodes;
mod restart;
mod running;
mod webhook;
