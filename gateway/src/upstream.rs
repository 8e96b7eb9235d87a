//! Connections to instances: dialling, keeping, framing.
//!
//! A connection belongs to the thread that made it and serves one invocation at a time. This is
//! the seam where another transport (an agent's data port on another machine) goes.

use std::{
    collections::HashMap,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use coracle_model::InstanceId;
use futures_util::FutureExt;
use tokio::{
    io::{AsyncWriteExt, Interest},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::{Instant, Sleep, sleep_until},
};
use tokio_util::io::poll_read_buf;

use crate::{
    frames::{self, Frame, Violation},
    instance::Instance,
};

const READ_FIRST: usize = 8 * 1024;
/// Idle connections kept for one instance on one thread.
const KEPT: usize = 64;

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

#[derive(Debug)]
pub(crate) struct Conn {
    read: OwnedReadHalf,
    /// Away while a request's body is pumped.
    pub(crate) write: Option<OwnedWriteHalf>,
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
    pub(crate) async fn dial(instance: &Instance) -> io::Result<Self> {
        let (read, write) = UnixStream::connect(&instance.socket).await?.into_split();
        Ok(Self {
            read,
            write: Some(write),
            buffer: BytesMut::new(),
            kept: false,
            timer: None,
        })
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
        Ok(())
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
    fn is_fresh(&self) -> bool {
        self.write.is_some()
            && self.buffer.is_empty()
            && self.read.ready(Interest::READABLE).now_or_never().is_none()
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
        while let Some(conn) = kept.idle.pop() {
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

    /// Drops the connections of instances that are gone.
    pub(crate) fn sweep(&mut self) {
        self.0.retain(|_, kept| !kept.instance.is_gone());
    }
}
