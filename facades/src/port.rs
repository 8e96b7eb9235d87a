//! The small interface that a facade may call, in model types. The gateway implements it over the
//! controllers' gRPC services; tests over a value in memory.

use std::pin::Pin;

use async_trait::async_trait;
use bytes::Bytes;
use coracle_model::{
    Digest, FunctionKey, FunctionRef, InstanceId, JoinToken, LogLine, Member, MemberId, Namespace,
    NodeId, Operation, Project, ProjectId, Refusal, Revision, RevisionId, Task, TaskId, Token,
    TokenId, WriteId,
    node::NodeChange,
    query::{FunctionRuntimeView, FunctionView, NodeView},
};
use futures_util::Stream;

pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes, PortError>> + Send>>;
pub type LogStream = Pin<Box<dyn Stream<Item = Result<Vec<LogLine>, PortError>> + Send>>;

/// Why a call did not end in an answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PortError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The write may or may not have happened; repeating it under the same id is safe.
    #[error("the outcome of the write is unknown: {0}")]
    Unknown(String),
    /// No controller answered, or none leads. Nothing was changed.
    #[error("no controller can answer: {0}")]
    Unavailable(String),
    /// The controller's disk is nearly full. Nothing was changed.
    #[error("{0}")]
    StorageFull(String),
    /// Something on our side broke its promise; the text is for our own log.
    #[error("internal error: {0}")]
    Internal(String),
}

/// A cluster as the controller that answered knows it.
#[derive(Debug, Clone)]
pub struct ClusterView {
    pub cluster_id: String,
    /// DER; empty for a server by itself.
    pub ca_certificate: Vec<u8>,
    pub key_generation: u64,
    pub answered_by: MemberId,
    pub leader: Option<MemberId>,
    pub term: u64,
    pub applied: u64,
    pub last_index: u64,
    pub incarnation: u64,
    pub members: Vec<MemberView>,
}

#[derive(Debug, Clone)]
pub struct MemberView {
    pub id: MemberId,
    /// Absent for a member of the group that is none of the cluster any more.
    pub member: Option<Member>,
    pub standing: Standing,
    /// Known to the leader only.
    pub progress: Option<MemberProgress>,
}

/// What a controller's word counts for in the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It waits to be added, or was taken out.
    Outside,
    Learner,
    Voter,
}

#[derive(Debug, Clone, Copy)]
pub struct MemberProgress {
    /// Up to here its log is the leader's.
    pub matched: u64,
    /// It was heard from lately.
    pub active: bool,
    /// It is being sent a snapshot.
    pub snapshot: bool,
}

/// Which lines of a function's log.
#[derive(Debug, Clone, Default)]
pub struct LogQuery {
    /// How many of the newest past lines; 0 for none.
    pub tail: u32,
    pub follow: bool,
    pub request: Option<String>,
    pub instance: Option<InstanceId>,
    pub since_nanos: u64,
}

/// A request made through the invocation path on a manager's behalf.
#[derive(Debug, Clone)]
pub struct Invocation {
    pub project: ProjectId,
    pub function: FunctionRef,
    pub request: http::Request<Bytes>,
}

#[async_trait]
pub trait ControlPlane: Send + Sync + 'static {
    /// Durable and applied when it returns. Give the same id when repeating.
    async fn write(&self, id: WriteId, operation: Operation) -> Result<(), PortError>;

    /// Stores bytes durably; the same bytes give the same digest.
    async fn put_artifact(&self, bytes: Bytes) -> Result<Digest, PortError>;
    async fn artifact(&self, digest: Digest) -> Result<Bytes, PortError>;

    async fn token(&self, id: TokenId) -> Result<Option<Token>, PortError>;
    async fn tokens(&self) -> Result<Vec<Token>, PortError>;
    async fn projects(&self) -> Result<Vec<Project>, PortError>;
    async fn namespaces(&self, project: ProjectId) -> Result<Vec<Namespace>, PortError>;
    async fn function(
        &self,
        project: ProjectId,
        function: &FunctionRef,
    ) -> Result<Option<FunctionView>, PortError>;
    /// All of one namespace, or of the whole project.
    async fn functions(
        &self,
        project: ProjectId,
        namespace: Option<&str>,
    ) -> Result<Vec<FunctionView>, PortError>;
    async fn revisions(
        &self,
        project: ProjectId,
        function: &FunctionRef,
    ) -> Result<Vec<Revision>, PortError>;
    async fn describe(
        &self,
        project: ProjectId,
        function: &FunctionRef,
    ) -> Result<FunctionRuntimeView, PortError>;
    async fn keys(&self, project: ProjectId) -> Result<Vec<FunctionKey>, PortError>;
    async fn task(&self, id: TaskId) -> Result<Option<Task>, PortError>;
    async fn tasks(&self, project: Option<ProjectId>) -> Result<Vec<Task>, PortError>;
    async fn nodes(&self) -> Result<Vec<NodeView>, PortError>;
    /// One node with its instances.
    async fn node(&self, id: NodeId) -> Result<Option<NodeView>, PortError>;
    /// Durable when it returns. Give the same id when repeating.
    async fn change_node(
        &self,
        id: WriteId,
        node: NodeId,
        change: NodeChange,
    ) -> Result<(), PortError>;

    async fn cluster(&self) -> Result<ClusterView, PortError>;
    async fn join_tokens(&self) -> Result<Vec<JoinToken>, PortError>;
    /// Hands leadership to this controller, or to any that has caught up; returns who leads.
    async fn transfer_leadership(&self, to: Option<MemberId>) -> Result<MemberId, PortError>;
    async fn remove_member(&self, id: MemberId) -> Result<(), PortError>;
    /// Returns the new key's generation.
    async fn rotate_cluster_key(&self, id: WriteId) -> Result<u64, PortError>;

    async fn build_log(&self, revision: RevisionId, follow: bool) -> Result<ByteStream, PortError>;
    /// From every node that has lines of it, merged by time.
    async fn logs(&self, function: &FunctionView, query: LogQuery) -> Result<LogStream, PortError>;
    /// Through the gateway's own invocation path, limits and deadline included; keys are not asked.
    async fn invoke(
        &self,
        invocation: Invocation,
    ) -> Result<http::Response<axum::body::Body>, PortError>;
}

/// What the server tells its facades about itself; values that come in from configuration.
#[derive(Debug, Clone)]
pub struct ServerInfo {
    pub version: String,
    /// Where clients reach the invocation listener, without a trailing slash.
    pub public_url: String,
    pub region: u32,
}

/// Time and randomness for facades: stamps of tasks and keys, fresh ids and secrets.
pub trait Environment: Send + Sync + 'static {
    fn now(&self) -> coracle_model::Timestamp;
    fn fresh_uuid(&self) -> uuid::Uuid;
    /// 256 random bits in hexadecimal.
    fn fresh_secret(&self) -> String;
}
