//! Clusters of real processes on loopback, with the fake driver: no root, no containers.
//!
//! `tests/run.sh` says where the binary is; it is built with the feature `fake-driver`.

mod failover;
mod forming;
mod gateways;
mod nodes;
mod supervision;
