//! Which nodes belong, how they stand, and what may be done to them. Decisions only: what they
//! lead to is written by the services, or goes into the memory.

use std::collections::BTreeSet;

use coracle_model::{
    ExitReason, Labels, NodeId, NodeName, Timestamp,
    node::{Node, NodeRecord, Resources},
};
use coracle_planner::{CollectConfig, Collection, DrainInput, Standing, standing, unwatched};
use coracle_state::{RegisterNode, View};

use super::{
    memory::{Leadership, Memory, NodeEntry},
    reports::Report,
};
use crate::config::{LeaderConfig, millis};

/// Why an agent's hello is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotAdmitted {
    #[error(
        "node {0} was removed from the cluster; to join again the machine needs an empty data \
         directory"
    )]
    Removed(NodeId),
    #[error(
        "another node of the name {name} is connected ({other}); give this one another --node-name"
    )]
    NameTaken { name: NodeName, other: NodeId },
    /// It may well be gone; a network that was cut for a moment must not cost a node its place.
    #[error(
        "another node of the name {name} ({other}) was connected until a moment ago; this one takes \
         its place when it stays away for the grace period"
    )]
    NameHeld { name: NodeName, other: NodeId },
    #[error("the node's {0}")]
    Invalid(String),
    /// It obeys a later leader than this one.
    #[error("the node has accepted orders of a later term")]
    Deposed,
}

impl Memory {
    /// Decides about a hello: refused, to be registered first, or known as it is.
    pub(crate) fn admit(
        &self,
        view: &View,
        report: &Report,
    ) -> Result<Option<RegisterNode>, NotAdmitted> {
        let (node, accepted) = (&report.node, report.accepted);
        if (accepted.incarnation, accepted.term) > (self.incarnation, self.term) {
            return Err(NotAdmitted::Deposed);
        }
        if view.is_removed(node.id) {
            return Err(NotAdmitted::Removed(node.id));
        }
        let invalid = |error: coracle_model::Invalid| NotAdmitted::Invalid(error.to_string());
        let name: NodeName = node
            .name
            .parse()
            .map_err(|error: coracle_model::Invalid| invalid(error.at("name")))?;
        let labels = Labels::new(node.labels.clone()).map_err(invalid)?;
        let mut replaces = None;
        if let Some(holder) = view.node_named(&name).filter(|holder| holder.id != node.id) {
            let other = holder.id;
            let connected = self.nodes.get(&other).is_some_and(|e| e.session.is_some());
            let alive = self.inputs.get(&other).is_some_and(|input| input.alive);
            match (connected, alive) {
                (true, _) => return Err(NotAdmitted::NameTaken { name, other }),
                (false, true) => return Err(NotAdmitted::NameHeld { name, other }),
                (false, false) => replaces = Some(other),
            }
        }
        let known = view.node(node.id);
        if known.is_some_and(|known| known.name == name && known.labels == labels) {
            return Ok(None);
        }
        Ok(Some(RegisterNode {
            id: node.id,
            name,
            labels,
            replaces,
        }))
    }

    /// A term begins: every registered node is there, full, and has not spoken.
    pub(crate) fn expect_nodes(&mut self, now: Timestamp, view: &View) {
        for record in view.nodes() {
            let entry = NodeEntry::unheard(now, record);
            let node = entry.node.clone();
            self.nodes.insert(record.id, entry);
            self.describe_node(&node);
        }
        self.registered = self.nodes.len();
        self.watched_at = now;
    }

    /// Ends the collection once the agents had their time. True when it did so just now.
    pub(crate) fn collect(&mut self, config: &LeaderConfig, now: Timestamp) -> bool {
        let Leadership::Collecting { since, heard } = self.leadership else {
            return false;
        };
        let unheard: Vec<&str> = self.unheard().collect();
        let collection = Collection {
            since,
            first: heard,
            registered: self.registered,
            unheard: unheard.len(),
        };
        let limits = CollectConfig {
            deadline_ms: millis(config.collect_deadline),
            settle_ms: millis(config.collect_settle),
        };
        if !collection.is_over(limits, now) {
            return false;
        }
        if !unheard.is_empty() {
            tracing::warn!(
                nodes = unheard.join(" "),
                "not heard; counted as full and alive"
            );
        }
        tracing::info!(
            nodes = self.nodes.len(),
            instances = self.instances.len(),
            took_ms = now.since(since),
            "agents were heard; planning"
        );
        self.leadership = Leadership::Leading;
        true
    }

    /// Names of nodes that have not spoken to this leader and may yet.
    fn unheard(&self) -> impl Iterator<Item = &str> {
        let entries = self.nodes.iter().filter(|(_, entry)| !entry.heard);
        entries.map(|(_, entry)| entry.node.name.as_str())
    }

    /// Brings what is known of nodes up to what is replicated: who was closed, drained, removed.
    pub(crate) fn follow_nodes(&mut self, now: Timestamp, view: &View) {
        let removed = self
            .nodes
            .keys()
            .filter(|id| view.is_removed(**id))
            .copied();
        for id in removed.collect::<Vec<_>>() {
            self.forget_node(now, id);
        }
        for (id, entry) in &mut self.nodes {
            let Some(record) = view.node(*id) else {
                continue;
            };
            (entry.cordoned, entry.draining) = (!record.takes_instances(), record.draining);
            if let Some(input) = self.inputs.get_mut(id) {
                input.schedulable = entry.takes_instances();
                input.draining = entry.drain_input();
            }
        }
    }

    /// A node without a session is alive until its grace period is over. One that nobody registered
    /// (of a cluster from before there were records) is forgotten a while after.
    pub(crate) fn watch_nodes(&mut self, config: &LeaderConfig, now: Timestamp) {
        let grace = millis(config.node_grace);
        let credit = unwatched(self.watched_at, now, millis(config.tick));
        if credit > 0 {
            tracing::warn!(
                credit,
                "did not look at the nodes for a while; not their silence"
            );
        }
        self.watched_at = now;
        let (mut dead, mut forgotten) = (Vec::new(), Vec::new());
        for (id, entry) in &mut self.nodes {
            entry.heard_at = entry.heard_at.plus_millis(credit).min(now);
            let connected = entry.session.is_some();
            let how = standing(now, entry.heard_at, connected, grace);
            let silent = now.since(entry.heard_at);
            if how == Standing::Lost && connected {
                dead.push(*id);
            }
            let alive = how != Standing::Lost;
            if let Some(input) = self.inputs.get_mut(id)
                && input.alive != alive
            {
                tracing::warn!(node = %id, name = entry.node.name, silent_ms = silent, alive, "node");
                input.alive = alive;
                self.nodes_dirty |= !entry.heard;
            }
            let is_kept = entry.registered || !entry.instances.is_empty();
            if !is_kept && silent > grace.saturating_mul(20) {
                forgotten.push(*id);
            }
        }
        for id in dead {
            tracing::warn!(node = %id, "session cut: it brings nothing");
            self.disconnected(id);
        }
        for id in forgotten {
            self.nodes.remove(&id);
            self.inputs.remove(&id);
            self.nodes_dirty = true;
        }
    }

    /// It was removed. It is told to end everything, and its session ends.
    fn forget_node(&mut self, now: Timestamp, id: NodeId) {
        let instances = self.nodes.get(&id).map(|entry| entry.instances.clone());
        for instance in instances.unwrap_or_default() {
            self.ended(now, instance, ExitReason::Lost);
        }
        self.set_stems(id, Default::default());
        self.nodes.remove(&id);
        self.inputs.remove(&id);
        self.nodes_dirty = true;
        tracing::info!(node = %id, "node removed");
    }
}

impl NodeEntry {
    fn unheard(now: Timestamp, record: &NodeRecord) -> Self {
        let node = Node {
            id: record.id,
            name: record.name.to_string(),
            version: String::new(),
            labels: record.labels.clone().into(),
            // Counts as full.
            allocatable: Resources::default(),
            address: String::new(),
            stems: Default::default(),
            images: Vec::new(),
            reported_at: Timestamp::default(),
            schedulable: true,
        };
        Self {
            node,
            session: None,
            sequence: 0,
            heard: false,
            heard_at: now,
            running: 0,
            stems: Default::default(),
            instances: BTreeSet::new(),
            registered: true,
            cordoned: !record.takes_instances(),
            draining: record.draining,
        }
    }

    pub(crate) fn takes_instances(&self) -> bool {
        self.node.schedulable && !self.cordoned
    }

    pub(crate) fn drain_input(&self) -> Option<DrainInput> {
        self.draining.map(|drain| DrainInput {
            forced_at: drain.forced_at(),
        })
    }
}
