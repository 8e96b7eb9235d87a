//! What every store must do, run against each of them.

use raft::eraftpb::{ConfState, Entry, HardState};

use super::{
    COMMAND_BYTES_MAX, Durability, ENTRY_BYTES_MAX, Error, LogStore, MemLog, SledLog, Snapshot,
    Write, power_loss::Rig,
};

/// A store that can lose power.
trait Bench {
    type Log: LogStore;
    fn new() -> Self;
    fn open(&mut self) -> Self::Log;
    /// Closes it in good order and opens it again.
    fn reopen(&mut self, log: Self::Log) -> Self::Log;
    /// Loses all that was not synced, and opens it again.
    fn cut(&mut self, log: Self::Log) -> Self::Log;
}

struct Memory;

impl Bench for Memory {
    type Log = MemLog;

    fn new() -> Self {
        Self
    }

    fn open(&mut self) -> MemLog {
        MemLog::new(1)
    }

    fn reopen(&mut self, log: MemLog) -> MemLog {
        log.cut(usize::MAX)
    }

    fn cut(&mut self, log: MemLog) -> MemLog {
        log.cut(0)
    }
}

impl Bench for Rig {
    type Log = SledLog;

    fn new() -> Self {
        Self::new()
    }

    fn open(&mut self) -> SledLog {
        Rig::open(self).unwrap()
    }

    fn reopen(&mut self, log: SledLog) -> SledLog {
        drop(log);
        Rig::open(self).unwrap()
    }

    fn cut(&mut self, log: SledLog) -> SledLog {
        self.lose_power(log, None);
        Rig::open(self).unwrap()
    }
}

macro_rules! conformance {
    ($($name:ident)*) => {
        mod memory {
            $(#[test] fn $name() { super::$name(super::Memory); })*
        }
        mod sled {
            use super::super::power_loss::Rig;
            $(#[test] fn $name() { super::$name(<Rig as super::Bench>::new()); })*
        }
    };
}

conformance! {
    a_new_store_is_blank
    entries_and_state_come_back
    a_cut_takes_only_what_was_not_synced
    a_conflicting_suffix_is_replaced
    gaps_and_large_entries_are_refused
    reading_is_limited_by_bytes
    compaction_goes_in_steps
    a_snapshot_is_kept_and_replaced
    an_installed_snapshot_replaces_the_log
    the_commit_index_covers_what_was_applied
}

pub(super) fn entry(index: u64, term: u64, data: &[u8]) -> Entry {
    Entry {
        index,
        term,
        data: data.to_vec().into(),
        ..Entry::default()
    }
}

fn entries(range: std::ops::Range<u64>, term: u64) -> Vec<Entry> {
    range
        .map(|index| entry(index, term, format!("{index}@{term}").as_bytes()))
        .collect()
}

pub(super) fn append(range: std::ops::Range<u64>, term: u64) -> Write {
    Write {
        entries: entries(range, term),
        ..Write::default()
    }
}

fn hard(term: u64, vote: u64, commit: u64) -> HardState {
    HardState {
        term,
        vote,
        commit,
        ..HardState::default()
    }
}

fn all(log: &impl LogStore) -> Vec<Entry> {
    let first = log.state().compacted_index + 1;
    log.entries(first, log.last_index() + 1, u64::MAX).unwrap()
}

fn a_new_store_is_blank<B: Bench>(mut bench: B) {
    let log = bench.open();
    {
        assert_eq!(
            (log.last_index(), log.term(0), log.term(1)),
            (0, Some(0), None)
        );
        assert_eq!(log.state().member, 1);
        assert_eq!(log.state().members, ConfState::default());
        assert_eq!(log.load_snapshot().unwrap(), None);
        let log = bench.cut(log);
        assert_eq!((log.last_index(), log.state().member), (0, 1));
    }
}

fn entries_and_state_come_back<B: Bench>(mut bench: B) {
    let mut log = bench.open();
    let members = ConfState::from((vec![1, 2, 3], vec![]));
    let write = Write {
        entries: entries(1..6, 1),
        hard: Some(hard(1, 2, 4)),
        applied: Some(3),
        members: Some(members.clone()),
    };
    log.write(write, Durability::Synced).unwrap();
    log.write(append(6..8, 2), Durability::Buffered).unwrap();
    let state = log.state().clone();
    let log = bench.reopen(log);
    assert_eq!(log.state(), &state);
    assert_eq!(
        (state.applied, &state.hard, &state.members),
        (3, &hard(1, 2, 4), &members)
    );
    assert_eq!(all(&log), [entries(1..6, 1), entries(6..8, 2)].concat());
    let terms: Vec<_> = (0..9).map(|index| log.term(index)).collect();
    let (one, two) = (Some(1), Some(2));
    assert_eq!(terms, [Some(0), one, one, one, one, one, two, two, None]);
}

fn a_cut_takes_only_what_was_not_synced<B: Bench>(mut bench: B) {
    let mut log = bench.open();
    log.write(append(1..4, 1), Durability::Synced).unwrap();
    log.write(append(4..6, 1), Durability::Buffered).unwrap();
    log.sync().unwrap();
    log.write(append(6..9, 1), Durability::Buffered).unwrap();
    let vote = Write {
        hard: Some(hard(9, 2, 0)),
        ..Write::default()
    };
    log.write(vote, Durability::Buffered).unwrap();
    assert_eq!(log.last_index(), 8);
    let mut log = bench.cut(log);
    assert_eq!((log.last_index(), log.state().hard.term), (5, 0));
    assert_eq!(all(&log), entries(1..6, 1));
    log.write(append(6..7, 3), Durability::Synced).unwrap();
    let log = bench.cut(log);
    assert_eq!((log.last_index(), log.term(6)), (6, Some(3)));
}

fn a_conflicting_suffix_is_replaced<B: Bench>(mut bench: B) {
    let mut log = bench.open();
    let large = entry(4, 1, &[7; 20_000]);
    log.write(append(1..4, 1), Durability::Synced).unwrap();
    log.write(
        Write {
            entries: vec![large],
            ..Write::default()
        },
        Durability::Synced,
    )
    .unwrap();
    log.write(append(5..9, 1), Durability::Synced).unwrap();
    // Shorter than what it replaces, in entries and in bytes.
    log.write(append(3..5, 2), Durability::Synced).unwrap();
    for _ in 0..2 {
        assert_eq!(log.last_index(), 4);
        assert_eq!(all(&log), [entries(1..3, 1), entries(3..5, 2)].concat());
        assert_eq!(
            (log.term(2), log.term(3), log.term(5)),
            (Some(1), Some(2), None)
        );
        log = bench.cut(log);
    }
}

fn gaps_and_large_entries_are_refused<B: Bench>(mut bench: B) {
    let mut log = bench.open();
    log.write(append(1..4, 1), Durability::Synced).unwrap();
    for bad in [append(5..6, 1), append(0..2, 1)] {
        let error = log.write(bad, Durability::Synced).unwrap_err();
        assert!(matches!(error, Error::Gap { .. }), "{error}");
    }
    let torn = Write {
        entries: vec![entry(4, 1, b"a"), entry(6, 1, b"b")],
        ..Write::default()
    };
    let error = log.write(torn, Durability::Synced).unwrap_err();
    assert!(matches!(error, Error::Gap { index: 6, .. }), "{error}");
    let large = vec![entry(4, 1, &[0; ENTRY_BYTES_MAX])];
    let error = log
        .write(
            Write {
                entries: large,
                ..Write::default()
            },
            Durability::Synced,
        )
        .unwrap_err();
    assert!(error.to_string().starts_with("entry too large"), "{error}");
    assert_eq!(log.last_index(), 3, "refused writes change nothing");
    // The largest command fits, whatever its index and term.
    let largest = vec![entry(4, u64::MAX, &[1; COMMAND_BYTES_MAX])];
    log.write(
        Write {
            entries: largest.clone(),
            ..Write::default()
        },
        Durability::Synced,
    )
    .unwrap();
    let log = bench.cut(log);
    assert_eq!(log.entries(4, 5, 1).unwrap(), largest);
}

fn reading_is_limited_by_bytes<B: Bench>(mut bench: B) {
    let mut log = bench.open();
    let entries: Vec<_> = (1..11).map(|index| entry(index, 1, &[0; 1000])).collect();
    log.write(
        Write {
            entries,
            ..Write::default()
        },
        Durability::Synced,
    )
    .unwrap();
    let read = |low, high, bytes| {
        let entries = log.entries(low, high, bytes).unwrap();
        entries.iter().map(|entry| entry.index).collect::<Vec<_>>()
    };
    assert_eq!(read(3, 8, u64::MAX), [3, 4, 5, 6, 7]);
    assert_eq!(read(3, 8, 2500), [3, 4]);
    assert_eq!(read(3, 8, 0), [3], "always one");
    assert_eq!(read(10, 11, u64::MAX), [10]);
    assert!(read(5, 5, u64::MAX).is_empty());
}

fn compaction_goes_in_steps<B: Bench>(mut bench: B) {
    let mut log = bench.open();
    log.write(append(1..21, 1), Durability::Synced).unwrap();
    log.write(append(21..31, 2), Durability::Synced).unwrap();
    assert!(log.compact(25, 10).unwrap());
    assert_eq!(
        (log.state().compacted_index, log.term(9), log.term(10)),
        (10, None, Some(1))
    );
    assert!(log.compact(25, 10).unwrap());
    assert!(!log.compact(25, 10).unwrap());
    assert!(!log.compact(20, 10).unwrap(), "already gone");
    for _ in 0..2 {
        assert_eq!(
            (log.state().compacted_index, log.state().compacted_term),
            (25, 2)
        );
        assert_eq!(
            (log.term(24), log.term(25), log.term(26)),
            (None, Some(2), Some(2))
        );
        assert_eq!(all(&log), entries(26..31, 2));
        log.sync().unwrap();
        log = bench.cut(log);
    }
    assert!(!log.compact(30, 10).unwrap(), "all of it");
    let mut log = bench.reopen(log);
    assert_eq!((log.last_index(), log.term(30)), (30, Some(2)));
    log.write(append(31..33, 2), Durability::Synced).unwrap();
    assert_eq!(all(&log), entries(31..33, 2));
}

fn a_snapshot_is_kept_and_replaced<B: Bench>(mut bench: B) {
    let mut log = bench.open();
    log.write(append(1..11, 1), Durability::Buffered).unwrap();
    for (index, data) in [(4, &b"four"[..]), (9, b"nine")] {
        let members = ConfState::from((vec![1], vec![]));
        let snapshot = Snapshot {
            index,
            term: 1,
            members: members.clone(),
            data,
        };
        log.save_snapshot(snapshot).unwrap();
        log = bench.cut(log);
        let kept = log.state().snapshot.clone().unwrap();
        assert_eq!((kept.index, kept.term, kept.members), (index, 1, members));
        assert_eq!(log.load_snapshot().unwrap().unwrap(), data);
        assert_eq!(
            all(&log),
            entries(1..11, 1),
            "the log stays, and is synced with it"
        );
    }
}

fn an_installed_snapshot_replaces_the_log<B: Bench>(mut bench: B) {
    let mut log = bench.open();
    log.write(append(1..11, 1), Durability::Synced).unwrap();
    let members = ConfState::from((vec![1, 2], vec![3]));
    let snapshot = Snapshot {
        index: 50,
        term: 4,
        members: members.clone(),
        data: b"state at fifty",
    };
    let write = Write {
        hard: Some(hard(5, 2, 50)),
        ..Write::default()
    };
    log.install_snapshot(snapshot, write).unwrap();
    for _ in 0..2 {
        let state = log.state();
        assert_eq!(
            (log.last_index(), state.applied, state.compacted_index),
            (50, 50, 50)
        );
        assert_eq!((&state.hard, &state.members), (&hard(5, 2, 50), &members));
        assert_eq!(
            (log.term(49), log.term(50), log.term(51)),
            (None, Some(4), None)
        );
        assert_eq!(log.load_snapshot().unwrap().unwrap(), b"state at fifty");
        log = bench.cut(log);
    }
    log.write(append(51..53, 5), Durability::Synced).unwrap();
    let log = bench.cut(log);
    assert_eq!(all(&log), entries(51..53, 5));
}

fn the_commit_index_covers_what_was_applied<B: Bench>(mut bench: B) {
    let mut log = bench.open();
    log.write(append(1..5, 1), Durability::Synced).unwrap();
    log.write(
        Write {
            applied: Some(4),
            ..Write::default()
        },
        Durability::Synced,
    )
    .unwrap();
    // Raft repeats its hard state with a commit index from before.
    let again = Write {
        hard: Some(hard(2, 1, 2)),
        ..Write::default()
    };
    log.write(again, Durability::Synced).unwrap();
    let log = bench.cut(log);
    assert_eq!((log.state().applied, log.state().hard.commit), (4, 4));
}
