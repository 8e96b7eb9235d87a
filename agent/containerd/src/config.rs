//! What the driver is started with.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use coracle_base::Clock;
use coracle_driver::LogSink;
use coracle_model::{Memory, RuntimeName};

use crate::names::ClusterId;

/// Everything that [`crate::ContainerdDriver::start`] needs; nothing is read from elsewhere.
#[derive(Debug, Clone)]
pub struct Config {
    /// The server's data directory; `run/` and `containerd/` below it are the driver's.
    pub data_dir: PathBuf,
    pub cluster: ClusterId,
    /// A containerd to use. Without one: the machine's if its socket answers, else a private one.
    pub containerd_socket: Option<PathBuf>,
    /// Bound read-only at `/usr/lib/coracle` in every container; holds `init` and the shims.
    pub shims_dir: PathBuf,
    pub commands: BTreeMap<RuntimeName, ShimCommand>,
    /// Name servers for containers; empty: the host's, without those on loopback.
    pub resolvers: Vec<IpAddr>,
    pub egress: EgressPolicy,
    pub stems: StemLimits,
    pub clock: Arc<dyn Clock>,
    pub logs: Arc<dyn LogSink>,
}

/// How a runtime's shim is started inside its image.
#[derive(Debug, Clone)]
pub struct ShimCommand {
    /// The first is an absolute path.
    pub argv: Vec<String>,
    pub env: BTreeMap<String, String>,
    /// The limit that stems start under; claims only raise it where they can.
    pub min_memory: Memory,
}

/// Where functions with network may connect to, in CIDR notation. The first match wins: the
/// resolvers' port 53, then `allow`, then `deny`, then everything else is allowed.
#[derive(Debug, Clone)]
pub struct EgressPolicy {
    pub allow: Vec<String>,
    pub deny: Vec<String>,
}

impl Default for EgressPolicy {
    /// Denies private and link-local networks (and with them cloud metadata services), so that a
    /// function reaches the internet and not the operator's other machines.
    fn default() -> Self {
        let deny = [
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.168.0.0/16",
            "224.0.0.0/4",
            "240.0.0.0/4",
        ];
        Self {
            allow: Vec::new(),
            deny: deny.map(str::to_owned).to_vec(),
        }
    }
}

/// How eagerly pools are refilled. Refilling costs warm calls their tail latency, and weights do
/// not help against it; a rate and a width do.
#[derive(Debug, Clone, Copy)]
pub struct StemLimits {
    /// Least time from one start to the next.
    pub interval: Duration,
    /// Most claims at once; more only raises everybody's latency. Twice the cores is a good value.
    pub concurrent_claims: usize,
}

impl Default for StemLimits {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let per_second = u32::try_from(cores * 2).unwrap_or(64).min(64);
        Self {
            interval: Duration::from_secs(1) / per_second,
            concurrent_claims: cores * 2,
        }
    }
}
