//! The agent's part of a server, on the real containerd; suites of processes without containers
//! build the binary with the feature `fake-driver`.

#[cfg(feature = "fake-driver")]
use std::path::PathBuf;
use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use coracle_agent::{
    Agent, Config, Limits, LogLimits, LogStore, NodeImages, RuntimeImages, SourceBuilder,
};
use coracle_base::{Address, Backoff, Shutdown, SystemClock, Told};
use coracle_builder::{Builder, ImageStore, image::Mirror};
use coracle_containerd::{ContainerdDriver, EgressPolicy, ShimCommand, StemLimits};
use coracle_driver::InstanceDriver;
use coracle_model::{NodeId, node::Resources};
use coracle_proto::v1::{StatusRequest, management_client::ManagementClient};
use coracle_runtimes::{Catalog, write_shims};

use crate::{
    admin::Admin,
    commands::runtime::route,
    data::DataDir,
    error::{CliError, chain},
    membership::Membership,
    settings::{Driver, Settings},
};

/// Kept from functions: the system, containerd, and us.
const RESERVE: Resources = Resources {
    memory_mib: 512,
    cpu_millis: 0,
};
const CONTROLLER_WAIT: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Role(Arc<Agent>);

/// What stands between an agent and its machine.
struct Parts {
    driver: Arc<dyn InstanceDriver>,
    images: Arc<dyn RuntimeImages>,
    builder: Arc<dyn SourceBuilder>,
}

pub(super) async fn build(
    settings: &Settings,
    data: &DataDir,
    cluster: &str,
    controllers: Vec<Address>,
    membership: Option<&Membership>,
    admin: &mut Admin,
) -> Result<Role, CliError> {
    let clock = Arc::new(SystemClock);
    // Searchable for containers, as the data directory is; nobody else may list it. What lies in it
    // is closed by whoever keeps it.
    let folder = data.folder("agent", 0o711)?;
    let logs = LogStore::open(folder.join("logs"), LogLimits::default(), clock.clone())
        .map_err(|e| fail("function logs")(&e))?;
    let logs = Arc::new(logs);
    let parts = match settings.driver {
        Driver::Containerd => on_containerd(settings, data, cluster, &folder, logs.clone()).await?,
        #[cfg(feature = "fake-driver")]
        Driver::Fake => fake(data, &folder)?,
    };
    let run = data.path().join("run");
    std::fs::create_dir_all(&run).map_err(|e| fail("run directory")(&e))?;
    let listen = settings
        .listen
        .clone()
        .unwrap_or_else(|| Address::Unix(run.join("agent.sock")));
    let (listen, advertise) = match membership {
        Some(membership) => {
            // Gateways on other machines dial it, and nobody else.
            let tls = membership.to_gateways();
            let advertise = settings
                .advertise
                .as_ref()
                .map(|at| format!("https://{at}"));
            (listen.secured(&tls), advertise)
        }
        None => (listen, settings.advertise.clone()),
    };
    let config = Config {
        data_dir: data.path().to_owned(),
        node_id: NodeId(data.identity().node_id),
        node_name: settings.node_name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        labels: settings.labels.clone(),
        controllers,
        told: membership.map_or_else(Told::default, |known| known.told(data.path())),
        listen,
        advertise,
        driver: parts.driver,
        images: parts.images,
        builder: parts.builder,
        logs,
        clock,
        capacity: None,
        reserve: RESERVE,
        limits: Limits::default(),
    };
    let agent = Arc::new(config.build().await.map_err(|e| fail("agent")(&e))?);
    let seen = agent.clone();
    admin.check("containerd", move || seen.health().driver);
    let seen = agent.clone();
    admin.check("agent session", move || seen.health().session);
    Ok(Role(agent))
}

fn fail(what: &str) -> impl Fn(&dyn std::error::Error) -> CliError {
    let what = what.to_owned();
    move |error| CliError::Failed(format!("{what}: {}", chain(error)))
}

async fn on_containerd(
    settings: &Settings,
    data: &DataDir,
    cluster: &str,
    folder: &Path,
    logs: Arc<LogStore>,
) -> Result<Parts, CliError> {
    let catalog = Catalog::builtin();
    let shims = data.path().join("shims");
    write_shims(&catalog, &shims, coracle_init::INIT).map_err(|e| fail("shims")(&e))?;
    let driver = ContainerdDriver::start(coracle_containerd::Config {
        data_dir: data.path().to_owned(),
        cluster: cluster.parse().map_err(|e| fail("cluster id")(&e))?,
        containerd_socket: settings.containerd.clone(),
        shims_dir: shims,
        commands: commands(&catalog),
        resolvers: Vec::new(),
        egress: EgressPolicy {
            allow: settings.egress_allow.clone(),
            ..EgressPolicy::default()
        },
        stems: StemLimits::default(),
        clock: Arc::new(SystemClock),
        logs,
    })
    .await
    .map_err(|e| fail("containerd driver")(&e))?;
    let environment: BTreeMap<String, String> = std::env::vars().collect();
    let store = ImageStore::open(&settings.images, Mirror::default(), &environment)
        .map_err(|e| fail("runtime images")(&e))?;
    let builder = Builder::new(coracle_builder::Config {
        dir: folder.join("builds"),
        images: store.clone(),
        route: route(settings.image_route),
        catalog: catalog.clone(),
        sandbox: driver.clone(),
        host_env: environment,
        wheels: "/usr/share/python-wheels".into(),
        limits: coracle_builder::Limits::default(),
    })
    .map_err(|e| fail("builder")(&e))?;
    Ok(Parts {
        driver,
        images: Arc::new(NodeImages::new(store, route(settings.image_route), catalog)),
        builder: Arc::new(builder),
    })
}

/// Instances live inside this process and end with it.
#[cfg(feature = "fake-driver")]
fn fake(data: &DataDir, folder: &Path) -> Result<Parts, CliError> {
    let make = |path: PathBuf| {
        std::fs::create_dir_all(&path).map_err(|e| fail("fake driver")(&e))?;
        Ok::<_, CliError>(path)
    };
    let sockets = make(data.path().join("run/fake"))?;
    let builds = make(folder.join("builds"))?;
    tracing::warn!("the fake driver is in use: no function runs for real");
    Ok(Parts {
        driver: Arc::new(coracle_driver::fake::FakeDriver::new(sockets)),
        images: Arc::new(coracle_agent::fake::FakeImages::new(folder)),
        builder: Arc::new(coracle_agent::fake::FakeBuilder::new(builds)),
    })
}

fn commands(catalog: &Catalog) -> BTreeMap<coracle_model::RuntimeName, ShimCommand> {
    catalog
        .runtimes()
        .map(|runtime| {
            let command = ShimCommand {
                argv: runtime.shim.argv.clone(),
                env: runtime.shim.env.clone(),
                min_memory: runtime.shim.stem_memory_mib,
            };
            (runtime.name.clone(), command)
        })
        .collect()
}

impl Role {
    pub(super) fn spawn(&self, shutdown: &Shutdown) {
        let (agent, stop) = (self.0.clone(), shutdown.clone());
        shutdown.spawn("agent", async move { agent.run(stop).await });
    }
}

/// Asks the controllers which cluster they are, until one answers.
pub(super) async fn cluster_id(controllers: &[Address]) -> Result<String, CliError> {
    let asking = async {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        loop {
            for address in controllers {
                let mut client = ManagementClient::new(address.channel());
                match client.status(StatusRequest {}).await {
                    Ok(status) => return status.into_inner().cluster_id,
                    Err(status) => tracing::info!(%address, %status, "no controller answers yet"),
                }
            }
            tokio::time::sleep(backoff.wait()).await;
        }
    };
    tokio::time::timeout(CONTROLLER_WAIT, asking)
        .await
        .map_err(|_| {
            CliError::Unreachable(format!(
                "no controller has answered for {CONTROLLER_WAIT:?}"
            ))
        })
}
