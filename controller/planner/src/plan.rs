//! From what is known to what is to be done.
//!
//! A plan is level-triggered: it is made from the whole input each time, and carrying it out twice
//! or only in part does no harm, since the next one is made from what came of it.

use std::collections::{BTreeMap, BTreeSet};

use coracle_model::{FunctionId, InstanceId, NodeId, RevisionId, RuntimeName, Timestamp};

use crate::{
    input::{CandidateInput, FunctionInput, Input, InstanceInput, NodeInput, Phase, RevisionInput},
    place::{NoRoom, place},
    scale::{Decision, ScaleInput, ScaleMemory, decide},
    stems,
};

/// An agent gets this long after a drain's deadline to do by itself what the deadline says.
const DRAIN_SLACK_MS: u64 = 5_000;

const LEAVING: &str = "its node is being drained";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    pub id: InstanceId,
    pub revision: RevisionId,
    pub node: NodeId,
    /// Why there.
    pub placement: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drain {
    pub id: InstanceId,
    pub function: FunctionId,
    pub deadline: Timestamp,
    pub reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedDeploy {
    pub revision: RevisionId,
    pub reason: String,
}

/// Instances that should be and cannot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    pub missing: u32,
    pub reason: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    pub start: Vec<Start>,
    pub drain: Vec<Drain>,
    /// Drains whose deadline has passed: off the assignment.
    pub stop: Vec<InstanceId>,
    /// Their node is gone: forgotten, and replaced where they were needed.
    pub lost: Vec<InstanceId>,
    pub promote: Vec<RevisionId>,
    pub fail_deploy: Vec<FailedDeploy>,
    pub stems: BTreeMap<NodeId, BTreeMap<RuntimeName, u32>>,
    pub decisions: BTreeMap<FunctionId, Decision>,
    /// The autoscaler's memory to keep, for every function.
    pub scaled: BTreeMap<FunctionId, ScaleMemory>,
    pub shortages: BTreeMap<FunctionId, Shortage>,
    /// When something is due that no event will announce.
    pub wake_at: Option<Timestamp>,
}

/// `fresh` gives the ids of new instances; the same input and ids give the same plan.
pub fn plan(input: &Input, fresh: &mut dyn FnMut() -> InstanceId) -> Plan {
    let mut planner = Planner {
        input,
        fresh,
        nodes: input.nodes.clone(),
        taken: BTreeSet::new(),
        unheard: input.nodes.values().any(|n| n.alive && !n.heard),
        plan: Plan::default(),
    };
    if !input.collecting {
        planner.all();
    }
    planner.plan.stems = stems::size(input, &planner.nodes);
    planner.plan
}

struct Planner<'a> {
    input: &'a Input,
    fresh: &'a mut dyn FnMut() -> InstanceId,
    /// With this plan's starts booked.
    nodes: BTreeMap<NodeId, NodeInput>,
    /// Drained by this plan.
    taken: BTreeSet<InstanceId>,
    /// Some node that may run anything has not spoken yet.
    unheard: bool,
    plan: Plan,
}

impl<'a> Planner<'a> {
    fn all(&mut self) {
        let mut by_function: BTreeMap<FunctionId, Vec<&'a InstanceInput>> = BTreeMap::new();
        for instance in &self.input.instances {
            match instance.phase {
                _ if !self
                    .nodes
                    .get(&instance.node)
                    .is_some_and(|node| node.alive) =>
                {
                    self.plan.lost.push(instance.id);
                }
                Phase::Draining { deadline } => {
                    let deadline = self.hasten(instance, deadline);
                    let until = deadline.plus_millis(DRAIN_SLACK_MS);
                    if until <= self.input.now {
                        self.plan.stop.push(instance.id);
                    } else {
                        self.wake(until);
                    }
                }
                _ => by_function
                    .entry(instance.revision.function)
                    .or_default()
                    .push(instance),
            }
        }
        self.force_drains();
        for (id, function) in &self.input.functions {
            let live = by_function.remove(id).unwrap_or_default();
            self.function(*id, function, &live);
        }
        for orphan in by_function.into_values().flatten() {
            self.drain(orphan, "its function was deleted");
        }
        self.relieve_pressure();
    }

    fn function(
        &mut self,
        id: FunctionId,
        function: &'a FunctionInput,
        live: &[&'a InstanceInput],
    ) {
        let serving = function.serving.as_ref();
        let candidate = function.candidate.as_ref();
        let of = |revision: Option<RevisionId>| -> Vec<&'a InstanceInput> {
            live.iter()
                .filter(|i| Some(i.revision) == revision)
                .copied()
                .collect()
        };
        let current = of(serving.map(|s| s.id));
        let (mut leaving, mut staying) = self.split(&current);
        let wanted = self.scale(id, function, &current);
        if let Some(why) = function.may_not_run() {
            // Also a newest revision that has not proved itself: it does so when it may.
            for instance in live {
                self.drain(instance, why);
            }
            return;
        }

        if let Some(serving) = serving {
            let missing = wanted.saturating_sub(count(&staying));
            if self.unheard {
                // They may be where nobody has looked yet. What is parked does not wait for that:
                // an activation starts instances elsewhere.
                self.wait_for_unheard(id, missing);
            } else {
                self.start(id, serving, missing, ready(&current), count(&current));
            }
            self.drain_excess(&mut staying, wanted, "more than the load needs");
            self.drain_excess(
                &mut leaving,
                wanted.saturating_sub(ready(&staying)),
                LEAVING,
            );
        }
        let mut former: Vec<_> = live
            .iter()
            .filter(|i| function.former.contains(&i.revision))
            .copied()
            .collect();
        // They fill in for what the serving revision does not have ready yet, and no longer.
        let fill_in = wanted.saturating_sub(ready(&current));
        self.drain_excess(&mut former, fill_in, "a newer revision serves");

        if let Some(candidate) = candidate {
            let own = of(Some(candidate.revision.id));
            self.deploy(id, function, candidate, &own, wanted);
        }
        for instance in live {
            let revision = instance.revision;
            let known = serving.is_some_and(|s| s.id == revision)
                || candidate.is_some_and(|c| c.revision.id == revision)
                || function.former.contains(&revision);
            if !known {
                self.drain(instance, "its revision does not serve");
            }
        }
    }

    /// How many instances the serving revision should have.
    fn scale(
        &mut self,
        id: FunctionId,
        function: &FunctionInput,
        current: &[&'a InstanceInput],
    ) -> u32 {
        let mut memory = function.scaled.clone();
        let (Some(serving), false) = (&function.serving, function.disabled) else {
            let from = std::mem::take(&mut memory).wanted;
            if from > 0 {
                let reason = format!("{from} → 0: disabled");
                self.plan.decisions.insert(
                    id,
                    Decision {
                        from,
                        to: 0,
                        reason,
                    },
                );
            }
            self.plan.scaled.insert(id, memory);
            return 0;
        };
        // Two that are one, since the one replaces the other, are not more capacity.
        let (_, staying) = self.split(current);
        let scale = ScaleInput {
            now: self.input.now,
            config: &self.input.config.scaling,
            bounds: function.scale,
            concurrency: serving.concurrency,
            ready: ready(current).min(memory.wanted.max(ready(&staying))),
            live: count(current).min(memory.wanted.max(count(&staying))),
            demand: &function.demand,
        };
        if let Some(decision) = decide(&scale, &mut memory) {
            self.plan.decisions.insert(id, decision);
        }
        let wanted = memory.wanted;
        self.plan.scaled.insert(id, memory);
        wanted
    }

    /// The newest revision on its way to serving: first as many instances as the minimum asks for
    /// (one in any case: the proof), then as many as the traffic needs, then the switch. Without a
    /// serving revision there is nothing to switch from, so the first answer is enough.
    fn deploy(
        &mut self,
        id: FunctionId,
        function: &FunctionInput,
        candidate: &CandidateInput,
        own: &[&'a InstanceInput],
        wanted: u32,
    ) {
        let config = &self.input.config;
        let now = self.input.now;
        let revision = &candidate.revision;
        if let Some(failures) = &revision.failures
            && (failures.of_function() >= config.deploy_tries
                || failures.count >= config.deploy_tries_in_all)
        {
            let reason = failures.reason.clone();
            self.fail_deploy(revision.id, reason, own);
            return;
        }
        let takes_over = function.serving.is_some();
        let proof = function.scale.min().max(1);
        let needed = if takes_over { proof.max(wanted) } else { proof };
        let (mut leaving, staying) = self.split(own);
        let ready_elsewhere = ready(&staying);
        let ready = ready(own);
        let target = if ready == 0 { proof } else { needed };
        let missing = target.saturating_sub(count(&staying));
        self.drain_excess(
            &mut leaving,
            target.saturating_sub(ready_elsewhere),
            LEAVING,
        );
        let short = self.start(id, revision, missing, ready, count(own));

        let patience = config.deploy_patience_ms;
        if ready > 0 {
            let waited = candidate
                .proved_at
                .is_some_and(|at| now.since(at) >= patience);
            // Short of room the switch goes on one by one: each instance that drains makes room.
            if !takes_over || ready >= needed || short.is_some() || waited {
                self.plan.promote.push(revision.id);
            } else if let Some(at) = candidate.proved_at {
                self.wake(at.plus_millis(patience));
            }
        } else if let Some(none) = short
            && own.is_empty()
            && none.gone < none.nodes
        {
            let until = candidate.since.plus_millis(patience);
            if until <= now {
                self.fail_deploy(revision.id, none.to_string(), own);
            } else {
                self.wake(until);
            }
        }
    }

    fn fail_deploy(&mut self, revision: RevisionId, reason: String, own: &[&'a InstanceInput]) {
        self.plan
            .fail_deploy
            .push(FailedDeploy { revision, reason });
        for instance in own {
            self.drain(instance, "its deploy failed");
        }
    }

    /// Starts what is missing, as far as the back-off and the nodes allow.
    fn start(
        &mut self,
        id: FunctionId,
        revision: &RevisionInput,
        missing: u32,
        ready: u32,
        live: u32,
    ) -> Option<NoRoom> {
        let mut missing = missing;
        if let Some(failures) = &revision.failures {
            if failures.is_waiting(self.input.now) {
                if missing > 0 {
                    self.wake(failures.retry_at);
                }
                return None;
            }
            // While nothing answers, one at a time is enough to see whether it starts again.
            if failures.count > 0 && ready == 0 {
                missing = missing.min(1_u32.saturating_sub(live));
            }
        }
        for done in 0..missing {
            match place(&mut self.nodes, revision) {
                Ok(placement) => self.plan.start.push(Start {
                    id: (self.fresh)(),
                    revision: revision.id,
                    node: placement.node,
                    placement: placement.reason,
                }),
                Err(none) => {
                    let shortage = Shortage {
                        missing: missing - done,
                        reason: none.to_string(),
                    };
                    self.plan.shortages.insert(id, shortage);
                    return Some(none);
                }
            }
        }
        None
    }

    /// Leaves `keep` of them: those first that answer and work, then the oldest.
    fn drain_excess(
        &mut self,
        instances: &mut [&'a InstanceInput],
        keep: u32,
        reason: &'static str,
    ) {
        instances.sort_by_key(|i| {
            let away = self.is_leaving(i);
            (away, i.phase != Phase::Ready, !i.busy, i.since, i.id)
        });
        let keep = usize::try_from(keep).unwrap_or(usize::MAX);
        for instance in instances.iter().skip(keep) {
            self.drain(instance, reason);
        }
    }

    fn drain(&mut self, instance: &InstanceInput, reason: &'static str) {
        if self.taken.insert(instance.id) {
            let time = instance
                .timeout_ms
                .saturating_add(self.input.config.drain_grace_ms);
            let deadline = self.input.now.plus_millis(time);
            let forced_at = self.forced_at(instance);
            self.plan.drain.push(Drain {
                id: instance.id,
                function: instance.revision.function,
                deadline: forced_at.map_or(deadline, |at| deadline.min(at.max(self.input.now))),
                reason,
            });
        }
    }

    /// What is on nodes that drain, and the rest.
    fn split(
        &self,
        instances: &[&'a InstanceInput],
    ) -> (Vec<&'a InstanceInput>, Vec<&'a InstanceInput>) {
        instances.iter().partition(|i| self.is_leaving(i))
    }

    fn is_leaving(&self, instance: &InstanceInput) -> bool {
        let node = self.nodes.get(&instance.node);
        node.is_some_and(|node| node.draining.is_some())
    }

    fn forced_at(&self, instance: &InstanceInput) -> Option<Timestamp> {
        let node = self.nodes.get(&instance.node)?;
        node.draining.and_then(|drain| drain.forced_at)
    }

    /// Nodes whose drain is forced by now: what is there goes, replaced or not.
    fn force_drains(&mut self) {
        for instance in &self.input.instances {
            let node = self.nodes.get(&instance.node);
            let Some(node) = node.filter(|node| node.alive) else {
                continue;
            };
            if node.is_forced(self.input.now) && !instance.is_draining() {
                self.drain(instance, LEAVING);
            } else if let Some(at) = node.draining.and_then(|drain| drain.forced_at)
                && at > self.input.now
            {
                self.wake(at);
            }
        }
    }

    /// A drain that began before its node's was forced ends with it.
    fn hasten(&mut self, instance: &InstanceInput, deadline: Timestamp) -> Timestamp {
        let now = self.input.now;
        match self.forced_at(instance).map(|at| at.max(now)) {
            Some(sooner) if sooner < deadline => {
                self.plan.drain.push(Drain {
                    id: instance.id,
                    function: instance.revision.function,
                    deadline: sooner,
                    reason: LEAVING,
                });
                sooner
            }
            _ => deadline,
        }
    }

    fn wait_for_unheard(&mut self, id: FunctionId, missing: u32) {
        if missing > 0 {
            let reason = "a node that may run it has not spoken to the new leader yet".to_owned();
            self.plan.shortages.insert(id, Shortage { missing, reason });
        }
    }

    /// Where a node is nearly full, instances of functions that nobody calls right now make room
    /// before their idle time is over, the longest unused first, so that a cold start elsewhere
    /// finds room without waiting for it.
    fn relieve_pressure(&mut self) {
        let config = &self.input.config;
        let mut live: BTreeMap<FunctionId, u32> = BTreeMap::new();
        let mut idle: BTreeMap<NodeId, Vec<(Option<Timestamp>, &'a InstanceInput)>> =
            BTreeMap::new();
        let mut leaving: BTreeMap<NodeId, u64> = BTreeMap::new();
        for instance in &self.input.instances {
            // What its node's drain moves is moved already.
            if self.is_leaving(instance) {
                continue;
            }
            if instance.is_draining() || self.taken.contains(&instance.id) {
                *leaving.entry(instance.node).or_default() += u64::from(instance.memory_mib);
                continue;
            }
            let id = instance.revision.function;
            let Some(function) = self.input.functions.get(&id) else {
                continue;
            };
            if function.serving.as_ref().map(|s| s.id) != Some(instance.revision) {
                continue;
            }
            *live.entry(id).or_default() += 1;
            let unused = function.demand.last_active();
            let quiet = unused.is_none_or(|at| self.input.now.since(at) >= config.reclaim_idle_ms)
                && function.demand.current(&config.scaling, self.input.now) == (0, 0);
            if quiet && instance.phase == Phase::Ready && !instance.busy {
                idle.entry(instance.node)
                    .or_default()
                    .push((unused, instance));
            }
        }
        for (node_id, mut instances) in idle {
            let Some(node) = self.nodes.get(&node_id) else {
                continue;
            };
            let headroom = node.memory_mib * u64::from(config.headroom_percent) / 100;
            let mut free =
                node.free_memory_mib() + leaving.get(&node_id).copied().unwrap_or_default();
            instances.sort_by_key(|(unused, instance)| (*unused, instance.id));
            for (_, instance) in instances {
                if free >= headroom {
                    break;
                }
                let id = instance.revision.function;
                let min = self.input.functions.get(&id).map_or(0, |f| f.scale.min());
                let Some(count) = live.get_mut(&id).filter(|count| **count > min) else {
                    continue;
                };
                *count -= 1;
                if let Some(memory) = self.plan.scaled.get_mut(&id) {
                    *memory = ScaleMemory {
                        wanted: *count,
                        ..ScaleMemory::default()
                    };
                }
                free += u64::from(instance.memory_mib);
                self.drain(instance, "unused, and its node is nearly full");
            }
        }
    }

    fn wake(&mut self, at: Timestamp) {
        self.plan.wake_at = Some(self.plan.wake_at.map_or(at, |before| before.min(at)));
    }
}

fn count(instances: &[&InstanceInput]) -> u32 {
    u32::try_from(instances.len()).unwrap_or(u32::MAX)
}

fn ready(instances: &[&InstanceInput]) -> u32 {
    let ready = instances.iter().filter(|i| i.phase == Phase::Ready).count();
    u32::try_from(ready).unwrap_or(u32::MAX)
}
