//! Nodes as the scheduler sees them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{NodeId, RuntimeName, Timestamp};

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
