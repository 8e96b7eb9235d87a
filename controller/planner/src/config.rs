//! The planner's settings. All durations are in milliseconds, so that tests can shorten them.

/// When and how far a function scales.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScalingConfig {
    /// The window whose average rules in quiet times.
    pub stable_window_ms: u64,
    /// The window that notices a burst.
    pub panic_window_ms: u64,
    /// A burst: the panic window asks for at least this many percent of the ready instances.
    pub panic_threshold_percent: u32,
    /// The part of an instance's concurrency to fill, in percent. An instance is never planned for
    /// less than one request: at concurrency 1 a serial client would otherwise hold two instances.
    pub target_utilisation_percent: u32,
    /// How long a function keeps its last instance without a request.
    pub idle_ms: u64,
    /// What a gateway's last word counts for after it fell silent.
    pub demand_stale_ms: u64,
}

impl Default for ScalingConfig {
    fn default() -> Self {
        Self {
            stable_window_ms: 60_000,
            panic_window_ms: 6_000,
            panic_threshold_percent: 200,
            target_utilisation_percent: 70,
            idle_ms: 60_000,
            demand_stale_ms: 5_000,
        }
    }
}

impl ScalingConfig {
    /// The grain of the demand history: a sixth of the panic window.
    pub(crate) fn bucket_ms(&self) -> u64 {
        (self.panic_window_ms / 6).max(10)
    }

    /// Planned requests for one instance, in thousandths.
    pub(crate) fn target_millis(&self, concurrency: u32) -> u64 {
        (u64::from(concurrency) * u64::from(self.target_utilisation_percent) * 10).max(1_000)
    }
}

/// How long a failing revision waits before its next start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackoffConfig {
    pub first_ms: u64,
    pub most_ms: u64,
    /// The same for a revision whose instances start and end later, also for a request that ran
    /// past its timeout: requests that crash or hang it must not take it from everybody else for
    /// minutes.
    pub answered_most_ms: u64,
    /// Instances that are killed for hanging requests within this time count as one hang.
    pub together_ms: u64,
    /// An instance that answered for this long before it failed is replaced at once, and the
    /// failures before it are forgotten.
    pub healthy_after_ms: u64,
}

impl Default for BackoffConfig {
    fn default() -> Self {
        Self {
            first_ms: 1_000,
            most_ms: 300_000,
            answered_most_ms: 4_000,
            together_ms: 1_000,
            healthy_after_ms: 10_000,
        }
    }
}

/// How many stems each node keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StemConfig {
    /// Per runtime that any function uses. 0 turns stems off.
    pub per_runtime: u32,
    /// Cap per runtime, however many starts there were of late.
    pub most_per_runtime: u32,
    /// What one stem is reckoned to hold. Measured: Python about 9 MiB, Node about 40 MiB.
    pub memory_mib: u32,
    /// The part of a node's free memory that stems may take.
    pub memory_percent: u32,
}

impl Default for StemConfig {
    fn default() -> Self {
        Self {
            per_runtime: 4,
            most_per_runtime: 32,
            memory_mib: 32,
            memory_percent: 25,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannerConfig {
    pub scaling: ScalingConfig,
    pub stems: StemConfig,
    /// Added to a function's timeout for the deadline of a drain.
    pub drain_grace_ms: u64,
    /// Failed first starts after which a deploy fails, where the code or its limits are at fault.
    pub deploy_tries: u32,
    /// The same counting the platform's own failures too.
    pub deploy_tries_in_all: u32,
    /// How long a deploy waits for room, and, once proved, for as many ready instances as the
    /// traffic needs.
    pub deploy_patience_ms: u64,
    /// Below this part of free memory on a node, in percent, idle instances above their minimum
    /// go before their idle time is over.
    pub headroom_percent: u32,
    /// A function without a request for this long may be reclaimed under that pressure.
    pub reclaim_idle_ms: u64,
}

impl Default for PlannerConfig {
    fn default() -> Self {
        Self {
            scaling: ScalingConfig::default(),
            stems: StemConfig::default(),
            drain_grace_ms: 10_000,
            deploy_tries: 2,
            deploy_tries_in_all: 5,
            deploy_patience_ms: 60_000,
            headroom_percent: 10,
            reclaim_idle_ms: 2_000,
        }
    }
}
