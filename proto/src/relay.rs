//! How a gateway says which instance a raw connection to an agent's data port leads to.
//!
//! Once a connection: a preamble of [`PREAMBLE_BYTES`] up, one byte ([`Answer`]) down. After
//! [`Answer::Open`] the bytes of both ends (`runtimes/CONTRACT.md`) pass unchanged both ways. Every
//! other answer is followed by the end of the connection, and nothing of any request was read.

use coracle_model::InstanceId;
use uuid::Uuid;

/// What a TLS client offers for a relayed connection; gRPC is `h2` on the same port.
pub const ALPN: &[u8] = b"coracle-relay/1";

/// The first byte differs from that of HTTP/2's preface (`P`), which shares the port.
const MAGIC: [u8; 8] = *b"crelay/1";
pub const FIRST_BYTE: u8 = MAGIC[0];

pub const PREAMBLE_BYTES: usize = MAGIC.len() + 16;

pub fn preamble(instance: InstanceId) -> [u8; PREAMBLE_BYTES] {
    let mut bytes = [0; PREAMBLE_BYTES];
    let (magic, id) = bytes.split_at_mut(MAGIC.len());
    magic.copy_from_slice(&MAGIC);
    id.copy_from_slice(instance.0.as_bytes());
    bytes
}

/// `None`: not a preamble of this version.
pub fn parse(preamble: &[u8; PREAMBLE_BYTES]) -> Option<InstanceId> {
    let id = preamble.strip_prefix(&MAGIC)?;
    Uuid::from_slice(id).ok().map(InstanceId)
}

/// What becomes of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The instance has it from here on.
    Open,
    /// This node has no such instance, and will not have it again.
    Unknown,
    /// The instance takes nothing new any more, or cannot be reached although it should run.
    Ending,
    /// The node relays as much as it may.
    Full,
}

impl Answer {
    pub fn to_byte(self) -> u8 {
        match self {
            Self::Open => b'+',
            Self::Unknown => b'?',
            Self::Ending => b'-',
            Self::Full => b'!',
        }
    }

    /// A later version's answers count as refusals that may pass.
    pub fn from_byte(byte: u8) -> Self {
        match byte {
            b'+' => Self::Open,
            b'?' => Self::Unknown,
            b'!' => Self::Full,
            _ => Self::Ending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preamble_names_its_instance_and_nothing_else_does() {
        let id = InstanceId(Uuid::from_u128(0x1234_5678));
        let bytes = preamble(id);
        assert_eq!(parse(&bytes), Some(id));
        assert_ne!(FIRST_BYTE, b'P', "HTTP/2 begins with PRI");
        for at in 0..MAGIC.len() {
            let mut wrong = bytes;
            wrong[at] ^= 1;
            assert_eq!(parse(&wrong), None, "byte {at}");
        }
    }

    #[test]
    fn answers_keep_their_bytes() {
        let all = [
            (Answer::Open, b'+'),
            (Answer::Unknown, b'?'),
            (Answer::Ending, b'-'),
            (Answer::Full, b'!'),
        ];
        for (answer, byte) in all {
            assert_eq!((answer.to_byte(), Answer::from_byte(byte)), (byte, answer));
        }
        assert_eq!(Answer::from_byte(b'x'), Answer::Ending);
    }
}
