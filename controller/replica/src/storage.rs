//! The log store as raft wants to read it.

use std::cell::Cell;

use raft::{
    GetEntriesContext, RaftState,
    eraftpb::{self, Entry},
};

use crate::log::LogStore;

/// Raft reads through this; only the core writes. An error other than the four that raft knows
/// makes raft panic, which ends the process: the disk no longer gives what it was given.
pub(crate) struct Storage<S> {
    pub(crate) log: S,
    /// Raft wanted a snapshot for a follower, and there is none that would do.
    pub(crate) snapshot_wanted: Cell<bool>,
}

impl<S: LogStore> raft::Storage for Storage<S> {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let state = self.log.state();
        Ok(RaftState::new(state.hard.clone(), state.members.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.log.state().compacted_index {
            return Err(raft::StorageError::Compacted.into());
        }
        if high > self.log.last_index() + 1 {
            return Err(raft::StorageError::Unavailable.into());
        }
        self.log
            .entries(low, high, max_size.into().unwrap_or(u64::MAX))
            .map_err(other)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index < self.log.state().compacted_index {
            return Err(raft::StorageError::Compacted.into());
        }
        self.log
            .term(index)
            .ok_or_else(|| raft::StorageError::Unavailable.into())
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.log.state().compacted_index + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.log.last_index())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<eraftpb::Snapshot> {
        // A member ignores a snapshot that does not name it, so one from before it was added
        // will not do.
        let known = self.log.state().snapshot.as_ref().filter(|snapshot| {
            let members = &snapshot.members;
            let named = [&members.voters, &members.learners, &members.learners_next];
            snapshot.index >= request_index && named.iter().any(|list| list.contains(&to))
        });
        let Some(known) = known else {
            self.snapshot_wanted.set(true);
            return Err(raft::StorageError::SnapshotTemporarilyUnavailable.into());
        };
        let mut snapshot = eraftpb::Snapshot::default();
        let metadata = snapshot.mut_metadata();
        metadata.index = known.index;
        metadata.term = known.term;
        metadata.set_conf_state(known.members.clone());
        snapshot.data = self
            .log
            .load_snapshot()
            .map_err(other)?
            .unwrap_or_default()
            .into();
        Ok(snapshot)
    }
}

fn other(error: crate::log::Error) -> raft::Error {
    raft::StorageError::Other(Box::new(error)).into()
}
