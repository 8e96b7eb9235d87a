//! One upstream behind every proxy: answers `ok` on Unix sockets, over HTTP/1.1 for the peers and
//! over the frames of runtimes/CONTRACT.md for ours. Both do as little as they can.

use std::{io, path::PathBuf};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    task::LocalSet,
};

const HTTP_ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nok";

const INVOKE: u8 = 0x01;
const PING: u8 = 0x11;
const RESPONSE: u8 = 0x81;
const DATA_BACK: u8 = 0x82;
const PONG: u8 = 0x92;
const END: u8 = 1;

pub(crate) fn serve(http: PathBuf, frames: PathBuf) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, async {
        let http = UnixListener::bind(http)?;
        let frames = UnixListener::bind(frames)?;
        loop {
            tokio::select! {
                accepted = http.accept() => {
                    tokio::task::spawn_local(speak_http(accepted?.0));
                }
                accepted = frames.accept() => {
                    tokio::task::spawn_local(speak_frames(accepted?.0));
                }
            }
        }
    })
}

async fn speak_http(mut stream: UnixStream) {
    let mut buffer = Vec::with_capacity(16 * 1024);
    while let Ok(1..) = stream.read_buf(&mut buffer).await {
        // wrk's requests have no body: each one ends with an empty line.
        while let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            buffer.drain(..end + 4);
            if stream.write_all(HTTP_ANSWER).await.is_err() {
                return;
            }
        }
    }
}

fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("small").to_le_bytes();
    [&length[..], &[kind, flags, 0, 0], payload].concat()
}

async fn speak_frames(mut stream: UnixStream) {
    let mut head = 200_u16.to_le_bytes().to_vec();
    head.extend_from_slice(b"content-type\0text/plain\0content-length\x002");
    let answer = [frame(RESPONSE, 0, &head), frame(DATA_BACK, END, b"ok")].concat();
    let pong = frame(PONG, 0, b"");
    let mut buffer = Vec::with_capacity(16 * 1024);
    while let Ok(1..) = stream.read_buf(&mut buffer).await {
        while buffer.len() >= 8 {
            let length = u32::from_le_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]) as usize;
            if buffer.len() < 8 + length {
                break;
            }
            let (kind, flags) = (buffer[4], buffer[5]);
            buffer.drain(..8 + length);
            // A body's last frame ends the request as much as a head without one.
            let reply = match kind {
                PING => Some(&pong),
                INVOKE | 0x02 if flags & END != 0 => Some(&answer),
                _ => None,
            };
            if let Some(reply) = reply
                && stream.write_all(reply).await.is_err()
            {
                return;
            }
        }
    }
}
