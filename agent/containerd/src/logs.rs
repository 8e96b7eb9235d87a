//! What a container prints: from two FIFOs to the log sink, or raw to whoever runs a build.
//!
//! The FIFOs are opened for reading *and* writing: reading then never ends when nobody writes, and
//! opening never waits. The container's shim process holds both ends too, so that a function that
//! prints while no agent runs fills the pipe and then waits; it is not killed by SIGPIPE.
//!
//! Everything is bounded: the length of a line, lines and bytes of one container in a second
//! (beyond it lines are dropped, and said to be), and how fast a container is read at all.

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use coracle_base::Clock;
use coracle_driver::LogSink;
use coracle_model::{FunctionId, InstanceId, LogLineRef, LogStream};
use tokio::{net::unix::pipe, sync::mpsc, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

/// Opens the FIFOs of every container directory below `run_dir`, for as long as the result is held.
///
/// A shim that was making a container when its reader was killed hangs in opening the FIFOs, and
/// with it whatever is asked about the other containers of a shared shim; containerd then leaves
/// those out of its answers after two seconds each.
pub(crate) fn hold_open(run_dir: &Path) -> Vec<pipe::Receiver> {
    let directories = std::fs::read_dir(run_dir).into_iter().flatten().flatten();
    directories
        .filter(|entry| crate::labels::is_id(&entry.file_name().to_string_lossy()))
        .flat_map(|entry| [STDOUT, STDERR].map(|name| entry.path().join(name)))
        .filter_map(|fifo| {
            pipe::OpenOptions::new()
                .read_write(true)
                .open_receiver(fifo)
                .ok()
        })
        .collect()
}

/// Names of the FIFOs in a container's directory.
pub(crate) const STDOUT: &str = "out";
pub(crate) const STDERR: &str = "err";

const LINE_MAX: usize = 16 * 1024;
const REQUEST_MAX: usize = 128;
const CHUNK: usize = 64 * 1024;
/// What a shim said before it had a function, kept for the error when it does not start.
const TAIL_MAX: usize = 2048;
/// A pause after each chunk while lines are dropped: about 6 MB/s are read then.
const SLOW: Duration = Duration::from_millis(10);

/// Whose lines these are, once it is known.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner {
    pub(crate) function: FunctionId,
    pub(crate) instance: InstanceId,
}

/// Where output goes.
#[derive(Debug, Clone)]
pub(crate) enum Consumer {
    Sink {
        sink: Arc<dyn LogSink>,
        clock: Arc<dyn Clock>,
    },
    Raw(mpsc::Sender<Vec<u8>>),
}

/// The two readers of one container.
#[derive(Debug)]
pub(crate) struct Output {
    shared: Arc<Shared>,
    readers: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    consumer: Consumer,
    owner: OnceLock<Owner>,
    tail: Mutex<Vec<u8>>,
    ended: CancellationToken,
}

impl Output {
    /// Starts to read the FIFOs in `dir`.
    pub(crate) fn start(dir: &Path, consumer: Consumer) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            consumer,
            owner: OnceLock::new(),
            tail: Mutex::default(),
            ended: CancellationToken::new(),
        });
        let mut readers = Vec::new();
        for (name, stream) in [(STDOUT, LogStream::Stdout), (STDERR, LogStream::Stderr)] {
            let fifo = pipe::OpenOptions::new()
                .read_write(true)
                .open_receiver(dir.join(name))?;
            let reader = Reader {
                fifo,
                stream,
                shared: Arc::clone(&shared),
                lines: Lines::default(),
                budget: Budget::default(),
                started: Instant::now(),
            };
            readers.push(tokio::spawn(reader.run()));
        }
        Ok(Self {
            shared,
            readers: Mutex::new(readers),
        })
    }

    /// From now on lines are this instance's. Only the first owner counts.
    pub(crate) fn belongs_to(&self, owner: Owner) {
        let _ = self.shared.owner.set(owner);
    }

    /// The last words of a container without an owner, in one line.
    pub(crate) fn last_words(&self) -> String {
        let tail = self
            .shared
            .tail
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&tail);
        text.lines()
            .map(str::trim)
            .filter(|l| !l.is_empty())
            .collect::<Vec<_>>()
            .join("; ")
    }

    /// Reads what is still in the pipes, when the container has ended, and returns.
    pub(crate) async fn finish(&self) {
        self.shared.ended.cancel();
        let readers =
            std::mem::take(&mut *self.readers.lock().unwrap_or_else(PoisonError::into_inner));
        for mut reader in readers {
            // A build's consumer may have stopped reading.
            if tokio::time::timeout(Duration::from_secs(5), &mut reader)
                .await
                .is_err()
            {
                reader.abort();
            }
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.shared.ended.cancel();
    }
}

struct Reader {
    fifo: pipe::Receiver,
    stream: LogStream,
    shared: Arc<Shared>,
    lines: Lines,
    budget: Budget,
    started: Instant,
}

impl Reader {
    async fn run(mut self) {
        let ended = self.shared.ended.clone();
        let mut chunk = vec![0; CHUNK];
        loop {
            match self.fifo.try_read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => self.take(&chunk[..count]).await,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if ended.is_cancelled() {
                        break;
                    }
                    tokio::select! {
                        () = ended.cancelled() => {}
                        ready = self.fifo.readable() => if ready.is_err() { break },
                    }
                }
                Err(_) => break,
            }
        }
        self.lines.flush(&mut |request, message| {
            emit(&self.shared, self.stream, request, message);
        });
        self.report_dropped();
    }

    async fn take(&mut self, bytes: &[u8]) {
        if let Consumer::Raw(sender) = &self.shared.consumer {
            // A closed channel means that nobody wants to see it.
            let _ = sender.send(bytes.to_vec()).await;
            return;
        }
        if self.shared.owner.get().is_none() {
            let mut tail = self
                .shared
                .tail
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            tail.extend_from_slice(bytes);
            let excess = tail.len().saturating_sub(TAIL_MAX);
            tail.drain(..excess);
        }
        let now = self.started.elapsed();
        let (shared, stream, budget) = (&self.shared, self.stream, &mut self.budget);
        let was_dropping = budget.dropped > 0;
        self.lines.push(bytes, &mut |request, message| {
            if budget.allows(now, message.len()) {
                if let Some(count) = budget.take_dropped() {
                    emit_dropped(shared, count);
                }
                emit(shared, stream, request, message);
            }
        });
        if was_dropping && self.budget.dropped > 0 {
            tokio::time::sleep(SLOW).await;
        }
    }

    fn report_dropped(&mut self) {
        if let Some(count) = self.budget.take_dropped() {
            emit_dropped(&self.shared, count);
        }
    }
}

fn emit_dropped(shared: &Shared, count: u64) {
    emit(
        shared,
        LogStream::Platform,
        None,
        &format!("dropped {count} lines: too much output"),
    );
}

fn emit(shared: &Shared, stream: LogStream, request: Option<&str>, message: &str) {
    let Consumer::Sink { sink, clock } = &shared.consumer else {
        return;
    };
    let Some(owner) = shared.owner.get() else {
        tracing::debug!(message, "a shim without a function said");
        return;
    };
    let at_nanos = clock.now_nanos();
    sink.line(
        owner.function,
        LogLineRef {
            at_nanos,
            instance: owner.instance,
            stream,
            request,
            message,
        },
    );
}

/// Splits bytes into lines, and the request's id off their front.
#[derive(Debug, Default)]
struct Lines {
    partial: Vec<u8>,
    /// The request of a line of which a first piece was already given out.
    continued: Option<String>,
}

impl Lines {
    fn push(&mut self, mut bytes: &[u8], give: &mut impl FnMut(Option<&str>, &str)) {
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            let (line, rest) = bytes.split_at(end);
            self.append(line, give);
            self.end_line(give);
            bytes = &rest[1..];
        }
        self.append(bytes, give);
    }

    fn append(&mut self, mut bytes: &[u8], give: &mut impl FnMut(Option<&str>, &str)) {
        while self.partial.len() + bytes.len() > LINE_MAX {
            let (fits, rest) = bytes.split_at(LINE_MAX - self.partial.len());
            self.partial.extend_from_slice(fits);
            self.give(give);
            bytes = rest;
        }
        self.partial.extend_from_slice(bytes);
    }

    /// Gives out a piece of a line that goes on.
    fn give(&mut self, give: &mut impl FnMut(Option<&str>, &str)) {
        let piece = std::mem::take(&mut self.partial);
        let (request, message) = match &self.continued {
            Some(request) => (Some(request.clone()), piece.as_slice()),
            None => parse(&piece),
        };
        give(request.as_deref(), &String::from_utf8_lossy(message));
        self.continued = request;
    }

    fn end_line(&mut self, give: &mut impl FnMut(Option<&str>, &str)) {
        if self.partial.last() == Some(&b'\r') {
            self.partial.pop();
        }
        self.give(give);
        self.continued = None;
    }

    /// Gives out an unfinished last line.
    fn flush(&mut self, give: &mut impl FnMut(Option<&str>, &str)) {
        if !self.partial.is_empty() {
            self.end_line(give);
        }
    }
}

/// `\x01id\x02message`, or a message alone. A function could write such a tag itself; it can only
/// name requests within its own log.
fn parse(line: &[u8]) -> (Option<String>, &[u8]) {
    let tagged = || {
        let rest = line.strip_prefix(b"\x01")?;
        let end = rest.iter().take(REQUEST_MAX).position(|b| *b == 2)?;
        let (id, message) = rest.split_at(end);
        Some((std::str::from_utf8(id).ok()?.to_owned(), &message[1..]))
    };
    tagged().map_or((None, line), |(id, message)| (Some(id), message))
}

/// How much one stream of one container may log: a burst, then a rate.
#[derive(Debug)]
struct Budget {
    lines: f64,
    bytes: f64,
    at: Duration,
    dropped: u64,
}

impl Budget {
    const LINES: f64 = 2000.0;
    const LINES_PER_SECOND: f64 = 1000.0;
    const BYTES: f64 = 2_097_152.0;
    const BYTES_PER_SECOND: f64 = 524_288.0;

    fn allows(&mut self, now: Duration, bytes: usize) -> bool {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.at = now;
        self.lines = (self.lines + passed * Self::LINES_PER_SECOND).min(Self::LINES);
        self.bytes = (self.bytes + passed * Self::BYTES_PER_SECOND).min(Self::BYTES);
        let cost = f64::from(u32::try_from(bytes).unwrap_or(u32::MAX));
        // Once dropping, go on until a tenth of the burst is back, so that the notes about it do
        // not become the flood.
        let low = if self.dropped > 0 { 0.1 } else { 0.0 };
        if self.lines < 1.0 + low * Self::LINES || self.bytes < cost + low * Self::BYTES {
            self.dropped += 1;
            return false;
        }
        self.lines -= 1.0;
        self.bytes -= cost;
        true
    }

    fn take_dropped(&mut self) -> Option<u64> {
        match std::mem::take(&mut self.dropped) {
            0 => None,
            count => Some(count),
        }
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            lines: Self::LINES,
            bytes: Self::BYTES,
            at: Duration::ZERO,
            dropped: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(pieces: &[&[u8]]) -> Vec<(Option<String>, String)> {
        let mut lines = Lines::default();
        let mut out = Vec::new();
        let mut give = |request: Option<&str>, message: &str| {
            out.push((request.map(str::to_owned), message.to_owned()));
        };
        for piece in pieces {
            lines.push(piece, &mut give);
        }
        lines.flush(&mut give);
        out
    }

    #[test]
    fn lines_survive_any_cut_of_the_stream() {
        let text = b"plain\n\x01r1\x02tagged\r\n\n\x01broken\nlast";
        let tag =
            |request: Option<&str>, message: &str| (request.map(str::to_owned), message.to_owned());
        let whole = split(&[text]);
        let expected = [
            tag(None, "plain"),
            tag(Some("r1"), "tagged"),
            tag(None, ""),
            tag(None, "\u{1}broken"),
            tag(None, "last"),
        ];
        assert_eq!(whole, expected);
        let bytes: Vec<_> = text.chunks(1).collect();
        assert_eq!(split(&bytes), expected);
    }

    #[test]
    fn an_endless_line_comes_in_pieces_of_one_request() {
        let mut text = b"\x01r\x02".to_vec();
        text.extend(std::iter::repeat_n(b'x', 2 * LINE_MAX));
        text.extend(b"\nnext\n");
        let got = split(&[&text]);
        assert_eq!(got.len(), 4);
        assert!(
            got[..3]
                .iter()
                .all(|(request, _)| request.as_deref() == Some("r"))
        );
        assert_eq!(
            got[..3].iter().map(|(_, m)| m.len()).sum::<usize>(),
            2 * LINE_MAX
        );
        assert_eq!(got[3], (None, "next".to_owned()));
    }

    #[test]
    fn a_flood_is_cut_and_counted() {
        let mut budget = Budget::default();
        let passed = (0..10_000)
            .filter(|_| budget.allows(Duration::ZERO, 10))
            .count();
        assert_eq!(passed, 2000);
        assert_eq!(budget.dropped, 8000);
        assert!(
            budget.allows(Duration::from_secs(1), 10),
            "a rate comes back"
        );
        assert_eq!(budget.take_dropped(), Some(8000));
        assert_eq!(budget.take_dropped(), None);
    }
}
