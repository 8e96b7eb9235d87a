//! Carries out what the reconciler decides, and answers those who wait for an instance.
//!
//! Nothing here touches the disk or waits for a timer on the way from an order to a launch: the
//! launch begins in the call that applied the order, and whoever waits is woken by the launch.

pub(crate) mod table;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use coracle_base::{Clock, Shutdown};
use coracle_driver::{Exit, InstanceDriver, LaunchError, LaunchOrder, Launched, Stop};
use coracle_model::{ExitReason, FunctionId, InstanceId, InstanceSpec, Timestamp};
use coracle_proto::relay::Answer;
use tokio::sync::{Notify, Semaphore, SetOnce, mpsc};

use crate::{
    artifacts::{Artifacts, Hold},
    desired::Want,
    images::RuntimeImages,
    logs::LogStore,
    metrics,
};

pub use table::{Counts, Observed, Outcome, Ready};
use table::{EXITS_MAX, Phase, Reach, Table, Work};

/// How long after a stop the driver may take to send the exit.
const EXIT_OVERDUE: Duration = Duration::from_secs(5);

/// The tuning of [`Instances`].
#[derive(Debug, Clone)]
pub struct InstanceLimits {
    /// Launches at once. Wide, since a launch includes loading the user's code, which mostly
    /// waits; the driver itself bounds how many containers it makes at once.
    pub launches: usize,
    /// What an instance gets that the leader no longer lists, before it is killed.
    pub stop_grace: Duration,
    /// Longest wait of one call for an instance.
    pub await_limit: Duration,
}

impl Default for InstanceLimits {
    fn default() -> Self {
        Self {
            launches: 64,
            stop_grace: Duration::from_secs(5),
            // The longest init timeout and a little.
            await_limit: Duration::from_secs(930),
        }
    }
}

/// Too many calls wait for instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    #[error("too many calls wait for instances on this node")]
    Full,
    #[error("the instance did not come to be in time")]
    TimedOut,
}

/// What instances are made of and where news of them goes.
#[derive(Debug, Clone)]
pub(crate) struct Parts {
    pub(crate) driver: Arc<dyn InstanceDriver>,
    pub(crate) artifacts: Arc<Artifacts>,
    pub(crate) images: Arc<dyn RuntimeImages>,
    pub(crate) logs: Arc<LogStore>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) limits: InstanceLimits,
}

#[derive(Debug)]
pub(crate) struct Instances {
    parts: Parts,
    table: Mutex<Table>,
    launches: Semaphore,
    /// What an earlier agent left is known.
    adopted: SetOnce<()>,
    /// One permit when something changed that the leader has not been told.
    changed: Notify,
}

impl Instances {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        let launches = Semaphore::new(parts.limits.launches);
        Arc::new(Self {
            parts,
            table: Mutex::default(),
            launches,
            adopted: SetOnce::new(),
            changed: Notify::new(),
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table
            .lock()
            .expect("never poisoned: no panic while held")
    }

    fn now(&self) -> Timestamp {
        Timestamp(self.parts.clock.now_millis())
    }

    fn changed(&self) {
        let counts = self.counts();
        metrics::instances(&counts);
        self.changed.notify_one();
    }

    /// Returns when something changed since the last return. For one caller at a time.
    pub(crate) async fn change(&self) {
        self.changed.notified().await;
    }

    pub(crate) fn counts(&self) -> Counts {
        self.table().counts()
    }

    /// Takes over what an earlier agent left running; it is not restarted. Which artifacts it
    /// uses is known only when the leader lists it, so until then nothing may be evicted.
    pub(crate) async fn adopt(&self) -> Result<usize, LaunchError> {
        let survivors = self.parts.driver.adopt().await?;
        let everything = self.parts.artifacts.hold_everything();
        let count = survivors.len();
        {
            let mut table = self.table();
            for survivor in survivors {
                tracing::info!(instance = %survivor.id, revision = %survivor.revision, "adopted");
                table.adopted(survivor, Hold::Everything(everything.clone()));
            }
        }
        // Set already by an earlier call.
        let _ = self.adopted.set(());
        self.changed();
        Ok(count)
    }

    /// Makes what runs match what is wanted. Starts; does not wait.
    pub(crate) fn apply(
        self: &Arc<Self>,
        desired: &BTreeMap<InstanceId, Want>,
        shutdown: &Shutdown,
    ) {
        let mut table = self.table();
        let (actions, work) = table.follow(desired, self.parts.limits.stop_grace, self.now());
        for work in work {
            match work {
                Work::Launch(spec) => {
                    let this = Arc::clone(self);
                    let ending = shutdown.clone();
                    shutdown.spawn("launch", async move { this.launch(spec, ending).await });
                }
                Work::Stop(id, grace) => {
                    self.spawn_stop(id, Stop::Gracefully(grace), shutdown);
                }
            }
        }
        self.identify(&mut table, desired);
        let dropped = table.bound_exits(EXITS_MAX);
        drop(table);
        if dropped > 0 {
            metrics::exits_dropped(dropped);
            tracing::warn!(
                dropped,
                "too many ends that no controller heard of: oldest dropped"
            );
        }
        if !actions.is_empty() {
            tracing::debug!(?actions, "reconciled");
            self.changed();
        }
    }

    /// The leader's order tells which artifacts an adopted instance uses.
    fn identify(&self, table: &mut Table, desired: &BTreeMap<InstanceId, Want>) {
        for (id, want) in desired {
            if let Some(Hold::Everything(_)) = table.holds(*id) {
                let digests = [Some(want.spec.code), want.spec.dependencies];
                let leases = digests.into_iter().flatten();
                let leases = leases.filter_map(|digest| self.parts.artifacts.present(digest));
                table.hold(*id, Hold::Leases(leases.collect()));
            }
        }
    }

    /// Exits of instances whose stop returned long ago, and bounds. Called now and then.
    pub(crate) fn sweep(&self) {
        let now = self.now();
        let overdue = self.table().overdue(now, EXIT_OVERDUE);
        for id in overdue {
            self.ended(id, ExitReason::Stopped);
        }
    }

    async fn launch(self: Arc<Self>, spec: Arc<InstanceSpec>, shutdown: Shutdown) {
        let id = spec.id;
        let launched = tokio::select! {
            launched = self.try_launch(&spec) => launched,
            // Half-made containers are cleared by the next start's adoption.
            () = shutdown.requested() => return,
        };
        match launched {
            Ok(launched) => {
                metrics::launched(&launched);
                let text = format!(
                    "instance started ({}, start {:.1} ms, code {:.1} ms)",
                    launched.origin.as_str(),
                    launched.start.as_secs_f64() * 1e3,
                    launched.init.as_secs_f64() * 1e3
                );
                let stop = self.table().ready(id, launched, self.now());
                self.changed();
                self.parts.logs.platform(spec.revision.function, id, &text);
                if let Some(grace) = stop {
                    self.stop(id, Stop::Gracefully(grace)).await;
                }
            }
            Err(reason) => {
                metrics::launch_failed();
                self.ended(id, reason);
            }
        }
    }

    async fn try_launch(&self, spec: &Arc<InstanceSpec>) -> Result<Launched, ExitReason> {
        let failed = |message: String| ExitReason::LaunchFailed { message };
        let _permit = self
            .launches
            .acquire()
            .await
            .map_err(|_| ExitReason::Stopped)?;
        if self.table().stop_asked(spec.id).is_some() {
            return Err(ExitReason::Stopped);
        }
        let artifacts = &self.parts.artifacts;
        // All three are looked up in memory where they are on the node.
        let code = artifacts
            .get(spec.code)
            .await
            .map_err(|error| failed(chain(&error)))?;
        let dependencies = match spec.dependencies {
            Some(digest) => Some(
                artifacts
                    .get(digest)
                    .await
                    .map_err(|error| failed(chain(&error)))?,
            ),
            None => None,
        };
        // Held until its container runs.
        let image = match self.parts.images.present(&spec.runtime) {
            Some(image) => image,
            None => {
                let (log, quiet) = mpsc::channel(16);
                drop(quiet);
                let image = self.parts.images.ensure(&spec.runtime, log).await;
                image.map_err(|error| failed(chain(&error)))?
            }
        };
        let order = LaunchOrder {
            spec: (**spec).clone(),
            rootfs: image.rootfs().to_owned(),
            code: code.path().to_owned(),
            dependencies: dependencies.as_ref().map(|lease| lease.path().to_owned()),
        };
        let leases = [Some(code), dependencies].into_iter().flatten().collect();
        if !self.table().hold(spec.id, Hold::Leases(leases)) {
            return Err(ExitReason::Stopped);
        }
        // Asked last: from here on the driver knows it, and can end it.
        if self.table().stop_asked(spec.id).is_some() {
            return Err(ExitReason::Stopped);
        }
        self.parts.driver.launch(order).await.map_err(|error| {
            if let LaunchError::Platform { .. } = &error {
                tracing::warn!(instance = %spec.id, error = chain(&error), "launch failed");
            }
            error.exit_reason()
        })
    }

    fn spawn_stop(self: &Arc<Self>, id: InstanceId, how: Stop, shutdown: &Shutdown) {
        let this = Arc::clone(self);
        let ending = shutdown.clone();
        shutdown.spawn("stop", async move {
            tokio::select! {
                () = this.stop(id, how) => {}
                // It is left running; the next agent learns again that it should go.
                () = ending.requested() => {}
            }
        });
    }

    async fn stop(&self, id: InstanceId, how: Stop) {
        match self.parts.driver.stop(id, how).await {
            Ok(()) => self.table().stop_done(id, self.now()),
            Err(error) => {
                tracing::warn!(instance = %id, error = chain(&error), "stop failed");
                self.table().stop_failed(id);
            }
        }
    }

    /// A request in it ran past its deadline. Returns when it is gone; an instance that is not
    /// there, or in which no request can be, is a success.
    pub(crate) async fn kill(&self, id: InstanceId, request: &str) -> Result<(), LaunchError> {
        let function = match self.table().get(id) {
            Some(entry) if !matches!(entry.phase, Phase::Starting { .. } | Phase::Exited(_)) => {
                entry.revision.function
            }
            _ => return Ok(()),
        };
        metrics::killed();
        let text = format!("request {request} ran past its deadline: the instance is killed");
        self.parts.logs.platform(function, id, &text);
        self.parts.driver.stop(id, Stop::DeadlinePassed).await
    }

    /// Follows the driver's exits until it ends.
    pub(crate) async fn watch(&self, mut exits: mpsc::UnboundedReceiver<Exit>) {
        while let Some(exit) = exits.recv().await {
            self.ended(exit.id, exit.reason);
        }
    }

    fn ended(&self, id: InstanceId, reason: ExitReason) {
        let (reason, function): (_, FunctionId) = {
            let mut table = self.table();
            let Some(reason) = table.exited(id, reason, self.now()) else {
                return;
            };
            let Some(entry) = table.get(id) else { return };
            (reason, entry.revision.function)
        };
        self.changed();
        metrics::exited(&reason);
        tracing::info!(instance = %id, %reason, "instance ended");
        self.parts
            .logs
            .platform(function, id, &format!("instance ended: {reason}"));
    }

    /// Waits until an instance is ready or over, also for one whose order has not arrived.
    pub(crate) async fn wait(&self, id: InstanceId) -> Result<Outcome, WaitError> {
        let receiver = {
            let mut table = self.table();
            if let Some(outcome) = table.outcome(id) {
                return Ok(outcome);
            }
            table.wait(id).ok_or(WaitError::Full)?
        };
        let waiting = Waiting {
            instances: self,
            id,
            receiver,
        };
        waiting.outcome().await
    }

    /// Where an instance takes connections, once it does. What an earlier agent left running is
    /// waited for, as is the end of a start.
    pub(crate) async fn reach(&self, id: InstanceId) -> Result<PathBuf, Answer> {
        self.adopted.wait().await;
        let reach = self.table().reach(id);
        match reach {
            Reach::Ready(socket) => Ok(socket),
            Reach::Ending => Err(Answer::Ending),
            Reach::Unknown => Err(Answer::Unknown),
            Reach::Starting => match self.wait(id).await {
                Ok(Outcome::Ready(ready)) => Ok(ready.socket),
                Ok(Outcome::Failed(_)) => Err(Answer::Unknown),
                Err(WaitError::Full | WaitError::TimedOut) => Err(Answer::Full),
            },
        }
    }

    /// Everything for one report (see [`Table::report`]).
    pub(crate) fn report(&self, number: u64) -> Vec<Observed> {
        self.table().report(number)
    }

    pub(crate) fn acknowledged(&self, number: u64) {
        self.table().acknowledged(number);
    }

    pub(crate) fn new_session(&self) {
        self.table().new_session();
    }

    /// Stops everything that runs, at once in parallel, and returns when it is gone.
    pub(crate) async fn stop_all(&self, grace: Duration) -> Vec<LaunchError> {
        let live = self.table().live();
        let stops = live.into_iter().map(|id| {
            self.table().stopping(id, grace, self.now());
            self.parts.driver.stop(id, Stop::Gracefully(grace))
        });
        let results = futures_util::future::join_all(stops).await;
        results.into_iter().filter_map(Result::err).collect()
    }
}

/// Takes its place in the queue away again when the call that waits is dropped.
struct Waiting<'a> {
    instances: &'a Instances,
    id: InstanceId,
    receiver: tokio::sync::oneshot::Receiver<Outcome>,
}

impl Waiting<'_> {
    async fn outcome(mut self) -> Result<Outcome, WaitError> {
        let limit = self.instances.parts.limits.await_limit;
        match tokio::time::timeout(limit, &mut self.receiver).await {
            Ok(Ok(outcome)) => Ok(outcome),
            // The sender goes only with the table.
            Ok(Err(_)) | Err(_) => Err(WaitError::TimedOut),
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.receiver.close();
        self.instances.table().gave_up(self.id);
    }
}

/// An error with its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
