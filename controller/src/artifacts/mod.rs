//! Content-addressed bytes: whatever a digest names is complete, durable and unchanged.
//!
//! A [`Store`] keeps bytes under digests and knows nothing else; [`Artifacts`] around it hashes what
//! comes and goes, bounds uploads, and remembers what must not be collected yet.

#[cfg(test)]
mod conformance;
mod file;
mod leases;
mod object;
mod s3;

use std::{
    fmt::Debug,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
};

use async_trait::async_trait;
use bytes::Bytes;
use coracle_base::Clock;
use coracle_model::{Digest, Timestamp};
use futures_util::{StreamExt as _, stream::BoxStream};
use sha2::{Digest as _, Sha256};
use tokio::{sync::Notify, task::spawn_blocking};

use leases::Leases;

pub use file::FileStore;
pub use object::{ObjectStore, StoreUrl, StoreUrlError};

/// Pieces in which bytes are read.
const CHUNK: usize = 256 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    #[error("cannot {action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("cannot {action} {object} in the object store")]
    Object {
        action: &'static str,
        object: String,
        source: object_store::Error,
    },
    #[error("the upload is larger than the {limit} bytes allowed")]
    TooLarge { limit: u64 },
    #[error("artifact {0} is not stored here")]
    Missing(Digest),
    /// The disk gave back other bytes than were written.
    #[error("artifact {expected} is damaged: its bytes hash to {actual}")]
    Damaged { expected: Digest, actual: Digest },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    pub digest: Digest,
    pub bytes: u64,
    /// Milliseconds since the Unix epoch; renewed when the same bytes are uploaded again.
    pub modified: u64,
}

/// Bytes in the order in which they were written, as they come from the disk or the network.
pub type Pieces = BoxStream<'static, Result<Bytes, ArtifactError>>;

/// Where artifacts are kept. One conformance suite runs over every implementation.
#[async_trait]
pub trait Store: Debug + Send + Sync + 'static {
    async fn writer(&self) -> Result<Box<dyn StoreWriter>, ArtifactError>;
    /// From this byte on, to the end; nothing where the offset is beyond it.
    async fn read(&self, digest: Digest, from: u64) -> Result<Pieces, ArtifactError>;
    async fn contains(&self, digest: Digest) -> Result<bool, ArtifactError>;
    /// Everything that is complete.
    async fn list(&self) -> Result<Vec<Stored>, ArtifactError>;
    /// Removes one as it was listed. One that was uploaded again since then stays.
    async fn remove(&self, stored: Stored) -> Result<(), ArtifactError>;
    /// Takes a damaged one out of the way without losing its bytes.
    async fn set_aside(&self, digest: Digest) -> Result<(), ArtifactError>;
    /// Removes what uploads before this time left unfinished.
    async fn sweep(&self, before: Timestamp) -> Result<(), ArtifactError>;
    /// All controllers use the same one, which keeps what it was given by itself: nothing is
    /// copied between controllers, and only the leader collects.
    fn is_shared(&self) -> bool;
}

/// An upload into a [`Store`]. Dropped before it is finished, it leaves nothing that has a digest.
#[async_trait]
pub trait StoreWriter: Debug + Send {
    async fn write(&mut self, data: Bytes) -> Result<(), ArtifactError>;
    /// Durable under this digest, which the bytes have, when it returns.
    async fn finish(self: Box<Self>, digest: Digest) -> Result<(), ArtifactError>;
}

/// The artifacts that one controller keeps.
#[derive(Debug, Clone)]
pub struct Artifacts {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Box<dyn Store>,
    max_bytes: u64,
    clock: Arc<dyn Clock>,
    leases: Mutex<Leases>,
    /// A removal ended.
    removed: Notify,
    /// A damaged one was set aside.
    damaged: Notify,
}

impl Artifacts {
    pub fn new(store: Box<dyn Store>, max_bytes: u64, clock: Arc<dyn Clock>) -> Self {
        let leases = Leases::new(Timestamp(clock.now_millis()));
        Self {
            inner: Arc::new(Inner {
                store,
                max_bytes,
                clock,
                leases: Mutex::new(leases),
                removed: Notify::new(),
                damaged: Notify::new(),
            }),
        }
    }

    pub fn is_shared(&self) -> bool {
        self.inner.store.is_shared()
    }

    pub async fn upload(&self) -> Result<Upload, ArtifactError> {
        Ok(Upload {
            artifacts: self.clone(),
            writer: self.inner.store.writer().await?,
            hash: Sha256::new(),
            bytes: 0,
        })
    }

    pub async fn contains(&self, digest: Digest) -> Result<bool, ArtifactError> {
        self.inner.store.contains(digest).await
    }

    /// Whether it is stored; if so, it is not collected before a whole grace period has passed.
    pub async fn hold(&self, digest: Digest) -> Result<bool, ArtifactError> {
        self.lease(digest).await;
        self.contains(digest).await
    }

    /// All of it, checked: an error comes at the end when the bytes are not those that the digest
    /// names, and they are set aside.
    pub async fn read(&self, digest: Digest) -> Result<Reader, ArtifactError> {
        self.read_from(digest, 0).await
    }

    /// From this byte on. Only a whole can be checked: the receiver of a part checks it together
    /// with what it has.
    pub async fn read_from(&self, digest: Digest, from: u64) -> Result<Reader, ArtifactError> {
        let pieces = self.inner.store.read(digest, from).await?;
        Ok(Reader {
            artifacts: self.clone(),
            pieces,
            digest,
            hash: (from == 0).then(Sha256::new),
        })
    }

    /// Everything stored, by digest.
    pub async fn list(&self) -> Result<Vec<Stored>, ArtifactError> {
        self.inner.store.list().await
    }

    /// Removes what is older than `grace`, not under a lease, and not kept.
    pub(crate) async fn collect(
        &self,
        listed: Vec<Stored>,
        grace: u64,
        keep: impl Fn(&Digest) -> bool,
    ) -> Result<u64, ArtifactError> {
        let now = Timestamp(self.inner.clock.now_millis());
        let mut removed = 0;
        for stored in listed {
            if keep(&stored.digest) || !self.leases().begin_removal(stored, now, grace) {
                continue;
            }
            let removal = Removal(&self.inner, stored.digest);
            self.inner.store.remove(stored).await?;
            drop(removal);
            tracing::debug!(digest = %stored.digest, bytes = stored.bytes, "artifact collected");
            removed += 1;
        }
        self.leases().forget(now, grace);
        let before = now.0.saturating_sub(grace);
        self.inner.store.sweep(Timestamp(before)).await?;
        Ok(removed)
    }

    /// Until one was found damaged since the last call.
    pub async fn damaged(&self) {
        self.inner.damaged.notified().await;
    }

    /// Begins its grace period anew. A removal that is under way ends first, so that what is found
    /// stored after this stays.
    async fn lease(&self, digest: Digest) {
        loop {
            let removed = self.inner.removed.notified();
            let now = Timestamp(self.inner.clock.now_millis());
            if self.leases().renew(digest, now) {
                return;
            }
            removed.await;
        }
    }

    fn leases(&self) -> MutexGuard<'_, Leases> {
        self.inner.leases()
    }
}

impl Inner {
    fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases
            .lock()
            .expect("never poisoned: no panic while held")
    }
}

/// Ends also when the collection is given up.
struct Removal<'a>(&'a Inner, Digest);

impl Drop for Removal<'_> {
    fn drop(&mut self) {
        self.0.leases().end_removal(self.1);
        self.0.removed.notify_waiters();
    }
}

/// Bytes on their way in. Dropped before [`Upload::finish`], it leaves nothing.
#[derive(Debug)]
pub struct Upload {
    artifacts: Artifacts,
    writer: Box<dyn StoreWriter>,
    hash: Sha256,
    bytes: u64,
}

impl Upload {
    pub async fn write(&mut self, data: Bytes) -> Result<(), ArtifactError> {
        self.bytes += data.len() as u64;
        let limit = self.artifacts.inner.max_bytes;
        if self.bytes > limit {
            return Err(ArtifactError::TooLarge { limit });
        }
        // Hashing a large piece takes longer than other tasks should wait.
        let (mut hash, hashed) = (self.hash.clone(), data.clone());
        let hashing = spawn_blocking(move || {
            hash.update(&hashed);
            hash
        });
        self.writer.write(data).await?;
        self.hash = crashed_with_it(hashing.await);
        Ok(())
    }

    pub fn digest(&self) -> Digest {
        Digest(self.hash.clone().finalize().into())
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Durable under its digest when this returns, and not collected for a grace period.
    pub async fn finish(self) -> Result<(Digest, u64), ArtifactError> {
        let digest = self.digest();
        self.artifacts.lease(digest).await;
        self.writer.finish(digest).await?;
        Ok((digest, self.bytes))
    }
}

pub struct Reader {
    artifacts: Artifacts,
    pieces: Pieces,
    digest: Digest,
    /// Absent for a part.
    hash: Option<Sha256>,
}

impl Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

impl Reader {
    /// `None` after the last piece, when the whole was what the digest names.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ArtifactError> {
        let piece = self.pieces.next().await.transpose()?;
        let Some(mut hash) = self.hash.take() else {
            return Ok(piece);
        };
        if let Some(piece) = &piece {
            let hashed = piece.clone();
            let hashing = spawn_blocking(move || {
                hash.update(&hashed);
                hash
            });
            self.hash = Some(crashed_with_it(hashing.await));
        } else {
            let (expected, actual) = (self.digest, Digest(hash.finalize().into()));
            if actual != expected {
                self.artifacts.inner.store.set_aside(expected).await?;
                self.artifacts.inner.damaged.notify_one();
                return Err(ArtifactError::Damaged { expected, actual });
            }
        }
        Ok(piece)
    }
}

/// Work that cannot be cancelled ends, or panics here as it did there.
fn crashed_with_it<T>(joined: Result<T, tokio::task::JoinError>) -> T {
    joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}
