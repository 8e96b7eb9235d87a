//! Saving the state to a file, and making a cluster of a file or of one surviving member.
//!
//! What runs offline takes a data directory whose controller does not run; the caller holds its lock.
//! Nothing is ever deleted: what is replaced is renamed, with the time.

mod file;

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use coracle_model::{MemberId, Timestamp};
use coracle_proto::v1;
use coracle_replica::{Group, Machine as _, ReadError, log, offline};
use coracle_state::{Body, Command, State};
use tokio::time::Instant;

use self::file::Backup;
pub use self::file::{BackupInfo, write as write_backup};
use crate::{
    core::{Core, fresh_write},
    machine::StateMachine,
};

const LOG: &str = "log";
/// Complete, and about to take the log's place.
const NEW_LOG: &str = "log.new";
/// Names the member whose log was set aside, so that nobody starts it again.
const SPENT: &str = "log.spent";

#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("cannot {doing} {path}")]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{path} cannot be used: {what}")]
    Damaged { path: PathBuf, what: &'static str },
    #[error("the file has format {found}, and this program reads format {known}")]
    Format { found: u32, known: u32 },
    #[error("the state in {path} cannot be read; if a newer version wrote it, use that version")]
    State {
        path: PathBuf,
        source: coracle_state::SnapshotError,
    },
    #[error("{path} holds a log already; restore into a new data directory, or move this one away")]
    Occupied { path: PathBuf },
    #[error("there is no log in {path}")]
    Missing { path: PathBuf },
    #[error("the log in {path} cannot be read")]
    Log {
        path: PathBuf,
        source: coracle_replica::Fatal,
    },
    #[error("the new log in {path} was not written")]
    Found { path: PathBuf, source: log::Error },
    #[error("member {member} is not a voter of the group {voters:?}, so it may lack what they had")]
    NotAVoter { member: u64, voters: Vec<u64> },
    #[error("the state was not read")]
    Read(#[from] ReadError),
}

/// What a member's log holds, while it does not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// Who else is in the group.
    pub others: Vec<u64>,
    /// The last entry of the log.
    pub last_index: u64,
    /// Entries of which the member does not know whether a majority has them.
    pub doubtful: u64,
    pub functions: usize,
}

/// What becomes of the cluster's keys in a file that is restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    /// The member has its copy of the cluster key still.
    Keep,
    /// A server by itself is made of it, which may become a new cluster with new keys.
    Drop,
}

/// What came of a recovery, and what it may have cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    pub member: u64,
    /// Who else was in the group. None of them may be started again; each joins anew, with an empty
    /// data directory, under a new id.
    pub lost: Vec<u64>,
    /// The last entry of the survivor's log. A write that was acknowledged after it is lost: the
    /// survivor has never heard of it.
    pub last_index: u64,
    /// Entries that were kept though the survivor does not know whether a majority had them. They
    /// may never have been acknowledged.
    pub doubtful: u64,
    pub term: u64,
    /// The incarnation from now on: agents and gateways take it for newer than anything before.
    pub incarnation: u64,
    pub functions: usize,
    /// The log as it was.
    pub kept: PathBuf,
}

/// The state that a running controller saves, as of an index at which everything acknowledged
/// before the call is in it. The bytes are the file.
pub(crate) async fn save(core: &Core, deadline: Instant) -> Result<Bytes, ReadError> {
    core.replica.read_index(deadline).await?;
    let saved = core.replica.save(deadline).await?;
    let header = v1::BackupHeader {
        cluster_id: core.cluster_id.clone(),
        taken_at: core.now().0,
        member: core.me.id,
        index: saved.index,
        term: saved.term,
        incarnation: core.view().incarnation(),
        voters: saved.group.voters,
        learners: saved.group.learners,
        ..v1::BackupHeader::default()
    };
    Ok(Backup::new(header, saved.state).to_bytes().into())
}

/// Reads a saved snapshot and checks all of it.
pub fn inspect(path: &Path) -> Result<BackupInfo, BackupError> {
    let backup = Backup::read(path)?;
    Ok(backup.info(path)?.0)
}

/// Makes the log of a new cluster, with one member, of a saved snapshot. Its incarnation is one more
/// than that of the file, so that what runs takes it for newer. The data directory must hold no log;
/// artifacts are not in the file. Returns what the file held.
///
/// With [`Keys::Drop`] the controllers, tokens to join with and keys of the old cluster are left out.
pub fn restore(
    path: &Path,
    data_dir: &Path,
    member: u64,
    keys: Keys,
    now: Timestamp,
) -> Result<BackupInfo, BackupError> {
    let log = data_dir.join(LOG);
    if log.exists() {
        return Err(BackupError::Occupied { path: log });
    }
    let mut backup = Backup::read(path)?;
    let (info, mut state) = backup.info(path)?;
    if keys == Keys::Drop {
        backup.drop_keys(path)?;
        state = backup.info(path)?.1;
    }
    alone(&mut state, member, now);
    // What that member forgot belongs to another group from here on.
    let mut spent = spent_ids(data_dir)?;
    if spent.contains(&member) {
        spent.retain(|id| *id != member);
        write_spent(data_dir, &spent)?;
    }
    let origin = offline::Origin {
        index: info.index.max(1),
        term: info.term + 1,
    };
    replace(data_dir, member, origin, &state.encode())?;
    Ok(info)
}

/// Makes a cluster of one of a member whose group lost its majority *for good*. All that is in its
/// log is kept, whether or not it was known to be committed. Whatever the others had acknowledged
/// beyond that is lost, and each of them must join anew under a new id: were they to come back as
/// they were, there would be two clusters.
///
/// The log as it was is kept beside the new one.
pub fn recover(data_dir: &Path, member: u64, now: Timestamp) -> Result<Recovered, BackupError> {
    let (contents, mut state) = examine(data_dir, member)?;
    let lost = others(&contents.group, member);
    alone(&mut state, member, now);
    let origin = offline::Origin {
        index: contents.last_index + 1,
        // Above every term that this member heard of. The others may have gone further; the
        // incarnation is what tells the two apart.
        term: contents.term.max(contents.last_term) + 1,
    };
    let kept = data_dir.join(format!("log.before-recovery-{}", now.0));
    replace_keeping(data_dir, member, origin, &state.encode(), &kept)?;
    let view = state.view();
    Ok(Recovered {
        member,
        lost,
        last_index: contents.last_index,
        doubtful: contents.last_index.saturating_sub(contents.committed),
        term: origin.term,
        incarnation: view.incarnation(),
        functions: view.functions().count(),
        kept,
    })
}

/// What [`recover`] would go on from. Nothing is changed.
pub fn survey(data_dir: &Path, member: u64) -> Result<Survey, BackupError> {
    let (contents, state) = examine(data_dir, member)?;
    Ok(Survey {
        others: others(&contents.group, member),
        last_index: contents.last_index,
        doubtful: contents.last_index.saturating_sub(contents.committed),
        functions: state.view().functions().count(),
    })
}

fn others(group: &Group, member: u64) -> Vec<u64> {
    group.ids().filter(|id| *id != member).collect()
}

fn examine(data_dir: &Path, member: u64) -> Result<(offline::Contents, State), BackupError> {
    let log = data_dir.join(LOG);
    finish(data_dir)?;
    if !log.exists() {
        return Err(BackupError::Missing { path: log });
    }
    let (mut machine, _, _) = StateMachine::new();
    let contents = offline::read(&log, member, &mut machine);
    let contents = contents.map_err(|source| BackupError::Log {
        path: log.clone(),
        source,
    })?;
    let voters = &contents.group.voters;
    if !voters.contains(&member) {
        return Err(BackupError::NotAVoter {
            member,
            voters: voters.clone(),
        });
    }
    let state = State::decode(&machine.snapshot());
    let state = state.map_err(|source| BackupError::State { path: log, source })?;
    Ok((contents, state))
}

/// Puts a member's damaged log aside, and remembers that the member is spent: one that forgot its
/// vote could elect a second leader. Returns where the log is now.
pub fn set_aside(data_dir: &Path, member: u64, now: Timestamp) -> Result<PathBuf, BackupError> {
    let log = data_dir.join(LOG);
    let aside = data_dir.join(format!("log.set-aside-{}", now.0));
    // First, so that a loss of power in between cannot leave an empty place for the same member.
    let mut ids = spent_ids(data_dir)?;
    ids.push(member);
    write_spent(data_dir, &ids)?;
    step("set aside", &log, || {
        fs::rename(&log, &aside)?;
        File::open(data_dir)?.sync_all()
    })?;
    Ok(aside)
}

/// Whether this member's log was set aside here.
pub(crate) fn is_spent(data_dir: &Path, member: u64) -> Result<bool, BackupError> {
    Ok(spent_ids(data_dir)?.contains(&member))
}

fn write_spent(data_dir: &Path, ids: &[u64]) -> Result<(), BackupError> {
    let spent = data_dir.join(SPENT);
    let text: String = ids.iter().map(|id| format!("{id}\n")).collect();
    step("write", &spent, || {
        let partial = data_dir.join("log.spent.partial");
        fs::write(&partial, text)?;
        File::open(&partial)?.sync_all()?;
        fs::rename(&partial, &spent)?;
        File::open(data_dir)?.sync_all()
    })
}

fn spent_ids(data_dir: &Path) -> Result<Vec<u64>, BackupError> {
    let spent = data_dir.join(SPENT);
    match fs::read_to_string(&spent) {
        Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(BackupError::Io {
            doing: "read",
            path: spent,
            source,
        }),
    }
}

/// Of no other member, and newer than anything before.
fn alone(state: &mut State, member: u64, now: Timestamp) {
    let view = state.view();
    let raised = Body::SetIncarnation {
        incarnation: view.incarnation() + 1,
    };
    let others = view.members().map(|other| other.id);
    let others = others.filter(|id| *id != MemberId(member));
    let gone = others.map(|member| Body::RemoveMember { member });
    for body in std::iter::once(raised).chain(gone) {
        let command = Command {
            write_id: fresh_write(),
            at: now,
            body,
        };
        if let Err(refusal) = state.apply(command).outcome {
            // Of the last controller in the books: it is not this one, and identity sees to that.
            tracing::warn!(%refusal, "kept as it is");
        }
    }
}

fn replace(
    data_dir: &Path,
    member: u64,
    origin: offline::Origin,
    state: &[u8],
) -> Result<(), BackupError> {
    prepare(data_dir, member, origin, state)?;
    finish(data_dir)
}

fn replace_keeping(
    data_dir: &Path,
    member: u64,
    origin: offline::Origin,
    state: &[u8],
    kept: &Path,
) -> Result<(), BackupError> {
    prepare(data_dir, member, origin, state)?;
    let log = data_dir.join(LOG);
    step("rename", &log, || {
        fs::rename(&log, kept)?;
        File::open(data_dir)?.sync_all()
    })?;
    finish(data_dir)
}

/// The new log, complete, beside the old one.
fn prepare(
    data_dir: &Path,
    member: u64,
    origin: offline::Origin,
    state: &[u8],
) -> Result<(), BackupError> {
    let (half, new) = (data_dir.join("log.half"), data_dir.join(NEW_LOG));
    // Of an earlier attempt that did not come this far: nothing was made of them yet.
    for path in [&half, &new] {
        if path.exists() {
            step("remove", path, || fs::remove_dir_all(path))?;
        }
    }
    offline::found(&half, member, &[member], origin, state).map_err(|source| {
        BackupError::Found {
            path: half.clone(),
            source,
        }
    })?;
    step("rename", &half, || {
        fs::rename(&half, &new)?;
        File::open(data_dir)?.sync_all()
    })
}

/// Puts a complete new log into the place of the old one, if that is gone already.
fn finish(data_dir: &Path) -> Result<(), BackupError> {
    let (log, new) = (data_dir.join(LOG), data_dir.join(NEW_LOG));
    if !new.exists() || log.exists() {
        return Ok(());
    }
    step("rename", &new, || {
        fs::rename(&new, &log)?;
        File::open(data_dir)?.sync_all()
    })
}

/// At the start of a controller: what a recovery that lost its power left to do.
pub(crate) fn settle(data_dir: &Path) -> Result<(), BackupError> {
    finish(data_dir)
}

fn step<T>(
    doing: &'static str,
    path: &Path,
    act: impl FnOnce() -> io::Result<T>,
) -> Result<T, BackupError> {
    act().map_err(|source| BackupError::Io {
        doing,
        path: path.to_owned(),
        source,
    })
}
