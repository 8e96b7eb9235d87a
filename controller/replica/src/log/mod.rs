//! What a member must not forget: its log, its vote, who is in the group, and the last snapshot.
//!
//! The trait is the seam behind which another store can take sled's place. It speaks raft's types,
//! so only this crate implements it; others open a store and hand it on.

mod files;
mod mem;
mod sled;
mod state;
mod terms;

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod power_loss;

use std::{error::Error as StdError, io, path::PathBuf};

use protobuf::Message as _;
use raft::eraftpb::{ConfState, Entry, HardState};

pub use self::{
    mem::MemLog,
    sled::SledLog,
    state::{SnapshotRef, State},
};

/// The most that one entry may take in the log, encoded.
pub const ENTRY_BYTES_MAX: usize = 64 * 1024;
/// The most that one command may take: the rest is left to raft's own fields around it.
pub const COMMAND_BYTES_MAX: usize = ENTRY_BYTES_MAX - 64;

/// Written together, or not at all.
#[derive(Debug, Clone, Default)]
pub struct Write {
    /// Contiguous. They replace whatever the log holds from the first one's index on.
    pub entries: Vec<Entry>,
    pub hard: Option<HardState>,
    pub applied: Option<u64>,
    pub members: Option<ConfState>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// On disk, past every cache, when the call returns.
    Synced,
    /// With the next synced write, or before. A cut may undo it, together with every
    /// write after it.
    Buffered,
}

/// A snapshot that replaces the log, as received from the leader.
#[derive(Debug, Clone)]
pub struct Snapshot<'a> {
    pub index: u64,
    pub term: u64,
    pub members: ConfState,
    pub data: &'a [u8],
}

/// One member's durable memory. Used by one thread. After an error from a writing method the store
/// may hold part of what was asked, so its owner must stop.
pub trait LogStore: Send + 'static {
    /// All but the entries, as of the last write.
    fn state(&self) -> &State;

    /// The index of the last entry, or of what was compacted away when there is none.
    fn last_index(&self) -> u64;

    /// The term of an entry from `state().compacted_index` on; None outside.
    fn term(&self, index: u64) -> Option<u64>;

    /// Entries from `low` to before `high`, as many as fit in `max_bytes` but at least one. All of
    /// them must be in the log.
    fn entries(&self, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Entry>, Error>;

    fn write(&mut self, write: Write, durability: Durability) -> Result<(), Error>;

    /// Makes everything written so far durable.
    fn sync(&mut self) -> Result<(), Error>;

    /// Keeps the state as of an applied index; the log stays. Durable on return.
    fn save_snapshot(&mut self, snapshot: Snapshot<'_>) -> Result<(), Error>;

    /// Forgets the log and goes on from a snapshot; `write` is what raft wants stored with it.
    /// Durable on return.
    fn install_snapshot(&mut self, snapshot: Snapshot<'_>, write: Write) -> Result<(), Error>;

    /// The bytes that `state().snapshot` refers to, checked.
    fn load_snapshot(&self) -> Result<Option<Vec<u8>>, Error>;

    /// Drops at most `limit` entries up to `index`, which must be applied and in a snapshot.
    /// Buffered: a cut brings entries back, which does no harm. True when there are more to drop.
    fn compact(&mut self, index: u64, limit: u64) -> Result<bool, Error>;
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {doing} {path}")]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "the log database in {path} does not open. Nothing was changed or deleted. If another \
         process has it open, stop that one; if the disk failed, move the whole directory aside and \
         restore a backup, or rejoin the group under a new member id: never under the old one"
    )]
    Open {
        path: PathBuf,
        source: Box<dyn StdError + Send + Sync>,
    },
    #[error("the log in {path} has format {found}, and this program reads format {known}")]
    Format {
        path: PathBuf,
        found: u32,
        known: u32,
    },
    #[error("the log belongs to member {found}, not to member {expected}")]
    OtherMember { found: u64, expected: u64 },
    #[error(
        "the log is damaged ({what}). Nothing was changed or deleted: keep the directory, restore a \
         backup, or rejoin the group under a new member id"
    )]
    Damaged { what: String },
    #[error("entry too large: {bytes} bytes at index {index}, at most {ENTRY_BYTES_MAX}")]
    EntryTooLarge { index: u64, bytes: usize },
    #[error(
        "entries must follow the log: it ends at {last}, compacted up to {compacted}, and entry {index} came"
    )]
    Gap {
        index: u64,
        last: u64,
        compacted: u64,
    },
    #[error("{path} holds a log already")]
    Occupied { path: PathBuf },
    #[error("the log database failed")]
    Database(#[source] Box<dyn StdError + Send + Sync>),
    #[error("the log could not be brought to disk")]
    Sync(#[source] io::Error),
}

impl Error {
    /// The store is lost, and trying again, another version or another member will not help.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } => true,
            Self::Open { source, .. } | Self::Database(source) => matches!(
                source.downcast_ref::<::sled::Error>(),
                Some(::sled::Error::Corruption { .. })
            ),
            _ => false,
        }
    }
}

/// Refuses entries that would tear the log or not fit. The same for every store.
fn check(write: &Write, state: &State, last: u64) -> Result<(), Error> {
    let Some(first) = write.entries.first() else {
        return Ok(());
    };
    let compacted = state.compacted_index;
    if first.index <= compacted || first.index > last + 1 {
        return Err(Error::Gap {
            index: first.index,
            last,
            compacted,
        });
    }
    for (expected, entry) in (first.index..).zip(&write.entries) {
        if entry.index != expected {
            return Err(Error::Gap {
                index: entry.index,
                last: expected - 1,
                compacted,
            });
        }
        let bytes = entry.compute_size() as usize;
        if bytes > ENTRY_BYTES_MAX {
            return Err(Error::EntryTooLarge {
                index: entry.index,
                bytes,
            });
        }
    }
    Ok(())
}
