//! One member without threads, sockets or clocks, for simulations in other crates. Not an API: it
//! changes with the core.

pub use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState, Entry,
    HardState, Message, MessageType,
};

pub use crate::core::{Core, Done, Output, Position, Refused, scramble};
