//! Which leader this node obeys: the newest term survives restarts, so that a leader that was
//! deposed while the agent was down cannot move the node backwards.
//!
//! Only (incarnation, term) is written, once a term: an order costs no disk. Within a process the
//! sequence is fenced too; a restarted agent takes the first snapshot of a term that it knows,
//! whatever its sequence, since it has nothing left that an older one could overwrite.

use std::{
    cmp::Ordering,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use coracle_model::Stamp;
use serde::{Deserialize, Serialize};

/// What to do with an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    /// Older than what was accepted: its sender no longer leads.
    Stale,
    /// Not the next one: something between was missed.
    Gap,
}

/// Pure part: compares stamps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fence {
    term: (u64, u64),
    /// `None` until this process accepted something of the term.
    sequence: Option<u64>,
}

impl Fence {
    fn known(incarnation: u64, term: u64) -> Self {
        Self {
            term: (incarnation, term),
            sequence: None,
        }
    }

    /// An equal snapshot is accepted again; applying it changes nothing.
    pub fn snapshot(&self, stamp: Stamp) -> Verdict {
        match (stamp.incarnation, stamp.term).cmp(&self.term) {
            Ordering::Less => Verdict::Stale,
            Ordering::Equal if self.sequence.is_some_and(|seen| stamp.sequence < seen) => {
                Verdict::Stale
            }
            Ordering::Equal | Ordering::Greater => Verdict::Accept,
        }
    }

    pub fn delta(&self, stamp: Stamp) -> Verdict {
        let next = self.sequence.map(|seen| seen + 1);
        match (stamp.incarnation, stamp.term).cmp(&self.term) {
            Ordering::Less => Verdict::Stale,
            Ordering::Equal if next == Some(stamp.sequence) => Verdict::Accept,
            Ordering::Equal if next.is_some_and(|next| stamp.sequence < next) => Verdict::Stale,
            Ordering::Equal | Ordering::Greater => Verdict::Gap,
        }
    }

    fn advance(&mut self, stamp: Stamp) {
        *self = Self {
            term: (stamp.incarnation, stamp.term),
            sequence: Some(stamp.sequence),
        };
    }

    /// The newest accepted one; its sequence is zero when none was in this process.
    pub fn accepted(&self) -> Stamp {
        let (incarnation, term) = self.term;
        Stamp {
            incarnation,
            term,
            sequence: self.sequence.unwrap_or_default(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Written in one piece, so this is damage from outside. Guessing could obey an old leader.
    #[error("{} is damaged; remove it if no older controller can come back", path.display())]
    Damaged {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    incarnation: u64,
    term: u64,
}

/// Where the newest term is kept.
pub trait Store: std::fmt::Debug + Send {
    /// `None`: nothing was ever kept.
    fn read(&self) -> Result<Option<(u64, u64)>, LedgerError>;
    /// Durable when it returns.
    fn write(&self, term: (u64, u64)) -> Result<(), LedgerError>;
}

#[derive(Debug)]
pub struct Ledger {
    store: Box<dyn Store>,
    fence: Fence,
}

impl Ledger {
    pub fn open(path: PathBuf) -> Result<Self, LedgerError> {
        Self::over(Box::new(InFile { path }))
    }

    pub fn over(store: Box<dyn Store>) -> Result<Self, LedgerError> {
        let fence = match store.read()? {
            Some((incarnation, term)) => Fence::known(incarnation, term),
            // A node that never obeyed anyone.
            None => Fence::default(),
        };
        Ok(Self { store, fence })
    }

    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    /// Accepts a snapshot that [`Fence::snapshot`] let through; durable when it returns. Touches
    /// the disk only when the term is new.
    pub fn accept_snapshot(&mut self, stamp: Stamp) -> Result<(), LedgerError> {
        if (stamp.incarnation, stamp.term) != self.fence.term {
            self.store.write((stamp.incarnation, stamp.term))?;
        }
        self.fence.advance(stamp);
        Ok(())
    }

    /// Accepts a delta that [`Fence::delta`] let through. Never touches the disk.
    pub fn accept_delta(&mut self, stamp: Stamp) {
        self.fence.advance(stamp);
    }
}

/// One small file, replaced in one piece.
#[derive(Debug)]
struct InFile {
    path: PathBuf,
}

impl InFile {
    fn failed(&self, action: &'static str, source: io::Error) -> LedgerError {
        LedgerError::Io {
            action,
            path: self.path.clone(),
            source,
        }
    }
}

impl Store for InFile {
    fn read(&self) -> Result<Option<(u64, u64)>, LedgerError> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(self.failed("read", source)),
        };
        let Entry { incarnation, term } =
            serde_json::from_slice(&bytes).map_err(|source| LedgerError::Damaged {
                path: self.path.clone(),
                source,
            })?;
        Ok(Some((incarnation, term)))
    }

    fn write(&self, (incarnation, term): (u64, u64)) -> Result<(), LedgerError> {
        let write = || -> io::Result<()> {
            let temporary = self.path.with_extension("new");
            let mut file = File::create(&temporary)?;
            file.write_all(&serde_json::to_vec(&Entry { incarnation, term })?)?;
            file.sync_all()?;
            fs::rename(&temporary, &self.path)?;
            File::open(self.path.parent().unwrap_or(Path::new(".")))?.sync_all()
        };
        write().map_err(|source| self.failed("write", source))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stamp(incarnation: u64, term: u64, sequence: u64) -> Stamp {
        Stamp {
            incarnation,
            term,
            sequence,
        }
    }

    #[test]
    fn snapshots_never_go_back() {
        let mut fence = Fence::default();
        fence.advance(stamp(1, 5, 10));
        for (given, expected) in [
            (stamp(1, 5, 10), Verdict::Accept),
            (stamp(1, 5, 11), Verdict::Accept),
            (stamp(1, 6, 1), Verdict::Accept),
            (stamp(2, 1, 1), Verdict::Accept),
            (stamp(1, 5, 9), Verdict::Stale),
            (stamp(1, 4, 99), Verdict::Stale),
            (stamp(0, 9, 99), Verdict::Stale),
        ] {
            assert_eq!(fence.snapshot(given), expected, "{given}");
        }
    }

    #[test]
    fn deltas_are_contiguous_within_one_term() {
        let mut fence = Fence::default();
        assert_eq!(
            fence.delta(stamp(0, 0, 1)),
            Verdict::Gap,
            "nothing to build on"
        );
        fence.advance(stamp(1, 5, 10));
        for (given, expected) in [
            (stamp(1, 5, 11), Verdict::Accept),
            (stamp(1, 5, 10), Verdict::Stale),
            (stamp(1, 5, 12), Verdict::Gap),
            (stamp(1, 6, 11), Verdict::Gap),
            (stamp(1, 4, 11), Verdict::Stale),
        ] {
            assert_eq!(fence.delta(given), expected, "{given}");
        }
    }

    #[test]
    fn a_restart_keeps_the_term_and_forgets_the_sequence() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.json");
        let mut ledger = Ledger::open(path.clone()).unwrap();
        ledger.accept_snapshot(stamp(1, 5, 10)).unwrap();
        ledger.accept_delta(stamp(1, 5, 11));
        assert_eq!(ledger.fence().snapshot(stamp(1, 5, 10)), Verdict::Stale);

        let ledger = Ledger::open(path.clone()).unwrap();
        assert_eq!(ledger.fence().snapshot(stamp(1, 5, 1)), Verdict::Accept);
        assert_eq!(ledger.fence().snapshot(stamp(1, 4, 99)), Verdict::Stale);
        assert_eq!(ledger.fence().delta(stamp(1, 5, 1)), Verdict::Gap);

        fs::write(&path, b"{").unwrap();
        assert!(matches!(
            Ledger::open(path),
            Err(LedgerError::Damaged { .. })
        ));
    }

    #[test]
    fn only_a_new_term_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.json");
        let mut ledger = Ledger::open(path.clone()).unwrap();
        ledger.accept_snapshot(stamp(1, 5, 10)).unwrap();
        fs::remove_file(&path).unwrap();
        ledger.accept_snapshot(stamp(1, 5, 11)).unwrap();
        ledger.accept_delta(stamp(1, 5, 12));
        assert!(!path.exists());
        ledger.accept_snapshot(stamp(1, 6, 1)).unwrap();
        assert!(path.exists());
    }

    #[derive(Debug, Clone)]
    enum Event {
        Snapshot(Stamp),
        Delta(Stamp),
        /// The agent's process starts again.
        Restart,
    }

    fn event() -> impl Strategy<Value = Event> {
        let any = || (1..3_u64, 1..4_u64, 0..6_u64).prop_map(|(i, t, s)| stamp(i, t, s));
        prop_oneof![
            4 => any().prop_map(Event::Snapshot),
            6 => any().prop_map(Event::Delta),
            1 => Just(Event::Restart),
        ]
    }

    proptest! {
        /// Leaders of several terms and incarnations talk at once, with orders that were on their way
        /// for long: what is accepted never goes back, in an agent's life or over its restarts.
        #[test]
        fn no_older_stamp_is_ever_accepted(events in prop::collection::vec(event(), 0..60)) {
            let mut fence = Fence::default();
            let mut newest: Option<Stamp> = None;
            for event in events {
                let (given, verdict, delta) = match event {
                    Event::Snapshot(given) => (given, fence.snapshot(given), false),
                    Event::Delta(given) => (given, fence.delta(given), true),
                    Event::Restart => {
                        let accepted = fence.accepted();
                        fence = Fence::known(accepted.incarnation, accepted.term);
                        // Of a term that it knows any snapshot is news to a process without one.
                        newest = newest.map(|n| stamp(n.incarnation, n.term, 0));
                        continue;
                    }
                };
                if verdict != Verdict::Accept {
                    continue;
                }
                if let Some(newest) = newest {
                    prop_assert!(given >= newest, "{given} after {newest}");
                    prop_assert!(!delta || given > newest, "a delta twice: {given}");
                }
                let same_term = newest
                    .is_some_and(|n| (n.incarnation, n.term) == (given.incarnation, given.term));
                prop_assert!(!delta || same_term, "a delta on nothing: {given}");
                fence.advance(given);
                newest = Some(given);
            }
        }
    }
}
