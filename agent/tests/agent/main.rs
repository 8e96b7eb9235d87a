//! The whole agent against a controller that the tests play, with instances that are real sockets
//! and no containers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod builds;
mod ca;
mod controller;
mod instances;
mod node;
mod relay;
mod sessions;
