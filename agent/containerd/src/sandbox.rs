//! Build jobs: a command in a container of a runtime image, with the same isolation as instances.

use std::{path::Path, sync::Arc};

use async_trait::async_trait;
use coracle_driver::{BuildJob, BuildSandbox, SandboxError, SandboxExit};
use coracle_model::ExitReason;
use tokio::sync::mpsc;

use crate::{
    cgroup::Limits,
    container::{Container, Plan},
    driver::ContainerdDriver,
    labels,
    logs::Consumer,
    machine::Machine,
    slots::{self, BUILD_SLOT, USER},
};

/// Installers run compilers and many helpers.
const PROCESSES: u32 = 1024;
/// Where images keep the certificates that programs trust.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

#[async_trait]
impl BuildSandbox for ContainerdDriver {
    fn owner(&self) -> (u32, u32) {
        let id = slots::uid_base(self.machine.cluster.number(), BUILD_SLOT) + USER;
        (id, id)
    }

    async fn run(
        &self,
        job: BuildJob,
        log: mpsc::Sender<Vec<u8>>,
    ) -> Result<SandboxExit, SandboxError> {
        // On a task of its own, which ends the job when the caller has given up.
        let machine = Arc::clone(&self.machine);
        let (caller, given_up) = tokio::sync::oneshot::channel::<()>();
        let task = tokio::spawn(run(machine, job, log, given_up));
        let result = task.await;
        drop(caller);
        result.unwrap_or_else(|error| Err(sandbox_error("run the build container", error)))
    }
}

async fn run(
    machine: Arc<Machine>,
    job: BuildJob,
    log: mpsc::Sender<Vec<u8>>,
    given_up: tokio::sync::oneshot::Receiver<()>,
) -> Result<SandboxExit, SandboxError> {
    let timeout = job.timeout;
    let container = machine
        .make(&plan(job, log))
        .await
        .map_err(|error| sandbox_error("start the build container", error))?;
    let ended = tokio::select! {
        reason = container.gone() => Some(reason),
        () = tokio::time::sleep(timeout) => None,
        _ = given_up => None,
    };
    Ok(match ended {
        Some(reason) => exit(&reason),
        None => kill(&container).await,
    })
}

async fn kill(container: &Container) -> SandboxExit {
    container.kill(ExitReason::TimedOut);
    container.gone().await;
    SandboxExit::TimedOut
}

fn exit(reason: &ExitReason) -> SandboxExit {
    match reason {
        ExitReason::Exited { code } => SandboxExit::Exited(*code),
        ExitReason::Signaled { signal } => SandboxExit::Exited(128 + signal),
        ExitReason::OutOfMemory { .. } => SandboxExit::OutOfMemory,
        // Killed by somebody else, or its status was lost: it did not succeed.
        _ => SandboxExit::Exited(128 + 9),
    }
}

fn plan(job: BuildJob, log: mpsc::Sender<Vec<u8>>) -> Plan {
    let mut binds: Vec<_> = job
        .mounts
        .into_iter()
        .map(|mount| {
            (
                mount.source,
                mount.target.to_string_lossy().into_owned(),
                mount.writable,
            )
        })
        .collect();
    // The host's own bundle, since package sites may be reached through a private authority.
    let certificates = Path::new(CERTIFICATES);
    let in_image = job.rootfs.join(CERTIFICATES.trim_start_matches('/'));
    if job.network && certificates.exists() && in_image.exists() {
        binds.push((certificates.to_owned(), CERTIFICATES.to_owned(), false));
    }
    Plan {
        rootfs: job.rootfs,
        argv: job.argv,
        env: job.env,
        cwd: job.cwd.to_string_lossy().into_owned(),
        binds,
        limits: Limits {
            memory: job.memory.bytes(),
            cpu_millis: job.cpu.get(),
            processes: PROCESSES,
        },
        tmp_bytes: job.memory.bytes(),
        network: job.network,
        build: true,
        consumer: Consumer::Raw(log),
        labels: labels::Role::Build,
    }
}

fn sandbox_error(
    action: &str,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> SandboxError {
    SandboxError {
        action: action.to_owned(),
        source: source.into(),
    }
}
