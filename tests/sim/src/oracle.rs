//! What must hold whatever happens: one history, told by everyone in the same words.

use std::{
    collections::{BTreeMap, hash_map::DefaultHasher},
    hash::{Hash as _, Hasher as _},
    sync::{Arc, Mutex, MutexGuard},
};

use coracle_model::{Refusal, WriteId};

/// Shared with the state machines, which run inside the replicas.
#[derive(Debug, Clone, Default)]
pub(crate) struct Oracle(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
pub(crate) struct Known {
    /// By term.
    leaders: BTreeMap<u64, u64>,
    /// Term and content of what was ever applied anywhere, by index.
    applied: BTreeMap<u64, (u64, u64)>,
    outcomes: BTreeMap<u64, u64>,
    states: BTreeMap<u64, u64>,
    /// The last index that was acknowledged in each term.
    acknowledged: BTreeMap<u64, u64>,
    /// When each write was first applied anywhere, and what came of it.
    writes: BTreeMap<WriteId, (u64, Result<(), Refusal>)>,
    /// Numbers the moments at which something happened: no two are the same.
    moment: u64,
    violation: Option<String>,
}

pub(crate) fn digest(bytes: &[u8]) -> u64 {
    // With its fixed keys: the same in every run.
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

impl Oracle {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().expect("never poisoned: no panic while held")
    }

    pub(crate) fn moment(&self) -> u64 {
        let mut known = self.known();
        known.moment += 1;
        known.moment
    }

    pub(crate) fn written(&self, write: WriteId, outcome: &Result<(), Refusal>) {
        let moment = self.moment();
        let mut known = self.known();
        let first = known.writes.entry(write);
        first.or_insert_with(|| (moment, outcome.clone()));
    }

    pub(crate) fn first_written(&self, write: WriteId) -> Option<(u64, Result<(), Refusal>)> {
        self.known().writes.get(&write).cloned()
    }

    /// The first violation is the one that counts: others may follow from it.
    pub(crate) fn fail(&self, what: impl Into<String>) {
        self.known().violation.get_or_insert(what.into());
    }

    pub(crate) fn violation(&self) -> Option<String> {
        self.known().violation.clone()
    }

    pub(crate) fn leads(&self, member: u64, term: u64) {
        let first = *self.known().leaders.entry(term).or_insert(member);
        if first != member {
            self.fail(format!("two leaders in term {term}: {first} and {member}"));
        }
    }

    pub(crate) fn terms_led(&self) -> usize {
        self.known().leaders.len()
    }

    /// A leader whose state is said to be up to date.
    pub(crate) fn caught_up(&self, member: u64, term: u64, applied: u64) {
        let newest = {
            let known = self.known();
            let earlier = known.acknowledged.range(..term);
            earlier.map(|(_, index)| *index).max().unwrap_or(0)
        };
        if newest > applied {
            self.fail(format!(
                "an acknowledged write is gone: {member} leads term {term} with {applied} applied, \
                 and {newest} was acknowledged before"
            ));
        }
    }

    pub(crate) fn acknowledged(&self, index: u64, term: u64) {
        let mut known = self.known();
        let last = known.acknowledged.entry(term).or_default();
        *last = index.max(*last);
    }

    pub(crate) fn last_acknowledged(&self) -> u64 {
        self.known()
            .acknowledged
            .values()
            .max()
            .copied()
            .unwrap_or(0)
    }

    pub(crate) fn applied(&self, member: u64, index: u64, term: u64, bytes: &[u8]) {
        let entry = (term, digest(bytes));
        let first = *self.known().applied.entry(index).or_insert(entry);
        if first != entry {
            self.fail(format!(
                "two histories: {member} applied an entry of term {term} at {index}, where another \
                 applied one of term {}",
                first.0
            ));
        }
    }

    pub(crate) fn outcome(&self, member: u64, index: u64, outcome: &str) {
        let outcome = digest(outcome.as_bytes());
        let first = *self.known().outcomes.entry(index).or_insert(outcome);
        if first != outcome {
            self.fail(format!(
                "{member} got another outcome at {index} than the others"
            ));
        }
    }

    pub(crate) fn state(&self, member: u64, index: u64, state: &[u8]) {
        let state = digest(state);
        let first = *self.known().states.entry(index).or_insert(state);
        if first != state {
            self.fail(format!(
                "the state of {member} at {index} differs from another's"
            ));
        }
    }
}
