//! Heads that hyper refuses by itself: not HTTP, or too large. It answers them with a bare status
//! and closes; here such an answer becomes a platform error like every other one, with its code,
//! its request id and a body.
//!
//! hyper has no hook for that, so the answer is exchanged on its way out. Nothing is guessed from
//! the bytes: what is written while no request of the connection is being answered, all before it
//! having been flushed, is hyper's own.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use http::{Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use uuid::Uuid;

use crate::{
    headers,
    metrics::count_error,
    respond::{Code, Error},
};

/// No request has arrived since the last answer was flushed.
const IDLE: u8 = 0;
const ANSWERING: u8 = 1;
/// The answer has been handed over and not yet been flushed.
const ENDED: u8 = 2;

/// In whose words a listener refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Words {
    Invocation,
    /// Problem details (RFC 9457): which facade was meant is not known without a head.
    Management,
}

/// Where a connection stands; used by one task, and so without an order of its own.
#[derive(Debug, Default)]
pub(crate) struct Stand(AtomicU8);

impl Stand {
    /// A request has arrived and is being answered while the result lives.
    pub(crate) fn answering(self: &Arc<Self>) -> Answering {
        self.0.store(ANSWERING, Relaxed);
        Answering(Arc::clone(self))
    }
}

#[derive(Debug)]
pub(crate) struct Answering(Arc<Stand>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.0.store(ENDED, Relaxed);
    }
}

/// An answer's body; dropped when the last of it is with hyper.
#[derive(Debug)]
pub(crate) struct Answered<B> {
    body: B,
    _answering: Answering,
}

impl<B> Answered<B> {
    pub(crate) fn new(body: B, answering: Answering) -> Self {
        Self {
            body,
            _answering: answering,
        }
    }
}

impl<B: Body + Unpin> Body for Answered<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection on which refusals of hyper's are exchanged.
#[derive(Debug)]
pub(crate) struct Connection<S> {
    stream: S,
    stand: Arc<Stand>,
    words: Words,
    /// Ours, in the place of what hyper believes to have written.
    instead: Bytes,
}

impl<S: AsyncWrite + Unpin> Connection<S> {
    pub(crate) fn new(stream: S, words: Words) -> (Self, Arc<Stand>) {
        let stand = Arc::<Stand>::default();
        let connection = Self {
            stream,
            stand: Arc::clone(&stand),
            words,
            instead: Bytes::new(),
        };
        (connection, stand)
    }

    fn poll_instead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.instead.is_empty() {
            let n = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.instead))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.instead.advance(n);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_instead(cx))?;
        if self.stand.0.load(Relaxed) == IDLE
            && let Some(code) = refused(bytes)
        {
            count_error(code);
            self.instead = answer(code, self.words, &Uuid::new_v4().simple().to_string());
            // What cannot be written at once is written by the flush.
            if let Poll::Ready(Err(error)) = self.poll_instead(cx) {
                return Poll::Ready(Err(error));
            }
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.stand.0.load(Relaxed) == IDLE || !self.instead.is_empty() {
            let first = pieces.iter().find(|piece| !piece.is_empty());
            return self.poll_write(cx, first.map_or(&[][..], |piece| piece));
        }
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_instead(cx))?;
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        if self.stand.0.load(Relaxed) == ENDED {
            self.stand.0.store(IDLE, Relaxed);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_instead(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

/// The code for a refusal of hyper's; `None` for anything that it may come to write instead of one.
fn refused(bytes: &[u8]) -> Option<Code> {
    let status = bytes
        .strip_prefix(b"HTTP/1.1 ")
        .filter(|_| bytes.ends_with(b"\r\n\r\n"))?
        .get(..3)?;
    match StatusCode::from_bytes(status).ok()? {
        StatusCode::BAD_REQUEST => Some(Code::BadRequest),
        // An address alone can be too long only where heads may be larger than it.
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE | StatusCode::URI_TOO_LONG => {
            Some(Code::HeadTooLarge)
        }
        _ => None,
    }
}

fn answer(code: Code, words: Words, request_id: &str) -> Bytes {
    let message = match code {
        Code::HeadTooLarge => "the request's head is too large or has too many headers",
        _ => "the request's head is not valid HTTP/1.1",
    };
    let mut response: Response<Bytes> = Error::new(code, message)
        .closing()
        .into_response(request_id);
    if words == Words::Management {
        let problem = json!({
            "type": "about:blank",
            "title": code.status().canonical_reason(),
            "status": code.status().as_u16(),
            "detail": message,
            "code": code.as_str(),
            "request_id": request_id,
        });
        *response.body_mut() = problem.to_string().into();
        response.headers_mut().insert(
            http::header::CONTENT_TYPE,
            http::HeaderValue::from_static("application/problem+json"),
        );
    }
    let mut bytes = BytesMut::new();
    let status = format!("HTTP/1.1 {}\r\n", response.status());
    bytes.extend_from_slice(status.as_bytes());
    let length = format!(
        "content-length: {}\r\n{}: {request_id}\r\n",
        response.body().len(),
        headers::REQUEST_ID
    );
    bytes.extend_from_slice(length.as_bytes());
    for (name, value) in response.headers() {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(response.body());
    bytes.freeze()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const BARE: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\ndate: x\r\n\r\n";

    async fn written(
        act: impl AsyncFnOnce(&mut Connection<tokio::io::DuplexStream>, Arc<Stand>),
    ) -> String {
        // Narrow, so that an exchanged answer does not fit at once.
        let (ours, mut theirs) = tokio::io::duplex(16);
        let reading = tokio::spawn(async move {
            let mut all = String::new();
            theirs.read_to_string(&mut all).await.unwrap();
            all
        });
        let (mut connection, stand) = Connection::new(ours, Words::Invocation);
        act(&mut connection, stand).await;
        connection.shutdown().await.unwrap();
        drop(connection);
        reading.await.unwrap()
    }

    #[tokio::test]
    async fn a_bare_refusal_is_exchanged_whole() {
        let all = written(async |connection, _| {
            assert_eq!(connection.write(BARE).await.unwrap(), BARE.len());
            connection.flush().await.unwrap();
        })
        .await;
        assert!(all.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{all}");
        assert!(
            all.contains("\r\nx-coracle-error: bad_request\r\n"),
            "{all}"
        );
        assert!(all.contains("\r\nx-request-id: "), "{all}");
        let (head, body) = all.split_once("\r\n\r\n").unwrap();
        assert!(
            head.contains(&format!("content-length: {}\r\n", body.len())),
            "{all}"
        );
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["code"], "bad_request");
    }

    /// Also where the last piece of a body, still to be flushed, reads like a refusal.
    #[tokio::test]
    async fn what_a_function_answers_is_left_alone() {
        let all = written(async |connection, stand| {
            let answering = stand.answering();
            connection.write_all(BARE).await.unwrap();
            connection.flush().await.unwrap();
            drop(answering);
            connection.write_all(BARE).await.unwrap();
            connection.flush().await.unwrap();
        })
        .await;
        assert_eq!(all.as_bytes(), [BARE, BARE].concat());
    }
}
