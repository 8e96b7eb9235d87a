//! What agents say, taken into the leader's memory.

use std::collections::BTreeSet;

use coracle_model::{
    ExitReason, InstanceId, InstanceState, NodeId, RevisionId, Stage, Stamp, Timestamp, node::Node,
};
use coracle_planner::Phase;
use coracle_proto::{ConvertError, Wire as _, required, v1};
use coracle_state::View;

use super::{
    memory::{Instance, Leadership, Memory, NodeEntry, Session, SessionSender},
    spec,
};

/// A report, parsed.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) node: Node,
    pub(crate) instances: Vec<Observed>,
    pub(crate) accepted: Stamp,
    pub(crate) number: u64,
}

#[derive(Debug)]
pub(crate) struct Observed {
    id: InstanceId,
    revision: RevisionId,
    state: InstanceState,
    since: Timestamp,
    socket: String,
}

impl TryFrom<v1::Report> for Report {
    type Error = ConvertError;
    fn try_from(wire: v1::Report) -> Result<Self, ConvertError> {
        let observed = |o: v1::ObservedInstance| {
            Ok(Observed {
                id: InstanceId::from_wire("instances.id", o.id)?,
                revision: required("instances.revision", o.revision)?,
                state: required("instances.state", o.state)?,
                since: Timestamp(o.since),
                socket: o.socket,
            })
        };
        Ok(Self {
            node: required("node", wire.node)?,
            instances: wire
                .instances
                .into_iter()
                .map(observed)
                .collect::<Result<_, ConvertError>>()?,
            accepted: wire
                .accepted
                .map(TryInto::try_into)
                .transpose()?
                .unwrap_or_default(),
            number: wire.number,
        })
    }
}

impl Memory {
    /// An agent opens a session: its word first, then ours, a snapshot. Returns the session's
    /// number; the session before it, if one is still open, ends here.
    pub(crate) fn hello(
        &mut self,
        now: Timestamp,
        view: &View,
        drain_grace_ms: u64,
        report: Report,
        sender: SessionSender,
    ) -> Option<u64> {
        let id = report.node.id;
        let number = self.next_session();
        let known = self.nodes.remove(&id);
        let is_new = known.as_ref().is_none_or(|entry| !entry.heard);
        let entry = match known {
            Some(entry) => NodeEntry {
                session: None,
                heard: true,
                ..entry
            },
            None => NodeEntry {
                node: report.node.clone(),
                session: None,
                sequence: 0,
                heard: true,
                heard_at: now,
                running: 0,
                stems: Default::default(),
                instances: BTreeSet::new(),
                registered: false,
                cordoned: false,
                draining: None,
            },
        };
        let entry = match view.node(id) {
            Some(record) => NodeEntry {
                registered: true,
                cordoned: !record.takes_instances(),
                draining: record.draining,
                ..entry
            },
            None => entry,
        };
        // A node that was forgotten may have accepted more in this term than we remember sending.
        let accepted = report.accepted;
        let of_this_term = self.stamp(accepted.sequence) == accepted;
        let seen = if of_this_term { accepted.sequence } else { 0 };
        let entry = NodeEntry {
            sequence: entry.sequence.max(seen),
            ..entry
        };
        self.nodes.insert(id, entry);
        self.nodes_dirty = true;
        self.describe_node(&report.node);
        self.adopt(now, view, drain_grace_ms, &report, is_new);
        self.observe(now, report);

        let snapshot = self.assignment(id)?;
        let body = Some(v1::controller_message::Body::Snapshot(snapshot));
        sender
            .try_send(Ok(v1::ControllerMessage {
                body,
                ..v1::ControllerMessage::default()
            }))
            .ok()?;
        let entry = self.nodes.get_mut(&id)?;
        entry.session = Some(Session { number, sender });
        if let Leadership::Collecting { heard, .. } = &mut self.leadership {
            heard.get_or_insert(now);
        }
        Some(number)
    }

    /// Complete observed state of a node; replaces what was known of it.
    pub(crate) fn observe(&mut self, now: Timestamp, report: Report) {
        let id = report.node.id;
        let seen: BTreeSet<InstanceId> = report.instances.iter().map(|i| i.id).collect();
        self.describe_node(&report.node);
        let Some(entry) = self.nodes.get_mut(&id) else {
            return;
        };
        self.nodes_dirty |= entry.node.address != report.node.address;
        entry.node = report.node;
        entry.heard_at = now;
        let running = report
            .instances
            .iter()
            .filter(|i| !matches!(i.state, InstanceState::Exited(_)));
        entry.running = u32::try_from(running.count()).unwrap_or(u32::MAX);
        let expected = entry.instances.clone();

        for observed in report.instances {
            if expected.contains(&observed.id) {
                self.observe_one(now, observed);
            } else if let InstanceState::Exited(reason) = observed.state
                && reason != ExitReason::Stopped
                && self.functions.contains_key(&observed.revision.function)
            {
                // Ended while another leader led, or reported again before we could acknowledge.
                self.record_exit(now, observed.id, observed.revision, reason);
            }
        }
        let accepted = report.accepted;
        let of_this_term = self.stamp(accepted.sequence) == accepted;
        for id in expected.difference(&seen) {
            let ordered = self.instances.get(id).map(|instance| instance.ordered);
            // An order that the agent has not seen yet says nothing about what it has.
            if of_this_term && ordered.is_some_and(|ordered| ordered <= accepted.sequence) {
                self.ended(now, *id, ExitReason::Lost);
            }
        }
    }

    fn observe_one(&mut self, now: Timestamp, observed: Observed) {
        let Some(instance) = self.instances.get_mut(&observed.id) else {
            return;
        };
        let function = instance.spec.revision.function;
        match observed.state {
            InstanceState::Exited(reason) => self.ended(now, observed.id, reason),
            InstanceState::Ready if instance.phase == Phase::Starting => {
                let revision = instance.spec.revision;
                instance.phase = Phase::Ready;
                instance.since = now;
                instance.ready_at = Some(now);
                instance.socket = observed.socket;
                if let Some(deploy) = self.deploys.get_mut(&revision) {
                    deploy.proved_at.get_or_insert(now);
                }
                self.touched(function);
            }
            InstanceState::Ready if instance.socket != observed.socket => {
                instance.socket = observed.socket;
                self.touched(function);
            }
            // An agent that drains by itself (a request ran past its deadline) takes no new ones.
            InstanceState::Draining if !instance.is_draining() => {
                let timeout = instance.spec.timeout.duration().as_millis();
                let deadline = now.plus_millis(u64::try_from(timeout).unwrap_or(u64::MAX));
                self.drain(now, observed.id, deadline);
            }
            InstanceState::Starting | InstanceState::Ready | InstanceState::Draining => {}
        }
    }

    /// Instances that run, that this leader does not know, and whose revision lives: kept as if it
    /// had ordered them. All others are absent from the snapshot that follows, and so they go.
    /// `is_new`: this leader hears the node for the first time. What a node brings back after it was
    /// lost has been replaced meanwhile; that it is there is no reason to want more.
    fn adopt(
        &mut self,
        now: Timestamp,
        view: &View,
        drain_grace_ms: u64,
        report: &Report,
        is_new: bool,
    ) {
        let node = report.node.id;
        for observed in &report.instances {
            let phase = match observed.state {
                InstanceState::Exited(_) => continue,
                _ if self.instances.contains_key(&observed.id) => continue,
                InstanceState::Starting => Phase::Starting,
                InstanceState::Ready => Phase::Ready,
                InstanceState::Draining => Phase::Draining { deadline: now },
            };
            if !is_live(view, observed.revision) {
                continue;
            }
            let Some(spec) = spec::instance_spec(view, observed.id, observed.revision) else {
                continue;
            };
            let timeout = u64::from(spec.timeout.secs()) * 1_000 + drain_grace_ms;
            let phase = match phase {
                Phase::Draining { .. } => Phase::Draining {
                    deadline: now.plus_millis(timeout),
                },
                other => other,
            };
            let ready = phase == Phase::Ready;
            let revision = observed.revision;
            let instance = Instance {
                spec,
                node,
                phase,
                since: observed.since,
                ready_at: ready.then_some(observed.since),
                socket: observed.socket.clone(),
                placement: "ran there already when this leader began".to_owned(),
                ordered: 0,
            };
            tracing::info!(instance = %observed.id, %revision, node = %node, "instance adopted");
            self.insert(observed.id, instance);
            // Its load is not known yet; it is not to look idle since ever.
            let (_, live) = self.counts(revision);
            let function = self.function(revision.function);
            function.demand.touch(now);
            let serving = view
                .function(revision.function)
                .and_then(|f| f.function.serving);
            if serving == Some(revision) && is_new {
                function.scaled.hold(now, live);
            }
            self.touched(revision.function);
        }
    }

    /// The session ended by itself. A later one of the same node is left alone.
    pub(crate) fn goodbye(&mut self, node: NodeId, session: u64) {
        let entry = self.nodes.get(&node);
        if entry.is_some_and(|e| e.session.as_ref().is_some_and(|s| s.number == session)) {
            self.disconnected(node);
        }
    }

    /// Whether this is the session through which the node is told what to do.
    pub(crate) fn is_current(&self, node: NodeId, session: u64) -> bool {
        let entry = self.nodes.get(&node);
        entry.is_some_and(|e| e.session.as_ref().is_some_and(|s| s.number == session))
    }
}

/// It serves, did serve, or is to prove itself.
fn is_live(view: &View, revision: RevisionId) -> bool {
    let Some(record) = view.function(revision.function) else {
        return false;
    };
    let Some(found) = record.revision(revision.number) else {
        return false;
    };
    match found.stage {
        Stage::Running => true,
        Stage::Deploying => record.function.latest == revision,
        _ => false,
    }
}
