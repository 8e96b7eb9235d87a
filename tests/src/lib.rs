//! Real servers for tests: their processes, a client for their APIs, load, and waiting.
//!
//! Everything here panics with what it saw when something is not as a test needs it: a harness has
//! no caller that could do better.

#![forbid(unsafe_code)]
#![allow(clippy::missing_panics_doc)]

pub mod client;
pub mod cluster;
pub mod load;
pub mod registers;
pub mod server;
pub mod wait;

pub use client::{Answer, Client};
pub use cluster::{Cluster, Role};
pub use registers::Registers;
pub use server::{Server, ServerOptions};
pub use wait::eventually;
