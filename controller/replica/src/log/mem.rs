//! A log in memory, which loses what was not synced when it is cut: for tests and simulation.

use std::collections::VecDeque;

use protobuf::Message as _;
use raft::eraftpb::Entry;

use super::{
    Durability, Error, LogStore, Snapshot, SnapshotRef, State, Write, check, terms::Terms,
};

#[derive(Debug)]
pub struct MemLog {
    live: Log,
    /// What a cut leaves, and what was written since, which a cut may leave a part of.
    durable: Log,
    unsynced: Vec<Change>,
    syncs: u64,
}

#[derive(Debug, Clone)]
enum Change {
    Write(Write),
    Compact(u64),
}

#[derive(Debug, Clone)]
struct Log {
    state: State,
    entries: VecDeque<Entry>,
    terms: Terms,
    snapshot: Vec<u8>,
}

impl MemLog {
    pub fn new(member: u64) -> Self {
        let log = Log {
            state: State {
                member,
                ..State::default()
            },
            entries: VecDeque::new(),
            terms: Terms::after(0, 0),
            snapshot: Vec::new(),
        };
        Self {
            live: log.clone(),
            durable: log,
            unsynced: Vec::new(),
            syncs: 0,
        }
    }

    /// The store after power was lost: what was synced, and the first `kept` of the writes
    /// after that.
    #[must_use]
    pub fn cut(mut self, kept: usize) -> Self {
        for change in self.unsynced.drain(..).take(kept) {
            self.durable.apply(change);
        }
        Self {
            live: self.durable.clone(),
            durable: self.durable,
            unsynced: Vec::new(),
            syncs: 0,
        }
    }

    /// How many writes a cut could undo.
    pub fn unsynced(&self) -> usize {
        self.unsynced.len()
    }

    /// How often something was made durable since the store was opened.
    pub fn syncs(&self) -> u64 {
        self.syncs
    }
}

impl Log {
    fn apply(&mut self, change: Change) {
        match change {
            Change::Write(write) => {
                self.state = self.state.after(&write);
                self.append(write.entries);
            }
            Change::Compact(index) => self.compact(index),
        }
    }

    fn append(&mut self, entries: Vec<Entry>) {
        if let Some(first) = entries.first() {
            let index = first.index;
            while self.entries.back().is_some_and(|last| last.index >= index) {
                self.entries.pop_back();
            }
        }
        for entry in entries {
            self.terms.put(entry.index, entry.term);
            self.entries.push_back(entry);
        }
    }

    fn compact(&mut self, index: u64) {
        let Some(term) = self.terms.get(index) else {
            return;
        };
        while self
            .entries
            .front()
            .is_some_and(|first| first.index <= index)
        {
            self.entries.pop_front();
        }
        self.terms.compact(index);
        self.state.compacted_index = index;
        self.state.compacted_term = term;
    }
}

impl LogStore for MemLog {
    fn state(&self) -> &State {
        &self.live.state
    }

    fn last_index(&self) -> u64 {
        self.live.terms.last_index()
    }

    fn term(&self, index: u64) -> Option<u64> {
        self.live.terms.get(index)
    }

    fn entries(&self, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Entry>, Error> {
        let mut found = Vec::new();
        let mut bytes = 0;
        let wanted = self
            .live
            .entries
            .iter()
            .skip_while(|entry| entry.index < low);
        for entry in wanted.take_while(|entry| entry.index < high) {
            bytes += u64::from(entry.compute_size());
            if bytes > max_bytes && !found.is_empty() {
                break;
            }
            found.push(entry.clone());
        }
        Ok(found)
    }

    fn write(&mut self, write: Write, durability: Durability) -> Result<(), Error> {
        check(&write, &self.live.state, self.last_index())?;
        self.live.apply(Change::Write(write.clone()));
        self.unsynced.push(Change::Write(write));
        match durability {
            Durability::Synced => self.sync(),
            Durability::Buffered => Ok(()),
        }
    }

    fn sync(&mut self) -> Result<(), Error> {
        for change in self.unsynced.drain(..) {
            self.durable.apply(change);
        }
        self.syncs += 1;
        Ok(())
    }

    fn save_snapshot(&mut self, snapshot: Snapshot<'_>) -> Result<(), Error> {
        self.live.state.snapshot = Some(SnapshotRef::of(&snapshot));
        self.live.snapshot = snapshot.data.to_vec();
        self.sync()?;
        self.durable.state.snapshot = self.live.state.snapshot.clone();
        self.durable.snapshot = self.live.snapshot.clone();
        Ok(())
    }

    fn install_snapshot(&mut self, snapshot: Snapshot<'_>, write: Write) -> Result<(), Error> {
        let state = self.live.state.replaced(&snapshot, &write);
        check(&write, &state, snapshot.index)?;
        self.live = Log {
            state,
            entries: VecDeque::new(),
            terms: Terms::after(snapshot.index, snapshot.term),
            snapshot: snapshot.data.to_vec(),
        };
        self.live.append(write.entries);
        self.unsynced.clear();
        self.durable = self.live.clone();
        self.syncs += 1;
        Ok(())
    }

    fn load_snapshot(&self) -> Result<Option<Vec<u8>>, Error> {
        Ok(self
            .live
            .state
            .snapshot
            .is_some()
            .then(|| self.live.snapshot.clone()))
    }

    fn compact(&mut self, index: u64, limit: u64) -> Result<bool, Error> {
        let step = index.min(self.live.state.compacted_index.saturating_add(limit));
        if step > self.live.state.compacted_index {
            self.live.compact(step);
            self.unsynced.push(Change::Compact(step));
        }
        Ok(step < index)
    }
}
