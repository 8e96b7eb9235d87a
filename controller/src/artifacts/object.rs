//! Artifacts in an object store that all controllers share: S3, or a directory that all mount.
//!
//! A small upload is one put. A large one goes in parts under a name of its own and is renamed when
//! its digest is known; what a crash leaves under such names is swept, and parts that were never
//! completed are for the bucket's own lifecycle rule.

use std::{
    fmt::{self, Debug},
    path::PathBuf,
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use coracle_model::{Digest, Timestamp};
use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::{
    Error, GetOptions, GetRange, ObjectMeta, ObjectStore as _, ObjectStoreExt as _, PutPayload,
    WriteMultipart, local::LocalFileSystem, memory::InMemory, path::Path,
};
use uuid::Uuid;

use super::{ArtifactError, Pieces, Store, StoreWriter, Stored, s3};

/// The largest upload that is one put, and the size of a part. S3 takes no smaller parts than 5 MiB
/// and no more than 10,000 of them.
const PART: usize = 8 * 1024 * 1024;
/// Parts of one upload on their way at once; with the one being filled, this bounds its memory.
const PARTS: usize = 2;
const PARTIAL: &str = "partial";
const DAMAGED: &str = "damaged";
/// A store that says nothing for this long in the middle of an answer is given up.
const IDLE: Duration = Duration::from_secs(30);

/// Where a controller keeps artifacts: the setting `artifact-store`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum StoreUrl {
    /// `file`: in its own data directory, copied between controllers.
    #[default]
    Own,
    /// `file:///path`: a directory that all controllers share.
    Directory(PathBuf),
    /// `s3://bucket/prefix`. Endpoint, region and credentials come from the usual `AWS_` variables.
    S3 { bucket: String, prefix: String },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not file, file:///directory or s3://bucket/prefix")]
pub struct StoreUrlError(String);

impl FromStr for StoreUrl {
    type Err = StoreUrlError;

    fn from_str(text: &str) -> Result<Self, StoreUrlError> {
        let wrong = || StoreUrlError(text.to_owned());
        if text == "file" {
            return Ok(Self::Own);
        }
        if let Some(path) = text.strip_prefix("file://") {
            let path = PathBuf::from(path);
            let usable = path.is_absolute() && path.parent().is_some();
            return usable.then_some(Self::Directory(path)).ok_or_else(wrong);
        }
        let rest = text.strip_prefix("s3://").ok_or_else(wrong)?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_end_matches('/');
        if bucket.is_empty() || Path::parse(prefix).is_err() {
            return Err(wrong());
        }
        Ok(Self::S3 {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
        })
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own => f.write_str("file"),
            Self::Directory(path) => write!(f, "file://{}", path.display()),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

#[derive(Debug, Clone)]
pub struct ObjectStore {
    store: Arc<dyn object_store::ObjectStore>,
    prefix: Path,
}

impl ObjectStore {
    /// Gone with the process.
    pub fn memory() -> Self {
        Self {
            store: Arc::new(InMemory::new()),
            prefix: Path::default(),
        }
    }

    /// Blocks on the disk.
    pub fn directory(path: &std::path::Path) -> Result<Self, ArtifactError> {
        std::fs::create_dir_all(path).map_err(|source| ArtifactError::Io {
            action: "create",
            path: path.to_owned(),
            source,
        })?;
        let store = LocalFileSystem::new_with_prefix(path).map_err(failed("open", ""))?;
        Ok(Self {
            store: Arc::new(store.with_fsync(true)),
            prefix: Path::default(),
        })
    }

    pub fn s3(bucket: &str, prefix: &str) -> Result<Self, ArtifactError> {
        let store = s3::open(bucket).map_err(failed("open", bucket))?;
        Ok(Self {
            store: Arc::new(store),
            prefix: Path::from(prefix),
        })
    }

    fn path(&self, digest: Digest) -> Path {
        self.prefix.clone().join(digest.to_string())
    }

    fn partials(&self) -> Path {
        self.prefix.clone().join(PARTIAL)
    }

    async fn head(&self, digest: Digest) -> Result<Option<ObjectMeta>, ArtifactError> {
        let path = self.path(digest);
        match self.store.head(&path).await {
            Ok(meta) => Ok(Some(meta)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(failed("look at", &path)(error)),
        }
    }
}

#[async_trait]
impl Store for ObjectStore {
    async fn writer(&self) -> Result<Box<dyn StoreWriter>, ArtifactError> {
        Ok(Box::new(Writer {
            to: self.clone(),
            small: Vec::new(),
            bytes: 0,
            large: None,
        }))
    }

    async fn read(&self, digest: Digest, from: u64) -> Result<Pieces, ArtifactError> {
        let path = self.path(digest);
        let mut options = GetOptions::default();
        if from > 0 {
            let meta = self.head(digest).await?;
            let meta = meta.ok_or(ArtifactError::Missing(digest))?;
            if from >= meta.size {
                // Stores refuse a range without a byte in it.
                return Ok(futures_util::stream::empty().boxed());
            }
            options.range = Some(GetRange::Offset(from));
        }
        let found = match self.store.get_opts(&path, options).await {
            Ok(found) => found,
            Err(Error::NotFound { .. }) => return Err(ArtifactError::Missing(digest)),
            Err(error) => return Err(failed("read", &path)(error)),
        };
        let pieces = futures_util::stream::try_unfold(found.into_stream(), move |mut stream| {
            let path = path.clone();
            async move {
                let piece = tokio::time::timeout(IDLE, stream.try_next()).await;
                let piece = piece.unwrap_or_else(|elapsed| {
                    Err(Error::Generic {
                        store: "object store",
                        source: elapsed.into(),
                    })
                });
                let piece = piece.map_err(failed("read", &path))?;
                Ok(piece.map(|piece| (piece, stream)))
            }
        });
        Ok(pieces.boxed())
    }

    async fn contains(&self, digest: Digest) -> Result<bool, ArtifactError> {
        Ok(self.head(digest).await?.is_some())
    }

    async fn list(&self) -> Result<Vec<Stored>, ArtifactError> {
        let prefix = (!self.prefix.is_root()).then_some(&self.prefix);
        let objects = self.store.list_with_delimiter(prefix).await;
        let objects = objects.map_err(failed("list", &self.prefix))?.objects;
        let mut stored: Vec<Stored> = objects.iter().filter_map(described).collect();
        stored.sort_by_key(|stored| stored.digest);
        Ok(stored)
    }

    /// Another controller's upload between the look and the removal is lost; the leader's check
    /// before the write that names it finds that out.
    async fn remove(&self, stored: Stored) -> Result<(), ArtifactError> {
        let found = self.head(stored.digest).await?;
        if found.as_ref().and_then(described) != Some(stored) {
            return Ok(());
        }
        let path = self.path(stored.digest);
        match self.store.delete(&path).await {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed("remove", &path)(error)),
        }
    }

    async fn set_aside(&self, digest: Digest) -> Result<(), ArtifactError> {
        let (from, to) = (
            self.path(digest),
            self.prefix.clone().join(DAMAGED).join(digest.to_string()),
        );
        match self.store.rename(&from, &to).await {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed("set aside", &from)(error)),
        }
    }

    async fn sweep(&self, before: Timestamp) -> Result<(), ArtifactError> {
        let partials = self.partials();
        let mut listed = self.store.list(Some(&partials));
        while let Some(meta) = listed.next().await {
            let meta = meta.map_err(failed("list", &partials))?;
            if modified(&meta) >= before.0 {
                continue;
            }
            match self.store.delete(&meta.location).await {
                Ok(()) | Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(failed("remove", &meta.location)(error)),
            }
        }
        Ok(())
    }

    fn is_shared(&self) -> bool {
        true
    }
}

fn described(meta: &ObjectMeta) -> Option<Stored> {
    Some(Stored {
        digest: meta.location.filename()?.parse().ok()?,
        bytes: meta.size,
        modified: modified(meta),
    })
}

fn modified(meta: &ObjectMeta) -> u64 {
    u64::try_from(meta.last_modified.timestamp_millis()).unwrap_or_default()
}

fn failed(action: &'static str, object: impl ToString) -> impl FnOnce(Error) -> ArtifactError {
    let object = object.to_string();
    move |source| ArtifactError::Object {
        action,
        object,
        source,
    }
}

#[derive(Debug)]
struct Writer {
    to: ObjectStore,
    /// Until there is enough for a part.
    small: Vec<Bytes>,
    bytes: usize,
    large: Option<(Path, WriteMultipart)>,
}

#[async_trait]
impl StoreWriter for Writer {
    async fn write(&mut self, data: Bytes) -> Result<(), ArtifactError> {
        self.bytes += data.len();
        if self.large.is_none() && self.bytes <= PART {
            self.small.push(data);
            return Ok(());
        }
        if self.large.is_none() {
            let path = self.to.partials().join(Uuid::new_v4().to_string());
            let begun = self.to.store.put_multipart(&path).await;
            let upload = begun.map_err(failed("begin", &path))?;
            let mut parts = WriteMultipart::new_with_chunk_size(upload, PART);
            for piece in self.small.drain(..) {
                parts.put(piece);
            }
            self.large = Some((path, parts));
        }
        let (path, parts) = self.large.as_mut().expect("just made");
        let capacity = parts.wait_for_capacity(PARTS).await;
        capacity.map_err(failed("write", &*path))?;
        parts.put(data);
        Ok(())
    }

    async fn finish(mut self: Box<Self>, digest: Digest) -> Result<(), ArtifactError> {
        let to = self.to.path(digest);
        let Some((path, parts)) = self.large.take() else {
            let payload: PutPayload = std::mem::take(&mut self.small).into_iter().collect();
            let put = self.to.store.put(&to, payload).await;
            return put.map(drop).map_err(failed("write", &to));
        };
        // It takes its own parts back when it fails.
        parts.finish().await.map_err(failed("complete", &path))?;
        let renamed = self.to.store.rename(&path, &to).await;
        renamed.map_err(failed("rename", &path))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Parts that are never completed cost money without being seen.
        if let Some((path, parts)) = self.large.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move {
                if let Err(error) = parts.abort().await {
                    tracing::warn!(%path, %error, "an upload's parts were not taken back");
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_parsed_or_refused_with_what_was_expected() {
        let s3 = |bucket: &str, prefix: &str| StoreUrl::S3 {
            bucket: bucket.into(),
            prefix: prefix.into(),
        };
        for (text, expected) in [
            ("file", StoreUrl::Own),
            (
                "file:///srv/shared",
                StoreUrl::Directory("/srv/shared".into()),
            ),
            ("s3://bucket", s3("bucket", "")),
            ("s3://bucket/a/b/", s3("bucket", "a/b")),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for bad in [
            "",
            "files",
            "file://",
            "file://srv",
            "file:///",
            "s3://",
            "s3:///a",
            "s3://b/a//b",
            "gs://b",
        ] {
            assert!(bad.parse::<StoreUrl>().is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn what_a_crash_left_is_swept() {
        let store = ObjectStore::memory();
        let path = store.partials().join("left");
        store.store.put(&path, "half".into()).await.unwrap();
        let left = store.store.head(&path).await.unwrap();
        store.sweep(Timestamp(modified(&left))).await.unwrap();
        assert!(store.store.head(&path).await.is_ok(), "not that old");
        assert_eq!(store.list().await.unwrap(), []);
        store.sweep(Timestamp(modified(&left) + 1)).await.unwrap();
        assert!(store.store.head(&path).await.is_err());
    }
}
