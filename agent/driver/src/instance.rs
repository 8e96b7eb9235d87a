//! Instances: launch, stop, list, exits, stems.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use coracle_model::{
    ExitReason, InstanceId, InstanceSpec, Memory, MilliCpu, RevisionId, RuntimeName, Timestamp,
};
use tokio::sync::mpsc;

/// A complete order: every path exists when it is given.
#[derive(Debug, Clone)]
pub struct LaunchOrder {
    pub spec: InstanceSpec,
    /// The unpacked runtime image; never modified while in use.
    pub rootfs: PathBuf,
    /// Unpacked artifacts, mounted read-only at `/fn/code` and `/fn/deps`.
    pub code: PathBuf,
    pub dependencies: Option<PathBuf>,
}

/// How an instance came to be, cheapest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    Running,
    Thaw,
    Stem,
    Scratch,
}

impl Origin {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Thaw => "thaw",
            Self::Stem => "stem",
            Self::Scratch => "scratch",
        }
    }
}

/// An instance whose user code answered.
#[derive(Debug, Clone)]
pub struct Launched {
    /// Where invocations go (runtimes/CONTRACT.md), as a path on the host.
    pub socket: PathBuf,
    pub origin: Origin,
    /// Making or claiming the container.
    pub start: Duration,
    /// Loading the user's code.
    pub init: Duration,
}

/// A failed launch leaves nothing behind.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The function's fault, or its limits': retried only after a back-off.
    #[error("{0}")]
    Function(ExitReason),
    /// Ours or the machine's.
    #[error("cannot {action}")]
    Platform {
        action: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl LaunchError {
    pub fn platform(
        action: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Platform {
            action: action.into(),
            source: source.into(),
        }
    }

    /// What is reported upwards, with the chain of causes in one line.
    pub fn exit_reason(&self) -> ExitReason {
        match self {
            Self::Function(reason) => reason.clone(),
            Self::Platform { .. } => {
                let mut message = self.to_string();
                let mut cause = std::error::Error::source(self);
                while let Some(error) = cause {
                    message.push_str(": ");
                    message.push_str(&error.to_string());
                    cause = error.source();
                }
                ExitReason::LaunchFailed { message }
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// SIGTERM, then SIGKILL after the grace.
    Gracefully(Duration),
    /// SIGKILL, reported as [`ExitReason::TimedOut`].
    DeadlinePassed,
}

/// An instance found running at start: what is needed to adopt it without restarting it.
#[derive(Debug, Clone)]
pub struct Survivor {
    pub id: InstanceId,
    pub revision: RevisionId,
    pub runtime: RuntimeName,
    pub socket: PathBuf,
    pub memory: Memory,
    pub cpu: MilliCpu,
    pub concurrency: u32,
    pub started_at: Timestamp,
}

/// An instance ended. Sent exactly once for each one that was launched or adopted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    pub id: InstanceId,
    pub revision: RevisionId,
    pub reason: ExitReason,
}

/// Keep this many idle stems of a runtime.
#[derive(Debug, Clone)]
pub struct StemTarget {
    pub count: u32,
    pub rootfs: PathBuf,
}

/// Runs instances. Methods may be called concurrently; each is safe to repeat.
#[async_trait]
pub trait InstanceDriver: Debug + Send + Sync + 'static {
    /// Finds what an earlier process left running and watches it again; everything that is ours
    /// but not adoptable (stems, half-made containers) is removed. Called once, first.
    async fn adopt(&self) -> Result<Vec<Survivor>, LaunchError>;

    /// Returns when the user's code answered, or failed to. Bounded by the spec's init timeout.
    async fn launch(&self, order: LaunchOrder) -> Result<Launched, LaunchError>;

    /// Returns when its last process is gone. An unknown id is a success.
    async fn stop(&self, id: InstanceId, how: Stop) -> Result<(), LaunchError>;

    /// The stream of exits; taken once, by the agent.
    fn exits(&self) -> mpsc::UnboundedReceiver<Exit>;

    /// Replaces the wanted stems. Refilled in the background, at a bounded rate, and not while
    /// `busy` says that requests wait.
    fn set_stems(&self, targets: BTreeMap<RuntimeName, StemTarget>);

    /// Whether no container of this machine has this image as its root, nor is about to; whatever
    /// the driver itself kept of it is given up then, so that it may be removed. Where that cannot
    /// be told, false. Blocks.
    fn release_image(&self, rootfs: &Path) -> bool;

    /// Idle stems right now.
    fn stems(&self) -> BTreeMap<RuntimeName, u32>;
}
