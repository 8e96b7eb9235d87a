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

/// What a node says of an instance that broke off.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// It has ended; `None` when the reason makes no sense here.
    Ended(Option<ExitReason>),
    GoesOn,
    /// In time, that is.
    NoAnswer,
}

/// One that has ended is forgotten, so that the next request asks for another instead of waiting
/// for this one.
///
/// Has to run on the control runtime, which carries the connections to nodes.
pub(crate) async fn ask(
    shared: Arc<Shared>,
    function: Arc<Function>,
    instance: Arc<Instance>,
) -> Verdict {
    let mut goes_on = false;
    let Ok(reason) = timeout(PATIENCE, ended(&shared, &instance, &mut goes_on)).await else {
        return if goes_on {
            Verdict::GoesOn
        } else {
            Verdict::NoAnswer
        };
    };
    function.forget(instance.id);
    match ExitReason::try_from(reason) {
        Ok(reason) => Verdict::Ended(Some(reason)),
        Err(error) => {
            tracing::warn!(instance = %instance.id, %error, "an end that makes no sense here");
            Verdict::Ended(None)
        }
    }
}

/// `goes_on`: the node's last word, for whoever stops waiting.
async fn ended(shared: &Shared, instance: &Instance, goes_on: &mut bool) -> v1::ExitReason {
    let mut pause = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    loop {
        if let Some(mut client) = shared.nodes.client(instance.node) {
            let request = v1::AwaitInstanceRequest {
                instance: wire::bytes(instance.id.0),
            };
            match client.await_instance(request).await {
                Ok(answer) => match answer.into_inner().outcome {
                    Some(Outcome::Failed(reason)) => return reason,
                    _ => *goes_on = true,
                },
                Err(status) => {
                    *goes_on = false;
                    tracing::debug!(instance = %instance.id, %status, "asking the node again");
                }
            }
        }
        tokio::time::sleep(pause.wait()).await;
    }
}
