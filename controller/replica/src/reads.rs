//! Reads that wait: to be sent, to be confirmed by a majority, and to be applied up to.
//!
//! Raft may lose a request without a word, so one that is not confirmed in time is sent again.

use std::collections::BTreeMap;

/// More than this many wait for nothing good.
const WAITING_MAX: usize = 65_536;

/// `W` is whoever waits.
#[derive(Debug)]
pub(crate) struct Reads<W> {
    queued: Vec<W>,
    /// Sent under a context, with the ticks since then.
    sent: BTreeMap<u64, (u32, Vec<W>)>,
    /// Confirmed, by the index that must be applied first.
    confirmed: BTreeMap<u64, Vec<W>>,
    next_context: u64,
    waiting: usize,
}

impl<W> Reads<W> {
    pub(crate) fn new() -> Self {
        Self {
            queued: Vec::new(),
            sent: BTreeMap::new(),
            confirmed: BTreeMap::new(),
            next_context: 0,
            waiting: 0,
        }
    }

    /// Gives the waiter back when there are too many.
    pub(crate) fn queue(&mut self, waiter: W) -> Result<(), W> {
        if self.waiting >= WAITING_MAX {
            return Err(waiter);
        }
        self.waiting += 1;
        self.queued.push(waiter);
        Ok(())
    }

    /// One request for everyone queued, to be sent now. Only call this when raft will take it.
    pub(crate) fn send(&mut self) -> Option<u64> {
        if self.queued.is_empty() {
            return None;
        }
        self.next_context += 1;
        self.sent
            .insert(self.next_context, (0, std::mem::take(&mut self.queued)));
        Some(self.next_context)
    }

    pub(crate) fn confirmed(&mut self, context: u64, index: u64) {
        if let Some((_, waiters)) = self.sent.remove(&context) {
            self.confirmed.entry(index).or_default().extend(waiters);
        }
    }

    /// Everyone who may be answered now that `index` is applied.
    pub(crate) fn applied(&mut self, index: u64) -> Vec<W> {
        let later = self.confirmed.split_off(&index.saturating_add(1));
        let ready = std::mem::replace(&mut self.confirmed, later);
        let ready: Vec<W> = ready.into_values().flatten().collect();
        self.waiting -= ready.len();
        ready
    }

    /// Time passed: requests `patience` ticks old are to be sent again, and waiters who gave up
    /// are forgotten.
    pub(crate) fn tick(&mut self, patience: u32, gave_up: impl Fn(&W) -> bool) {
        let mut stale = Vec::new();
        for (context, (ticks, _)) in &mut self.sent {
            *ticks += 1;
            if *ticks >= patience {
                stale.push(*context);
            }
        }
        for (_, waiters) in stale.iter().filter_map(|context| self.sent.remove(context)) {
            self.queued.extend(waiters);
        }
        self.queued.retain(|waiter| !gave_up(waiter));
        let sent: usize = self.sent.values().map(|(_, waiters)| waiters.len()).sum();
        let confirmed: usize = self.confirmed.values().map(Vec::len).sum();
        self.waiting = self.queued.len() + sent + confirmed;
    }

    /// Somebody else leads, who knows nothing of what was sent: all of it again.
    pub(crate) fn send_again(&mut self) {
        let sent = std::mem::take(&mut self.sent).into_values();
        self.queued.extend(sent.flat_map(|(_, waiters)| waiters));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_waits_for_confirmation_and_for_apply() {
        let mut reads = Reads::new();
        reads.queue("a").unwrap();
        reads.queue("b").unwrap();
        let context = reads.send().unwrap();
        assert_eq!(reads.send(), None);
        assert!(reads.applied(100).is_empty(), "not confirmed yet");
        reads.confirmed(context, 7);
        assert!(reads.applied(6).is_empty());
        assert_eq!(reads.applied(7), ["a", "b"]);
        reads.send_again();
        assert_eq!(reads.send(), None, "nobody waits any more");
    }

    #[test]
    fn what_raft_lost_is_sent_again_and_who_left_is_not() {
        let mut reads = Reads::new();
        reads.queue("stays").unwrap();
        reads.queue("left").unwrap();
        let first = reads.send().unwrap();
        reads.tick(2, |_| false);
        assert_eq!(reads.send(), None);
        reads.tick(2, |waiter| *waiter == "left");
        let second = reads.send().unwrap();
        assert_ne!(first, second);
        reads.confirmed(first, 1);
        assert!(
            reads.applied(1).is_empty(),
            "an answer to a forgotten request"
        );
        reads.confirmed(second, 1);
        assert_eq!(reads.applied(1), ["stays"]);
    }

    #[test]
    fn a_new_leader_is_asked_what_the_last_one_was() {
        let mut reads = Reads::new();
        reads.queue("a").unwrap();
        let first = reads.send().unwrap();
        reads.confirmed(first, 3);
        reads.queue("b").unwrap();
        let second = reads.send().unwrap();
        reads.send_again();
        let third = reads.send().unwrap();
        assert_ne!(second, third);
        reads.confirmed(second, 4);
        assert_eq!(reads.applied(5), ["a"]);
        reads.confirmed(third, 6);
        assert_eq!(reads.applied(6), ["b"]);
    }

    #[test]
    fn the_crowd_is_bounded() {
        let mut reads = Reads::new();
        for waiter in 0..WAITING_MAX {
            reads.queue(waiter).unwrap();
        }
        assert!(reads.queue(0).is_err());
        let context = reads.send().unwrap();
        reads.confirmed(context, 1);
        assert_eq!(reads.applied(1).len(), WAITING_MAX);
        reads.queue(0).unwrap();
    }
}
