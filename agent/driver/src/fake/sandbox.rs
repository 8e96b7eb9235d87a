//! Build jobs that run no program: a test says what each would have done.

use std::{
    collections::VecDeque,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use tokio::sync::mpsc;

use super::Gate;
use crate::{BuildJob, BuildSandbox, SandboxError, SandboxExit};

/// What one job does. The default succeeds without a word.
#[derive(Debug, Clone)]
pub struct FakeRun {
    /// What it prints.
    pub output: Vec<u8>,
    /// Files that it leaves, by path inside the container; must lie in a writable mount.
    pub files: Vec<(PathBuf, Vec<u8>)>,
    pub exit: SandboxExit,
    /// It does not end before the gate opens.
    pub gate: Option<Gate>,
}

impl Default for FakeRun {
    fn default() -> Self {
        Self {
            output: Vec::new(),
            files: Vec::new(),
            exit: SandboxExit::Exited(0),
            gate: None,
        }
    }
}

/// Clones share one list of runs.
#[derive(Debug, Clone, Default)]
pub struct FakeSandbox(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    next: VecDeque<FakeRun>,
    jobs: Vec<BuildJob>,
}

impl FakeSandbox {
    pub fn new() -> Self {
        Self::default()
    }

    /// What the next job without a run does; jobs beyond the last one get the default.
    pub fn push(&self, run: FakeRun) {
        self.state().next.push_back(run);
    }

    /// Every job that was started, oldest first.
    pub fn jobs(&self) -> Vec<BuildJob> {
        self.state().jobs.clone()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().expect("never poisoned: no panic while held")
    }
}

#[async_trait]
impl BuildSandbox for FakeSandbox {
    /// This process's own, so that tests need no root.
    fn owner(&self) -> (u32, u32) {
        std::fs::metadata("/proc/self").map_or((0, 0), |owned| (owned.uid(), owned.gid()))
    }

    async fn run(
        &self,
        job: BuildJob,
        log: mpsc::Sender<Vec<u8>>,
    ) -> Result<SandboxExit, SandboxError> {
        let run = {
            let mut state = self.state();
            state.jobs.push(job.clone());
            state.next.pop_front().unwrap_or_default()
        };
        if !run.output.is_empty() {
            // Whoever reads the log may have gone; the job goes on.
            let _ = log.send(run.output.clone()).await;
        }
        if let Some(gate) = &run.gate {
            gate.passed().await;
        }
        for (path, bytes) in &run.files {
            let on_host = job
                .mounts
                .iter()
                .filter(|mount| mount.writable)
                .find_map(|mount| {
                    path.strip_prefix(&mount.target)
                        .ok()
                        .map(|below| mount.source.join(below))
                });
            let failed = |source: Box<dyn std::error::Error + Send + Sync>| SandboxError {
                action: format!("write {}", path.display()),
                source,
            };
            let on_host = on_host.ok_or_else(|| failed("not in a writable mount".into()))?;
            let folder = on_host.parent().unwrap_or(&on_host);
            std::fs::create_dir_all(folder).map_err(|error| failed(error.into()))?;
            std::fs::write(&on_host, bytes).map_err(|error| failed(error.into()))?;
        }
        Ok(run.exit)
    }
}
