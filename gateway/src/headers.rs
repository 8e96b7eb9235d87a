//! Which headers pass between clients and functions, and which the gateway sets itself.
//!
//! Names that begin with `x-coracle-` are the platform's: nobody else's pass in either direction.

use std::{fmt::Write as _, net::IpAddr, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::instance::Birth;

pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(crate) const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
pub(crate) const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const CALL_ID: HeaderName = HeaderName::from_static("x-call-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const PLATFORM_PREFIX: &str = "x-coracle-";
const REQUEST_ID_MAX: usize = 128;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Keep,
    Drop,
    /// Hop by hop itself, and names others that are.
    Connection,
    Length,
}

fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// What becomes of a function's header.
pub(crate) fn of_response(name: &HeaderName) -> Fate {
    match name.as_str() {
        "connection" => Fate::Connection,
        "content-length" => Fate::Length,
        // Ours to say: a function cannot forge the id under which its logs are found.
        "x-request-id" | "server-timing" => Fate::Drop,
        n if is_hop_by_hop(n) || n.starts_with(PLATFORM_PREFIX) => Fate::Drop,
        _ => Fate::Keep,
    }
}

/// Removes `Connection` and every header that it lists.
pub(crate) fn strip_connection(map: &mut HeaderMap) {
    let listed: Vec<HeaderName> = map
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|token| HeaderName::try_from(token.trim()).ok())
        .collect();
    map.remove(header::CONNECTION);
    for name in listed {
        map.remove(name);
    }
}

/// Where a request came from, as the function is told.
#[derive(Debug)]
pub(crate) struct Origin {
    peer: IpAddr,
    https: bool,
    trust: bool,
    /// The three fields as they are when nobody before us said anything: the same for every
    /// request of a connection.
    alone: Box<[u8]>,
}

impl Origin {
    /// `https`: the client sees it so, because the public URL says so. `trust`: keep what a proxy
    /// in front of us said, and append to it.
    pub(crate) fn new(peer: IpAddr, https: bool, trust: bool) -> Self {
        let mut origin = Self {
            peer,
            https,
            trust,
            alone: Box::default(),
        };
        let mut alone = BytesMut::new();
        write_forwarded(&mut alone, &HeaderMap::new(), &origin);
        origin.alone = alone[..].into();
        origin
    }
}

/// Appends the request's headers as the function gets them: NUL, name, NUL, value, …
///
/// `hide_key` leaves out the key that opened the door, so that user code does not get to see it.
pub(crate) fn write_request(
    buf: &mut BytesMut,
    map: &HeaderMap,
    origin: &Origin,
    request_id: &str,
    fresh_trace: Option<&[u8]>,
    hide_key: bool,
) {
    let lists = map.contains_key(header::CONNECTION);
    let listed = |name: &HeaderName| {
        lists
            && map
                .get_all(header::CONNECTION)
                .iter()
                .filter_map(|value| value.to_str().ok())
                .flat_map(|value| value.split(','))
                .any(|token| token.trim().eq_ignore_ascii_case(name.as_str()))
    };
    for (name, value) in map {
        let text = name.as_str();
        let ours = match text {
            "connection" | "x-request-id" | "server-timing" | "expect" => true,
            "x-call-id" => false,
            "traceparent" => fresh_trace.is_some(),
            "x-api-key" => hide_key,
            "forwarded" | "x-forwarded-for" | "x-forwarded-proto" => true,
            // Cannot be checked against anything, so only a trusted proxy may say them.
            "x-forwarded-host" | "x-forwarded-port" | "x-real-ip" => !origin.trust,
            n => is_hop_by_hop(n) || n.starts_with(PLATFORM_PREFIX),
        };
        if ours || listed(name) {
            continue;
        }
        put(buf, text, value.as_bytes());
    }
    put(buf, "x-request-id", request_id.as_bytes());
    if let Some(trace) = fresh_trace {
        put(buf, TRACEPARENT.as_str(), trace);
    }
    if origin.trust {
        write_forwarded(buf, map, origin);
    } else {
        buf.put_slice(&origin.alone);
    }
}

fn put(buf: &mut BytesMut, name: &str, value: &[u8]) {
    buf.put_u8(0);
    buf.put_slice(name.as_bytes());
    buf.put_u8(0);
    buf.put_slice(value);
}

fn write_forwarded(buf: &mut BytesMut, map: &HeaderMap, origin: &Origin) {
    let proto = if origin.https { "https" } else { "http" };
    let mut text = String::with_capacity(96);
    let before = |text: &mut String, name: &str| {
        if origin.trust {
            for value in map.get_all(name).iter().filter_map(|v| v.to_str().ok()) {
                text.push_str(value);
                text.push_str(", ");
            }
        }
    };
    before(&mut text, "x-forwarded-for");
    // Writing to a String cannot fail.
    let _ = write!(text, "{}", origin.peer);
    put(buf, "x-forwarded-for", text.as_bytes());

    text.clear();
    before(&mut text, "forwarded");
    let _ = match origin.peer {
        IpAddr::V4(ip) => write!(text, "for={ip};proto={proto}"),
        IpAddr::V6(ip) => write!(text, "for=\"[{ip}]\";proto={proto}"),
    };
    put(buf, "forwarded", text.as_bytes());

    match map.get("x-forwarded-proto").filter(|_| origin.trust) {
        Some(said) => put(buf, "x-forwarded-proto", said.as_bytes()),
        None => put(buf, "x-forwarded-proto", proto.as_bytes()),
    }
}

/// The caller's own id when it is fit to stand in logs and file names, else nothing.
pub(crate) fn accept_request_id(map: &HeaderMap) -> Option<&HeaderValue> {
    let value = map.get(REQUEST_ID).or_else(|| map.get(CALL_ID))?;
    let ok = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':');
    let bytes = value.as_bytes();
    (!bytes.is_empty() && bytes.len() <= REQUEST_ID_MAX && bytes.iter().all(ok)).then_some(value)
}

/// Whether the caller sent a W3C trace context that can be continued.
pub(crate) fn has_trace(map: &HeaderMap) -> bool {
    let Some(value) = map.get(TRACEPARENT) else {
        return false;
    };
    let bytes = value.as_bytes();
    let hex = |range: std::ops::Range<usize>| {
        bytes.get(range).is_some_and(|part| {
            part.iter()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b))
        })
    };
    let nonzero = |range: std::ops::Range<usize>| {
        bytes
            .get(range)
            .is_some_and(|part| part.iter().any(|b| *b != b'0'))
    };
    bytes.len() >= 55
        && (bytes.len() == 55 || bytes[55] == b'-' && !bytes.starts_with(b"00"))
        && !bytes.starts_with(b"ff")
        && [2, 35, 52].iter().all(|at| bytes[*at] == b'-')
        && hex(0..2)
        && hex(3..35)
        && hex(36..52)
        && hex(53..55)
        && nonzero(3..35)
        && nonzero(36..52)
}

/// Where the time of a request went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Phases {
    pub(crate) queue: Duration,
    pub(crate) schedule: Option<Duration>,
    pub(crate) start: Option<Duration>,
    /// What the instance was made from.
    pub(crate) from: &'static str,
    pub(crate) init: Option<Duration>,
    pub(crate) run: Duration,
}

impl Phases {
    /// Splits what a request waited for an instance that was started for it. The start is the end
    /// of the wait: a request that came when it was under way waited only for a part of it.
    pub(crate) fn of_start(waited: Duration, birth: &Birth) -> Self {
        let mut left = waited;
        let mut last = |phase: Duration| {
            let part = phase.min(left);
            left -= part;
            Some(part)
        };
        let (init, start, schedule) = (last(birth.init), last(birth.start), last(birth.schedule));
        Self {
            queue: left,
            schedule,
            start,
            from: birth.from,
            init,
            run: Duration::ZERO,
        }
    }

    pub(crate) fn header(&self) -> HeaderValue {
        let mut text = Vec::with_capacity(128);
        let phases = [
            ("queue", Some(self.queue)),
            ("schedule", self.schedule),
            ("start", self.start),
            ("init", self.init),
            ("run", Some(self.run)),
        ];
        for (name, spent) in phases {
            let Some(spent) = spent else { continue };
            if !text.is_empty() {
                text.extend_from_slice(b", ");
            }
            text.extend_from_slice(name.as_bytes());
            text.extend_from_slice(b";dur=");
            put_millis(&mut text, spent);
            if name == "start" && !self.from.is_empty() {
                text.extend_from_slice(b";desc=\"");
                text.extend_from_slice(self.from.as_bytes());
                text.push(b'"');
            }
        }
        HeaderValue::from_maybe_shared(Bytes::from(text))
            .expect("names, digits and punctuation only")
    }
}

/// Milliseconds with three decimals, by hand: on the path of every request.
fn put_millis(text: &mut Vec<u8>, time: Duration) {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let mut digits = [b'0'; 21];
    let (mut at, mut left) = (digits.len(), micros);
    // At least `0.000`.
    while left > 0 || at > digits.len() - 5 {
        at -= 1;
        if at == digits.len() - 4 {
            digits[at] = b'.';
            continue;
        }
        digits[at] += u8::try_from(left % 10).unwrap_or_default();
        left /= 10;
    }
    text.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(headers: &[(&str, &str)], trust: bool) -> Vec<(String, String)> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(
                HeaderName::try_from(*name).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        let mut buf = BytesMut::new();
        let origin = Origin::new([10, 0, 0, 9].into(), false, trust);
        write_request(&mut buf, &map, &origin, "id-1", None, true);
        let text = String::from_utf8(buf.to_vec()).unwrap();
        let fields: Vec<_> = text[1..].split('\0').map(str::to_owned).collect();
        fields
            .chunks(2)
            .map(|pair| (pair[0].clone(), pair[1].clone()))
            .collect()
    }

    fn get<'a>(sent: &'a [(String, String)], name: &str) -> Vec<&'a str> {
        sent.iter()
            .filter(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
            .collect()
    }

    #[test]
    fn what_a_client_may_not_say_does_not_arrive() {
        let sent = sent(
            &[
                ("connection", "keep-alive, X-Hop"),
                ("x-hop", "1"),
                ("te", "trailers"),
                ("x-coracle-error", "forged"),
                ("server-timing", "forged"),
                ("x-api-key", "secret"),
                ("x-request-id", "theirs"),
                ("x-forwarded-for", "1.2.3.4"),
                ("x-forwarded-host", "evil"),
                ("forwarded", "for=1.2.3.4"),
                ("accept", "a"),
                ("accept", "b"),
            ],
            false,
        );
        for gone in [
            "connection",
            "x-hop",
            "te",
            "x-coracle-error",
            "server-timing",
            "x-api-key",
            "x-forwarded-host",
        ] {
            assert!(get(&sent, gone).is_empty(), "{gone}");
        }
        assert_eq!(get(&sent, "accept"), ["a", "b"]);
        assert_eq!(get(&sent, "x-request-id"), ["id-1"]);
        assert_eq!(get(&sent, "x-forwarded-for"), ["10.0.0.9"]);
        assert_eq!(get(&sent, "forwarded"), ["for=10.0.0.9;proto=http"]);
    }

    #[test]
    fn a_trusted_proxys_words_are_kept_and_appended_to() {
        let sent = sent(
            &[
                ("x-forwarded-for", "1.2.3.4"),
                ("x-forwarded-proto", "https"),
            ],
            true,
        );
        assert_eq!(get(&sent, "x-forwarded-for"), ["1.2.3.4, 10.0.0.9"]);
        assert_eq!(get(&sent, "x-forwarded-proto"), ["https"]);
    }

    #[test]
    fn request_ids_and_traces_are_taken_only_when_well_formed() {
        let map = |name: &str, value: &str| {
            HeaderMap::from_iter([(
                HeaderName::try_from(name).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            )])
        };
        assert!(accept_request_id(&map("x-request-id", "a-b_c.d:1")).is_some());
        assert!(accept_request_id(&map("x-call-id", "abc")).is_some());
        for bad in ["", "a b", "a/b", "é", &"a".repeat(129)] {
            assert!(
                accept_request_id(&map("x-request-id", bad)).is_none(),
                "{bad}"
            );
        }
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert!(has_trace(&map("traceparent", good)));
        for bad in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
        ] {
            assert!(!has_trace(&map("traceparent", bad)), "{bad}");
        }
    }

    #[test]
    fn milliseconds_have_three_decimals() {
        for (micros, expected) in [
            (0, "0.000"),
            (7, "0.007"),
            (1_000, "1.000"),
            (12_034, "12.034"),
            (u64::MAX, "18446744073709551.615"),
        ] {
            let mut text = Vec::new();
            put_millis(&mut text, Duration::from_micros(micros));
            assert_eq!(String::from_utf8(text).unwrap(), expected);
        }
    }

    #[test]
    fn phases_are_in_milliseconds() {
        let phases = Phases {
            queue: Duration::from_micros(40),
            start: Some(Duration::from_micros(1_234)),
            from: "stem",
            run: Duration::from_millis(12),
            ..Phases::default()
        };
        assert_eq!(
            phases.header(),
            "queue;dur=0.040, start;dur=1.234;desc=\"stem\", run;dur=12.000"
        );
    }

    #[test]
    fn the_phases_of_a_start_never_add_up_to_more_than_the_wait() {
        let millis = Duration::from_millis;
        let birth = Birth {
            schedule: millis(1),
            from: "stem",
            start: millis(2),
            init: millis(4),
        };
        let parts = |waited| {
            let phases = Phases::of_start(millis(waited), &birth);
            [
                Some(phases.queue),
                phases.schedule,
                phases.start,
                phases.init,
            ]
            .map(|part| part.unwrap().as_millis())
        };
        assert_eq!(parts(10), [3, 1, 2, 4]);
        assert_eq!(parts(5), [0, 0, 1, 4]);
        assert_eq!(parts(3), [0, 0, 0, 3]);
    }
}
