//! Instances: never replicated, assigned by the leader in memory and fenced by a stamp.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    Concurrency, Digest, Env, FunctionName, Handler, InstanceId, Memory, MilliCpu, NamespaceName,
    Network, ProjectName, RevisionId, RuntimeName, Timeout,
};

/// Orders from the leader carry one; a receiver refuses what is older than the newest it accepted.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Stamp {
    /// Raised when a snapshot is restored or a cluster recovered, so that old terms cannot return.
    pub incarnation: u64,
    pub term: u64,
    /// Counts up within a term.
    pub sequence: u64,
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.incarnation, self.term, self.sequence)
    }
}

/// Everything an agent needs to run one instance. Complete: nothing is looked up elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceSpec {
    pub id: InstanceId,
    pub revision: RevisionId,
    pub project: ProjectName,
    pub namespace: NamespaceName,
    pub function: FunctionName,
    pub runtime: RuntimeName,
    pub handler: Handler,
    /// The namespace's variables with the function's own on top.
    pub env: Env,
    pub memory: Memory,
    pub cpu: MilliCpu,
    pub concurrency: Concurrency,
    pub network: Network,
    pub timeout: Timeout,
    pub init_timeout: Timeout,
    /// The built code: a tar whose root becomes `/fn/code`.
    pub code: Digest,
    /// The installed dependencies: a tar whose root becomes `/fn/deps`.
    pub dependencies: Option<Digest>,
}

/// Why an instance is no longer running.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum ExitReason {
    /// The scheduler wanted it gone.
    Stopped,
    /// A request ran past its deadline and the instance was killed for it.
    TimedOut,
    /// The kernel killed it for memory.
    OutOfMemory {
        limit_mib: u32,
    },
    /// The process ended by itself.
    Exited {
        code: i32,
    },
    Signaled {
        signal: i32,
    },
    /// The user's code could not be loaded (import error, missing handler).
    InitFailed {
        message: String,
    },
    /// It did not become ready in time.
    InitTimedOut {
        seconds: u32,
    },
    /// Ours: the container could not be made.
    LaunchFailed {
        message: String,
    },
    /// The agent found it gone and cannot tell why.
    Lost,
}

impl ExitReason {
    /// Whether the next start should wait longer (the code or its limits are at fault).
    pub fn is_failure(&self) -> bool {
        !matches!(self, Self::Stopped | Self::TimedOut | Self::Lost)
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped => f.write_str("stopped by the scheduler"),
            Self::TimedOut => f.write_str("killed: a request ran past the function's timeout"),
            Self::OutOfMemory { limit_mib } => {
                write!(
                    f,
                    "killed by the kernel: out of memory (limit {limit_mib} MiB)"
                )
            }
            Self::Exited { code } => write!(f, "the process exited with code {code}"),
            Self::Signaled { signal } => write!(f, "the process was ended by signal {signal}"),
            Self::InitFailed { message } => write!(f, "the code could not be loaded: {message}"),
            Self::InitTimedOut { seconds } => {
                write!(f, "the code was not ready within {seconds} seconds")
            }
            Self::LaunchFailed { message } => write!(f, "the container could not start: {message}"),
            Self::Lost => f.write_str("gone while nobody was watching"),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum InstanceState {
    /// Ordered, not yet answering.
    Starting,
    /// The user's process answered.
    Ready,
    /// Takes no new requests; ends when the running ones have.
    Draining,
    Exited(ExitReason),
}
