//! Artifacts as files of one controller's own directory, synced by hand.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::UNIX_EPOCH,
};

use async_trait::async_trait;
use bytes::Bytes;
use coracle_model::{Digest, Timestamp};
use futures_util::{StreamExt as _, stream};
use tokio::task::spawn_blocking;

use super::{ArtifactError, CHUNK, Pieces, Store, StoreWriter, Stored};

/// Uploads in progress are named so, in the same directory tree, so that a rename is atomic.
const PARTIAL: &str = "partial";
/// Damaged files, for whoever wants to know what happened to them; one a digest.
const DAMAGED: &str = "damaged";

#[derive(Debug, Clone)]
pub struct FileStore {
    dir: PathBuf,
    next: Arc<AtomicU64>,
    /// Held while a name is given or taken away, so that a collection that has just looked at an
    /// old file does not remove the one that an upload put in its place since.
    names: Arc<Mutex<()>>,
}

impl FileStore {
    /// Blocks on the disk. Unfinished uploads of an earlier process are swept.
    pub fn open(dir: PathBuf) -> Result<Self, ArtifactError> {
        let partial = dir.join(PARTIAL);
        let swept = match fs::remove_dir_all(&partial) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => fs::create_dir_all(&partial),
        };
        swept.map_err(io_error("prepare", &partial))?;
        // The directory's own name must outlive a power cut as its files do.
        let parents = [Some(dir.as_path()), dir.parent()];
        for path in parents.into_iter().flatten() {
            sync_directory(path)?;
        }
        Ok(Self {
            dir,
            next: Arc::default(),
            names: Arc::default(),
        })
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.dir.join(digest.to_string())
    }
}

#[async_trait]
impl Store for FileStore {
    async fn writer(&self) -> Result<Box<dyn StoreWriter>, ArtifactError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(PARTIAL).join(number.to_string());
        let (dir, names) = (self.dir.clone(), Arc::clone(&self.names));
        blocking(move || {
            let file = File::create_new(&path).map_err(io_error("create", &path))?;
            let partial = Partial {
                dir,
                names,
                path,
                file: Some(file),
            };
            Ok(Box::new(Writer(Some(partial))) as Box<dyn StoreWriter>)
        })
        .await
    }

    async fn read(&self, digest: Digest, from: u64) -> Result<Pieces, ArtifactError> {
        let path = self.path(digest);
        let opened = path.clone();
        let file = blocking(move || match File::open(&opened) {
            Ok(mut file) => {
                file.seek(SeekFrom::Start(from))
                    .map_err(io_error("seek in", &opened))?;
                Ok(file)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(ArtifactError::Missing(digest))
            }
            Err(source) => Err(io_error("open", &opened)(source)),
        })
        .await?;
        let pieces = stream::try_unfold((file, path), |(mut file, path)| {
            blocking(move || {
                let mut piece = Vec::with_capacity(CHUNK);
                let read = (&mut file).take(CHUNK as u64).read_to_end(&mut piece);
                read.map_err(io_error("read", &path))?;
                Ok((!piece.is_empty()).then(|| (Bytes::from(piece), (file, path))))
            })
        });
        Ok(pieces.boxed())
    }

    async fn contains(&self, digest: Digest) -> Result<bool, ArtifactError> {
        let path = self.path(digest);
        blocking(move || match fs::metadata(&path) {
            Ok(metadata) => Ok(metadata.is_file()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(io_error("look at", &path)(source)),
        })
        .await
    }

    async fn list(&self) -> Result<Vec<Stored>, ArtifactError> {
        let dir = self.dir.clone();
        blocking(move || {
            let failed = io_error("list", &dir);
            let mut stored = Vec::new();
            for entry in fs::read_dir(&dir).map_err(&failed)? {
                let entry = entry.map_err(&failed)?;
                let Ok(digest) = entry.file_name().to_string_lossy().parse() else {
                    continue;
                };
                // Removed since.
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
            stored.sort_by_key(|stored| stored.digest);
            Ok(stored)
        })
        .await
    }

    async fn remove(&self, stored: Stored) -> Result<(), ArtifactError> {
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

    async fn set_aside(&self, digest: Digest) -> Result<(), ArtifactError> {
        let (path, damaged) = (self.path(digest), self.dir.join(DAMAGED));
        let names = Arc::clone(&self.names);
        blocking(move || {
            fs::create_dir_all(&damaged).map_err(io_error("create", &damaged))?;
            let _renaming = lock(&names);
            match fs::rename(&path, damaged.join(digest.to_string())) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(io_error("set aside", &path)(error))
                }
                _ => Ok(()),
            }
        })
        .await
    }

    /// Unfinished uploads go with their writers, and those of an earlier process at the start.
    async fn sweep(&self, _: Timestamp) -> Result<(), ArtifactError> {
        Ok(())
    }

    fn is_shared(&self) -> bool {
        false
    }
}

#[derive(Debug)]
struct Partial {
    dir: PathBuf,
    names: Arc<Mutex<()>>,
    path: PathBuf,
    /// Absent once it is in place.
    file: Option<File>,
}

impl Partial {
    fn file(&mut self) -> &mut File {
        self.file.as_mut().expect("present until in place")
    }

    fn place(mut self, digest: Digest) -> Result<(), ArtifactError> {
        let target = self.dir.join(digest.to_string());
        let synced = self.file().sync_all();
        synced.map_err(io_error("sync", &self.path))?;
        {
            let _placing = lock(&self.names);
            fs::rename(&self.path, &target).map_err(io_error("rename to", &target))?;
        }
        self.file = None;
        sync_directory(&self.dir)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if self.file.is_some() {
            // A full disk should not stay full because of us. Best effort: the next start sweeps
            // what stays.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Empty after a write failed.
#[derive(Debug)]
struct Writer(Option<Partial>);

impl Writer {
    fn take(&mut self) -> Result<Partial, ArtifactError> {
        self.0.take().ok_or_else(|| ArtifactError::Io {
            action: "go on with",
            path: PathBuf::from("an upload"),
            source: io::Error::other("an earlier write failed"),
        })
    }
}

#[async_trait]
impl StoreWriter for Writer {
    async fn write(&mut self, data: Bytes) -> Result<(), ArtifactError> {
        let mut partial = self.take()?;
        let written = blocking(move || match partial.file().write_all(&data) {
            Ok(()) => Ok(partial),
            Err(error) => Err(io_error("write", &partial.path)(error)),
        });
        self.0 = Some(written.await?);
        Ok(())
    }

    /// File, name and directory are synced when this returns.
    async fn finish(mut self: Box<Self>, digest: Digest) -> Result<(), ArtifactError> {
        let partial = self.take()?;
        blocking(move || partial.place(digest)).await
    }
}

fn sync_directory(path: &Path) -> Result<(), ArtifactError> {
    // A relative path's parent may be the empty one.
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let synced = File::open(path).and_then(|dir| dir.sync_all());
    synced.map_err(io_error("sync", path))
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

    async fn write(store: &FileStore, bytes: &'static [u8]) -> Box<dyn StoreWriter> {
        let mut writer = store.writer().await.unwrap();
        writer.write(Bytes::from_static(bytes)).await.unwrap();
        writer
    }

    fn names(dir: PathBuf) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[tokio::test]
    async fn what_does_not_get_its_name_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::open(dir.path().join("artifacts")).unwrap();
        let partials = || names(store.dir.join(PARTIAL));
        let writer = write(&store, b"half").await;
        assert_eq!(partials().len(), 1);
        drop(writer);
        assert_eq!(partials().len(), 0);

        let digest = Digest::of(b"bytes");
        fs::create_dir(store.path(digest)).unwrap();
        let error = write(&store, b"bytes").await.finish(digest).await;
        assert!(matches!(error, Err(ArtifactError::Io { .. })));
        assert_eq!(partials().len(), 0);
    }

    #[tokio::test]
    async fn leftovers_are_swept_at_the_start_and_the_damaged_are_kept_apart() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::open(dir.path().join("artifacts")).unwrap();
        let digest = Digest::of(b"right");
        write(&store, b"right").await.finish(digest).await.unwrap();
        fs::write(store.path(digest), b"wrong").unwrap();
        store.set_aside(digest).await.unwrap();
        store.set_aside(digest).await.unwrap();
        assert!(!store.contains(digest).await.unwrap());
        fs::write(store.dir.join(PARTIAL).join("9"), b"left over").unwrap();

        let again = FileStore::open(store.dir.clone()).unwrap();
        assert_eq!(names(again.dir.join(PARTIAL)), [""; 0]);
        assert_eq!(names(again.dir.join(DAMAGED)), [digest.to_string()]);
        assert_eq!(again.list().await.unwrap(), []);
    }
}
