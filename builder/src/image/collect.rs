//! Removing images that newer ones took the place of. Whether anything still uses one is the
//! caller's to say; here is only what the disk knows.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

use coracle_model::{Digest, Timestamp};

use super::{Current, ImageStore};
use crate::disk;

const REMOVED: &str = "removed-";

impl ImageStore {
    /// Roots of images that have not been their runtime's current one for this long.
    pub fn superseded(&self, now: Timestamp, since: Duration) -> io::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for runtime in fs::read_dir(&self.root)? {
            let dir = runtime?.path();
            let Some((current, changed_at)) = current(&dir)? else {
                // Being made for the first time, or to be made again.
                continue;
            };
            if Duration::from_millis(now.since(changed_at)) < since {
                continue;
            }
            for entry in fs::read_dir(&dir)? {
                let entry = entry?;
                let name = entry.file_name();
                let name = name.to_string_lossy();
                let former = name.parse::<Digest>().is_ok_and(|digest| digest != current);
                if former || name.starts_with(REMOVED) {
                    found.push(entry.path().join("rootfs"));
                }
            }
        }
        found.sort();
        Ok(found)
    }

    /// Removes an image with such a root. False, and it stays, where it is the current one after
    /// all or another process is at this runtime's images. Blocking.
    pub fn remove(&self, rootfs: &Path) -> io::Result<bool> {
        let place = || Some((rootfs.parent()?, rootfs.parent()?.parent()?));
        let Some((image, dir)) = place().filter(|(_, dir)| dir.parent() == Some(&*self.root))
        else {
            return Err(io::Error::other("no image of this store"));
        };
        let Some(_lock) = try_lock(dir)? else {
            return Ok(false);
        };
        let name = image.file_name().unwrap_or_default().to_string_lossy();
        let away = if name.starts_with(REMOVED) {
            // Of a removal that was interrupted.
            image.to_owned()
        } else {
            let digest: Digest = name
                .parse()
                .map_err(|_| io::Error::other("no image of this store"))?;
            if current(dir)?.is_none_or(|(current, _)| current == digest) {
                return Ok(false);
            }
            // Gone under its name at once: half an image must never be taken for one.
            let away = dir.join(format!("{REMOVED}{digest}"));
            disk::remove_tree(&away)?;
            fs::rename(image, &away)?;
            away
        };
        disk::remove_tree(&away)?;
        Ok(true)
    }
}

/// Which image is current, and since when.
fn current(dir: &Path) -> io::Result<Option<(Digest, Timestamp)>> {
    let path = dir.join("current.json");
    let (bytes, meta) = match fs::read(&path).and_then(|bytes| Ok((bytes, fs::metadata(&path)?))) {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        found => found?,
    };
    let Ok(Current { digest, .. }) = serde_json::from_slice(&bytes) else {
        return Ok(None);
    };
    let at = meta.modified()?.duration_since(UNIX_EPOCH);
    let millis = u64::try_from(at.unwrap_or_default().as_millis()).unwrap_or(u64::MAX);
    Ok(Some((digest, Timestamp(millis))))
}

/// `None` while another process makes or removes images there.
fn try_lock(dir: &Path) -> io::Result<Option<fs::File>> {
    use rustix::fs::{FlockOperation, flock};
    let file = super::lock_file(dir)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use coracle_runtimes::{Catalog, Runtime};

    use super::*;
    use crate::image::{Mirror, Route};

    const HOUR: Duration = Duration::from_secs(3_600);

    fn store(root: &Path) -> (ImageStore, Runtime) {
        let store = ImageStore::open(root, Mirror::default(), &BTreeMap::new()).unwrap();
        let catalog = Catalog::builtin();
        let runtime = catalog.get(&"python3.11".parse().unwrap()).unwrap().clone();
        (store, runtime)
    }

    fn later(by: Duration) -> Timestamp {
        // The file system's own clock, which is what it is compared with.
        let temp = tempfile::NamedTempFile::new().unwrap();
        let now = temp.as_file().metadata().unwrap().modified().unwrap();
        let now = now.duration_since(UNIX_EPOCH).unwrap() + by;
        Timestamp(u64::try_from(now.as_millis()).unwrap())
    }

    #[test]
    fn a_superseded_image_goes_after_a_while_and_the_current_one_never() {
        let temp = tempfile::tempdir().unwrap();
        let (store, mut runtime) = store(temp.path());
        let first = store.plant(&runtime, Route::Recipe);
        assert_eq!(
            store.superseded(later(2 * HOUR), HOUR).unwrap(),
            [] as [PathBuf; 0]
        );
        assert!(!store.remove(&first).unwrap(), "it is current");

        runtime.image.packages.push("another".to_owned());
        let second = store.plant(&runtime, Route::Recipe);
        assert_ne!(first, second);
        assert_eq!(
            store.superseded(later(HOUR / 2), HOUR).unwrap(),
            [] as [PathBuf; 0]
        );
        assert_eq!(
            store.superseded(later(2 * HOUR), HOUR).unwrap(),
            std::slice::from_ref(&first)
        );

        let lock = try_lock(first.parent().unwrap().parent().unwrap()).unwrap();
        assert!(!store.remove(&first).unwrap(), "an image is being made");
        drop(lock);
        assert!(store.remove(&first).unwrap());
        assert!(!first.parent().unwrap().exists());
        let found = store.find(&runtime, Route::Recipe).unwrap();
        assert_eq!(found.map(|image| image.rootfs), Some(second));
    }

    #[test]
    fn a_removal_that_was_interrupted_is_finished() {
        let temp = tempfile::tempdir().unwrap();
        let (store, runtime) = store(temp.path());
        let current = store.plant(&runtime, Route::Recipe);
        let dir = current.parent().unwrap().parent().unwrap();
        let half = dir.join(format!("{REMOVED}{}", Digest([7; 32])));
        fs::create_dir_all(half.join("rootfs/usr")).unwrap();
        let found = store.superseded(later(2 * HOUR), HOUR).unwrap();
        assert_eq!(found, [half.join("rootfs")]);
        assert!(store.remove(&found[0]).unwrap());
        assert!(!half.exists() && current.exists());
    }

    #[test]
    fn nothing_else_is_removed() {
        let temp = tempfile::tempdir().unwrap();
        let (store, _) = store(temp.path());
        for path in [
            "/etc",
            "/",
            "",
            "downloads/x/rootfs",
            "python3.11/../x/rootfs",
        ] {
            let path = temp.path().canonicalize().unwrap().join(path);
            assert!(
                !store.remove(&path).is_ok_and(|removed| removed),
                "{path:?}"
            );
        }
    }
}
