//! One controller: the real replica core over the real state machine, on a disk that can fail.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use coracle_controller::{
    BackoffConfig, LeaderConfig, PlannerConfig, ScalingConfig,
    testing::{Leader, State},
};
use coracle_model::{Refusal, WriteId};
use coracle_proto::{Wire as _, v1};
use coracle_replica::{
    Command, Config, Machine, MachineError, MemLog, Role, SnapshotPolicy, Status,
    testing::{Core, Done, Message, Output, Position},
};
use prost::Message as _;

use crate::{
    disk::Disk,
    lead::Lead,
    options::{Options, Planted, Profile},
    oracle::Oracle,
};

/// The real state machine, watched.
#[derive(Debug)]
pub(crate) struct Checked {
    inner: State,
    member: u64,
    oracle: Oracle,
    compare: bool,
    planted: Option<Planted>,
}

impl Checked {
    /// At the end, all of it.
    pub(crate) fn compare(&self, index: u64) {
        if self.compare {
            let state = self.inner.snapshot();
            self.oracle.state(self.member, index, &state);
        }
    }
}

impl Machine for Checked {
    type Response = Result<(), Refusal>;

    fn apply(&mut self, command: Command<'_>) -> Result<Self::Response, MachineError> {
        let Command { index, term, bytes } = command;
        self.oracle.applied(self.member, index, term, bytes);
        let outcome = self.inner.apply(command)?;
        let wire = v1::Command::decode(bytes)?;
        let write = WriteId::from_wire("write_id", wire.write_id)?;
        self.oracle.written(write, &outcome);
        if self.compare {
            let shown = format!("{outcome:?}");
            self.oracle.outcome(self.member, index, &shown);
        }
        Ok(outcome)
    }

    fn batch_applied(&mut self, index: u64) {
        self.inner.batch_applied(index);
        // Not each: encoding all outcomes of writes each time would be most of the work.
        if self.compare && index > 0 && (index < 40 || index.is_multiple_of(4)) {
            let state = self.inner.snapshot();
            self.oracle.state(self.member, index, &state);
        }
    }

    fn snapshot(&self) -> Vec<u8> {
        let snapshot = self.inner.snapshot();
        if self.planted != Some(Planted::DeduplicationLostAtSnapshot) {
            return snapshot;
        }
        let mut decoded = v1::Snapshot::decode(&snapshot[..]).expect("just encoded");
        decoded.applied_writes.clear();
        decoded.encode_to_vec()
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), MachineError> {
        self.inner.restore(snapshot)
    }
}

/// Who waits for a proposal or a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Waiter {
    pub(crate) client: u64,
    pub(crate) attempt: u64,
    pub(crate) key: u64,
    pub(crate) asked: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Outbox {
    pub(crate) messages: Vec<Message>,
    pub(crate) applied: Vec<(Position, bool, Result<(), Refusal>)>,
    pub(crate) reads: Vec<(u64, u64)>,
}

impl Output<Result<(), Refusal>> for Outbox {
    fn send(&mut self, message: Message) {
        self.messages.push(message);
    }

    fn applied(&mut self, done: Done<Result<(), Refusal>>) {
        let Done {
            index,
            term,
            leading,
            response,
        } = done;
        self.applied
            .push((Position { index, term }, leading, response));
    }

    fn read_confirmed(&mut self, context: u64, index: u64) {
        self.reads.push((context, index));
    }
}

/// A member that is up. The queues are those of the replica's driver.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) core: Core<Disk, Checked>,
    pub(crate) leader: Leader,
    pub(crate) proposals: VecDeque<(Position, Waiter)>,
    pub(crate) reads_queued: Vec<Waiter>,
    /// By context, with their age in ticks.
    pub(crate) reads_sent: BTreeMap<u64, (u32, Vec<Waiter>)>,
    pub(crate) reads_confirmed: Vec<(u64, Waiter)>,
    pub(crate) next_context: u64,
    /// The term in which the waiters were taken in.
    pub(crate) leading: Option<u64>,
    pub(crate) lead: Lead,
}

#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) up: Option<Box<Running>>,
    /// What is left of it while it is down.
    down: Option<MemLog>,
    /// Counts starts: timers of an earlier life mean nothing.
    pub(crate) life: u64,
}

impl Member {
    pub(crate) fn new(id: u64) -> Self {
        Self {
            up: None,
            down: Some(MemLog::new(id)),
            life: 0,
        }
    }

    pub(crate) fn status(&self) -> Option<Status> {
        self.up.as_ref().map(|running| running.core.status())
    }

    /// Power goes: what was not synced is lost but for the first `kept` writes of it.
    pub(crate) fn crash(&mut self, kept: impl FnOnce(usize) -> usize) {
        if let Some(running) = self.up.take() {
            let disk = running.core.into_log();
            let kept = kept(disk.unsynced());
            self.down = Some(disk.into_log().cut(kept));
        }
    }

    /// False when it is up already.
    pub(crate) fn start(
        &mut self,
        id: u64,
        options: &Options,
        profile: &Profile,
        oracle: &Oracle,
    ) -> bool {
        let Some(log) = self.down.take() else {
            return false;
        };
        self.life += 1;
        let (leader, state) = Leader::new(planner(), backoff(), leading(options.planted));
        let machine = Checked {
            inner: state,
            member: id,
            oracle: oracle.clone(),
            // Alone there is nobody to compare with.
            compare: options.compare_states && profile.members > 1,
            planted: options.planted,
        };
        let config = Config {
            election_ticks: usize::try_from(profile.election_ticks).expect("small"),
            seed: options.seed ^ (id << 32),
            boot: self.life,
            snapshots: SnapshotPolicy {
                every_entries: profile.snapshot_every,
                every_bytes: u64::MAX,
                keep_entries: profile.keep_entries,
            },
            ..Config::member(id, (1..=profile.members).collect())
        };
        let core = match Core::new(&config, Disk::new(log, options.planted), machine) {
            Ok(core) => core,
            Err(fatal) => {
                oracle.fail(format!("member {id} does not start: {fatal:?}"));
                return false;
            }
        };
        self.up = Some(Box::new(Running {
            core,
            leader,
            proposals: VecDeque::new(),
            reads_queued: Vec::new(),
            reads_sent: BTreeMap::new(),
            reads_confirmed: Vec::new(),
            next_context: 0,
            leading: None,
            lead: Lead::default(),
        }));
        true
    }
}

/// A tenth of the usual times, so that a seed of a minute sees everything.
fn planner() -> PlannerConfig {
    PlannerConfig {
        scaling: ScalingConfig {
            stable_window_ms: 6_000,
            panic_window_ms: 1_000,
            idle_ms: 4_000,
            demand_stale_ms: 1_500,
            ..ScalingConfig::default()
        },
        drain_grace_ms: 500,
        deploy_patience_ms: 6_000,
        reclaim_idle_ms: 500,
        ..PlannerConfig::default()
    }
}

fn backoff() -> BackoffConfig {
    BackoffConfig {
        first_ms: 200,
        most_ms: 5_000,
        answered_most_ms: 500,
        healthy_after_ms: 1_000,
        ..BackoffConfig::default()
    }
}

pub(crate) fn leading(planted: Option<Planted>) -> LeaderConfig {
    let usual = LeaderConfig {
        tick: Duration::from_millis(500),
        collect_deadline: Duration::from_millis(1_500),
        collect_settle: Duration::from_millis(100),
        node_grace: Duration::from_millis(4_000),
        ..LeaderConfig::default()
    };
    if planted == Some(Planted::ScaleDownBeforeCollection) {
        return LeaderConfig {
            collect_deadline: Duration::ZERO,
            collect_settle: Duration::ZERO,
            ..usual
        };
    }
    usual
}

/// What the replica's driver does around its core.
impl Running {
    /// Raft drops a read request while the leader has committed nothing in its own term, and where
    /// no leader is known.
    pub(crate) fn ask_for_reads(&mut self) {
        let status = self.core.status();
        let follows = status.role == Role::Follower && status.leader.is_some();
        if self.reads_queued.is_empty() || !(status.caught_up || follows) {
            return;
        }
        self.next_context += 1;
        let waiters = std::mem::take(&mut self.reads_queued);
        self.reads_sent.insert(self.next_context, (0, waiters));
        self.core.read_index(self.next_context);
    }

    /// Requests that raft may have lost are sent again, while somebody waits for them.
    pub(crate) fn age_reads(&mut self, patience: u32, since: u64) {
        let mut stale = Vec::new();
        for (context, (ticks, _)) in &mut self.reads_sent {
            *ticks += 1;
            if *ticks >= patience {
                stale.push(*context);
            }
        }
        for context in stale {
            let (_, waiters) = self.reads_sent.remove(&context).expect("just seen");
            self.reads_queued.extend(waiters);
        }
        self.reads_queued.retain(|waiter| waiter.asked >= since);
    }

    pub(crate) fn read_confirmed(&mut self, context: u64, index: u64) {
        let (_, waiters) = self.reads_sent.remove(&context).unwrap_or_default();
        let confirmed = waiters.into_iter().map(|waiter| (index, waiter));
        self.reads_confirmed.extend(confirmed);
    }

    pub(crate) fn readable(&mut self, applied: u64) -> Vec<Waiter> {
        let (ready, later) = std::mem::take(&mut self.reads_confirmed)
            .into_iter()
            .partition(|(index, _)| *index <= applied);
        self.reads_confirmed = later;
        let ready: Vec<(u64, Waiter)> = ready;
        ready.into_iter().map(|(_, waiter)| waiter).collect()
    }

    /// Proposals that were overtaken, and the one that this is, if somebody here waits for it.
    pub(crate) fn applied(&mut self, at: Position) -> (Vec<Waiter>, Option<Waiter>) {
        let mut dropped = Vec::new();
        while let Some((_, waiter)) = self.proposals.pop_front_if(|(p, _)| p.index < at.index) {
            dropped.push(waiter);
        }
        let waiter = self.proposals.pop_front_if(|(p, _)| *p == at);
        (dropped, waiter.map(|(_, waiter)| waiter))
    }

    /// Lets go of everyone when the term in which this member led has ended: their commands may
    /// survive under the next leader, or not.
    pub(crate) fn check_leadership(&mut self, status: &Status) -> Vec<Waiter> {
        let leading = (status.role == Role::Leader).then_some(status.term);
        let mut let_go = Vec::new();
        if leading != self.leading {
            while let Some((_, waiter)) = self
                .proposals
                .pop_front_if(|(p, _)| Some(p.term) != leading)
            {
                let_go.push(waiter);
            }
        }
        self.leading = leading;
        let_go
    }
}
