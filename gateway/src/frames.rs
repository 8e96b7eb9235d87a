//! The frames that shims speak (`runtimes/CONTRACT.md`): an 8-byte header, then a payload.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::headers;

const HEADER: usize = 8;
/// Longest payload that the contract allows; a longer one ends the connection.
const PAYLOAD_MAX: usize = 1 << 20;

pub(crate) const END: u8 = 1;
/// On the last frame of an answer: the instance turned somebody away meanwhile.
pub(crate) const WANTED: u8 = 4;
pub(crate) const HOLD: u8 = 2;

pub(crate) mod kind {
    pub(crate) const INVOKE: u8 = 0x01;
    pub(crate) const REQUEST_DATA: u8 = 0x02;
    pub(crate) const CANCEL: u8 = 0x03;
    pub(crate) const RESPONSE: u8 = 0x81;
    pub(crate) const DATA: u8 = 0x82;
    pub(crate) const BUSY: u8 = 0x83;
    pub(crate) const FAULT: u8 = 0x84;
    pub(crate) const ACCEPT: u8 = 0x85;
}

/// The instance broke the contract.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Violation(pub(crate) &'static str);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) payload: Bytes,
}

impl Frame {
    pub(crate) fn ends(&self) -> bool {
        self.flags & END != 0
    }
}

/// Takes the first whole frame out of `buf`. `None`: more bytes are needed.
pub(crate) fn decode(buf: &mut BytesMut) -> Result<Option<Frame>, Violation> {
    if buf.len() < HEADER {
        return Ok(None);
    }
    let length = u32::from_le_bytes([buf[0], buf[1], buf[2], buf[3]]) as usize;
    if length > PAYLOAD_MAX {
        return Err(Violation("a frame is longer than 1 MiB"));
    }
    if buf.len() < HEADER + length {
        return Ok(None);
    }
    let (kind, flags) = (buf[4], buf[5]);
    buf.advance(HEADER);
    Ok(Some(Frame {
        kind,
        flags,
        payload: buf.split_to(length).freeze(),
    }))
}

/// Writes a frame whose payload `fill` appends.
pub(crate) fn encode(buf: &mut BytesMut, kind: u8, flags: u8, fill: impl FnOnce(&mut BytesMut)) {
    let start = buf.len();
    buf.put_u32_le(0);
    buf.put_u8(kind);
    buf.put_u8(flags);
    buf.put_u16_le(0);
    fill(buf);
    let length = u32::try_from(buf.len() - start - HEADER)
        .expect("heads and body pieces are bounded far below 4 GiB");
    buf[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

/// The header of a DATA frame whose payload is written apart from it.
pub(crate) fn data_header(length: usize, last: bool) -> [u8; HEADER] {
    let length = u32::try_from(length).expect("body pieces are bounded far below 4 GiB");
    let [a, b, c, d] = length.to_le_bytes();
    [a, b, c, d, kind::REQUEST_DATA, u8::from(last), 0, 0]
}

/// Splits a RESPONSE, leaving out what functions may not set.
pub(crate) fn parse_response(
    mut payload: Bytes,
) -> Result<(StatusCode, HeaderMap, Option<u64>), Violation> {
    if payload.len() < 2 {
        return Err(Violation("an answer has no status"));
    }
    let status = StatusCode::from_u16(payload.get_u16_le())
        .map_err(|_| Violation("an answer's status is not between 100 and 999"))?;
    if status.is_informational() || status.as_u16() > 599 {
        return Err(Violation("an answer's status is not between 200 and 599"));
    }
    let mut map = HeaderMap::with_capacity(6);
    let mut length: Option<u64> = None;
    let mut connection = false;
    while !payload.is_empty() {
        let name = take_field(&mut payload);
        if payload.is_empty() && name.is_empty() {
            break;
        }
        let value = take_field(&mut payload);
        let name = HeaderName::from_bytes(&name)
            .map_err(|_| Violation("an answer has a malformed header name"))?;
        let value = HeaderValue::from_maybe_shared(value)
            .map_err(|_| Violation("an answer has a malformed header value"))?;
        match headers::of_response(&name) {
            headers::Fate::Keep => {
                map.append(name, value);
            }
            headers::Fate::Drop => {}
            headers::Fate::Connection => {
                connection = true;
                map.append(name, value);
            }
            headers::Fate::Length => {
                let said = value.to_str().ok().and_then(|s| s.parse().ok());
                let said = said.ok_or(Violation("an answer's content-length is not a number"))?;
                if length.replace(said).is_some_and(|before| before != said) {
                    return Err(Violation("an answer has two different content-lengths"));
                }
            }
        }
    }
    if connection {
        headers::strip_connection(&mut map);
    }
    Ok((status, map, length))
}

/// Up to the next NUL or the end; a NUL after the last value is allowed.
fn take_field(payload: &mut Bytes) -> Bytes {
    match payload.iter().position(|b| *b == 0) {
        Some(at) => {
            let field = payload.split_to(at);
            payload.advance(1);
            field
        }
        None => payload.split_to(payload.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(status: u16, fields: &str) -> Bytes {
        let mut bytes = BytesMut::new();
        bytes.put_u16_le(status);
        bytes.put_slice(fields.as_bytes());
        bytes.freeze()
    }

    #[test]
    fn frames_survive_being_cut_anywhere() {
        let mut whole = BytesMut::new();
        encode(&mut whole, kind::DATA, END, |b| b.put_slice(b"hello"));
        encode(&mut whole, kind::BUSY, 0, |_| ());
        for cut in 0..whole.len() {
            let mut buf = BytesMut::from(&whole[..cut]);
            let mut frames = Vec::new();
            while let Some(frame) = decode(&mut buf).unwrap() {
                frames.push(frame);
            }
            buf.extend_from_slice(&whole[cut..]);
            while let Some(frame) = decode(&mut buf).unwrap() {
                frames.push(frame);
            }
            assert_eq!(frames.len(), 2, "cut at {cut}");
            assert_eq!(&frames[0].payload[..], b"hello");
            assert!(frames[0].ends() && !frames[1].ends());
        }
    }

    #[test]
    fn an_oversized_frame_is_refused_before_it_is_buffered() {
        let mut buf = BytesMut::from(&[1, 0, 16, 0, kind::DATA, 0, 0, 0][..]);
        assert!(decode(&mut buf).is_err());
    }

    #[test]
    fn answers_lose_what_functions_may_not_set() {
        let fields = "content-type\0text/plain\0x-coracle-error\0timeout\0connection\0x-hop\0\
                      x-hop\x001\0set-cookie\0a=1\0set-cookie\0b=2\0server-timing\0x\0\
                      transfer-encoding\0chunked\0x-request-id\0forged\0content-length\x005";
        let (status, map, length) = parse_response(response(201, fields)).unwrap();
        assert_eq!((status.as_u16(), length), (201, Some(5)));
        let mut names: Vec<_> = map.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-type", "set-cookie"]);
        assert_eq!(map.get_all("set-cookie").iter().count(), 2);
    }

    #[test]
    fn broken_answers_are_violations_and_never_panics() {
        for (status, fields) in [
            (100, ""),
            (600, ""),
            (0, ""),
            (200, "bad name\0x"),
            (200, "a\0b\nc"),
            (200, "content-length\0-1"),
            (200, "content-length\x001\0content-length\x002"),
        ] {
            assert!(
                parse_response(response(status, fields)).is_err(),
                "{status} {fields:?}"
            );
        }
        assert!(parse_response(Bytes::from_static(b"\xc8")).is_err());
    }
}
