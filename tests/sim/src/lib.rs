//! A whole cluster in one thread under a seeded scheduler: the real cores, decisions and state,
//! over a network, disks, machines and clocks that fail as the seed says. README.md says what is
//! real, what is checked, and how to read a failing seed.

#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, reason = "a panic is how a test fails")
)]

mod client;
mod disk;
mod edge;
mod faults;
mod lead;
mod linear;
mod member;
mod net;
mod node;
mod options;
mod oracle;
mod pipe;
mod rng;
mod world;

pub use options::{Options, Planted};
pub use world::{Tally, World, run};
