//! One-off containers for builds.

use std::{collections::BTreeMap, fmt::Debug, path::PathBuf, time::Duration};

use async_trait::async_trait;
use coracle_model::{Memory, MilliCpu};
use tokio::sync::mpsc;

#[derive(Debug, Clone)]
pub struct Mount {
    pub source: PathBuf,
    /// Absolute; must exist in the image.
    pub target: PathBuf,
    pub writable: bool,
}

/// A command to run in a container of a runtime image, isolated like an instance.
#[derive(Debug, Clone)]
pub struct BuildJob {
    /// Letters, digits and dashes; unique on the node.
    pub id: String,
    pub rootfs: PathBuf,
    pub mounts: Vec<Mount>,
    pub argv: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub cwd: PathBuf,
    pub memory: Memory,
    pub cpu: MilliCpu,
    pub timeout: Duration,
    /// Outward access, with the host's resolver and certificate bundle.
    pub network: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SandboxExit {
    Exited(i32),
    TimedOut,
    OutOfMemory,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot {action}")]
pub struct SandboxError {
    pub action: String,
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Runs build jobs. Writable mounts must be owned by uid [`BuildSandbox::owner`] beforehand.
#[async_trait]
pub trait BuildSandbox: Debug + Send + Sync + 'static {
    /// The host uid and gid that the job's process has.
    fn owner(&self) -> (u32, u32);

    /// Runs to the end; output (both streams) goes to `log` as it appears. Nothing is left behind.
    async fn run(
        &self,
        job: BuildJob,
        log: mpsc::Sender<Vec<u8>>,
    ) -> Result<SandboxExit, SandboxError>;
}
