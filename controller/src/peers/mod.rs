//! Raft messages between controllers, over gRPC.
//!
//! `table` says where members are; `outbound` sends to them, `inbound` hears them. Raft repeats what
//! is lost, so nothing here waits for a slow peer: queues are bounded, and what does not fit is
//! dropped and reported.

mod inbound;
mod lane;
mod outbound;
mod snapshots;
mod table;

use std::sync::Arc;

use coracle_replica::{Group, Replica};
use tokio::sync::watch;

pub use self::table::PeerTable;
pub(crate) use self::{inbound::Inbound, outbound::Outbound};
use crate::machine::{Published, Response};

/// Of a snapshot's pieces on the wire; a message of more than 4 MiB would not be taken.
const PIECE_BYTES: usize = 1024 * 1024;
/// The state is kept in memory on every member, so this is far above what it may grow to.
const SNAPSHOT_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// What both directions know of this member.
#[derive(Debug, Clone)]
pub(crate) struct Me {
    pub(crate) id: u64,
    pub(crate) cluster_id: Arc<str>,
    pub(crate) table: PeerTable,
    pub(crate) published: watch::Receiver<Published>,
}

impl Me {
    fn incarnation(&self) -> u64 {
        self.published.borrow().view.incarnation()
    }
}

/// Whether a peer is heard: a member is; and one that is ahead of this member may have been added
/// since. A member that waits to be added hears everyone. Otherwise the index as of which it is none.
fn admit(group: &Group, from: u64, applied: u64) -> Result<(), u64> {
    if group.is_empty() || group.contains(from) || applied > group.as_of {
        return Ok(());
    }
    Err(group.as_of)
}

fn applied(replica: &Replica<Response>) -> u64 {
    replica.status().borrow().applied
}

fn group(replica: &Replica<Response>) -> watch::Receiver<Group> {
    replica.group()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_and_those_that_know_more_are_heard() {
        let group = Group {
            as_of: 50,
            voters: vec![1, 2],
            learners: vec![3],
        };
        for from in [1, 2, 3] {
            assert_eq!(admit(&group, from, 0), Ok(()));
        }
        assert_eq!(admit(&group, 4, 50), Err(50));
        assert_eq!(admit(&group, 4, 51), Ok(()), "added since");
        assert_eq!(admit(&Group::default(), 4, 0), Ok(()));
    }
}
