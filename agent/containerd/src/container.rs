//! One container from its making to its removal, whatever it is used for.
//!
//! The kernel is the authority on whether it lives: its pidfd becomes readable when its first
//! process has ended, and that process is the init of a PID namespace, so by then every process of
//! the container is gone. No event can be lost or doubled, and a containerd that is restarted, or
//! answers nonsense in between, is not mistaken for an exit. containerd is only asked for the exit
//! status, and to clean up.

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::fs::{PermissionsExt, chown},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use coracle_model::ExitReason;
use rustix::{
    fs::Mode,
    process::{Pid, PidfdFlags, Signal},
};
use tokio::sync::watch;

use crate::{
    cgroup::{Cgroup, Limits},
    client::{self, Record},
    daemon::chain,
    images, labels,
    logs::{self, Consumer, Output},
    machine::Machine,
    network, pidfd,
    slots::{self, NoSlot, Slot, USER},
    spec::{self, Bind},
};

/// How long containerd may be away before an exit is reported without its status.
const STATUS_PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    NoSlot(#[from] NoSlot),
    #[error(transparent)]
    Containerd(#[from] client::Error),
    #[error(transparent)]
    Network(#[from] network::Error),
    #[error(transparent)]
    Image(#[from] images::Error),
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the container ended while it was made: {0}")]
    Ended(String),
    #[error("a blocking step was abandoned")]
    Abandoned,
}

/// What to make.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) rootfs: PathBuf,
    pub(crate) argv: Vec<String>,
    pub(crate) env: std::collections::BTreeMap<String, String>,
    pub(crate) cwd: String,
    pub(crate) binds: Vec<(PathBuf, String, bool)>,
    pub(crate) limits: Limits,
    pub(crate) tmp_bytes: u64,
    pub(crate) network: bool,
    /// Takes the ids of builds instead of its slot's own.
    pub(crate) build: bool,
    pub(crate) consumer: Consumer,
    pub(crate) labels: labels::Role,
}

/// containerd's process beside a container. Sharing one saves several MiB a container; the price is
/// a race when its last container goes while a new one comes, which is then made on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Supervisor {
    Shared,
    Own,
}

#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) dir: PathBuf,
    pub(crate) pidfd: Arc<OwnedFd>,
    pub(crate) cgroup: Cgroup,
    pub(crate) output: Output,
    /// The host's end of its cable, if it has one.
    pub(crate) link: Option<String>,
    slot: Slot,
    state: Mutex<State>,
    gone: watch::Sender<Option<ExitReason>>,
}

#[derive(Debug)]
struct State {
    /// Why we ended it, if we did.
    intent: Option<ExitReason>,
    limit_bytes: u64,
}

impl Container {
    pub(crate) fn slot(&self) -> u16 {
        self.slot.number()
    }

    /// Where its shim listens.
    pub(crate) fn socket(&self) -> PathBuf {
        socket(&self.dir)
    }

    /// For the words of an out-of-memory kill.
    pub(crate) fn note_limit(&self, bytes: u64) {
        self.state().limit_bytes = bytes;
    }

    /// Ends it at once. The first reason given is the one reported.
    pub(crate) fn kill(&self, reason: ExitReason) {
        self.intend(reason);
        self.signal(Signal::KILL);
        self.cgroup.lift_quota();
    }

    /// Asks it to end.
    pub(crate) fn terminate(&self, reason: ExitReason) {
        self.intend(reason);
        self.signal(Signal::TERM);
    }

    fn intend(&self, reason: ExitReason) {
        self.state().intent.get_or_insert(reason);
    }

    fn signal(&self, signal: Signal) {
        // The only error is that it has already ended.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, signal);
    }

    /// Waits until nothing of it is left; the reason of its end.
    pub(crate) async fn gone(&self) -> ExitReason {
        let mut watch = self.gone.subscribe();
        match watch.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or(ExitReason::Lost),
            Err(_) => ExitReason::Lost,
        }
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.gone.borrow().is_some()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn socket(dir: &Path) -> PathBuf {
    dir.join("fn").join("fn.sock")
}

impl Machine {
    /// Makes a container and starts its program. Must not be dropped half-way: call it on a task of
    /// its own. After an error nothing is left.
    pub(crate) async fn make(self: &Arc<Self>, plan: &Plan) -> Result<Arc<Container>, Error> {
        let mut supervisor = Supervisor::Shared;
        loop {
            let slot = self.slots.take()?;
            let id = labels::new_id();
            // Before the record exists, so that the sweeper never takes it for a leftover.
            self.live().insert(id.clone());
            let error = match self.make_parts(&id, slot, plan, supervisor).await {
                Ok(container) => return Ok(container),
                Err(error) => error,
            };
            if let Err(left) = self.discard(&id).await {
                tracing::warn!(container = id, error = %chain(&left), "left for the sweeper");
            }
            let again = matches!(&error, Error::Containerd(error) if error.is_shim_gone());
            if !again || supervisor == Supervisor::Own {
                return Err(error);
            }
            tracing::debug!(container = id, error = %chain(&error), "making it on its own");
            supervisor = Supervisor::Own;
        }
    }

    async fn make_parts(
        self: &Arc<Self>,
        id: &str,
        slot: Slot,
        plan: &Plan,
        supervisor: Supervisor,
    ) -> Result<Arc<Container>, Error> {
        let owner = if plan.build {
            slots::BUILD_SLOT
        } else {
            slot.number()
        };
        let uid_base = slots::uid_base(self.cluster.number(), owner);
        let dir = self.run_dir.join(id);
        let (machine, rootfs, place) = (Arc::clone(self), plan.rootfs.clone(), dir.clone());
        let root = blocking(move || {
            let root = machine.images.bind(&rootfs)?;
            make_dir(&place, uid_base)?;
            Ok(root)
        })
        .await?;
        let output = Output::start(&dir, plan.consumer.clone()).map_err(|source| Error::Io {
            action: "open the output of",
            path: dir.clone(),
            source,
        })?;

        let cgroup_path = format!("{}/{id}", self.cluster.cgroup_parent());
        let sockets = dir.join("fn");
        let resolv_conf = self.resolv_conf();
        let mut binds = vec![
            Bind {
                source: &self.shims_dir,
                target: spec::SHIMS,
                writable: false,
            },
            Bind {
                source: &resolv_conf,
                target: spec::RESOLV_CONF,
                writable: false,
            },
        ];
        if !plan.build {
            binds.push(Bind {
                source: &sockets,
                target: spec::SOCKET_DIR,
                writable: true,
            });
        }
        binds.extend(plan.binds.iter().map(|(source, target, writable)| Bind {
            source,
            target,
            writable: *writable,
        }));
        let spec = spec::container(&spec::Input {
            root: &root.path,
            argv: &plan.argv,
            env: &plan.env,
            cwd: &plan.cwd,
            binds: &binds,
            uid_base,
            limits: &plan.limits,
            tmp_bytes: plan.tmp_bytes,
            cgroup: &cgroup_path,
            shim_group: &match supervisor {
                // Few enough that one lost supervisor does not take the node's instances with it.
                Supervisor::Shared => format!("coracle-{}-{}", self.cluster, slot.number() / 16),
                Supervisor::Own => format!("coracle-{}-{id}", self.cluster),
            },
        });
        let labels = labels::encode(&plan.labels, slot.number());
        self.client
            .create_container(id, spec.to_string().into_bytes(), labels)
            .await?;
        let fifo = |name: &str| dir.join(name).to_string_lossy().into_owned();
        let pid = self
            .client
            .create_task(id, fifo(logs::STDOUT), fifo(logs::STDERR))
            .await?;
        let pidfd = open_pidfd(pid, &cgroup_path)
            .ok_or_else(|| Error::Ended("its first process has gone".to_owned()))?;

        let (network, name, number) = (self.network.clone(), id.to_owned(), slot.number());
        let plugged = plan.network;
        let plug = blocking(move || {
            if plugged {
                return Ok(Some(network.plug(&name, number, pid)?));
            }
            network::cap_inotify(pid)?;
            Ok(None)
        });
        // A shim meets the network only when it is claimed; a build's program needs it at once.
        let link = if plan.build {
            let link = plug.await?;
            self.client.start_task(id).await?;
            link
        } else {
            let (link, started) = tokio::join!(plug, self.client.start_task(id));
            started?;
            link?
        };
        let container = Arc::new(Container {
            id: id.to_owned(),
            dir,
            pidfd: Arc::new(pidfd),
            cgroup: self.cgroups.at(&cgroup_path),
            output,
            link,
            slot,
            state: Mutex::new(State {
                intent: None,
                limit_bytes: plan.limits.memory,
            }),
            gone: watch::Sender::new(None),
        });
        tokio::spawn(Arc::clone(self).supervise(Arc::clone(&container)));
        Ok(container)
    }

    /// Takes over a running container of an earlier process. `None` if it is not alive after all.
    pub(crate) fn take_over(
        self: &Arc<Self>,
        record: &Record,
        pid: u32,
        slot: Slot,
        limit_bytes: u64,
        consumer: Consumer,
    ) -> Option<Arc<Container>> {
        let cgroup_path = format!("{}/{}", self.cluster.cgroup_parent(), record.id);
        let pidfd = open_pidfd(pid, &cgroup_path)?;
        let dir = self.run_dir.join(&record.id);
        let output = Output::start(&dir, consumer).ok()?;
        let link = self.cluster.veth(&record.id);
        let has_link = network::interfaces().contains(&link);
        let container = Arc::new(Container {
            id: record.id.clone(),
            dir,
            pidfd: Arc::new(pidfd),
            cgroup: self.cgroups.at(&cgroup_path),
            output,
            link: has_link.then_some(link),
            slot,
            state: Mutex::new(State {
                intent: None,
                limit_bytes,
            }),
            gone: watch::Sender::new(None),
        });
        self.live().insert(record.id.clone());
        tokio::spawn(Arc::clone(self).supervise(Arc::clone(&container)));
        Some(container)
    }

    /// Waits for the end, finds the reason, and removes everything.
    async fn supervise(self: Arc<Self>, container: Arc<Container>) {
        tokio::select! {
            () = pidfd::ended(&container.pidfd) => {}
            () = self.closed.cancelled() => return,
        }
        // Before anything is deleted: the count goes with the cgroup.
        let out_of_memory = container.cgroup.memory_kills() > 0;
        let status = self.exit_status(&container.id).await;
        let reason = {
            let state = container.state();
            reason(
                state.intent.as_ref(),
                status,
                out_of_memory,
                state.limit_bytes,
            )
        };
        tracing::debug!(container = container.id, %reason, "container ended");
        // Deleting the task waits for its output to have been copied into the FIFOs.
        let deleted = self.client.delete_task(&container.id).await;
        container.output.finish().await;
        if let Err(error) = deleted {
            tracing::warn!(container = container.id, error = %chain(&error), "cannot delete the task");
        }
        if let Err(error) = self.discard(&container.id).await {
            tracing::warn!(container = container.id, error = %chain(&error), "left for the sweeper");
        }
        container.gone.send_replace(Some(reason));
    }

    /// The status of a container whose first process has ended, while containerd may be restarting.
    async fn exit_status(&self, id: &str) -> Option<u32> {
        let asked = tokio::time::timeout(STATUS_PATIENCE, async {
            loop {
                match self.client.wait_task(id).await {
                    // 255 is also what containerd says when it lost the shim. Elsewhere that must
                    // not be taken for an exit; here the kernel has already said that it is one.
                    Ok(status) => return Some(status),
                    Err(error) if error.is_unknown() => {
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                    Err(_) => return None,
                }
            }
        });
        asked.await.unwrap_or(None)
    }

    /// Removes a container in whatever state it is, and its directory.
    pub(crate) async fn discard(&self, id: &str) -> Result<(), client::Error> {
        let removed = self.client.remove(id).await;
        let _ = fs::remove_dir_all(self.run_dir.join(id));
        self.notes.remove(id);
        // A failure leaves the record, which the sweeper finds because the id is no longer live.
        self.live().remove(id);
        removed
    }
}

/// Runs what blocks beside the runtime's own threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Error::Abandoned)?
}

/// The container's directory on the host: its FIFOs, and the one directory it shares with us.
fn make_dir(dir: &Path, uid_base: u32) -> Result<(), Error> {
    let at = |action: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| Error::Io {
            action,
            path,
            source,
        }
    };
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .map_err(at("set the mode of", path))
    };
    fs::create_dir(dir).map_err(at("create", dir))?;
    mode(dir, 0o711)?;
    let sockets = dir.join("fn");
    fs::create_dir(&sockets).map_err(at("create", &sockets))?;
    mode(&sockets, 0o700)?;
    let user = uid_base + USER;
    chown(&sockets, Some(user), Some(user)).map_err(at("give away", &sockets))?;
    for name in [logs::STDOUT, logs::STDERR] {
        let fifo = dir.join(name);
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, Mode::RUSR | Mode::WUSR)
            .map_err(|error| at("create", &fifo)(error.into()))?;
    }
    Ok(())
}

/// A descriptor of the process, if it is (still) the one in this cgroup: process ids are reused.
fn open_pidfd(pid: u32, cgroup_path: &str) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    let fd = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK).ok()?;
    let text = fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_pid())).ok()?;
    Cgroup::contains(cgroup_path, &text).then_some(fd)
}

/// Why it ended, from what each side knows. Our own intent comes first: after a kill the status
/// only repeats it.
fn reason(
    intent: Option<&ExitReason>,
    status: Option<u32>,
    out_of_memory: bool,
    limit_bytes: u64,
) -> ExitReason {
    if let Some(intent) = intent {
        return intent.clone();
    }
    if out_of_memory && status != Some(0) {
        return ExitReason::OutOfMemory {
            limit_mib: u32::try_from(limit_bytes >> 20).unwrap_or(u32::MAX),
        };
    }
    let status = status.and_then(|status| i32::try_from(status).ok());
    match status {
        // Our init says it like a shell, and so does containerd.
        Some(status) if status > 128 && status <= 128 + 64 => ExitReason::Signaled {
            signal: status - 128,
        },
        Some(code) => ExitReason::Exited { code },
        None => ExitReason::Lost,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_the_most_telling_one() {
        let limit = 64 << 20;
        let stopped = ExitReason::Stopped;
        assert_eq!(reason(Some(&stopped), Some(137), true, limit), stopped);
        assert_eq!(
            reason(None, Some(137), true, limit),
            ExitReason::OutOfMemory { limit_mib: 64 }
        );
        assert_eq!(
            reason(None, None, true, limit),
            ExitReason::OutOfMemory { limit_mib: 64 }
        );
        // A child was killed for memory, and the program coped.
        assert_eq!(
            reason(None, Some(0), true, limit),
            ExitReason::Exited { code: 0 }
        );
        assert_eq!(
            reason(None, Some(139), false, limit),
            ExitReason::Signaled { signal: 11 }
        );
        assert_eq!(
            reason(None, Some(3), false, limit),
            ExitReason::Exited { code: 3 }
        );
        assert_eq!(reason(None, None, false, limit), ExitReason::Lost);
    }
}
