//! The cache's folders and files. Everything here blocks.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::mpsc,
};

use coracle_builder::{UnpackLimits, unpack};
use coracle_model::Digest;

/// Entries up to which each is synced by itself; above it the whole file system is, in one call.
const SYNC_ONE_BY_ONE: usize = 64;
/// What an entry costs beyond its content.
const ENTRY_BYTES: u64 = 4096;

pub(super) fn empty(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    private(folder)
}

/// Functions' code is nobody's on the machine to read. Containers get at it all the same: folders
/// are attached to them, not walked to.
fn private(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
}

/// What the store holds, longest unchanged first, with bytes. Anything that is not named by a
/// digest is not ours to keep and goes to the scratch folder, which is emptied at each start.
pub(super) fn scan(store: &Path, scratch: &Path) -> io::Result<Vec<(Digest, u64)>> {
    private(store)?;
    let mut found = Vec::new();
    for entry in fs::read_dir(store)? {
        let entry = entry?;
        let name = entry.file_name();
        match name.to_str().and_then(|name| name.parse::<Digest>().ok()) {
            Some(digest) => {
                let changed = entry.metadata()?.modified()?;
                found.push((changed, digest, measure(&entry.path())?.0));
            }
            None => fs::rename(entry.path(), scratch.join(&name))?,
        }
    }
    found.sort_unstable();
    Ok(found
        .into_iter()
        .map(|(_, digest, bytes)| (digest, bytes))
        .collect())
}

/// Unpacks into `folder`, which does not exist, makes it durable, gives it its name. Bytes on the disk.
pub(super) fn place(
    tar: &Path,
    folder: &Path,
    name: &Path,
) -> Result<u64, Box<dyn std::error::Error + Send + Sync>> {
    unpack(File::open(tar)?, folder, &UnpackLimits::default())?;
    let durable = || -> io::Result<u64> {
        let (bytes, entries) = measure(folder)?;
        if entries <= SYNC_ONE_BY_ONE {
            sync(folder)?;
        } else {
            rustix::fs::syncfs(File::open(folder)?)?;
        }
        fs::rename(folder, name)?;
        File::open(name.parent().unwrap_or(Path::new(".")))?.sync_all()?;
        Ok(bytes)
    };
    Ok(durable()?)
}

/// Bytes and entries below a folder, itself included. Links are not followed.
fn measure(folder: &Path) -> io::Result<(u64, usize)> {
    let mut sum = (ENTRY_BYTES, 1);
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        let (bytes, entries) = if metadata.is_dir() {
            measure(&entry.path())?
        } else {
            (metadata.len() + ENTRY_BYTES, 1)
        };
        sum = (sum.0 + bytes, sum.1 + entries);
    }
    Ok(sum)
}

fn sync(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sync(&entry.path())?;
        } else if kind.is_file() {
            File::open(entry.path())?.sync_all()?;
        }
    }
    File::open(folder)?.sync_all()
}

/// Removes folders as they come, until nobody can send one any more.
pub(super) fn remove_all(paths: &mpsc::Receiver<PathBuf>) {
    for path in paths {
        if let Err(error) = fs::remove_dir_all(&path) {
            tracing::warn!(path = %path.display(), %error, "cannot remove an artifact");
        }
    }
}
