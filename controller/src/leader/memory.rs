//! What only the leader knows: nodes, instances, demand, failures. Never replicated.
//!
//! Everything here is changed under one lock, in microseconds and without I/O; an order to an agent
//! is put into its session's channel under the same lock, so agents see orders in the order in
//! which they were decided. All of it can be lost: a new leader asks the agents what runs.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use coracle_model::{
    BuildId, BuildOutput, ExitReason, FunctionId, InstanceId, InstanceSpec, InstanceState, NodeId,
    RevisionId, RuntimeName, Stamp, Timestamp, WriteId,
    node::{Node, NodeDrain},
    query::{Decision, ExitRecord, InstanceView},
};
use coracle_planner::{BackoffConfig, Demand, Failures, NodeInput, Phase, ScaleMemory};
use coracle_proto::{Wire as _, v1};
use coracle_state::View;
use tokio::sync::mpsc;
use tonic::Status;

use super::spec;
use crate::{core::exit_kind, metrics};

/// Kept per function, for `describe`.
const DECISIONS_KEPT: usize = 100;
const EXITS_KEPT: usize = 20;
/// Revisions remembered per node as having run there.
const RECENT_KEPT: usize = 512;
const STARTS_KEPT: usize = 4_096;
const STARTS_MS: u64 = 60_000;

pub(crate) type SessionSender = mpsc::Sender<Result<v1::ControllerMessage, Status>>;

#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) number: u64,
    pub(crate) sender: SessionSender,
}

#[derive(Debug)]
pub(crate) struct NodeEntry {
    pub(crate) node: Node,
    /// `None` between sessions.
    pub(crate) session: Option<Session>,
    /// Of the last order to it; goes on over sessions, so that an older session's order is older.
    pub(crate) sequence: u64,
    /// It has spoken to this leader.
    pub(crate) heard: bool,
    /// When it last spoke; before that, when this leader began to listen.
    pub(crate) heard_at: Timestamp,
    /// Instances that its last report holds and that have not ended.
    pub(crate) running: u32,
    pub(crate) stems: BTreeMap<RuntimeName, u32>,
    pub(crate) instances: BTreeSet<InstanceId>,
    /// There is a record of it in the replicated state, and what that says.
    pub(crate) registered: bool,
    pub(crate) cordoned: bool,
    pub(crate) draining: Option<NodeDrain>,
}

#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) spec: InstanceSpec,
    pub(crate) node: NodeId,
    pub(crate) phase: Phase,
    /// Of the phase.
    pub(crate) since: Timestamp,
    pub(crate) ready_at: Option<Timestamp>,
    pub(crate) socket: String,
    pub(crate) placement: String,
    /// The order that told its node of it. A report that accepted this one and does not hold the
    /// instance says that it is gone.
    pub(crate) ordered: u64,
}

impl Instance {
    pub(crate) fn is_draining(&self) -> bool {
        matches!(self.phase, Phase::Draining { .. })
    }

    pub(crate) fn view(&self, id: InstanceId) -> InstanceView {
        InstanceView {
            id,
            revision: self.spec.revision,
            node: self.node,
            state: match self.phase {
                Phase::Starting => InstanceState::Starting,
                Phase::Ready => InstanceState::Ready,
                Phase::Draining { .. } => InstanceState::Draining,
            },
            since: self.since,
            placement: self.placement.clone(),
        }
    }

    pub(crate) fn desired(&self) -> v1::DesiredInstance {
        let deadline = match self.phase {
            Phase::Draining { deadline } => Some(deadline.0),
            Phase::Starting | Phase::Ready => None,
        };
        v1::DesiredInstance {
            spec: Some(self.spec.clone().into()),
            drain: deadline.is_some(),
            drain_deadline: deadline.unwrap_or(0),
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct FunctionMemory {
    pub(crate) demand: Demand,
    pub(crate) scaled: ScaleMemory,
    /// Newest first, both.
    pub(crate) decisions: VecDeque<Decision>,
    pub(crate) exits: VecDeque<ExitRecord>,
    /// Why there are fewer than wanted, while there are.
    pub(crate) shortage: Option<String>,
    /// When an activation last found no room, and why.
    pub(crate) refused: Option<(Timestamp, String)>,
    /// Counts changes that a plan under way does not know of.
    pub(crate) version: u64,
    pub(crate) instances: BTreeSet<InstanceId>,
}

impl FunctionMemory {
    pub(crate) fn decided(&mut self, at: Timestamp, from: u32, to: u32, reason: String) {
        self.decisions.push_front(Decision {
            at,
            from,
            to,
            reason,
        });
        self.decisions.truncate(DECISIONS_KEPT);
    }
}

/// A revision that has to prove itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deploy {
    pub(crate) since: Timestamp,
    pub(crate) proved_at: Option<Timestamp>,
}

#[derive(Debug)]
pub(crate) struct Build {
    pub(crate) id: BuildId,
    pub(crate) node: NodeId,
    pub(crate) started: Timestamp,
    pub(crate) attempts: u32,
    pub(crate) order: v1::BuildOrder,
    /// Kept until the state shows it, under the id of the write that says it.
    pub(crate) result: Option<(WriteId, Result<BuildOutput, String>)>,
}

/// Whether it leads, and how far it has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leadership {
    Following,
    /// Waiting for the agents' words since then; the first came then.
    Collecting {
        since: Timestamp,
        heard: Option<Timestamp>,
    },
    Leading,
}

#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) leadership: Leadership,
    pub(crate) incarnation: u64,
    pub(crate) term: u64,
    pub(crate) nodes: BTreeMap<NodeId, NodeEntry>,
    /// The same nodes as the planner sees them, kept up to date with every instance, so that an
    /// activation looks and does not count.
    pub(crate) inputs: BTreeMap<NodeId, NodeInput>,
    pub(crate) instances: BTreeMap<InstanceId, Instance>,
    pub(crate) functions: BTreeMap<FunctionId, FunctionMemory>,
    pub(crate) failures: BTreeMap<RevisionId, Failures>,
    pub(crate) deploys: BTreeMap<RevisionId, Deploy>,
    pub(crate) builds: BTreeMap<RevisionId, Build>,
    pub(crate) activations: super::activate::Seen,
    starts: VecDeque<(Timestamp, RuntimeName)>,
    /// Nodes that were registered when the term began.
    pub(crate) registered: usize,
    /// When the nodes' silence was last looked at.
    pub(crate) watched_at: Timestamp,
    /// Functions whose routes may differ from what gateways were told.
    pub(crate) dirty: BTreeSet<FunctionId>,
    /// Node addresses may differ too.
    pub(crate) nodes_dirty: bool,
    next_session: u64,
    pub(crate) backoff: BackoffConfig,
    overcommit: Overcommit,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Overcommit {
    pub(crate) cpu_percent: u32,
    pub(crate) memory_percent: u32,
}

impl Memory {
    pub(crate) fn new(backoff: BackoffConfig, overcommit: Overcommit) -> Self {
        Self {
            leadership: Leadership::Following,
            incarnation: 0,
            term: 0,
            nodes: BTreeMap::new(),
            inputs: BTreeMap::new(),
            instances: BTreeMap::new(),
            functions: BTreeMap::new(),
            failures: BTreeMap::new(),
            deploys: BTreeMap::new(),
            builds: BTreeMap::new(),
            activations: super::activate::Seen::default(),
            starts: VecDeque::new(),
            registered: 0,
            watched_at: Timestamp::default(),
            dirty: BTreeSet::new(),
            nodes_dirty: false,
            next_session: 0,
            backoff,
            overcommit,
        }
    }

    /// A term begins (or none is led any more): nothing of the one before counts. Open sessions
    /// end, so that every agent says anew what it runs.
    pub(crate) fn begin(&mut self, incarnation: u64, term: u64, leadership: Leadership) {
        let next_session = self.next_session;
        *self = Self::new(self.backoff.clone(), self.overcommit);
        (self.incarnation, self.term) = (incarnation, term);
        self.leadership = leadership;
        self.next_session = next_session;
    }

    pub(crate) fn leads(&self) -> bool {
        self.leadership != Leadership::Following
    }

    pub(crate) fn next_session(&mut self) -> u64 {
        self.next_session += 1;
        self.next_session
    }

    pub(crate) fn stamp(&self, sequence: u64) -> Stamp {
        Stamp {
            incarnation: self.incarnation,
            term: self.term,
            sequence,
        }
    }

    pub(crate) fn function(&mut self, id: FunctionId) -> &mut FunctionMemory {
        self.functions.entry(id).or_default()
    }

    /// Something happened to its instances: plans made before no longer fit, routes may differ.
    pub(crate) fn touched(&mut self, id: FunctionId) {
        self.function(id).version += 1;
        self.dirty.insert(id);
    }

    /// Live instances of a revision: ready ones, and all.
    pub(crate) fn counts(&self, revision: RevisionId) -> (u32, u32) {
        let of = self.of_function(revision.function);
        let (mut ready, mut live) = (0, 0);
        for (_, instance) in of.filter(|(_, i)| i.spec.revision == revision && !i.is_draining()) {
            live += 1;
            ready += u32::from(instance.phase == Phase::Ready);
        }
        (ready, live)
    }

    pub(crate) fn of_function(
        &self,
        id: FunctionId,
    ) -> impl Iterator<Item = (InstanceId, &Instance)> {
        let ids = self
            .functions
            .get(&id)
            .into_iter()
            .flat_map(|f| &f.instances);
        ids.filter_map(|id| Some((*id, self.instances.get(id)?)))
    }

    /// Puts an instance on its node and tells the agent, in that order of things and at once.
    pub(crate) fn start(
        &mut self,
        now: Timestamp,
        node: NodeId,
        spec: InstanceSpec,
        placement: String,
    ) {
        let (id, function) = (spec.id, spec.revision.function);
        self.starts.push_back((now, spec.runtime.clone()));
        if self.starts.len() > STARTS_KEPT {
            self.starts.pop_front();
        }
        let instance = Instance {
            spec,
            node,
            phase: Phase::Starting,
            since: now,
            ready_at: None,
            socket: String::new(),
            placement,
            ordered: 0,
        };
        self.insert(id, instance);
        self.order_instance(id);
        self.touched(function);
    }

    pub(crate) fn insert(&mut self, id: InstanceId, instance: Instance) {
        let (node, function) = (instance.node, instance.spec.revision.function);
        if let Some(input) = self.inputs.get_mut(&node) {
            input.take(&spec::size_of(&instance.spec));
            if input.recent.len() > RECENT_KEPT {
                // Which one is forgotten matters little: it only weighs in a score.
                input.recent.pop_first();
            }
        }
        self.instances.insert(id, instance);
        self.function(function).instances.insert(id);
        if let Some(entry) = self.nodes.get_mut(&node) {
            entry.instances.insert(id);
        }
    }

    pub(crate) fn drain(&mut self, now: Timestamp, id: InstanceId, deadline: Timestamp) {
        let Some(instance) = self.instances.get_mut(&id) else {
            return;
        };
        if instance.is_draining() {
            return;
        }
        instance.phase = Phase::Draining { deadline };
        instance.since = now;
        let function = instance.spec.revision.function;
        self.order_instance(id);
        self.touched(function);
    }

    /// What drains already is to be gone sooner.
    pub(crate) fn hasten(&mut self, id: InstanceId, sooner: Timestamp) {
        if let Some(Instance {
            phase: Phase::Draining { deadline },
            ..
        }) = self.instances.get_mut(&id)
            && sooner < *deadline
        {
            *deadline = sooner;
            self.order_instance(id);
        }
    }

    /// Off the books and off its node's assignment.
    pub(crate) fn remove(&mut self, id: InstanceId) -> Option<Instance> {
        let instance = self.instances.remove(&id)?;
        let function = instance.spec.revision.function;
        self.function(function).instances.remove(&id);
        if let Some(entry) = self.nodes.get_mut(&instance.node) {
            entry.instances.remove(&id);
        }
        if let Some(input) = self.inputs.get_mut(&instance.node) {
            let spec = &instance.spec;
            input.release(function, spec.memory.mib(), spec.cpu.get());
        }
        let delta = v1::AssignmentDelta {
            remove: vec![id.to_wire()],
            ..Default::default()
        };
        self.order(instance.node, delta);
        self.touched(function);
        Some(instance)
    }

    /// An instance ended: remembered, counted against its revision, and taken off.
    pub(crate) fn ended(&mut self, now: Timestamp, id: InstanceId, reason: ExitReason) {
        let Some(instance) = self.remove(id) else {
            return;
        };
        let answered = instance.ready_at.map_or(0, |at| now.since(at));
        let well = answered.saturating_sub(last_request_ms(&instance.spec, &reason));
        // What ends while it drains was told to, whatever it says on its way out.
        let reason = if instance.is_draining() {
            ExitReason::Stopped
        } else {
            reason
        };
        if reason == ExitReason::Stopped {
            return;
        }
        metrics::exited(exit_kind(&reason));
        let revision = instance.spec.revision;
        let before = self.failures.get(&revision);
        let after = Failures::after(before, &self.backoff, now, &reason, well);
        if let Some(failures) = after {
            self.failures.insert(revision, failures);
        }
        self.record_exit(now, id, revision, reason);
    }

    pub(crate) fn record_exit(
        &mut self,
        at: Timestamp,
        instance: InstanceId,
        revision: RevisionId,
        reason: ExitReason,
    ) {
        let retry_at = self
            .failures
            .get(&revision)
            .filter(|f| f.is_waiting(at))
            .map(|f| f.retry_at);
        let exits = &mut self.function(revision.function).exits;
        if exits.iter().any(|exit| exit.instance == instance) {
            return;
        }
        exits.push_front(ExitRecord {
            at,
            instance,
            revision,
            reason,
            retry_at,
        });
        exits.truncate(EXITS_KEPT);
    }

    /// What the node said of itself, with the books as they are.
    pub(crate) fn describe_node(&mut self, node: &Node) {
        let mut said = node_input(node, self.overcommit);
        if let Some(entry) = self.nodes.get(&node.id) {
            said.schedulable = node.schedulable && !entry.cordoned;
            said.draining = entry.drain_input();
            said.heard = entry.heard;
            said.reachable = entry.heard;
        }
        match self.inputs.get_mut(&node.id) {
            None => {
                self.inputs.insert(node.id, said);
            }
            Some(input) => {
                *input = NodeInput {
                    used_memory_mib: input.used_memory_mib,
                    used_cpu_millis: input.used_cpu_millis,
                    recent: std::mem::take(&mut input.recent),
                    functions: std::mem::take(&mut input.functions),
                    ..said
                };
            }
        }
    }

    /// Starts of the last minute.
    pub(crate) fn recent_starts(&mut self, now: Timestamp) -> BTreeMap<RuntimeName, u32> {
        while self
            .starts
            .front()
            .is_some_and(|(at, _)| now.since(*at) > STARTS_MS)
        {
            self.starts.pop_front();
        }
        let mut counts = BTreeMap::new();
        for (_, runtime) in &self.starts {
            *counts.entry(runtime.clone()).or_insert(0) += 1;
        }
        counts
    }

    /// Forgets what belongs to functions and revisions that are no longer there.
    pub(crate) fn prune(&mut self, now: Timestamp, view: &View) {
        let most = self.backoff.most_ms.saturating_mul(2);
        self.functions
            .retain(|id, f| view.function(*id).is_some() || !f.instances.is_empty());
        self.failures
            .retain(|id, f| view.revision(*id).is_some() && now.since(f.last_at) < most);
        self.deploys
            .retain(|id, _| view.revision(*id).is_some_and(|r| !r.stage.is_final()));
    }
}

/// How long before an instance's end the request began that ended it, where that is known: one that
/// ran past its timeout, beside which others may have had as long again to finish.
fn last_request_ms(spec: &InstanceSpec, reason: &ExitReason) -> u64 {
    let timeouts = match reason {
        ExitReason::TimedOut if spec.concurrency.get() > 1 => 2,
        ExitReason::TimedOut => 1,
        _ => 0,
    };
    u64::from(spec.timeout.secs()) * 1_000 * timeouts
}

fn node_input(node: &Node, overcommit: Overcommit) -> NodeInput {
    let promised = |amount: u32, percent: u32| u64::from(amount) * u64::from(percent) / 100;
    NodeInput {
        name: node.name.clone(),
        memory_mib: promised(node.allocatable.memory_mib, overcommit.memory_percent),
        cpu_millis: promised(node.allocatable.cpu_millis, overcommit.cpu_percent),
        used_memory_mib: 0,
        used_cpu_millis: 0,
        stems: node.stems.clone(),
        images: node.images.iter().cloned().collect(),
        recent: BTreeSet::new(),
        functions: BTreeMap::new(),
        labels: node.labels.clone(),
        schedulable: node.schedulable,
        draining: None,
        heard: true,
        alive: true,
        reachable: true,
    }
}
