//! Builds that the leader ordered: one at a time, repeated to whoever leads until it takes the
//! order away.
//!
//! A build that fails by the function's fault ends with one sentence. What is our fault or the
//! network's (a controller that cannot be reached) is tried again for as long as the order stands.
//! What is absent: a record on disk. After a restart an order that still stands is built anew,
//! from the builder's cache where it can be.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use coracle_base::{Backoff, Shutdown};
use coracle_model::{BuildId, BuildOutput, Digest, RevisionId, RevisionSettings, Source, limits};
use coracle_proto::{Wire, v1};
use tokio::sync::{Notify, mpsc, watch};

use crate::{
    artifacts::Artifacts,
    desired::BuildOrder,
    fetch::{Controllers, TransferError},
    images::RuntimeImages,
    instances::chain,
    metrics,
};

/// The part of a build's log that no controller has got yet; beyond it the oldest is dropped.
const LOG_BYTES: usize = 1 << 20;
/// One message's share of it.
const LOG_PIECE: usize = 32 << 10;
/// How often a build is tried that fails by our fault or the machine's.
const PLATFORM_TRIES: u32 = 3;
/// A source text in bytes: four for a character at most.
const TEXT_BYTES: usize = 4 * limits::CODE_TEXT_MAX_CHARS;

/// Everything that a build needs.
#[derive(Debug, Clone)]
pub struct BuildInput {
    pub revision: RevisionId,
    pub settings: RevisionSettings,
    pub code: Vec<u8>,
    pub dependencies: Option<Vec<u8>>,
}

/// A tar that a build left. Belongs to the receiver, which removes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuiltTar {
    pub digest: Digest,
    pub path: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    pub code: BuiltTar,
    pub dependencies: Option<BuiltTar>,
    /// One sentence.
    pub message: String,
}

/// Why a build failed, in one sentence for the function's owner.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildFailure {
    /// The same source fails again.
    #[error("{0}")]
    Function(String),
    /// Ours or the machine's: may go well another time.
    #[error("{0}")]
    Platform(String),
}

/// Turns source into artifacts. Dropping the future ends the build and clears up after it.
#[async_trait]
pub trait SourceBuilder: Debug + Send + Sync + 'static {
    async fn build(
        &self,
        input: BuildInput,
        log: mpsc::Sender<Vec<u8>>,
    ) -> Result<Built, BuildFailure>;
}

#[derive(Debug)]
pub(crate) struct Builds {
    builder: Arc<dyn SourceBuilder>,
    images: Arc<dyn RuntimeImages>,
    artifacts: Arc<Artifacts>,
    controllers: Controllers,
    state: Mutex<State>,
    /// There may be something to build.
    ordered: Notify,
    /// There may be something to tell.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    slots: BTreeMap<BuildId, Slot>,
    orders: u64,
}

#[derive(Debug)]
struct Slot {
    order: Arc<BuildOrder>,
    number: u64,
    phase: Phase,
    log: Log,
    /// Turns true when the order is withdrawn.
    cancel: watch::Sender<bool>,
}

#[derive(Debug)]
enum Phase {
    Queued,
    Running,
    Ended {
        result: Result<BuildOutput, String>,
        told: bool,
    },
}

#[derive(Debug, Default)]
struct Log {
    unsent: Vec<u8>,
    dropped: usize,
}

impl Log {
    fn push(&mut self, bytes: &[u8]) {
        self.unsent.extend_from_slice(bytes);
        let excess = self.unsent.len().saturating_sub(LOG_BYTES);
        self.unsent.drain(..excess);
        self.dropped += excess;
    }

    fn next(&mut self) -> Option<Vec<u8>> {
        if self.dropped > 0 {
            let dropped = std::mem::take(&mut self.dropped);
            return Some(format!("[{dropped} bytes of the log were lost]\n").into_bytes());
        }
        let size = self.unsent.len().min(LOG_PIECE);
        (size > 0).then(|| self.unsent.drain(..size).collect())
    }
}

impl Builds {
    pub(crate) fn new(
        builder: Arc<dyn SourceBuilder>,
        images: Arc<dyn RuntimeImages>,
        artifacts: Arc<Artifacts>,
        controllers: Controllers,
    ) -> Self {
        let (ordered, changed) = (Notify::new(), Notify::new());
        let state = Mutex::default();
        Self {
            builder,
            images,
            artifacts,
            controllers,
            state,
            ordered,
            changed,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("never poisoned: no panic while held")
    }

    /// New orders are queued, withdrawn ones cancelled and forgotten. Starts; does not wait.
    pub(crate) fn apply(&self, desired: &BTreeMap<BuildId, Arc<BuildOrder>>) {
        let mut state = self.state();
        state.slots.retain(|id, slot| {
            let keep = desired.contains_key(id);
            if !keep {
                slot.cancel.send_replace(true);
            }
            keep
        });
        for (id, order) in desired {
            if !state.slots.contains_key(id) {
                state.orders += 1;
                let slot = Slot {
                    order: Arc::clone(order),
                    number: state.orders,
                    phase: Phase::Queued,
                    log: Log::default(),
                    cancel: watch::Sender::new(false),
                };
                state.slots.insert(*id, slot);
                self.ordered.notify_one();
            }
        }
    }

    /// Returns when there may be something in [`Builds::message`].
    pub(crate) async fn change(&self) {
        self.changed.notified().await;
    }

    /// Results are told again: the session they went into may have broken before they arrived, or
    /// the leader may not have got round to acting on them.
    pub(crate) fn tell_again(&self) {
        for slot in self.state().slots.values_mut() {
            if let Phase::Ended { told, .. } = &mut slot.phase {
                *told = false;
            }
        }
        self.changed.notify_one();
    }

    /// The next thing to tell the leader: a build's log before its result.
    pub(crate) fn message(&self) -> Option<v1::agent_message::Body> {
        use v1::agent_message::Body;
        let mut state = self.state();
        for (id, slot) in &mut state.slots {
            let (build, revision) = (id.to_wire(), Some(slot.order.revision.into()));
            if let Some(data) = slot.log.next() {
                let data = data.into();
                return Some(Body::BuildLog(v1::BuildProgress {
                    build,
                    revision,
                    data,
                }));
            }
            if let Phase::Ended {
                result,
                told: told @ false,
            } = &mut slot.phase
            {
                *told = true;
                let (output, failure) = match result.clone() {
                    Ok(output) => (Some(output.into()), String::new()),
                    Err(failure) => (None, failure),
                };
                let result = v1::BuildResult {
                    build,
                    revision,
                    output,
                    failure,
                };
                return Some(Body::BuildResult(result));
            }
        }
        None
    }

    /// Builds what is ordered, oldest order first, until the shutdown.
    pub(crate) async fn run(&self, shutdown: &Shutdown) {
        loop {
            let Some((order, mut cancelled)) = self.next() else {
                tokio::select! {
                    () = self.ordered.notified() => continue,
                    () = shutdown.requested() => return,
                }
            };
            let result = tokio::select! {
                result = self.build(&order) => result,
                // An error means that the order is gone, which is the same.
                _ = cancelled.wait_for(|cancelled| *cancelled) => {
                    tracing::info!(build = %order.id, "build cancelled");
                    metrics::build_ended("cancelled");
                    continue;
                }
                () = shutdown.requested() => return,
            };
            metrics::build_ended(if result.is_ok() { "built" } else { "failed" });
            tracing::info!(build = %order.id, revision = %order.revision, ?result, "build ended");
            if let Some(slot) = self.state().slots.get_mut(&order.id) {
                slot.phase = Phase::Ended {
                    result,
                    told: false,
                };
            }
            self.changed.notify_one();
        }
    }

    fn next(&self) -> Option<(Arc<BuildOrder>, watch::Receiver<bool>)> {
        let mut state = self.state();
        let queued = state
            .slots
            .values_mut()
            .filter(|slot| matches!(slot.phase, Phase::Queued));
        let slot = queued.min_by_key(|slot| slot.number)?;
        slot.phase = Phase::Running;
        Some((Arc::clone(&slot.order), slot.cancel.subscribe()))
    }

    async fn build(&self, order: &BuildOrder) -> Result<BuildOutput, String> {
        let (log, mut lines) = mpsc::channel::<Vec<u8>>(64);
        let logging = async {
            while let Some(bytes) = lines.recv().await {
                self.log(order.id, &bytes);
            }
        };
        let (result, ()) = tokio::join!(self.build_logged(order, log), logging);
        result.map_err(|failure| failure.chars().take(limits::REASON_MAX_CHARS).collect())
    }

    fn log(&self, id: BuildId, bytes: &[u8]) {
        if let Some(slot) = self.state().slots.get_mut(&id) {
            slot.log.push(bytes);
        }
        self.changed.notify_one();
    }

    /// The log ends with this future, which owns its only sender.
    async fn build_logged(
        &self,
        order: &BuildOrder,
        log: mpsc::Sender<Vec<u8>>,
    ) -> Result<BuildOutput, String> {
        let settings = &order.settings;
        let Source::Inline { code } = settings.source;
        let image = self.images.ensure(&settings.runtime, log.clone()).await;
        // Held to the end: between two steps of a build no container uses it.
        let _image = image.map_err(|error| chain(&error))?;
        let code = self.text(order.id, code).await?;
        let dependencies = match settings.dependencies {
            Some(digest) => Some(self.text(order.id, digest).await?),
            None => None,
        };
        let (revision, settings) = (order.revision, settings.clone());
        let input = BuildInput {
            revision,
            settings,
            code,
            dependencies,
        };
        let built = self.attempt(input, log).await?;
        let tars = [Some(&built.code), built.dependencies.as_ref()];
        let tars: Vec<_> = tars.into_iter().flatten().map(RemovedAfter).collect();
        for RemovedAfter(tar) in &tars {
            let upload = || self.controllers.upload(tar.digest, &tar.path);
            self.insist(order.id, upload).await?;
            // The launch that follows finds it here; without it, it is only fetched again.
            if let Err(error) = self.artifacts.insert(tar.digest, tar.path.clone()).await {
                tracing::warn!(digest = %tar.digest, error = chain(&error), "artifact not kept");
            }
        }
        Ok(BuildOutput {
            code: built.code.digest,
            dependencies: built.dependencies.as_ref().map(|tar| tar.digest),
            message: built.message.clone(),
        })
    }

    async fn attempt(
        &self,
        input: BuildInput,
        log: mpsc::Sender<Vec<u8>>,
    ) -> Result<Built, String> {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(10));
        for _ in 1..PLATFORM_TRIES {
            match self.builder.build(input.clone(), log.clone()).await {
                Ok(built) => return Ok(built),
                Err(BuildFailure::Function(sentence)) => return Err(sentence),
                Err(BuildFailure::Platform(sentence)) => {
                    let text = format!("{sentence}; trying again\n");
                    // The log is read until this future ends.
                    let _ = log.send(text.into_bytes()).await;
                    tokio::time::sleep(backoff.wait()).await;
                }
            }
        }
        self.builder
            .build(input, log)
            .await
            .map_err(|failure| failure.to_string())
    }

    async fn text(&self, id: BuildId, digest: Digest) -> Result<Vec<u8>, String> {
        self.insist(id, || self.controllers.read(digest, TEXT_BYTES))
            .await
    }

    /// Tries for as long as it makes sense; the order's withdrawal ends it from outside.
    async fn insist<T, F>(&self, id: BuildId, mut attempt: impl FnMut() -> F) -> Result<T, String>
    where
        F: Future<Output = Result<T, TransferError>>,
    {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        loop {
            match attempt().await {
                Ok(value) => return Ok(value),
                Err(error) if error.is_transient() => {
                    let wait = backoff.wait();
                    tracing::info!(build = %id, error = chain(&error), ?wait, "trying again");
                    tokio::time::sleep(wait).await;
                }
                Err(error) => return Err(chain(&error)),
            }
        }
    }
}

/// Also when the build is cancelled between two uploads.
struct RemovedAfter<'a>(&'a BuiltTar);

impl Drop for RemovedAfter<'_> {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0.path) {
            tracing::warn!(path = %self.0.path.display(), %error, "cannot remove a built archive");
        }
    }
}
