//! What builds do to the disk: how much they have written, and taking it away again.
//!
//! A build may run code of strangers (a package that is built from its source), which may leave any
//! tree behind: millions of entries, or directories nested deeper than a path can name. So nothing
//! here follows a tree by recursion, or keeps a descriptor open for each level.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

/// A container that is being killed may write for some moments more.
const TRIES: u32 = 40;
const PAUSE: Duration = Duration::from_millis(250);

/// Bytes on the disk and entries below a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
}

/// Adds up what is there now, while it may be changing; what cannot be reached by a path counts as
/// more than anybody allows. Blocking.
pub(crate) fn written(dir: &Path) -> Written {
    let mut sum = Written {
        bytes: 0,
        entries: 0,
    };
    let mut waiting = vec![dir.to_owned()];
    while let Some(dir) = waiting.pop() {
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::InvalidFilename => {
                sum.entries = u64::MAX;
                return sum;
            }
            // Removed meanwhile.
            Err(_) => continue,
        };
        for entry in entries.flatten() {
            sum.entries += 1;
            let Ok(meta) = entry.metadata() else { continue };
            sum.bytes += meta.blocks() * 512;
            if meta.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    sum
}

/// Bytes that the file system of `dir` has left for users that are not root.
pub(crate) fn free(dir: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Takes `dir` out of sight at once, to below `trash` (of the same file system), and removes it on
/// a thread of its own: a large tree takes seconds.
pub(crate) fn remove_behind(dir: &Path, trash: &Path) {
    let Some(name) = dir.file_name() else { return };
    let away = trash.join(name);
    if let Err(error) = fs::rename(dir, &away) {
        tracing::warn!(dir = %dir.display(), %error, "a build's directory stays behind");
        return;
    }
    let remove = move || {
        let mut result = remove_tree(&away);
        for _ in 1..TRIES {
            if result.is_ok() {
                break;
            }
            thread::sleep(PAUSE);
            result = remove_tree(&away);
        }
        if let Err(error) = result {
            tracing::warn!(dir = %away.display(), %error, "a build's directory stays behind");
        }
    };
    let thread = thread::Builder::new().name("build-remover".to_owned());
    if let Err(error) = thread.spawn(remove) {
        // The next start removes it.
        tracing::warn!(%error, "a build's directory stays behind");
    }
}

/// Removes a directory with everything in it; one that is not there is a success. Blocking.
///
/// Every directory is moved up beside the others before it is emptied, so that no path gets longer
/// than three names however deep the tree is.
pub(crate) fn remove_tree(root: &Path) -> io::Result<()> {
    let mut name = root.file_name().unwrap_or_default().to_owned();
    name.push(".parts");
    let parts = root.with_file_name(name);
    let mut number = 0_u64;
    let mut waiting: Vec<PathBuf> = Vec::new();
    // What an attempt that was interrupted left there, under names that stay below `parts`.
    for left in read_dir(&parts)? {
        waiting.push(left?.path());
    }
    if fs::symlink_metadata(root).is_ok() {
        waiting.push(root.to_owned());
    } else if waiting.is_empty() {
        return remove_dir(&parts);
    }
    match fs::create_dir(&parts) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    while let Some(dir) = waiting.pop() {
        for entry in read_dir(&dir)? {
            let entry = entry?;
            if !entry.file_type()?.is_dir() {
                fs::remove_file(entry.path())?;
                continue;
            }
            let part = loop {
                let part = parts.join(number.to_string());
                number += 1;
                if fs::symlink_metadata(&part).is_err() {
                    break part;
                }
            };
            fs::rename(entry.path(), &part)?;
            // Asked again where nobody else can reach: a process of the build that has not ended
            // yet may have put a link in the directory's place, which must not be followed.
            if fs::symlink_metadata(&part)?.is_dir() {
                waiting.push(part);
            } else {
                fs::remove_file(&part)?;
            }
        }
        remove_dir(&dir)?;
    }
    remove_dir(&parts)
}

fn read_dir(dir: &Path) -> io::Result<Box<dyn Iterator<Item = io::Result<fs::DirEntry>>>> {
    match fs::read_dir(dir) {
        Ok(entries) => Ok(Box::new(entries)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Box::new(std::iter::empty())),
        Err(error) => Err(error),
    }
}

fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Deeper than any path, and than the descriptors that a process may have open.
    fn deep(root: &Path) {
        use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
        fs::create_dir(root).unwrap();
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut at = openat(CWD, root, flags, Mode::empty()).unwrap();
        for _ in 0..20_000 {
            mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = openat(&at, "d", flags, Mode::empty()).unwrap();
        }
    }

    #[test]
    fn any_tree_is_removed_and_nothing_beside_it() {
        let temp = tempfile::tempdir().unwrap();
        let (root, beside) = (temp.path().join("tree"), temp.path().join("beside"));
        fs::create_dir(&beside).unwrap();
        fs::write(beside.join("file"), "x").unwrap();
        deep(&root);
        fs::create_dir_all(root.join("0/1/0")).unwrap();
        fs::write(root.join("0/1/file"), "x").unwrap();
        symlink(&beside, root.join("0/link")).unwrap();
        remove_tree(&root).unwrap();
        remove_tree(&root).unwrap();
        let left: Vec<_> = fs::read_dir(temp.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(left, ["beside"]);
        assert!(beside.join("file").exists());
    }

    #[test]
    fn a_removal_that_was_interrupted_is_finished() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("tree");
        fs::create_dir_all(temp.path().join("tree.parts/0/deep")).unwrap();
        fs::create_dir_all(root.join("a/b")).unwrap();
        remove_tree(&root).unwrap();
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_no_path_reaches_counts_as_too_much() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("tree");
        fs::create_dir(&root).unwrap();
        fs::write(root.join("file"), [1; 10_000]).unwrap();
        symlink("/usr", root.join("link")).unwrap();
        let found = written(&root);
        assert!(found.entries == 2 && found.bytes >= 10_000, "{found:?}");
        assert!(found.bytes < 1 << 20, "links are not followed: {found:?}");
        deep(&temp.path().join("deep"));
        assert_eq!(written(temp.path()).entries, u64::MAX);
        remove_tree(&temp.path().join("deep")).unwrap();
    }
}
