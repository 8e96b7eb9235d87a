//! Where the nodes are, and connections to their agents' node services.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard},
};

use coracle_base::{Address, Tls};
use coracle_identity::{Component, Name};
use coracle_model::NodeId;
use coracle_proto::{relay, v1::node_service_client::NodeServiceClient};
use tonic::transport::Channel;

pub(crate) type NodeClient = NodeServiceClient<Channel>;

/// How connections to a node's instances are made.
#[derive(Debug)]
pub(crate) enum Way {
    /// To their own sockets, on this machine.
    Here,
    /// Through the agent at this address.
    Relay(Address),
}

/// Where each node is, from the route feed, and the connections made so far.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    /// What `memory:` stands for.
    local: Option<Address>,
    /// The node that this process shares its data directory with.
    own: Option<NodeId>,
    tls: Option<Tls>,
    known: Mutex<HashMap<NodeId, Known>>,
}

#[derive(Debug)]
struct Known {
    name: String,
    address: String,
    channel: Option<Channel>,
}

impl Nodes {
    pub(crate) fn new(local: Option<Address>, own: Option<NodeId>, tls: Option<Tls>) -> Self {
        Self {
            local,
            own,
            tls,
            known: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, Known>> {
        self.known
            .lock()
            .expect("never poisoned: no panic while held")
    }

    /// A changed address drops the connection to the old one. No address says nothing: whoever told
    /// has not heard the node itself.
    pub(crate) fn learn(&self, node: NodeId, name: &str, address: &str) {
        if address.is_empty() {
            return;
        }
        let mut known = self.lock();
        match known.get_mut(&node) {
            Some(known) if known.address == address => name.clone_into(&mut known.name),
            _ => {
                let new = Known {
                    name: name.to_owned(),
                    address: address.to_owned(),
                    channel: None,
                };
                known.insert(node, new);
            }
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
            entry.channel = Some(self.resolve(node, &entry.address)?.channel());
        }
        entry.channel.clone().map(NodeServiceClient::new)
    }

    /// `None` as for [`Nodes::client`].
    pub(crate) fn way(&self, node: NodeId) -> Option<Way> {
        if self.own == Some(node) {
            return Some(Way::Here);
        }
        let known = self.lock();
        let address = self.resolve(node, &known.get(&node)?.address)?;
        Some(match address {
            Address::Memory(_) | Address::Unix(_) => Way::Here,
            Address::Tls(at, tls) => Way::Relay(Address::Tls(at, tls.with_alpn(&[relay::ALPN]))),
            plain @ Address::Tcp(_) => Way::Relay(plain),
        })
    }

    /// What people call it.
    pub(crate) fn name(&self, node: NodeId) -> String {
        let known = self.lock();
        let name = known.get(&node).map(|known| known.name.as_str());
        match name.filter(|name| !name.is_empty()) {
            Some(name) => name.to_owned(),
            None => node.to_string(),
        }
    }

    /// Whoever answers there has to be that node.
    fn resolve(&self, node: NodeId, address: &str) -> Option<Address> {
        if address.starts_with("memory:") {
            return self.local.clone();
        }
        let tls = self.tls.as_ref().map(|tls| tls.expecting(is(node)));
        Address::told(address, tls.as_ref())
            .inspect_err(|error| tracing::warn!(address, %error, "a node's address is unusable"))
            .ok()
    }
}

fn is(node: NodeId) -> impl Fn(&[String]) -> Result<(), String> + Send + Sync + 'static {
    move |names| {
        let name = Name::among(names).map_err(|error| error.to_string())?;
        if name.component == Component::Agent(node) {
            return Ok(());
        }
        Err(format!("the other side is {name}, and not node {node}"))
    }
}

#[cfg(test)]
mod tests {
    use coracle_base::MemoryBus;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn only_what_is_on_this_machine_is_reached_without_its_agent() {
        let [own, memory, unix, far, nowhere] = [1, 2, 3, 4, 5].map(|n| NodeId(Uuid::from_u128(n)));
        let nodes = Nodes::new(Some(Address::Memory(MemoryBus::new())), Some(own), None);
        nodes.learn(own, "a", "http://10.0.0.1:1");
        nodes.learn(memory, "b", "memory:");
        nodes.learn(unix, "", "unix:/x");
        nodes.learn(far, "d", "http://10.0.0.2:1");
        for near in [own, memory, unix] {
            assert!(matches!(nodes.way(near), Some(Way::Here)), "{near}");
        }
        assert!(matches!(nodes.way(far), Some(Way::Relay(Address::Tcp(at))) if at == "10.0.0.2:1"));
        assert!(nodes.way(nowhere).is_none());
        nodes.learn(far, "renamed", "http://10.0.0.2:1");
        nodes.learn(far, "unheard", "");
        let names = [far, unix].map(|node| nodes.name(node));
        assert_eq!(names, ["renamed".to_owned(), unix.to_string()]);
    }
}
