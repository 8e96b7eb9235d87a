//! Who sent a request.

use coracle_base::{Remote, TlsPeer};
use coracle_model::{ComponentRole, MemberId, NodeId};
use uuid::Uuid;

use crate::Name;

/// One component, as its certificate names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Component {
    Controller(MemberId),
    Agent(NodeId),
    Gateway(Uuid),
}

impl Component {
    pub fn role(&self) -> ComponentRole {
        match self {
            Self::Controller(_) => ComponentRole::Controller,
            Self::Agent(_) => ComponentRole::Agent,
            Self::Gateway(_) => ComponentRole::Gateway,
        }
    }
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// This process, or one on this machine that reaches our socket: the same trust. Plain TCP is
    /// only spoken on loopback and counts as the same machine.
    Local,
    /// The cluster's CA vouches for it.
    Component(Component),
    /// It showed no certificate, or none of a component: it may enrol and nothing else.
    Anonymous,
}

impl Peer {
    pub fn of<T>(request: &tonic::Request<T>) -> Self {
        // A request that came over no connection of ours is nobody's.
        request
            .extensions()
            .get::<Remote>()
            .map_or(Self::Anonymous, Self::at)
    }

    pub fn at(remote: &Remote) -> Self {
        match remote {
            Remote::Memory | Remote::Unix => Self::Local,
            Remote::Tcp(address) if address.is_some_and(|a| a.ip().is_loopback()) => Self::Local,
            Remote::Tcp(_) => Self::Anonymous,
            Remote::Tls(TlsPeer { names, .. }) => names
                .as_deref()
                .and_then(|names| Name::among(names).ok())
                .map_or(Self::Anonymous, |name| Self::Component(name.component)),
        }
    }

    /// Whether it may speak for this node: it is on the same machine, or it is that node.
    pub fn is_node(&self, id: NodeId) -> bool {
        match self {
            Self::Local => true,
            Self::Component(Component::Agent(own)) => *own == id,
            Self::Component(_) | Self::Anonymous => false,
        }
    }

    /// Whether it may speak for this gateway.
    pub fn is_gateway(&self, id: Uuid) -> bool {
        match self {
            Self::Local => true,
            Self::Component(Component::Gateway(own)) => *own == id,
            Self::Component(_) | Self::Anonymous => false,
        }
    }

    /// The member of the Raft group that it is.
    pub fn member(&self) -> Option<MemberId> {
        match self {
            Self::Component(Component::Controller(member)) => Some(*member),
            Self::Local | Self::Component(_) | Self::Anonymous => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn tls(names: Option<&[&str]>) -> Remote {
        let names = names.map(|names| names.iter().map(|n| (*n).to_owned()).collect::<Arc<_>>());
        Remote::Tls(TlsPeer {
            address: None,
            names,
        })
    }

    #[test]
    fn a_peer_is_what_its_connection_says() {
        assert_eq!(Peer::at(&Remote::Memory), Peer::Local);
        assert_eq!(Peer::at(&Remote::Unix), Peer::Local);
        let tcp = |text: &str| Remote::Tcp(Some(text.parse().unwrap()));
        assert_eq!(Peer::at(&tcp("127.0.0.1:9")), Peer::Local);
        assert_eq!(Peer::at(&tcp("10.0.0.1:9")), Peer::Anonymous);
        assert_eq!(Peer::at(&Remote::Tcp(None)), Peer::Anonymous);
        assert_eq!(Peer::at(&tls(None)), Peer::Anonymous);
        assert_eq!(Peer::at(&tls(Some(&["https://x"]))), Peer::Anonymous);
        assert_eq!(
            Peer::at(&tls(Some(&["coracle://0badcafe/controller/2"]))).member(),
            Some(MemberId(2))
        );
        assert_eq!(Peer::of(&tonic::Request::new(())), Peer::Anonymous);
    }

    #[test]
    fn a_node_speaks_for_itself_only() {
        let id = |n| NodeId(Uuid::from_u128(n));
        let peer = Peer::Component(Component::Agent(id(1)));
        assert!(peer.is_node(id(1)));
        assert!(!peer.is_node(id(2)));
        assert!(!peer.is_gateway(id(1).0));
        assert!(Peer::Local.is_node(id(2)));
        assert!(!Peer::Anonymous.is_node(id(1)));
    }
}
