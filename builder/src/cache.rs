//! Installed dependencies kept on the node, by what went into them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use coracle_model::Digest;

use crate::archive::Packed;

/// Files `<key>.<digest of the archive>.tar`. The time of a file's last use is its modification
/// time; the least recently used go first when there is more than `most` bytes.
#[derive(Debug, Clone)]
pub struct DependencyCache {
    dir: PathBuf,
    most: u64,
}

impl DependencyCache {
    pub fn open(dir: PathBuf, most: u64) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        Ok(Self { dir, most })
    }

    /// What was kept under the key. The file may go away with a later [`Self::keep`]; open or link
    /// it before.
    pub fn find(&self, key: Digest) -> io::Result<Option<(PathBuf, Packed)>> {
        for (path, found, packed) in self.entries()? {
            if found == key {
                let now = rustix::fs::Timespec {
                    tv_sec: 0,
                    tv_nsec: rustix::fs::UTIME_NOW,
                };
                let times = rustix::fs::Timestamps {
                    last_access: now,
                    last_modification: now,
                };
                let flags = rustix::fs::AtFlags::empty();
                rustix::fs::utimensat(rustix::fs::CWD, &path, &times, flags)?;
                return Ok(Some((path, packed)));
            }
        }
        Ok(None)
    }

    /// Takes over the archive at `path` (by rename) and returns where it is now.
    pub fn keep(&self, key: Digest, path: &Path, packed: Packed) -> io::Result<PathBuf> {
        let kept = self.dir.join(format!("{key}.{}.tar", packed.digest));
        fs::rename(path, &kept)?;
        let mut entries = self.entries()?;
        let mut total: u64 = entries.iter().map(|(_, _, packed)| packed.bytes).sum();
        entries.sort_by_key(|(path, _, _)| fs::metadata(path).and_then(|m| m.modified()).ok());
        for (path, _, packed) in entries {
            if total <= self.most {
                break;
            }
            if path != kept {
                fs::remove_file(&path)?;
                total -= packed.bytes;
            }
        }
        Ok(kept)
    }

    fn entries(&self) -> io::Result<Vec<(PathBuf, Digest, Packed)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let parsed = name.to_str().and_then(|name| {
                let (key, digest) = name.strip_suffix(".tar")?.split_once('.')?;
                Some((key.parse().ok()?, digest.parse().ok()?))
            });
            if let Some((key, digest)) = parsed {
                let bytes = entry.metadata()?.len();
                found.push((entry.path(), key, Packed { digest, bytes }));
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set_used(path: &Path, seconds: i64) {
        let at = rustix::fs::Timespec {
            tv_sec: seconds,
            tv_nsec: 0,
        };
        let times = rustix::fs::Timestamps {
            last_access: at,
            last_modification: at,
        };
        rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::empty()).unwrap();
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let temp = tempfile::tempdir().unwrap();
        let cache = DependencyCache::open(temp.path().join("cache"), 25).unwrap();
        let put = |n: u8| {
            let path = temp.path().join("new");
            fs::write(&path, [n; 10]).unwrap();
            let packed = Packed {
                digest: Digest([n; 32]),
                bytes: 10,
            };
            cache.keep(Digest([n; 32]), &path, packed).unwrap()
        };
        set_used(&put(1), 100);
        set_used(&put(2), 200);
        assert!(
            cache.find(Digest([1; 32])).unwrap().is_some(),
            "used again, so newer than 2"
        );
        put(3);
        let left: Vec<u8> = (1..=3)
            .filter(|n| cache.find(Digest([*n; 32])).unwrap().is_some())
            .collect();
        assert_eq!(left, [1, 3]);
    }
}
