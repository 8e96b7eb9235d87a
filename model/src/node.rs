//! Nodes as the scheduler sees them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Labels, NodeId, NodeName, RuntimeName, Timestamp};

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    pub memory_mib: u32,
    pub cpu_millis: u32,
}

/// What an agent says about its machine, each time it reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub id: NodeId,
    pub name: String,
    pub version: String,
    pub labels: BTreeMap<String, String>,
    /// What functions may use: the machine less its reserve.
    pub allocatable: Resources,
    /// Where gateways reach its node service: `memory:`, `unix:/path` or `http://host:port`.
    pub address: String,
    /// Idle stems by runtime.
    pub stems: BTreeMap<RuntimeName, u32>,
    /// Runtimes whose image is on the node.
    pub images: Vec<RuntimeName>,
    pub reported_at: Timestamp,
    pub schedulable: bool,
}

/// The label that says which failure zone a node is in.
pub const ZONE: &str = "zone";

/// A node as the cluster remembers it, whether or not it is connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    pub id: NodeId,
    /// Each name once at a time.
    pub name: NodeName,
    /// What its agent said last.
    pub labels: Labels,
    /// Takes nothing new.
    pub cordoned: bool,
    /// What runs on it is being moved elsewhere. A node that drains is cordoned too.
    pub draining: Option<NodeDrain>,
    pub joined_at: Timestamp,
}

impl NodeRecord {
    pub fn takes_instances(&self) -> bool {
        !self.cordoned && self.draining.is_none()
    }
}

/// How a node is being emptied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDrain {
    pub since: Timestamp,
    /// When the operator wants it to be over. Without `force` that is only something to report.
    pub deadline: Option<Timestamp>,
    /// What is still there at the deadline (at once, where there is none) is ended although nothing
    /// replaces it yet.
    pub force: bool,
}

impl NodeDrain {
    /// From when on nothing is waited for any more.
    pub fn forced_at(&self) -> Option<Timestamp> {
        self.force.then(|| self.deadline.unwrap_or(self.since))
    }
}

/// What an operator can do to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeChange {
    Cordon,
    /// Ends a drain too.
    Uncordon,
    Drain {
        deadline: Option<Timestamp>,
        force: bool,
    },
    Remove {
        force: bool,
    },
}

/// How a node stands, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Takes new instances.
    Ready,
    Cordoned,
    Draining,
    /// It drains, and nothing of it runs any more.
    Drained,
    /// Not connected, or not heard by a new leader yet; its instances count as alive.
    Silent,
    /// Silent for longer than the grace period: its instances have been replaced.
    Lost,
}

impl NodeState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Cordoned => "cordoned",
            Self::Draining => "draining",
            Self::Drained => "drained",
            Self::Silent => "silent",
            Self::Lost => "lost",
        }
    }
}
