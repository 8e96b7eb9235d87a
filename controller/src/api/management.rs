//! Management: reads and writes of what is replicated, and the leader's knowledge of what runs.

use std::sync::Arc;

use coracle_base::Shutdown;
use coracle_model::{
    Digest, FunctionRef, Invalid, NamespaceName, NodeId, Operation, ProjectId, Refusal, Source,
    Stage, TaskId, TokenId, WriteId, node::NodeChange,
};
use coracle_proto::{
    Wire as _, required,
    v1::{self, management_client::ManagementClient},
};
use coracle_state::{FunctionRecord, View};
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

use super::{Streamed, artifacts, read_failed, write_failed};
use crate::{
    copies::Held,
    core::Core,
    forward::{Errand, Failed},
};

pub(crate) struct Management {
    pub(crate) core: Arc<Core>,
    pub(crate) shutdown: Shutdown,
}

type Answer<T> = Result<Response<T>, Status>;

impl Management {
    async fn fresh(&self) -> Result<Arc<View>, Status> {
        self.core.fresh_view().await.map_err(read_failed)
    }

    async fn change_node_here(
        &self,
        errand: Errand,
        id: WriteId,
        node: NodeId,
        change: NodeChange,
    ) -> Result<v1::WriteResponse, Failed> {
        let view = self.fresh().await.map_err(Failed::Final)?;
        let body = {
            let memory = self.core.memory();
            if !memory.leads() {
                return Err(Failed::Elsewhere);
            }
            memory.check_change(&view, node, change)
        };
        let refusal = match body {
            Err(refusal) => Some(refusal),
            Ok(body) => match self.core.write_by(id, body, errand.deadline).await {
                Ok(()) => None,
                Err(error) => Some(write_failed(error)?),
            },
        };
        if refusal.is_none() {
            // Nothing new goes to a node from the moment on in which its closing is answered.
            let (now, view) = (self.core.now(), self.core.view());
            self.core.memory().follow_nodes(now, &view);
            self.core.wake();
        }
        Ok(v1::WriteResponse {
            refusal: refusal.map(Into::into),
        })
    }

    /// What a write names must be stored on a majority before the write is: an instance that needs
    /// it may start at once, and no single machine may take it along.
    async fn uploaded(
        &self,
        operation: &Operation,
        deadline: Instant,
    ) -> Result<Option<Refusal>, Failed> {
        let named = named(operation);
        let digests: Vec<Digest> = named.iter().map(|(_, digest)| *digest).collect();
        match self.core.copies.held(&digests, deadline).await {
            Held::Yes => Ok(None),
            Held::Nowhere(absent) => {
                let field = named.iter().find(|(_, digest)| *digest == absent);
                let field = field.map_or("settings", |(field, _)| field);
                let reason = format!("artifact {absent} was not uploaded");
                Ok(Some(Invalid::new(field, reason).into()))
            }
            Held::TooFew {
                digest,
                have,
                needed,
            } => Err(Failed::Final(Status::unavailable(format!(
                "artifact {digest} is on {have} controllers that answer, and has to be on {needed}"
            )))),
        }
    }
}

/// The artifacts that a write would have a revision name, with the fields that they are in.
fn named(operation: &Operation) -> Vec<(&'static str, Digest)> {
    let mut named = Vec::new();
    let mut source = |source: &Source| {
        let Source::Inline { code } = source;
        named.push(("source", *code));
    };
    match operation {
        Operation::CreateFunction(create) => {
            source(&create.settings.source);
            named.extend(
                create
                    .settings
                    .dependencies
                    .map(|digest| ("dependencies", digest)),
            );
        }
        Operation::UpdateFunction(update) => {
            if let Some(new) = &update.settings.source {
                source(new);
            }
            let dependencies = update.settings.dependencies.flatten();
            named.extend(dependencies.map(|digest| ("dependencies", digest)));
        }
        _ => {}
    }
    named
}

/// The leader knows what runs, and answers for a follower. Without one the follower answers with
/// what it knows.
macro_rules! at_leader_if_known {
    ($self:ident, $request:ident, $method:ident) => {
        if let Some((channel, errand)) = $self.core.elsewhere(&$request) {
            let request = $self.core.carry(&errand, $request.into_inner());
            return ManagementClient::new(channel).$method(request).await;
        }
    };
}

fn project(form: u32) -> Result<ProjectId, Status> {
    Ok(ProjectId::from_wire("project", form)?)
}

/// The named function; `None` where there is no such function, namespace or project.
fn find(
    view: &View,
    project: u32,
    function: Option<v1::FunctionRef>,
) -> Result<Option<&FunctionRecord>, Status> {
    let project = self::project(project)?;
    let function: FunctionRef = required("function", function)?;
    Ok(view.function_named(project, &function))
}

fn no_function() -> Status {
    Status::not_found("the function does not exist")
}

fn list<'a, T, W>(items: impl IntoIterator<Item = &'a T>) -> Vec<W>
where
    T: Clone + 'a,
    W: From<T>,
{
    items.into_iter().cloned().map(W::from).collect()
}

#[tonic::async_trait]
impl v1::management_server::Management for Management {
    async fn write(&self, request: Request<v1::WriteRequest>) -> Answer<v1::WriteResponse> {
        let errand = Errand::of(&request, self.core.config.write_deadline);
        let request = request.into_inner();
        let id = WriteId::from_wire("write_id", request.write_id.clone())?;
        let operation: Operation = required("operation", request.operation.clone())?;
        let here = || async {
            let now = Instant::now();
            // The write itself gets the other half.
            let check = now + errand.deadline.saturating_duration_since(now) / 2;
            let refusal = match self.uploaded(&operation, check).await? {
                Some(refusal) => Some(refusal),
                None => {
                    let asked = self
                        .core
                        .write_asked(id, operation.clone(), errand.deadline);
                    let written = asked.await;
                    written.map_or_else(|error| write_failed(error).map(Some), |()| Ok(None))?
                }
            };
            Ok(v1::WriteResponse {
                refusal: refusal.map(Into::into),
            })
        };
        // Under the same id: what was done is not done again.
        let there = |channel| async {
            let request = self.core.carry(&errand, request.clone());
            let answer = ManagementClient::new(channel).write(request).await;
            answer.map(Response::into_inner)
        };
        let answer = self.core.at_leader(errand, here, there).await?;
        Ok(Response::new(answer))
    }

    async fn get_token(
        &self,
        request: Request<v1::GetTokenRequest>,
    ) -> Answer<v1::GetTokenResponse> {
        let id = TokenId::from_wire("id", request.into_inner().id)?;
        let view = self.fresh().await?;
        let token = view.token(id).cloned().map(Into::into);
        Ok(Response::new(v1::GetTokenResponse { token }))
    }

    async fn list_tokens(
        &self,
        _: Request<v1::ListTokensRequest>,
    ) -> Answer<v1::ListTokensResponse> {
        let view = self.fresh().await?;
        Ok(Response::new(v1::ListTokensResponse {
            tokens: list(view.tokens()),
        }))
    }

    async fn list_projects(
        &self,
        _: Request<v1::ListProjectsRequest>,
    ) -> Answer<v1::ListProjectsResponse> {
        let view = self.fresh().await?;
        Ok(Response::new(v1::ListProjectsResponse {
            projects: list(view.projects()),
        }))
    }

    async fn list_namespaces(
        &self,
        request: Request<v1::ListNamespacesRequest>,
    ) -> Answer<v1::ListNamespacesResponse> {
        let project = project(request.into_inner().project)?;
        let view = self.fresh().await?;
        let namespaces = list(view.namespaces(project));
        Ok(Response::new(v1::ListNamespacesResponse { namespaces }))
    }

    async fn get_function(
        &self,
        request: Request<v1::GetFunctionRequest>,
    ) -> Answer<v1::GetFunctionResponse> {
        at_leader_if_known!(self, request, get_function);
        let request = request.into_inner();
        let view = self.fresh().await?;
        let found = find(&view, request.project, request.function)?;
        let function = found.map(|record| self.core.function_view(&view, record).into());
        Ok(Response::new(v1::GetFunctionResponse { function }))
    }

    async fn list_functions(
        &self,
        request: Request<v1::ListFunctionsRequest>,
    ) -> Answer<v1::ListFunctionsResponse> {
        at_leader_if_known!(self, request, list_functions);
        let request = request.into_inner();
        let project = project(request.project)?;
        let name = request
            .namespace
            .map(|name| NamespaceName::from_wire("namespace", name));
        let name = name.transpose()?;
        let view = self.fresh().await?;
        let records: Vec<&FunctionRecord> = match name {
            None => view.functions_of(project).collect(),
            Some(name) => {
                let namespace = view.namespace_named(project, &name);
                namespace
                    .into_iter()
                    .flat_map(|n| view.functions_in(n.id))
                    .collect()
            }
        };
        let shown = |record: &FunctionRecord| self.core.function_view(&view, record).into();
        let functions = records.into_iter().map(shown).collect();
        Ok(Response::new(v1::ListFunctionsResponse { functions }))
    }

    async fn list_revisions(
        &self,
        request: Request<v1::ListRevisionsRequest>,
    ) -> Answer<v1::ListRevisionsResponse> {
        let request = request.into_inner();
        let view = self.fresh().await?;
        let record = find(&view, request.project, request.function)?.ok_or_else(no_function)?;
        let revisions = record
            .revisions()
            .map(|r| r.as_ref().clone().into())
            .collect();
        Ok(Response::new(v1::ListRevisionsResponse { revisions }))
    }

    async fn describe_function(
        &self,
        request: Request<v1::DescribeFunctionRequest>,
    ) -> Answer<v1::DescribeFunctionResponse> {
        at_leader_if_known!(self, request, describe_function);
        let request = request.into_inner();
        let view = self.fresh().await?;
        let record = find(&view, request.project, request.function)?.ok_or_else(no_function)?;
        Ok(Response::new(
            self.core.runtime_view(record.function.id).into(),
        ))
    }

    async fn list_keys(
        &self,
        request: Request<v1::ListKeysRequest>,
    ) -> Answer<v1::ListKeysResponse> {
        let project = project(request.into_inner().project)?;
        let view = self.fresh().await?;
        Ok(Response::new(v1::ListKeysResponse {
            keys: list(view.keys(project)),
        }))
    }

    async fn list_tasks(
        &self,
        request: Request<v1::ListTasksRequest>,
    ) -> Answer<v1::ListTasksResponse> {
        let request = request.into_inner();
        let of = request.project.map(project).transpose()?;
        let id = request
            .id
            .map(|id| TaskId::from_wire("id", id))
            .transpose()?;
        let view = self.fresh().await?;
        let tasks = match id {
            Some(id) => {
                let of_project = |project: ProjectId| of.is_none_or(|of| of == project);
                list(view.task(id).filter(|task| of_project(task.project)))
            }
            None => list(view.tasks(of)),
        };
        Ok(Response::new(v1::ListTasksResponse { tasks }))
    }

    async fn list_nodes(
        &self,
        request: Request<v1::ListNodesRequest>,
    ) -> Answer<v1::ListNodesResponse> {
        at_leader_if_known!(self, request, list_nodes);
        self.core.require_leader()?;
        let only = Option::<NodeId>::from_wire("node", request.into_inner().node)?;
        let view = self.core.view();
        let nodes = self.core.memory().node_views(&view, only);
        Ok(Response::new(v1::ListNodesResponse {
            nodes: nodes.into_iter().map(Into::into).collect(),
        }))
    }

    async fn change_node(
        &self,
        request: Request<v1::ChangeNodeRequest>,
    ) -> Answer<v1::WriteResponse> {
        let errand = Errand::of(&request, self.core.config.write_deadline);
        let request = request.into_inner();
        let id = WriteId::from_wire("write_id", request.write_id.clone())?;
        let node = NodeId::from_wire("node", request.node.clone())?;
        let change: NodeChange = required("change", request.change)?;
        let here = || self.change_node_here(errand, id, node, change);
        let there = |channel| async {
            let request = self.core.carry(&errand, request.clone());
            let answer = ManagementClient::new(channel).change_node(request).await;
            answer.map(Response::into_inner)
        };
        let answer = self.core.at_leader(errand, here, there).await?;
        Ok(Response::new(answer))
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Answer<v1::StatusResponse> {
        let status = self.core.replica.status().borrow().clone();
        Ok(Response::new(v1::StatusResponse {
            term: status.term,
            leader: status.leader.unwrap_or(0),
            applied: status.applied,
            leading: status.leading().is_some(),
            incarnation: self.core.view().incarnation(),
            cluster_id: self.core.cluster_id.clone(),
        }))
    }

    async fn put_artifact(
        &self,
        request: Request<Streaming<v1::ArtifactChunk>>,
    ) -> Answer<v1::PutArtifactResponse> {
        artifacts::put(&self.core, request.into_inner())
            .await
            .map(Response::new)
    }

    type GetArtifactStream = Streamed<v1::ArtifactChunk>;

    async fn get_artifact(
        &self,
        request: Request<v1::GetArtifactRequest>,
    ) -> Answer<Self::GetArtifactStream> {
        artifacts::get(&self.core, request.into_inner())
            .await
            .map(Response::new)
    }

    type BuildLogStream = Streamed<v1::BuildLogChunk>;

    async fn build_log(
        &self,
        request: Request<v1::BuildLogRequest>,
    ) -> Answer<Self::BuildLogStream> {
        let forwarded = self.core.elsewhere(&request);
        let request = request.into_inner();
        let revision = required("revision", request.revision.clone())?;
        if request.only_here {
            let log = artifacts::finished_build_log(&self.core, revision).await?;
            return Ok(Response::new(log));
        }
        let view = self.fresh().await?;
        let Some(found) = view.revision(revision) else {
            return Err(Status::not_found("the revision does not exist"));
        };
        // It grows where the leader is.
        if matches!(found.stage, Stage::Received | Stage::Building) {
            if let Some((channel, errand)) = forwarded {
                let request = self.core.carry(&errand, request);
                let log = ManagementClient::new(channel).build_log(request).await?;
                return Ok(log.map(|log| Box::pin(log) as Streamed<_>));
            }
        } else {
            self.core.copy_build_log(revision).await;
        }
        let core = Arc::clone(&self.core);
        let shutdown = self.shutdown.clone();
        Ok(Response::new(artifacts::build_log(
            core,
            revision,
            request.follow,
            shutdown,
        )))
    }
}
