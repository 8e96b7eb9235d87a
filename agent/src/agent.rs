//! The agent put together.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use coracle_base::{Address, Backoff, Incoming, Replicas, Shutdown};
use coracle_driver::{InstanceDriver, LaunchError, StemTarget};
use coracle_model::{RuntimeName, Timestamp};
use coracle_proto::{ConvertError, v1};

use crate::{
    artifacts::{ArtifactError, Artifacts},
    build::Builds,
    config::{self, Config, Limits},
    data_port,
    desired::Desired,
    fetch::Controllers,
    health::{Health, HealthCell},
    images::{Image, RuntimeImages},
    instances::{Instances, Parts, chain},
    ledger::{Ledger, LedgerError},
    logs::LogStore,
    metrics,
    node_service::Service,
    relay::Relay,
    report::{NodeFacts, Reporter},
    session,
};

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot make {}", path.display())]
    Folder {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot tell what this machine has")]
    Machine(#[source] io::Error),
    #[error("cannot listen on {address}")]
    Listen {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot open the ledger of terms")]
    Ledger(#[source] LedgerError),
    #[error("cannot open the artifact cache")]
    Artifacts(#[source] ArtifactError),
    #[error("no controller is given")]
    NoController,
}

/// A node's agent, listening and not yet running.
#[derive(Debug)]
pub struct Agent {
    shared: Arc<Shared>,
    started: Mutex<Option<Start>>,
}

#[derive(Debug)]
struct Start {
    ledger: Ledger,
    incoming: Incoming,
}

/// What the agent's loops share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) limits: Limits,
    pub(crate) controllers: Controllers,
    pub(crate) instances: Arc<Instances>,
    pub(crate) builds: Arc<Builds>,
    pub(crate) reporter: Reporter,
    pub(crate) health: HealthCell,
    driver: Arc<dyn InstanceDriver>,
    images: Arc<dyn RuntimeImages>,
    logs: Arc<LogStore>,
    /// `None` before the first snapshot: until then nothing is started or stopped.
    desired: Mutex<Option<Desired>>,
    /// What the driver was told last.
    stems: Mutex<Option<Stems>>,
}

/// How many idle stems of each runtime, and their image.
type Stems = BTreeMap<RuntimeName, (u32, Image)>;

impl Config {
    /// Opens what is on the disk and binds the data port; starts nothing yet.
    pub async fn build(self) -> Result<Agent, StartError> {
        if self.controllers.is_empty() {
            return Err(StartError::NoController);
        }
        metrics::describe();
        let folder = self.data_dir.join("agent");
        std::fs::create_dir_all(&folder).map_err(|source| StartError::Folder {
            path: folder.clone(),
            source,
        })?;
        let ledger = Ledger::open(folder.join("ledger.json")).map_err(StartError::Ledger)?;
        let controllers = Controllers::new(Replicas::new(&self.controllers, self.told));
        let source = Arc::new(controllers.clone());
        let artifacts = Artifacts::open(
            folder.join("artifacts"),
            folder.join("scratch"),
            self.limits.artifact_bytes,
            source,
        )
        .map_err(StartError::Artifacts)?;
        let artifacts = Arc::new(artifacts);
        let capacity = match self.capacity {
            Some(capacity) => capacity,
            None => config::machine().map_err(StartError::Machine)?,
        };
        let listen = data_port::both(self.listen);
        let incoming = listen.listen().await.map_err(|source| StartError::Listen {
            address: listen.to_string(),
            source,
        })?;
        let address = self
            .advertise
            .unwrap_or_else(|| reachable(&listen, &incoming));
        let instances = Instances::new(Parts {
            driver: Arc::clone(&self.driver),
            artifacts: Arc::clone(&artifacts),
            images: Arc::clone(&self.images),
            logs: Arc::clone(&self.logs),
            clock: Arc::clone(&self.clock),
            limits: self.limits.instances.clone(),
        });
        let builds = Builds::new(
            self.builder,
            Arc::clone(&self.images),
            artifacts,
            controllers.clone(),
        );
        let reporter = Reporter {
            facts: NodeFacts {
                id: self.node_id,
                name: self.node_name,
                version: self.version,
                labels: self.labels,
                allocatable: config::allocatable(capacity, self.reserve),
                address,
            },
            driver: Arc::clone(&self.driver),
            images: Arc::clone(&self.images),
            instances: Arc::clone(&instances),
            clock: self.clock,
        };
        let shared = Shared {
            limits: self.limits,
            controllers,
            instances,
            builds: Arc::new(builds),
            reporter,
            health: HealthCell::new(),
            driver: self.driver,
            images: self.images,
            logs: self.logs,
            desired: Mutex::default(),
            stems: Mutex::default(),
        };
        let started = Mutex::new(Some(Start { ledger, incoming }));
        Ok(Agent {
            shared: Arc::new(shared),
            started,
        })
    }
}

/// With the port that the system chose, where it did.
fn reachable(listen: &Address, incoming: &Incoming) -> String {
    let text = listen.to_string();
    match (text.strip_suffix(":0"), incoming.local_addr()) {
        (Some(host), Some(bound)) => format!("{host}:{}", bound.port()),
        _ => text,
    }
}

impl Agent {
    /// Runs until the shutdown. Instances are left running; the next agent adopts them. Runs once:
    /// a second call returns at once.
    pub async fn run(&self, shutdown: Shutdown) {
        let start = self
            .started
            .lock()
            .expect("never poisoned: no panic while held")
            .take();
        let Some(Start { ledger, incoming }) = start else {
            return;
        };
        let shared = &self.shared;
        // Taken before anything is adopted, and read after: no exit is missed, and none comes
        // for an instance that is not known yet.
        let exits = shared.driver.exits();
        let service = Service {
            instances: Arc::clone(&shared.instances),
            logs: Arc::clone(&shared.logs),
            shutdown: shutdown.clone(),
        };
        let relay = Relay::new(
            Arc::clone(&shared.instances),
            shared.limits.relayed_connections,
        );
        shutdown.spawn(
            "data port",
            data_port::serve(incoming, service, Arc::new(relay), shutdown.clone()),
        );
        if !self.adopt(&shutdown).await {
            return;
        }
        let (instances, ending) = (Arc::clone(&shared.instances), shutdown.clone());
        shutdown.spawn("exits", async move {
            tokio::select! {
                () = instances.watch(exits) => {}
                () = ending.requested() => {}
            }
        });
        let (builds, ending) = (Arc::clone(&shared.builds), shutdown.clone());
        shutdown.spawn("builds", async move { builds.run(&ending).await });
        let (for_timer, ending) = (Arc::clone(shared), shutdown.clone());
        shutdown.spawn("reconcile", async move {
            for_timer.keep_reconciling(&ending).await
        });
        session::run(shared, ledger, &shutdown).await;
    }

    /// Tries until it succeeds. False when the shutdown came first.
    async fn adopt(&self, shutdown: &Shutdown) -> bool {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        loop {
            let adopted = tokio::select! {
                adopted = self.shared.instances.adopt() => adopted,
                () = shutdown.requested() => return false,
            };
            match adopted {
                Ok(count) => {
                    tracing::info!(count, "adopted what was running");
                    self.shared.health.set_driver(Ok(()));
                    return true;
                }
                Err(error) => {
                    let error = chain(&error);
                    tracing::warn!(error, "cannot see what is running");
                    self.shared.health.set_driver(Err(error));
                }
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.wait()) => {}
                () = shutdown.requested() => return false,
            }
        }
    }

    pub fn health(&self) -> Health {
        self.shared.health.get()
    }

    /// Where gateways reach the node service, as the controllers are told.
    pub fn address(&self) -> &str {
        &self.shared.reporter.facts.address
    }

    /// Ends every instance, for cleaning up: gracefully within the grace, then by force. Call it
    /// after the shutdown, or the leader orders them again. Gives what could not be stopped.
    pub async fn stop_all(&self, grace: Duration) -> Vec<LaunchError> {
        self.shared.set_stems(Stems::new());
        self.shared.instances.stop_all(grace).await
    }
}

impl Shared {
    fn desired(&self) -> MutexGuard<'_, Option<Desired>> {
        self.desired
            .lock()
            .expect("never poisoned: no panic while held")
    }

    pub(crate) fn replace(&self, desired: Desired, shutdown: &Shutdown) {
        *self.desired() = Some(desired);
        self.reconcile(shutdown);
    }

    pub(crate) fn change(
        &self,
        delta: v1::AssignmentDelta,
        shutdown: &Shutdown,
    ) -> Result<(), ConvertError> {
        self.desired().get_or_insert_default().apply(delta)?;
        self.reconcile(shutdown);
        Ok(())
    }

    /// Starts whatever is missing for what runs to be what is wanted.
    pub(crate) fn reconcile(&self, shutdown: &Shutdown) {
        let desired = self.desired();
        let Some(desired) = desired.as_ref() else {
            return;
        };
        self.instances.apply(&desired.instances, shutdown);
        self.builds.apply(&desired.builds);
        let stems = desired.stems.iter().filter_map(|(runtime, count)| {
            // A runtime without its image gets stems when the image is there: this runs again.
            Some((runtime.clone(), (*count, self.images.present(runtime)?)))
        });
        self.set_stems(stems.collect());
    }

    /// Disturbs the driver only when they changed.
    fn set_stems(&self, wanted: Stems) {
        let mut stems = self
            .stems
            .lock()
            .expect("never poisoned: no panic while held");
        if stems.as_ref() != Some(&wanted) {
            let target = |(count, image): &(u32, Image)| StemTarget {
                count: *count,
                rootfs: image.rootfs().to_owned(),
            };
            let targets = wanted
                .iter()
                .map(|(name, stem)| (name.clone(), target(stem)));
            self.driver.set_stems(targets.collect());
            *stems = Some(wanted);
        }
    }

    fn look_at_images(&self) {
        self.images.refresh();
        let now = Timestamp(self.reporter.clock.now_millis());
        let release = |rootfs: &Path| self.driver.release_image(rootfs);
        metrics::images_removed(self.images.collect(now, &release));
    }

    async fn keep_reconciling(self: &Arc<Self>, shutdown: &Shutdown) {
        let mut tick = tokio::time::interval(self.limits.reconcile_every);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {
                    let shared = Arc::clone(self);
                    if let Err(crashed) = tokio::task::spawn_blocking(move || shared.look_at_images()).await {
                        tracing::error!(error = chain(&crashed), "cannot look for images");
                    }
                    self.instances.sweep();
                    self.reconcile(shutdown);
                }
                () = shutdown.requested() => return,
            }
        }
    }
}
