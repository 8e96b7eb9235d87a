//! A node under test: its directory outlives the agents that run on it.

use std::{path::Path, sync::Arc, time::Duration};

use coracle_agent::{
    Agent, Config, InstanceLimits, Limits, LogLimits, LogStore, SessionLimits,
    fake::{FakeBuilder, FakeImages},
};
use coracle_base::{Address, MemoryBus, Shutdown, SystemClock, Told};
use coracle_driver::fake::FakeDriver;
use coracle_model::{
    Concurrency, Convention, Digest, Env, FunctionId, Handler, InstanceId, InstanceSpec, Memory,
    MilliCpu, Network, NodeId, RevisionId, RevisionSettings, Source, Timeout, node::Resources,
};
use coracle_proto::v1::{self, node_service_client::NodeServiceClient};
use tempfile::TempDir;
use tonic::transport::Channel;
use uuid::Uuid;

use crate::controller::within;

pub(crate) struct NodeUnderTest {
    dir: TempDir,
    pub(crate) driver: FakeDriver,
    pub(crate) builder: Arc<FakeBuilder>,
}

pub(crate) struct Running {
    pub(crate) agent: Arc<Agent>,
    pub(crate) node: NodeServiceClient<Channel>,
    shutdown: Shutdown,
}

impl NodeUnderTest {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["run", "builds", "rootfs"] {
            std::fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let driver = FakeDriver::new(dir.path().join("run"));
        let builder = Arc::new(FakeBuilder::new(dir.path().join("builds")));
        Self {
            dir,
            driver,
            builder,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) async fn start(&self, controllers: &[Address]) -> Running {
        self.start_on(Address::Memory(MemoryBus::new()), controllers)
            .await
    }

    pub(crate) async fn start_on(&self, listen: Address, controllers: &[Address]) -> Running {
        let clock = Arc::new(SystemClock);
        let logs = LogStore::open(
            self.path().join("agent/logs"),
            LogLimits::default(),
            Arc::<SystemClock>::clone(&clock),
        );
        let config = Config {
            data_dir: self.path().to_owned(),
            node_id: NodeId(Uuid::from_u128(77)),
            node_name: "node".to_owned(),
            version: "0.0.0".to_owned(),
            labels: [("zone".to_owned(), "a".to_owned())].into(),
            controllers: controllers.to_vec(),
            told: Told::default(),
            listen: listen.clone(),
            advertise: None,
            driver: Arc::new(self.driver.clone()),
            images: Arc::new(FakeImages::new(self.path().join("rootfs"))),
            builder: Arc::<FakeBuilder>::clone(&self.builder),
            logs: Arc::new(logs.unwrap()),
            clock,
            capacity: Some(Resources {
                memory_mib: 4096,
                cpu_millis: 4000,
            }),
            reserve: Resources {
                memory_mib: 1024,
                cpu_millis: 500,
            },
            limits: Limits {
                instances: InstanceLimits {
                    stop_grace: Duration::from_millis(200),
                    ..InstanceLimits::default()
                },
                // Ticks so rare that whatever a test sees came from an event.
                session: SessionLimits {
                    report_every: Duration::from_secs(300),
                    retry_most: Duration::from_millis(200),
                    silent_after: Duration::from_secs(300),
                    ..SessionLimits::default()
                },
                reconcile_every: Duration::from_millis(50),
                ..Limits::default()
            },
        };
        let agent = Arc::new(config.build().await.unwrap());
        let shutdown = Shutdown::new();
        let (running, ending) = (Arc::clone(&agent), shutdown.clone());
        shutdown.spawn("agent", async move { running.run(ending).await });
        let reached = match &listen {
            Address::Tcp(_) => agent.address().parse().unwrap(),
            Address::Tls(_, tls) => Address::told(agent.address(), Some(tls)).unwrap(),
            _ => listen,
        };
        Running {
            agent,
            node: NodeServiceClient::new(reached.channel()),
            shutdown,
        }
    }
}

impl Running {
    /// Ends the agent; what it started goes on.
    pub(crate) async fn stop(self) {
        self.shutdown.request();
        assert!(
            self.shutdown.finished(Duration::from_secs(10)).await,
            "the agent did not end"
        );
    }

    pub(crate) async fn until(&self, what: &str, condition: impl Fn(&Agent) -> bool) {
        until(what, || condition(&self.agent)).await;
    }

    pub(crate) async fn await_instance(
        &self,
        id: InstanceId,
    ) -> Result<v1::await_instance_response::Outcome, tonic::Status> {
        let mut node = self.node.clone();
        let instance = coracle_proto::Wire::to_wire(&id);
        let call = node.await_instance(v1::AwaitInstanceRequest { instance });
        Ok(within("an instance", call)
            .await?
            .into_inner()
            .outcome
            .unwrap())
    }
}

/// Waits for something that has no event of its own.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    within(what, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

pub(crate) fn id(n: u128) -> InstanceId {
    InstanceId(Uuid::from_u128(n))
}

pub(crate) fn function() -> FunctionId {
    FunctionId(Uuid::from_u128(1000))
}

pub(crate) fn revision() -> RevisionId {
    RevisionId {
        function: function(),
        number: 1,
    }
}

/// An archive with one file.
pub(crate) fn tar_of(text: &str) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_mode(0o644);
    archive
        .append_data(&mut header, "main.py", text.as_bytes())
        .unwrap();
    archive.into_inner().unwrap()
}

pub(crate) fn spec(n: u128, code: Digest) -> InstanceSpec {
    InstanceSpec {
        id: id(n),
        revision: revision(),
        project: "default".parse().unwrap(),
        namespace: "ns".parse().unwrap(),
        function: "hello".parse().unwrap(),
        runtime: "python3.11".parse().unwrap(),
        handler: Handler::new("main", Convention::Http).unwrap(),
        env: Env::default(),
        memory: Memory::from_mib(64).unwrap(),
        cpu: MilliCpu::new(100).unwrap(),
        concurrency: Concurrency::ONE,
        network: Network::None,
        timeout: Timeout::from_secs(60).unwrap(),
        init_timeout: Timeout::from_secs(30).unwrap(),
        code,
        dependencies: None,
    }
}

pub(crate) fn wanted(n: u128, code: Digest) -> v1::DesiredInstance {
    v1::DesiredInstance {
        spec: Some(spec(n, code).into()),
        drain: false,
        drain_deadline: 0,
    }
}

pub(crate) fn assignment(instances: Vec<v1::DesiredInstance>) -> v1::Assignment {
    v1::Assignment {
        instances,
        ..v1::Assignment::default()
    }
}

pub(crate) fn settings(code: Digest) -> RevisionSettings {
    let spec = spec(0, code);
    RevisionSettings {
        runtime: spec.runtime,
        runtime_requested: "python3.11".to_owned(),
        handler: spec.handler,
        source: Source::Inline { code },
        dependencies: None,
        env: spec.env,
        memory: spec.memory,
        cpu: spec.cpu,
        timeout: spec.timeout,
        init_timeout: spec.init_timeout,
        concurrency: spec.concurrency,
        network: spec.network,
    }
}
