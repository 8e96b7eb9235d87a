//! Snapshots as files named by their content, and directories brought to disk.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use sha2::Digest as _;

use super::{Error, state::SnapshotRef};

/// The directory of one store's snapshots. A file under its final name is complete and on disk.
#[derive(Debug)]
pub(super) struct SnapshotFiles {
    directory: PathBuf,
}

const UNFINISHED: &str = "unfinished";

impl SnapshotFiles {
    pub(super) fn open(directory: PathBuf) -> Result<Self, Error> {
        create_directory(&directory)?;
        Ok(Self { directory })
    }

    fn path(&self, snapshot: &SnapshotRef) -> PathBuf {
        self.directory.join(hex::encode(snapshot.digest))
    }

    /// On disk on return; nothing refers to it yet.
    pub(super) fn save(&self, snapshot: &SnapshotRef, data: &[u8]) -> Result<(), Error> {
        let unfinished = self.directory.join(UNFINISHED);
        let path = self.path(snapshot);
        io("write", &unfinished, write_synced(&unfinished, data))?;
        io("rename into place", &path, fs::rename(&unfinished, &path))?;
        sync_directory(&self.directory)
    }

    pub(super) fn load(&self, snapshot: &SnapshotRef) -> Result<Vec<u8>, Error> {
        let path = self.path(snapshot);
        let data = io("read", &path, fs::read(&path))?;
        if sha2::Sha256::digest(&data)[..] != snapshot.digest {
            return Err(Error::Damaged {
                what: format!("snapshot {}", path.display()),
            });
        }
        Ok(data)
    }

    /// Removes what is not `kept`. Only after a synced write that refers to `kept`: until then a
    /// cut brings the earlier reference back. A file that cannot be removed only takes space.
    pub(super) fn keep_only(&self, kept: &SnapshotRef) {
        let kept = self.path(kept);
        let listed = fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .flatten();
        for path in listed
            .map(|entry| entry.path())
            .filter(|path| *path != kept)
        {
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "old snapshot not removed");
            }
        }
    }
}

fn write_synced(path: &Path, data: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(data)?;
    file.sync_all()
}

/// Creates it and makes its name durable.
pub(super) fn create_directory(path: &Path) -> Result<(), Error> {
    io("create", path, fs::create_dir_all(path))?;
    sync_directory(path)?;
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_directory(parent),
        _ => Ok(()),
    }
}

pub(super) fn sync_directory(path: &Path) -> Result<(), Error> {
    io(
        "sync",
        path,
        File::open(path).and_then(|directory| directory.sync_all()),
    )
}

pub(super) fn io<T>(doing: &'static str, path: &Path, result: io::Result<T>) -> Result<T, Error> {
    result.map_err(|source| Error::Io {
        doing,
        path: path.to_owned(),
        source,
    })
}
