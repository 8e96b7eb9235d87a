//! Where the members of the group are.

use std::{collections::BTreeMap, sync::Arc};

use coracle_base::Address;
use tokio::sync::watch;

/// Members' ids and addresses, told by whoever knows them; clones are the same table. Connections
/// follow it: a member that is not in it is not dialled, one whose address changed is dialled anew.
#[derive(Debug, Clone)]
pub struct PeerTable(Arc<watch::Sender<BTreeMap<u64, Address>>>);

impl PeerTable {
    pub fn new(peers: BTreeMap<u64, Address>) -> Self {
        Self(Arc::new(watch::Sender::new(peers)))
    }

    /// Replaces all of it.
    pub fn set(&self, peers: BTreeMap<u64, Address>) {
        self.0.send_replace(peers);
    }

    pub fn insert(&self, id: u64, address: Address) {
        self.0.send_modify(|peers| {
            peers.insert(id, address);
        });
    }

    pub fn get(&self, id: u64) -> Option<Address> {
        self.0.borrow().get(&id).cloned()
    }

    /// As text, for whoever may be in another process.
    pub(crate) fn reachable(&self, id: u64) -> Option<String> {
        match self.get(id)? {
            Address::Memory(_) => None,
            address => Some(address.to_string()),
        }
    }

    pub fn ids(&self) -> Vec<u64> {
        self.0.borrow().keys().copied().collect()
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<BTreeMap<u64, Address>> {
        self.0.subscribe()
    }
}

impl Default for PeerTable {
    /// Of a group of one.
    fn default() -> Self {
        Self::new(BTreeMap::new())
    }
}
