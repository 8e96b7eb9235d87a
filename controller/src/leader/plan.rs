//! The loop that makes a plan and carries it out.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use coracle_base::Shutdown;
use coracle_model::{ExitReason, FunctionId, InstanceId, Stage, Timestamp};
use coracle_planner::{
    CandidateInput, FunctionInput, Input, InstanceInput, Phase, Plan, PlannerConfig, plan,
};
use coracle_state::{Body, FunctionRecord, View};
use tokio::time::Instant;

use super::{
    desk::Desk,
    memory::{Deploy, Leadership, Memory},
    routes, spec,
};
use crate::{
    core::{Core, fresh_instance},
    metrics,
};

/// Plans follow each other at least this far apart, so that a storm of events costs bounded work.
const GAP: Duration = Duration::from_millis(2);
/// The least between two looks at whether the agents were heard.
const COLLECTING: Duration = Duration::from_millis(10);

pub(crate) async fn run(core: Arc<Core>, shutdown: Shutdown) {
    let mut next = core.config.tick;
    loop {
        tokio::select! {
            () = core.plan_wake.notified() => {}
            () = tokio::time::sleep(next) => {}
            () = shutdown.requested() => return,
        }
        next = turn(&core).await.min(core.config.tick);
        tokio::select! {
            () = tokio::time::sleep(GAP) => {}
            () = shutdown.requested() => return,
        }
    }
}

/// One plan, written as far as it has to be. Returns when the next is due at the latest.
async fn turn(core: &Core) -> Duration {
    let started = Instant::now();
    let turn = decide(core, core.now(), &mut fresh_instance);
    metrics::planned(started.elapsed(), turn.started);
    let written = !turn.writes.is_empty();
    for body in turn.writes {
        core.step(body).await;
    }
    if written {
        routes::publish(core, core.now());
        core.plan_wake.notify_one();
    }
    let due = turn
        .wake_at
        .map(|at| Duration::from_millis(at.since(core.now()).max(1)));
    due.unwrap_or(turn.due)
}

/// What came of a plan beyond the memory.
#[derive(Debug)]
pub(crate) struct Turn {
    /// To be replicated. What is not gets into the next plan again.
    pub(crate) writes: Vec<Body>,
    pub(crate) started: u64,
    /// The next plan: at that moment, or else after so long.
    pub(crate) wake_at: Option<Timestamp>,
    pub(crate) due: Duration,
}

/// Makes a plan and carries it out in the memory; agents and gateways are told.
pub(crate) fn decide(desk: &Desk, now: Timestamp, fresh: &mut dyn FnMut() -> InstanceId) -> Turn {
    let (view, input, versions) = {
        let mut memory = desk.memory();
        if !memory.leads() {
            return Turn {
                writes: Vec::new(),
                started: 0,
                wake_at: None,
                due: desk.config.tick,
            };
        }
        memory.watch_nodes(&desk.config, now);
        let view = desk.view();
        memory.follow_nodes(now, &view);
        if memory.collect(&desk.config, now) {
            routes::begin(desk, &mut memory, now);
        }
        memory.prune(now, &view);
        follow_deploys(&mut memory, &view, now);
        let input = input(&mut memory, &view, &desk.planner, now);
        let versions: BTreeMap<FunctionId, u64> = memory
            .functions
            .iter()
            .map(|(id, function)| (*id, function.version))
            .collect();
        (view, input, versions)
    };
    // Without the lock: activations go on meanwhile.
    let plan = plan(&input, fresh);
    {
        let mut memory = desk.memory();
        carry_out(&mut memory, &view, &plan, &versions, now);
        count(&memory);
    }
    routes::publish(desk, now);

    let mut writes = Vec::new();
    for revision in &plan.promote {
        tracing::info!(%revision, "revision proved itself and serves");
        writes.push(Body::Promote {
            revision: *revision,
        });
    }
    for failed in &plan.fail_deploy {
        tracing::info!(revision = %failed.revision, reason = failed.reason, "deploy failed");
        writes.push(Body::FailDeploy {
            revision: failed.revision,
            reason: coracle_state::clip(&failed.reason),
        });
    }
    let (wake_at, due) = if input.collecting {
        (None, desk.config.collect_settle.max(COLLECTING))
    } else {
        (plan.wake_at, desk.config.tick)
    };
    Turn {
        writes,
        started: plan.start.len() as u64,
        wake_at,
        due,
    }
}

/// Since when each revision has been proving itself.
fn follow_deploys(memory: &mut Memory, view: &View, now: Timestamp) {
    for revision in view.unsettled().filter(|r| r.stage == Stage::Deploying) {
        let rests = view
            .function(revision.id.function)
            .is_some_and(|f| !f.function.may_run());
        if rests {
            memory.deploys.remove(&revision.id);
        } else if !memory.deploys.contains_key(&revision.id) {
            let ready = memory.counts(revision.id).0 > 0;
            let deploy = Deploy {
                since: now,
                proved_at: ready.then_some(now),
            };
            memory.deploys.insert(revision.id, deploy);
        }
    }
}

pub(super) fn input(
    memory: &mut Memory,
    view: &View,
    config: &PlannerConfig,
    now: Timestamp,
) -> Input {
    let recent_starts = memory.recent_starts(now);
    let functions = view
        .functions()
        .map(|record| (record.function.id, function_input(memory, record)))
        .collect();
    let instances = memory.instances.iter().map(|(id, instance)| {
        let function = instance.spec.revision.function;
        let demand = memory.functions.get(&function).map(|f| &f.demand);
        InstanceInput {
            id: *id,
            revision: instance.spec.revision,
            node: instance.node,
            phase: instance.phase,
            since: instance.since,
            memory_mib: instance.spec.memory.mib(),
            timeout_ms: u64::from(instance.spec.timeout.secs()) * 1_000,
            busy: demand.is_some_and(|demand| demand.is_busy(&config.scaling, now, *id)),
        }
    });
    Input {
        now,
        config: config.clone(),
        collecting: memory.leadership != Leadership::Leading,
        nodes: memory.inputs.clone(),
        functions,
        instances: instances.collect(),
        recent_starts,
    }
}

fn function_input(memory: &Memory, record: &FunctionRecord) -> FunctionInput {
    let function = &record.function;
    let latest = record.latest();
    let candidate = (latest.stage == Stage::Deploying).then(|| {
        let deploy = memory.deploys.get(&latest.id);
        CandidateInput {
            revision: spec::revision_input(function, latest, memory.failures.get(&latest.id)),
            since: deploy.map_or(latest.updated_at, |deploy| deploy.since),
            proved_at: deploy.and_then(|deploy| deploy.proved_at),
        }
    });
    let serving = record.serving();
    let former = record
        .revisions()
        .filter(|r| r.stage == Stage::Running)
        .map(|r| r.id);
    let known = memory.functions.get(&function.id);
    FunctionInput {
        disabled: function.disabled,
        scale: function.scale,
        serving: serving.map(|s| spec::revision_input(function, s, memory.failures.get(&s.id))),
        candidate,
        former: former.filter(|id| Some(*id) != function.serving).collect(),
        demand: known.map(|f| f.demand.clone()).unwrap_or_default(),
        scaled: known.map(|f| f.scaled.clone()).unwrap_or_default(),
    }
}

/// Functions that changed while the plan was made keep what they have; the change has woken the
/// loop, and the next plan knows of it.
fn carry_out(
    memory: &mut Memory,
    view: &View,
    plan: &Plan,
    versions: &BTreeMap<FunctionId, u64>,
    now: Timestamp,
) {
    if !memory.leads() {
        return;
    }
    let stale: std::collections::BTreeSet<FunctionId> = memory
        .functions
        .iter()
        .filter(|(id, f)| versions.get(id).copied().unwrap_or(0) != f.version)
        .map(|(id, _)| *id)
        .collect();
    let fits = |id: FunctionId| !stale.contains(&id);

    for id in &plan.lost {
        memory.ended(now, *id, ExitReason::Lost);
    }
    for id in &plan.stop {
        memory.remove(*id);
    }
    for drain in plan.drain.iter().filter(|drain| fits(drain.function)) {
        tracing::info!(instance = %drain.id, reason = drain.reason, "draining");
        memory.drain(now, drain.id, drain.deadline);
        memory.hasten(drain.id, drain.deadline);
    }
    for start in plan
        .start
        .iter()
        .filter(|start| fits(start.revision.function))
    {
        // Its function may have gone since.
        let Some(spec) = spec::instance_spec(view, start.id, start.revision) else {
            continue;
        };
        tracing::info!(
            instance = %start.id,
            revision = %start.revision,
            node = %start.node,
            placement = start.placement,
            "starting"
        );
        memory.start(now, start.node, spec, start.placement.clone());
    }
    for (id, scaled) in plan.scaled.iter().filter(|(id, _)| fits(**id)) {
        let shortage = plan
            .shortages
            .get(id)
            .map(|shortage| shortage.reason.clone());
        let function = memory.function(*id);
        function.scaled = scaled.clone();
        if shortage.is_some() && function.shortage != shortage {
            tracing::warn!(function = %id, shortage, "fewer instances than wanted");
        }
        function.shortage = shortage;
        if let Some(decision) = plan.decisions.get(id) {
            tracing::debug!(function = %id, decision = decision.reason, "scaling");
            function.decided(now, decision.from, decision.to, decision.reason.clone());
        }
    }
    for revision in &plan.promote {
        // Used from now on: its idle time begins at the switch.
        memory.function(revision.function).demand.touch(now);
    }
    // What gateways were told of failures ends with their waiting time.
    let failing: Vec<_> = memory
        .failures
        .keys()
        .map(|revision| revision.function)
        .collect();
    memory.dirty.extend(failing);
    for (node, stems) in &plan.stems {
        memory.set_stems(*node, stems.clone());
    }
}

fn count(memory: &Memory) {
    let (mut starting, mut ready, mut draining) = (0, 0, 0);
    for instance in memory.instances.values() {
        match instance.phase {
            Phase::Starting => starting += 1,
            Phase::Ready => ready += 1,
            Phase::Draining { .. } => draining += 1,
        }
    }
    let alive = memory.inputs.values().filter(|node| node.alive).count();
    let gone = memory.inputs.len() - alive;
    let small = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    metrics::population(starting, ready, draining, small(alive), small(gone));
}
