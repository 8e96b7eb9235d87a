//! Which containerd: the machine's, or a private one that outlives us.

use std::{
    fs, io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::time::Instant;

use crate::{
    client::{self, Client},
    pidfd,
};

const MACHINE_SOCKET: &str = "/run/containerd/containerd.sock";
/// containerd opens its database and loads its plugins; seconds on a busy machine.
const START: Duration = Duration::from_secs(60);
const LOG_MAX: u64 = 8 << 20;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("containerd is not installed: install containerd and runc")]
    NotInstalled,
    #[error("the containerd at {} does not answer", socket.display())]
    Silent {
        socket: PathBuf,
        #[source]
        source: client::Error,
    },
    #[error("the private containerd ended or did not answer; its log is {}", log.display())]
    DidNotStart {
        log: PathBuf,
        #[source]
        source: client::Error,
    },
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

pub(crate) fn machine_socket() -> &'static Path {
    Path::new(MACHINE_SOCKET)
}

/// A containerd that answered.
#[derive(Debug, Clone)]
pub struct Daemon {
    socket: PathBuf,
    private: Option<Private>,
}

impl Daemon {
    /// The containerd at `explicit`; without it the machine's, if its socket answers, else the
    /// private one below `data_dir`, which is started if it does not run. Naming the private one's
    /// own socket ([`Daemon::private_socket`]) asks for it even where the machine has one.
    pub async fn ensure(explicit: Option<&Path>, data_dir: &Path) -> Result<Self, Error> {
        let private = Private::new(data_dir);
        match explicit {
            Some(socket) if socket == private.socket() => private.ensure().await,
            Some(socket) => match answers(socket).await {
                Ok(()) => Ok(Self {
                    socket: socket.to_owned(),
                    private: None,
                }),
                Err(source) => Err(Error::Silent {
                    socket: socket.to_owned(),
                    source,
                }),
            },
            None => {
                let machine = machine_socket();
                // A private one that an earlier start chose stays the choice: it has our containers.
                if private.pid().is_none() && machine.exists() && answers(machine).await.is_ok() {
                    return Ok(Self {
                        socket: machine.to_owned(),
                        private: None,
                    });
                }
                private.ensure().await
            }
        }
    }

    /// The socket of the private containerd of a data directory, running or not.
    pub fn private_socket(data_dir: &Path) -> PathBuf {
        Private::new(data_dir).socket()
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Starts a private containerd again whenever it ends; runs until dropped. For one that is not
    /// ours it does nothing: whoever runs it restarts it.
    pub(crate) async fn keep(&self) {
        let Some(private) = &self.private else {
            return std::future::pending().await;
        };
        let mut pause = Duration::from_millis(100);
        loop {
            private.ended().await;
            tracing::warn!("the private containerd ended; it is started again");
            match private.ensure().await {
                Ok(_) => pause = Duration::from_millis(100),
                Err(error) => {
                    tracing::error!(error = %chain(&error), "cannot start the private containerd");
                    pause = (pause * 2).min(Duration::from_secs(30));
                }
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Ends the private containerd of a data directory, if it runs, and removes its files. Its
    /// containers must be gone.
    pub async fn shutdown(data_dir: &Path) -> Result<(), Error> {
        let private = Private::new(data_dir);
        if let Some(pid) = private.pid() {
            let _ = rustix::process::kill_process(pid, Signal::TERM);
            if tokio::time::timeout(Duration::from_secs(10), private.ended())
                .await
                .is_err()
            {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
                private.ended().await;
            }
        }
        match fs::remove_dir_all(&private.dir) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::Io {
                action: "remove",
                path: private.dir,
                source,
            }),
            _ => Ok(()),
        }
    }
}

async fn answers(socket: &Path) -> Result<(), client::Error> {
    Client::new(socket.to_owned(), "default")
        .version()
        .await
        .map(drop)
}

/// A containerd with root, state, socket and configuration of its own.
#[derive(Debug, Clone)]
struct Private {
    dir: PathBuf,
}

impl Private {
    fn new(data_dir: &Path) -> Self {
        Self {
            dir: data_dir.join("containerd"),
        }
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("containerd.sock")
    }

    fn log(&self) -> PathBuf {
        self.dir.join("containerd.log")
    }

    /// The running daemon, by asking the kernel who listens on its socket: no file can be stale,
    /// or missing because we were killed before writing it.
    fn pid(&self) -> Option<Pid> {
        let stream = std::os::unix::net::UnixStream::connect(self.socket()).ok()?;
        rustix::net::sockopt::socket_peercred(&stream)
            .ok()
            .map(|credentials| credentials.pid)
    }

    fn config_file(&self) -> PathBuf {
        self.dir.join("config.toml")
    }

    /// Returns when the daemon does not run (any more).
    async fn ended(&self) {
        let Some(pid) = self.pid() else { return };
        let Ok(fd) = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK) else {
            return;
        };
        pidfd::ended(&Arc::new(fd)).await;
    }

    async fn ensure(&self) -> Result<Daemon, Error> {
        let daemon = Daemon {
            socket: self.socket(),
            private: Some(self.clone()),
        };
        let mut child = if self.pid().is_none() {
            Some(self.spawn()?)
        } else {
            None
        };
        let deadline = Instant::now() + START;
        loop {
            let source = match answers(&daemon.socket).await {
                Ok(()) => break,
                Err(source) => source,
            };
            let ended = match &mut child {
                Some(child) => !matches!(child.try_wait(), Ok(None)),
                None => self.pid().is_none(),
            };
            if ended || Instant::now() >= deadline {
                return Err(Error::DidNotStart {
                    log: self.log(),
                    source,
                });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // One that an earlier process had just started may have been faster; ours then waits for
        // the database.
        if let Some(mut child) = child
            && child.id() != self.pid().map(|pid| pid.as_raw_pid().unsigned_abs())
        {
            let _ = child.kill().await;
        }
        Ok(daemon)
    }

    fn spawn(&self) -> Result<tokio::process::Child, Error> {
        let at = |action: &'static str, path: &Path| {
            let path = path.to_owned();
            move |source| Error::Io {
                action,
                path,
                source,
            }
        };
        fs::create_dir_all(&self.dir).map_err(at("create", &self.dir))?;
        // containerd hands directories below its state to containers' mapped root users.
        fs::set_permissions(&self.dir, fs::Permissions::from_mode(0o711))
            .map_err(at("set the mode of", &self.dir))?;
        let config = self.config_file();
        fs::write(&config, self.config()).map_err(at("write", &config))?;
        let log = self.log();
        let full = fs::metadata(&log).is_ok_and(|meta| meta.len() > LOG_MAX);
        let log_file = fs::OpenOptions::new()
            .create(true)
            .append(!full)
            .write(true)
            .truncate(full)
            .mode(0o600)
            .open(&log)
            .map_err(at("open", &log))?;
        let errors = log_file.try_clone().map_err(at("open", &log))?;

        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("containerd");
        command
            .arg("--config")
            .arg(&config)
            .env(
                "PATH",
                format!("{path}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"),
            )
            // What our supervisor asked of us is not asked of it.
            .env_remove("NOTIFY_SOCKET")
            .env_remove("WATCHDOG_PID")
            .env_remove("WATCHDOG_USEC")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log_file)
            .stderr(errors);
        // SAFETY: the closure makes one system call that is safe between fork and exec. A session
        // of its own keeps signals to our terminal and process group away from the daemon.
        unsafe {
            std::os::unix::process::CommandExt::pre_exec(&mut command, || {
                rustix::process::setsid()?;
                Ok(())
            });
        }
        // The daemon's descriptors are these three: the standard library opens the rest with
        // close-on-exec. It is reaped by the runtime when it ends, and does not end with us.
        tokio::process::Command::from(command)
            .spawn()
            .map_err(|source| {
                if source.kind() == io::ErrorKind::NotFound {
                    Error::NotInstalled
                } else {
                    Error::Io {
                        action: "start",
                        path: "containerd".into(),
                        source,
                    }
                }
            })
    }

    fn config(&self) -> String {
        let path = |name: &str| toml_text(&self.dir.join(name));
        format!(
            "version = 2\n\
             root = {}\n\
             state = {}\n\
             # What Coracle does not use costs memory and start-up time.\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \
             \"io.containerd.snapshotter.v1.aufs\", \"io.containerd.snapshotter.v1.btrfs\", \
             \"io.containerd.snapshotter.v1.devmapper\", \"io.containerd.snapshotter.v1.zfs\"]\n\
             [grpc]\n\
             address = {}\n\
             [ttrpc]\n\
             address = {}\n\
             [debug]\n\
             level = \"warn\"\n",
            path("root"),
            path("state"),
            path("containerd.sock"),
            path("containerd.sock.ttrpc"),
        )
    }
}

/// A path as a TOML string.
fn toml_text(path: &Path) -> String {
    let text = path.to_string_lossy();
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
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
