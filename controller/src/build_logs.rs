//! What builds printed: one file a revision, appended while the build runs, bounded. The leader
//! writes it; the others copy it when it is finished.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::PathBuf,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use coracle_model::RevisionId;
use tokio::{sync::watch, task::spawn_blocking};

const CHUNK: u64 = 64 * 1024;
const CUT: &[u8] = b"\n[the log is longer than what is kept; the rest is left out]\n";

#[derive(Debug, Clone)]
pub(crate) struct BuildLogs {
    dir: PathBuf,
    max_bytes: u64,
    /// Lengths of the logs that grow now, for those who follow. An entry lives while a build does.
    growing: Arc<Mutex<BTreeMap<RevisionId, watch::Sender<u64>>>>,
}

impl BuildLogs {
    /// Blocks on the disk.
    pub(crate) fn open(dir: PathBuf, max_bytes: u64) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        Ok(Self {
            dir,
            max_bytes,
            growing: Arc::default(),
        })
    }

    /// Begins anew: another attempt replaces what the one before printed.
    pub(crate) async fn begin(&self, revision: RevisionId) -> io::Result<()> {
        let path = self.growing_path(revision);
        blocking(move || File::create(path).map(drop)).await?;
        self.sender(revision).send_replace(0);
        Ok(())
    }

    pub(crate) async fn append(&self, revision: RevisionId, data: Bytes) -> io::Result<()> {
        let (path, max) = (self.growing_path(revision), self.max_bytes);
        let length = blocking(move || {
            let mut file = OpenOptions::new().append(true).create(true).open(path)?;
            let length = file.metadata()?.len();
            if length >= max {
                return Ok(length);
            }
            let room = usize::try_from(max - length).unwrap_or(usize::MAX);
            file.write_all(&data[..data.len().min(room)])?;
            if data.len() >= room {
                file.write_all(CUT)?;
            }
            Ok(length + data.len() as u64)
        })
        .await?;
        self.sender(revision).send_replace(length);
        Ok(())
    }

    /// Nothing more will come, so others may copy it; those who follow see the end by the
    /// revision's stage.
    pub(crate) async fn end(&self, revision: RevisionId) -> io::Result<()> {
        self.growing().remove(&revision);
        let (from, to) = (self.growing_path(revision), self.path(revision));
        blocking(move || match fs::rename(from, to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        })
        .await
    }

    /// A finished log from elsewhere. It takes the place of what grew here before somebody else
    /// led.
    pub(crate) async fn keep(&self, revision: RevisionId, log: Vec<u8>) -> io::Result<()> {
        let (growing, path) = (self.growing_path(revision), self.path(revision));
        let copying = path.with_extension("copy");
        blocking(move || {
            fs::write(&copying, log)?;
            fs::rename(&copying, &path)?;
            match fs::remove_file(growing) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        })
        .await
    }

    /// What its leader finished, or a copy of that.
    pub(crate) async fn is_finished(&self, revision: RevisionId) -> io::Result<bool> {
        let path = self.path(revision);
        blocking(move || path.try_exists()).await
    }

    pub(crate) async fn is_growing(&self, revision: RevisionId) -> io::Result<bool> {
        let path = self.growing_path(revision);
        blocking(move || path.try_exists()).await
    }

    /// At most [`CHUNK`] bytes from this offset on; empty at the end, and where there is no log.
    pub(crate) async fn read(&self, revision: RevisionId, offset: u64) -> io::Result<Bytes> {
        // In this order: what grew may have been finished in between.
        let paths = [self.growing_path(revision), self.path(revision)];
        blocking(move || {
            for path in paths {
                let mut file = match File::open(path) {
                    Ok(file) => file,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                };
                file.seek(SeekFrom::Start(offset))?;
                let mut piece = Vec::new();
                file.take(CHUNK).read_to_end(&mut piece)?;
                return Ok(piece.into());
            }
            Ok(Bytes::new())
        })
        .await
    }

    /// Changes with every append. Ends (an error on `changed`) with the build.
    pub(crate) fn follow(&self, revision: RevisionId) -> watch::Receiver<u64> {
        self.sender(revision).subscribe()
    }

    /// Removes the logs of revisions that are no longer kept.
    pub(crate) async fn retain(
        &self,
        keep: impl Fn(RevisionId) -> bool + Send + 'static,
    ) -> io::Result<usize> {
        let dir = self.dir.clone();
        self.growing().retain(|revision, _| keep(*revision));
        blocking(move || {
            let mut removed = 0;
            for entry in fs::read_dir(dir)? {
                let entry = entry?;
                let name = entry.file_name();
                let revision = name
                    .to_str()
                    .and_then(|n| n.rsplit_once('.')?.0.parse().ok());
                if revision.is_some_and(|revision| !keep(revision)) {
                    fs::remove_file(entry.path())?;
                    removed += 1;
                }
            }
            Ok(removed)
        })
        .await
    }

    fn sender(&self, revision: RevisionId) -> watch::Sender<u64> {
        self.growing()
            .entry(revision)
            .or_insert_with(|| watch::channel(0).0)
            .clone()
    }

    fn growing(&self) -> std::sync::MutexGuard<'_, BTreeMap<RevisionId, watch::Sender<u64>>> {
        self.growing
            .lock()
            .expect("never poisoned: no panic while held")
    }

    fn path(&self, revision: RevisionId) -> PathBuf {
        self.dir.join(format!("{revision}.log"))
    }

    fn growing_path(&self, revision: RevisionId) -> PathBuf {
        self.dir.join(format!("{revision}.growing"))
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use coracle_model::FunctionId;

    use super::*;

    fn revision(number: u32) -> RevisionId {
        RevisionId {
            function: FunctionId(uuid::Uuid::from_u128(1)),
            number,
        }
    }

    #[tokio::test]
    async fn appended_bounded_and_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let logs = BuildLogs::open(dir.path().into(), 10).unwrap();
        assert_eq!(logs.read(revision(1), 0).await.unwrap(), Bytes::new());
        let mut follow = logs.follow(revision(1));
        logs.append(revision(1), Bytes::from_static(b"hello "))
            .await
            .unwrap();
        follow.changed().await.unwrap();
        assert_eq!(logs.read(revision(1), 1).await.unwrap(), &b"ello "[..]);
        for _ in 0..3 {
            logs.append(revision(1), Bytes::from_static(b"world"))
                .await
                .unwrap();
        }
        let all = logs.read(revision(1), 0).await.unwrap();
        assert_eq!(all, [&b"hello worl"[..], CUT].concat());
        logs.begin(revision(1)).await.unwrap();
        assert_eq!(logs.read(revision(1), 0).await.unwrap(), Bytes::new());
    }

    #[tokio::test]
    async fn finished_once_and_a_copy_takes_the_place_of_what_another_leader_left() {
        let dir = tempfile::tempdir().unwrap();
        let logs = BuildLogs::open(dir.path().into(), 100).unwrap();
        let grow = async |text: &'static [u8]| {
            logs.begin(revision(1)).await.unwrap();
            let text = Bytes::from_static(text);
            logs.append(revision(1), text).await.unwrap();
        };
        grow(b"half").await;
        assert!(!logs.is_finished(revision(1)).await.unwrap());
        logs.keep(revision(1), b"whole".to_vec()).await.unwrap();
        assert!(logs.is_finished(revision(1)).await.unwrap());
        assert!(!logs.is_growing(revision(1)).await.unwrap());
        assert_eq!(logs.read(revision(1), 0).await.unwrap(), &b"whole"[..]);
        grow(b"again").await;
        assert_eq!(logs.read(revision(1), 0).await.unwrap(), &b"again"[..]);
        for _ in 0..2 {
            logs.end(revision(1)).await.unwrap();
            assert_eq!(logs.read(revision(1), 0).await.unwrap(), &b"again"[..]);
        }
        assert_eq!(logs.retain(|_| false).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn logs_of_revisions_that_are_gone_go_too() {
        let dir = tempfile::tempdir().unwrap();
        let logs = BuildLogs::open(dir.path().into(), 10).unwrap();
        for number in [1, 2] {
            logs.append(revision(number), Bytes::from_static(b"x"))
                .await
                .unwrap();
        }
        assert_eq!(logs.retain(|r| r.number == 2).await.unwrap(), 1);
        assert_eq!(logs.read(revision(1), 0).await.unwrap(), Bytes::new());
        assert_eq!(logs.read(revision(2), 0).await.unwrap(), &b"x"[..]);
    }
}
