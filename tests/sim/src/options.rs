//! What is run: a seed, its size, and a bug that was planted on purpose.

use crate::rng::Rng;

/// A mistake in the simulator's wrappers around the real parts, as it could be in the parts. The
/// simulator is worth something only while it finds each of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planted {
    /// A vote leaves before it is on the disk.
    VotesBeforeSync,
    /// Entries are acknowledged before they are on the disk.
    AcknowledgementsBeforeSync,
    /// Snapshots leave out which writes were applied.
    DeduplicationLostAtSnapshot,
    /// An agent takes orders of whoever sends some, and remembers none.
    OlderStampAccepted,
    /// A new leader plans without having heard its agents.
    ScaleDownBeforeCollection,
    /// A gateway repeats a request that it had sent.
    RetryAfterSend,
}

#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub seed: u64,
    /// Events before the faults end.
    pub events: u64,
    pub planted: Option<Planted>,
    /// Prints every event.
    pub trace: bool,
    /// Whether states are compared byte by byte. Without it a bug has to be seen by what clients
    /// and instances see of it.
    pub compare_states: bool,
}

impl Options {
    pub const EVENTS: u64 = 10_000;

    pub fn seed(seed: u64) -> Self {
        Self {
            seed,
            events: Self::EVENTS,
            planted: None,
            trace: false,
            compare_states: true,
        }
    }
}

/// How rough this seed is. Drawn anew for each, so that some seeds are all about elections and
/// others about long partitions: with everything at medium strength everywhere, combinations of
/// rare things would never happen.
#[derive(Debug, Clone)]
pub(crate) struct Profile {
    pub(crate) members: u64,
    pub(crate) machines: u64,
    pub(crate) gateways: u64,
    pub(crate) launch_ms: u64,
    pub(crate) call_ms: u64,
    pub(crate) run_ms: u64,
    pub(crate) clients: u64,
    /// While a leader is cut off, agents go to and fro between it and the new one.
    pub(crate) shaky: bool,
    pub(crate) keys: u64,
    pub(crate) tick_ms: u64,
    pub(crate) election_ticks: u64,
    pub(crate) latency: (u64, u64),
    /// Of ten thousand, all of these.
    pub(crate) drop: u64,
    pub(crate) duplicate: u64,
    pub(crate) late: u64,
    /// Crashes in the middle of writing to the disk, per event at a member.
    pub(crate) cut_inside: u64,
    /// Crashes right after a vote left, with a quick restart.
    pub(crate) cut_after_vote: u64,
    /// Mean time between faults, and how long each lasts.
    pub(crate) fault_every_ms: u64,
    pub(crate) fault_lasts_ms: u64,
    pub(crate) partitions: bool,
    pub(crate) crashes: bool,
    /// Crash everybody now and then.
    pub(crate) blackouts: bool,
    pub(crate) skew_ms: u64,
    /// Clocks that run this much too fast or too slow, in thousandths.
    pub(crate) drift: u64,
    pub(crate) snapshot_every: u64,
    pub(crate) keep_entries: u64,
    pub(crate) think_ms: u64,
}

impl Profile {
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        let some = |rng: &mut Rng, chance: u64| rng.chance(chance);
        let general = Self {
            shaky: false,
            members: *rng.pick(&[3, 3, 3, 3, 3, 3, 5, 5, 1]),
            machines: rng.between(1, 4),
            gateways: rng.between(1, 3),
            launch_ms: *rng.pick(&[10, 100, 600]),
            call_ms: *rng.pick(&[100, 300, 1_500]),
            run_ms: *rng.pick(&[10, 100, 800]),
            clients: rng.between(2, 5),
            keys: rng.between(1, 4),
            tick_ms: 100,
            election_ticks: *rng.pick(&[3, 3, 5, 10]),
            latency: *rng.pick(&[(1, 3), (1, 20), (5, 120), (1, 400)]),
            drop: *rng.pick(&[0, 0, 50, 300, 1_000]),
            duplicate: *rng.pick(&[0, 100, 2_000]),
            late: *rng.pick(&[0, 0, 100]),
            cut_inside: *rng.pick(&[0, 0, 20, 100]),
            cut_after_vote: *rng.pick(&[0, 1_000, 5_000]),
            fault_every_ms: *rng.pick(&[300, 1_000, 3_000, 8_000]),
            fault_lasts_ms: *rng.pick(&[200, 1_000, 4_000]),
            partitions: some(rng, 8_000),
            crashes: some(rng, 8_500),
            blackouts: some(rng, 3_000),
            skew_ms: *rng.pick(&[0, 300, 5_000, 3_600_000]),
            drift: *rng.pick(&[0, 0, 20, 100]),
            snapshot_every: *rng.pick(&[8, 25, 60, 10_000]),
            keep_entries: *rng.pick(&[0, 5, 20]),
            think_ms: *rng.pick(&[20, 80, 250]),
        };
        match rng.below(4) {
            // All elections, with votes that cross each other.
            0 => Self {
                members: 3,
                machines: 1,
                gateways: 1,
                call_ms: 1_500,
                clients: 2,
                think_ms: 250,
                election_ticks: 3,
                latency: *rng.pick(&[(5, 120), (1, 400)]),
                duplicate: 2_000,
                cut_after_vote: 5_000,
                fault_every_ms: 300,
                fault_lasts_ms: 200,
                ..general
            },
            // All about who leads the agents.
            1 => Self {
                members: 3,
                shaky: true,
                election_ticks: 10,
                partitions: true,
                crashes: false,
                latency: *rng.pick(&[(1, 3), (1, 20)]),
                drop: 0,
                fault_every_ms: 5_000,
                fault_lasts_ms: 1_000,
                ..general
            },
            _ => general,
        }
    }
}

impl std::str::FromStr for Planted {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|(known, _)| *known == name);
        found
            .map(|(_, planted)| *planted)
            .ok_or_else(|| format!("no planted bug is called {name}"))
    }
}

impl Planted {
    pub const ALL: [(&str, Self); 6] = [
        ("votes", Self::VotesBeforeSync),
        ("acknowledgements", Self::AcknowledgementsBeforeSync),
        ("deduplication", Self::DeduplicationLostAtSnapshot),
        ("stamp", Self::OlderStampAccepted),
        ("collection", Self::ScaleDownBeforeCollection),
        ("retry", Self::RetryAfterSend),
    ];
}
