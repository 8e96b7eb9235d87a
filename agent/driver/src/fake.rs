//! An in-memory driver and sandbox for tests and for suites of real processes without containers.
//!
//! Instances are servers inside this process that speak the frames of `runtimes/CONTRACT.md` on
//! real Unix sockets and echo what they are sent. They outlive whoever ordered them for as long as
//! the driver lives, so that one process can restart an agent and see it adopt them. What is
//! absent: isolation, limits, output, and a clock (survivors started at time zero).

mod sandbox;
mod script;
mod server;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use coracle_model::{ExitReason, FunctionName, InstanceId, RuntimeName, Timestamp};
use tokio::{
    net::UnixListener,
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout},
};

pub use sandbox::{FakeRun, FakeSandbox};
pub use script::{Gate, Script};

use crate::{
    Exit, InstanceDriver, LaunchError, LaunchOrder, Launched, Origin, StemTarget, Stop, Survivor,
};

/// Clones share one set of instances.
#[derive(Debug, Clone)]
pub struct FakeDriver(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    sockets: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    scripts: BTreeMap<FunctionName, Script>,
    running: BTreeMap<InstanceId, Running>,
    /// Launches that wait for their script; what is sent ends them.
    starting: BTreeMap<InstanceId, oneshot::Sender<ExitReason>>,
    launches: u64,
    exits: Option<mpsc::UnboundedSender<Exit>>,
    stems: BTreeMap<RuntimeName, u32>,
    adopt_failure: Option<String>,
}

#[derive(Debug)]
struct Running {
    survivor: Survivor,
    rootfs: PathBuf,
    command: watch::Sender<Command>,
    gone: watch::Receiver<bool>,
}

#[derive(Debug, Clone)]
enum Command {
    Serve,
    Finish { until: Instant },
    Kill(ExitReason),
}

impl FakeDriver {
    /// Sockets are made in this directory, which must exist and have a short path.
    pub fn new(sockets: impl Into<PathBuf>) -> Self {
        Self(Arc::new(Inner {
            sockets: sockets.into(),
            state: Mutex::default(),
        }))
    }

    /// How instances of a function behave from the next launch on. Variables of the instance's
    /// environment win over it ([`Script::overlaid`]).
    pub fn script(&self, function: &FunctionName, script: Script) {
        self.state().scripts.insert(function.clone(), script);
    }

    /// Makes the next calls of `adopt` fail, as with a container runtime that is down.
    pub fn fail_adoption(&self, why: Option<&str>) {
        self.state().adopt_failure = why.map(str::to_owned);
    }

    /// Instances that run now.
    pub fn running(&self) -> Vec<InstanceId> {
        self.state().running.keys().copied().collect()
    }

    /// Launches ever asked for, failed ones included.
    pub fn launches(&self) -> u64 {
        self.state().launches
    }

    /// Ends an instance as if the machine had done it. False when it does not run.
    pub fn crash(&self, id: InstanceId, reason: ExitReason) -> bool {
        let state = self.state();
        let Some(running) = state.running.get(&id) else {
            return false;
        };
        running.command.send_replace(Command::Kill(reason));
        true
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0
            .state
            .lock()
            .expect("never poisoned: no panic while held")
    }

    fn take_stem(&self, runtime: &RuntimeName) -> Origin {
        match self.state().stems.get(runtime) {
            // Refilled at once: the fake has nothing to prepare.
            Some(1..) => Origin::Stem,
            _ => Origin::Scratch,
        }
    }

    fn serve(&self, order: &LaunchOrder, script: Script) -> io::Result<PathBuf> {
        let spec = &order.spec;
        let socket = socket_path(&self.0.sockets, spec.id);
        match std::fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&socket)?;
        let (command, orders) = watch::channel(Command::Serve);
        let (ended, gone) = watch::channel(false);
        let survivor = Survivor {
            id: spec.id,
            revision: spec.revision,
            runtime: spec.runtime.clone(),
            socket: socket.clone(),
            memory: spec.memory,
            cpu: spec.cpu,
            concurrency: spec.concurrency.get(),
            started_at: Timestamp::default(),
        };
        self.state().running.insert(
            spec.id,
            Running {
                survivor,
                rootfs: order.rootfs.clone(),
                command,
                gone,
            },
        );
        let exit = Exit {
            id: spec.id,
            revision: spec.revision,
            reason: ExitReason::Lost,
        };
        let server = server::Server::new(listener, spec.clone(), script);
        let driver = self.clone();
        let path = socket.clone();
        tokio::spawn(async move {
            let reason = server.run(orders).await;
            // The path may be gone already when a test's directory was.
            let _ = std::fs::remove_file(&path);
            {
                let mut state = driver.state();
                state.running.remove(&exit.id);
                if let Some(exits) = &state.exits {
                    // Nobody listens between two agents; the next one sees that it is not there.
                    let _ = exits.send(Exit { reason, ..exit });
                }
            }
            ended.send_replace(true);
        });
        Ok(socket)
    }
}

/// The start of the id keeps the path within what a socket address may hold.
fn socket_path(sockets: &Path, id: InstanceId) -> PathBuf {
    sockets.join(format!("{}.sock", &id.0.simple().to_string()[..16]))
}

#[async_trait]
impl InstanceDriver for FakeDriver {
    async fn adopt(&self) -> Result<Vec<Survivor>, LaunchError> {
        let state = self.state();
        if let Some(why) = &state.adopt_failure {
            return Err(LaunchError::platform("list containers", why.clone()));
        }
        Ok(state
            .running
            .values()
            .map(|running| running.survivor.clone())
            .collect())
    }

    async fn launch(&self, order: LaunchOrder) -> Result<Launched, LaunchError> {
        let started = Instant::now();
        let spec = &order.spec;
        let (stop, stopped) = oneshot::channel();
        let script = {
            let mut state = self.state();
            state.launches += 1;
            state.starting.insert(spec.id, stop);
            let script = state
                .scripts
                .get(&spec.function)
                .cloned()
                .unwrap_or_default();
            script.overlaid(&spec.env)
        };
        let origin = self.take_stem(&spec.runtime);
        let limit = spec.init_timeout;
        let start = started.elapsed();
        let started_in_time = tokio::select! {
            waited = timeout(limit.duration(), script.wait_to_start()) => waited.is_ok(),
            Ok(reason) = stopped => return Err(LaunchError::Function(reason)),
        };
        self.state().starting.remove(&spec.id);
        if !started_in_time {
            return Err(LaunchError::Function(ExitReason::InitTimedOut {
                seconds: limit.secs(),
            }));
        }
        if let Some(reason) = &script.fail {
            return Err(LaunchError::Function(reason.clone()));
        }
        if let Some(why) = &script.fault {
            return Err(LaunchError::platform("make the container", why.clone()));
        }
        let socket = self
            .serve(&order, script)
            .map_err(|error| LaunchError::platform("bind the instance's socket", error))?;
        let init = started
            .elapsed()
            .saturating_sub(start)
            .max(Duration::from_micros(1));
        Ok(Launched {
            socket,
            origin,
            start: start.max(Duration::from_micros(1)),
            init,
        })
    }

    async fn stop(&self, id: InstanceId, how: Stop) -> Result<(), LaunchError> {
        let mut gone = {
            let mut state = self.state();
            if let Some(starting) = state.starting.remove(&id) {
                // It may have got ready this very moment; then it is stopped once it says so.
                let _ = starting.send(match how {
                    Stop::Gracefully(_) => ExitReason::Stopped,
                    Stop::DeadlinePassed => ExitReason::TimedOut,
                });
                return Ok(());
            }
            let Some(running) = state.running.get(&id) else {
                return Ok(());
            };
            running.command.send_replace(match how {
                Stop::Gracefully(grace) => Command::Finish {
                    until: Instant::now() + grace,
                },
                Stop::DeadlinePassed => Command::Kill(ExitReason::TimedOut),
            });
            running.gone.clone()
        };
        // An error means that the instance's task is over, which is what is waited for.
        let _ = gone.wait_for(|gone| *gone).await;
        Ok(())
    }

    fn exits(&self) -> mpsc::UnboundedReceiver<Exit> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.state().exits = Some(sender);
        receiver
    }

    fn set_stems(&self, targets: BTreeMap<RuntimeName, StemTarget>) {
        self.state().stems = targets
            .into_iter()
            .map(|(k, target)| (k, target.count))
            .collect();
    }

    fn release_image(&self, rootfs: &Path) -> bool {
        self.state()
            .running
            .values()
            .all(|running| running.rootfs != rootfs)
    }

    fn stems(&self) -> BTreeMap<RuntimeName, u32> {
        self.state().stems.clone()
    }
}

#[cfg(test)]
mod tests;
