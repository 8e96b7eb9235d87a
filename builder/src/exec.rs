//! Runs a plan's steps in the sandbox, in a directory of the build's own.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use coracle_driver::{BuildJob, BuildSandbox, Mount, SandboxExit};
use coracle_model::RevisionId;
use tokio::{sync::mpsc, time::Instant};

use crate::{
    build::{BuildError, Limits},
    disk,
    plan::{PlannedFile, Step, TOOL, WORK},
};

/// Output kept for the sentence about a failure, in bytes: the end of it, where errors are.
const KEPT_OUTPUT: usize = 128 * 1024;

/// How often a running step's use of the disk is looked at. Looking takes as long as there are files;
/// it is done again no sooner than after ten times that.
const LOOK: Duration = Duration::from_secs(1);
/// What a build may write, as a multiple of what it may leave: installers download, unpack and copy.
const WORKING_SPACE: u64 = 4;
const ENTRIES: u64 = 500_000;

/// A build's directory on the host; removed when dropped, behind the back of whoever drops it.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// Holds `mount`, which the container sees, and archives, which it does not.
    dir: PathBuf,
    trash: PathBuf,
    id: String,
    owner: (u32, u32),
}

impl Workspace {
    pub(crate) fn create(
        parent: &Path,
        trash: &Path,
        revision: &RevisionId,
        owner: (u32, u32),
    ) -> Result<Self, BuildError> {
        // Two builds of one revision at a time would be a mistake of the leader's, but not a mix-up.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let function = revision.function.to_string();
        let short = function.split('-').next().unwrap_or_default();
        let id = format!(
            "{short}-{}-{}-{number}",
            revision.number,
            std::process::id()
        );
        let dir = parent.join(&id);
        let workspace = Self {
            dir,
            trash: trash.to_owned(),
            id,
            owner,
        };
        let fail = || BuildError::io(format!("make {}", workspace.dir.display()));
        fs::create_dir(&workspace.dir).map_err(fail())?;
        fs::set_permissions(&workspace.dir, fs::Permissions::from_mode(0o711)).map_err(fail())?;
        for part in ["", "code", "deps", "in", "tmp"] {
            let path = workspace.mount().join(part);
            // The way down is open to all; what lies here is its owner's.
            fs::create_dir(&path)
                .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o700)))
                .and_then(|()| workspace.give(&path))
                .map_err(fail())?;
        }
        Ok(workspace)
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn mount(&self) -> PathBuf {
        self.dir.join("mount")
    }

    /// `code` and `deps` are what the container filled; other names are out of its reach.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        if matches!(name, "code" | "deps") {
            self.mount().join(name)
        } else {
            self.dir.join(name)
        }
    }

    pub(crate) fn write(&self, files: &[PlannedFile]) -> Result<(), BuildError> {
        for file in files {
            let path = self.mount().join(&file.path);
            let fail = || BuildError::io(format!("write {}", file.path.display()));
            let mut parent = self.mount();
            for part in file.path.parent().into_iter().flatten() {
                parent.push(part);
                match fs::create_dir(&parent) {
                    Ok(()) => self.give(&parent).map_err(fail())?,
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    Err(error) => return Err(fail()(error)),
                }
            }
            fs::write(&path, &file.bytes)
                .and_then(|()| self.give(&path))
                .map_err(fail())?;
        }
        Ok(())
    }

    fn give(&self, path: &Path) -> io::Result<()> {
        chown(path, Some(self.owner.0), Some(self.owner.1))
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        disk::remove_behind(&self.dir, &self.trash);
    }
}

/// What all steps of one build share.
pub(crate) struct Run<'a> {
    pub(crate) sandbox: &'a dyn BuildSandbox,
    pub(crate) rootfs: &'a Path,
    pub(crate) workspace: &'a Workspace,
    pub(crate) tool: Option<&'a Path>,
    pub(crate) env: &'a BTreeMap<String, String>,
    pub(crate) limits: &'a Limits,
    pub(crate) log: &'a mpsc::Sender<Vec<u8>>,
}

/// How a step ended, and the end of what it said.
#[derive(Debug)]
pub(crate) struct Done {
    exit: SandboxExit,
    output: String,
    limits: (u64, u32),
}

impl Done {
    pub(crate) fn succeeded(&self) -> bool {
        self.exit == SandboxExit::Exited(0)
    }

    /// Why it failed; `explain` reads the output of a command that ended by itself.
    pub(crate) fn refusal(&self, explain: impl FnOnce(&str) -> String) -> String {
        let (seconds, mib) = self.limits;
        match self.exit {
            SandboxExit::Exited(_) => explain(&self.output),
            SandboxExit::TimedOut => format!("the build took longer than {seconds} seconds"),
            SandboxExit::OutOfMemory => format!("the build needed more than {mib} MiB of memory"),
        }
    }
}

impl Run<'_> {
    /// A line of our own in the build's log.
    pub(crate) async fn say(&self, line: &str) {
        // A closed log means that nobody wants it any more.
        let _ = self.log.send(format!("{line}\n").into_bytes()).await;
    }

    pub(crate) async fn step(&self, name: &str, step: &Step) -> Result<Done, BuildError> {
        let mut mounts = vec![Mount {
            source: self.workspace.mount(),
            target: WORK.into(),
            writable: true,
        }];
        if let Some(tool) = self.tool {
            mounts.push(Mount {
                source: tool.to_owned(),
                target: TOOL.into(),
                writable: false,
            });
        }
        let job = BuildJob {
            id: format!("{}-{name}", self.workspace.id()),
            rootfs: self.rootfs.to_owned(),
            mounts,
            argv: step.argv.clone(),
            env: self.env.clone(),
            cwd: step.cwd.clone(),
            memory: self.limits.memory,
            cpu: self.limits.cpu,
            timeout: self.limits.timeout,
            network: step.network,
        };
        let (sender, receiver) = mpsc::channel(64);
        let running = async { tokio::join!(self.sandbox.run(job, sender), self.collect(receiver)) };
        let (exit, output) = tokio::select! {
            ended = running => ended,
            // Dropping the run ends the job.
            error = self.outgrown() => return Err(error),
        };
        let exit = exit?;
        if exit != SandboxExit::Exited(0) && self.ran_out_of_disk(&output) {
            return Err(no_space());
        }
        Ok(Done {
            exit,
            output,
            limits: (self.limits.timeout.as_secs(), self.limits.memory.mib()),
        })
    }

    /// Returns when the build has written more than it may.
    async fn outgrown(&self) -> BuildError {
        let most = self.limits.bytes.saturating_mul(WORKING_SPACE);
        let mut wait = LOOK;
        loop {
            tokio::time::sleep(wait).await;
            let began = Instant::now();
            let mount = self.workspace.mount();
            let looked =
                tokio::task::spawn_blocking(move || (disk::written(&mount), disk::free(&mount)));
            // Either the runtime is ending, or the look crashed: the next one tells.
            let Ok((written, free)) = looked.await else {
                continue;
            };
            if written.bytes > most {
                let mib = most >> 20;
                return BuildError::Function(format!("the build wrote more than {mib} MiB"));
            }
            if written.entries > ENTRIES {
                return BuildError::Function(format!("the build made more than {ENTRIES} files"));
            }
            if free.is_ok_and(|free| free < self.limits.reserve) {
                return no_space();
            }
            wait = LOOK.max(began.elapsed() * 10);
        }
    }

    /// Whether a command failed because the node's disk is full. Code may say anything; so the
    /// disk is asked too.
    fn ran_out_of_disk(&self, output: &str) -> bool {
        let said = ["No space left on device", "ENOSPC"];
        said.iter().any(|said| output.contains(said))
            && disk::free(&self.workspace.dir).is_ok_and(|free| free < self.limits.reserve)
    }

    async fn collect(&self, mut output: mpsc::Receiver<Vec<u8>>) -> String {
        let mut kept = Vec::new();
        while let Some(piece) = output.recv().await {
            kept.extend_from_slice(&piece);
            if kept.len() > 2 * KEPT_OUTPUT {
                kept.drain(..kept.len() - KEPT_OUTPUT);
            }
            let _ = self.log.send(piece).await;
        }
        String::from_utf8_lossy(&kept).into_owned()
    }
}

fn no_space() -> BuildError {
    BuildError::io("leave the node enough disk space")(io::ErrorKind::StorageFull.into())
}
