//! Unpacked artifacts on this node's disk, by digest.
//!
//! A folder whose name is a digest is complete: it is filled elsewhere, made durable and then
//! renamed. Nothing in use is ever removed: instances hold leases, and instances that an earlier
//! agent started hold everything until it is known what they use. What is not in use goes when
//! the bound is passed, least recently used first; the controllers have it all.

mod disk;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt::Debug,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use async_trait::async_trait;
use coracle_model::Digest;
use tokio::sync::watch;

use crate::{fetch::TransferError, metrics};

/// Where artifacts come from.
#[async_trait]
pub trait ArtifactSource: Debug + Send + Sync + 'static {
    /// Writes the artifact's bytes to `to`, which does not exist; its hash has been checked.
    async fn download(&self, digest: Digest, to: &Path) -> Result<(), TransferError>;
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum ArtifactError {
    #[error("cannot fetch artifact {digest}")]
    Fetch {
        digest: Digest,
        #[source]
        source: Arc<TransferError>,
    },
    #[error("cannot unpack artifact {digest}")]
    Unpack {
        digest: Digest,
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    #[error("cannot {action} the artifact cache")]
    Io {
        action: &'static str,
        #[source]
        source: Arc<io::Error>,
    },
}

/// Keeps artifacts from being removed.
#[derive(Debug, Clone)]
pub enum Hold {
    Leases(Vec<Lease>),
    Everything(Arc<Everything>),
}

#[derive(Debug)]
pub struct Artifacts {
    inner: Arc<Inner>,
    source: Arc<dyn ArtifactSource>,
}

#[derive(Debug)]
struct Inner {
    /// Only digests are names in here.
    store: PathBuf,
    /// What is being filled or removed. On the same file system; emptied at start.
    scratch: PathBuf,
    /// Bytes on the disk beyond which what is unused goes.
    bound: u64,
    state: Mutex<State>,
    /// To the thread that removes folders.
    remover: std::sync::mpsc::Sender<PathBuf>,
}

#[derive(Debug, Default)]
struct State {
    slots: BTreeMap<Digest, Slot>,
    bytes: u64,
    /// Counts up with each use: the order of recency, without a clock.
    uses: u64,
    /// Holders of everything.
    held: usize,
    scratch_names: u64,
}

#[derive(Debug)]
enum Slot {
    Present {
        bytes: u64,
        leases: usize,
        used: u64,
    },
    Coming(watch::Receiver<Option<Result<(), ArtifactError>>>),
}

impl Artifacts {
    /// Reads what is there. Blocks on the disk.
    pub fn open(
        store: PathBuf,
        scratch: PathBuf,
        bound: u64,
        source: Arc<dyn ArtifactSource>,
    ) -> Result<Self, ArtifactError> {
        let failed = |action| {
            move |source| ArtifactError::Io {
                action,
                source: Arc::new(source),
            }
        };
        disk::empty(&scratch).map_err(failed("empty the scratch folder of"))?;
        let found = disk::scan(&store, &scratch).map_err(failed("read"))?;
        let mut state = State::default();
        for (digest, bytes) in found {
            state.uses += 1;
            state.bytes += bytes;
            let slot = Slot::Present {
                bytes,
                leases: 0,
                used: state.uses,
            };
            state.slots.insert(digest, slot);
        }
        let (remover, paths) = std::sync::mpsc::channel();
        std::thread::Builder::new()
            .name("artifact-remover".to_owned())
            .spawn(move || disk::remove_all(&paths))
            .map_err(failed("start the remover of"))?;
        let state = Mutex::new(state);
        let inner = Arc::new(Inner {
            store,
            scratch,
            bound,
            state,
            remover,
        });
        Ok(Self { inner, source })
    }

    /// The artifact if it is on the node: no I/O.
    pub fn present(&self, digest: Digest) -> Option<Lease> {
        self.inner.lease(digest)
    }

    /// The artifact, fetched first if it is not on the node. Several callers share one fetch,
    /// which goes on when they give up.
    pub async fn get(&self, digest: Digest) -> Result<Lease, ArtifactError> {
        loop {
            if let Some(lease) = self.present(digest) {
                return Ok(lease);
            }
            let mut coming = self.start(digest, None);
            let result = coming
                .wait_for(Option::is_some)
                .await
                .map(|result| result.clone());
            match result {
                Ok(Some(Err(error))) => return Err(error),
                // Present now, unless the bound pushed it out this very moment: look again.
                Ok(_) => {}
                Err(_) => {
                    return Err(ArtifactError::Unpack {
                        digest,
                        source: Arc::new(io::Error::other("unpacking it was interrupted")),
                    });
                }
            }
        }
    }

    /// Unpacks a tar that is on this node already, such as what a build made.
    pub async fn insert(&self, digest: Digest, tar: PathBuf) -> Result<(), ArtifactError> {
        if self.present(digest).is_some() {
            return Ok(());
        }
        let mut coming = self.start(digest, Some(tar));
        let result = coming
            .wait_for(Option::is_some)
            .await
            .map(|result| result.clone());
        result.ok().flatten().unwrap_or(Ok(()))
    }

    /// Nothing is removed while the result lives.
    pub fn hold_everything(&self) -> Arc<Everything> {
        self.inner.state().held += 1;
        Arc::new(Everything(Arc::clone(&self.inner)))
    }

    /// Bytes on the disk.
    pub fn bytes(&self) -> u64 {
        self.inner.state().bytes
    }

    fn start(
        &self,
        digest: Digest,
        tar: Option<PathBuf>,
    ) -> watch::Receiver<Option<Result<(), ArtifactError>>> {
        let (sender, receiver) = watch::channel(None);
        {
            let mut state = self.inner.state();
            match state.slots.get(&digest) {
                Some(Slot::Coming(coming)) => return coming.clone(),
                Some(Slot::Present { .. }) => {
                    sender.send_replace(Some(Ok(())));
                    return receiver;
                }
                None => state.slots.insert(digest, Slot::Coming(receiver.clone())),
            };
        }
        let inner = Arc::clone(&self.inner);
        let source = Arc::clone(&self.source);
        tokio::spawn(async move {
            // Also when the task is dropped: the next caller starts anew.
            let clear = ClearComing {
                inner: &inner,
                digest,
            };
            let result = inner.bring(digest, tar, &*source).await;
            drop(clear);
            let result = result.map(|bytes| inner.arrived(digest, bytes));
            sender.send_replace(Some(result));
        });
        receiver
    }
}

struct ClearComing<'a> {
    inner: &'a Inner,
    digest: Digest,
}

impl Drop for ClearComing<'_> {
    fn drop(&mut self) {
        self.inner.state().slots.remove(&self.digest);
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("never poisoned: no panic while held")
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.store.join(digest.to_string())
    }

    fn scratch_name(&self, what: &str) -> PathBuf {
        let mut state = self.state();
        state.scratch_names += 1;
        self.scratch.join(format!("{what}-{}", state.scratch_names))
    }

    fn lease(self: &Arc<Self>, digest: Digest) -> Option<Lease> {
        let mut state = self.state();
        state.uses += 1;
        let now = state.uses;
        match state.slots.get_mut(&digest)? {
            Slot::Present { leases, used, .. } => {
                *leases += 1;
                *used = now;
            }
            Slot::Coming(_) => return None,
        }
        drop(state);
        Some(Lease(Arc::new(Leased {
            inner: Arc::clone(self),
            digest,
            path: self.path(digest),
        })))
    }

    /// Bytes on the disk, after it is complete and durable under its name.
    async fn bring(
        &self,
        digest: Digest,
        tar: Option<PathBuf>,
        source: &dyn ArtifactSource,
    ) -> Result<u64, ArtifactError> {
        let (tar, fetched) = match tar {
            Some(tar) => (tar, false),
            None => {
                let to = self.scratch_name("fetch");
                let result = source.download(digest, &to).await;
                if let Err(error) = result {
                    // What it left of the file is in the way of nobody but costs space.
                    let _ = tokio::fs::remove_file(&to).await;
                    return Err(ArtifactError::Fetch {
                        digest,
                        source: Arc::new(error),
                    });
                }
                metrics::artifact_fetched();
                (to, true)
            }
        };
        let (folder, name) = (self.scratch_name("unpack"), self.path(digest));
        let unpacked = tokio::task::spawn_blocking(move || {
            let result = disk::place(&tar, &folder, &name);
            if result.is_err() {
                let _ = std::fs::remove_dir_all(&folder);
            }
            if fetched {
                let _ = std::fs::remove_file(&tar);
            }
            result
        });
        let failed = |source| ArtifactError::Unpack { digest, source };
        match unpacked.await {
            Ok(result) => result.map_err(|error| failed(Arc::from(error))),
            Err(crashed) => Err(failed(Arc::new(crashed))),
        }
    }

    fn arrived(self: &Arc<Self>, digest: Digest, bytes: u64) {
        let mut state = self.state();
        state.uses += 1;
        let used = state.uses;
        let old = state.slots.insert(
            digest,
            Slot::Present {
                bytes,
                leases: 0,
                used,
            },
        );
        debug_assert!(old.is_none(), "one bringer a digest");
        state.bytes += bytes;
        // Whoever asked for it takes its lease next, so it is not a candidate yet.
        self.evict(&mut state, Some(digest));
    }

    fn release(self: &Arc<Self>, digest: Digest) {
        let mut state = self.state();
        if let Some(Slot::Present { leases, .. }) = state.slots.get_mut(&digest) {
            *leases -= 1;
        }
        self.evict(&mut state, None);
    }

    /// Removes what is unused until the bound holds. Renames at once, so that a name is never
    /// half gone; the bytes follow on another thread.
    fn evict(&self, state: &mut State, keep: Option<Digest>) {
        while state.bytes > self.bound && state.held == 0 {
            let unused = state.slots.iter().filter_map(|(digest, slot)| match slot {
                Slot::Present {
                    bytes,
                    leases: 0,
                    used,
                } if Some(*digest) != keep => Some((*used, *digest, *bytes)),
                _ => None,
            });
            let Some((_, digest, bytes)) = unused.min() else {
                break;
            };
            state.slots.remove(&digest);
            state.bytes -= bytes;
            state.scratch_names += 1;
            let away = self.scratch.join(format!("remove-{}", state.scratch_names));
            if let Err(error) = std::fs::rename(self.path(digest), &away) {
                tracing::warn!(%digest, %error, "cannot remove an artifact");
                continue;
            }
            metrics::artifact_evicted();
            // Fails only when the thread could not go on; the next start empties the folder.
            let _ = self.remover.send(away);
        }
        metrics::artifact_bytes(state.bytes);
    }
}

/// One user of one artifact. While it lives the folder stays; clones are the same user.
#[derive(Debug, Clone)]
pub struct Lease(Arc<Leased>);

#[derive(Debug)]
struct Leased {
    inner: Arc<Inner>,
    digest: Digest,
    path: PathBuf,
}

impl Lease {
    pub fn path(&self) -> &Path {
        &self.0.path
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        self.inner.release(self.digest);
    }
}

/// See [`Artifacts::hold_everything`].
#[derive(Debug)]
pub struct Everything(Arc<Inner>);

impl Drop for Everything {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.held -= 1;
        self.0.evict(&mut state, None);
    }
}
