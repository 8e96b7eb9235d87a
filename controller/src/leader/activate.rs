//! Requests are parked: instances for them, now. No I/O, no waiting, no replication.

use std::collections::{BTreeSet, VecDeque};

use coracle_model::{ActivationId, FunctionId, InstanceId, RevisionId, Stage, Timestamp};
use coracle_planner::{GatewayId, Phase, PlannerConfig, choose};
use coracle_state::{FunctionRecord, View};

use super::{memory::Memory, spec};

/// Activations remembered, so that a repeated one starts nothing.
const SEEN_KEPT: usize = 8_192;
const RETRY_SOON_MS: u64 = 500;
const RETRY_NO_ROOM_MS: u64 = 1_000;

#[derive(Debug, Default)]
pub(crate) struct Seen {
    order: VecDeque<ActivationId>,
    ids: BTreeSet<ActivationId>,
}

impl Seen {
    /// True the first time.
    fn insert(&mut self, id: ActivationId) -> bool {
        if !self.ids.insert(id) {
            return false;
        }
        self.order.push_back(id);
        if self.order.len() > SEEN_KEPT
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        true
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Activation {
    pub(crate) id: ActivationId,
    pub(crate) gateway: GatewayId,
    pub(crate) function: FunctionId,
    pub(crate) parked: u32,
}

/// The instances of the serving revision that start or are ready, or why there are none.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) instances: Vec<InstanceId>,
    /// How many of them this activation ordered.
    pub(crate) started: u32,
    pub(crate) refusal: Option<Refusal>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: String,
    pub(crate) retry_after_ms: u64,
}

fn refuse(reason: impl Into<String>, retry_after_ms: u64) -> Answer {
    let refusal = Some(Refusal {
        reason: reason.into(),
        retry_after_ms,
    });
    Answer {
        refusal,
        ..Answer::default()
    }
}

pub(crate) fn activate(
    memory: &mut Memory,
    view: &View,
    config: &PlannerConfig,
    now: Timestamp,
    activation: Activation,
    fresh: &mut dyn FnMut() -> InstanceId,
) -> Answer {
    let Activation {
        id,
        gateway,
        function,
        parked,
    } = activation;
    let Some(record) = view.function(function) else {
        return refuse("the function does not exist", RETRY_SOON_MS);
    };
    if record.function.disabled {
        return refuse("the function is disabled", RETRY_NO_ROOM_MS);
    }
    if !record.function.may_run() {
        return refuse("the function's maximum is no instance", RETRY_NO_ROOM_MS);
    }
    let Some(serving) = record.serving() else {
        return refuse(not_serving(record), RETRY_SOON_MS);
    };
    memory
        .function(function)
        .demand
        .parked(now, gateway, parked);
    if !memory.activations.insert(id) {
        return listed(memory, serving.id, None);
    }

    let (ready, live) = memory.counts(serving.id);
    let failures = memory.failures.get(&serving.id).cloned();
    if let Some(failures) = failures.as_ref().filter(|f| f.is_waiting(now)) {
        let wait = failures.retry_at.since(now);
        return listed(memory, serving.id, Some((failures.reason.clone(), wait)));
    }
    let concurrency = serving.settings.concurrency.get();
    let (_, queued) = memory
        .function(function)
        .demand
        .current(&config.scaling, now);
    let covered = (live - ready).saturating_mul(concurrency);
    let wish = queued.saturating_sub(covered).div_ceil(concurrency.max(1));
    let max = record.function.scale.max();
    let room = max.saturating_sub(live);
    let mut count = wish.min(room);
    // After a failure one try shows whether it starts again.
    if ready == 0 && failures.as_ref().is_some_and(|f| f.count > 0) {
        count = count.min(1_u32.saturating_sub(live));
    }

    let input = spec::revision_input(&record.function, serving, failures.as_ref());
    let mut refusal =
        (room == 0).then(|| (format!("at its maximum of {max} instances"), RETRY_SOON_MS));
    let mut started = 0;
    for _ in 0..count {
        let placement = match choose(&memory.inputs, &input) {
            Ok(placement) => placement,
            Err(none) => {
                memory.function(function).refused = Some((now, none.to_string()));
                refusal = Some((none.to_string(), RETRY_NO_ROOM_MS));
                break;
            }
        };
        let Some(spec) = spec::instance_spec(view, fresh(), serving.id) else {
            break;
        };
        memory.start(now, placement.node, spec, placement.reason);
        started += 1;
    }
    if started > 0 {
        let to = live + started;
        let memory = memory.function(function);
        memory.scaled.hold(now, to);
        memory.decided(now, live, to, format!("{live} → {to}: {queued} parked"));
    }
    Answer {
        started,
        ..listed(memory, serving.id, refusal)
    }
}

/// A refusal only where there is nothing to wait for.
fn listed(memory: &Memory, revision: RevisionId, otherwise: Option<(String, u64)>) -> Answer {
    let mut instances: Vec<_> = memory
        .of_function(revision.function)
        .filter(|(_, i)| i.spec.revision == revision && !i.is_draining())
        .map(|(id, i)| (i.phase != Phase::Starting, i.since, id))
        .collect();
    // Starting ones first: those that are ready the gateway knows, and they were not enough.
    instances.sort();
    let instances: Vec<_> = instances.into_iter().map(|(_, _, id)| id).collect();
    if !instances.is_empty() {
        return Answer {
            instances,
            ..Answer::default()
        };
    }
    let (reason, wait) =
        otherwise.unwrap_or_else(|| ("no instance was started".to_owned(), RETRY_SOON_MS));
    refuse(reason, wait)
}

fn not_serving(record: &FunctionRecord) -> String {
    match &record.latest().stage {
        Stage::Received | Stage::Building => "the function is being built".to_owned(),
        Stage::Deploying => "the function is being deployed".to_owned(),
        Stage::BuildFailed { reason } => format!("the build failed: {reason}"),
        Stage::DeployFailed { reason } => format!("the deploy failed: {reason}"),
        Stage::Running | Stage::Abandoned => "no revision serves".to_owned(),
    }
}
