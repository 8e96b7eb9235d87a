//! What the agent knows of its instances: a plain value whose methods are the only transitions.

use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use coracle_driver::{Launched, Survivor};
use coracle_model::{ExitReason, InstanceId, InstanceSpec, InstanceState, RevisionId, Timestamp};
use tokio::sync::oneshot;

use crate::{
    artifacts::Hold,
    desired::Want,
    reconcile::{Action, Seen, Wanted, reconcile},
};

/// Exits that nobody asked to forget yet; beyond it the oldest goes, counted as dropped.
pub(super) const EXITS_MAX: usize = 4096;
/// Ends of instances that are forgotten otherwise, for gateways that ask late.
const RECENT_MAX: usize = 1024;
/// Calls that wait for instances.
pub(super) const WAITERS_MAX: usize = 65_536;

/// What whoever waits for an instance gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Ready(Ready),
    Failed(ExitReason),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    pub socket: PathBuf,
    /// How it came to be, as [`coracle_driver::Origin::as_str`] says it.
    pub origin: &'static str,
    pub start: Duration,
    pub init: Duration,
}

/// Whether a new connection can be made to an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reach {
    Starting,
    Ready(PathBuf),
    Ending,
    /// Or over.
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Phase {
    Starting {
        stop: Option<Duration>,
    },
    Ready,
    Draining {
        until: Timestamp,
    },
    /// `stopped`: since when the driver says that it is gone.
    Stopping {
        stopped: Option<Timestamp>,
    },
    Exited(ExitReason),
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) revision: RevisionId,
    memory_mib: u32,
    cpu_millis: u32,
    concurrency: u32,
    pub(super) phase: Phase,
    since: Timestamp,
    ready: Option<Ready>,
    /// Keeps its artifacts on the disk.
    hold: Option<Hold>,
    /// Number of the first report of this session that held its end.
    reported: Option<u64>,
    acknowledged: bool,
}

/// One instance as reports and `describe` show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    pub id: InstanceId,
    pub revision: RevisionId,
    pub state: InstanceState,
    pub since: Timestamp,
    pub memory_mib: u32,
    pub cpu_millis: u32,
    pub concurrency: u32,
    /// Empty before it is ready.
    pub socket: PathBuf,
}

#[derive(Debug, Default)]
pub(crate) struct Table {
    entries: BTreeMap<InstanceId, Entry>,
    waiters: BTreeMap<InstanceId, Vec<oneshot::Sender<Outcome>>>,
    waiting: usize,
    recent: VecDeque<(InstanceId, ExitReason)>,
}

/// What the driver has to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Work {
    Launch(Arc<InstanceSpec>),
    /// Gracefully, within this time.
    Stop(InstanceId, Duration),
}

impl Table {
    /// Decides what has to be done for what runs to be what is wanted, and notes it as begun.
    pub(crate) fn follow(
        &mut self,
        desired: &BTreeMap<InstanceId, Want>,
        grace: Duration,
        now: Timestamp,
    ) -> (Vec<Action>, Vec<Work>) {
        let wanted = desired
            .iter()
            .map(|(id, want)| (*id, Wanted { drain: want.drain }))
            .collect();
        let actions = reconcile(&wanted, &self.seen(), grace);
        let mut work = Vec::new();
        for action in &actions {
            match *action {
                Action::Launch(id) => {
                    let spec = Arc::clone(&desired[&id].spec);
                    self.starting(&spec, now);
                    work.push(Work::Launch(spec));
                }
                Action::Drain(id, until) => {
                    self.draining(id, until, now);
                    work.push(Work::Stop(id, Duration::from_millis(until.since(now))));
                }
                Action::Stop(id, grace) => {
                    // Also one that starts: code that hangs while it loads is not waited for.
                    self.stopping(id, grace, now);
                    work.push(Work::Stop(id, grace));
                }
                Action::Forget(id) => self.forget(id),
            }
        }
        (actions, work)
    }

    pub(super) fn seen(&self) -> BTreeMap<InstanceId, Seen> {
        let seen = |entry: &Entry| match entry.phase {
            Phase::Starting { stop } => Seen::Starting {
                stopping: stop.is_some(),
            },
            Phase::Ready => Seen::Ready,
            Phase::Draining { until } => Seen::Draining { until },
            Phase::Stopping { .. } => Seen::Stopping,
            Phase::Exited(_) => Seen::Exited {
                acknowledged: entry.acknowledged,
            },
        };
        self.entries
            .iter()
            .map(|(id, entry)| (*id, seen(entry)))
            .collect()
    }

    pub(super) fn get(&self, id: InstanceId) -> Option<&Entry> {
        self.entries.get(&id)
    }

    pub(super) fn starting(&mut self, spec: &Arc<InstanceSpec>, now: Timestamp) {
        let entry = Entry {
            revision: spec.revision,
            memory_mib: spec.memory.mib(),
            cpu_millis: spec.cpu.get(),
            concurrency: spec.concurrency.get(),
            phase: Phase::Starting { stop: None },
            since: now,
            ready: None,
            hold: None,
            reported: None,
            acknowledged: false,
        };
        self.entries.insert(spec.id, entry);
    }

    pub(crate) fn adopted(&mut self, survivor: Survivor, hold: Hold) {
        let ready = Ready {
            socket: survivor.socket,
            origin: coracle_driver::Origin::Running.as_str(),
            start: Duration::ZERO,
            init: Duration::ZERO,
        };
        let entry = Entry {
            revision: survivor.revision,
            memory_mib: survivor.memory.mib(),
            cpu_millis: survivor.cpu.get(),
            concurrency: survivor.concurrency,
            phase: Phase::Ready,
            since: survivor.started_at,
            ready: Some(ready.clone()),
            hold: Some(hold),
            reported: None,
            acknowledged: false,
        };
        self.entries.insert(survivor.id, entry);
        self.answer(survivor.id, &Outcome::Ready(ready));
    }

    /// Replaces what keeps its artifacts. False when it ended meanwhile.
    pub(super) fn hold(&mut self, id: InstanceId, hold: Hold) -> bool {
        match self.entries.get_mut(&id) {
            Some(entry) if !matches!(entry.phase, Phase::Exited(_)) => {
                entry.hold = Some(hold);
                true
            }
            _ => false,
        }
    }

    pub(super) fn holds(&self, id: InstanceId) -> Option<&Hold> {
        self.entries.get(&id).and_then(|entry| entry.hold.as_ref())
    }

    /// A stop that was asked for during the launch, with its grace.
    pub(super) fn stop_asked(&self, id: InstanceId) -> Option<Duration> {
        match self.entries.get(&id)?.phase {
            Phase::Starting { stop } => stop,
            _ => None,
        }
    }

    /// The launch succeeded. Gives the grace when it is to be stopped right away.
    pub(crate) fn ready(
        &mut self,
        id: InstanceId,
        launched: Launched,
        now: Timestamp,
    ) -> Option<Duration> {
        let entry = self.entries.get_mut(&id)?;
        // It may have ended before the launch's answer was seen.
        let Phase::Starting { stop } = entry.phase else {
            return None;
        };
        let ready = Ready {
            socket: launched.socket,
            origin: launched.origin.as_str(),
            start: launched.start,
            init: launched.init,
        };
        entry.since = now;
        entry.ready = Some(ready.clone());
        if stop.is_some() {
            entry.phase = Phase::Stopping { stopped: None };
            self.answer(id, &Outcome::Failed(ExitReason::Stopped));
        } else {
            entry.phase = Phase::Ready;
            self.answer(id, &Outcome::Ready(ready));
        }
        stop
    }

    pub(super) fn draining(&mut self, id: InstanceId, until: Timestamp, now: Timestamp) {
        if let Some(entry) = self.entries.get_mut(&id) {
            if !matches!(entry.phase, Phase::Draining { .. }) {
                entry.since = now;
            }
            entry.phase = Phase::Draining { until };
        }
    }

    /// The driver is told now. Should a launch get ready all the same, it is told again then.
    pub(super) fn stopping(&mut self, id: InstanceId, grace: Duration, now: Timestamp) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        if let Phase::Starting { stop } = &mut entry.phase {
            *stop = Some(grace);
            return;
        }
        entry.phase = Phase::Stopping { stopped: None };
        entry.since = now;
    }

    /// The driver could not stop it: it counts as running again, and the next reconciliation
    /// tries anew.
    pub(super) fn stop_failed(&mut self, id: InstanceId) {
        if let Some(entry) = self.entries.get_mut(&id)
            && matches!(entry.phase, Phase::Draining { .. } | Phase::Stopping { .. })
        {
            entry.phase = Phase::Ready;
        }
    }

    /// The driver says that it is gone. Its exit is on its way and brings the reason.
    pub(crate) fn stop_done(&mut self, id: InstanceId, now: Timestamp) {
        if let Some(entry) = self.entries.get_mut(&id)
            && matches!(entry.phase, Phase::Draining { .. } | Phase::Stopping { .. })
        {
            entry.phase = Phase::Stopping { stopped: Some(now) };
        }
    }

    /// Instances that the driver called gone `after` ago without an exit ever coming.
    pub(crate) fn overdue(&self, now: Timestamp, after: Duration) -> Vec<InstanceId> {
        let overdue = |entry: &Entry| match entry.phase {
            Phase::Stopping { stopped: Some(at) } => u128::from(now.since(at)) >= after.as_millis(),
            _ => false,
        };
        self.entries
            .iter()
            .filter(|(_, entry)| overdue(entry))
            .map(|(id, _)| *id)
            .collect()
    }

    /// It ended. `None` when that was known or nobody knows it; otherwise the reason as it is
    /// reported: an end that the scheduler asked for is not the function's fault.
    pub(crate) fn exited(
        &mut self,
        id: InstanceId,
        reason: ExitReason,
        now: Timestamp,
    ) -> Option<ExitReason> {
        let entry = self.entries.get_mut(&id)?;
        let asked = match entry.phase {
            Phase::Exited(_) => return None,
            Phase::Draining { .. } | Phase::Stopping { .. } => true,
            Phase::Starting { stop } => stop.is_some(),
            Phase::Ready => false,
        };
        let reason = match reason {
            ExitReason::Exited { .. } | ExitReason::Signaled { .. } if asked => ExitReason::Stopped,
            reason => reason,
        };
        entry.phase = Phase::Exited(reason.clone());
        entry.since = now;
        entry.hold = None;
        entry.ready = None;
        self.answer(id, &Outcome::Failed(reason.clone()));
        self.recent.push_back((id, reason.clone()));
        let excess = self.recent.len().saturating_sub(RECENT_MAX);
        self.recent.drain(..excess);
        Some(reason)
    }

    pub(super) fn forget(&mut self, id: InstanceId) {
        self.entries.remove(&id);
    }

    /// Drops the ends that have waited longest for somebody to hear of them. Gives how many.
    pub(super) fn bound_exits(&mut self, most: usize) -> usize {
        let ended = |entry: &Entry| matches!(entry.phase, Phase::Exited(_));
        let mut ends: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, entry)| ended(entry))
            .map(|(id, entry)| (entry.since, *id))
            .collect();
        let excess = ends.len().saturating_sub(most);
        ends.sort_unstable();
        for (_, id) in ends.iter().take(excess) {
            self.entries.remove(id);
        }
        excess
    }

    /// Everything for one report; ends are marked as told in report `number`.
    pub(crate) fn report(&mut self, number: u64) -> Vec<Observed> {
        let mut all = Vec::with_capacity(self.entries.len());
        for (id, entry) in &mut self.entries {
            let state = match &entry.phase {
                Phase::Starting { .. } => InstanceState::Starting,
                Phase::Ready => InstanceState::Ready,
                Phase::Draining { .. } | Phase::Stopping { .. } => InstanceState::Draining,
                Phase::Exited(_) if entry.acknowledged => continue,
                Phase::Exited(reason) => {
                    entry.reported.get_or_insert(number);
                    InstanceState::Exited(reason.clone())
                }
            };
            all.push(Observed {
                id: *id,
                revision: entry.revision,
                state,
                since: entry.since,
                memory_mib: entry.memory_mib,
                cpu_millis: entry.cpu_millis,
                concurrency: entry.concurrency,
                socket: entry
                    .ready
                    .as_ref()
                    .map(|ready| ready.socket.clone())
                    .unwrap_or_default(),
            });
        }
        all
    }

    /// The leader has everything up to report `number`.
    pub(crate) fn acknowledged(&mut self, number: u64) {
        for entry in self.entries.values_mut() {
            if entry.reported.is_some_and(|reported| reported <= number) {
                entry.acknowledged = true;
            }
        }
    }

    /// Report numbers start over, and whoever leads now is told everything.
    pub(crate) fn new_session(&mut self) {
        for entry in self.entries.values_mut() {
            entry.reported = None;
            entry.acknowledged = false;
        }
    }

    /// How it stands, where that is final for whoever waits.
    pub(crate) fn outcome(&self, id: InstanceId) -> Option<Outcome> {
        let Some(entry) = self.entries.get(&id) else {
            let (_, reason) = self.recent.iter().rev().find(|(ended, _)| *ended == id)?;
            return Some(Outcome::Failed(reason.clone()));
        };
        match &entry.phase {
            Phase::Starting { .. } => None,
            Phase::Ready => entry.ready.clone().map(Outcome::Ready),
            Phase::Draining { .. } | Phase::Stopping { .. } => {
                Some(Outcome::Failed(ExitReason::Stopped))
            }
            Phase::Exited(reason) => Some(Outcome::Failed(reason.clone())),
        }
    }

    pub(super) fn reach(&self, id: InstanceId) -> Reach {
        let Some(entry) = self.entries.get(&id) else {
            return Reach::Unknown;
        };
        match (&entry.phase, &entry.ready) {
            (Phase::Starting { .. }, _) => Reach::Starting,
            (Phase::Ready, Some(ready)) => Reach::Ready(ready.socket.clone()),
            (Phase::Ready | Phase::Draining { .. } | Phase::Stopping { .. }, _) => Reach::Ending,
            (Phase::Exited(_), _) => Reach::Unknown,
        }
    }

    /// `None` when too many wait already.
    pub(super) fn wait(&mut self, id: InstanceId) -> Option<oneshot::Receiver<Outcome>> {
        if self.waiting >= WAITERS_MAX {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        self.waiting += 1;
        self.waiters.entry(id).or_default().push(sender);
        Some(receiver)
    }

    /// Drops the senders of those who gave up waiting for `id`.
    pub(super) fn gave_up(&mut self, id: InstanceId) {
        if let Some(waiters) = self.waiters.get_mut(&id) {
            let before = waiters.len();
            waiters.retain(|waiter| !waiter.is_closed());
            self.waiting -= before - waiters.len();
            if waiters.is_empty() {
                self.waiters.remove(&id);
            }
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        let mut counts = Counts {
            waiting: self.waiting,
            ..Counts::default()
        };
        for entry in self.entries.values() {
            match entry.phase {
                Phase::Starting { .. } => counts.starting += 1,
                Phase::Ready => counts.ready += 1,
                Phase::Draining { .. } | Phase::Stopping { .. } => counts.draining += 1,
                Phase::Exited(_) => counts.exited += 1,
            }
        }
        counts
    }

    pub(super) fn live(&self) -> Vec<InstanceId> {
        let live = |entry: &Entry| !matches!(entry.phase, Phase::Exited(_));
        self.entries
            .iter()
            .filter(|(_, entry)| live(entry))
            .map(|(id, _)| *id)
            .collect()
    }

    fn answer(&mut self, id: InstanceId, outcome: &Outcome) {
        for waiter in self.waiters.remove(&id).unwrap_or_default() {
            self.waiting -= 1;
            // Whoever gave up this very moment needs no answer.
            let _ = waiter.send(outcome.clone());
        }
    }
}

/// Instances by how they stand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub starting: usize,
    pub ready: usize,
    pub draining: usize,
    /// Ended, and not forgotten yet.
    pub exited: usize,
    /// Calls that wait for one.
    pub waiting: usize,
}
