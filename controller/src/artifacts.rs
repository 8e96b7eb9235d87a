//! Content-addressed files: whatever a digest names is complete, durable and unchanged.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::UNIX_EPOCH,
};

use bytes::Bytes;
use coracle_model::Digest;
use sha2::{Digest as _, Sha256};
use tokio::task::spawn_blocking;

const CHUNK: usize = 256 * 1024;
/// Uploads in progress are named so, in the same directory tree, so that a rename is atomic.
const PARTIAL: &str = "partial";

#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    #[error("cannot {action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("the upload is larger than the {limit} bytes allowed")]
    TooLarge { limit: u64 },
    #[error("artifact {0} is not stored here")]
    Missing(Digest),
    /// The disk gave back other bytes than were written.
    #[error("artifact {expected} is damaged: its bytes hash to {actual}")]
    Damaged { expected: Digest, actual: Digest },
}

#[derive(Debug, Clone)]
pub(crate) struct Artifacts {
    dir: PathBuf,
    max_bytes: u64,
    next: Arc<AtomicU64>,
    /// Held while a name is given or taken away, so that a collection that has just looked at an
    /// old file does not remove the one that an upload put in its place since.
    names: Arc<Mutex<()>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) digest: Digest,
    pub(crate) bytes: u64,
    /// Milliseconds since the Unix epoch; renewed when the same bytes are uploaded again.
    pub(crate) modified: u64,
}

impl Artifacts {
    /// Blocks on the disk. Unfinished uploads of an earlier process are swept.
    pub(crate) fn open(dir: PathBuf, max_bytes: u64) -> Result<Self, ArtifactError> {
        let partial = dir.join(PARTIAL);
        let swept = match fs::remove_dir_all(&partial) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => fs::create_dir_all(&partial),
        };
        swept.map_err(io_error("prepare", &partial))?;
        Ok(Self {
            dir,
            max_bytes,
            next: Arc::default(),
            names: Arc::default(),
        })
    }

    pub(crate) async fn writer(&self) -> Result<Writer, ArtifactError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(PARTIAL).join(number.to_string());
        let (dir, max_bytes) = (self.dir.clone(), self.max_bytes);
        let names = Arc::clone(&self.names);
        blocking(move || {
            let file = File::create_new(&path).map_err(io_error("create", &path))?;
            Ok(Writer {
                inner: Some(Partial {
                    dir,
                    names,
                    path,
                    file,
                    hash: Sha256::new(),
                    bytes: 0,
                    max_bytes,
                }),
            })
        })
        .await
    }

    pub(crate) async fn contains(&self, digest: Digest) -> bool {
        let path = self.path(digest);
        spawn_blocking(move || path.is_file())
            .await
            .unwrap_or(false)
    }

    /// Opens for reading; [`Reader::next`] gives pieces, and an error at the end when the bytes are
    /// not those that the digest names.
    pub(crate) async fn reader(&self, digest: Digest) -> Result<Reader, ArtifactError> {
        let path = self.path(digest);
        blocking(move || match File::open(&path) {
            Ok(file) => Ok(Reader {
                inner: Some((file, Sha256::new())),
                path,
                digest,
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(ArtifactError::Missing(digest))
            }
            Err(source) => Err(io_error("open", &path)(source)),
        })
        .await
    }

    /// Everything stored. Walks the directory.
    pub(crate) async fn list(&self) -> Result<Vec<Stored>, ArtifactError> {
        let dir = self.dir.clone();
        blocking(move || {
            let failed = io_error("list", &dir);
            let mut stored = Vec::new();
            for entry in fs::read_dir(&dir).map_err(&failed)? {
                let entry = entry.map_err(&failed)?;
                let Ok(digest) = entry.file_name().to_string_lossy().parse() else {
                    continue;
                };
                let Ok(metadata) = entry.metadata() else {
                    continue;
                };
                let modified = modified_millis(&metadata);
                stored.push(Stored {
                    digest,
                    bytes: metadata.len(),
                    modified,
                });
            }
            Ok(stored)
        })
        .await
    }

    /// Removes one as it was listed. One that was uploaded again since then stays.
    pub(crate) async fn remove(&self, stored: Stored) -> Result<(), ArtifactError> {
        let path = self.path(stored.digest);
        let names = Arc::clone(&self.names);
        blocking(move || {
            let _removing = lock(&names);
            let modified = fs::metadata(&path).map(|metadata| modified_millis(&metadata));
            match modified.and_then(|at| {
                if at == stored.modified {
                    fs::remove_file(&path)
                } else {
                    Ok(())
                }
            }) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(io_error("remove", &path)(error))
                }
                _ => Ok(()),
            }
        })
        .await
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.dir.join(digest.to_string())
    }
}

#[derive(Debug)]
struct Partial {
    dir: PathBuf,
    names: Arc<Mutex<()>>,
    path: PathBuf,
    file: File,
    hash: Sha256,
    bytes: u64,
    max_bytes: u64,
}

/// An upload. Dropped before [`Writer::finish`], it leaves nothing.
#[derive(Debug)]
pub(crate) struct Writer {
    inner: Option<Partial>,
}

impl Writer {
    pub(crate) async fn write(&mut self, data: Bytes) -> Result<(), ArtifactError> {
        let mut partial = self.inner.take().expect("put back unless a write failed");
        partial.bytes += data.len() as u64;
        if partial.bytes > partial.max_bytes {
            let limit = partial.max_bytes;
            self.inner = Some(partial);
            return Err(ArtifactError::TooLarge { limit });
        }
        let written = blocking(move || {
            partial.hash.update(&data);
            match partial.file.write_all(&data) {
                Ok(()) => Ok(partial),
                Err(error) => {
                    // A full disk should not stay full because of us.
                    let _ = fs::remove_file(&partial.path);
                    Err(io_error("write", &partial.path)(error))
                }
            }
        });
        self.inner = Some(written.await?);
        Ok(())
    }

    /// Durable under its digest when this returns: file, name and directory are synced.
    pub(crate) async fn finish(mut self) -> Result<(Digest, u64), ArtifactError> {
        let partial = self.inner.take().expect("present until finished");
        blocking(move || {
            let placed = place(&partial);
            if placed.is_err() {
                // A full disk should not stay full because of us.
                let _ = fs::remove_file(&partial.path);
            }
            placed
        })
        .await
    }
}

fn place(partial: &Partial) -> Result<(Digest, u64), ArtifactError> {
    let digest = Digest(partial.hash.clone().finalize().into());
    let target = partial.dir.join(digest.to_string());
    partial
        .file
        .sync_all()
        .map_err(io_error("sync", &partial.path))?;
    {
        let _placing = lock(&partial.names);
        fs::rename(&partial.path, &target).map_err(io_error("rename to", &target))?;
    }
    let dir = File::open(&partial.dir).and_then(|dir| dir.sync_all());
    dir.map_err(io_error("sync", &partial.dir))?;
    Ok((digest, partial.bytes))
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(partial) = self.inner.take() {
            // Best effort: the next start sweeps what stays.
            let _ = fs::remove_file(partial.path);
        }
    }
}

#[derive(Debug)]
pub(crate) struct Reader {
    inner: Option<(File, Sha256)>,
    path: PathBuf,
    digest: Digest,
}

impl Reader {
    /// `None` after the last piece, when the whole was what the digest names.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, ArtifactError> {
        let Some((mut file, mut hash)) = self.inner.take() else {
            return Ok(None);
        };
        let (path, expected) = (self.path.clone(), self.digest);
        let (piece, rest) = blocking(move || {
            let mut piece = Vec::with_capacity(CHUNK);
            let read = (&mut file).take(CHUNK as u64).read_to_end(&mut piece);
            read.map_err(io_error("read", &path))?;
            hash.update(&piece);
            if !piece.is_empty() {
                return Ok((Some(Bytes::from(piece)), Some((file, hash))));
            }
            let actual = Digest(hash.finalize().into());
            if actual != expected {
                return Err(ArtifactError::Damaged { expected, actual });
            }
            Ok((None, None))
        })
        .await?;
        self.inner = rest;
        Ok(piece)
    }
}

fn lock(names: &Mutex<()>) -> MutexGuard<'_, ()> {
    names.lock().expect("never poisoned: no panic while held")
}

fn modified_millis(metadata: &fs::Metadata) -> u64 {
    let modified = metadata
        .modified()
        .ok()
        .and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    modified.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

fn io_error(action: &'static str, path: &Path) -> impl Fn(io::Error) -> ArtifactError + use<> {
    let path = path.to_owned();
    move |source| ArtifactError::Io {
        action,
        path: path.clone(),
        source,
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ArtifactError> + Send + 'static,
) -> Result<T, ArtifactError> {
    match spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(ArtifactError::Io {
            action: "run a thread for",
            path: PathBuf::from("artifacts"),
            source: io::Error::other(error),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(max: u64) -> (tempfile::TempDir, Artifacts) {
        let dir = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::open(dir.path().join("artifacts"), max).unwrap();
        (dir, artifacts)
    }

    async fn put(artifacts: &Artifacts, pieces: &[&'static [u8]]) -> Result<Digest, ArtifactError> {
        let mut writer = artifacts.writer().await?;
        for piece in pieces {
            writer.write(Bytes::from_static(piece)).await?;
        }
        Ok(writer.finish().await?.0)
    }

    async fn get(artifacts: &Artifacts, digest: Digest) -> Result<Vec<u8>, ArtifactError> {
        let mut reader = artifacts.reader(digest).await?;
        let mut all = Vec::new();
        while let Some(piece) = reader.next().await? {
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }

    fn partials(artifacts: &Artifacts) -> usize {
        fs::read_dir(artifacts.dir.join(PARTIAL)).unwrap().count()
    }

    #[tokio::test]
    async fn what_goes_in_comes_out_under_its_hash() {
        let (_dir, artifacts) = store(1_000);
        let digest = put(&artifacts, &[b"hello ", b"", b"world"]).await.unwrap();
        assert_eq!(digest, Digest::of(b"hello world"));
        assert_eq!(get(&artifacts, digest).await.unwrap(), b"hello world");
        assert_eq!(put(&artifacts, &[b"hello world"]).await.unwrap(), digest);
        let listed = artifacts.list().await.unwrap();
        assert_eq!(
            listed
                .iter()
                .map(|s| (s.digest, s.bytes))
                .collect::<Vec<_>>(),
            [(digest, 11)]
        );
        let empty = put(&artifacts, &[]).await.unwrap();
        assert_eq!(get(&artifacts, empty).await.unwrap(), b"");
        let stored = listed[0];
        artifacts
            .remove(Stored {
                modified: 1,
                ..stored
            })
            .await
            .unwrap();
        assert!(
            artifacts.contains(digest).await,
            "uploaded again since it was listed"
        );
        artifacts.remove(stored).await.unwrap();
        assert!(!artifacts.contains(digest).await);
        assert!(matches!(
            get(&artifacts, digest).await,
            Err(ArtifactError::Missing(_))
        ));
    }

    #[tokio::test]
    async fn too_much_and_given_up_uploads_leave_nothing() {
        let (_dir, artifacts) = store(8);
        let error = put(&artifacts, &[b"12345", b"6789"]).await;
        assert!(matches!(error, Err(ArtifactError::TooLarge { limit: 8 })));
        assert_eq!(partials(&artifacts), 0);
        let mut writer = artifacts.writer().await.unwrap();
        writer.write(Bytes::from_static(b"half")).await.unwrap();
        assert_eq!(partials(&artifacts), 1);
        drop(writer);
        assert_eq!(
            (partials(&artifacts), artifacts.list().await.unwrap().len()),
            (0, 0)
        );
    }

    #[tokio::test]
    async fn an_upload_that_cannot_be_put_in_place_leaves_nothing() {
        let (_dir, artifacts) = store(100);
        let in_the_way = artifacts.path(Digest::of(b"bytes"));
        fs::create_dir(&in_the_way).unwrap();
        assert!(matches!(
            put(&artifacts, &[b"bytes"]).await,
            Err(ArtifactError::Io { .. })
        ));
        assert_eq!(partials(&artifacts), 0);
    }

    #[tokio::test]
    async fn damage_is_noticed_and_leftovers_are_swept_at_start() {
        let (_dir, artifacts) = store(100);
        let digest = put(&artifacts, &[b"right"]).await.unwrap();
        fs::write(artifacts.path(digest), b"wrong").unwrap();
        assert!(matches!(
            get(&artifacts, digest).await,
            Err(ArtifactError::Damaged { .. })
        ));
        fs::write(artifacts.dir.join(PARTIAL).join("9"), b"left over").unwrap();
        let again = Artifacts::open(artifacts.dir.clone(), 100).unwrap();
        assert_eq!(partials(&again), 0);
    }
}
