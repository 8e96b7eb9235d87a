//! The small record beside the entries, and its bytes.

use protobuf::Message as _;
use raft::eraftpb::{ConfState, HardState};

use super::{Error, Snapshot, Write};

/// Everything durable but the entries and the snapshot's bytes. One record, so that one write
/// changes all of it at once.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct State {
    /// The member whose memory this is; 0 in a store that was never used.
    pub member: u64,
    /// Term, vote, and commit index. The commit index is never below `applied`.
    pub hard: HardState,
    /// Who is in the group, as of `applied`.
    pub members: ConfState,
    /// Up to here commands were applied, and everyone was answered. May lag.
    pub applied: u64,
    /// The entry before the first one in the log.
    pub compacted_index: u64,
    pub compacted_term: u64,
    pub snapshot: Option<SnapshotRef>,
}

/// Where a snapshot stands in the log, and which bytes it has.
#[derive(Debug, Clone, PartialEq)]
pub struct SnapshotRef {
    pub index: u64,
    pub term: u64,
    pub members: ConfState,
    /// SHA-256 of the bytes.
    pub digest: [u8; 32],
    pub bytes: u64,
}

impl SnapshotRef {
    pub(super) fn of(snapshot: &Snapshot<'_>) -> Self {
        use sha2::Digest as _;
        Self {
            index: snapshot.index,
            term: snapshot.term,
            members: snapshot.members.clone(),
            digest: sha2::Sha256::digest(snapshot.data).into(),
            bytes: snapshot.data.len() as u64,
        }
    }
}

impl State {
    /// What a write makes of it; the entries are the store's affair.
    pub(super) fn after(&self, write: &Write) -> Self {
        let mut next = self.clone();
        if let Some(hard) = &write.hard {
            next.hard = hard.clone();
        }
        if let Some(applied) = write.applied {
            next.applied = next.applied.max(applied);
        }
        if let Some(members) = &write.members {
            next.members = members.clone();
        }
        // Raft does not ask for every new commit index to be stored, yet refuses to start when
        // the applied one is above it. What was applied was committed, so this only says so.
        next.hard.commit = next.hard.commit.max(next.applied);
        next
    }

    /// What an installed snapshot makes of it.
    pub(super) fn replaced(&self, snapshot: &Snapshot<'_>, write: &Write) -> Self {
        let mut next = self.clone();
        next.members = snapshot.members.clone();
        next.applied = snapshot.index;
        next.compacted_index = snapshot.index;
        next.compacted_term = snapshot.term;
        next.snapshot = Some(SnapshotRef::of(snapshot));
        next.after(&Write {
            applied: None,
            members: None,
            ..write.clone()
        })
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(160);
        for number in [
            self.member,
            self.hard.term,
            self.hard.vote,
            self.hard.commit,
            self.applied,
            self.compacted_index,
            self.compacted_term,
        ] {
            out.extend(number.to_be_bytes());
        }
        put_members(&mut out, &self.members);
        match &self.snapshot {
            None => out.push(0),
            Some(snapshot) => {
                out.push(1);
                for number in [snapshot.index, snapshot.term, snapshot.bytes] {
                    out.extend(number.to_be_bytes());
                }
                out.extend(snapshot.digest);
                put_members(&mut out, &snapshot.members);
            }
        }
        let checksum = crc32fast::hash(&out);
        out.extend(checksum.to_be_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Error> {
        decode(bytes).ok_or_else(|| Error::Damaged {
            what: "the state record".into(),
        })
    }
}

fn put_members(out: &mut Vec<u8>, members: &ConfState) {
    let bytes = members
        .write_to_bytes()
        .expect("a message of plain fields always encodes");
    let length = u32::try_from(bytes.len()).expect("a group has a handful of members");
    out.extend(length.to_be_bytes());
    out.extend(bytes);
}

/// None when anything is off: there is one right shape.
fn decode(bytes: &[u8]) -> Option<State> {
    let (mut rest, checksum) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
    if crc32fast::hash(rest).to_be_bytes() != checksum {
        return None;
    }
    let mut state = State {
        member: number(&mut rest)?,
        ..State::default()
    };
    state.hard.term = number(&mut rest)?;
    state.hard.vote = number(&mut rest)?;
    state.hard.commit = number(&mut rest)?;
    state.applied = number(&mut rest)?;
    state.compacted_index = number(&mut rest)?;
    state.compacted_term = number(&mut rest)?;
    state.members = members(&mut rest)?;
    match take::<1>(&mut rest)? {
        [0] => {}
        [1] => {
            let (index, term, bytes) = (number(&mut rest)?, number(&mut rest)?, number(&mut rest)?);
            let digest = take::<32>(&mut rest)?;
            let members = members(&mut rest)?;
            state.snapshot = Some(SnapshotRef {
                index,
                term,
                members,
                digest,
                bytes,
            });
        }
        _ => return None,
    }
    rest.is_empty().then_some(state)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

fn number(rest: &mut &[u8]) -> Option<u64> {
    take::<8>(rest).map(u64::from_be_bytes)
}

fn members(rest: &mut &[u8]) -> Option<ConfState> {
    let length = u32::from_be_bytes(take::<4>(rest)?) as usize;
    let (head, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    protobuf::Message::parse_from_bytes(head).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> State {
        let mut state = State {
            member: 3,
            applied: 7,
            compacted_index: 4,
            compacted_term: 1,
            ..State::default()
        };
        state.hard.term = 2;
        state.hard.vote = 1;
        state.hard.commit = 9;
        state.members = ConfState::from((vec![1, 2, 3], vec![4]));
        let members = state.members.clone();
        state.snapshot = Some(SnapshotRef {
            index: 6,
            term: 2,
            members,
            digest: [7; 32],
            bytes: 5,
        });
        state
    }

    #[test]
    fn reads_back_what_it_wrote_and_nothing_else() {
        for state in [State::default(), sample()] {
            let bytes = state.encode();
            assert_eq!(State::decode(&bytes).unwrap(), state);
            for at in 0..bytes.len() {
                assert!(State::decode(&bytes[..at]).is_err(), "cut at {at}");
                let mut flipped = bytes.clone();
                flipped[at] ^= 0x10;
                assert!(State::decode(&flipped).is_err(), "flipped at {at}");
            }
        }
    }

    /// The persisted bytes of format 1. If this fails, the format number must rise.
    #[test]
    fn the_format_stands_still() {
        let bytes = sample().encode();
        assert_eq!(
            hex::encode(&bytes[..bytes.len() - 4]),
            concat!(
                "0000000000000003",
                "0000000000000002",
                "0000000000000001",
                "0000000000000009",
                "0000000000000007",
                "0000000000000004",
                "0000000000000001",
                "00000008",
                "0801080208031004",
                "01",
                "0000000000000006",
                "0000000000000002",
                "0000000000000005",
                "0707070707070707070707070707070707070707070707070707070707070707",
                "00000008",
                "0801080208031004",
            )
        );
    }

    #[test]
    fn the_commit_index_never_falls_behind_the_applied_one() {
        let next = sample().after(&Write {
            applied: Some(12),
            ..Write::default()
        });
        assert_eq!((next.applied, next.hard.commit), (12, 12));
    }
}
