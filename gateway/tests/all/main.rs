//! The gateway from outside: real sockets towards clients and instances, fakes behind gRPC.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should say where"
)]

mod bounds;
mod ca;
mod cold;
mod controllers;
mod leaders;
mod lifecycle;
mod node;
mod relay;
mod sharing;
mod streams;
mod support;
mod warm;
