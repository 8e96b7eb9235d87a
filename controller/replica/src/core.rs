//! One member of the group without threads, sockets or clocks: raft, the log and the state
//! machine, moved by whoever calls. The same calls in the same order give the same results.

#![cfg_attr(
    not(feature = "testing"),
    allow(unreachable_pub, reason = "shown to simulations by `crate::testing`")
)]

use std::{cell::Cell, collections::BTreeMap};

use protobuf::Message as _;
use raft::{
    ProgressState, RawNode, SnapshotStatus, StateRole,
    eraftpb::{
        ConfChange, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2,
        ConfState, Entry, EntryType, HardState, Message, MessageType,
    },
};

use crate::{
    config::{Config, SnapshotPolicy},
    error::Fatal,
    log::{COMMAND_BYTES_MAX, Durability, LogStore, Snapshot, Write},
    logger::raft_logger,
    machine::{Command, Machine},
    membership::{Group, Member, Members, Progress, Step},
    replica::Saved,
    status::{Role, Status},
    storage::Storage,
};

/// Entries dropped from the log at a time, so that compaction never holds up a commit for long.
const COMPACT_STEP: u64 = 1_000;
/// Commands applied at a time when the state is rebuilt at start.
pub(crate) const REPLAY_BYTES: u64 = 1024 * 1024;
const MESSAGE_BYTES: u64 = 1024 * 1024;
const COMMITTED_BYTES: u64 = 4 * 1024 * 1024;
/// Beyond this much that no majority has, proposals are refused instead of kept in memory.
const UNCOMMITTED_BYTES: u64 = 16 * 1024 * 1024;
/// Index and term of what stands for the beginning in every member's log.
const FOUNDATION: (u64, u64) = (1, 1);
const INFLIGHT_MESSAGES: usize = 256;
const READ_CONTEXT_BYTES: usize = 24;

/// What comes out while a batch is worked through. Called in the order in which things may
/// happen: a message that is handed over may leave at once.
pub trait Output<R> {
    fn send(&mut self, message: Message);
    /// After the machine has published the batch.
    fn applied(&mut self, applied: Done<R>);
    /// A majority confirmed that this member led when the read came; it may be answered once
    /// `index` is applied.
    fn read_confirmed(&mut self, context: u64, index: u64);
    /// The group changed, by the entry at this position.
    fn members_changed(&mut self, _at: Position) {}
}

/// A command that was applied, and what came of it.
#[derive(Debug)]
pub struct Done<R> {
    pub index: u64,
    pub term: u64,
    pub leading: bool,
    pub response: R,
}

/// Where a proposal stands if it survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    pub index: u64,
    pub term: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    NotLeader { leader: Option<u64> },
    TooLarge { bytes: usize },
    Empty,
    Busy,
}

pub struct Core<S: LogStore, M: Machine> {
    raft: RawNode<Storage<S>>,
    machine: M,
    seed: u64,
    boot: u64,
    /// Counts [`Core::tick`].
    now: u64,
    /// When a member was last heard from.
    heard: BTreeMap<u64, u64>,
    /// Rises whenever the group changed.
    group_version: u64,
    /// It applied that it is no voter any more, and leads.
    step_down: bool,
    policy: SnapshotPolicy,
    applied: u64,
    /// Bytes of commands applied since the last snapshot.
    unsaved_bytes: u64,
    /// The log may be dropped up to here; None when there is nothing to drop.
    compact_to: Option<u64>,
}

impl<S: LogStore, M: Machine> Core<S, M> {
    /// Rebuilds the state from the snapshot and the log. A single voter stands for election at
    /// once; it leads after the next [`Core::advance`].
    pub fn new(config: &Config, mut log: S, mut machine: M) -> Result<Self, Fatal> {
        let blank = log.last_index() == 0 && log.state().members == ConfState::default();
        if blank && !config.voters.is_empty() {
            found(&mut log, &config.voters, &machine)?;
        }
        let unsaved_bytes = recover(&log, &mut machine)?;
        let applied = log.state().applied;
        machine.batch_applied(applied);
        let alone = log.state().members.voters == [config.id];
        let storage = Storage {
            log,
            snapshot_wanted: Cell::new(false),
        };
        let raft = RawNode::new(&raft_config(config, applied), storage, &raft_logger())
            .map_err(|error| Fatal::Raft(error.into()))?;
        let mut core = Self {
            raft,
            machine,
            seed: config.seed,
            boot: config.boot,
            now: 0,
            heard: BTreeMap::new(),
            group_version: 0,
            step_down: false,
            policy: config.snapshots,
            applied,
            unsaved_bytes,
            compact_to: None,
        };
        if alone {
            core.raft
                .campaign()
                .map_err(|error| Fatal::Raft(error.into()))?;
        }
        Ok(core)
    }

    pub fn tick(&mut self) {
        self.now += 1;
        // Raft draws election timeouts from the thread's generator, which would make runs
        // unrepeatable. It only looks at the drawn value in here.
        let raft = &mut self.raft.raft;
        let shortest = raft.election_timeout();
        let drawn = scramble(self.seed ^ scramble(raft.term)) % shortest as u64;
        let drawn = usize::try_from(drawn).expect("below a usize");
        raft.set_randomized_election_timeout(shortest + drawn);
        self.raft.tick();
    }

    /// A message from a peer. Raft's own complaints (an unknown member, a message that only makes
    /// sense locally) mean nothing to anyone but a debugger: the sender repeats what matters.
    pub fn step(&mut self, message: Message) {
        if !is_from_a_member(&message, self.raft.raft.id) {
            tracing::debug!(from = message.from, "message that no member sends dropped");
            return;
        }
        self.heard.insert(message.from, self.now);
        if let Err(error) = self.raft.step(message) {
            tracing::debug!(%error, "message from a peer ignored");
        }
    }

    pub fn propose(&mut self, command: Vec<u8>) -> Result<Position, Refused> {
        if command.is_empty() {
            // Raft's own empty entries open each term, and do not reach the machine.
            return Err(Refused::Empty);
        }
        if command.len() > COMMAND_BYTES_MAX {
            return Err(Refused::TooLarge {
                bytes: command.len(),
            });
        }
        self.check_leading()?;
        self.raft.propose(Vec::new(), command).map_err(|error| {
            tracing::debug!(%error, "proposal dropped");
            Refused::Busy
        })?;
        Ok(self.last_position())
    }

    /// Proposes a change of the group as it is. Raft takes one at a time, and would replace a
    /// second one by an entry that says nothing: see [`Core::is_changing`].
    pub fn propose_membership(&mut self, change: ConfChangeV2) -> Result<Position, Refused> {
        self.check_leading()?;
        if self.is_changing() {
            return Err(Refused::Busy);
        }
        self.raft
            .propose_conf_change(Vec::new(), change)
            .map_err(|_| Refused::Busy)?;
        Ok(self.last_position())
    }

    pub(crate) fn propose_step(&mut self, step: Step) -> Result<Option<Position>, Refused> {
        let (kind, id) = match step {
            Step::AddLearner(id) | Step::Demote(id) => (ConfChangeType::AddLearnerNode, id),
            Step::Promote(id) => (ConfChangeType::AddNode, id),
            Step::Remove(id) => (ConfChangeType::RemoveNode, id),
            Step::Nothing | Step::HandOver(_) => return Ok(None),
        };
        let mut single = ConfChangeSingle {
            node_id: id,
            ..ConfChangeSingle::default()
        };
        single.set_change_type(kind);
        let mut change = ConfChangeV2::default();
        change.set_transition(ConfChangeTransition::Auto);
        change.set_changes(vec![single].into());
        self.propose_membership(change).map(Some)
    }

    /// A change may be under way, of this term or of an earlier one.
    pub fn is_changing(&self) -> bool {
        self.raft.raft.has_pending_conf()
    }

    /// Whether the group no longer has this member, as it learned from its own log.
    pub fn is_removed(&self) -> bool {
        let group = self.group();
        !group.is_empty() && !group.contains(self.raft.raft.id)
    }

    /// A peer says that, as of this index, this member is not one. A peer that knows less of the
    /// log than this member does may simply not have heard of it yet.
    pub(crate) fn is_removed_as_of(&self, index: u64) -> bool {
        index > self.applied && !self.group().is_empty()
    }

    pub fn group(&self) -> Group {
        Group::of(&self.raft.store().log.state().members, self.applied)
    }

    pub(crate) fn group_version(&self) -> u64 {
        self.group_version
    }

    pub fn members(&self) -> Members {
        let raft = &self.raft.raft;
        let leading = raft.state == StateRole::Leader;
        let patience = raft.election_timeout() as u64 * 2;
        let group = self.group();
        let member = |id: &u64| Member {
            id: *id,
            progress: raft
                .prs()
                .get(*id)
                .filter(|_| leading)
                .map(|known| Progress {
                    matched: known.matched,
                    active: *id == raft.id
                        || self
                            .heard
                            .get(id)
                            .is_some_and(|at| at + patience >= self.now),
                    snapshot: known.state == ProgressState::Snapshot,
                }),
        };
        Members {
            voters: group.voters.iter().map(member).collect(),
            learners: group.learners.iter().map(member).collect(),
            leader: self.leader(),
            last_index: raft.raft_log.last_index(),
            applied: self.applied,
        }
    }

    /// Raft would forward to the leader, out of sight of whoever waits; here the caller is told
    /// whom to ask.
    fn check_leading(&self) -> Result<(), Refused> {
        if self.raft.raft.state == StateRole::Leader {
            return Ok(());
        }
        Err(Refused::NotLeader {
            leader: self.leader(),
        })
    }

    fn last_position(&self) -> Position {
        let raft = &self.raft.raft;
        Position {
            index: raft.raft_log.last_index(),
            term: raft.term,
        }
    }

    /// Asks a majority whether this member still leads or, on a follower, has the leader ask.
    /// Without effect unless [`Status::caught_up`], here or there; may be lost, so the caller
    /// repeats it.
    pub fn read_index(&mut self, context: u64) {
        let mut bytes = Vec::with_capacity(READ_CONTEXT_BYTES);
        for part in [self.raft.raft.id, self.boot, context] {
            bytes.extend(part.to_be_bytes());
        }
        self.raft.read_index(bytes);
    }

    /// The caller's part of what a read was asked under. Several members' reads meet at the leader,
    /// and an answer to an earlier life of this member would be too old.
    fn own_read(&self, context: &[u8]) -> Option<u64> {
        let context: &[u8; READ_CONTEXT_BYTES] = context.try_into().ok()?;
        let (own, context) = context.split_last_chunk::<8>()?;
        let mut expected = self.raft.raft.id.to_be_bytes().to_vec();
        expected.extend(self.boot.to_be_bytes());
        (own == expected).then(|| u64::from_be_bytes(*context))
    }

    pub fn unreachable(&mut self, peer: u64) {
        self.raft.report_unreachable(peer);
    }

    pub fn snapshot_sent(&mut self, peer: u64, arrived: bool) {
        let status = if arrived {
            SnapshotStatus::Finish
        } else {
            SnapshotStatus::Failure
        };
        self.raft.report_snapshot(peer, status);
    }

    /// Begins to hand leadership to the voter that has most of the log. False when there is
    /// nobody to hand it to.
    pub fn hand_over(&mut self) -> bool {
        let me = self.raft.raft.id;
        if self.raft.raft.state != StateRole::Leader {
            return false;
        }
        let Some(heir) = self.members().heir(me) else {
            return false;
        };
        self.transfer(heir);
        true
    }

    /// Begins to hand leadership to this voter; raft gives up after an election timeout.
    pub fn transfer(&mut self, to: u64) {
        self.raft.transfer_leader(to);
    }

    pub fn is_transferring(&self) -> bool {
        self.raft.raft.lead_transferee.is_some()
    }

    pub fn has_work(&self) -> bool {
        self.raft.has_ready() || self.compact_to.is_some()
    }

    /// Works through one batch, if there is one: sends, applies, stores, acknowledges, in the
    /// order on which raft's safety rests. Draining all input first is what makes batches large.
    pub fn advance(&mut self, out: &mut impl Output<M::Response>) -> Result<(), Fatal> {
        if self.raft.has_ready() {
            self.work_through(out)?;
        }
        if self.raft.store().snapshot_wanted.take() || self.snapshot_due() {
            self.take_snapshot()?;
        }
        if let Some(index) = self.compact_to
            && !self.raft.mut_store().log.compact(index, COMPACT_STEP)?
        {
            self.compact_to = None;
        }
        Ok(())
    }

    fn work_through(&mut self, out: &mut impl Output<M::Response>) -> Result<(), Fatal> {
        let mut ready = self.raft.ready();
        // Only a leader has messages here. Its followers may write while it writes.
        ready
            .take_messages()
            .into_iter()
            .for_each(|message| out.send(message));
        let mut write = Write {
            hard: ready.hs().cloned(),
            ..Write::default()
        };
        if ready.snapshot().is_empty() {
            // These were made durable by an earlier batch.
            self.apply(ready.take_committed_entries(), out)?;
            write.entries = ready.take_entries();
            self.store(write, ready.must_sync())?;
        } else {
            write.entries = ready.take_entries();
            self.install(ready.snapshot(), write)?;
        }
        for read in ready.take_read_states() {
            if let Some(context) = self.own_read(&read.request_ctx) {
                out.read_confirmed(context, read.index);
            }
        }
        // Votes and acknowledgements: not before what they promise is on disk.
        ready
            .take_persisted_messages()
            .into_iter()
            .for_each(|message| out.send(message));
        let mut light = self.raft.advance(ready);
        light
            .take_messages()
            .into_iter()
            .for_each(|message| out.send(message));
        self.apply(light.take_committed_entries(), out)?;
        self.raft.advance_apply();
        if std::mem::take(&mut self.step_down) {
            // Raft would let it go on, and its heartbeats would keep the others from electing
            // anybody. Not earlier: raft does not expect it between a batch and its end.
            let term = self.raft.raft.term;
            self.raft.raft.become_follower(term, raft::INVALID_ID);
        }
        Ok(())
    }

    fn store(&mut self, mut write: Write, must_sync: bool) -> Result<(), Fatal> {
        if write.entries.is_empty() && write.hard.is_none() {
            return Ok(());
        }
        write.applied = Some(self.applied);
        let durability = if must_sync {
            Durability::Synced
        } else {
            Durability::Buffered
        };
        Ok(self.raft.mut_store().log.write(write, durability)?)
    }

    fn apply(
        &mut self,
        entries: Vec<Entry>,
        out: &mut impl Output<M::Response>,
    ) -> Result<(), Fatal> {
        if entries.is_empty() {
            return Ok(());
        }
        let leading = self.raft.raft.state == StateRole::Leader;
        let mut done = Vec::with_capacity(entries.len());
        let mut changed = Vec::new();
        let mut failed = None;
        for entry in entries {
            let (index, term) = (entry.index, entry.term);
            if entry.get_entry_type() != EntryType::EntryNormal {
                changed.push(Position { index, term });
            }
            match self.apply_entry(&entry) {
                Ok(Some(response)) => done.push(Done {
                    index,
                    term,
                    leading,
                    response,
                }),
                Ok(None) => {}
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
            self.applied = index;
            self.unsaved_bytes += entry.data.len() as u64;
        }
        // What came before a fatal command did happen, and its proposers may know.
        self.machine.batch_applied(self.applied);
        done.into_iter().for_each(|done| out.applied(done));
        let applied = self.applied;
        let changed = changed.into_iter().filter(|at| at.index <= applied);
        changed.for_each(|at| out.members_changed(at));
        failed.map_or(Ok(()), Err)
    }

    fn apply_entry(&mut self, entry: &Entry) -> Result<Option<M::Response>, Fatal> {
        if entry.get_entry_type() == EntryType::EntryNormal {
            return apply_command(&mut self.machine, entry);
        }
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| Fatal::Membership {
            index: entry.index,
            source,
        };
        let change = match entry.get_entry_type() {
            EntryType::EntryConfChange => ConfChange::parse_from_bytes(&entry.data)
                .map(|change| raft_proto_v2(&change))
                .map_err(|error| failed(error.into()))?,
            // An empty one leaves a joint configuration.
            _ => ConfChangeV2::parse_from_bytes(&entry.data).map_err(|e| failed(e.into()))?,
        };
        let members = self
            .raft
            .apply_conf_change(&change)
            .map_err(|error| failed(error.into()))?;
        tracing::info!(index = entry.index, ?members, "the group changed");
        // At once, not with the next batch: a member that restarts with the group as it was could
        // win an election there while the new group elects somebody else.
        let write = Write {
            applied: Some(entry.index),
            members: Some(members),
            ..Write::default()
        };
        self.raft.mut_store().log.write(write, Durability::Synced)?;
        self.group_version += 1;
        let raft = &self.raft.raft;
        self.step_down = raft.state == StateRole::Leader && !raft.promotable();
        let group = self.group();
        self.heard.retain(|id, _| group.contains(*id));
        // A new member has had no time to be heard from.
        for id in group.ids() {
            self.heard.entry(id).or_insert(self.now);
        }
        Ok(None)
    }

    fn install(&mut self, snapshot: &raft::eraftpb::Snapshot, write: Write) -> Result<(), Fatal> {
        let metadata = snapshot.get_metadata();
        let index = metadata.index;
        // The machine first: a snapshot that it cannot read must not take the place of one
        // that it can.
        self.machine
            .restore(&snapshot.data)
            .map_err(|source| Fatal::Restore { index, source })?;
        let snapshot = Snapshot {
            index,
            term: metadata.term,
            members: metadata.get_conf_state().clone(),
            data: &snapshot.data,
        };
        self.raft
            .mut_store()
            .log
            .install_snapshot(snapshot, write)?;
        self.applied = index;
        self.unsaved_bytes = 0;
        self.compact_to = None;
        self.group_version += 1;
        self.machine.batch_applied(index);
        tracing::info!(index, "state replaced by the leader's snapshot");
        Ok(())
    }

    fn snapshot_due(&self) -> bool {
        let last = self
            .raft
            .store()
            .log
            .state()
            .snapshot
            .as_ref()
            .map_or(0, |last| last.index);
        let entries = self.applied.saturating_sub(last);
        entries >= self.policy.every_entries || self.unsaved_bytes >= self.policy.every_bytes
    }

    fn take_snapshot(&mut self) -> Result<(), Fatal> {
        let index = self.applied;
        let log = &mut self.raft.mut_store().log;
        let Some(term) = log.term(index).filter(|_| index > 0) else {
            return Ok(());
        };
        let data = self.machine.snapshot();
        // Stored at once with every change, so these are the members as of `index`.
        let members = log.state().members.clone();
        let write = Write {
            applied: Some(index),
            ..Write::default()
        };
        log.write(write, Durability::Buffered)?;
        log.save_snapshot(Snapshot {
            index,
            term,
            members,
            data: &data,
        })?;
        self.unsaved_bytes = 0;
        let keep = index.saturating_sub(self.policy.keep_entries);
        self.compact_to = (keep > log.state().compacted_index).then_some(keep);
        tracing::info!(index, bytes = data.len(), "snapshot written");
        Ok(())
    }

    pub fn applied(&self) -> u64 {
        self.applied
    }

    pub fn status(&self) -> Status {
        let raft = &self.raft.raft;
        let leading = raft.state == StateRole::Leader;
        Status {
            id: raft.id,
            role: match raft.state {
                StateRole::Leader => Role::Leader,
                StateRole::Follower => Role::Follower,
                StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
            },
            term: raft.term,
            leader: self.leader(),
            committed: raft.raft_log.committed,
            applied: self.applied,
            caught_up: leading && raft.apply_to_current_term(),
        }
    }

    fn leader(&self) -> Option<u64> {
        Some(self.raft.raft.leader_id).filter(|id| *id != raft::INVALID_ID)
    }

    /// The state as it is now, with where it stands. None before anything was applied.
    pub(crate) fn save(&self) -> Option<Saved> {
        let index = self.applied;
        let term = self.raft.store().log.term(index).filter(|_| index > 0)?;
        Some(Saved {
            index,
            term,
            group: self.group(),
            state: self.machine.snapshot(),
        })
    }

    /// Everything so far on disk, the applied index too, so that the next start replays little.
    pub fn flush(&mut self) -> Result<(), Fatal> {
        let write = Write {
            applied: Some(self.applied),
            ..Write::default()
        };
        Ok(self.raft.mut_store().log.write(write, Durability::Synced)?)
    }

    #[cfg(any(test, feature = "testing"))]
    pub fn log(&self) -> &S {
        &self.raft.store().log
    }

    #[cfg(any(test, feature = "testing"))]
    pub fn log_mut(&mut self) -> &mut S {
        &mut self.raft.mut_store().log
    }

    #[cfg(any(test, feature = "testing"))]
    pub fn machine(&self) -> &M {
        &self.machine
    }

    #[cfg(any(test, feature = "testing"))]
    pub fn into_log(self) -> S {
        self.raft.raft.r.raft_log.store.log
    }
}

impl<S: LogStore, M: Machine> std::fmt::Debug for Core<S, M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core")
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

/// What members send to each other. Raft forwards proposals and transfers of leadership too, which
/// nobody here asks it for, and takes a message without a term for one of its own.
pub(crate) fn is_from_a_member(message: &Message, me: u64) -> bool {
    let kind = match message.get_msg_type() {
        MessageType::MsgPropose | MessageType::MsgTransferLeader => false,
        MessageType::MsgReadIndex => message.entries.len() == 1,
        _ => message.term != 0,
    };
    kind && message.to == me && message.from != raft::INVALID_ID && message.from != me
}

fn raft_config(config: &Config, applied: u64) -> raft::Config {
    raft::Config {
        id: config.id,
        election_tick: config.election_ticks,
        heartbeat_tick: config.heartbeat_ticks,
        applied,
        // Raft's default of 0 means one entry a message.
        max_size_per_msg: MESSAGE_BYTES,
        max_inflight_msgs: INFLIGHT_MESSAGES,
        max_uncommitted_size: UNCOMMITTED_BYTES,
        max_committed_size_per_ready: COMMITTED_BYTES,
        pre_vote: true,
        check_quorum: true,
        read_only_option: raft::ReadOnlyOption::Safe,
        ..raft::Config::default()
    }
}

/// Starts a new group's log from a snapshot of the empty state that names the voters, the same on
/// each of them. Not from nothing: a member that joins later, and knows of no group yet, could
/// then be sent the log from its first entry on, and would take itself for the only voter as soon
/// as it applied the change that adds it. Like this it has to be sent a snapshot first.
fn found<S: LogStore, M: Machine>(log: &mut S, voters: &[u64], machine: &M) -> Result<(), Fatal> {
    let (index, term) = FOUNDATION;
    let members = ConfState::from((voters.to_vec(), Vec::new()));
    let data = machine.snapshot();
    let hard = HardState {
        term,
        commit: index,
        ..HardState::default()
    };
    let write = Write {
        hard: Some(hard),
        ..Write::default()
    };
    Ok(log.install_snapshot(
        Snapshot {
            index,
            term,
            members,
            data: &data,
        },
        write,
    )?)
}

/// Restores the snapshot and applies what is known to be committed after it. Raft is not told of
/// any of this: it starts at the applied index, with the members as of then, so no membership
/// change is ever applied twice. Returns the bytes of commands that no snapshot holds.
pub(crate) fn recover<S: LogStore, M: Machine>(log: &S, machine: &mut M) -> Result<u64, Fatal> {
    let state = log.state();
    let mut next = 1;
    if let Some(snapshot) = &state.snapshot {
        let index = snapshot.index;
        let data = log.load_snapshot()?.unwrap_or_default();
        machine
            .restore(&data)
            .map_err(|source| Fatal::Restore { index, source })?;
        next = index + 1;
    }
    if next <= state.compacted_index {
        let what = format!(
            "entries {next} to {} are neither in the log nor in a snapshot",
            state.compacted_index
        );
        return Err(crate::log::Error::Damaged { what }.into());
    }
    let mut bytes = 0;
    while next <= state.applied {
        for entry in log.entries(next, state.applied + 1, REPLAY_BYTES)? {
            if entry.get_entry_type() == EntryType::EntryNormal {
                apply_command(machine, &entry)?;
            }
            bytes += entry.data.len() as u64;
            next = entry.index + 1;
        }
    }
    Ok(bytes)
}

pub(crate) fn apply_command<M: Machine>(
    machine: &mut M,
    entry: &Entry,
) -> Result<Option<M::Response>, Fatal> {
    if entry.data.is_empty() {
        return Ok(None);
    }
    let (index, term) = (entry.index, entry.term);
    let command = Command {
        index,
        term,
        bytes: &entry.data,
    };
    machine
        .apply(command)
        .map(Some)
        .map_err(|source| Fatal::Apply {
            index,
            term,
            source,
        })
}

fn raft_proto_v2(change: &ConfChange) -> ConfChangeV2 {
    let mut single = ConfChangeSingle::default();
    single.set_change_type(change.get_change_type());
    single.node_id = change.node_id;
    let mut all = ConfChangeV2::default();
    all.set_changes(vec![single].into());
    all
}

/// A well-mixed function of its input (splitmix64's), so that members and terms draw apart.
pub fn scramble(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_members_send_is_taken() {
        let mut message = Message {
            from: 2,
            to: 1,
            term: 3,
            ..Message::default()
        };
        let is = |message: &Message| is_from_a_member(message, 1);
        message.set_msg_type(MessageType::MsgAppend);
        assert!(is(&message));
        message.term = 0;
        assert!(!is(&message), "without a term it would count as local");
        message.set_msg_type(MessageType::MsgReadIndex);
        assert!(!is(&message), "raft looks at its first entry");
        message.set_entries(vec![Entry::default()].into());
        assert!(is(&message));
        message.to = 3;
        assert!(!is(&message));
        message.to = 1;
        message.from = 1;
        assert!(!is(&message));
        message.from = 2;
        message.term = 3;
        for kind in [MessageType::MsgPropose, MessageType::MsgTransferLeader] {
            message.set_msg_type(kind);
            assert!(!is(&message));
        }
    }
}
