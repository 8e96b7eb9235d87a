//! Who is there: how long a node may be silent, and when a new leader has heard enough.

use coracle_model::Timestamp;

/// Agents report every few seconds. A session that brings nothing for this long is dead, however
/// open it looks.
const SESSION_SILENCE_MS: u64 = 20_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Its session is open: it can be told things.
    Connected,
    /// Not connected, or not heard by this leader yet: its instances count as alive.
    Silent,
    /// For longer than the grace period: its instances are lost.
    Lost,
}

/// `heard_at` is its last word; where there was none, when this leader began to listen.
pub fn standing(now: Timestamp, heard_at: Timestamp, connected: bool, grace_ms: u64) -> Standing {
    let silent = now.since(heard_at);
    let patience = if connected {
        grace_ms.max(SESSION_SILENCE_MS)
    } else {
        grace_ms
    };
    match (silent < patience, connected) {
        (true, true) => Standing::Connected,
        (true, false) => Standing::Silent,
        (false, _) => Standing::Lost,
    }
}

/// Time since the last look in which nobody looked although somebody should have: the process was
/// stopped, the disk stalled, or the clock was set. No node's silence.
pub fn unwatched(last: Timestamp, now: Timestamp, every_ms: u64) -> u64 {
    now.since(last).saturating_sub(every_ms.saturating_mul(3))
}

/// A new leader listening to what runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Collection {
    pub since: Timestamp,
    /// When the first agent spoke.
    pub first: Option<Timestamp>,
    /// Nodes that were registered when it began, and those of them that have not spoken.
    pub registered: usize,
    pub unheard: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CollectConfig {
    /// Registered nodes are waited for at most this long.
    pub deadline_ms: u64,
    /// Where no node is registered (a cluster from before there were records, or a new one): how
    /// long after the first agent the others may take.
    pub settle_ms: u64,
}

impl Collection {
    /// Whether planning may begin.
    pub fn is_over(&self, config: CollectConfig, now: Timestamp) -> bool {
        let all_spoke = if self.registered > 0 {
            self.unheard == 0
        } else {
            self.first
                .is_some_and(|at| now.since(at) >= config.settle_ms)
        };
        all_spoke || now.since(self.since) >= config.deadline_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: CollectConfig = CollectConfig {
        deadline_ms: 5_000,
        settle_ms: 200,
    };

    #[test]
    fn a_silence_has_a_grace_period_and_an_open_session_never_less_than_its_reports_take() {
        let of = |silent: u64, connected, grace| {
            standing(
                Timestamp(100_000),
                Timestamp(100_000 - silent),
                connected,
                grace,
            )
        };
        assert_eq!(of(14_999, false, 15_000), Standing::Silent);
        assert_eq!(of(15_000, false, 15_000), Standing::Lost);
        assert_eq!(of(15_000, true, 15_000), Standing::Connected);
        assert_eq!(of(20_000, true, 15_000), Standing::Lost);
        assert_eq!(of(29_999, true, 30_000), Standing::Connected);
        assert_eq!(of(500, false, 500), Standing::Lost);
        // A clock that went back.
        let early = standing(Timestamp(1), Timestamp(9_000), false, 15_000);
        assert_eq!(early, Standing::Silent);
    }

    #[test]
    fn a_leader_that_did_not_look_blames_nobody() {
        let at = |ms: u64| unwatched(Timestamp(10_000), Timestamp(10_000 + ms), 1_000);
        assert_eq!((at(1_000), at(3_000), at(3_600_000)), (0, 0, 3_597_000));
        assert_eq!(unwatched(Timestamp(10_000), Timestamp(9_000), 1_000), 0);
    }

    #[test]
    fn a_collection_waits_for_every_registered_node_or_its_deadline() {
        let since = Timestamp(1_000);
        let at = |registered, unheard, first: Option<u64>, now| {
            let collection = Collection {
                since,
                first: first.map(Timestamp),
                registered,
                unheard,
            };
            collection.is_over(CONFIG, Timestamp(now))
        };
        assert!(!at(3, 1, Some(1_010), 5_999));
        assert!(at(3, 1, Some(1_010), 6_000), "the deadline");
        assert!(at(3, 0, Some(1_500), 1_500), "nobody is missing");
        assert!(!at(0, 0, None, 5_999));
        assert!(!at(0, 0, Some(1_010), 1_209));
        assert!(at(0, 0, Some(1_010), 1_210), "as before there were records");
        assert!(at(0, 0, None, 6_000));
    }
}
