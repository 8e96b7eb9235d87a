//! What all containers of this process share: containerd, ids, network, image roots.

use std::{
    collections::HashSet,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use coracle_base::Clock;
use coracle_driver::LogSink;
use tokio_util::sync::CancellationToken;

use crate::{
    cgroup::{self, Hierarchy},
    client::{self, Client},
    config::Config,
    daemon::{self, Daemon},
    images::{self, Images},
    logs::Consumer,
    mount::{self, Claimers},
    names::ClusterId,
    network::{self, Network},
    notes::Notes,
    slots::Slots,
};

/// `sun_path` holds 108 bytes with the final zero.
const SOCKET_PATH_MAX: usize = 107;

/// Why the driver cannot start on this machine.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("containers need root: start as root or with sudo")]
    NotRoot,
    #[error("the data directory {} makes socket paths longer than {SOCKET_PATH_MAX} bytes; choose a shorter one", .0.display())]
    PathTooLong(PathBuf),
    #[error(transparent)]
    Daemon(#[from] daemon::Error),
    #[error("cannot prepare containerd's namespace")]
    Namespace(#[source] client::Error),
    #[error("cannot use this machine's control groups")]
    Cgroup(#[from] cgroup::Error),
    #[error("cannot set up the network")]
    Network(#[from] network::Error),
    #[error("cannot prepare image roots")]
    Images(#[from] images::Error),
    #[error("cannot start the threads that attach code")]
    Claimers(#[from] mount::Error),
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) cluster: ClusterId,
    pub(crate) client: Client,
    pub(crate) daemon: Daemon,
    pub(crate) cgroups: Hierarchy,
    pub(crate) network: Network,
    pub(crate) slots: Slots,
    pub(crate) images: Images,
    pub(crate) claimers: Claimers,
    pub(crate) run_dir: PathBuf,
    pub(crate) notes: Notes,
    pub(crate) shims_dir: PathBuf,
    pub(crate) clock: Arc<dyn Clock>,
    logs: Arc<dyn LogSink>,
    /// Containers that this process makes, runs or removes; all others of the namespace are
    /// leftovers.
    live: Mutex<HashSet<String>>,
    /// Cancelled once it is known what an earlier process left.
    pub(crate) adopted: CancellationToken,
    /// The driver was dropped: containers run on, and nothing here touches them any more.
    pub(crate) closed: CancellationToken,
}

impl Machine {
    pub(crate) async fn start(config: &Config) -> Result<Self, StartError> {
        if !rustix::process::geteuid().is_root() {
            return Err(StartError::NotRoot);
        }
        let data_dir = absolute(&config.data_dir)?;
        let run_dir = data_dir.join("run");
        let longest = crate::container::socket(&run_dir.join("0123456789ab"));
        if longest.as_os_str().len() > SOCKET_PATH_MAX {
            return Err(StartError::PathTooLong(data_dir));
        }
        make_dir(&run_dir)?;
        let claims = run_dir.join("claims");
        make_dir(&claims)?;
        let daemon = Daemon::ensure(config.containerd_socket.as_deref(), &data_dir).await?;
        let namespace = config.cluster.namespace();
        let client = Client::new(daemon.socket().to_owned(), &namespace);
        client
            .create_namespace(namespace)
            .await
            .map_err(StartError::Namespace)?;

        let (cluster, resolvers, egress) = (
            config.cluster.clone(),
            config.resolvers.clone(),
            config.egress.clone(),
        );
        let network =
            tokio::task::spawn_blocking(move || Network::start(&cluster, &resolvers, &egress))
                .await
                .map_err(|error| StartError::Io {
                    action: "set up the network for",
                    path: run_dir.clone(),
                    source: io::Error::other(error),
                })??;
        let machine = Self {
            cluster: config.cluster.clone(),
            client,
            daemon,
            cgroups: Hierarchy::detect()?,
            network,
            slots: Slots::new(),
            images: Images::start(&config.cluster.machine_dir())?,
            claimers: Claimers::start(config.stems.concurrent_claims.div_ceil(2))?,
            run_dir,
            notes: Notes::new(claims),
            shims_dir: absolute(&config.shims_dir)?,
            clock: Arc::clone(&config.clock),
            logs: Arc::clone(&config.logs),
            live: Mutex::default(),
            adopted: CancellationToken::new(),
            closed: CancellationToken::new(),
        };
        let path = machine.resolv_conf();
        fs::write(&path, machine.network.resolv_conf())
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o644)))
            .map_err(|source| StartError::Io {
                action: "write",
                path,
                source,
            })?;
        Ok(machine)
    }

    /// What containers find at `/etc/resolv.conf`.
    pub(crate) fn resolv_conf(&self) -> PathBuf {
        self.run_dir.join("resolv.conf")
    }

    /// Output goes to the log, once it is known whose it is.
    pub(crate) fn to_log(&self) -> Consumer {
        Consumer::Sink {
            sink: Arc::clone(&self.logs),
            clock: Arc::clone(&self.clock),
        }
    }

    pub(crate) fn live(&self) -> MutexGuard<'_, HashSet<String>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn absolute(path: &Path) -> Result<PathBuf, StartError> {
    std::path::absolute(path).map_err(|source| StartError::Io {
        action: "find",
        path: path.to_owned(),
        source,
    })
}

fn make_dir(path: &Path) -> Result<(), StartError> {
    let at = |action: &'static str| {
        let path = path.to_owned();
        move |source| StartError::Io {
            action,
            path,
            source,
        }
    };
    fs::create_dir_all(path).map_err(at("create"))?;
    // Containers' mapped root users walk through here.
    fs::set_permissions(path, fs::Permissions::from_mode(0o711)).map_err(at("set the mode of"))
}
