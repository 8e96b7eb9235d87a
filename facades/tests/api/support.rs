//! A server without a server: the router over the real state machine in memory.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use axum::{Router, body::Body};
use bytes::Bytes;
use coracle_facades::port::{
    ByteStream, ClusterView, ControlPlane, Environment, Invocation, LogQuery, LogStream,
    MemberProgress, MemberView, PortError, ServerInfo, Standing,
};
use coracle_model::{
    BuildOutput, ComponentRole, Digest, FunctionId, FunctionKey, FunctionRef, InstanceId,
    InstanceState, JoinToken, LogLine, Member, MemberId, Namespace, NodeId, Operation, Project,
    ProjectId, Refusal, Revision, RevisionId, SecretHash, Task, TaskId, Timestamp, Token, TokenId,
    TokenRole, WriteId,
    cluster::Admission,
    node::{Node, NodeChange, NodeDrain, NodeState, Resources},
    operation::{CreateJoinToken, CreateToken},
    query::{FunctionRuntimeView, FunctionView, InstanceView, NodeInstance, NodeView},
};
use coracle_state::{Body as CommandBody, Command, FunctionRecord, State, View};
use futures_util::stream;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::Value;
use tower::ServiceExt as _;
use uuid::Uuid;

/// 2023-08-22T11:21:00Z, the time of the seed's sample.
pub(crate) const START: u64 = 1_692_703_260_000;
pub(crate) const REGION: u32 = 1;
pub(crate) const SECRET: &str = "5ec2e7";

#[derive(Default)]
struct World {
    state: State,
    artifacts: HashMap<Digest, Bytes>,
    /// Wanted and ready, for every function.
    instances: (u32, u32),
    log: Vec<LogLine>,
    running: FunctionRuntimeView,
    node_changes: Vec<(NodeId, NodeChange)>,
    invocations: Vec<(FunctionRef, Request<Bytes>)>,
    /// Answers to give instead of writing, first one first.
    failures: Vec<PortError>,
    /// Answers to give after writing.
    lost_answers: usize,
}

/// Time stands still and ids count up, so that answers are the same each time.
struct Fixed {
    now: AtomicU64,
    next: AtomicU64,
}

impl Environment for Fixed {
    fn now(&self) -> Timestamp {
        Timestamp(self.now.load(Ordering::Relaxed))
    }

    fn fresh_uuid(&self) -> Uuid {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        Uuid::from_u128(0x4000_8000_0000_0000_0000 + u128::from(next))
    }

    fn fresh_secret(&self) -> String {
        format!("{:064x}", self.next.fetch_add(1, Ordering::Relaxed))
    }
}

struct Fake {
    world: Mutex<World>,
    env: Arc<Fixed>,
}

impl Fake {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world
            .lock()
            .expect("no test panics while it holds the world")
    }

    fn view(&self) -> View {
        self.world().state.view()
    }

    /// One node that drains, with one instance.
    fn node_view(&self) -> NodeView {
        let half = Resources {
            memory_mib: 1_024,
            cpu_millis: 1_000,
        };
        let (id, now) = (NodeId(Uuid::from_u128(9)), self.env.now());
        let instance = InstanceView {
            id: InstanceId(Uuid::from_u128(2)),
            revision: RevisionId {
                function: FunctionId(Uuid::from_u128(1)),
                number: 3,
            },
            node: id,
            state: InstanceState::Ready,
            since: now,
            placement: "the only node".to_owned(),
        };
        NodeView {
            node: Node {
                id,
                name: "here".to_owned(),
                version: "0.1.0".to_owned(),
                labels: [("zone".to_owned(), "a".to_owned())].into(),
                allocatable: Resources {
                    memory_mib: 2_048,
                    cpu_millis: 2_000,
                },
                address: "memory:".to_owned(),
                stems: [("python3.11".parse().expect("a valid name"), 2)].into(),
                images: vec!["python3.11".parse().expect("a valid name")],
                reported_at: now,
                schedulable: false,
            },
            state: NodeState::Draining,
            cordoned: true,
            draining: Some(NodeDrain {
                since: now,
                deadline: Some(now.plus_millis(60_000)),
                force: false,
            }),
            used: half,
            instances: 1,
            running: 2,
            builds: 0,
            heard_at: Some(now),
            joined_at: Some(now),
            waiting: vec!["default/hello: no node has room".to_owned()],
            placed: vec![NodeInstance {
                instance,
                project: "default".to_owned(),
                namespace: "default".to_owned(),
                function: "hello".to_owned(),
            }],
        }
    }

    fn apply(&self, id: WriteId, body: CommandBody) -> Result<(), PortError> {
        // Through the log's own encoding, so that what the log cannot hold is found here too.
        let command = Command {
            write_id: id,
            at: self.env.now(),
            body,
        };
        let bytes = command
            .encode()
            .map_err(|error| PortError::Internal(error.to_string()))?;
        let command = Command::decode(&bytes).expect("what was encoded can be decoded");
        self.world()
            .state
            .apply(command)
            .outcome
            .map_err(PortError::Refused)
    }

    fn function_view(&self, view: &View, record: &FunctionRecord) -> FunctionView {
        let (wanted, ready) = self.world().instances;
        view.function_view(record, wanted, ready)
    }
}

#[async_trait]
impl ControlPlane for Fake {
    async fn write(&self, id: WriteId, operation: Operation) -> Result<(), PortError> {
        let failure = {
            let mut world = self.world();
            (!world.failures.is_empty()).then(|| world.failures.remove(0))
        };
        if let Some(failure) = failure {
            return Err(failure);
        }
        let outcome = self.apply(id, CommandBody::Operation(operation));
        let mut world = self.world();
        if world.lost_answers > 0 {
            world.lost_answers -= 1;
            return Err(PortError::Unknown("the leader went away".to_owned()));
        }
        outcome
    }

    async fn put_artifact(&self, bytes: Bytes) -> Result<Digest, PortError> {
        let digest = Digest::of(&bytes);
        self.world().artifacts.insert(digest, bytes);
        Ok(digest)
    }

    async fn artifact(&self, digest: Digest) -> Result<Bytes, PortError> {
        let found = self.world().artifacts.get(&digest).cloned();
        found.ok_or_else(|| PortError::Internal(format!("no artifact {digest}")))
    }

    async fn token(&self, id: TokenId) -> Result<Option<Token>, PortError> {
        Ok(self.view().token(id).cloned())
    }

    async fn tokens(&self) -> Result<Vec<Token>, PortError> {
        Ok(self.view().tokens().cloned().collect())
    }

    async fn projects(&self) -> Result<Vec<Project>, PortError> {
        Ok(self.view().projects().into_iter().cloned().collect())
    }

    async fn namespaces(&self, project: ProjectId) -> Result<Vec<Namespace>, PortError> {
        Ok(self.view().namespaces(project).cloned().collect())
    }

    async fn function(
        &self,
        project: ProjectId,
        function: &FunctionRef,
    ) -> Result<Option<FunctionView>, PortError> {
        let view = self.view();
        let record = view.function_named(project, function);
        Ok(record.map(|record| self.function_view(&view, record)))
    }

    async fn functions(
        &self,
        project: ProjectId,
        namespace: Option<&str>,
    ) -> Result<Vec<FunctionView>, PortError> {
        let view = self.view();
        let all = view
            .functions_of(project)
            .map(|record| self.function_view(&view, record));
        Ok(all
            .filter(|view| namespace.is_none_or(|name| *view.namespace == *name))
            .collect())
    }

    async fn revisions(
        &self,
        project: ProjectId,
        function: &FunctionRef,
    ) -> Result<Vec<Revision>, PortError> {
        let view = self.view();
        let record = view.function_named(project, function);
        Ok(record
            .into_iter()
            .flat_map(FunctionRecord::revisions)
            .map(|revision| revision.as_ref().clone())
            .collect())
    }

    async fn describe(
        &self,
        _: ProjectId,
        _: &FunctionRef,
    ) -> Result<FunctionRuntimeView, PortError> {
        Ok(self.world().running.clone())
    }

    async fn keys(&self, project: ProjectId) -> Result<Vec<FunctionKey>, PortError> {
        Ok(self.view().keys(project).cloned().collect())
    }

    async fn task(&self, id: TaskId) -> Result<Option<Task>, PortError> {
        Ok(self.view().task(id).cloned())
    }

    async fn tasks(&self, project: Option<ProjectId>) -> Result<Vec<Task>, PortError> {
        Ok(self.view().tasks(project).into_iter().cloned().collect())
    }

    async fn cluster(&self) -> Result<ClusterView, PortError> {
        let view = self.view();
        let secrets = view.secrets();
        let shown = |member: &Member| MemberView {
            id: member.id,
            member: Some(member.clone()),
            standing: Standing::Voter,
            progress: Some(MemberProgress {
                matched: 7,
                active: true,
                snapshot: false,
            }),
        };
        Ok(ClusterView {
            cluster_id: "0badcafe".to_owned(),
            ca_certificate: secrets.map_or_else(Vec::new, |s| s.ca_certificate.clone()),
            key_generation: secrets.map_or(0, |secrets| secrets.generation),
            answered_by: MemberId(1),
            leader: Some(MemberId(1)),
            term: 3,
            applied: 7,
            last_index: 7,
            incarnation: view.incarnation(),
            members: view.members().map(shown).collect(),
        })
    }

    async fn join_tokens(&self) -> Result<Vec<JoinToken>, PortError> {
        Ok(self.view().join_tokens().cloned().collect())
    }

    async fn transfer_leadership(&self, to: Option<MemberId>) -> Result<MemberId, PortError> {
        match to {
            Some(MemberId(9)) => Err(Refusal::Conflict("member 9 is not a voter".into()).into()),
            to => Ok(to.unwrap_or(MemberId(2))),
        }
    }

    async fn remove_member(&self, member: MemberId) -> Result<(), PortError> {
        let id = WriteId(self.env.fresh_uuid());
        self.apply(id, CommandBody::RemoveMember { member })
    }

    async fn rotate_cluster_key(&self, id: WriteId) -> Result<u64, PortError> {
        let view = self.view();
        let standalone = || Refusal::Conflict("this server stands by itself".into());
        let generation = view.secrets().ok_or_else(standalone)?.generation + 1;
        let body = CommandBody::RotateClusterKey {
            generation,
            ca_key: vec![1],
            wrapped: view.members().map(|m| (m.id, vec![1])).collect(),
        };
        self.apply(id, body).map(|()| generation)
    }

    async fn nodes(&self) -> Result<Vec<NodeView>, PortError> {
        Ok(vec![self.node_view()])
    }

    async fn node(&self, id: NodeId) -> Result<Option<NodeView>, PortError> {
        let view = self.node_view();
        Ok((view.node.id == id).then_some(view))
    }

    async fn change_node(
        &self,
        _: WriteId,
        node: NodeId,
        change: NodeChange,
    ) -> Result<(), PortError> {
        let mut world = self.world();
        if !world.failures.is_empty() {
            return Err(world.failures.remove(0));
        }
        world.node_changes.push((node, change));
        Ok(())
    }

    async fn build_log(&self, revision: RevisionId, follow: bool) -> Result<ByteStream, PortError> {
        let text = format!("revision {}, follow {follow}\n", revision.number);
        Ok(Box::pin(stream::iter([
            Ok(Bytes::from(text)),
            Ok(Bytes::from_static(b"done\n")),
        ])))
    }

    async fn logs(&self, _: &FunctionView, query: LogQuery) -> Result<LogStream, PortError> {
        let wanted = |line: &&LogLine| {
            query
                .request
                .as_ref()
                .is_none_or(|id| line.request.as_ref() == Some(id))
                && query.instance.is_none_or(|id| line.instance == id)
                && line.at_nanos >= query.since_nanos
        };
        let mut lines: Vec<_> = self.world().log.iter().filter(wanted).cloned().collect();
        let tail = usize::try_from(query.tail).expect("fits");
        lines.drain(..lines.len().saturating_sub(tail));
        // In two batches, as from two nodes.
        let later = lines.split_off(lines.len() / 2);
        Ok(Box::pin(stream::iter([Ok(lines), Ok(later)])))
    }

    async fn invoke(&self, invocation: Invocation) -> Result<http::Response<Body>, PortError> {
        // As the gateway, which cannot tell a function without a route from none at all.
        let known = self
            .view()
            .function_named(invocation.project, &invocation.function)
            .is_some();
        if !known {
            let refusal = http::Response::builder()
                .status(StatusCode::SERVICE_UNAVAILABLE)
                .header("x-coracle-error", "not_deployed");
            return Ok(refusal.body(Body::empty()).expect("a valid response"));
        }
        let answer = format!(
            "{} {}",
            invocation.request.method(),
            invocation.request.uri()
        );
        let mut response = http::Response::new(Body::from(answer));
        *response.status_mut() = StatusCode::IM_A_TEAPOT;
        self.world()
            .invocations
            .push((invocation.function, invocation.request));
        Ok(response)
    }
}

pub(crate) struct Server {
    router: Router,
    fake: Arc<Fake>,
    /// `<id>$<secret>` of an administrator.
    pub(crate) admin: String,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    #[track_caller]
    pub(crate) fn ok(self) -> Value {
        assert_eq!(self.status, StatusCode::OK, "{}", self.text);
        self.json()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().expect("text"))
    }
}

/// A picture to compare with: what is replicated, and how many artifacts are stored.
#[derive(PartialEq)]
pub(crate) struct Picture(View, usize, usize);

impl std::fmt::Debug for Picture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Picture with {} artifacts", self.1)
    }
}

impl Server {
    pub(crate) fn new() -> Self {
        let env = Arc::new(Fixed {
            now: AtomicU64::new(START),
            next: AtomicU64::new(1),
        });
        let fake = Arc::new(Fake {
            world: Mutex::default(),
            env: Arc::clone(&env),
        });
        let info = ServerInfo {
            version: "0.1.0".to_owned(),
            public_url: "https://example.com/".to_owned(),
            region: REGION,
        };
        let router = coracle_facades::router(Arc::clone(&fake) as _, info, env);
        let mut server = Self {
            router,
            fake,
            admin: String::new(),
        };
        server.admin = server.token(TokenRole::Admin, None);
        server
    }

    pub(crate) fn token(&self, role: TokenRole, expires_at: Option<Timestamp>) -> String {
        let id = TokenId(self.fake.env.fresh_uuid());
        self.operate(Operation::CreateToken(CreateToken {
            id,
            description: String::new(),
            hash: SecretHash::of(SECRET),
            role,
            expires_at,
        }));
        format!("{id}${SECRET}")
    }

    /// A second tenant: number 2, called `other`, and a token for it.
    pub(crate) fn other_project(&self) -> String {
        self.operate(Operation::CreateProject {
            name: "other".parse().expect("a valid name"),
        });
        self.token(TokenRole::Project(ProjectId(2)), None)
    }

    pub(crate) fn operate(&self, operation: Operation) {
        let id = WriteId(self.fake.env.fresh_uuid());
        self.fake
            .apply(id, CommandBody::Operation(operation))
            .expect("the state allows it");
    }

    /// Makes a cluster of it; the second controller has number 2.
    pub(crate) fn found_cluster(&self) {
        let controller = |n: u8| Admission::Controller {
            name: format!("c{n}"),
            address: format!("10.0.0.{n}:7000"),
            wrapping_key: [n; 32],
            wrapped: vec![n],
            generation: 1,
            replaces: None,
        };
        let apply = |body| {
            let id = WriteId(self.fake.env.fresh_uuid());
            self.fake.apply(id, body).expect("the state allows it");
        };
        apply(CommandBody::InitCluster {
            first: controller(1),
            ca_certificate: b"certificate".to_vec(),
            ca_key: vec![1],
        });
        let id = TokenId(self.fake.env.fresh_uuid());
        let hash = SecretHash::of(SECRET);
        self.operate(Operation::CreateJoinToken(CreateJoinToken {
            id,
            hash,
            role: ComponentRole::Controller,
            expires_at: Timestamp(START + 1_000),
            uses: 1,
        }));
        apply(CommandBody::RedeemJoinToken {
            id,
            hash,
            admission: controller(2),
        });
        self.operate(Operation::RevokeJoinToken { id });
    }

    pub(crate) fn picture(&self) -> Picture {
        let world = self.fake.world();
        let (artifacts, changes) = (world.artifacts.len(), world.node_changes.len());
        drop(world);
        Picture(self.fake.view(), artifacts, changes)
    }

    pub(crate) fn view(&self) -> View {
        self.fake.view()
    }

    pub(crate) fn advance(&self, millis: u64) {
        self.fake.env.now.fetch_add(millis, Ordering::Relaxed);
    }

    pub(crate) fn set_instances(&self, wanted: u32, ready: u32) {
        self.fake.world().instances = (wanted, ready);
    }

    pub(crate) fn node_changes(&self) -> Vec<(NodeId, NodeChange)> {
        self.fake.world().node_changes.clone()
    }

    pub(crate) fn set_running(&self, running: FunctionRuntimeView) {
        self.fake.world().running = running;
    }

    pub(crate) fn set_log(&self, log: Vec<LogLine>) {
        self.fake.world().log = log;
    }

    pub(crate) fn fail_next(&self, error: PortError) {
        self.fake.world().failures.push(error);
    }

    /// The next writes happen, but their answers do not arrive.
    pub(crate) fn lose_answers(&self, count: usize) {
        self.fake.world().lost_answers = count;
    }

    pub(crate) fn invocations(&self) -> Vec<(FunctionRef, Request<Bytes>)> {
        std::mem::take(&mut self.fake.world().invocations)
    }

    fn latest(&self, function: &str) -> RevisionId {
        let view = self.fake.view();
        let mut all = view.functions();
        let found = all.find(|record| *record.function.name == *function);
        found.expect("the function exists").function.latest
    }

    fn step(&self, body: CommandBody) {
        let id = WriteId(self.fake.env.fresh_uuid());
        self.fake.apply(id, body).expect("steps are never refused");
    }

    pub(crate) fn begin_build(&self, function: &str) {
        self.step(CommandBody::BeginBuild {
            revision: self.latest(function),
        });
    }

    pub(crate) fn finish_build(&self, function: &str) {
        let output = BuildOutput {
            code: Digest::of(b"built"),
            dependencies: None,
            message: "Built".to_owned(),
        };
        self.step(CommandBody::FinishBuild {
            revision: self.latest(function),
            output,
        });
    }

    pub(crate) fn fail_build(&self, function: &str, reason: &str) {
        let revision = self.latest(function);
        self.step(CommandBody::FailBuild {
            revision,
            reason: reason.to_owned(),
        });
    }

    pub(crate) fn promote(&self, function: &str) {
        self.step(CommandBody::Promote {
            revision: self.latest(function),
        });
    }

    pub(crate) fn fail_deploy(&self, function: &str, reason: &str) {
        let revision = self.latest(function);
        self.step(CommandBody::FailDeploy {
            revision,
            reason: reason.to_owned(),
        });
    }

    /// Everything between a write and a function that answers.
    pub(crate) fn run(&self, function: &str) {
        self.begin_build(function);
        self.finish_build(function);
        self.promote(function);
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        let response = self
            .router
            .clone()
            .oneshot(request)
            .await
            .expect("infallible");
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.expect("a whole body").to_bytes();
        let text = String::from_utf8(bytes.into()).expect("text");
        Answer {
            status: parts.status,
            headers: parts.headers,
            text,
        }
    }

    pub(crate) async fn with_token(
        &self,
        token: Option<&str>,
        method: Method,
        path: &str,
        body: impl Into<Body>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(token) = token {
            let word = if path.starts_with("/api/") {
                "Bearer"
            } else {
                "apikey"
            };
            request = request.header("Authorization", format!("{word} {token}"));
        }
        self.send(request.body(body.into()).expect("a valid request"))
            .await
    }

    pub(crate) async fn call(&self, method: Method, path: &str, body: Value) -> Answer {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        self.with_token(Some(&self.admin), method, path, body).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, Value::Null).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.call(Method::POST, path, body).await
    }

    pub(crate) async fn patch(&self, path: &str, body: Value) -> Answer {
        self.call(Method::PATCH, path, body).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.call(Method::DELETE, path, Value::Null).await
    }
}

pub(crate) mod gcore {
    use serde_json::{Value, json};

    use super::Server;

    pub(crate) const NAMESPACES: &str = "/cloud/v1/faas/namespaces/1/1";
    pub(crate) const FUNCTIONS: &str = "/cloud/v1/faas/namespaces/1/1/space/functions";
    pub(crate) const HELLO: &str = "/cloud/v1/faas/namespaces/1/1/space/functions/hello";
    pub(crate) const KEYS: &str = "/cloud/v1/faas/keys/1/1";

    /// Every field that a create can have, each other than its default.
    pub(crate) fn create() -> Value {
        json!({
            "name": "hello",
            "runtime": "python3.7.12",
            "timeout": 5,
            "flavor": "64m-64MB",
            "autoscaling": {"min_instances": 1, "max_instances": 2},
            "code_text": "def main():\n    return 'Hello World'",
            "main_method": "main",
            "dependencies": "requests==2.31.0",
            "description": "Says hello.",
            "enable_api_key": true,
            "envs": {"A": "1"},
            "keys": [],
            "disabled": false,
        })
    }

    /// With a namespace `space`.
    pub(crate) async fn server() -> Server {
        let server = Server::new();
        server.post(NAMESPACES, json!({"name": "space"})).await.ok();
        server
    }

    /// With the function of [`create`] in it.
    pub(crate) async fn with_hello() -> Server {
        let server = server().await;
        server.post(FUNCTIONS, create()).await.ok();
        server
    }

    pub(crate) async fn hello(server: &Server) -> Value {
        server.get(HELLO).await.ok()
    }
}

pub(crate) mod native {
    use http::StatusCode;
    use serde_json::{Value, json};

    use super::Server;

    pub(crate) const PROJECT: &str = "/api/v1/projects/default";
    pub(crate) const FUNCTIONS: &str = "/api/v1/projects/default/namespaces/space/functions";
    pub(crate) const HELLO: &str = "/api/v1/projects/default/namespaces/space/functions/hello";

    pub(crate) fn create() -> Value {
        json!({
            "name": "hello",
            "runtime": "python3.11",
            "handler": "main",
            "code": "def main(request):\n    return 'hi'",
        })
    }

    pub(crate) async fn server() -> Server {
        let server = Server::new();
        let made = server
            .post(&format!("{PROJECT}/namespaces"), json!({"name": "space"}))
            .await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
        server
    }

    pub(crate) async fn with_hello() -> Server {
        let server = server().await;
        let made = server.post(FUNCTIONS, create()).await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
        server
    }
}
