//! The outcomes of recent writes, so that the repetition of one answers the same and does nothing.

use std::collections::{BTreeMap, VecDeque};

use coracle_model::{Refusal, Timestamp, WriteId};

/// Most outcomes kept. A write is repeated after a deadline or an election, so a few seconds' worth
/// of the fastest stream of writes is needed; this is about that, in some megabytes.
pub const WRITES_KEPT: usize = 50_000;

/// How long an outcome is kept at most, by the times in the commands.
pub const WRITES_KEPT_MILLIS: u64 = 10 * 60 * 1_000;

/// The most that passes from one write to the next, whatever their times say. A new leader whose
/// clock is an hour ahead must not make all outcomes look old: writes whose answers were lost with
/// its predecessor are repeated right then, and would be applied twice. Quiet times count for less
/// than they were, which only keeps outcomes longer.
const STEP_MILLIS: u64 = 1_000;

/// A window over the log. Bounded by count and by age; replicated, and part of snapshots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Writes {
    /// In the order of the log, oldest first.
    order: VecDeque<Kept>,
    outcomes: BTreeMap<WriteId, Option<Box<Refusal>>>,
    /// From the oldest to the newest: the steps of all but the oldest.
    span: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Kept {
    id: WriteId,
    at: Timestamp,
    /// Milliseconds since the one before; 0 for the oldest. Follows from the times, so that a
    /// snapshot need not hold it.
    step: u64,
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
        while self.order.len() > WRITES_KEPT || self.span > WRITES_KEPT_MILLIS {
            let Some(oldest) = self.order.pop_front() else {
                break;
            };
            self.outcomes.remove(&oldest.id);
            if let Some(next) = self.order.front_mut() {
                self.span -= std::mem::take(&mut next.step);
            }
        }
    }

    pub(crate) fn push(&mut self, id: WriteId, at: Timestamp, refusal: Option<Refusal>) {
        let step = self
            .order
            .back()
            .map_or(0, |newest| at.since(newest.at).min(STEP_MILLIS));
        self.span += step;
        self.order.push_back(Kept { id, at, step });
        self.outcomes.insert(id, refusal.map(Box::new));
    }

    pub(crate) fn contains(&self, id: WriteId) -> bool {
        self.outcomes.contains_key(&id)
    }

    /// Oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (WriteId, Timestamp, Option<&Refusal>)> {
        self.order.iter().map(|&Kept { id, at, .. }| {
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
    fn the_old_go_by_age() {
        let mut writes = Writes::default();
        let refused = Err(Refusal::Conflict("no".into()));
        writes.record(id(1), Timestamp(0), &refused);
        let steps = u128::from(WRITES_KEPT_MILLIS / STEP_MILLIS);
        let mut at = 0;
        for n in 2..=steps + 1 {
            at += STEP_MILLIS;
            writes.record(id(n), Timestamp(at), &Ok(()));
        }
        assert_eq!(writes.outcome(id(1)), Some(refused));
        writes.record(id(steps + 2), Timestamp(at + 1), &Ok(()));
        assert_eq!(writes.outcome(id(1)), None);
        assert_eq!(writes.outcome(id(2)), Some(Ok(())));
    }

    /// Found by simulation: leaders' clocks an hour apart, and a repeated delete took away what
    /// had been made after it.
    #[test]
    fn a_clock_that_jumps_drops_none() {
        let mut writes = Writes::default();
        for (n, at) in [(1, 1_000), (2, 7_200_000), (3, 500), (4, 7_300_000)] {
            writes.record(id(n), Timestamp(at), &Ok(()));
        }
        for n in 1..=4 {
            assert_eq!(writes.outcome(id(n)), Some(Ok(())), "{n}");
        }
    }

    #[test]
    fn what_was_read_back_forgets_at_the_same_moment() {
        let mut live = Writes::default();
        let mut at = 0;
        for n in 0..900 {
            at += 1_700 * (n % 3);
            live.record(id(u128::from(n)), Timestamp(at), &Ok(()));
        }
        let mut read = Writes::default();
        for (id, at, refusal) in live.iter() {
            read.push(id, at, refusal.cloned());
        }
        assert_eq!(read, live);
    }
}
