//! From an order to an instance whose user code answered.

use std::{io, sync::Arc, time::Duration};

use coracle_driver::{LaunchError, LaunchOrder, Launched, Origin};
use coracle_model::{ExitReason, Network, Timestamp};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use crate::{
    cgroup::{self, Limits},
    config::ShimCommand,
    container::Container,
    frames::{self, Claimed},
    instances::Instance,
    labels::{self, Identity, Role},
    logs::Owner,
    machine::Machine,
    mount::{self, Claim},
    stem::{Busy, PROCESSES, Pools, Stem, make_apart},
};

/// How long the note beside the container's files stands in for its record.
const LABEL_AFTER: Duration = Duration::from_millis(100);
/// Stems that may turn out dead before a fresh container is made.
const STEM_TRIES: usize = 3;
/// How long code that is being loaded holds up other claims.
const TURN: Duration = Duration::from_millis(50);

/// What a launch needs beside the order.
#[derive(Debug)]
pub(crate) struct Launcher {
    pub(crate) machine: Arc<Machine>,
    pub(crate) pools: Arc<Pools>,
    /// Bounds claims at once.
    pub(crate) claims: Arc<Semaphore>,
    /// Bounds containers that are made at once for orders that found no stem. Apart from the
    /// claims, which take a thousandth of the time and are not to wait behind them.
    pub(crate) starts: Arc<Semaphore>,
}

/// A place among the claims, and the reason why pools are not refilled meanwhile.
struct Turn {
    _place: OwnedSemaphorePermit,
    _busy: Busy,
}

impl Launcher {
    /// Runs on a task of its own. After an error the container is gone.
    pub(crate) async fn launch(
        &self,
        order: &LaunchOrder,
        command: &ShimCommand,
        instance: &Instance,
    ) -> Result<(Launched, Arc<Container>), LaunchError> {
        let began = Instant::now();
        for _ in 0..STEM_TRIES {
            let turn = self.turn().await?;
            refuse_stopped(instance)?;
            let Some(stem) = self.pools.take(&order.spec.runtime, &order.rootfs) else {
                break;
            };
            match self
                .claim(order, stem, instance, Origin::Stem, began, turn)
                .await
            {
                Err(Failure::DeadStem) => {}
                Err(Failure::Launch(error)) => return Err(error),
                Ok(launched) => return Ok(launched),
            }
        }
        // With the order's own memory, so that nothing needs raising; but never less than the
        // shim needs to say that it is too little.
        let memory = order.spec.memory.max(command.min_memory);
        let stem = {
            let _busy = self.pools.busy();
            let _place = place(&self.starts).await?;
            refuse_stopped(instance)?;
            make_apart(&self.machine, command, &order.rootfs, memory)
                .await
                .map_err(|error| LaunchError::platform("start a container", error))?
        };
        let turn = self.turn().await?;
        match self
            .claim(order, stem, instance, Origin::Scratch, began, turn)
            .await
        {
            Ok(launched) => Ok(launched),
            Err(Failure::Launch(error)) => Err(error),
            Err(Failure::DeadStem) => Err(LaunchError::platform(
                "claim the container",
                io::Error::other("it ended right after it had started"),
            )),
        }
    }

    async fn turn(&self) -> Result<Turn, LaunchError> {
        let busy = self.pools.busy();
        Ok(Turn {
            _place: place(&self.claims).await?,
            _busy: busy,
        })
    }

    /// Gives a stem its function. Whatever goes wrong, the stem is used up.
    async fn claim(
        &self,
        order: &LaunchOrder,
        mut stem: Stem,
        instance: &Instance,
        origin: Origin,
        began: Instant,
        turn: Turn,
    ) -> Result<(Launched, Arc<Container>), Failure> {
        if let Err(reason) = instance.attach(&stem.container) {
            stem.container.kill(reason.clone());
            stem.container.gone().await;
            return Err(Failure::Launch(LaunchError::Function(reason)));
        }
        let claimed = self.give(order, &mut stem, origin, began, turn).await;
        match claimed {
            Ok(launched) => Ok((launched, stem.container)),
            Err(failure) => {
                // A reason given before, such as a stop, is kept.
                stem.container.kill(ExitReason::Stopped);
                stem.container.gone().await;
                instance.detach();
                Err(failure)
            }
        }
    }

    async fn give(
        &self,
        order: &LaunchOrder,
        stem: &mut Stem,
        origin: Origin,
        began: Instant,
        turn: Turn,
    ) -> Result<Launched, Failure> {
        let spec = &order.spec;
        let container = &stem.container;
        let limits = Limits {
            memory: spec.memory.bytes(),
            cpu_millis: spec.cpu.get(),
            processes: PROCESSES + 2 * spec.concurrency.get(),
        };
        container.note_limit(limits.memory);
        container.output.belongs_to(Owner {
            function: spec.revision.function,
            instance: spec.id,
        });
        let cut = match spec.network {
            Network::Egress => None,
            Network::None => container.link.clone(),
        };
        let attached = self
            .machine
            .claimers
            .claim(Claim {
                pidfd: Arc::clone(&container.pidfd),
                cgroup: container.cgroup.clone(),
                limits,
                tmp_bytes: limits.memory / 2,
                code: order.code.clone(),
                dependencies: order.dependencies.clone(),
                cut,
            })
            .await;
        match attached {
            Ok(()) => {}
            Err(error) if error.is_gone() => return Err(Failure::DeadStem),
            // The function asks for less than its runtime needs to start.
            Err(mount::Error::Limits(cgroup::Error::TooSmall { .. })) => {
                let reason = ExitReason::OutOfMemory {
                    limit_mib: spec.memory.mib(),
                };
                return Err(Failure::Launch(LaunchError::Function(reason)));
            }
            Err(error) => {
                return Err(Failure::Launch(LaunchError::platform(
                    "claim a container",
                    error,
                )));
            }
        }
        let start = began.elapsed();

        let message = frames::claim_message(spec, order.dependencies.is_some());
        let init_began = Instant::now();
        let answer = frames::claim(&mut stem.connection, &message);
        let answer = tokio::time::timeout(spec.init_timeout.duration(), answer);
        let answered = give_way(answer, turn).await;
        let reason = match answered {
            Ok(Ok(Claimed::Ready)) => {
                self.label(order, stem);
                return Ok(Launched {
                    socket: container.socket(),
                    origin,
                    start,
                    init: init_began.elapsed(),
                });
            }
            Ok(Ok(Claimed::Failed(message))) => ExitReason::InitFailed { message },
            // The connection broke: nearly always because the process ended.
            Ok(Err(error)) => self.why_broken(stem, &error).await,
            Err(_) => ExitReason::InitTimedOut {
                seconds: spec.init_timeout.secs(),
            },
        };
        Err(Failure::Launch(LaunchError::Function(reason)))
    }

    async fn why_broken(&self, stem: &Stem, error: &io::Error) -> ExitReason {
        let patience = Duration::from_secs(2);
        match tokio::time::timeout(patience, stem.container.gone()).await {
            Ok(reason) => reason,
            Err(_) => ExitReason::InitFailed {
                message: format!("the shim broke off the claim: {error}"),
            },
        }
    }

    /// Notes the identity in a file at once, and on containerd's record behind the launch's back:
    /// containerd syncs its database to disk for it, milliseconds that a caller would wait for.
    /// The file bridges them when this process is killed meanwhile.
    fn label(&self, order: &LaunchOrder, stem: &Stem) {
        let spec = &order.spec;
        let identity = Identity {
            id: spec.id,
            revision: spec.revision,
            runtime: spec.runtime.clone(),
            memory: spec.memory,
            cpu: spec.cpu,
            concurrency: spec.concurrency.get(),
            started_at: Timestamp(self.machine.clock.now_millis()),
        };
        let labels = labels::encode(&Role::Instance(identity), stem.container.slot());
        let (machine, container) = (Arc::clone(&self.machine), Arc::clone(&stem.container));
        if let Err(error) = machine.notes.write(&container.id, &labels) {
            tracing::warn!(container = container.id, %error, "cannot note an instance's identity");
        }
        tokio::spawn(async move {
            // The first request comes before it.
            tokio::time::sleep(LABEL_AFTER).await;
            let written = machine.client.label_container(&container.id, labels).await;
            if let Err(error) = written
                && !container.is_gone()
            {
                tracing::warn!(
                    container = container.id,
                    error = %crate::daemon::chain(&error),
                    "cannot label an instance: it will not survive a restart of the agent"
                );
            }
        });
    }
}

async fn place(among: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, LaunchError> {
    let place = Arc::clone(among).acquire_owned().await;
    place.map_err(|error| LaunchError::platform("queue", error))
}

/// Before a container is used up for it.
fn refuse_stopped(instance: &Instance) -> Result<(), LaunchError> {
    instance
        .stop_asked()
        .map_or(Ok(()), |reason| Err(LaunchError::Function(reason)))
}

/// Loading code is the function's own time, up to its init timeout: only the first moments of it,
/// in which most are done, hold a place that other functions wait for.
async fn give_way<T>(loading: impl Future<Output = T>, turn: Turn) -> T {
    tokio::pin!(loading);
    if let Ok(done) = tokio::time::timeout(TURN, &mut loading).await {
        return done;
    }
    drop(turn);
    loading.await
}

enum Failure {
    /// It had ended before anything of the function's was in it.
    DeadStem,
    Launch(LaunchError),
}
