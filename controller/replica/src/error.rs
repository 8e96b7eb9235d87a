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
    #[error("member {id} was removed from its group; to come back it must join under a new id")]
    Removed { id: u64 },
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

/// How a change of the group ended, when not well. All but [`ChangeError::Unknown`] mean that
/// the step was not taken and never will be; of a removal in two steps the first may have been.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// Also how the removal of the leader ends here: leadership was handed over, and the new leader
    /// is to be asked.
    #[error("this member does not lead the group")]
    NotLeader { leader: Option<u64> },
    #[error(transparent)]
    Refused(#[from] ChangeRefused),
    #[error("too many changes are waiting")]
    Busy,
    #[error("the replica has stopped")]
    Stopped,
    /// Look at the members, or ask again: every change may be repeated.
    #[error("the outcome is unknown: {0}")]
    Unknown(Doubt),
}

/// Why the group should not change like that, or not now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeRefused {
    #[error("member {id} is a voter already")]
    AlreadyVoter { id: u64 },
    #[error("there is no member {id} in the group")]
    NotAMember { id: u64 },
    #[error("there are {limit} learners already; promote or remove one first")]
    TooManyLearners { limit: usize },
    #[error("member {id} was not heard from lately")]
    Silent { id: u64 },
    #[error("member {id} has not caught up: it lacks {lag} entries of the log")]
    Behind { id: u64, lag: u64 },
    #[error("member {id} stays a learner: it lacks data that is kept beside the log")]
    NotReady { id: u64 },
    #[error(
        "member {id} stays a learner: beside {voters} voters it would make an even number, which \
         survives no more losses than {voters}; it becomes a voter together with one more learner \
         that has caught up"
    )]
    Even { id: u64, voters: usize },
    #[error(
        "member {id} stays a learner: there are {voters} voters already, the most that are of use; \
         it can take the place of one that is removed"
    )]
    Full { id: u64, voters: usize },
    #[error("member {id} is the only voter, and a group cannot be without one")]
    LastVoter { id: u64 },
    #[error(
        "only {active} of the {left} voters that would be left were heard from lately, which is no \
         majority: the group could not go on"
    )]
    LosesMajority { left: usize, active: usize },
    #[error("member {id} is not a voter")]
    NotAVoter { id: u64 },
    #[error("no other voter has caught up, so nobody can take leadership over")]
    NoHeir,
    #[error("member {id} did not take leadership over in time")]
    NotTaken { id: u64 },
}

/// Why a fresh read was not possible.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("too many reads are waiting")]
    Busy,
    #[error("this member belongs to no group yet")]
    Nothing,
    #[error("the deadline passed before a majority confirmed a leader")]
    Deadline,
    #[error("the replica has stopped")]
    Stopped,
}

/// Why a replica is no longer there.
#[derive(Debug, Clone)]
pub enum Ended {
    /// As asked; everything is on disk.
    Shutdown,
    /// The group no longer has this member. It must not be started again: to come back it joins
    /// under a new id.
    Removed,
    Failed(Arc<Fatal>),
    /// A broken invariant, in raft or here. The log has what was acknowledged.
    Panicked,
}

/// Bytes from a peer that are not a raft message from that peer to this member.
#[derive(Debug, thiserror::Error)]
pub enum MalformedMessage {
    #[error("not a raft message")]
    Format(#[source] protobuf::ProtobufError),
    #[error("a message from member {from} to member {to} came from member {peer}")]
    Address { from: u64, to: u64, peer: u64 },
    #[error("a message that no member sends to another")]
    Kind,
}
