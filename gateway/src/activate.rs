//! From parked requests to an instance that answers.
//!
//! One loop a function, alive only while requests are parked: it asks the leader to activate,
//! repeats the question under the same id until some controller answers, and waits on the nodes
//! for what the leader ordered. It never sends a request; a slot that becomes free does that.

use std::{collections::hash_map::Entry, sync::Arc, time::Duration};

use coracle_base::Backoff;
use coracle_model::{ExitReason, InstanceId, NodeId};
use coracle_proto::v1::{self, await_instance_response::Outcome};
use tokio::time::{Instant, timeout};
use tonic::Status;
use uuid::Uuid;

use crate::{
    function::Function,
    instance::{Birth, Instance},
    respond::{Code, Error},
    shared::Shared,
    wire,
};

/// A warm function's request may get a slot at any moment; only one that still waits then is a
/// reason to ask for more instances.
const WARM_PATIENCE: Duration = Duration::from_millis(5);
/// Requests that park together are asked for together.
const GATHER: Duration = Duration::from_millis(1);
/// How often the question is put again while requests stay parked.
const AGAIN: Duration = Duration::from_millis(500);
/// After this a question is put anew, with what has parked meanwhile.
const ACTIVATION: Duration = Duration::from_secs(60);
/// A refusal that is over this soon is waited for.
const SHORT_REFUSAL: Duration = Duration::from_secs(1);
/// Beyond the init timeout, for the node to say that it gave up.
const NODE_GRACE: Duration = Duration::from_secs(5);

/// Sees to it that the function's loop runs.
pub(crate) fn ensure(shared: &Arc<Shared>, function: &Arc<Function>) {
    use std::sync::atomic::Ordering::SeqCst;
    if !function.activating.swap(true, SeqCst) {
        let (shared, function) = (shared.clone(), function.clone());
        shared.control.clone().spawn(async move {
            loop {
                run(&shared, &function).await;
                function.activating.store(false, SeqCst);
                // Whoever parked before the store saw `true` and relied on this loop.
                if function.waiting() == 0 || function.activating.swap(true, SeqCst) {
                    return;
                }
            }
        });
    }
}

async fn run(shared: &Arc<Shared>, function: &Arc<Function>) {
    let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_millis(500));
    let mut stuck_pause = backoff.clone();
    let mut activation = Uuid::new_v4();
    let mut asked_for = 0;
    let mut asked_at: Option<Instant> = None;
    let began = Instant::now();
    if function.is_warm() {
        tokio::time::sleep(WARM_PATIENCE).await;
    }
    loop {
        let parked = function.waiting();
        if parked == 0 {
            return;
        }
        let due = asked_at.is_none_or(|at| at.elapsed() >= AGAIN);
        let stuck = !function.is_warm() && nobody_awaited(function);
        if stuck && asked_at.is_some() && parked <= asked_for {
            // What was ordered is gone already, or cannot be reached: not asked in a tight loop.
            tokio::time::sleep(stuck_pause.wait()).await;
        } else if !due && parked <= asked_for {
            stuck_pause.reset();
            // Woken by `changed`, which parking, instances and failed starts all touch.
            let _ = timeout(AGAIN, function.changed.notified()).await;
            continue;
        }
        let request = v1::ActivateRequest {
            activation: wire::bytes(activation),
            gateway: wire::bytes(shared.config.gateway_id),
            function: wire::bytes(function.id.0),
            parked: u32::try_from(parked).unwrap_or(u32::MAX),
        };
        let asked = Instant::now();
        shared.metrics.activations.increment(1);
        let answer = match ask_leader(shared, function, &request).await {
            None => return,
            Some(Ok(answer)) => answer,
            Some(Err(status)) => {
                // A leader that has not heard of the function yet answers NOT_FOUND; it is asked
                // again, under the same id, while requests wait.
                tracing::debug!(function = %function.id, %status, "activation not answered");
                tokio::time::sleep(backoff.wait()).await;
                continue;
            }
        };
        backoff.reset();
        activation = Uuid::new_v4();
        asked_for = parked;
        asked_at = Some(Instant::now());
        function.set_trouble(None);
        let wait = take_answer(shared, function, answer, asked.elapsed(), began);
        tokio::time::sleep(wait.unwrap_or(GATHER)).await;
        if wait.is_some() {
            asked_at = None;
        }
    }
}

/// Until some leader answers; `None` when nobody waits for it any more.
async fn ask_leader(
    shared: &Shared,
    function: &Function,
    request: &v1::ActivateRequest,
) -> Option<Result<v1::ActivateResponse, Status>> {
    let doubt = |status: &Status| {
        tracing::debug!(function = %function.id, %status, "activation not answered yet");
        function.set_trouble(Some(
            Error::new(Code::NoController, "no controller could start an instance").retry_after(1),
        ));
    };
    let deadline = Instant::now() + ACTIVATION;
    let asking = shared.controllers.activate(request, deadline, doubt);
    tokio::pin!(asking);
    loop {
        tokio::select! {
            answer = &mut asking => return Some(answer),
            () = tokio::time::sleep(AGAIN) => {
                if function.waiting() == 0 {
                    return None;
                }
            }
        }
    }
}

fn nobody_awaited(function: &Function) -> bool {
    function
        .awaited
        .lock()
        .expect("never poisoned: no panic while held")
        .is_empty()
}

/// Starts waiting for what was ordered. Returns how long to hold back before asking again.
fn take_answer(
    shared: &Arc<Shared>,
    function: &Arc<Function>,
    answer: v1::ActivateResponse,
    schedule: Duration,
    began: Instant,
) -> Option<Duration> {
    let concurrency = function.route().concurrency;
    for named in answer.instances.iter().filter(|i| !i.draining) {
        let (Some(id), Some(node)) = (wire::uuid(&named.id), wire::uuid(&named.node)) else {
            continue;
        };
        // The feed may have been faster than this answer. Who waited for such an instance still
        // wants to hear how its start went.
        let told = |i: &Instance| i.birth().is_some() || i.learned_at < began;
        let known = function
            .live
            .load()
            .iter()
            .any(|i| i.id.0 == id && i.is_live() && told(i));
        if known {
            continue;
        }
        let mut awaited = function
            .awaited
            .lock()
            .expect("never poisoned: no panic while held");
        if let Entry::Vacant(place) = awaited.entry(InstanceId(id)) {
            place.insert(schedule);
            let expected = Expected {
                id: InstanceId(id),
                node: NodeId(node),
                revision: named.revision.as_ref().map_or(0, |r| r.number),
                concurrency,
                schedule,
            };
            shared
                .control
                .spawn(await_instance(shared.clone(), function.clone(), expected));
        }
    }
    if answer.refusal.is_empty() || function.is_warm() || !nobody_awaited(function) {
        return None;
    }
    let pause = Duration::from_millis(answer.retry_after_millis);
    if !pause.is_zero() && pause <= SHORT_REFUSAL {
        return Some(pause);
    }
    let code = match function.route().failing {
        Some(_) => Code::FunctionFailing,
        None => Code::NoCapacity,
    };
    let seconds = answer.retry_after_millis.div_ceil(1000);
    function.fail_parked(&Error::new(code, answer.refusal).retry_after(seconds));
    None
}

struct Expected {
    id: InstanceId,
    node: NodeId,
    revision: u32,
    concurrency: u32,
    schedule: Duration,
}

async fn await_instance(shared: Arc<Shared>, function: Arc<Function>, expected: Expected) {
    let limit = function.route().init_timeout + NODE_GRACE;
    let outcome = timeout(limit, ask_node(&shared, &expected)).await.ok();
    if let Some(Outcome::Ready(ready)) = &outcome {
        let instance = Instance::new(
            expected.id,
            expected.node,
            expected.revision,
            expected.concurrency,
            (&ready.socket).into(),
            false,
            Instant::now(),
        );
        instance.set_birth(Birth {
            schedule: expected.schedule,
            from: origin(&ready.from),
            start: Duration::from_micros(ready.start_micros),
            init: Duration::from_micros(ready.init_micros),
        });
        function.learned(instance);
    }
    // After `learned`, so that a request which looks in between finds one of the two.
    function
        .awaited
        .lock()
        .expect("never poisoned: no panic while held")
        .remove(&expected.id);
    match outcome {
        Some(Outcome::Ready(_)) => {}
        Some(Outcome::Failed(reason)) => start_failed(&function, expected.id, reason),
        None => tracing::info!(function = %function.id, instance = %expected.id,
            "the node did not say in time how the start went"),
    }
    function.changed.notify_one();
}

/// The names that go into headers; a node of another version may have more.
fn origin(from: &str) -> &'static str {
    ["stem", "thaw", "scratch", "running"]
        .into_iter()
        .find(|known| *known == from)
        .unwrap_or_default()
}

/// Until the node answers; its agent may be restarting, or its address still on the way.
async fn ask_node(shared: &Shared, expected: &Expected) -> Outcome {
    let mut backoff = Backoff::new(Duration::from_millis(2), Duration::from_millis(500));
    loop {
        if let Some(mut client) = shared.nodes.client(expected.node) {
            let request = v1::AwaitInstanceRequest {
                instance: wire::bytes(expected.id.0),
            };
            match client.await_instance(request).await {
                Ok(answer) => {
                    if let Some(outcome) = answer.into_inner().outcome {
                        return outcome;
                    }
                }
                Err(status) => {
                    tracing::debug!(instance = %expected.id, %status, "asking the node again");
                }
            }
        }
        tokio::time::sleep(backoff.wait()).await;
    }
}

fn start_failed(function: &Arc<Function>, id: InstanceId, reason: v1::ExitReason) {
    function.forget(id);
    let reason = ExitReason::try_from(reason).unwrap_or_else(|error| ExitReason::LaunchFailed {
        message: error.to_string(),
    });
    tracing::info!(function = %function.id, instance = %id, %reason, "an instance did not start");
    if !reason.is_failure() {
        // Stopped for the scheduler's own reasons: the loop asks for another one.
        return;
    }
    let error = start_error(&reason);
    function.set_trouble(Some(error.clone()));
    if !function.is_warm() && nobody_awaited(function) {
        function.fail_parked(&error);
    }
}

/// What the callers of a function that could not start are told.
fn start_error(reason: &ExitReason) -> Error {
    let code = match reason {
        ExitReason::LaunchFailed { .. } => Code::LaunchFailed,
        ExitReason::InitTimedOut { .. } => Code::InitTimeout,
        _ => Code::InitFailed,
    };
    Error::new(code, reason.to_string()).retry_after(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_code() {
        let cases = [
            (
                ExitReason::InitFailed {
                    message: "x".into(),
                },
                Code::InitFailed,
            ),
            (ExitReason::Exited { code: 1 }, Code::InitFailed),
            (ExitReason::OutOfMemory { limit_mib: 64 }, Code::InitFailed),
            (ExitReason::InitTimedOut { seconds: 3 }, Code::InitTimeout),
            (
                ExitReason::LaunchFailed {
                    message: "x".into(),
                },
                Code::LaunchFailed,
            ),
        ];
        for (reason, code) in cases {
            assert_eq!(start_error(&reason).code, code, "{reason}");
        }
    }
}
