//! What happens to an instance in which a request ran past its deadline.

use std::{sync::Arc, time::Duration};

use coracle_proto::v1;
use tokio::time::{Instant, timeout};

use crate::{admission::Slot, demand::Presence, shared::Shared, wire};

const KILL_ATTEMPT: Duration = Duration::from_secs(2);
const KILL_ATTEMPTS: u32 = 3;
/// How often an instance that finishes its other requests is looked at.
const RETIRE_CHECK: Duration = Duration::from_millis(50);

/// Stops what runs past its deadline. The slot is held until that is done.
///
/// With one request at a time the instance is killed. With more, the request is only given up on:
/// the instance takes nothing new, may finish the other requests, at most for one more timeout,
/// and is killed then. Ends when the instance is gone or the node could not be reached.
pub(crate) async fn stop(shared: Arc<Shared>, slot: Slot, presence: Presence, request: String) {
    let (function, instance) = (slot.function.clone(), slot.instance.clone());
    let first = instance.retire();
    if instance.concurrency > 1 {
        let until = Instant::now() + function.route().timeout;
        while !instance.is_gone()
            && !(first && (instance.is_abandoned() || Instant::now() >= until))
        {
            tokio::time::sleep(RETIRE_CHECK).await;
        }
    }
    if first {
        function.forget(instance.id);
        shared.metrics.kills.increment(1);
        tracing::info!(function = %function.id, instance = %instance.id, request,
            "killing an instance: a request ran past the function's timeout");
        kill(&shared, &slot, &request).await;
    }
    drop((slot, presence));
}

async fn kill(shared: &Shared, slot: &Slot, request: &str) {
    for _ in 0..KILL_ATTEMPTS {
        let Some(mut client) = shared.nodes.client(slot.instance.node) else {
            tracing::warn!(node = %slot.instance.node, "no address of the node to kill on");
            return;
        };
        let order = v1::KillInstanceRequest {
            instance: wire::bytes(slot.instance.id.0),
            request: request.to_owned(),
        };
        match timeout(KILL_ATTEMPT, client.kill_instance(order)).await {
            Ok(Ok(_)) => return,
            Ok(Err(status)) if status.code() == tonic::Code::NotFound => return,
            Ok(Err(status)) => tracing::warn!(instance = %slot.instance.id, %status, "kill failed"),
            Err(_) => tracing::warn!(instance = %slot.instance.id, "kill not answered in time"),
        }
    }
}
