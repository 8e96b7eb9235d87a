//! The facades' port, over the controllers' and nodes' gRPC services.

mod cluster;

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use axum::body::Body;
use bytes::{Bytes, BytesMut};
use coracle_facades::port::{
    ByteStream, ClusterView, ControlPlane, Invocation, LogQuery, LogStream, PortError,
};
use coracle_model::{
    Digest, FunctionKey, FunctionRef, JoinToken, MemberId, Namespace, NodeId, Operation, Project,
    ProjectId, Refusal, Revision, RevisionId, Task, TaskId, Token, TokenId, WriteId, limits,
    node::NodeChange,
    query::{FunctionRuntimeView, FunctionView, NodeView},
};
use coracle_proto::{ConvertError, Wire, v1, v1::management_client::ManagementClient};
use futures_util::StreamExt;
use http::Response;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, transport::Channel};

use crate::{
    controllers::Controllers,
    logs,
    respond::{self, Error},
    server::{ManagerBody, ManagerCall, Work},
    shared::Shared,
};

/// From a read's first attempt to giving up; an election takes a second or two.
const READ: Duration = Duration::from_secs(8);
/// The same for writes, after which their outcome is unknown.
const WRITE: Duration = Duration::from_secs(12);
/// Uploads and downloads of artifacts move up to half a gigabyte.
const TRANSFER: Duration = Duration::from_secs(120);
const CHUNK: usize = 1 << 20;

/// Implements [`ControlPlane`] for the facades on the API listener.
#[derive(Debug)]
pub(crate) struct ControllerPort {
    shared: Arc<Shared>,
    workers: Vec<mpsc::Sender<Work>>,
    turn: AtomicUsize,
}

impl ControllerPort {
    pub(crate) fn new(shared: Arc<Shared>, workers: Vec<mpsc::Sender<Work>>) -> Self {
        Self {
            shared,
            workers,
            turn: AtomicUsize::new(0),
        }
    }

    /// A read: repeated at other controllers until its deadline.
    async fn read<T, F>(
        &self,
        within: Duration,
        call: impl Fn(ManagementClient<Channel>) -> F + Send + Sync,
    ) -> Result<T, PortError>
    where
        T: Send,
        F: Future<Output = Result<tonic::Response<T>, Status>> + Send,
    {
        let deadline = Instant::now() + within;
        let answer = self.shared.controllers.ask(deadline, |channel| {
            let pending = call(Controllers::management(channel));
            async move { pending.await.map(tonic::Response::into_inner) }
        });
        answer.await.map_err(read_error)
    }

    async fn list_nodes(&self, node: Option<NodeId>) -> Result<Vec<NodeView>, PortError> {
        let request = v1::ListNodesRequest {
            node: node.to_wire(),
        };
        let answer = self
            .read(READ, |mut client| {
                let request = request.clone();
                async move { client.list_nodes(request).await }
            })
            .await?;
        all(answer.nodes)
    }
}

/// How a write ended.
fn written(answer: Result<v1::WriteResponse, Status>) -> Result<(), PortError> {
    match answer {
        Ok(v1::WriteResponse { refusal: None }) => Ok(()),
        Ok(v1::WriteResponse {
            refusal: Some(refusal),
        }) => Err(Refusal::try_from(refusal).map_err(malformed)?.into()),
        Err(status) => Err(match status.code() {
            // Any attempt may have reached a leader that could not say so any more.
            Code::Unavailable
            | Code::Aborted
            | Code::DeadlineExceeded
            | Code::Cancelled
            | Code::Unknown => PortError::Unknown(status.message().to_owned()),
            Code::ResourceExhausted => PortError::StorageFull(status.message().to_owned()),
            _ => PortError::Internal(status.to_string()),
        }),
    }
}

fn read_error(status: Status) -> PortError {
    match status.code() {
        Code::NotFound => Refusal::NotFound(status.message().to_owned()).into(),
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::Cancelled
        | Code::Unknown => PortError::Unavailable(status.message().to_owned()),
        Code::ResourceExhausted => PortError::StorageFull(status.message().to_owned()),
        _ => PortError::Internal(status.to_string()),
    }
}

#[allow(
    clippy::needless_pass_by_value,
    reason = "used as a function value in map_err"
)]
fn malformed(error: ConvertError) -> PortError {
    PortError::Internal(format!("a controller's answer makes no sense: {error}"))
}

fn all<M, T: TryFrom<M, Error = ConvertError>>(items: Vec<M>) -> Result<Vec<T>, PortError> {
    items
        .into_iter()
        .map(|item| T::try_from(item).map_err(malformed))
        .collect()
}

#[async_trait]
impl ControlPlane for ControllerPort {
    /// The same id goes to every controller asked, so a repetition cannot apply twice.
    async fn write(&self, id: WriteId, operation: Operation) -> Result<(), PortError> {
        let request = v1::WriteRequest {
            write_id: id.to_wire(),
            operation: Some(operation.into()),
        };
        let answer = self
            .shared
            .controllers
            .ask(Instant::now() + WRITE, |channel| {
                let request = request.clone();
                async move {
                    let mut client = Controllers::management(channel);
                    client.write(request).await.map(tonic::Response::into_inner)
                }
            });
        written(answer.await)
    }

    async fn put_artifact(&self, bytes: Bytes) -> Result<Digest, PortError> {
        let expected = Digest::of(&bytes);
        let answer = self
            .read(TRANSFER, |mut client| {
                let mut rest = bytes.clone();
                // The first chunk may be empty, and an empty artifact has to have one.
                let mut chunks = Vec::with_capacity(rest.len() / CHUNK + 1);
                loop {
                    let data = rest.split_to(rest.len().min(CHUNK));
                    chunks.push(v1::ArtifactChunk { data });
                    if rest.is_empty() {
                        break;
                    }
                }
                async move {
                    client
                        .put_artifact(futures_util::stream::iter(chunks))
                        .await
                }
            })
            .await?;
        let digest = Digest::from_wire("digest", answer.digest).map_err(malformed)?;
        if digest != expected {
            return Err(PortError::Internal(format!(
                "stored {expected} as {digest}"
            )));
        }
        Ok(digest)
    }

    async fn artifact(&self, digest: Digest) -> Result<Bytes, PortError> {
        let mut stream = self
            .read(READ, |mut client| {
                let request = v1::GetArtifactRequest {
                    digest: digest.to_wire(),
                    ..Default::default()
                };
                async move { client.get_artifact(request).await }
            })
            .await?;
        let gather = async {
            let mut bytes = BytesMut::new();
            while let Some(chunk) = stream.message().await.map_err(read_error)? {
                if (bytes.len() + chunk.data.len()) as u64 > limits::ARTIFACT_MAX_BYTES {
                    return Err(PortError::Internal("an artifact is too large".to_owned()));
                }
                bytes.extend_from_slice(&chunk.data);
            }
            Ok(bytes.freeze())
        };
        let bytes = timeout(TRANSFER, gather)
            .await
            .map_err(|_| PortError::Unavailable("the artifact took too long".to_owned()))??;
        if Digest::of(&bytes) != digest {
            return Err(PortError::Internal(format!(
                "the bytes of {digest} are not its own"
            )));
        }
        Ok(bytes)
    }

    async fn token(&self, id: TokenId) -> Result<Option<Token>, PortError> {
        let request = v1::GetTokenRequest { id: id.to_wire() };
        let answer = self
            .read(READ, |mut client| {
                let request = request.clone();
                async move { client.get_token(request).await }
            })
            .await?;
        answer
            .token
            .map(Token::try_from)
            .transpose()
            .map_err(malformed)
    }

    async fn tokens(&self) -> Result<Vec<Token>, PortError> {
        let call = |mut client: ManagementClient<Channel>| async move {
            client.list_tokens(v1::ListTokensRequest {}).await
        };
        all(self.read(READ, call).await?.tokens)
    }

    async fn projects(&self) -> Result<Vec<Project>, PortError> {
        let call = |mut client: ManagementClient<Channel>| async move {
            client.list_projects(v1::ListProjectsRequest {}).await
        };
        all(self.read(READ, call).await?.projects)
    }

    async fn namespaces(&self, project: ProjectId) -> Result<Vec<Namespace>, PortError> {
        let request = v1::ListNamespacesRequest { project: project.0 };
        let call = |mut client: ManagementClient<Channel>| async move {
            client.list_namespaces(request).await
        };
        all(self.read(READ, call).await?.namespaces)
    }

    async fn function(
        &self,
        project: ProjectId,
        function: &FunctionRef,
    ) -> Result<Option<FunctionView>, PortError> {
        let request = v1::GetFunctionRequest {
            project: project.0,
            function: Some(function.clone().into()),
        };
        let answer = self
            .read(READ, |mut client| {
                let request = request.clone();
                async move { client.get_function(request).await }
            })
            .await?;
        answer
            .function
            .map(FunctionView::try_from)
            .transpose()
            .map_err(malformed)
    }

    async fn functions(
        &self,
        project: ProjectId,
        namespace: Option<&str>,
    ) -> Result<Vec<FunctionView>, PortError> {
        let request = v1::ListFunctionsRequest {
            project: project.0,
            namespace: namespace.map(str::to_owned),
        };
        let answer = self
            .read(READ, |mut client| {
                let request = request.clone();
                async move { client.list_functions(request).await }
            })
            .await?;
        all(answer.functions)
    }

    async fn revisions(
        &self,
        project: ProjectId,
        function: &FunctionRef,
    ) -> Result<Vec<Revision>, PortError> {
        let request = v1::ListRevisionsRequest {
            project: project.0,
            function: Some(function.clone().into()),
        };
        let answer = self
            .read(READ, |mut client| {
                let request = request.clone();
                async move { client.list_revisions(request).await }
            })
            .await?;
        all(answer.revisions)
    }

    async fn describe(
        &self,
        project: ProjectId,
        function: &FunctionRef,
    ) -> Result<FunctionRuntimeView, PortError> {
        let request = v1::DescribeFunctionRequest {
            project: project.0,
            function: Some(function.clone().into()),
        };
        let answer = self
            .read(READ, |mut client| {
                let request = request.clone();
                async move { client.describe_function(request).await }
            })
            .await?;
        FunctionRuntimeView::try_from(answer).map_err(malformed)
    }

    async fn keys(&self, project: ProjectId) -> Result<Vec<FunctionKey>, PortError> {
        let request = v1::ListKeysRequest { project: project.0 };
        let call =
            |mut client: ManagementClient<Channel>| async move { client.list_keys(request).await };
        all(self.read(READ, call).await?.keys)
    }

    async fn task(&self, id: TaskId) -> Result<Option<Task>, PortError> {
        let request = v1::ListTasksRequest {
            project: None,
            id: Some(id.to_wire()),
        };
        let answer = self
            .read(READ, |mut client| {
                let request = request.clone();
                async move { client.list_tasks(request).await }
            })
            .await?;
        Ok(all(answer.tasks)?.pop())
    }

    async fn tasks(&self, project: Option<ProjectId>) -> Result<Vec<Task>, PortError> {
        let request = v1::ListTasksRequest {
            project: project.map(|p| p.0),
            id: None,
        };
        let answer = self
            .read(READ, |mut client| {
                let request = request.clone();
                async move { client.list_tasks(request).await }
            })
            .await?;
        all(answer.tasks)
    }

    async fn nodes(&self) -> Result<Vec<NodeView>, PortError> {
        self.list_nodes(None).await
    }

    async fn node(&self, id: NodeId) -> Result<Option<NodeView>, PortError> {
        Ok(self.list_nodes(Some(id)).await?.pop())
    }

    async fn change_node(
        &self,
        id: WriteId,
        node: NodeId,
        change: NodeChange,
    ) -> Result<(), PortError> {
        let request = v1::ChangeNodeRequest {
            write_id: id.to_wire(),
            node: node.to_wire(),
            change: Some(change.into()),
        };
        let deadline = Instant::now() + WRITE;
        let answer = self.shared.controllers.ask(deadline, |channel| {
            let request = request.clone();
            async move {
                let mut client = Controllers::management(channel);
                let answer = client.change_node(request).await;
                answer.map(tonic::Response::into_inner)
            }
        });
        written(answer.await)
    }

    async fn cluster(&self) -> Result<ClusterView, PortError> {
        self.get_cluster().await
    }

    async fn join_tokens(&self) -> Result<Vec<JoinToken>, PortError> {
        self.list_join_tokens().await
    }

    async fn transfer_leadership(&self, to: Option<MemberId>) -> Result<MemberId, PortError> {
        self.transfer(to).await
    }

    async fn remove_member(&self, id: MemberId) -> Result<(), PortError> {
        self.remove(id).await
    }

    async fn rotate_cluster_key(&self, id: WriteId) -> Result<u64, PortError> {
        self.rotate_key(id).await
    }

    async fn build_log(&self, revision: RevisionId, follow: bool) -> Result<ByteStream, PortError> {
        let request = v1::BuildLogRequest {
            revision: Some(revision.into()),
            follow,
            only_here: false,
        };
        let stream = self
            .read(READ, |mut client| {
                let request = request.clone();
                async move { client.build_log(request).await }
            })
            .await?;
        Ok(Box::pin(
            stream.map(|chunk| chunk.map(|c| c.data).map_err(read_error)),
        ))
    }

    async fn logs(&self, function: &FunctionView, query: LogQuery) -> Result<LogStream, PortError> {
        let request = v1::LogsRequest {
            function: function.function.id.to_wire(),
            tail: query.tail,
            follow: query.follow,
            request: query.request,
            instance: query.instance.map(|id| id.to_wire()),
            since_nanos: query.since_nanos,
        };
        let nodes = self.nodes().await?;
        let learned = nodes.iter().map(|node| {
            let node = &node.node;
            self.shared.nodes.learn(node.id, &node.name, &node.address);
            node.id
        });
        let ids: Vec<_> = learned.collect();
        let streams = logs::open(&self.shared.nodes, &ids, &request).await;
        if streams.is_empty() && !nodes.is_empty() {
            return Err(PortError::Unavailable("no node offers its logs".to_owned()));
        }
        let tail = usize::try_from(query.tail).unwrap_or(usize::MAX);
        if query.follow {
            logs::follow(streams, tail).await
        } else {
            timeout(READ, logs::past(streams, tail))
                .await
                .map_err(|_| PortError::Unavailable("the logs took too long".to_owned()))?
        }
    }

    async fn invoke(&self, invocation: Invocation) -> Result<Response<Body>, PortError> {
        let Invocation {
            project,
            function,
            request,
        } = invocation;
        let Some(found) = self.shared.table.find(project, &function) else {
            let error = Error::new(
                respond::Code::NotDeployed,
                "the gateway has no route to the function yet",
            );
            let id = request
                .headers()
                .get("x-request-id")
                .and_then(|id| id.to_str().ok());
            return Ok(error.retry_after(1).into_response(id.unwrap_or_default()));
        };
        let (reply, answer) = oneshot::channel();
        let call = Work::Manager(Box::new(ManagerCall {
            function: found,
            request,
            reply,
        }));
        let turn = self.turn.fetch_add(1, Relaxed) % self.workers.len();
        let stopping = || PortError::Unavailable("the gateway is shutting down".to_owned());
        self.workers[turn]
            .send(call)
            .await
            .map_err(|_| stopping())?;
        let response = answer.await.map_err(|_| stopping())?;
        Ok(response.map(|body| match body {
            ManagerBody::Whole(bytes) => Body::from(bytes),
            ManagerBody::Pieces(pieces) => Body::from_stream(ReceiverStream::new(pieces)),
        }))
    }
}

#[cfg(test)]
mod tests;
