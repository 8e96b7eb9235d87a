//! Orders to agents: a snapshot at the beginning of a session, then contiguous numbered deltas.

use std::collections::BTreeMap;

use coracle_model::{InstanceId, NodeId, RuntimeName, Stamp};
use coracle_proto::v1;

use super::memory::Memory;

impl Memory {
    /// Sends how the instance should be to its node.
    pub(super) fn order_instance(&mut self, id: InstanceId) {
        let Some(instance) = self.instances.get(&id) else {
            return;
        };
        let node = instance.node;
        let delta = v1::AssignmentDelta {
            upsert: vec![instance.desired()],
            ..Default::default()
        };
        let ordered = self.order(node, delta);
        if let Some(instance) = self.instances.get_mut(&id) {
            instance.ordered = ordered;
        }
    }

    /// One numbered delta. Without a session nothing is sent: the next session's snapshot has it.
    /// A session whose channel is full is cut, and gets a snapshot when it comes back.
    pub(crate) fn order(&mut self, node: NodeId, mut delta: v1::AssignmentDelta) -> u64 {
        let stamp = self.stamp(0);
        let Some(entry) = self.nodes.get_mut(&node) else {
            return 0;
        };
        entry.sequence += 1;
        if let Some(session) = &entry.session {
            let stamp = Stamp {
                sequence: entry.sequence,
                ..stamp
            };
            delta.stamp = Some(stamp.into());
            let body = Some(v1::controller_message::Body::Delta(delta));
            let sequence = entry.sequence;
            if session
                .sender
                .try_send(Ok(v1::ControllerMessage {
                    body,
                    ..v1::ControllerMessage::default()
                }))
                .is_err()
            {
                tracing::warn!(node = %node, "session cut: the agent does not keep up");
                self.disconnected(node);
            }
            return sequence;
        }
        entry.sequence
    }

    /// The report with this number was taken in.
    pub(crate) fn acknowledge(&mut self, node: NodeId, number: u64) {
        let Some(session) = self
            .nodes
            .get(&node)
            .and_then(|entry| entry.session.as_ref())
        else {
            return;
        };
        let body = Some(v1::controller_message::Body::Ack(v1::ReportAck { number }));
        if session
            .sender
            .try_send(Ok(v1::ControllerMessage {
                body,
                ..v1::ControllerMessage::default()
            }))
            .is_err()
        {
            self.disconnected(node);
        }
    }

    /// The session broke, or was cut: the node's channel closes with it.
    pub(crate) fn disconnected(&mut self, node: NodeId) {
        let Some(entry) = self.nodes.get_mut(&node) else {
            return;
        };
        entry.session = None;
        if let Some(input) = self.inputs.get_mut(&node) {
            input.reachable = false;
        }
    }

    /// The full assignment of a node under a fresh stamp.
    pub(crate) fn assignment(&mut self, node: NodeId) -> Option<v1::Assignment> {
        let entry = self.nodes.get_mut(&node)?;
        entry.sequence += 1;
        let (sequence, stems) = (entry.sequence, entry.stems.clone());
        let ids = entry.instances.clone();
        let mut instances = Vec::with_capacity(ids.len());
        for id in ids {
            if let Some(instance) = self.instances.get_mut(&id) {
                instance.ordered = sequence;
                instances.push(instance.desired());
            }
        }
        let builds = self
            .builds
            .values()
            .filter(|b| b.node == node && b.result.is_none());
        Some(v1::Assignment {
            stamp: Some(self.stamp(sequence).into()),
            instances,
            builds: builds.map(|build| build.order.clone()).collect(),
            stems: stems
                .into_iter()
                .map(|(runtime, count)| (runtime.into(), count))
                .collect(),
        })
    }

    pub(crate) fn set_stems(&mut self, node: NodeId, stems: BTreeMap<RuntimeName, u32>) {
        let Some(entry) = self
            .nodes
            .get_mut(&node)
            .filter(|entry| entry.stems != stems)
        else {
            return;
        };
        entry.stems.clone_from(&stems);
        let delta = v1::AssignmentDelta {
            stems: stems
                .into_iter()
                .map(|(runtime, count)| (runtime.into(), count))
                .collect(),
            stems_changed: true,
            ..Default::default()
        };
        self.order(node, delta);
    }
}
