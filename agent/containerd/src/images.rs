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
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    bound: HashMap<Identity, Bound>,
    /// Binds ever made: their names are never used again.
    count: u64,
}

/// Of a directory, by device and inode and not by name: an image that was removed and made again
/// is another one. A bind keeps its inode's number from being used again.
type Identity = (u64, u64);

/// An image's bind. While a clone of it lives a container is being made there, which the kernel does
/// not know of yet.
#[derive(Debug, Clone)]
pub(crate) struct Bound {
    pub(crate) path: PathBuf,
    making: Arc<()>,
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
            state: Mutex::default(),
        })
    }

    /// Where `rootfs` is bound. Blocking; checks the image at its first use.
    pub(crate) fn bind(&self, rootfs: &Path) -> Result<Bound, Error> {
        let image = identity(rootfs).map_err(error("open the image", rootfs))?;
        let mut state = self.lock();
        if let Some(bound) = state.bound.get(&image) {
            return Ok(bound.clone());
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
        state.count += 1;
        let target = self.dir.join(state.count.to_string());
        fs::create_dir_all(&target).map_err(error("create", &target))?;
        mount::bind_private(rootfs, &target).map_err(error("bind the image at", &target))?;
        let bound = Bound {
            path: target,
            making: Arc::default(),
        };
        state.bound.insert(image, bound.clone());
        Ok(bound)
    }

    /// Undoes the bind of an image that nothing on this machine uses. False, and nothing is undone,
    /// where something does: the kernel is asked, so that containers count that this process never
    /// heard of, such as those of another server. Blocking.
    pub(crate) fn release(&self, rootfs: &Path) -> io::Result<bool> {
        let image = match identity(rootfs) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            image => image?,
        };
        // Held to the end, so that no container begins meanwhile.
        let mut state = self.lock();
        let making = |bound: &Bound| Arc::strong_count(&bound.making) > 1;
        if state.bound.get(&image).is_some_and(making) || is_a_root(image)? {
            return Ok(false);
        }
        if let Some(bound) = state.bound.remove(&image) {
            mount::unmount(&bound.path)?;
            fs::remove_dir(&bound.path)?;
        }
        Ok(true)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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

fn identity(dir: &Path) -> io::Result<Identity> {
    let meta = fs::metadata(dir)?;
    Ok((meta.dev(), meta.ino()))
}

/// Whether some process has this directory as its root.
fn is_a_root(image: Identity) -> io::Result<bool> {
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let is_process = name
            .to_str()
            .is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit()));
        if !is_process {
            continue;
        }
        let process = Path::new("/proc").join(name);
        match identity(&process.join("root")) {
            Ok(root) if root == image => return Ok(true),
            Ok(_) => {}
            // Not even root may look into it: a container of ours hides nothing from the host.
            Err(error)
                if error.kind() == io::ErrorKind::PermissionDenied && !is_contained(&process) => {}
            // It has just ended, or is about to and has no root any more.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// Whether a process is in a container of this or another server of this machine.
fn is_contained(process: &Path) -> bool {
    // One that has ended uses nothing.
    fs::read_to_string(process.join("cgroup")).is_ok_and(|groups| groups.contains("/coracle-"))
}

fn error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io {
        action,
        path,
        source,
    }
}
