//! A snapshot as a file.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use coracle_model::Timestamp;
use coracle_proto::v1;
use coracle_state::State;
use prost::Message as _;
use sha2::{Digest as _, Sha256};

use super::BackupError;

const MAGIC: &[u8; 8] = b"coracle\0";
const FORMAT: u32 = 1;
const HEADER_BYTES_MAX: usize = 64 * 1024;
const STATE_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// What a file says of itself, checked against what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupInfo {
    pub cluster_id: String,
    /// Of the program that wrote it.
    pub version: String,
    pub taken_at: Timestamp,
    /// The controller that wrote it, and where it stood.
    pub member: u64,
    pub index: u64,
    pub term: u64,
    pub incarnation: u64,
    pub voters: Vec<u64>,
    pub learners: Vec<u64>,
    pub bytes: u64,
    /// SHA-256 of the state, in hexadecimal.
    pub digest: String,
    pub projects: usize,
    pub functions: usize,
    pub tokens: usize,
    pub nodes: usize,
}

/// The state, and what is said of it.
#[derive(Debug)]
pub(crate) struct Backup {
    pub(crate) header: v1::BackupHeader,
    pub(crate) state: Vec<u8>,
}

impl Backup {
    pub(crate) fn new(mut header: v1::BackupHeader, state: Vec<u8>) -> Self {
        header.format = FORMAT;
        header.version = env!("CARGO_PKG_VERSION").to_owned();
        header.bytes = state.len() as u64;
        header.digest = Sha256::digest(&state).to_vec().into();
        Self { header, state }
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let header = self.header.encode_to_vec();
        let length = u32::try_from(header.len()).expect("a header has some hundred bytes");
        let mut out = Vec::with_capacity(MAGIC.len() + 4 + header.len() + self.state.len());
        out.extend(MAGIC);
        out.extend(length.to_be_bytes());
        out.extend(header);
        out.extend(&self.state);
        out
    }

    /// Blocks on the disk.
    pub(crate) fn read(path: &Path) -> Result<Self, BackupError> {
        let failed = |source| BackupError::Io {
            doing: "read",
            path: path.to_owned(),
            source,
        };
        let mut file = File::open(path).map_err(failed)?;
        let damaged = |what: &'static str| BackupError::Damaged {
            path: path.to_owned(),
            what,
        };
        let cut = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => damaged("it ends early"),
            _ => failed(error),
        };
        let mut magic = [0; MAGIC.len()];
        file.read_exact(&mut magic).map_err(cut)?;
        if &magic != MAGIC {
            return Err(damaged("it is not a snapshot of a cluster"));
        }
        let mut length = [0; 4];
        file.read_exact(&mut length).map_err(cut)?;
        let length = u32::from_be_bytes(length) as usize;
        if length > HEADER_BYTES_MAX {
            return Err(damaged("its header is too long"));
        }
        let mut header = vec![0; length];
        file.read_exact(&mut header).map_err(cut)?;
        let header = v1::BackupHeader::decode(&header[..]);
        let header = header.map_err(|_| damaged("its header cannot be read"))?;
        if header.format != FORMAT {
            return Err(BackupError::Format {
                found: header.format,
                known: FORMAT,
            });
        }
        if header.bytes > STATE_BYTES_MAX {
            return Err(damaged("its state is too large"));
        }
        let mut state = Vec::new();
        // One more, to see whether there is more.
        let wanted = header.bytes + 1;
        file.take(wanted).read_to_end(&mut state).map_err(failed)?;
        if state.len() as u64 != header.bytes || Sha256::digest(&state)[..] != header.digest[..] {
            return Err(damaged("its state is not what was written"));
        }
        Ok(Self { header, state })
    }

    /// The state without the cluster's own: its controllers, its keys, and tokens to join it with.
    pub(crate) fn drop_keys(&mut self, path: &Path) -> Result<(), BackupError> {
        let state = v1::Snapshot::decode(&self.state[..]);
        let mut state = state.map_err(|_| BackupError::Damaged {
            path: path.to_owned(),
            what: "its state cannot be read",
        })?;
        state.secrets = None;
        state.members.clear();
        state.join_tokens.clear();
        state.last_member = 0;
        self.state = state.encode_to_vec();
        Ok(())
    }

    pub(crate) fn info(&self, path: &Path) -> Result<(BackupInfo, State), BackupError> {
        let state = State::decode(&self.state).map_err(|source| BackupError::State {
            path: path.to_owned(),
            source,
        })?;
        let (header, view) = (&self.header, state.view());
        let info = BackupInfo {
            cluster_id: header.cluster_id.clone(),
            version: header.version.clone(),
            taken_at: Timestamp(header.taken_at),
            member: header.member,
            index: header.index,
            term: header.term,
            incarnation: header.incarnation,
            voters: header.voters.clone(),
            learners: header.learners.clone(),
            bytes: header.bytes,
            digest: header.digest.iter().map(|b| format!("{b:02x}")).collect(),
            projects: view.projects().len(),
            functions: view.functions().count(),
            tokens: view.tokens().count(),
            nodes: view.nodes().count(),
        };
        Ok((info, state))
    }
}

/// Complete and on disk under its name, or not there. Blocks on the disk. An older file of that name
/// is kept.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), BackupError> {
    let failed = |source| BackupError::Io {
        doing: "write",
        path: path.to_owned(),
        source,
    };
    let partial = PathBuf::from(format!("{}.partial", path.display()));
    if path.exists() {
        return Err(failed(io::ErrorKind::AlreadyExists.into()));
    }
    let written = || {
        let mut file = File::create(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, path)?;
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
    };
    written().map_err(failed)
}
