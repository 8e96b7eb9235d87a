//! The end-to-end suite: a real server, a real containerd, real containers.
//!
//! Needs root, and what `tests/run.sh` prepares: the binary, the runtime images, Gcore's SDK.

mod behaviour;
mod clients;
mod gcore;
mod input;
mod isolation;
mod limits;
mod survival;
