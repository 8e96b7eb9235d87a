//! The door to functions' output: lines in, tails and followers out.

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    thread::JoinHandle,
};

use coracle_base::Clock;
use coracle_driver::LogSink;
use coracle_model::{FunctionId, InstanceId, LogLine, LogLineRef, LogStream};
use tokio::sync::{broadcast, watch};

use super::{LogLimits, files::Files, queue::Queue, queue::Taken};
use crate::metrics;

/// Lines that go to followers in one piece.
const PIECE_LINES: usize = 64;
/// Pieces that a follower may be behind before it loses some.
const PIECES: usize = 64;

pub(super) type Piece = Arc<[LogLine]>;

#[derive(Debug)]
pub struct LogStore {
    pub(super) shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) folder: PathBuf,
    limits: LogLimits,
    clock: Arc<dyn Clock>,
    pub(super) queue: Queue,
    /// [`Queue::pushed`] of what is on the disk.
    pub(super) written: watch::Sender<u64>,
    /// Held while a batch is written and handed to followers, so that whoever subscribes under it
    /// sees every line either in the file or in the subscription.
    pub(super) followers: Mutex<BTreeMap<FunctionId, broadcast::Sender<Piece>>>,
}

impl LogStore {
    /// Opens the folder and starts the writing thread. Blocks on the disk.
    pub fn open(folder: PathBuf, limits: LogLimits, clock: Arc<dyn Clock>) -> io::Result<Self> {
        let files = Files::open(folder.clone(), limits.clone())?;
        metrics::log_bytes(files.total());
        let queue = Queue::new(limits.queue_bytes);
        let (written, followers) = (watch::Sender::new(0), Mutex::default());
        let shared = Arc::new(Shared {
            folder,
            limits,
            clock,
            queue,
            written,
            followers,
        });
        let for_writer = Arc::clone(&shared);
        let writer = std::thread::Builder::new()
            .name("function-logs".to_owned())
            .spawn(move || for_writer.write(files))?;
        Ok(Self {
            shared,
            writer: Some(writer),
        })
    }

    /// Our own words about an instance.
    pub fn platform(&self, function: FunctionId, instance: InstanceId, message: &str) {
        self.line(
            function,
            LogLineRef {
                at_nanos: self.shared.clock.now_nanos(),
                instance,
                stream: LogStream::Platform,
                request: None,
                message,
            },
        );
    }
}

impl LogSink for LogStore {
    fn line(&self, function: FunctionId, line: LogLineRef<'_>) {
        let most = self.shared.limits.message_bytes;
        let message = if line.message.len() > most {
            format!(
                "{}…",
                &line.message[..line.message.floor_char_boundary(most)]
            )
        } else {
            line.message.to_owned()
        };
        let line = LogLine {
            at_nanos: line.at_nanos,
            instance: line.instance,
            stream: line.stream,
            request: line.request.map(str::to_owned),
            message,
        };
        self.shared.queue.push(function, line);
    }
}

impl Drop for LogStore {
    /// Returns when every line that came in is written.
    fn drop(&mut self) {
        self.shared.queue.close();
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the thread that writes functions' logs crashed");
        }
        // Ends those who follow.
        self.shared.followers().clear();
    }
}

impl Shared {
    pub(super) fn followers(
        &self,
    ) -> MutexGuard<'_, BTreeMap<FunctionId, broadcast::Sender<Piece>>> {
        self.followers
            .lock()
            .expect("never poisoned: no panic while held")
    }

    /// For whoever subscribes, with [`Shared::followers`] held.
    pub(super) fn subscribe(
        followers: &mut BTreeMap<FunctionId, broadcast::Sender<Piece>>,
        function: FunctionId,
    ) -> broadcast::Receiver<Piece> {
        followers
            .entry(function)
            .or_insert_with(|| broadcast::Sender::new(PIECES))
            .subscribe()
    }

    fn write(&self, mut files: Files) {
        while let Some(Taken { batches, pushed }) = self.queue.take() {
            for (function, batch) in batches {
                let mut lines = batch.lines;
                if batch.dropped > 0 {
                    metrics::log_lines_dropped(batch.dropped);
                    lines.push(self.lost(lines.last(), batch.dropped));
                }
                self.write_batch(&mut files, function, lines);
            }
            metrics::log_bytes(files.total());
            self.written.send_replace(pushed);
        }
    }

    fn lost(&self, before: Option<&LogLine>, count: u64) -> LogLine {
        LogLine {
            at_nanos: self.clock.now_nanos(),
            // Which instances' they were is not kept; the last one heard is the likeliest.
            instance: before.map_or(InstanceId(uuid::Uuid::nil()), |line| line.instance),
            stream: LogStream::Platform,
            request: None,
            message: format!("{count} lines were lost: they came faster than the disk takes them"),
        }
    }

    fn write_batch(&self, files: &mut Files, function: FunctionId, lines: Vec<LogLine>) {
        let mut followers = self.followers();
        match files.append(function, &lines) {
            Ok(()) => metrics::log_lines(lines.len() as u64),
            Err(error) => {
                metrics::log_lines_dropped(lines.len() as u64);
                tracing::warn!(%function, %error, "cannot write a function's log");
            }
        }
        let Some(sender) = followers.get(&function) else {
            return;
        };
        // Errors mean that nobody follows any more.
        if lines
            .chunks(PIECE_LINES)
            .any(|piece| sender.send(piece.into()).is_err())
        {
            followers.remove(&function);
        }
    }
}
