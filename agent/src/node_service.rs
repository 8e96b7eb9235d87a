//! What gateways may ask of this node.

use std::{path::Path, pin::Pin, sync::Arc};

use coracle_base::Shutdown;
use coracle_model::{FunctionId, InstanceId, LogLine, LogStream};
use coracle_proto::{
    Wire,
    v1::{self, await_instance_response, node_service_server::NodeService},
};
use futures_util::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::{
    instances::{Instances, Outcome, Ready, WaitError, chain},
    logs::{Filter, Follow, LogStore},
};

/// Lines in one message of a log.
const BATCH_LINES: usize = 64;

#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) instances: Arc<Instances>,
    pub(crate) logs: Arc<LogStore>,
    pub(crate) shutdown: Shutdown,
}

#[tonic::async_trait]
impl NodeService for Service {
    async fn await_instance(
        &self,
        request: Request<v1::AwaitInstanceRequest>,
    ) -> Result<Response<v1::AwaitInstanceResponse>, Status> {
        let id = InstanceId::from_wire("instance", request.into_inner().instance)?;
        let outcome = tokio::select! {
            outcome = self.instances.wait(id) => outcome,
            () = self.shutdown.requested() => return Err(ending()),
        };
        let outcome = match outcome {
            Ok(Outcome::Ready(ready)) => await_instance_response::Outcome::Ready(wire(&ready)),
            Ok(Outcome::Failed(reason)) => await_instance_response::Outcome::Failed(reason.into()),
            Err(full @ WaitError::Full) => {
                return Err(Status::resource_exhausted(full.to_string()));
            }
            Err(late @ WaitError::TimedOut) => {
                return Err(Status::deadline_exceeded(late.to_string()));
            }
        };
        Ok(Response::new(v1::AwaitInstanceResponse {
            outcome: Some(outcome),
        }))
    }

    async fn kill_instance(
        &self,
        request: Request<v1::KillInstanceRequest>,
    ) -> Result<Response<v1::KillInstanceResponse>, Status> {
        let v1::KillInstanceRequest { instance, request } = request.into_inner();
        let id = InstanceId::from_wire("instance", instance)?;
        let instances = Arc::clone(&self.instances);
        let (done, ended) = tokio::sync::oneshot::channel();
        // Goes on when the gateway does not wait for the answer.
        self.shutdown.spawn("kill", async move {
            // Nobody has to be listening.
            let _ = done.send(instances.kill(id, &request).await);
        });
        match ended.await {
            Ok(Ok(())) => Ok(Response::new(v1::KillInstanceResponse {})),
            Ok(Err(error)) => Err(Status::internal(chain(&error))),
            Err(_) => Err(ending()),
        }
    }

    type LogsStream = Pin<Box<dyn Stream<Item = Result<v1::LogBatch, Status>> + Send>>;

    async fn logs(
        &self,
        request: Request<v1::LogsRequest>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        let wire = request.into_inner();
        let function = FunctionId::from_wire("function", wire.function)?;
        let filter = Filter {
            request: wire.request,
            instance: Wire::from_wire("instance", wire.instance)?,
            since_nanos: wire.since_nanos,
        };
        let tail = usize::try_from(wire.tail).unwrap_or(usize::MAX);
        let failed = |error| Status::internal(chain(&error));
        let (lines, follow) = if wire.follow {
            let (lines, follow) = self
                .logs
                .follow(function, tail, &filter)
                .await
                .map_err(failed)?;
            (lines, Some(follow))
        } else {
            (
                self.logs
                    .tail(function, tail, &filter)
                    .await
                    .map_err(failed)?,
                None,
            )
        };
        let (sender, batches) = mpsc::channel(4);
        let shutdown = self.shutdown.clone();
        self.shutdown.spawn("logs", async move {
            tokio::select! {
                () = send(lines, follow, sender) => {}
                () = shutdown.requested() => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(batches))))
    }
}

fn ending() -> Status {
    Status::unavailable("the agent is ending")
}

fn wire(ready: &Ready) -> v1::InstanceReady {
    let micros = |time: std::time::Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    v1::InstanceReady {
        socket: path(&ready.socket),
        from: ready.origin.to_owned(),
        start_micros: micros(ready.start),
        init_micros: micros(ready.init),
    }
}

fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Ends when the reader goes away, or with the last line where it does not follow.
async fn send(
    past: Vec<LogLine>,
    follow: Option<Follow>,
    to: mpsc::Sender<Result<v1::LogBatch, Status>>,
) {
    for lines in past.chunks(BATCH_LINES) {
        if to.send(Ok(batch(lines))).await.is_err() {
            return;
        }
    }
    let Some(mut follow) = follow else { return };
    loop {
        let next = tokio::select! {
            next = follow.next() => next,
            () = to.closed() => return,
        };
        let Some((mut lines, missed)) = next else {
            return;
        };
        if missed > 0 {
            lines.insert(0, gap(&lines));
        }
        for lines in lines.chunks(BATCH_LINES) {
            if to.send(Ok(batch(lines))).await.is_err() {
                return;
            }
        }
    }
}

/// Says that a slow reader missed lines, at the place where it did.
fn gap(before: &[LogLine]) -> LogLine {
    let next = before.first();
    LogLine {
        at_nanos: next.map_or(0, |line| line.at_nanos),
        instance: next.map_or(InstanceId(uuid::Uuid::nil()), |line| line.instance),
        stream: LogStream::Platform,
        request: None,
        message: "lines were skipped here: they came faster than they were read".to_owned(),
    }
}

fn batch(lines: &[LogLine]) -> v1::LogBatch {
    v1::LogBatch {
        lines: lines.iter().cloned().map(Into::into).collect(),
    }
}
