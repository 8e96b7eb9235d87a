//! The replicated state machine, pure: the same log gives the same bytes on every replica.
//!
//! [`State::apply`] takes a [`Command`] and nothing else: time and fresh ids travel in the command,
//! stamped by its proposer. What has to happen outside leaves as [`Effect`] values, which only the
//! leader acts on. Readers get a [`View`], an immutable picture that is cheap to take.
//!
//! What is deliberately absent: instances (the leader assigns them in memory), what nodes say of
//! themselves (only that they belong is here), and the bytes of artifacts (only their digests are). `docs/adr/0001-what-is-replicated.md` says why.

#![forbid(unsafe_code)]
#![warn(clippy::float_arithmetic)]

mod apply;
mod artifacts;
mod command;
mod effect;
mod snapshot;
mod state;
mod table;
mod view;
mod writes;

pub use apply::{REVISIONS_KEPT, clip};
pub use command::{Body, Command, DecodeError, EncodeError, RegisterNode};
pub use effect::{Applied, Effect};
pub use snapshot::{FORMAT, SnapshotError};
pub use state::State;
pub use view::{FunctionRecord, View};
pub use writes::{WRITES_KEPT, WRITES_KEPT_MILLIS};
