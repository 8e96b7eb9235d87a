//! Settings of one controller, already checked.

use std::{path::PathBuf, sync::Arc, time::Duration};

use coracle_base::{Address, Clock, SystemClock};
use coracle_model::limits;
use coracle_planner::{BackoffConfig, CapacityConfig, PlannerConfig};
use coracle_replica::SnapshotPolicy;

use crate::{artifacts::StoreUrl, cluster::Identity, peers::PeerTable};

#[derive(Debug, Clone)]
pub struct Config {
    /// Holds `log`, `build-logs` and, unless they are kept elsewhere, `artifacts`. The caller holds the lock of the data directory.
    pub data_dir: PathBuf,
    /// Eight hexadecimal characters.
    pub cluster_id: String,
    pub artifact_store: StoreUrl,
    /// This member of the Raft group; never 0, and never one that was removed or lost its disk.
    pub member: u64,
    /// The voters of a new group, the same list on each of them. Empty: wait to be added to a group
    /// that there is. Ignored once the data directory belongs to a group.
    pub voters: Vec<u64>,
    /// Where the other members are.
    pub peers: PeerTable,
    pub pace: RaftPace,
    /// Where the gRPC services listen.
    pub listen: Vec<Address>,
    /// In a cluster; none for a server by itself.
    pub identity: Option<Identity>,
    pub clock: Arc<dyn Clock>,
    pub planner: PlannerConfig,
    pub backoff: BackoffConfig,
    pub leader: LeaderConfig,
}

/// The clock of the group; the same on every member.
#[derive(Debug, Clone, Copy)]
pub struct RaftPace {
    /// A heartbeat goes out with each.
    pub tick: Duration,
    /// A member that hears no leader for this many ticks, up to twice as many, stands for election.
    pub election_ticks: usize,
    /// When the state is written out, and how much of the log stays behind it.
    pub snapshots: SnapshotPolicy,
}

impl Default for RaftPace {
    fn default() -> Self {
        Self {
            tick: Duration::from_millis(50),
            election_ticks: 10,
            snapshots: SnapshotPolicy::default(),
        }
    }
}

/// Pace and patience of the loops that run while leading.
#[derive(Debug, Clone)]
pub struct LeaderConfig {
    /// The loops run at least this often; events wake them sooner.
    pub tick: Duration,
    /// A new leader plans once every registered node has spoken, and at the latest after this.
    pub collect_deadline: Duration,
    /// Where no node is registered: how long after the first agent the others may take.
    pub collect_settle: Duration,
    /// A node whose session broke, or that has not spoken to a new leader, counts as alive for this
    /// long. Then it is lost: its instances are replaced.
    pub node_grace: Duration,
    /// Cores may be promised this many times over, in percent: a function's share is a cap on
    /// bursts, and most instances idle.
    pub cpu_overcommit_percent: u32,
    /// Memory may be promised this many times over, in percent.
    pub memory_overcommit_percent: u32,
    /// Who is told when room is short or nodes are idle.
    pub webhook: Option<Webhook>,
    pub builds_per_node: usize,
    /// From the order to the result; the agent's own limits are tighter.
    pub build_deadline: Duration,
    /// Nodes that may vanish under one build before it fails.
    pub build_attempts: u32,
    /// Artifacts that nothing names are kept this long: an upload comes before the write that
    /// names it.
    pub artifact_grace: Duration,
    pub gc_interval: Duration,
    pub write_deadline: Duration,
    pub read_deadline: Duration,
    /// With less left on the disk, in bytes, nothing that clients ask for is taken any more but
    /// removals: a log that cannot be written ends the controller.
    pub disk_reserve: u64,
    /// Largest upload, in bytes.
    pub artifact_max_bytes: u64,
    /// Longest build log kept, in bytes.
    pub build_log_max_bytes: u64,
}

/// Where capacity notices go, by plain HTTP.
#[derive(Debug, Clone)]
pub struct Webhook {
    pub url: http::Uri,
    pub capacity: CapacityConfig,
    /// Between attempts: the first wait, doubling up to the last.
    pub retry_first: Duration,
    pub retry_most: Duration,
}

impl Webhook {
    pub fn new(url: http::Uri) -> Self {
        Self {
            url,
            capacity: CapacityConfig::default(),
            retry_first: Duration::from_secs(1),
            retry_most: Duration::from_secs(60),
        }
    }
}

impl Default for LeaderConfig {
    fn default() -> Self {
        Self {
            tick: Duration::from_secs(1),
            collect_deadline: Duration::from_secs(5),
            collect_settle: Duration::from_millis(200),
            node_grace: Duration::from_secs(15),
            cpu_overcommit_percent: 1_000,
            memory_overcommit_percent: 100,
            webhook: None,
            builds_per_node: 2,
            build_deadline: Duration::from_secs(30 * 60),
            build_attempts: 3,
            artifact_grace: Duration::from_secs(60 * 60),
            gc_interval: Duration::from_secs(5 * 60),
            write_deadline: Duration::from_secs(10),
            read_deadline: Duration::from_secs(5),
            disk_reserve: 32 << 20,
            artifact_max_bytes: limits::ARTIFACT_MAX_BYTES,
            build_log_max_bytes: 4 * 1024 * 1024,
        }
    }
}

/// Durations as the planner has them.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Config {
    /// One controller by itself, with the system's clock and default pace.
    pub fn standalone(data_dir: PathBuf, cluster_id: String, listen: Vec<Address>) -> Self {
        Self {
            data_dir,
            cluster_id,
            artifact_store: StoreUrl::Own,
            member: 1,
            voters: vec![1],
            peers: PeerTable::default(),
            pace: RaftPace::default(),
            listen,
            identity: None,
            clock: Arc::new(SystemClock),
            planner: PlannerConfig::default(),
            backoff: BackoffConfig::default(),
            leader: LeaderConfig::default(),
        }
    }
}
