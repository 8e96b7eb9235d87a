//! Image roots: each a private bind mount of its own, made once.
//!
//! Two reasons. On most hosts `/` is a *shared* mount, and what is mounted there later below an
//! image root would show up in containers. And the OCI runtime walks to the root as the container's
//! mapped root user, which fails below a directory that only root may enter.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use crate::{mount, spec::MOUNT_POINTS};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the image {} lacks {}", image.display(), missing.join(", "))]
    Incomplete {
        image: PathBuf,
        missing: Vec<&'static str>,
    },
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

#[derive(Debug)]
pub(crate) struct Images {
    dir: PathBuf,
    bound: Mutex<HashMap<(u64, u64), PathBuf>>,
}

impl Images {
    /// Removes binds of an earlier process first: containers that use them keep them.
    pub(crate) fn start(machine_dir: &Path) -> Result<Self, Error> {
        Self::remove(machine_dir);
        let dir = machine_dir.join("images");
        for path in [machine_dir, &dir] {
            fs::create_dir_all(path).map_err(error("create", path))?;
            // Searchable by everyone, listable by root.
            fs::set_permissions(path, fs::Permissions::from_mode(0o711))
                .map_err(error("set the mode of", path))?;
        }
        Ok(Self {
            dir,
            bound: Mutex::default(),
        })
    }

    /// Where `rootfs` is bound. Blocking; checks the image at its first use.
    pub(crate) fn bind(&self, rootfs: &Path) -> Result<PathBuf, Error> {
        let meta = fs::metadata(rootfs).map_err(error("open the image", rootfs))?;
        // By identity and not by name: an image that was removed and made again is another one.
        let key = (meta.dev(), meta.ino());
        let mut bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = bound.get(&key) {
            return Ok(path.clone());
        }
        let missing: Vec<_> = MOUNT_POINTS
            .into_iter()
            .filter(|point| {
                fs::symlink_metadata(rootfs.join(point.trim_start_matches('/'))).is_err()
            })
            .collect();
        if !missing.is_empty() {
            return Err(Error::Incomplete {
                image: rootfs.to_owned(),
                missing,
            });
        }
        let target = self.dir.join(bound.len().to_string());
        fs::create_dir_all(&target).map_err(error("create", &target))?;
        mount::bind_private(rootfs, &target).map_err(error("bind the image at", &target))?;
        bound.insert(key, target.clone());
        Ok(target)
    }

    /// Undoes all binds of a cluster.
    pub(crate) fn remove(machine_dir: &Path) {
        let dir = machine_dir.join("images");
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            // Nothing recursive: were the bind still there, it would be the image that is deleted.
            while mount::unmount(&entry.path()).is_ok() {}
            let _ = fs::remove_dir(entry.path());
        }
        let _ = fs::remove_dir(&dir);
        let _ = fs::remove_dir(machine_dir);
    }
}

fn error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io {
        action,
        path,
        source,
    }
}
