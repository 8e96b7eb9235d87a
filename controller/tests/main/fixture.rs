//! Starting a controller, asking it things, and waiting for what must come true.

use std::{future::Future, sync::Arc, time::Duration};

use coracle_base::{Address, MemoryBus, Shutdown, SystemClock};
use coracle_controller::{
    BackoffConfig, Config, Controller, LeaderConfig, PeerTable, PlannerConfig, RaftPace, RunError,
    ScalingConfig,
};
use coracle_model::{
    Concurrency, Convention, Digest, FunctionId, FunctionRef, Handler, Memory, MilliCpu, Network,
    NodeId, Operation, ProjectId, Revision, RevisionSettings, ScaleBounds, SecretHash, Source,
    TaskId, Timeout, Timestamp, Token, TokenId, TokenRole, WriteId,
    node::{NodeChange, NodeState},
    operation::{CreateFunction, SettingsPatch, UpdateFunction},
    query::{FunctionView, NodeView},
};
use coracle_proto::{
    Wire as _,
    v1::{self, management_client::ManagementClient, routing_client::RoutingClient},
};
use tokio::task::JoinHandle;
use tonic::{Code, transport::Channel};
use uuid::Uuid;

pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Server {
    pub controller: Controller,
    pub channel: Channel,
    shutdown: Shutdown,
    running: JoinHandle<Result<(), RunError>>,
}

/// Windows and paces of fractions of a second.
pub fn config(dir: &std::path::Path, bus: &MemoryBus) -> Config {
    Config {
        artifact_store: coracle_controller::artifacts::StoreUrl::Own,
        data_dir: dir.to_owned(),
        cluster_id: "0badcafe".into(),
        member: 1,
        voters: vec![1],
        peers: PeerTable::default(),
        pace: RaftPace::default(),
        listen: vec![Address::Memory(bus.clone())],
        identity: None,
        clock: Arc::new(SystemClock),
        planner: PlannerConfig {
            scaling: ScalingConfig {
                stable_window_ms: 400,
                panic_window_ms: 100,
                idle_ms: 400,
                demand_stale_ms: 300,
                ..ScalingConfig::default()
            },
            ..PlannerConfig::default()
        },
        backoff: BackoffConfig {
            first_ms: 50,
            ..BackoffConfig::default()
        },
        leader: LeaderConfig {
            tick: Duration::from_millis(50),
            collect_deadline: Duration::from_secs(5),
            collect_settle: Duration::from_millis(20),
            ..LeaderConfig::default()
        },
    }
}

impl Server {
    pub async fn start(dir: &std::path::Path) -> Self {
        Self::with(dir, |_| {}).await
    }

    pub async fn with(dir: &std::path::Path, change: impl FnOnce(&mut Config)) -> Self {
        let bus = MemoryBus::new();
        let mut config = config(dir, &bus);
        change(&mut config);
        let controller = config.build().await.unwrap();
        let shutdown = Shutdown::new();
        let running = tokio::spawn({
            let (controller, shutdown) = (controller.clone(), shutdown.clone());
            async move { controller.run(shutdown).await }
        });
        let channel = Address::Memory(bus).channel();
        controller.bootstrap(token(), PATIENCE).await.unwrap();
        Self {
            controller,
            channel,
            shutdown,
            running,
        }
    }

    pub async fn stop(self) {
        self.shutdown.request();
        tokio::time::timeout(PATIENCE, self.running)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert!(self.shutdown.finished(PATIENCE).await, "a task did not end");
    }

    pub fn management(&self) -> ManagementClient<Channel> {
        ManagementClient::new(self.channel.clone())
    }

    pub fn routing(&self) -> RoutingClient<Channel> {
        RoutingClient::new(self.channel.clone())
    }

    pub async fn put(&self, bytes: &'static [u8]) -> Digest {
        let chunk = v1::ArtifactChunk { data: bytes.into() };
        let answer = self
            .management()
            .put_artifact(tokio_stream::once(chunk))
            .await
            .unwrap();
        Digest::from_wire("digest", answer.into_inner().digest).unwrap()
    }

    pub async fn write(&self, id: WriteId, operation: Operation) -> Option<v1::Refusal> {
        let request = v1::WriteRequest {
            write_id: id.to_wire(),
            operation: Some(operation.into()),
        };
        self.management()
            .write(request)
            .await
            .unwrap()
            .into_inner()
            .refusal
    }

    /// Writes it, or panics with the refusal.
    pub async fn done(&self, operation: Operation) {
        assert_eq!(self.write(fresh_write(), operation).await, None);
    }

    /// Creates `default/<name>` and returns its task.
    pub async fn create(&self, name: &str, min: u32, max: u32) -> TaskId {
        let code = self.put(b"def main(): return 1").await;
        let (operation, task) = create(name, code, ScaleBounds::new(min, max).unwrap());
        self.done(operation).await;
        task
    }

    /// Gives it new code, and returns the task.
    pub async fn update(&self, name: &str) -> TaskId {
        let code = self.put(b"def main(): return 2").await;
        let settings = SettingsPatch {
            source: Some(Source::Inline { code }),
            ..SettingsPatch::default()
        };
        let (operation, task) = update(name, |update| update.settings = settings);
        self.done(operation).await;
        task
    }

    pub async fn task(&self, id: TaskId) -> coracle_model::Task {
        let request = v1::ListTasksRequest {
            project: None,
            id: Some(id.to_wire()),
        };
        let tasks = self
            .management()
            .list_tasks(request)
            .await
            .unwrap()
            .into_inner()
            .tasks;
        tasks.into_iter().next().unwrap().try_into().unwrap()
    }

    pub async fn ended(&self, id: TaskId) -> coracle_model::TaskState {
        wait("the task to end", || async {
            let task = self.task(id).await;
            if task.state.is_final() {
                Ok(task.state)
            } else {
                Err(format!("{task:?}"))
            }
        })
        .await
    }

    pub async fn function(&self, name: &str) -> FunctionView {
        let request = v1::GetFunctionRequest {
            project: 1,
            function: Some(named(name).into()),
        };
        let answer = self
            .management()
            .get_function(request)
            .await
            .unwrap()
            .into_inner();
        answer.function.unwrap().try_into().unwrap()
    }

    pub async fn describe(&self, name: &str) -> v1::DescribeFunctionResponse {
        let request = v1::DescribeFunctionRequest {
            project: 1,
            function: Some(named(name).into()),
        };
        self.management()
            .describe_function(request)
            .await
            .unwrap()
            .into_inner()
    }

    pub async fn latest(&self, name: &str) -> Revision {
        self.function(name).await.latest
    }

    pub async fn routes(&self) -> Routes {
        let request = v1::RoutesRequest {
            gateway: Uuid::from_u128(5).as_bytes().to_vec().into(),
        };
        let stream = wait("the route feed", || async {
            match self.routing().routes(request.clone()).await {
                Ok(stream) => Ok(stream.into_inner()),
                Err(status) if status.code() == Code::Unavailable => Err(status.to_string()),
                Err(status) => panic!("{status}"),
            }
        });
        Routes {
            stream: stream.await,
            last: None,
            routes: Default::default(),
        }
    }

    pub async fn activate(
        &self,
        function: FunctionId,
        id: u128,
        parked: u32,
    ) -> v1::ActivateResponse {
        let request = v1::ActivateRequest {
            activation: Uuid::from_u128(id).as_bytes().to_vec().into(),
            gateway: Uuid::from_u128(5).as_bytes().to_vec().into(),
            function: function.to_wire(),
            parked,
        };
        self.routing().activate(request).await.unwrap().into_inner()
    }
}

/// A gateway's picture of the routes, checking that the feed is contiguous.
pub struct Routes {
    stream: tonic::Streaming<v1::RouteUpdate>,
    last: Option<v1::Stamp>,
    pub routes: std::collections::BTreeMap<bytes::Bytes, v1::Route>,
}

impl Routes {
    pub async fn step(&mut self) {
        let update = tokio::time::timeout(PATIENCE, self.stream.message()).await;
        let update = update
            .expect("no route update")
            .unwrap()
            .expect("the feed ended");
        let stamp = update.stamp.unwrap();
        match &self.last {
            None => assert!(update.snapshot),
            Some(last) if !update.snapshot => {
                assert_eq!(
                    (stamp.incarnation, stamp.term),
                    (last.incarnation, last.term)
                );
                assert_eq!(stamp.sequence, last.sequence + 1, "a gap");
            }
            Some(_) => self.routes.clear(),
        }
        self.last = Some(stamp);
        for route in update.upsert {
            self.routes.insert(route.function.clone(), route);
        }
        for id in &update.remove {
            self.routes.remove(id);
        }
    }

    /// Follows the feed until this holds of the route.
    pub async fn until(
        &mut self,
        function: FunctionId,
        mut holds: impl FnMut(&v1::Route) -> bool,
    ) -> v1::Route {
        let id = function.to_wire();
        let found = async {
            loop {
                if let Some(route) = self.routes.get(&id).filter(|route| holds(route)) {
                    return route.clone();
                }
                self.step().await;
            }
        };
        match tokio::time::timeout(PATIENCE, found).await {
            Ok(route) => route,
            Err(_) => panic!("the route never came: {:?}", self.routes),
        }
    }
}

pub fn serves(route: &v1::Route, number: u32) -> bool {
    route
        .revision
        .as_ref()
        .is_some_and(|revision| revision.number == number)
}

pub fn open(route: &v1::Route) -> usize {
    route
        .instances
        .iter()
        .filter(|i| i.ready && !i.draining)
        .count()
}

/// Asks again until it is so; a panic shows the last answer.
pub async fn wait<T, F: Future<Output = Result<T, String>>>(
    what: &str,
    mut ask: impl FnMut() -> F,
) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match ask().await {
            Ok(value) => return value,
            Err(last) if tokio::time::Instant::now() > deadline => {
                panic!("waited in vain for {what}: {last}")
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

pub fn fresh_write() -> WriteId {
    WriteId(Uuid::new_v4())
}

pub fn token() -> Token {
    Token {
        id: TokenId(Uuid::from_u128(77)),
        description: "admin".into(),
        hash: SecretHash::of("secret"),
        role: TokenRole::Admin,
        expires_at: None,
        created_at: Timestamp(0),
    }
}

pub fn named(name: &str) -> FunctionRef {
    FunctionRef {
        namespace: "default".parse().unwrap(),
        name: name.parse().unwrap(),
    }
}

pub fn create(name: &str, code: Digest, scale: ScaleBounds) -> (Operation, TaskId) {
    let task = TaskId(Uuid::new_v4());
    let create = CreateFunction {
        id: FunctionId(Uuid::new_v4()),
        project: ProjectId::DEFAULT,
        function: named(name),
        description: String::new(),
        annotations: Default::default(),
        key_required: false,
        keys: Vec::new(),
        disabled: false,
        scale,
        placement: Default::default(),
        settings: RevisionSettings {
            runtime: "python3.11".parse().unwrap(),
            runtime_requested: "python3.11".into(),
            handler: Handler::new("main", Convention::Http).unwrap(),
            source: Source::Inline { code },
            dependencies: None,
            env: Default::default(),
            memory: Memory::from_mib(128).unwrap(),
            cpu: MilliCpu::new(250).unwrap(),
            timeout: Timeout::from_secs(5).unwrap(),
            init_timeout: Timeout::from_secs(5).unwrap(),
            concurrency: Concurrency::ONE,
            network: Network::None,
        },
        task: Some(task),
    };
    (Operation::CreateFunction(Box::new(create)), task)
}

pub fn update(name: &str, change: impl FnOnce(&mut UpdateFunction)) -> (Operation, TaskId) {
    let task = TaskId(Uuid::new_v4());
    let mut update = UpdateFunction {
        project: ProjectId::DEFAULT,
        function: named(name),
        description: None,
        annotations: None,
        key_required: None,
        keys: None,
        disabled: None,
        scale_min: None,
        scale_max: None,
        placement: None,
        settings: SettingsPatch::default(),
        task: Some(task),
    };
    change(&mut update);
    (Operation::UpdateFunction(Box::new(update)), task)
}

impl Server {
    /// The newest task that is about this function.
    pub async fn task_of(&self, name: &str) -> TaskId {
        let request = v1::ListTasksRequest {
            project: Some(1),
            id: None,
        };
        let tasks = self
            .management()
            .list_tasks(request)
            .await
            .unwrap()
            .into_inner()
            .tasks;
        let of = |task: &coracle_model::Task| match &task.subject {
            coracle_model::task::TaskSubject::Function { name: of, .. } => of == name,
            coracle_model::task::TaskSubject::Namespace { .. } => false,
        };
        let mut tasks = tasks
            .into_iter()
            .map(|task| coracle_model::Task::try_from(task).unwrap());
        tasks.find(of).unwrap().id
    }

    /// Waits until that revision serves and as many instances as the minimum asks for answer.
    pub async fn serving(&self, name: &str, number: u32) -> FunctionView {
        wait("the revision to serve", || async {
            let view = self.function(name).await;
            let serves = view.function.serving.is_some_and(|r| r.number == number);
            let enough = view.ready >= view.function.scale.min();
            if serves && enough {
                Ok(view)
            } else {
                Err(format!("{view:?}"))
            }
        })
        .await
    }
}

pub fn delete(name: &str) -> (Operation, TaskId) {
    let task = TaskId(Uuid::new_v4());
    let function = named(name);
    let project = ProjectId::DEFAULT;
    (
        Operation::DeleteFunction {
            project,
            function,
            task: Some(task),
        },
        task,
    )
}

impl Server {
    pub async fn nodes(&self) -> Vec<NodeView> {
        let request = v1::ListNodesRequest { node: None };
        let answer = self.management().list_nodes(request).await.unwrap();
        let nodes = answer.into_inner().nodes;
        nodes.into_iter().map(|n| n.try_into().unwrap()).collect()
    }

    pub async fn node(&self, id: NodeId) -> Option<NodeView> {
        self.nodes()
            .await
            .into_iter()
            .find(|node| node.node.id == id)
    }

    /// Waits until the node stands so.
    pub async fn stands(&self, id: NodeId, state: NodeState) -> NodeView {
        wait(state.as_str(), || async {
            let node = self.node(id).await;
            match node {
                Some(node) if node.state == state => Ok(node),
                other => Err(format!("{other:?}")),
            }
        })
        .await
    }

    pub async fn change_node(
        &self,
        write: WriteId,
        node: NodeId,
        change: NodeChange,
    ) -> Option<v1::Refusal> {
        let request = v1::ChangeNodeRequest {
            write_id: write.to_wire(),
            node: node.to_wire(),
            change: Some(change.into()),
        };
        let answer = self.management().change_node(request).await.unwrap();
        answer.into_inner().refusal
    }
}
