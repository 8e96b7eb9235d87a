//! Connections to instances: dialling, keeping, framing.
//!
//! A connection belongs to the thread that made it and serves one invocation at a time. On the
//! instance's own machine it is a Unix socket; elsewhere the agent there relays it
//! (`coracle_proto::relay`), and the instance cannot tell the difference.

use std::{
    collections::HashMap,
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::BytesMut;
use coracle_base::{Address, Conn as Wire};
use coracle_model::InstanceId;
use coracle_proto::relay::{self, Answer};
use futures_util::FutureExt;
use tokio::{
    io::{
        AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, ReadBuf, ReadHalf, WriteHalf,
    },
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::{Instant, Sleep, sleep_until, timeout},
};
use tokio_util::io::poll_read_buf;

use crate::{
    frames::{self, Frame, Violation},
    instance::Instance,
    nodes::{Nodes, Way},
};

const READ_FIRST: usize = 8 * 1024;
/// Idle connections kept for one instance on one thread.
const KEPT: usize = 64;
/// A node that does not answer within this is left for another one.
const RELAY_WITHIN: Duration = Duration::from_secs(2);

/// Why no frame came.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("the instance closed the connection")]
    Closed,
    #[error("the connection to the instance failed")]
    Io(#[source] io::Error),
    #[error("the instance broke the contract")]
    Violation(#[from] Violation),
}

/// Why there is no connection. Nothing of a request has left.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreached {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("no address of its node is known")]
    Nowhere,
    #[error("its node has no such instance")]
    Unknown,
    #[error("it takes nothing new any more")]
    Ending,
    #[error("its node relays as much as it may")]
    Full,
}

/// The sending half of a connection.
#[derive(Debug)]
pub(crate) enum Sender {
    Unix(OwnedWriteHalf),
    Relayed(WriteHalf<Wire>),
}

#[derive(Debug)]
enum Receiver {
    Unix(OwnedReadHalf),
    Relayed(ReadHalf<Wire>),
}

#[derive(Debug)]
pub(crate) struct Conn {
    read: Receiver,
    /// Away while a request's body is pumped.
    pub(crate) write: Option<Sender>,
    buffer: BytesMut,
    /// It has served before, so the instance may have gone meanwhile.
    pub(crate) kept: bool,
    /// Kept from request to request: moving a timer on is a store, making one takes a lock.
    timer: Option<Pin<Box<Sleep>>>,
}

/// How much of what was to be sent has left, and why not all.
#[derive(Debug)]
pub(crate) struct NotSent {
    pub(crate) written: usize,
    pub(crate) error: io::Error,
}

impl Conn {
    pub(crate) async fn dial(instance: &Instance, nodes: &Nodes) -> Result<Self, Unreached> {
        let (read, write) = match nodes.way(instance.node).ok_or(Unreached::Nowhere)? {
            Way::Here => {
                let stream = UnixStream::connect(&instance.socket).await?;
                let (read, write) = stream.into_split();
                (Receiver::Unix(read), Sender::Unix(write))
            }
            Way::Relay(address) => {
                let opened = timeout(RELAY_WITHIN, open_relay(&address, instance.id));
                let wire = opened.await.map_err(io::Error::from)??;
                let (read, write) = tokio::io::split(wire);
                (Receiver::Relayed(read), Sender::Relayed(write))
            }
        };
        Ok(Self {
            read,
            write: Some(write),
            buffer: BytesMut::new(),
            kept: false,
            timer: None,
        })
    }

    /// Whether an agent of another machine is in between.
    pub(crate) fn is_relayed(&self) -> bool {
        matches!(self.read, Receiver::Relayed(_))
    }

    /// Sends all of `bytes`.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> Result<(), NotSent> {
        let mut written = 0;
        let Some(write) = &mut self.write else {
            return Err(NotSent {
                written,
                error: io::ErrorKind::BrokenPipe.into(),
            });
        };
        while written < bytes.len() {
            match write.write(&bytes[written..]).await {
                Ok(0) => {
                    return Err(NotSent {
                        written,
                        error: io::ErrorKind::WriteZero.into(),
                    });
                }
                Ok(n) => written += n,
                Err(error) => return Err(NotSent { written, error }),
            }
        }
        // What TLS still holds back may be anything of it.
        let flushed = write.flush().await;
        flushed.map_err(|error| NotSent { written, error })
    }

    /// The next frame if it is here already, without asking the system.
    pub(crate) fn buffered(&mut self) -> Result<Option<Frame>, Violation> {
        frames::decode(&mut self.buffer)
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, Broken>> {
        loop {
            if let Some(frame) = frames::decode(&mut self.buffer)? {
                return Poll::Ready(Ok(frame));
            }
            // A body piece is up to 64 KiB with its header; the buffer grows to what is on its way.
            self.buffer.reserve(READ_FIRST);
            let read = Pin::new(&mut self.read);
            match ready!(poll_read_buf(read, cx, &mut self.buffer)) {
                Ok(0) => return Poll::Ready(Err(Broken::Closed)),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(Broken::Io(error))),
            }
        }
    }

    /// Whether the deadline has passed.
    pub(crate) fn poll_deadline(&mut self, deadline: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if timer.deadline() != deadline {
            timer.as_mut().reset(deadline);
        }
        timer.as_mut().poll(cx)
    }

    pub(crate) async fn frame(&mut self) -> Result<Frame, Broken> {
        std::future::poll_fn(|cx| self.poll_frame(cx)).await
    }

    /// Idle and still open, as far as the last look at its readiness tells: no system call.
    fn is_fresh(&mut self) -> bool {
        self.write.is_some()
            && self.buffer.is_empty()
            && match &mut self.read {
                Receiver::Unix(read) => read.ready(Interest::READABLE).now_or_never().is_none(),
                Receiver::Relayed(read) => {
                    // Under TLS only reading tells bytes of its own from the end. Whoever reads
                    // next leaves a waker of its own.
                    let mut byte = [0];
                    let cx = &mut Context::from_waker(Waker::noop());
                    let read = Pin::new(read).poll_read(cx, &mut ReadBuf::new(&mut byte));
                    read.is_pending()
                }
            }
    }
}

async fn open_relay(address: &Address, instance: InstanceId) -> Result<Wire, Unreached> {
    let mut wire = address.connect().await?;
    wire.write_all(&relay::preamble(instance)).await?;
    wire.flush().await?;
    match Answer::from_byte(wire.read_u8().await?) {
        Answer::Open => Ok(wire),
        Answer::Unknown => Err(Unreached::Unknown),
        Answer::Ending => Err(Unreached::Ending),
        Answer::Full => Err(Unreached::Full),
    }
}

macro_rules! each_half {
    ($self:ident, $type:ident, $half:ident => $body:expr) => {
        match $self.get_mut() {
            $type::Unix($half) => $body,
            $type::Relayed($half) => $body,
        }
    };
}

impl AsyncRead for Receiver {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each_half!(self, Receiver, half => Pin::new(half).poll_read(cx, buf))
    }
}

impl AsyncWrite for Sender {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        each_half!(self, Sender, half => Pin::new(half).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each_half!(self, Sender, half => Pin::new(half).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Unix(half) => half.is_write_vectored(),
            Self::Relayed(half) => half.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each_half!(self, Sender, half => Pin::new(half).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each_half!(self, Sender, half => Pin::new(half).poll_shutdown(cx))
    }
}

/// One thread's idle connections, last in first out: the others can go cold and be dropped.
#[derive(Debug, Default)]
pub(crate) struct Pool(HashMap<InstanceId, Kept>);

#[derive(Debug)]
struct Kept {
    instance: Arc<Instance>,
    idle: Vec<Conn>,
}

impl Pool {
    pub(crate) fn take(&mut self, instance: &Instance) -> Option<Conn> {
        let kept = self.0.get_mut(&instance.id)?;
        while let Some(mut conn) = kept.idle.pop() {
            if conn.is_fresh() {
                return Some(conn);
            }
        }
        None
    }

    pub(crate) fn put(&mut self, instance: &Arc<Instance>, mut conn: Conn) {
        if instance.is_gone() || conn.write.is_none() || !conn.buffer.is_empty() {
            return;
        }
        conn.kept = true;
        let kept = self.0.entry(instance.id).or_insert_with(|| Kept {
            instance: instance.clone(),
            idle: Vec::new(),
        });
        if kept.idle.len() < KEPT {
            kept.idle.push(conn);
        }
    }

    /// The instance could not be written to: its other connections are no better.
    pub(crate) fn drop_instance(&mut self, instance: &Instance) {
        self.0.remove(&instance.id);
    }

    /// Drops the connections of instances that are gone, and those that the other end has closed.
    pub(crate) fn sweep(&mut self) {
        self.0.retain(|_, kept| {
            kept.idle.retain_mut(Conn::is_fresh);
            !kept.instance.is_gone() && !kept.idle.is_empty()
        });
    }
}
