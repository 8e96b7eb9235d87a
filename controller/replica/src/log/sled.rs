//! The log in sled, made durable by our own fdatasync.
//!
//! One tree. `[0, 0]` is the format number, `[0, 1]` the state record, and
//! `[1][index, 8 bytes][piece, 2 bytes]` a piece of an entry; numbers are big-endian, so that keys
//! sort as entries do.
//!
//! Why pieces: sled keeps up to about 17 values in one leaf page, and writes a page above a quarter
//! of a segment (128 KiB) into a file of its own, whose bytes no fdatasync of the `db` file covers.
//! A limit on the size of one value is therefore not enough. With at most [`PIECE_BYTES`] a value
//! no page comes near that, and a test checks that such files never appear.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use protobuf::Message as _;
use raft::eraftpb::Entry;
use rustix::fs::FlockOperation;

use super::{
    Durability, Error, LogStore, Snapshot, SnapshotRef, State, Write, check,
    files::{SnapshotFiles, create_directory, io as io_at, sync_directory},
    terms::Terms,
};

/// Rises whenever the bytes change their meaning.
const FORMAT: u32 = 1;
const FORMAT_KEY: [u8; 2] = [0, 0];
const STATE_KEY: [u8; 2] = [0, 1];
const ENTRY_TAG: u8 = 1;
const PIECE_BYTES: usize = 4096;
/// Before an entry's bytes: their length and the checksum of key and bytes.
const HEADER_BYTES: usize = 8;
/// sled's default is a gigabyte. The log is read only by followers that lag and at start.
const CACHE_BYTES: u64 = 16 * 1024 * 1024;
/// sled's own background flush, kept as a second net. Nothing here relies on it.
const BACKGROUND_FLUSH_MS: u64 = 500;

/// Brings a file's bytes and length to disk. Replaced in tests, which count and lose power.
pub(super) type SyncData = Box<dyn FnMut(&File) -> io::Result<()> + Send>;

/// The durable log of one member.
pub struct SledLog {
    database: Database,
    state: State,
    terms: Terms,
    files: SnapshotFiles,
}

impl std::fmt::Debug for SledLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SledLog")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl SledLog {
    /// Opens or creates the log of `member` in `directory`, and reads all of it once to check it.
    /// Blocks on the disk. On any error the directory is left as it was found.
    pub fn open(directory: &Path, member: u64) -> Result<Self, Error> {
        let sync = Box::new(|file: &File| rustix::fs::fdatasync(file).map_err(io::Error::from));
        Self::open_with(directory, member, sync)
    }

    pub(super) fn open_with(directory: &Path, member: u64, sync: SyncData) -> Result<Self, Error> {
        create_directory(directory)?;
        let files = SnapshotFiles::open(directory.join("snapshots"))?;
        let mut database = Database::open(directory.join("sled"), sync)?;
        let state = match database.tree.get(FORMAT_KEY).map_err(failed)? {
            None if database.tree.is_empty() => initialize(&mut database, member)?,
            None => {
                return Err(Error::Damaged {
                    what: "no format number".into(),
                });
            }
            Some(format) => {
                let found = <[u8; 4]>::try_from(&format[..])
                    .map(u32::from_be_bytes)
                    .map_err(|_| Error::Damaged {
                        what: "the format number".into(),
                    })?;
                if found != FORMAT {
                    let path = directory.to_owned();
                    return Err(Error::Format {
                        path,
                        found,
                        known: FORMAT,
                    });
                }
                let record = database.tree.get(STATE_KEY).map_err(failed)?;
                let missing = || Error::Damaged {
                    what: "no state record".into(),
                };
                State::decode(&record.ok_or_else(missing)?)?
            }
        };
        if state.member != member {
            return Err(Error::OtherMember {
                found: state.member,
                expected: member,
            });
        }
        let terms = scan(&database.tree, &state)?;
        Ok(Self {
            database,
            state,
            terms,
            files,
        })
    }

    /// Adds to `batch` the removal of all pieces of entries in the range.
    fn remove(&self, batch: &mut ::sled::Batch, low: u64, high: u64) -> Result<(), Error> {
        for key in self
            .database
            .tree
            .range(entry_key(low, 0)..entry_key(high, 0))
            .keys()
        {
            batch.remove(key.map_err(failed)?);
        }
        Ok(())
    }

    fn commit(
        &mut self,
        mut batch: ::sled::Batch,
        state: State,
        durability: Durability,
    ) -> Result<(), Error> {
        batch.insert(&STATE_KEY, state.encode());
        self.database.tree.apply_batch(batch).map_err(failed)?;
        if durability == Durability::Synced {
            self.database.sync()?;
        }
        self.state = state;
        Ok(())
    }
}

impl LogStore for SledLog {
    fn state(&self) -> &State {
        &self.state
    }

    fn last_index(&self) -> u64 {
        self.terms.last_index()
    }

    fn term(&self, index: u64) -> Option<u64> {
        self.terms.get(index)
    }

    fn entries(&self, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Entry>, Error> {
        let mut found = Vec::new();
        let mut bytes = 0;
        for entry in Entries::new(&self.database.tree, low, high) {
            let entry = entry?;
            bytes += u64::from(entry.compute_size());
            if bytes > max_bytes && !found.is_empty() {
                break;
            }
            found.push(entry);
        }
        Ok(found)
    }

    fn write(&mut self, write: Write, durability: Durability) -> Result<(), Error> {
        check(&write, &self.state, self.last_index())?;
        let mut batch = ::sled::Batch::default();
        if let Some(first) = write.entries.first() {
            // A later operation on the same key wins inside a batch, so removals come first.
            self.remove(&mut batch, first.index, self.last_index() + 1)?;
        }
        insert(&mut batch, &write.entries);
        self.commit(batch, self.state.after(&write), durability)?;
        for entry in &write.entries {
            self.terms.put(entry.index, entry.term);
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), Error> {
        self.database.sync()
    }

    fn save_snapshot(&mut self, snapshot: Snapshot<'_>) -> Result<(), Error> {
        let reference = SnapshotRef::of(&snapshot);
        self.files.save(&reference, snapshot.data)?;
        let state = State {
            snapshot: Some(reference.clone()),
            ..self.state.clone()
        };
        self.commit(::sled::Batch::default(), state, Durability::Synced)?;
        self.files.keep_only(&reference);
        Ok(())
    }

    fn install_snapshot(&mut self, snapshot: Snapshot<'_>, write: Write) -> Result<(), Error> {
        let state = self.state.replaced(&snapshot, &write);
        check(&write, &state, snapshot.index)?;
        let reference = SnapshotRef::of(&snapshot);
        self.files.save(&reference, snapshot.data)?;
        let mut batch = ::sled::Batch::default();
        self.remove(&mut batch, 0, u64::MAX)?;
        insert(&mut batch, &write.entries);
        self.commit(batch, state, Durability::Synced)?;
        self.terms = Terms::after(snapshot.index, snapshot.term);
        for entry in &write.entries {
            self.terms.put(entry.index, entry.term);
        }
        self.files.keep_only(&reference);
        Ok(())
    }

    fn load_snapshot(&self) -> Result<Option<Vec<u8>>, Error> {
        self.state
            .snapshot
            .as_ref()
            .map(|snapshot| self.files.load(snapshot))
            .transpose()
    }

    fn compact(&mut self, index: u64, limit: u64) -> Result<bool, Error> {
        let step = index.min(self.state.compacted_index.saturating_add(limit));
        let Some(term) = self
            .terms
            .get(step)
            .filter(|_| step > self.state.compacted_index)
        else {
            return Ok(false);
        };
        let mut batch = ::sled::Batch::default();
        self.remove(&mut batch, 0, step + 1)?;
        let state = State {
            compacted_index: step,
            compacted_term: term,
            ..self.state.clone()
        };
        self.commit(batch, state, Durability::Buffered)?;
        self.terms.compact(step);
        Ok(step < index)
    }
}

/// sled, and the handle that makes it durable.
struct Database {
    /// First, since fields are dropped in order and the next one waits for it.
    tree: ::sled::Db,
    file: SecondHandle,
    sync: SyncData,
}

impl Database {
    fn open(path: PathBuf, mut sync: SyncData) -> Result<Self, Error> {
        clear_unfinished(&path)?;
        let data = path.join("db");
        // After a kill the file may hold writes that never reached the disk. sled is about to
        // write a (synced) index over them, which would be damage if power failed before they are
        // synced as well.
        match File::open(&data) {
            Ok(file) => sync(&file).map_err(Error::Sync)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return io_at("open", &data, Err(error)),
        }
        let tree = ::sled::Config::new()
            .path(&path)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(Some(BACKGROUND_FLUSH_MS))
            .open()
            .map_err(|source| Error::Open {
                path: path.clone(),
                source: source.into(),
            })?;
        let file = io_at(
            "open",
            &data,
            File::options().read(true).write(true).open(&data),
        )?;
        // sled creates this one and syncs neither its contents nor any of the names.
        let settings = path.join("conf");
        io_at(
            "sync",
            &settings,
            File::open(&settings).and_then(|file| file.sync_all()),
        )?;
        create_directory(&path)?;
        let mut database = Self {
            tree,
            file: SecondHandle(file),
            sync,
        };
        database.sync()?;
        Ok(database)
    }

    /// The one place that flushes. sled's flush writes its buffers out with sync_file_range, which
    /// leaves the drive's cache and the file's length alone: without the second step a power cut
    /// loses acknowledged entries and votes, or the whole log (docs/adr/0002).
    #[expect(
        clippy::disallowed_methods,
        reason = "followed at once by our own fdatasync"
    )]
    fn sync(&mut self) -> Result<(), Error> {
        self.tree.flush().map_err(failed)?;
        (self.sync)(&self.file.0).map_err(Error::Sync)
    }
}

/// Our handle to the file that sled writes, and locks.
struct SecondHandle(File);

/// How long closing waits for sled to let go of its file.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);

impl Drop for SecondHandle {
    /// Waits until sled is done. Dropping sled leaves its thread pool to finish by itself, with the
    /// file locked until then, and whoever closes the log may want to open it again at once.
    fn drop(&mut self) {
        let step = Duration::from_millis(1);
        let mut waited = Duration::ZERO;
        while rustix::fs::flock(&self.0, FlockOperation::NonBlockingLockExclusive).is_err() {
            if waited >= CLOSE_PATIENCE {
                tracing::warn!("sled still holds its file after the log was closed");
                return;
            }
            std::thread::sleep(step);
            waited += step;
        }
    }
}

/// A process killed while sled wrote one of its own index files leaves it half-written under this
/// name, and sled then takes it for a damaged one and refuses to open. It was never in use, since
/// sled renames it when it is complete.
fn clear_unfinished(path: &Path) -> Result<(), Error> {
    let Ok(listed) = fs::read_dir(path) else {
        return Ok(());
    };
    for entry in listed {
        let entry = io_at("list", path, entry)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            tracing::warn!(file = %entry.path().display(), "removing a half-written sled file");
            io_at("remove", &entry.path(), fs::remove_file(entry.path()))?;
            sync_directory(path)?;
        }
    }
    Ok(())
}

fn initialize(database: &mut Database, member: u64) -> Result<State, Error> {
    let state = State {
        member,
        ..State::default()
    };
    let mut batch = ::sled::Batch::default();
    batch.insert(&FORMAT_KEY, &FORMAT.to_be_bytes());
    batch.insert(&STATE_KEY, state.encode());
    database.tree.apply_batch(batch).map_err(failed)?;
    database.sync()?;
    Ok(state)
}

/// Reads every entry, checks it, and checks that none is missing. The log is bounded by the
/// snapshot policy, so this takes milliseconds, and a flipped bit is found before anything acts.
fn scan(tree: &::sled::Db, state: &State) -> Result<Terms, Error> {
    let mut terms = Terms::after(state.compacted_index, state.compacted_term);
    for entry in Entries::new(tree, 0, u64::MAX) {
        let entry = entry?;
        let expected = terms.last_index() + 1;
        if entry.index != expected {
            let what = format!("entry {expected} is missing, {} is there", entry.index);
            return Err(Error::Damaged { what });
        }
        terms.put(entry.index, entry.term);
    }
    if state.hard.commit > terms.last_index() {
        let (commit, last) = (state.hard.commit, terms.last_index());
        let what = format!("committed up to {commit}, but the log ends at {last}");
        return Err(Error::Damaged { what });
    }
    Ok(terms)
}

fn failed(source: ::sled::Error) -> Error {
    Error::Database(source.into())
}

fn entry_key(index: u64, piece: u16) -> [u8; 11] {
    let mut key = [ENTRY_TAG; 11];
    key[1..9].copy_from_slice(&index.to_be_bytes());
    key[9..].copy_from_slice(&piece.to_be_bytes());
    key
}

fn insert(batch: &mut ::sled::Batch, entries: &[Entry]) {
    for entry in entries {
        let bytes = entry
            .write_to_bytes()
            .expect("a message of plain fields always encodes");
        let length = u32::try_from(bytes.len()).expect("checked against ENTRY_BYTES_MAX");
        let mut value = Vec::with_capacity(HEADER_BYTES + bytes.len());
        value.extend(length.to_be_bytes());
        value.extend(checksum(entry.index, &bytes).to_be_bytes());
        value.extend(bytes);
        for (piece, part) in (0_u16..).zip(value.chunks(PIECE_BYTES)) {
            batch.insert(&entry_key(entry.index, piece), part);
        }
    }
}

/// The index is part of it, so that a value under a wrong key is found too.
fn checksum(index: u64, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&index.to_be_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

/// Puts entries together from their pieces, in order.
struct Entries {
    pieces: std::iter::Peekable<::sled::Iter>,
}

impl Entries {
    fn new(tree: &::sled::Db, low: u64, high: u64) -> Self {
        Self {
            pieces: tree.range(entry_key(low, 0)..entry_key(high, 0)).peekable(),
        }
    }

    fn gather(&mut self, key: &[u8], mut value: Vec<u8>) -> Result<Entry, Error> {
        let index = key
            .get(1..9)
            .and_then(|bytes| bytes.try_into().ok())
            .map(u64::from_be_bytes);
        let index = index.ok_or_else(|| Error::Damaged {
            what: format!("key {key:02x?}"),
        })?;
        let mut next = 1;
        while let Some(Ok((_, part))) = self
            .pieces
            .next_if(|piece| matches!(piece, Ok((key, _)) if key[..] == entry_key(index, next)))
        {
            value.extend_from_slice(&part);
            next += 1;
        }
        decode(index, &value).ok_or_else(|| Error::Damaged {
            what: format!("entry {index}"),
        })
    }
}

impl Iterator for Entries {
    type Item = Result<Entry, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let piece = self.pieces.next()?;
        Some(
            piece
                .map_err(failed)
                .and_then(|(key, value)| self.gather(&key, value.to_vec())),
        )
    }
}

fn decode(index: u64, value: &[u8]) -> Option<Entry> {
    let (length, rest) = value.split_first_chunk::<4>()?;
    let (sum, bytes) = rest.split_first_chunk::<4>()?;
    if bytes.len() != u32::from_be_bytes(*length) as usize
        || checksum(index, bytes) != u32::from_be_bytes(*sum)
    {
        return None;
    }
    let entry = Entry::parse_from_bytes(bytes).ok()?;
    (entry.index == index).then_some(entry)
}
