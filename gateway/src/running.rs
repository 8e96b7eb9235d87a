//! A request inside an instance, and its answer on the way back.
//!
//! Whatever happens to the caller, the slot stays taken until the instance has ended the
//! invocation or the deadline has passed: aborted requests cannot be used to overfill or to
//! destroy warm instances.

use std::{
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::AsyncWriteExt,
    task::JoinHandle,
    time::{Instant, Sleep, sleep_until, timeout, timeout_at},
};

use crate::{
    admission::Slot,
    body::{BUFFERED_MAX, Cut, Failed, InBody},
    deadline,
    demand::Presence,
    frames::{self, Frame, WANTED, kind},
    local::Local,
    upstream::{Broken, Conn, Sender},
};

/// How long a pump may take to notice that its client has gone.
const PUMP_GRACE: Duration = Duration::from_secs(1);

type Pumped = (Sender, Result<(), Failed>);

#[derive(Debug)]
struct Inner {
    conn: Conn,
    slot: Slot,
    presence: Presence,
    pump: Option<JoinHandle<Pumped>>,
    /// Both sides agree on where the next invocation begins.
    clean: bool,
}

#[derive(Debug)]
pub(crate) struct Running {
    local: Rc<Local>,
    pub(crate) request: Rc<str>,
    pub(crate) deadline: Instant,
    /// `None` once the invocation has ended, one way or the other.
    inner: Option<Inner>,
}

impl Running {
    pub(crate) fn new(
        local: Rc<Local>,
        request: Rc<str>,
        deadline: Instant,
        conn: Conn,
        slot: Slot,
        presence: Presence,
    ) -> Self {
        let inner = Inner {
            conn,
            slot,
            presence,
            pump: None,
            clean: true,
        };
        Self {
            local,
            request,
            deadline,
            inner: Some(inner),
        }
    }

    fn inner(&mut self) -> &mut Inner {
        self.inner
            .as_mut()
            .expect("nobody asks after the invocation has ended")
    }

    /// Begins to send a body of unknown end; runs beside the answer.
    pub(crate) fn pump(&mut self, first: Bytes, rest: InBody) {
        let limits = &self.local.shared.config.limits;
        let (limit, idle) = (limits.body_max, limits.body_idle_timeout);
        let inner = self.inner();
        if let Some(write) = inner.conn.write.take() {
            inner.pump = Some(tokio::task::spawn_local(pump(
                first, rest, write, limit, idle,
            )));
        }
    }

    /// The next frame, or why the client's body failed meanwhile.
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Result<Frame, Broken>, Failed>> {
        let inner = self.inner();
        if let Some(pump) = &mut inner.pump
            && let Poll::Ready(ended) = Pin::new(pump).poll(cx)
        {
            inner.pump = None;
            match ended {
                Ok((write, Ok(()))) => inner.conn.write = Some(write),
                Ok((write, Err(failed))) => {
                    inner.conn.write = Some(write);
                    inner.clean = false;
                    return Poll::Ready(Err(failed));
                }
                // The instance stopped reading, or the thread ends; its answer may still come.
                Err(_) => inner.clean = false,
            }
        }
        inner.conn.poll_frame(cx).map(Ok)
    }

    /// The next frame, `None` when the deadline passes before it.
    pub(crate) async fn frame(&mut self) -> Option<Result<Result<Frame, Broken>, Failed>> {
        std::future::poll_fn(|cx| match self.poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(Some(frame)),
            Poll::Pending => {
                let deadline = self.deadline;
                let passed = self.inner().conn.poll_deadline(deadline, cx);
                passed.map(|()| None)
            }
        })
        .await
    }

    pub(crate) fn buffered(&mut self) -> Result<Option<Frame>, frames::Violation> {
        self.inner().conn.buffered()
    }

    /// The instance has ended the invocation with a frame of these flags. The connection is kept when
    /// nothing of it is left.
    pub(crate) fn finish(&mut self, flags: u8) -> Option<Presence> {
        let Inner {
            conn,
            slot,
            presence,
            pump,
            clean,
        } = self.inner.take()?;
        slot.instance.answered();
        if flags & WANTED != 0
            && let Some(pause) = slot.instance.wanted()
        {
            dispatch_after(&slot, pause);
        }
        if let Some(pump) = pump {
            // The answer ended before the request did; what is still to come has no reader.
            pump.abort();
        } else if clean {
            self.local.pool.borrow_mut().put(&slot.instance, conn);
        }
        Some(presence)
    }

    /// The instance said BUSY: nothing was consumed. Gives back what another attempt needs.
    pub(crate) fn refused(&mut self) -> Option<Presence> {
        let Inner {
            conn,
            slot,
            presence,
            clean,
            ..
        } = self.inner.take()?;
        let pause = slot.instance.busy();
        self.local.shared.metrics.busy.increment(1);
        if clean {
            self.local.pool.borrow_mut().put(&slot.instance, conn);
        }
        dispatch_after(&slot, pause);
        Some(presence)
    }

    /// The connection broke: the instance has died or does not keep the contract.
    pub(crate) fn broke(&mut self) {
        if let Some(inner) = self.inner.take() {
            self.local
                .pool
                .borrow_mut()
                .drop_instance(&inner.slot.instance);
        }
    }

    /// The deadline has passed: stops what runs. Ends when that is done.
    pub(crate) fn expire(&mut self) -> Option<JoinHandle<()>> {
        let Inner {
            slot,
            presence,
            pump,
            ..
        } = self.inner.take()?;
        if let Some(pump) = pump {
            pump.abort();
        }
        self.local.pool.borrow_mut().drop_instance(&slot.instance);
        let shared = self.local.shared.clone();
        let stop = deadline::stop(shared.clone(), slot, presence, self.request.to_string());
        Some(shared.control.spawn(stop))
    }

    /// Whether an agent of another machine is in between.
    pub(crate) fn is_relayed(&self) -> bool {
        self.inner
            .as_ref()
            .is_some_and(|inner| inner.conn.is_relayed())
    }

    pub(crate) fn slot(&self) -> Option<&Slot> {
        self.inner.as_ref().map(|inner| &inner.slot)
    }
}

/// Once an instance has cooled down there may be someone waiting for it.
pub(crate) fn dispatch_after(slot: &Slot, pause: Duration) {
    let function = Arc::clone(&slot.function);
    tokio::task::spawn_local(async move {
        tokio::time::sleep(pause).await;
        function.dispatch();
        function.changed.notify_one();
    });
}

impl Drop for Running {
    /// The caller has gone. Tells the instance, and waits for it in the caller's place.
    fn drop(&mut self) {
        let Some(inner) = self.inner.take() else {
            return;
        };
        if self.local.closing.get() {
            return;
        }
        self.local.shared.metrics.clients_gone.increment(1);
        let left = Running {
            local: self.local.clone(),
            request: self.request.clone(),
            deadline: self.deadline,
            inner: None,
        };
        tokio::task::spawn_local(outlive(left, inner));
    }
}

async fn outlive(mut left: Running, mut inner: Inner) {
    if let Some(mut pump) = inner.pump.take() {
        match timeout(PUMP_GRACE, &mut pump).await {
            Ok(Ok((write, _))) => inner.conn.write = Some(write),
            // Blocked by an instance that does not read. Closing that half tells it, where one can
            // be closed alone; an agent in between is told by the end of the whole connection.
            _ => {
                pump.abort();
                if inner.conn.is_relayed() {
                    return;
                }
            }
        }
    }
    let mut cancel = BytesMut::with_capacity(8);
    frames::encode(&mut cancel, kind::CANCEL, 0, |_| ());
    // If it cannot be written, the instance is gone, which reading below will tell.
    let _ = timeout_at(left.deadline, inner.conn.send(&cancel)).await;
    let ended = timeout_at(left.deadline, async {
        loop {
            match inner.conn.frame().await {
                Ok(frame) if frame.kind == kind::FAULT || frame.kind == kind::BUSY => return,
                Ok(frame) if is_answer(frame.kind) && frame.ends() => return,
                Ok(_) => {}
                Err(_) => return,
            }
        }
    });
    if ended.await.is_err() {
        left.inner = Some(inner);
        if let Some(stopping) = left.expire() {
            // Ends by itself; its result is nobody's concern any more.
            drop(stopping);
        }
    }
    // The connection is not kept: whether the instance saw the CANCEL before its end is unknown.
}

fn is_answer(frame: u8) -> bool {
    frame == kind::RESPONSE || frame == kind::DATA
}

/// Sends a body piece by piece. The half comes back with how it ended; after a failure the
/// instance has been told to CANCEL.
async fn pump(
    first: Bytes,
    mut rest: InBody,
    mut write: Sender,
    limit: u64,
    idle: Duration,
) -> Pumped {
    let mut sent = 0u64;
    let mut next = Ok(Some(first).filter(|b| !b.is_empty()));
    if matches!(next, Ok(None)) {
        next = rest.piece_within(idle).await;
    }
    let failed = loop {
        match next {
            Ok(Some(piece)) => {
                sent += piece.len() as u64;
                if sent > limit {
                    break Failed::TooLarge;
                }
                if send_piece(&mut write, piece).await.is_err() {
                    // The instance has closed its end; its answer, if any, says why.
                    return (write, Ok(()));
                }
            }
            Ok(None) => {
                // As above: the answer tells.
                let _ = send_all(&mut write, &frames::data_header(0, true)).await;
                return (write, Ok(()));
            }
            Err(failed) => break failed,
        }
        next = rest.piece_within(idle).await;
    };
    let mut cancel = BytesMut::with_capacity(8);
    frames::encode(&mut cancel, kind::CANCEL, 0, |_| ());
    // As above.
    let _ = send_all(&mut write, &cancel).await;
    (write, Err(failed))
}

async fn send_all(write: &mut Sender, bytes: &[u8]) -> std::io::Result<()> {
    write.write_all(bytes).await?;
    write.flush().await
}

async fn send_piece(write: &mut Sender, mut piece: Bytes) -> std::io::Result<()> {
    while !piece.is_empty() {
        let chunk = piece.split_to(piece.len().min(BUFFERED_MAX));
        let header = frames::data_header(chunk.len(), false);
        write
            .write_all_buf(&mut header.as_slice().chain(chunk))
            .await?;
    }
    write.flush().await
}

/// The rest of an answer whose head has been sent.
#[derive(Debug)]
pub(crate) struct Streaming {
    running: Running,
    first: Option<Bytes>,
    /// What the function's content-length still promises.
    remaining: Option<u64>,
    deadline: Pin<Box<Sleep>>,
    ended: bool,
}

impl Streaming {
    pub(crate) fn new(running: Running, first: Option<Bytes>, length: Option<u64>) -> Self {
        let deadline = Box::pin(sleep_until(running.deadline));
        Self {
            running,
            first,
            remaining: length,
            deadline,
            ended: false,
        }
    }

    pub(crate) fn remaining(&self) -> Option<u64> {
        self.remaining
    }

    pub(crate) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Cut>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let piece = match self.first.take() {
            Some(first) => Ok(Some(first)),
            None => ready!(self.poll_next(cx)),
        };
        let outcome = piece.and_then(|piece| self.count(piece));
        if !matches!(outcome, Ok(Some(_))) {
            self.ended = true;
        }
        Poll::Ready(outcome.transpose())
    }

    /// Holds the function to its own content-length.
    fn count(&mut self, piece: Option<Bytes>) -> Result<Option<Bytes>, Cut> {
        if let Some(remaining) = &mut self.remaining {
            let got = piece.as_ref().map_or(0, |p| p.len() as u64);
            match remaining.checked_sub(got) {
                Some(left) if piece.is_some() || left == 0 => *remaining = left,
                Some(_) => return Err(Cut("shorter than its content-length")),
                None => return Err(Cut("longer than its content-length")),
            }
        }
        Ok(piece)
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Cut>> {
        if self.deadline.as_mut().poll(cx).is_ready() {
            // Runs on by itself; the caller's connection is cut meanwhile.
            drop(self.running.expire());
            return Poll::Ready(Err(Cut("the function ran past its timeout")));
        }
        loop {
            let frame = match ready!(self.running.poll_frame(cx)) {
                Ok(Ok(frame)) => frame,
                Ok(Err(error)) => {
                    tracing::debug!(request = &*self.running.request, %error, "an answer was cut");
                    self.running.broke();
                    return Poll::Ready(Err(Cut("the instance failed")));
                }
                Err(_) => return Poll::Ready(Err(Cut("the request's own body failed"))),
            };
            match frame.kind {
                kind::DATA if frame.ends() => {
                    self.running.finish(frame.flags);
                    // The piece is counted and passed on; the next poll finds the end.
                    if frame.payload.is_empty() {
                        return Poll::Ready(Ok(None));
                    }
                    return Poll::Ready(self.last(frame.payload));
                }
                kind::DATA if frame.payload.is_empty() => {}
                kind::DATA => return Poll::Ready(Ok(Some(frame.payload))),
                kind::FAULT => {
                    self.running.finish(frame.flags);
                    return Poll::Ready(Err(Cut("the handler raised")));
                }
                _ => {
                    self.running.broke();
                    return Poll::Ready(Err(Cut("the instance broke the contract")));
                }
            }
        }
    }

    /// The last piece: after it the promise has to be kept exactly.
    fn last(&mut self, piece: Bytes) -> Result<Option<Bytes>, Cut> {
        if self
            .remaining
            .is_some_and(|promised| promised > piece.len() as u64)
        {
            return Err(Cut("shorter than its content-length"));
        }
        self.ended = true;
        Ok(Some(piece))
    }
}
