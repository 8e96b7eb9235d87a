//! One fake instance: accepts connections, reads frames, echoes.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use coracle_model::{ExitReason, InstanceSpec};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::{mpsc, watch},
    task::JoinSet,
};

use super::{Command, Script};

const PAYLOAD_MAX: usize = 1 << 20;
const DATA_MAX: usize = 64 << 10;
/// A body is kept whole before it is echoed.
const BODY_MAX: usize = 64 << 20;

const INVOKE: u8 = 0x01;
const DATA: u8 = 0x02;
const CANCEL: u8 = 0x03;
const CLAIM: u8 = 0x10;
const PING: u8 = 0x11;
const RESPONSE: u8 = 0x81;
const RESPONSE_DATA: u8 = 0x82;
const BUSY: u8 = 0x83;
const ACCEPT: u8 = 0x85;
const FAILED: u8 = 0x91;
const PONG: u8 = 0x92;

const END: u8 = 1;
const HOLD: u8 = 2;
/// On the last frame of an answer: somebody was told BUSY meanwhile.
const WANTED: u8 = 4;

pub(super) struct Server {
    listener: UnixListener,
    shared: Arc<Shared>,
    ends: mpsc::UnboundedReceiver<ExitReason>,
}

struct Shared {
    spec: InstanceSpec,
    script: Script,
    /// Slots that are taken.
    busy: watch::Sender<u32>,
    /// Invocations that are not wholly answered. A slot is free again before the last piece of
    /// the answer leaves, so that whoever has it whole finds the slot free.
    open: watch::Sender<u32>,
    answered: AtomicU32,
    wanted: AtomicBool,
    end: mpsc::UnboundedSender<ExitReason>,
}

impl Server {
    pub(super) fn new(listener: UnixListener, spec: InstanceSpec, script: Script) -> Self {
        let (end, ends) = mpsc::unbounded_channel();
        let (busy, open) = (watch::Sender::new(0), watch::Sender::new(0));
        let shared = Shared {
            spec,
            script,
            busy,
            open,
            answered: AtomicU32::new(0),
            wanted: AtomicBool::new(false),
            end,
        };
        Self {
            listener,
            shared: Arc::new(shared),
            ends,
        }
    }

    /// Serves until it is told to end, or ends by its script.
    pub(super) async fn run(mut self, mut orders: watch::Receiver<Command>) -> ExitReason {
        // Dropped at the end, which cuts every connection as the death of a process does.
        let mut connections = JoinSet::new();
        let mut open = self.shared.open.subscribe();
        let stubborn = self.shared.script.stubborn;
        loop {
            let order = orders.borrow_and_update().clone();
            let until = match order {
                Command::Kill(reason) => return reason,
                Command::Finish { until } => Some(until),
                Command::Serve => None,
            };
            tokio::select! {
                accepted = self.listener.accept(), if until.is_none() => {
                    if let Ok((stream, _)) = accepted {
                        let shared = Arc::clone(&self.shared);
                        connections.spawn(async move { shared.converse(stream).await });
                    }
                }
                Some(_) = connections.join_next() => {}
                Some(reason) = self.ends.recv() => return reason,
                _ = open.wait_for(|n| *n == 0), if until.is_some() && !stubborn => {
                    return ExitReason::Stopped;
                }
                () = tokio::time::sleep_until(until.unwrap_or_else(tokio::time::Instant::now)),
                    if until.is_some() => return ExitReason::Stopped,
                changed = orders.changed() => {
                    if changed.is_err() {
                        return ExitReason::Stopped;
                    }
                }
            }
        }
    }
}

/// One more, until it is dropped.
struct Counted<'a>(&'a watch::Sender<u32>);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}

struct Frame {
    kind: u8,
    flags: u8,
    payload: Vec<u8>,
}

impl Shared {
    /// Ends with the connection; a protocol error closes it, as the contract says.
    async fn converse(&self, mut stream: UnixStream) -> io::Result<()> {
        loop {
            let frame = read(&mut stream).await?;
            match frame.kind {
                PING => write(&mut stream, PONG, 0, b"").await?,
                CLAIM => {
                    let why =
                        br#"{"type":"Claimed","message":"serves a function already","trace":[]}"#;
                    write(&mut stream, FAILED, 0, why).await?;
                }
                INVOKE => self.invoke(&mut stream, &frame).await?,
                CANCEL => {}
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
    }

    /// The flags of an answer's last frame.
    fn last(&self) -> u8 {
        if self.wanted.swap(false, Ordering::SeqCst) {
            END | WANTED
        } else {
            END
        }
    }

    fn take_slot(&self) -> Option<Counted<'_>> {
        let most = self.spec.concurrency.get();
        let taken = self.busy.send_if_modified(|n| {
            let free = *n < most;
            *n += u32::from(free);
            free
        });
        taken.then(|| Counted(&self.busy))
    }

    async fn invoke(&self, stream: &mut UnixStream, frame: &Frame) -> io::Result<()> {
        let whole = frame.flags & END != 0;
        let held = frame.flags & HOLD != 0;
        let Some(slot) = self.take_slot() else {
            self.wanted.store(true, Ordering::SeqCst);
            write(stream, BUSY, 0, b"").await?;
            if !whole && !held {
                self.body(stream).await?;
            }
            return Ok(());
        };
        self.open.send_modify(|n| *n += 1);
        let _open = Counted(&self.open);
        if held {
            write(stream, ACCEPT, 0, b"").await?;
        }
        let body = if whole {
            Vec::new()
        } else {
            self.body(stream).await?
        };
        if !self.script.latency.is_zero() {
            tokio::time::sleep(self.script.latency).await;
        }
        let number = self.answered.fetch_add(1, Ordering::SeqCst) + 1;
        if let Some((at, reason)) = &self.script.end_at
            && number >= *at
        {
            let reason = match reason {
                ExitReason::OutOfMemory { .. } => ExitReason::OutOfMemory {
                    limit_mib: self.spec.memory.mib(),
                },
                other => other.clone(),
            };
            // The receiver lives as long as the server, and with it this connection.
            let _ = self.end.send(reason);
            return std::future::pending().await;
        }
        self.answer(stream, &frame.payload, body, slot).await
    }

    /// Echoes the body, or answers with the instance's id where there is none.
    async fn answer(
        &self,
        stream: &mut UnixStream,
        head: &[u8],
        body: Vec<u8>,
        slot: Counted<'_>,
    ) -> io::Result<()> {
        let text = String::from_utf8_lossy(head.get(4..).unwrap_or_default()).into_owned();
        let mut parts = text.split('\0');
        let mut part = || parts.next().unwrap_or_default().to_owned();
        let (request, method, target) = (part(), part(), part());
        let id = self.spec.id.to_string();
        let headers = [
            ("content-type", "text/plain"),
            ("x-fake-instance", id.as_str()),
            ("x-fake-function", self.spec.function.as_str()),
            ("x-fake-request", request.as_str()),
            ("x-fake-method", method.as_str()),
            ("x-fake-target", target.as_str()),
        ];
        let mut payload = 200_u16.to_le_bytes().to_vec();
        let pairs: Vec<_> = headers
            .iter()
            .map(|(name, value)| format!("{name}\0{value}"))
            .collect();
        payload.extend_from_slice(pairs.join("\0").as_bytes());
        write(stream, RESPONSE, 0, &payload).await?;
        let body = if body.is_empty() {
            id.into_bytes()
        } else {
            body
        };
        let (most, last) = body.split_at((body.len() - 1) / DATA_MAX * DATA_MAX);
        for piece in most.chunks(DATA_MAX) {
            write(stream, RESPONSE_DATA, 0, piece).await?;
        }
        drop(slot);
        write(stream, RESPONSE_DATA, self.last(), last).await
    }

    async fn body(&self, stream: &mut UnixStream) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let frame = read(stream).await?;
            match frame.kind {
                DATA if body.len() + frame.payload.len() <= BODY_MAX => {
                    body.extend_from_slice(&frame.payload);
                    if frame.flags & END != 0 {
                        return Ok(body);
                    }
                }
                CANCEL => return Ok(body),
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
    }
}

async fn read(stream: &mut UnixStream) -> io::Result<Frame> {
    let length = usize::try_from(stream.read_u32_le().await?).unwrap_or(usize::MAX);
    let kind = stream.read_u8().await?;
    let flags = stream.read_u8().await?;
    stream.read_u16_le().await?;
    if length > PAYLOAD_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await?;
    Ok(Frame {
        kind,
        flags,
        payload,
    })
}

async fn write(stream: &mut UnixStream, kind: u8, flags: u8, payload: &[u8]) -> io::Result<()> {
    let length = u32::try_from(payload.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    let mut frame = Vec::with_capacity(8 + payload.len());
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&[kind, flags, 0, 0]);
    frame.extend_from_slice(payload);
    stream.write_all(&frame).await
}
