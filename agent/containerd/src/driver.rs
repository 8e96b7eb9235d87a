//! The driver: what the agent sees.

use std::{
    collections::BTreeMap,
    fmt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use coracle_driver::{
    Exit, InstanceDriver, LaunchError, LaunchOrder, Launched, StemTarget, Stop, Survivor,
};
use coracle_model::{InstanceId, RuntimeName};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    config::{Config, ShimCommand},
    container::Container,
    instances::{Instance, Instances, Phase},
    launch::Launcher,
    machine::{Machine, StartError},
    stem::{self, Pools},
    sweep,
};

/// Instances and builds as containers of containerd. Dropping it leaves instances running, to be
/// adopted by the next one; see [`ContainerdDriver::start`].
pub struct ContainerdDriver {
    pub(crate) machine: Arc<Machine>,
    pub(crate) instances: Arc<Instances>,
    pub(crate) ends: Ends,
    launcher: Arc<Launcher>,
    pools: Arc<Pools>,
    commands: BTreeMap<RuntimeName, ShimCommand>,
    exits_taken: Mutex<Option<mpsc::UnboundedReceiver<Exit>>>,
    /// Refilling, sweeping, and keeping a private containerd alive.
    _background: Vec<AbortOnDropHandle<()>>,
}

/// Turns the end of a container into the end of an instance.
#[derive(Debug, Clone)]
pub(crate) struct Ends {
    instances: Arc<Instances>,
    exits: mpsc::UnboundedSender<Exit>,
    closed: CancellationToken,
}

impl Ends {
    /// Reports the one exit of an instance that runs.
    pub(crate) fn watch(&self, instance: Arc<Instance>, container: Arc<Container>) {
        let ends = self.clone();
        tokio::spawn(async move {
            let reason = tokio::select! {
                reason = container.gone() => reason,
                () = ends.closed.cancelled() => return,
            };
            ends.instances.end(&instance, reason.clone());
            let (id, revision) = (instance.id, instance.revision);
            // Nobody listens when the agent is ending.
            let _ = ends.exits.send(Exit {
                id,
                revision,
                reason,
            });
        });
    }
}

impl Drop for ContainerdDriver {
    fn drop(&mut self) {
        self.machine.closed.cancel();
    }
}

impl fmt::Debug for ContainerdDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContainerdDriver")
            .field("machine", &self.machine)
            .field("stems", &self.pools.counts())
            .finish_non_exhaustive()
    }
}

impl ContainerdDriver {
    /// Finds or starts containerd, and prepares namespace, network and directories. Safe to repeat
    /// while instances of an earlier process run; [`InstanceDriver::adopt`] is to be called next.
    pub async fn start(config: Config) -> Result<Arc<Self>, StartError> {
        let machine = Arc::new(Machine::start(&config).await?);
        let pools = Arc::new(Pools::new());
        let (exits, exits_taken) = mpsc::unbounded_channel();
        let keeper = Arc::clone(&machine);
        let background = vec![
            tokio::spawn(stem::refill(
                Arc::clone(&machine),
                Arc::downgrade(&pools),
                config.commands.clone(),
                config.stems,
            )),
            tokio::spawn(sweep::repeat(Arc::clone(&machine))),
            tokio::spawn(async move { keeper.daemon.keep().await }),
        ];
        let launcher = Launcher {
            machine: Arc::clone(&machine),
            pools: Arc::clone(&pools),
            claims: Arc::new(Semaphore::new(config.stems.concurrent_claims.max(1))),
            starts: Arc::new(Semaphore::new(config.stems.concurrent_claims.max(1))),
        };
        let instances = Arc::<Instances>::default();
        let ends = Ends {
            instances: Arc::clone(&instances),
            exits,
            closed: machine.closed.clone(),
        };
        Ok(Arc::new(Self {
            machine,
            instances,
            ends,
            launcher: Arc::new(launcher),
            pools,
            commands: config.commands,
            exits_taken: Mutex::new(Some(exits_taken)),
            _background: background.into_iter().map(AbortOnDropHandle::new).collect(),
        }))
    }
}

#[async_trait]
impl InstanceDriver for ContainerdDriver {
    async fn adopt(&self) -> Result<Vec<Survivor>, LaunchError> {
        self.adopt_all()
            .await
            .map_err(|error| LaunchError::platform("list containers", error))
    }

    async fn launch(&self, order: LaunchOrder) -> Result<Launched, LaunchError> {
        let (instance, fresh) = self.instances.begin(order.spec.id, order.spec.revision);
        if !fresh {
            return instance.joined().await;
        }
        let Some(command) = self.commands.get(&order.spec.runtime).cloned() else {
            let error = stem::Error::UnknownRuntime(order.spec.runtime.clone());
            let error = LaunchError::platform("start a container", error);
            self.instances.end(&instance, error.exit_reason());
            return Err(error);
        };
        // On a task of its own, so that a caller that gives up leaves nothing half-made.
        let (launcher, starting) = (Arc::clone(&self.launcher), Arc::clone(&instance));
        let ends = self.ends.clone();
        let task = tokio::spawn(async move {
            match launcher.launch(&order, &command, &starting).await {
                Ok((launched, container)) => {
                    starting.set(Phase::Running(launched.socket.clone()));
                    ends.watch(starting, container);
                    Ok(launched)
                }
                Err(error) => {
                    ends.instances.end(&starting, error.exit_reason());
                    Err(error)
                }
            }
        });
        task.await.map_err(|error| {
            let error = LaunchError::platform("start a container", error);
            self.instances.end(&instance, error.exit_reason());
            error
        })?
    }

    async fn stop(&self, id: InstanceId, how: Stop) -> Result<(), LaunchError> {
        if let Some(instance) = self.instances.get(id) {
            instance.stop(how).await;
        }
        Ok(())
    }

    fn exits(&self) -> mpsc::UnboundedReceiver<Exit> {
        let taken = self
            .exits_taken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        taken.unwrap_or_else(|| {
            tracing::error!("the stream of exits was asked for twice");
            mpsc::unbounded_channel().1
        })
    }

    fn set_stems(&self, targets: BTreeMap<RuntimeName, StemTarget>) {
        self.pools.set(targets);
    }

    fn release_image(&self, rootfs: &Path) -> bool {
        match self.machine.images.release(rootfs) {
            Ok(released) => released,
            Err(error) => {
                tracing::warn!(image = %rootfs.display(), %error, "cannot tell who uses an image");
                false
            }
        }
    }

    fn stems(&self) -> BTreeMap<RuntimeName, u32> {
        self.pools.counts()
    }
}
