//! Everything that a plan is made from, as plain values.

use std::collections::{BTreeMap, BTreeSet};

use coracle_model::{
    FunctionId, InstanceId, NodeId, PlacementRules, RevisionId, RuntimeName, ScaleBounds,
    Timestamp, node::ZONE,
};

use crate::{backoff::Failures, config::PlannerConfig, demand::Demand, scale::ScaleMemory};

/// The world as the leader knows it at one moment. Agents' words may be seconds old.
#[derive(Debug, Clone, Default)]
pub struct Input {
    pub now: Timestamp,
    pub config: PlannerConfig,
    /// A new leader has not yet heard the agents: it starts and ends nothing, since what runs is
    /// not known.
    pub collecting: bool,
    pub nodes: BTreeMap<NodeId, NodeInput>,
    pub functions: BTreeMap<FunctionId, FunctionInput>,
    /// Desired and observed ones; those that ended are not here.
    pub instances: Vec<InstanceInput>,
    /// Starts of the last minute by runtime, for the stem pools.
    pub recent_starts: BTreeMap<RuntimeName, u32>,
}

#[derive(Debug, Clone)]
pub struct NodeInput {
    pub name: String,
    /// What may be promised to instances (overcommitment already applied).
    pub memory_mib: u64,
    pub cpu_millis: u64,
    /// What is promised already.
    pub used_memory_mib: u64,
    pub used_cpu_millis: u64,
    /// Idle stems.
    pub stems: BTreeMap<RuntimeName, u32>,
    pub images: BTreeSet<RuntimeName>,
    /// Revisions that ran here lately, so that their artifacts are likely on the node.
    pub recent: BTreeSet<RevisionId>,
    /// Instances of each function here, for the spread.
    pub functions: BTreeMap<FunctionId, u32>,
    pub labels: BTreeMap<String, String>,
    /// Takes new instances.
    pub schedulable: bool,
    /// What runs here is to go elsewhere.
    pub draining: Option<DrainInput>,
    /// This leader has heard it. What an unheard node runs is not known, and counts as alive for
    /// as long as the node does.
    pub heard: bool,
    /// Its session is open, or was until less than the grace period ago.
    pub alive: bool,
    /// Its session is open: it can be told to start something.
    pub reachable: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainInput {
    /// From then on what is still there goes although nothing replaces it.
    pub forced_at: Option<Timestamp>,
}

impl NodeInput {
    /// Nothing waits for replacements any more.
    pub fn is_forced(&self, now: Timestamp) -> bool {
        let forced_at = self.draining.and_then(|drain| drain.forced_at);
        forced_at.is_some_and(|at| at <= now)
    }

    /// The failure zone that it is in, if it says so.
    pub fn zone(&self) -> Option<&str> {
        self.labels.get(ZONE).map(String::as_str)
    }

    pub fn free_memory_mib(&self) -> u64 {
        self.memory_mib.saturating_sub(self.used_memory_mib)
    }

    pub fn free_cpu_millis(&self) -> u64 {
        self.cpu_millis.saturating_sub(self.used_cpu_millis)
    }

    /// Books one instance.
    pub fn take(&mut self, revision: &RevisionInput) {
        self.used_memory_mib += u64::from(revision.memory_mib);
        self.used_cpu_millis += u64::from(revision.cpu_millis);
        *self.functions.entry(revision.id.function).or_default() += 1;
        self.recent.insert(revision.id);
        if let Some(idle) = self.stems.get_mut(&revision.runtime) {
            *idle = idle.saturating_sub(1);
        }
    }

    /// Takes one instance of that size off the books.
    pub fn release(&mut self, function: FunctionId, memory_mib: u32, cpu_millis: u32) {
        self.used_memory_mib = self.used_memory_mib.saturating_sub(u64::from(memory_mib));
        self.used_cpu_millis = self.used_cpu_millis.saturating_sub(u64::from(cpu_millis));
        if let Some(count) = self.functions.get_mut(&function) {
            *count -= 1;
            if *count == 0 {
                self.functions.remove(&function);
            }
        }
    }
}

/// What placing and pacing an instance of a revision needs to know.
#[derive(Debug, Clone)]
pub struct RevisionInput {
    pub id: RevisionId,
    pub runtime: RuntimeName,
    pub memory_mib: u32,
    pub cpu_millis: u32,
    pub concurrency: u32,
    /// Of its function.
    pub rules: PlacementRules,
    pub failures: Option<Failures>,
}

/// The newest revision while it is in the stage `Deploying`.
#[derive(Debug, Clone)]
pub struct CandidateInput {
    pub revision: RevisionInput,
    /// Since when this leader has been deploying it.
    pub since: Timestamp,
    /// When its first instance answered, once one has.
    pub proved_at: Option<Timestamp>,
}

#[derive(Debug, Clone)]
pub struct FunctionInput {
    pub disabled: bool,
    pub scale: ScaleBounds,
    pub serving: Option<RevisionInput>,
    pub candidate: Option<CandidateInput>,
    /// Revisions that served before: their instances go only as the serving one's come.
    pub former: BTreeSet<RevisionId>,
    pub demand: Demand,
    pub scaled: ScaleMemory,
}

impl FunctionInput {
    /// Why it may have no instance, if it may not.
    pub(crate) fn may_not_run(&self) -> Option<&'static str> {
        if self.disabled {
            return Some("the function is disabled");
        }
        (self.scale.max() == 0).then_some("the function's maximum is no instance")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Ordered, not yet answering.
    Starting,
    Ready,
    /// Takes nothing new; to be gone at the deadline.
    Draining {
        deadline: Timestamp,
    },
}

#[derive(Debug, Clone)]
pub struct InstanceInput {
    pub id: InstanceId,
    pub revision: RevisionId,
    pub node: NodeId,
    pub phase: Phase,
    /// Of the phase.
    pub since: Timestamp,
    pub memory_mib: u32,
    pub timeout_ms: u64,
    /// A gateway said that it runs a request.
    pub busy: bool,
}

impl InstanceInput {
    pub fn is_draining(&self) -> bool {
        matches!(self.phase, Phase::Draining { .. })
    }
}
