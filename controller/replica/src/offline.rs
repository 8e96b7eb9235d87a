//! A member's store without a running member: read to its end, or founded anew.
//!
//! For a cluster that is restored from a file, or goes on from one member after it lost its
//! majority for good.

use std::path::Path;

use raft::eraftpb::{ConfState, EntryType, HardState};

use crate::{
    core::{REPLAY_BYTES, apply_command, recover},
    error::Fatal,
    log::{self, LogStore, SledLog, Snapshot, Write},
    machine::Machine,
    membership::Group,
};

/// What a member's store held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// The last entry of the log; the machine is as of it.
    pub last_index: u64,
    pub last_term: u64,
    /// Up to here the member knew that a majority had the log.
    pub committed: u64,
    /// The newest term that it heard of.
    pub term: u64,
    /// Who was in the group, as of the last change that it applied.
    pub group: Group,
}

/// Where a new group's log begins, and in which term.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    pub index: u64,
    pub term: u64,
}

/// Brings the machine to the end of the log, past what is known to be committed: an entry that a
/// lost majority had committed must not be lost with it. Changes of the group are not carried out.
/// Nothing of the group is changed. Blocks on the disk.
pub fn read<M: Machine>(directory: &Path, member: u64, machine: &mut M) -> Result<Contents, Fatal> {
    let log = SledLog::open(directory, member)?;
    let applied = log.state().applied;
    recover(&log, machine)?;
    let last_index = log.last_index();
    let mut next = applied + 1;
    while next <= last_index {
        for entry in log.entries(next, last_index + 1, REPLAY_BYTES)? {
            if entry.get_entry_type() == EntryType::EntryNormal {
                apply_command(machine, &entry)?;
            }
            next = entry.index + 1;
        }
    }
    machine.batch_applied(last_index);
    let state = log.state();
    Ok(Contents {
        last_index,
        last_term: log.term(last_index).unwrap_or(0),
        committed: state.hard.commit,
        term: state.hard.term,
        group: Group::of(&state.members, applied),
    })
}

/// Makes the store of a new group's member: nothing but this state, as of `origin`. The directory
/// must hold no log. Durable on return. Blocks on the disk.
pub fn found(
    directory: &Path,
    member: u64,
    voters: &[u64],
    origin: Origin,
    state: &[u8],
) -> Result<(), log::Error> {
    let mut log = SledLog::open(directory, member)?;
    if log.last_index() != 0 || log.state().members != ConfState::default() {
        let path = directory.to_owned();
        return Err(log::Error::Occupied { path });
    }
    let Origin { index, term } = origin;
    let hard = HardState {
        term,
        commit: index,
        ..HardState::default()
    };
    let write = Write {
        hard: Some(hard),
        ..Write::default()
    };
    let snapshot = Snapshot {
        index,
        term,
        members: ConfState::from((voters.to_vec(), Vec::new())),
        data: state,
    };
    log.install_snapshot(snapshot, write)
}
