//! Connections to the agents' node services.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard},
};

use coracle_base::Address;
use coracle_model::NodeId;
use coracle_proto::v1::node_service_client::NodeServiceClient;
use tonic::transport::Channel;

pub(crate) type NodeClient = NodeServiceClient<Channel>;

/// Where each node is, from the route feed, and the connections made so far.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    /// What `memory:` stands for.
    local: Option<Address>,
    known: Mutex<HashMap<NodeId, Known>>,
}

#[derive(Debug)]
struct Known {
    address: String,
    channel: Option<Channel>,
}

impl Nodes {
    pub(crate) fn new(local: Option<Address>) -> Self {
        Self {
            local,
            known: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, Known>> {
        self.known
            .lock()
            .expect("never poisoned: no panic while held")
    }

    /// A changed address drops the connection to the old one.
    pub(crate) fn learn(&self, node: NodeId, address: &str) {
        let mut known = self.lock();
        if known.get(&node).is_none_or(|k| k.address != address) {
            known.insert(
                node,
                Known {
                    address: address.to_owned(),
                    channel: None,
                },
            );
        }
    }

    pub(crate) fn keep_only(&self, nodes: impl Fn(&NodeId) -> bool) {
        self.lock().retain(|node, _| nodes(node));
    }

    /// `None`: the feed has not named the node yet, or its address makes no sense here. Connections
    /// are made on the runtime that calls this.
    pub(crate) fn client(&self, node: NodeId) -> Option<NodeClient> {
        let mut known = self.lock();
        let entry = known.get_mut(&node)?;
        if entry.channel.is_none() {
            entry.channel = Some(self.resolve(&entry.address)?.channel());
        }
        entry.channel.clone().map(NodeServiceClient::new)
    }

    fn resolve(&self, address: &str) -> Option<Address> {
        if address.is_empty() || address.starts_with("memory:") {
            return self.local.clone();
        }
        address
            .parse()
            .inspect_err(|error| tracing::warn!(address, %error, "a node's address is unusable"))
            .ok()
    }
}
