//! The sled store on a disk that loses power, and other things that happen to files.
//!
//! The model: what fdatasync was called for is there, and of what was written later any part, in
//! blocks, may be. The disk is honest; a whole file system losing power is for the reliability
//! suite, which needs root.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use super::{
    COMMAND_BYTES_MAX, Durability, Error, LogStore, SledLog, Snapshot, Write,
    conformance::{append, entry},
};
use crate::rng::Rng;

const BLOCK: usize = 4096;

/// A directory whose database file is copied at every sync.
pub(super) struct Rig {
    directory: tempfile::TempDir,
    synced: Arc<Mutex<Vec<u8>>>,
    syncs: Arc<AtomicU64>,
    broken: Arc<AtomicBool>,
}

impl Rig {
    pub(super) fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            synced: Arc::default(),
            syncs: Arc::default(),
            broken: Arc::default(),
        }
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("sled/db")
    }

    pub(super) fn open(&self) -> Result<SledLog, Error> {
        let (path, synced) = (self.file(), self.synced.clone());
        let (syncs, broken) = (self.syncs.clone(), self.broken.clone());
        let sync = move |file: &File| {
            if broken.load(Ordering::SeqCst) {
                return Err(io::Error::other("the disk is gone"));
            }
            rustix::fs::fdatasync(file)?;
            syncs.fetch_add(1, Ordering::SeqCst);
            *synced.lock().unwrap() = fs::read(&path)?;
            Ok(())
        };
        SledLog::open_with(self.directory.path(), 1, Box::new(sync))
    }

    fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::SeqCst)
    }

    /// Leaves what was synced; with `torn`, also a random half of the blocks written since, and
    /// sometimes the file's new length.
    pub(super) fn lose_power(&self, log: SledLog, torn: Option<&mut Rng>) {
        let mut image = self.synced.lock().unwrap().clone();
        let later = fs::read(self.file()).unwrap();
        // Closing flushes; nothing that it writes counts.
        drop(log);
        if let Some(rng) = torn {
            if rng.chance(50) {
                image.resize(image.len().max(later.len()), 0);
            }
            for (old, new) in image.chunks_mut(BLOCK).zip(later.chunks(BLOCK)) {
                let length = old.len().min(new.len());
                if rng.chance(50) {
                    old[..length].copy_from_slice(&new[..length]);
                }
            }
        }
        fs::write(self.file(), image).unwrap();
    }
}

fn blobs(directory: &Path) -> usize {
    fs::read_dir(directory.join("blobs")).unwrap().count()
}

#[test]
fn every_synced_write_reaches_fdatasync_and_no_other_does() {
    let rig = Rig::new();
    let mut log = rig.open().unwrap();
    for index in 1..=50 {
        let before = rig.syncs();
        log.write(append(index..index + 1, 1), Durability::Buffered)
            .unwrap();
        assert_eq!(rig.syncs(), before, "write {index}");
        log.write(append(index..index + 1, 2), Durability::Synced)
            .unwrap();
        assert_eq!(rig.syncs(), before + 1, "write {index}");
    }
    let before = rig.syncs();
    let members = log.state().members.clone();
    let snapshot = Snapshot {
        index: 40,
        term: 2,
        members: members.clone(),
        data: b"forty",
    };
    log.save_snapshot(snapshot).unwrap();
    let snapshot = Snapshot {
        index: 60,
        term: 2,
        members,
        data: b"sixty",
    };
    log.install_snapshot(snapshot, Write::default()).unwrap();
    assert_eq!(rig.syncs(), before + 2);
}

#[test]
fn acknowledged_entries_survive_any_tear_after_them() {
    for seed in 0..24 {
        let mut rng = Rng::new(seed);
        let rig = Rig::new();
        let mut acknowledged = 0;
        for round in 1..=3 {
            let mut log = rig
                .open()
                .unwrap_or_else(|error| panic!("seed {seed}: {error:?}"));
            assert!(
                log.last_index() >= acknowledged,
                "seed {seed}: lost an acknowledged entry"
            );
            for index in 1..=acknowledged {
                let found = log.entries(index, index + 1, 0).unwrap();
                assert_eq!(found.len(), 1, "seed {seed}: entry {index}");
            }
            for _ in 0..rng.below(12) {
                let index = log.last_index() + 1;
                let data = vec![7; 1 + rng.below(30_000)];
                let entries = vec![entry(index, round, &data)];
                let synced = rng.chance(70);
                let durability = if synced {
                    Durability::Synced
                } else {
                    Durability::Buffered
                };
                log.write(
                    Write {
                        entries,
                        ..Write::default()
                    },
                    durability,
                )
                .unwrap();
                if synced {
                    acknowledged = index;
                }
            }
            rig.lose_power(log, Some(&mut rng));
        }
    }
}

/// The reason for storing entries in pieces: sled moves large pages into files of their own, and
/// only the `db` file is synced.
#[test]
fn no_entry_leaves_the_file_that_is_synced() {
    let rig = Rig::new();
    let mut log = rig.open().unwrap();
    for first in (1..=200).step_by(4) {
        let entries = (first..first + 4)
            .map(|i| entry(i, 1, &[9; COMMAND_BYTES_MAX]))
            .collect();
        log.write(
            Write {
                entries,
                ..Write::default()
            },
            Durability::Synced,
        )
        .unwrap();
    }
    assert!(log.compact(150, 1000).is_ok());
    log.sync().unwrap();
    assert_eq!(blobs(&rig.directory.path().join("sled")), 0);

    let whole = tempfile::tempdir().unwrap();
    let database = ::sled::open(whole.path()).unwrap();
    for index in 1_u64..=40 {
        database
            .insert(index.to_be_bytes(), vec![9; COMMAND_BYTES_MAX])
            .unwrap();
    }
    drop(database);
    assert_ne!(blobs(whole.path()), 0, "pieces would not be needed");
}

#[test]
fn a_failed_sync_is_an_error() {
    let rig = Rig::new();
    let mut log = rig.open().unwrap();
    rig.broken.store(true, Ordering::SeqCst);
    let error = log.write(append(1..2, 1), Durability::Synced).unwrap_err();
    assert!(matches!(error, Error::Sync(_)), "{error:?}");
}

#[test]
fn another_members_log_is_refused() {
    let rig = Rig::new();
    drop(rig.open().unwrap());
    let error = SledLog::open(rig.directory.path(), 2).unwrap_err();
    assert!(
        matches!(
            error,
            Error::OtherMember {
                found: 1,
                expected: 2
            }
        ),
        "{error:?}"
    );
}

#[test]
fn a_log_that_is_open_elsewhere_is_refused_with_advice() {
    let rig = Rig::new();
    let _open = rig.open().unwrap();
    let error = rig.open().unwrap_err();
    assert!(matches!(error, Error::Open { .. }), "{error:?}");
    assert!(
        error.to_string().contains("never under the old one"),
        "{error}"
    );
}

type Damage = fn(&::sled::Db, &[u8]);

/// Whatever sits in the tree, wrong bytes under an entry's key are found at open.
#[test]
fn damaged_entries_are_found_and_nothing_is_deleted() {
    let damage: [(&str, Damage); 4] = [
        ("a flipped bit", |db, key| {
            let mut value = db.get(key).unwrap().unwrap().to_vec();
            *value.last_mut().unwrap() ^= 1;
            db.insert(key, value).unwrap();
        }),
        ("a lost entry", |db, key| {
            db.remove(key).unwrap();
        }),
        ("an entry in the wrong place", |db, key| {
            let mut other = key.to_vec();
            other[8] += 1;
            let value = db.get(other).unwrap().unwrap();
            db.insert(key, value).unwrap();
        }),
        ("no state record", |db, _| {
            db.remove([0, 1]).unwrap();
        }),
    ];
    for (what, act) in damage {
        let rig = Rig::new();
        let mut log = rig.open().unwrap();
        log.write(append(1..10, 1), Durability::Synced).unwrap();
        drop(log);
        let database = ::sled::open(rig.directory.path().join("sled")).unwrap();
        let key = [&[1][..], &5_u64.to_be_bytes(), &[0, 0]].concat();
        act(&database, &key);
        let before = database.len();
        drop(database);
        let error = rig.open().unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{what}: {error:?}");
        let database = ::sled::open(rig.directory.path().join("sled")).unwrap();
        assert_eq!(database.len(), before, "{what}");
    }
}

#[test]
fn a_newer_format_is_refused() {
    let rig = Rig::new();
    drop(rig.open().unwrap());
    let database = ::sled::open(rig.directory.path().join("sled")).unwrap();
    database.insert([0, 0], &2_u32.to_be_bytes()).unwrap();
    drop(database);
    let error = rig.open().unwrap_err();
    assert!(
        matches!(
            error,
            Error::Format {
                found: 2,
                known: 1,
                ..
            }
        ),
        "{error:?}"
    );
}

#[test]
fn a_damaged_snapshot_is_found() {
    let rig = Rig::new();
    let mut log = rig.open().unwrap();
    log.write(append(1..10, 1), Durability::Synced).unwrap();
    let members = log.state().members.clone();
    log.save_snapshot(Snapshot {
        index: 9,
        term: 1,
        members,
        data: b"whole",
    })
    .unwrap();
    let directory = rig.directory.path().join("snapshots");
    let files: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|file| file.unwrap())
        .collect();
    assert_eq!(files.len(), 1);
    fs::write(files[0].path(), b"torn").unwrap();
    let error = log.load_snapshot().unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error:?}");
}

/// A kill while sled writes its index leaves this behind, and sled would not open beside it.
#[test]
fn a_half_written_sled_index_does_no_harm() {
    let rig = Rig::new();
    let mut log = rig.open().unwrap();
    log.write(append(1..10, 1), Durability::Synced).unwrap();
    drop(log);
    let left = rig
        .directory
        .path()
        .join("sled/snap.0000000000FFFFFF.generating");
    fs::write(&left, b"half").unwrap();
    let log = rig.open().unwrap();
    assert_eq!(log.last_index(), 9);
    assert!(!left.exists());
}
