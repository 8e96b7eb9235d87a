//! Reading a function's output back: the newest lines that match, and then those that come.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    sync::Arc,
    time::Duration,
};

use coracle_model::{FunctionId, InstanceId, LogLine};
use tokio::sync::broadcast;

use super::{
    LogStore,
    files::{NEW, OLD},
    store::{Piece, Shared},
};

/// Most lines of the past in one answer, whatever is asked for.
const TAIL_MAX: usize = 10_000;
/// Most text of the past in one answer.
const TAIL_BYTES: usize = 8 << 20;
const BLOCK: usize = 64 * 1024;
/// A line that has no end within this is damage.
const LINE_BYTES: usize = 1 << 20;
/// How long a reader waits for lines that are on their way to the disk.
const SETTLE: Duration = Duration::from_secs(2);

/// Which lines of a function are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    pub request: Option<String>,
    pub instance: Option<InstanceId>,
    /// Not before this time, in nanoseconds since the Unix epoch.
    pub since_nanos: u64,
}

impl Filter {
    pub fn matches(&self, line: &LogLine) -> bool {
        line.at_nanos >= self.since_nanos
            && self
                .instance
                .is_none_or(|instance| line.instance == instance)
            && self
                .request
                .as_ref()
                .is_none_or(|request| line.request.as_ref() == Some(request))
    }
}

#[derive(Debug, thiserror::Error)]
#[error("cannot read the log of function {function}")]
pub struct LogError {
    pub function: FunctionId,
    #[source]
    pub source: io::Error,
}

impl LogStore {
    /// The newest `count` lines that match, oldest first. Every line that came in before the call
    /// is considered, unless the disk is stuck.
    pub async fn tail(
        &self,
        function: FunctionId,
        count: usize,
        filter: &Filter,
    ) -> Result<Vec<LogLine>, LogError> {
        Ok(self.read(function, count, filter, false).await?.0)
    }

    /// The same, and all that comes after: no line is in both, and none in neither.
    pub async fn follow(
        &self,
        function: FunctionId,
        count: usize,
        filter: &Filter,
    ) -> Result<(Vec<LogLine>, Follow), LogError> {
        let (lines, pieces) = self.read(function, count, filter, true).await?;
        let pieces = pieces.expect("subscribed, as was asked for");
        let shared = Arc::clone(&self.shared);
        Ok((
            lines,
            Follow {
                pieces: Some(pieces),
                filter: filter.clone(),
                function,
                shared,
            },
        ))
    }

    async fn read(
        &self,
        function: FunctionId,
        count: usize,
        filter: &Filter,
        follow: bool,
    ) -> Result<(Vec<LogLine>, Option<broadcast::Receiver<Piece>>), LogError> {
        let shared = &self.shared;
        let pushed = shared.queue.pushed();
        let mut written = shared.written.subscribe();
        // What is not written within this time is not there for the reader.
        let _ = tokio::time::timeout(SETTLE, written.wait_for(|n| *n >= pushed)).await;
        let (shared, filter) = (Arc::clone(shared), filter.clone());
        let count = count.min(TAIL_MAX);
        // On another thread, since the writer holds the lock while it waits for the disk.
        let reading = tokio::task::spawn_blocking(move || {
            let folder = shared.folder.join(function.to_string());
            let (files, pieces) = {
                let mut followers = shared.followers();
                let pieces = follow.then(|| Shared::subscribe(&mut followers, function));
                // Open files with their lengths are a snapshot: lines are only ever appended, and
                // a file that is turned over meanwhile stays readable.
                (
                    [snapshot(&folder.join(NEW))?, snapshot(&folder.join(OLD))?],
                    pieces,
                )
            };
            let lines = if count == 0 {
                Vec::new()
            } else {
                newest(files, count, &filter)?
            };
            Ok((lines, pieces))
        });
        let read = reading
            .await
            .unwrap_or_else(|crashed| Err(io::Error::other(crashed)));
        read.map_err(|source| LogError { function, source })
    }
}

fn snapshot(path: &std::path::Path) -> io::Result<Option<(File, u64)>> {
    match File::open(path) {
        Ok(file) => {
            let length = file.metadata()?.len();
            Ok(Some((file, length)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn newest(
    files: [Option<(File, u64)>; 2],
    count: usize,
    filter: &Filter,
) -> io::Result<Vec<LogLine>> {
    let (mut lines, mut bytes) = (Vec::new(), 0);
    for (file, length) in files.into_iter().flatten() {
        backwards(file, length, |text| {
            // Damage, such as a line cut off by a crash, is passed over.
            if let Ok(line) = serde_json::from_slice::<LogLine>(text)
                && filter.matches(&line)
            {
                bytes += text.len();
                lines.push(line);
            }
            lines.len() < count && bytes < TAIL_BYTES
        })?;
        if lines.len() >= count || bytes >= TAIL_BYTES {
            break;
        }
    }
    lines.reverse();
    Ok(lines)
}

/// Hands out the lines of a file from its end until `take` has enough.
pub(super) fn backwards(
    mut file: File,
    length: u64,
    mut take: impl FnMut(&[u8]) -> bool,
) -> io::Result<()> {
    let mut start = length;
    // What was read of the line that begins before `start`.
    let mut rest: Vec<u8> = Vec::new();
    while start > 0 {
        let size = start.min(BLOCK as u64);
        start -= size;
        file.seek(SeekFrom::Start(start))?;
        let mut block = vec![0; usize::try_from(size).expect("at most a block")];
        file.read_exact(&mut block)?;
        block.append(&mut rest);
        let mut end = block.len();
        while let Some(newline) = block[..end].iter().rposition(|b| *b == b'\n') {
            if newline + 1 < end && !take(&block[newline + 1..end]) {
                return Ok(());
            }
            end = newline;
        }
        block.truncate(end);
        rest = block;
        if rest.len() > LINE_BYTES {
            rest.clear();
        }
    }
    if !rest.is_empty() {
        take(&rest);
    }
    Ok(())
}

/// Lines as they come.
#[derive(Debug)]
pub struct Follow {
    /// Present until it is dropped.
    pieces: Option<broadcast::Receiver<Piece>>,
    filter: Filter,
    function: FunctionId,
    shared: Arc<Shared>,
}

impl Follow {
    /// The next lines that match, never none, and how many pieces were missed before them because
    /// the follower was too slow. `None` when the store is closed.
    pub async fn next(&mut self) -> Option<(Vec<LogLine>, u64)> {
        let pieces = self.pieces.as_mut()?;
        let mut missed = 0;
        loop {
            match pieces.recv().await {
                Ok(piece) => {
                    let lines: Vec<_> = piece
                        .iter()
                        .filter(|line| self.filter.matches(line))
                        .cloned()
                        .collect();
                    if !lines.is_empty() {
                        return Some((lines, missed));
                    }
                }
                Err(broadcast::error::RecvError::Lagged(pieces)) => missed += pieces,
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        self.pieces = None;
        // While the writer has the lock it is left to it: it drops what nobody listens to.
        let Ok(mut followers) = self.shared.followers.try_lock() else {
            return;
        };
        if followers
            .get(&self.function)
            .is_some_and(|sender| sender.receiver_count() == 0)
        {
            followers.remove(&self.function);
        }
    }
}
