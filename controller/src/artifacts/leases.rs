//! What must not be collected yet: the upload comes before the write that names it.
//!
//! Pure: the time comes in. In memory only; a controller that starts takes everything it finds as
//! just uploaded, so losing the leases costs a grace period of disk space and nothing else.

use std::collections::BTreeMap;

use coracle_model::{Digest, Timestamp};

use super::Stored;

#[derive(Debug)]
pub(super) struct Leases {
    /// Everything counts as uploaded no earlier than this.
    opened: Timestamp,
    /// When each was last uploaded or asked for.
    renewed: BTreeMap<Digest, State>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Since(Timestamp),
    Going,
}

impl Leases {
    pub(super) fn new(opened: Timestamp) -> Self {
        Self {
            opened,
            renewed: BTreeMap::new(),
        }
    }

    /// False while it is being removed; ask again when that has ended.
    pub(super) fn renew(&mut self, digest: Digest, now: Timestamp) -> bool {
        let state = self.renewed.entry(digest).or_insert(State::Since(now));
        match state {
            State::Going => false,
            State::Since(since) => {
                *since = now.max(*since);
                true
            }
        }
    }

    /// Whether it may be removed; if so it counts as going until [`Leases::end_removal`].
    pub(super) fn begin_removal(&mut self, stored: Stored, now: Timestamp, grace: u64) -> bool {
        let renewed = match self.renewed.get(&stored.digest) {
            Some(State::Going) => return false,
            Some(State::Since(since)) => *since,
            None => self.opened,
        };
        let used = Timestamp(stored.modified).max(renewed).max(self.opened);
        let over = now.since(used) >= grace;
        if over {
            self.renewed.insert(stored.digest, State::Going);
        }
        over
    }

    pub(super) fn end_removal(&mut self, digest: Digest) {
        self.renewed.remove(&digest);
    }

    /// Leases that are over say nothing any more.
    pub(super) fn forget(&mut self, now: Timestamp, grace: u64) {
        self.renewed.retain(|_, state| match state {
            State::Going => true,
            State::Since(since) => now.since(*since) < grace,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: u64 = 100;

    fn stored(modified: u64) -> Stored {
        Stored {
            digest: Digest::of(b"a"),
            bytes: 1,
            modified,
        }
    }

    #[test]
    fn the_newest_of_upload_lease_and_start_counts() {
        let digest = stored(0).digest;
        let goes = |leases: &mut Leases, modified: u64, now: u64| {
            let goes = leases.begin_removal(stored(modified), Timestamp(now), GRACE);
            if goes {
                leases.end_removal(digest);
            }
            goes
        };
        let mut leases = Leases::new(Timestamp(1_000));
        assert!(!goes(&mut leases, 0, 1_099), "just started");
        assert!(goes(&mut leases, 0, 1_100));
        assert!(!goes(&mut leases, 1_050, 1_100), "uploaded later");
        assert!(leases.renew(digest, Timestamp(1_200)));
        assert!(!goes(&mut leases, 0, 1_299), "under a lease");
        // A clock that went back shortens no lease.
        assert!(leases.renew(digest, Timestamp(1_100)));
        assert!(!goes(&mut leases, 0, 1_299));
        leases.forget(Timestamp(1_299), GRACE);
        assert!(!goes(&mut leases, 0, 1_299));
        leases.forget(Timestamp(1_300), GRACE);
        assert!(leases.renewed.is_empty());
        assert!(goes(&mut leases, 0, 1_300));
    }

    #[test]
    fn what_goes_cannot_be_leased_until_it_is_gone() {
        let digest = stored(0).digest;
        let mut leases = Leases::new(Timestamp(0));
        assert!(leases.begin_removal(stored(0), Timestamp(GRACE), GRACE));
        assert!(!leases.begin_removal(stored(0), Timestamp(GRACE), GRACE));
        assert!(!leases.renew(digest, Timestamp(GRACE)));
        leases.forget(Timestamp(10_000), GRACE);
        assert!(!leases.renew(digest, Timestamp(GRACE)));
        leases.end_removal(digest);
        assert!(leases.renew(digest, Timestamp(GRACE)));
    }
}
