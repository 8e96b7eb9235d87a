//! Bodies on their way in and out.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use http_body::{Body, Frame, SizeHint};
use tokio::time::timeout;

use crate::{
    respond::{Code, Error},
    running::Streaming,
};

/// A request's body: from a client's connection, or whole from the API listener.
#[derive(Debug)]
pub(crate) enum InBody {
    Client(hyper::body::Incoming),
    Whole(Option<Bytes>),
}

/// Why no more of a request's body comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failed {
    /// The client went away, or broke the framing of its body.
    Client,
    /// It paused for too long.
    Idle,
    TooLarge,
}

impl Failed {
    pub(crate) fn into_error(self, limit: u64) -> Error {
        match self {
            Self::Client => Error::new(Code::BadRequest, "the request's body ended early"),
            Self::Idle => Error::new(Code::RequestTimeout, "the request's body stopped arriving"),
            Self::TooLarge => Error::new(
                Code::PayloadTooLarge,
                format!("the request's body is larger than {limit} bytes"),
            ),
        }
        .closing()
    }
}

impl InBody {
    /// The length, when the client said it.
    pub(crate) fn exact(&self) -> Option<u64> {
        match self {
            Self::Client(body) => body.size_hint().exact(),
            Self::Whole(bytes) => Some(bytes.as_ref().map_or(0, |b| b.len() as u64)),
        }
    }

    /// The next piece; `None` at the end. Trailers are dropped: functions have no way to see them.
    pub(crate) async fn piece(&mut self) -> Result<Option<Bytes>, Failed> {
        match self {
            Self::Whole(bytes) => Ok(bytes.take()),
            Self::Client(body) => loop {
                let frame = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await;
                match frame {
                    None => return Ok(None),
                    Some(Err(_)) => return Err(Failed::Client),
                    Some(Ok(frame)) => {
                        if let Ok(data) = frame.into_data()
                            && !data.is_empty()
                        {
                            return Ok(Some(data));
                        }
                    }
                }
            },
        }
    }

    pub(crate) async fn piece_within(&mut self, idle: Duration) -> Result<Option<Bytes>, Failed> {
        timeout(idle, self.piece())
            .await
            .unwrap_or(Err(Failed::Idle))
    }
}

/// A request's body as it is before a slot is taken.
#[derive(Debug)]
pub(crate) enum Prepared {
    /// All of it: may be sent any number of times, until an instance takes it.
    Buffered(Bytes),
    /// Sent only once the instance has said that it listens.
    Held { first: Bytes, rest: InBody },
}

/// Largest body that is read before a slot is taken, so that slow uploads hold no slot.
pub(crate) const BUFFERED_MAX: usize = 64 * 1024;

impl Prepared {
    /// Refuses what is too large by its own word; takes small bodies in.
    pub(crate) async fn read(mut body: InBody, limit: u64, idle: Duration) -> Result<Self, Failed> {
        match body.exact() {
            Some(0) => return Ok(Self::Buffered(Bytes::new())),
            Some(length) if length > limit => return Err(Failed::TooLarge),
            Some(length) if length > BUFFERED_MAX as u64 => {
                return Ok(Self::Held {
                    first: Bytes::new(),
                    rest: body,
                });
            }
            _ => {}
        }
        let known = body.exact().is_some();
        let mut first = Bytes::new();
        loop {
            let piece = if known {
                body.piece_within(idle).await?
            } else {
                // Of a body without a length only what is here already: its sender may wait for
                // the answer to begin before it goes on.
                match body.piece().now_or_never() {
                    Some(piece) => piece?,
                    None => return Ok(Self::Held { first, rest: body }),
                }
            };
            let Some(piece) = piece else {
                return Ok(Self::Buffered(first));
            };
            first = if first.is_empty() {
                piece
            } else {
                let mut joined = BytesMut::with_capacity(first.len() + piece.len());
                joined.extend_from_slice(&first);
                joined.extend_from_slice(&piece);
                joined.freeze()
            };
            if first.len() as u64 > limit {
                return Err(Failed::TooLarge);
            }
            if first.len() > BUFFERED_MAX {
                return Ok(Self::Held { first, rest: body });
            }
        }
    }
}

/// An answer's body.
#[derive(Debug)]
pub(crate) enum OutBody {
    Whole(Option<Bytes>),
    /// Of an answer that has none but says how long it would be (HEAD).
    Promised(u64),
    Streaming(Box<Streaming>),
}

impl From<Bytes> for OutBody {
    fn from(bytes: Bytes) -> Self {
        Self::Whole(Some(bytes).filter(|b| !b.is_empty()))
    }
}

/// The rest of an answer will not come. The client's connection is closed without the end of the
/// body, so that a part is never taken for the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the answer was cut: {0}")]
pub(crate) struct Cut(pub(crate) &'static str);

impl Body for OutBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Self::Promised(_) => Poll::Ready(None),
            Self::Streaming(stream) => stream
                .poll_piece(cx)
                .map(|piece| piece.map(|p| p.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64))
            }
            Self::Promised(length) => SizeHint::with_exact(*length),
            Self::Streaming(stream) => stream
                .remaining()
                .map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}
