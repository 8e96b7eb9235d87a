//! What a management client can read.

use serde::{Deserialize, Serialize};

use crate::{
    ExitReason, Function, InstanceId, InstanceState, NodeId, Revision, RevisionId, Timestamp,
    node::{Node, NodeDrain, NodeState, Resources},
};

/// A function with what belongs to it, read at one point of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionView {
    pub function: Function,
    pub namespace: crate::NamespaceName,
    pub project: crate::ProjectName,
    /// The newest revision: what a client that reads back its own write expects to see.
    pub latest: Revision,
    /// The one that answers; may be an older one while the newest builds, or after it failed.
    pub serving: Option<Revision>,
    /// Names of the keys bound to it.
    pub keys: Vec<crate::KeyName>,
    /// From the leader's memory: instances that should be, and that answer.
    pub wanted: u32,
    pub ready: u32,
}

/// One instance as the leader last heard of it. May be seconds old.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceView {
    pub id: InstanceId,
    pub revision: RevisionId,
    pub node: NodeId,
    pub state: InstanceState,
    pub since: Timestamp,
    /// Why it was placed where it is.
    pub placement: String,
}

/// One decision of the autoscaler, with its inputs ("3 → 5: 8.7 in flight, target 2, panic window").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    pub at: Timestamp,
    pub from: u32,
    pub to: u32,
    pub reason: String,
}

/// The last failures of a function's instances, newest first, bounded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    pub at: Timestamp,
    pub instance: InstanceId,
    pub revision: RevisionId,
    pub reason: ExitReason,
    /// When the next start is allowed, while backing off.
    pub retry_at: Option<Timestamp>,
}

/// What `describe` shows beyond [`FunctionView`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionRuntimeView {
    pub instances: Vec<InstanceView>,
    pub decisions: Vec<Decision>,
    pub exits: Vec<ExitRecord>,
    /// Why there are fewer instances than wanted, while there are.
    pub shortage: Option<String>,
}

/// A node as the leader knows it. What its agent said may be seconds old.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    pub node: Node,
    pub state: NodeState,
    pub cordoned: bool,
    pub draining: Option<NodeDrain>,
    pub used: Resources,
    /// Instances that should be there.
    pub instances: u32,
    /// Instances that its agent says have not ended.
    pub running: u32,
    pub builds: u32,
    /// Its last word to this leader; `None` before the first.
    pub heard_at: Option<Timestamp>,
    pub joined_at: Option<Timestamp>,
    /// What its drain waits for: a function each, with the reason.
    pub waiting: Vec<String>,
    /// Filled where one node is asked for.
    pub placed: Vec<NodeInstance>,
}

/// An instance in the list of its node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInstance {
    pub instance: InstanceView,
    pub project: String,
    pub namespace: String,
    pub function: String,
}

/// One line of a function's output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Nanoseconds since the Unix epoch.
    pub at_nanos: u64,
    pub instance: InstanceId,
    /// `stdout`, `stderr`, or `platform` for our own words about the instance.
    pub stream: LogStream,
    pub request: Option<String>,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogStream {
    Stdout,
    Stderr,
    Platform,
}

/// A line on its way into a log, before it is owned by anyone.
#[derive(Debug, Clone, Copy)]
pub struct LogLineRef<'a> {
    pub at_nanos: u64,
    pub instance: InstanceId,
    pub stream: LogStream,
    pub request: Option<&'a str>,
    pub message: &'a str,
}
