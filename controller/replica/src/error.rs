//! What ends a replica, and what a caller may be told.

use std::{io, sync::Arc};

use crate::{config::ConfigError, log, machine::MachineError};

/// Why a replica cannot go on. It never continues past one of these: the process should end and
/// be restarted, or the operator should act.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    #[error("the log store failed")]
    Log(#[from] log::Error),
    #[error(
        "the command at index {index} (term {term}) cannot be applied; if it was written by a newer version, run that version"
    )]
    Apply {
        index: u64,
        term: u64,
        source: MachineError,
    },
    #[error(
        "the snapshot at index {index} cannot be restored; if it was written by a newer version, run that version"
    )]
    Restore { index: u64, source: MachineError },
    #[error("the membership change at index {index} cannot be applied")]
    Membership {
        index: u64,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("raft refused to start")]
    Raft(#[source] Box<dyn std::error::Error + Send + Sync>),
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the replica's settings are wrong")]
    Config(#[from] ConfigError),
    #[error("no thread for the replica")]
    Thread(#[source] io::Error),
    #[error("the replica could not recover its state")]
    Recover(#[source] Fatal),
    #[error("the replica's thread panicked while it started")]
    Panicked,
}

/// How a write ended, when not well. All but [`ProposeError::Unknown`] mean that the command
/// was not applied and never will be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    #[error("this member does not lead the group")]
    NotLeader {
        /// Who does, as far as this member knows.
        leader: Option<u64>,
    },
    #[error("entry too large: {bytes} bytes, at most {limit}")]
    TooLarge { bytes: usize, limit: usize },
    #[error("an empty command says nothing")]
    Empty,
    #[error("too many writes are waiting")]
    Busy,
    #[error("the replica has stopped")]
    Stopped,
    /// It may have been applied, or may yet be. Ask the state, or propose it again under the same
    /// write id.
    #[error("the outcome is unknown: {0}")]
    Unknown(Doubt),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Doubt {
    #[error("the deadline passed")]
    Deadline,
    #[error("leadership was lost")]
    LeadershipLost,
    #[error("the replica stopped")]
    Stopped,
}

/// Why a fresh read was not possible.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("this member does not lead the group")]
    NotLeader { leader: Option<u64> },
    #[error("too many reads are waiting")]
    Busy,
    #[error("the deadline passed before a majority confirmed the leader")]
    Deadline,
    #[error("the replica has stopped")]
    Stopped,
}

/// Why a replica is no longer there.
#[derive(Debug, Clone)]
pub enum Ended {
    /// As asked; everything is on disk.
    Shutdown,
    Failed(Arc<Fatal>),
    /// A broken invariant, in raft or here. The log has what was acknowledged.
    Panicked,
}

/// Bytes from a peer that are not a raft message.
#[derive(Debug, thiserror::Error)]
#[error("not a raft message")]
pub struct MalformedMessage(#[source] pub(crate) protobuf::ProtobufError);
