//! Every name that a cluster leaves on a machine, in one place.
//!
//! All of them carry the cluster's id, so that two servers on one machine, or Docker beside them,
//! never touch each other's things.

use std::{fmt, path::PathBuf, str::FromStr};

use coracle_model::Invalid;

/// Eight lower-case hexadecimal characters, and on machines that may hold several nodes of one
/// cluster the node's part.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ClusterId {
    id: String,
    node: Option<String>,
}

impl ClusterId {
    /// Names of this node's things, where another node of the same cluster may be on the machine.
    /// Interfaces and firewall chains have no room for it, and need none: such nodes have network
    /// namespaces of their own, or they could not have an address each.
    #[must_use]
    pub fn on_node(self, node: coracle_model::NodeId) -> Self {
        let mut part = node.0.simple().to_string();
        part.truncate(8);
        Self {
            node: Some(part),
            ..self
        }
    }

    /// As a number, to spread clusters, and the nodes of one, over address and user id ranges.
    pub(crate) fn number(&self) -> u32 {
        let number = |hex| u32::from_str_radix(hex, 16).expect("the characters were checked");
        number(&self.id) ^ self.node.as_deref().map_or(0, number)
    }

    /// `coracle-<cluster>`, with the node's part where it has one.
    fn owner(&self) -> String {
        match &self.node {
            Some(node) => format!("coracle-{self}-{node}"),
            None => format!("coracle-{self}"),
        }
    }

    /// containerd's namespace.
    pub(crate) fn namespace(&self) -> String {
        self.owner()
    }

    /// At most 15 characters, as for every interface.
    pub(crate) fn bridge(&self) -> String {
        format!("cor{self}")
    }

    /// The host's end of the container's cable. 15 characters: the whole cluster id, and six of
    /// the container's.
    pub(crate) fn veth(&self, container: &str) -> String {
        format!("v{self}{}", container.get(..6).unwrap_or(container))
    }

    /// Below the root of each cgroup hierarchy.
    pub(crate) fn cgroup_parent(&self) -> String {
        format!("/{}", self.owner())
    }

    /// At most 28 characters, as for every chain.
    pub(crate) fn chain(&self, purpose: &str) -> String {
        format!("CORACLE-{self}-{purpose}")
    }

    /// Holds the mount points of image roots. Not in the data directory, because a container's
    /// mapped root must be able to walk there, and a data directory may lie below one that only
    /// root can enter (such as `/root`).
    pub(crate) fn machine_dir(&self) -> PathBuf {
        PathBuf::from(format!("/run/{}", self.owner()))
    }
}

impl FromStr for ClusterId {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if s.len() != 8 || !s.bytes().all(hex) {
            return Err(Invalid::new(
                "cluster_id",
                "must be 8 characters of 0-9 and a-f",
            ));
        }
        Ok(Self {
            id: s.to_owned(),
            node: None,
        })
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.owner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_nodes_of_a_cluster_share_no_name_outside_their_networks() {
        let id = || "0123abcd".parse::<ClusterId>().expect("an id");
        let node = |n: u128| coracle_model::NodeId(uuid::Uuid::from_u128(n << 96));
        let (alone, a, b) = (id(), id().on_node(node(1)), id().on_node(node(2)));
        assert_eq!(alone.cgroup_parent(), "/coracle-0123abcd");
        assert_eq!(a.cgroup_parent(), "/coracle-0123abcd-00000001");
        for names in [ClusterId::namespace, ClusterId::cgroup_parent] {
            assert_ne!(names(&a), names(&b));
            assert_ne!(names(&a), names(&alone));
        }
        assert_ne!(a.number(), b.number());
        assert_ne!(a.machine_dir(), b.machine_dir());
    }

    #[test]
    fn names_fit_the_kernels_limits() {
        let id: ClusterId = "0123abcd".parse().expect("eight hexadecimal characters");
        assert!(id.bridge().len() <= 15);
        assert_eq!(id.veth("fedcba987654"), "v0123abcdfedcba");
        assert!(id.veth("fedcba987654").len() <= 15);
        assert!(id.chain("FWD").len() <= 28);
        for bad in ["", "0123abc", "0123ABCD", "0123abcg", "0123abcde"] {
            assert!(bad.parse::<ClusterId>().is_err(), "{bad}");
        }
    }
}
