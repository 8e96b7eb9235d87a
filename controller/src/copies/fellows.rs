//! The other controllers, as far as artifacts are concerned.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
};

use coracle_proto::v1::artifact_peers_client::ArtifactPeersClient;
use coracle_replica::Group;
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::peers::PeerTable;

/// Who is in the group, and how to reach them. Follows both as they change.
#[derive(Debug)]
pub(crate) struct Fellows {
    me: u64,
    group: watch::Receiver<Group>,
    table: PeerTable,
    /// For questions. Bytes travel on connections of their own, so that a slow one delays nobody.
    asked: Mutex<BTreeMap<u64, (String, Channel)>>,
}

impl Fellows {
    pub(crate) fn new(me: u64, group: watch::Receiver<Group>, table: PeerTable) -> Self {
        Self {
            me,
            group,
            table,
            asked: Mutex::default(),
        }
    }

    pub(super) fn me(&self) -> u64 {
        self.me
    }

    /// Whose copies count.
    pub(super) fn voters(&self) -> BTreeSet<u64> {
        self.group.borrow().voters.iter().copied().collect()
    }

    /// Everyone else in the group.
    pub(super) fn others(&self) -> Vec<u64> {
        let group = self.group.borrow();
        let all = group.voters.iter().chain(&group.learners);
        all.copied().filter(|id| *id != self.me).collect()
    }

    /// For bytes.
    pub(super) fn dial(&self, id: u64) -> Option<Channel> {
        self.table.get(id).map(|address| address.channel())
    }

    /// For questions.
    pub(super) fn asking(&self, id: u64) -> Option<ArtifactPeersClient<Channel>> {
        let address = self.table.get(id)?;
        let text = address.to_string();
        let mut asked = self
            .asked
            .lock()
            .expect("never poisoned: no panic while held");
        let entry = asked
            .entry(id)
            .and_modify(|(known, channel)| {
                if *known != text {
                    (*known, *channel) = (text.clone(), address.channel());
                }
            })
            .or_insert_with(|| (text.clone(), address.channel()));
        Some(ArtifactPeersClient::new(entry.1.clone()))
    }
}

/// More than half.
pub(super) fn majority(voters: &BTreeSet<u64>) -> usize {
    voters.len() / 2 + 1
}
