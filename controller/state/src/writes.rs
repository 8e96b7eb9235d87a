//! The outcomes of recent writes, so that the repetition of one answers the same and does nothing.

use std::collections::{BTreeMap, VecDeque};

use coracle_model::{Refusal, Timestamp, WriteId};

/// Most outcomes kept. A write is repeated after a deadline or an election, so a few seconds' worth
/// of the fastest stream of writes is needed; this is about that, in some megabytes.
pub const WRITES_KEPT: usize = 50_000;

/// How long an outcome is kept at most, by the times in the commands.
pub const WRITES_KEPT_MILLIS: u64 = 10 * 60 * 1_000;

/// A window over the log. Bounded by count and by age; replicated, and part of snapshots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Writes {
    /// In the order of the log, oldest first.
    order: VecDeque<(WriteId, Timestamp)>,
    outcomes: BTreeMap<WriteId, Option<Box<Refusal>>>,
}

impl Writes {
    /// What came of this write, if it was applied within the window.
    pub(crate) fn outcome(&self, id: WriteId) -> Option<Result<(), Refusal>> {
        let outcome = self.outcomes.get(&id)?;
        Some(outcome.as_deref().cloned().map_or(Ok(()), Err))
    }

    /// The caller has checked that the window does not hold `id`.
    pub(crate) fn record(&mut self, id: WriteId, at: Timestamp, outcome: &Result<(), Refusal>) {
        self.push(id, at, outcome.as_ref().err().cloned());
        while let Some(&(oldest, then)) = self.order.front() {
            // A proposer whose clock is behind its predecessor's keeps entries longer, never less
            // than the count allows.
            if self.order.len() <= WRITES_KEPT && at.since(then) <= WRITES_KEPT_MILLIS {
                break;
            }
            self.order.pop_front();
            self.outcomes.remove(&oldest);
        }
    }

    pub(crate) fn push(&mut self, id: WriteId, at: Timestamp, refusal: Option<Refusal>) {
        self.order.push_back((id, at));
        self.outcomes.insert(id, refusal.map(Box::new));
    }

    pub(crate) fn contains(&self, id: WriteId) -> bool {
        self.outcomes.contains_key(&id)
    }

    /// Oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (WriteId, Timestamp, Option<&Refusal>)> {
        self.order.iter().map(|&(id, at)| {
            let refusal = self.outcomes.get(&id).and_then(Option::as_deref);
            (id, at, refusal)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u128) -> WriteId {
        WriteId(uuid::Uuid::from_u128(n))
    }

    #[test]
    fn the_oldest_go_first_by_count() {
        let mut writes = Writes::default();
        for n in 0..=WRITES_KEPT as u128 {
            writes.record(id(n), Timestamp(1), &Ok(()));
        }
        assert_eq!(writes.iter().count(), WRITES_KEPT);
        assert_eq!(writes.outcome(id(0)), None);
        assert_eq!(writes.outcome(id(1)), Some(Ok(())));
    }

    #[test]
    fn the_old_go_by_age_and_a_clock_that_went_back_drops_none() {
        let mut writes = Writes::default();
        let refused = Err(Refusal::Conflict("no".into()));
        writes.record(id(1), Timestamp(1_000), &refused);
        writes.record(id(2), Timestamp(500), &Ok(()));
        writes.record(id(3), Timestamp(1_000 + WRITES_KEPT_MILLIS), &Ok(()));
        assert_eq!(writes.outcome(id(1)), Some(refused));
        writes.record(id(4), Timestamp(1_001 + WRITES_KEPT_MILLIS), &Ok(()));
        assert_eq!(writes.outcome(id(1)), None);
        assert_eq!(writes.outcome(id(2)), None);
        assert_eq!(writes.outcome(id(3)), Some(Ok(())));
    }
}
