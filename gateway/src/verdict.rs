//! Why an instance broke off in the middle of a request: its node knows.

use std::{sync::Arc, time::Duration};

use coracle_base::Backoff;
use coracle_model::ExitReason;
use coracle_proto::v1::{self, await_instance_response::Outcome};
use tokio::time::timeout;

use crate::{function::Function, instance::Instance, shared::Shared, wire};

/// How long the caller's answer is held back for the reason.
const PATIENCE: Duration = Duration::from_millis(500);
/// The broken connection is usually seen before the node has reaped the process.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// `None`: the node did not say in time, or says that the instance goes on. One that has ended is
/// forgotten, so that the next request asks for another instead of waiting for this one.
///
/// Has to run on the control runtime, which carries the connections to nodes.
pub(crate) async fn ask(
    shared: Arc<Shared>,
    function: Arc<Function>,
    instance: Arc<Instance>,
) -> Option<ExitReason> {
    let reason = timeout(PATIENCE, ended(&shared, &instance)).await.ok()?;
    function.forget(instance.id);
    match ExitReason::try_from(reason) {
        Ok(reason) => Some(reason),
        Err(error) => {
            tracing::warn!(instance = %instance.id, %error, "an end that makes no sense here");
            None
        }
    }
}

async fn ended(shared: &Shared, instance: &Instance) -> v1::ExitReason {
    let mut pause = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    loop {
        if let Some(mut client) = shared.nodes.client(instance.node) {
            let request = v1::AwaitInstanceRequest {
                instance: wire::bytes(instance.id.0),
            };
            match client.await_instance(request).await {
                Ok(answer) => {
                    if let Some(Outcome::Failed(reason)) = answer.into_inner().outcome {
                        return reason;
                    }
                }
                Err(status) => {
                    tracing::debug!(instance = %instance.id, %status, "asking the node again");
                }
            }
        }
        tokio::time::sleep(pause.wait()).await;
    }
}
