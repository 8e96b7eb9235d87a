//! Stems: started containers of a runtime that have no function yet, and the pools of them.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use coracle_driver::StemTarget;
use coracle_model::{ExitReason, Memory, RuntimeName};
use tokio::{net::UnixStream, sync::Notify, time::Instant};

use crate::{
    cgroup::Limits,
    config::{ShimCommand, StemLimits},
    container::{self, Container, Plan},
    daemon::chain,
    frames, labels,
    machine::Machine,
    spec,
};

/// From the end of a claim to the next container start.
const CALM: Duration = Duration::from_millis(50);
/// From the program's start to its first answer; a busy machine compiles and reads from disk.
const BOOT: Duration = Duration::from_secs(60);
/// A whole processor for starting up; the claim sets what the function has.
const BOOT_CPU_MILLIS: u32 = 1000;
/// Processes and threads beside those of the function's own concurrency.
pub(crate) const PROCESSES: u32 = 256;
/// A runtime whose stems do not start is tried again after this.
const AFTER_FAILURE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("no command is known for runtime {0}")]
    UnknownRuntime(RuntimeName),
    #[error("cannot make a container")]
    Container(#[from] container::Error),
    #[error("the shim did not answer within {} s; it said: {said}", BOOT.as_secs())]
    Silent { said: String },
    #[error("the shim ended before it answered ({reason}); it said: {said}")]
    Ended { reason: ExitReason, said: String },
}

/// A container whose shim has answered.
#[derive(Debug)]
pub(crate) struct Stem {
    pub(crate) container: Arc<Container>,
    pub(crate) connection: UnixStream,
}

impl Machine {
    /// Starts a runtime's shim and waits for its first answer. Like [`Machine::make`], not to be
    /// dropped half-way.
    pub(crate) async fn make_stem(
        self: &Arc<Self>,
        command: &ShimCommand,
        rootfs: PathBuf,
        memory: Memory,
    ) -> Result<Stem, Error> {
        let init = format!("{}/init", spec::SHIMS);
        let plan = Plan {
            rootfs,
            argv: std::iter::once(init)
                .chain(command.argv.iter().cloned())
                .collect(),
            env: command.env.clone(),
            cwd: "/".to_owned(),
            binds: Vec::new(),
            limits: Limits {
                memory: memory.bytes(),
                cpu_millis: BOOT_CPU_MILLIS,
                processes: PROCESSES,
            },
            tmp_bytes: memory.bytes() / 2,
            network: true,
            build: false,
            consumer: self.to_log(),
            labels: labels::Role::Stem,
        };
        let container = self.make(&plan).await?;
        let answered = tokio::select! {
            connection = first_answer(&container) => Ok(connection),
            reason = container.gone() => Err(Some(reason)),
            () = tokio::time::sleep(BOOT) => Err(None),
        };
        match answered {
            Ok(connection) => Ok(Stem {
                container,
                connection,
            }),
            Err(reason) => {
                container.kill(ExitReason::Stopped);
                container.gone().await;
                let said = container.output.last_words();
                Err(match reason {
                    Some(reason) => Error::Ended { reason, said },
                    None => Error::Silent { said },
                })
            }
        }
    }
}

/// Makes a stem on a task of its own: a caller that is dropped leaves a whole one behind, which
/// the next process or a clean-up knows how to remove.
pub(crate) async fn make_apart(
    machine: &Arc<Machine>,
    command: &ShimCommand,
    rootfs: &Path,
    memory: Memory,
) -> Result<Stem, Error> {
    let (machine, command, rootfs) = (Arc::clone(machine), command.clone(), rootfs.to_owned());
    tokio::spawn(async move { machine.make_stem(&command, rootfs, memory).await })
        .await
        .unwrap_or_else(|_| Err(Error::Container(container::Error::Abandoned)))
}

/// Connects as soon as the shim listens, and waits for its sign of life.
async fn first_answer(container: &Container) -> UnixStream {
    let path = container.socket();
    loop {
        let attempt = async {
            let mut stream = UnixStream::connect(&path).await?;
            frames::ping(&mut stream).await?;
            io::Result::Ok(stream)
        };
        match attempt.await {
            Ok(stream) => return stream,
            // Asking again is cheap, and nothing tells when a socket begins to listen: its file
            // appears before. Only the making of a stem waits here, never a claim.
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}

/// The pools of all runtimes. One task refills them, one stem at a time.
#[derive(Debug)]
pub(crate) struct Pools {
    state: Mutex<State>,
    /// Something changed that may call for work.
    changed: Notify,
    /// Launches that wait; refilling would slow them.
    busy: AtomicUsize,
    /// Nothing is made before this: a claim is followed by the request that it was for, which a
    /// container start beside it would slow down.
    calm_at: Mutex<Instant>,
}

#[derive(Debug, Default)]
struct State {
    targets: BTreeMap<RuntimeName, StemTarget>,
    idle: HashMap<RuntimeName, Vec<(PathBuf, Stem)>>,
    /// Runtimes whose last stem failed, and when to try again.
    failed: HashMap<RuntimeName, Instant>,
}

impl Pools {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::default(),
            changed: Notify::new(),
            busy: AtomicUsize::new(0),
            calm_at: Mutex::new(Instant::now()),
        }
    }

    pub(crate) fn set(&self, targets: BTreeMap<RuntimeName, StemTarget>) {
        let mut state = self.lock();
        state.targets = targets;
        state.failed.clear();
        drop(state);
        self.changed.notify_one();
    }

    pub(crate) fn counts(&self) -> BTreeMap<RuntimeName, u32> {
        let state = self.lock();
        let count = |stems: &Vec<_>| u32::try_from(stems.len()).unwrap_or(u32::MAX);
        state
            .idle
            .iter()
            .map(|(name, stems)| (name.clone(), count(stems)))
            .collect()
    }

    /// Takes a stem of this image out for good.
    pub(crate) fn take(&self, runtime: &RuntimeName, rootfs: &Path) -> Option<Stem> {
        let mut state = self.lock();
        let stems = state.idle.get_mut(runtime)?;
        // The oldest first: it has had the most time to settle.
        let at = stems
            .iter()
            .position(|(image, stem)| image == rootfs && !stem.container.is_gone())?;
        let (_, stem) = stems.remove(at);
        drop(state);
        self.changed.notify_one();
        Some(stem)
    }

    /// Holds refilling back for as long as it lives.
    pub(crate) fn busy(self: &Arc<Self>) -> Busy {
        self.busy.fetch_add(1, Ordering::SeqCst);
        Busy(Arc::clone(self))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pure part: what to do next.
    fn next(&self, now: Instant) -> Step {
        let mut state = self.lock();
        let State {
            targets,
            idle,
            failed,
        } = &mut *state;
        let mut surplus = Vec::new();
        for (runtime, stems) in idle.iter_mut() {
            let target = targets.get(runtime);
            let wanted = target.map_or(0, |t| usize::try_from(t.count).unwrap_or(usize::MAX));
            stems.retain(|(_, stem)| !stem.container.is_gone());
            let (keep, mut old): (Vec<_>, Vec<_>) = std::mem::take(stems)
                .into_iter()
                .partition(|(image, _)| target.is_some_and(|t| t.rootfs == *image));
            *stems = keep;
            old.extend(stems.drain(wanted.min(stems.len())..));
            surplus.extend(old.into_iter().map(|(_, stem)| stem));
        }
        idle.retain(|runtime, stems| targets.contains_key(runtime) || !stems.is_empty());
        if !surplus.is_empty() {
            return Step::Remove(surplus);
        }
        failed.retain(|_, until| *until > now);
        // The emptiest pool first, by proportion.
        let lacking = targets.iter().filter_map(|(runtime, target)| {
            let have = idle.get(runtime).map_or(0, Vec::len);
            let wanted = usize::try_from(target.count).unwrap_or(usize::MAX);
            let due = have < wanted && !failed.contains_key(runtime);
            due.then(|| (have * 1000 / wanted, runtime, target))
        });
        match lacking.min_by_key(|(share, ..)| *share) {
            Some((_, runtime, target)) => Step::Make(runtime.clone(), target.rootfs.clone()),
            None => Step::Wait(failed.values().min().copied()),
        }
    }
}

/// What the refilling task should do.
enum Step {
    Remove(Vec<Stem>),
    Make(RuntimeName, PathBuf),
    /// Until something changes, or this moment.
    Wait(Option<Instant>),
}

#[derive(Debug)]
pub(crate) struct Busy(Arc<Pools>);

impl Drop for Busy {
    fn drop(&mut self) {
        *self
            .0
            .calm_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Instant::now() + CALM;
        if self.0.busy.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.changed.notify_one();
        }
    }
}

/// Keeps the pools at their targets until the driver is dropped.
pub(crate) async fn refill(
    machine: Arc<Machine>,
    pools: Weak<Pools>,
    commands: BTreeMap<RuntimeName, ShimCommand>,
    limits: StemLimits,
) {
    loop {
        let Some(pools) = pools.upgrade() else { return };
        match pools.next(Instant::now()) {
            Step::Remove(stems) => {
                for stem in &stems {
                    stem.container.kill(ExitReason::Stopped);
                }
                for stem in stems {
                    stem.container.gone().await;
                }
            }
            Step::Make(runtime, rootfs) => {
                if pools.busy.load(Ordering::SeqCst) > 0 {
                    pools.changed.notified().await;
                    continue;
                }
                let calm_at = *pools.calm_at.lock().unwrap_or_else(PoisonError::into_inner);
                if Instant::now() < calm_at {
                    tokio::time::sleep_until(calm_at).await;
                    continue;
                }
                let earliest_next = Instant::now() + limits.interval;
                let made = match commands.get(&runtime) {
                    Some(command) => {
                        make_apart(&machine, command, &rootfs, command.min_memory).await
                    }
                    None => Err(Error::UnknownRuntime(runtime.clone())),
                };
                match made {
                    Ok(stem) => pools.add(runtime, rootfs, stem),
                    Err(error) => {
                        tracing::warn!(%runtime, error = %chain(&error), "cannot make a stem");
                        let until = Instant::now() + AFTER_FAILURE;
                        pools.lock().failed.insert(runtime, until);
                    }
                }
                tokio::time::sleep_until(earliest_next).await;
            }
            Step::Wait(until) => {
                let changed = pools.changed.notified();
                match until {
                    Some(until) => drop(tokio::time::timeout_at(until, changed).await),
                    None => changed.await,
                }
            }
        }
    }
}

impl Pools {
    fn add(self: &Arc<Self>, runtime: RuntimeName, rootfs: PathBuf, stem: Stem) {
        // A stem that dies while it waits makes room for another one.
        let (container, pools) = (Arc::clone(&stem.container), Arc::downgrade(self));
        tokio::spawn(async move {
            container.gone().await;
            if let Some(pools) = pools.upgrade() {
                pools.changed.notify_one();
            }
        });
        self.lock()
            .idle
            .entry(runtime)
            .or_default()
            .push((rootfs, stem));
    }
}
