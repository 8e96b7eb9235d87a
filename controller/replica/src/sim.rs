//! A group of members in memory, moved one random event at a time: messages lost, doubled and
//! reordered, members that crash at any moment and lose what they had not synced. After every
//! event the history must still be one history. A seed repeats its run exactly.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, Entry, Message,
    MessageType,
};

use crate::{
    config::{Config, SnapshotPolicy},
    core::{Core, Done, Output, Position},
    log::{self, Durability, LogStore, MemLog, Snapshot, State, Write},
    machine::{Command, Machine, MachineError},
    membership::{Change, Step, next_step},
    rng::Rng,
    status::{Role, Status},
};

/// What was ever applied anywhere, by index. Every member must agree with it.
#[derive(Debug, Default)]
struct History {
    applied: BTreeMap<u64, (u64, Vec<u8>)>,
    leaders: BTreeMap<u64, u64>,
}

/// A state machine that remembers all it was given.
struct Tape {
    history: Arc<Mutex<History>>,
    commands: Vec<(u64, Vec<u8>)>,
}

impl Machine for Tape {
    type Response = u64;

    fn apply(&mut self, command: Command<'_>) -> Result<u64, MachineError> {
        let Command { index, term, bytes } = command;
        let last = self.commands.last().map_or(0, |(last, _)| *last);
        assert!(last < index, "{index} applied after {last}");
        let mut history = self.history.lock().unwrap();
        let known = history
            .applied
            .entry(index)
            .or_insert_with(|| (term, bytes.to_vec()));
        assert_eq!(known, &(term, bytes.to_vec()), "two histories at {index}");
        self.commands.push((index, bytes.to_vec()));
        Ok(index)
    }

    fn batch_applied(&mut self, _: u64) {}

    fn snapshot(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (index, bytes) in &self.commands {
            out.extend(index.to_be_bytes());
            out.extend(u64::try_from(bytes.len()).unwrap().to_be_bytes());
            out.extend(bytes);
        }
        out
    }

    fn restore(&mut self, mut rest: &[u8]) -> Result<(), MachineError> {
        self.commands.clear();
        while let Some((index, tail)) = rest.split_first_chunk::<8>() {
            let (length, tail) = tail.split_first_chunk::<8>().ok_or("cut")?;
            let length = usize::try_from(u64::from_be_bytes(*length))?;
            let (bytes, tail) = tail.split_at_checked(length).ok_or("cut")?;
            self.commands
                .push((u64::from_be_bytes(*index), bytes.to_vec()));
            rest = tail;
        }
        Ok(())
    }
}

/// A disk whose power can go in the middle of a batch: at a write, before any of it is stored.
struct Disk {
    log: MemLog,
    /// The writing calls that still succeed; None: all.
    lives: Option<usize>,
}

impl Disk {
    fn spend(&mut self) -> Result<(), log::Error> {
        match &mut self.lives {
            None => return Ok(()),
            Some(0) => {}
            Some(lives) => {
                *lives -= 1;
                return Ok(());
            }
        }
        Err(log::Error::Sync(std::io::Error::other("power is gone")))
    }
}

impl LogStore for Disk {
    fn state(&self) -> &State {
        self.log.state()
    }

    fn last_index(&self) -> u64 {
        self.log.last_index()
    }

    fn term(&self, index: u64) -> Option<u64> {
        self.log.term(index)
    }

    fn entries(&self, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Entry>, log::Error> {
        self.log.entries(low, high, max_bytes)
    }

    fn write(&mut self, write: Write, durability: Durability) -> Result<(), log::Error> {
        self.spend()?;
        self.log.write(write, durability)
    }

    fn sync(&mut self) -> Result<(), log::Error> {
        self.spend()?;
        self.log.sync()
    }

    fn save_snapshot(&mut self, snapshot: Snapshot<'_>) -> Result<(), log::Error> {
        self.spend()?;
        self.log.save_snapshot(snapshot)
    }

    fn install_snapshot(&mut self, snapshot: Snapshot<'_>, write: Write) -> Result<(), log::Error> {
        self.spend()?;
        self.log.install_snapshot(snapshot, write)
    }

    fn load_snapshot(&self) -> Result<Option<Vec<u8>>, log::Error> {
        self.log.load_snapshot()
    }

    fn compact(&mut self, index: u64, limit: u64) -> Result<bool, log::Error> {
        self.spend()?;
        self.log.compact(index, limit)
    }
}

#[derive(Default)]
struct Outbox {
    messages: Vec<Message>,
    applied: Vec<(u64, u64)>,
    reads: Vec<(u64, u64)>,
}

impl Output<u64> for Outbox {
    fn send(&mut self, message: Message) {
        self.messages.push(message);
    }

    fn applied(&mut self, done: Done<u64>) {
        assert_eq!(done.index, done.response);
        if done.leading {
            self.applied.push((done.index, done.term));
        }
    }

    fn read_confirmed(&mut self, context: u64, index: u64) {
        self.reads.push((context, index));
    }
}

enum Member {
    Up(Box<Core<Disk, Tape>>),
    Down(Box<MemLog>),
    /// Only while it changes from one to the other.
    Moving,
}

struct World {
    rng: Rng,
    policy: SnapshotPolicy,
    voters: Vec<u64>,
    members: BTreeMap<u64, Member>,
    network: Vec<Message>,
    history: Arc<Mutex<History>>,
    /// Proposed and not heard of again yet, with the member that took each.
    waiting: BTreeMap<(u64, u64), (u64, Vec<u8>)>,
    acknowledged: Vec<(u64, Vec<u8>)>,
    /// Reads by context: the member asked, and what was acknowledged when it was asked.
    reads: BTreeMap<u64, (u64, u64)>,
    reads_checked: usize,
    proposals: u64,
    snapshots_sent: usize,
    crashes_inside: usize,
    boots: u64,
    /// Whether members come and go, how often one did, and who was the last to come.
    changing: bool,
    changes: usize,
    newest: u64,
}

impl World {
    fn new(seed: u64, size: u64) -> Self {
        let voters: Vec<u64> = (1..=size).collect();
        let mut world = Self {
            rng: Rng::new(crate::core::scramble(seed)),
            policy: SnapshotPolicy {
                every_entries: 25,
                every_bytes: u64::MAX,
                keep_entries: 5,
            },
            voters: voters.clone(),
            members: BTreeMap::new(),
            network: Vec::new(),
            history: Arc::default(),
            waiting: BTreeMap::new(),
            acknowledged: Vec::new(),
            reads: BTreeMap::new(),
            reads_checked: 0,
            proposals: 0,
            snapshots_sent: 0,
            crashes_inside: 0,
            boots: 0,
            changing: false,
            changes: 0,
            newest: size,
        };
        for id in voters {
            world.add(id);
        }
        world
    }

    fn add(&mut self, id: u64) {
        self.members
            .insert(id, Member::Down(Box::new(MemLog::new(id))));
        self.start(id);
    }

    fn start(&mut self, id: u64) {
        let member = self.members.get_mut(&id).unwrap();
        match std::mem::replace(member, Member::Moving) {
            Member::Down(log) => {
                let voters = if self.voters.contains(&id) {
                    self.voters.clone()
                } else {
                    Vec::new()
                };
                self.boots += 1;
                let config = Config {
                    snapshots: self.policy,
                    boot: self.boots,
                    ..Config::member(id, voters)
                };
                let tape = Tape {
                    history: self.history.clone(),
                    commands: Vec::new(),
                };
                let hard = log.state().hard.clone();
                let core = Core::new(
                    &config,
                    Disk {
                        log: *log,
                        lives: None,
                    },
                    tape,
                )
                .unwrap();
                let now = &core.log().state().hard;
                assert!((now.term, now.commit) >= (hard.term, hard.commit));
                *member = Member::Up(Box::new(core));
                self.settle(id);
            }
            other => *member = other,
        }
    }

    /// Power goes. What was not synced is lost, but for a random part of the first of it.
    fn crash(&mut self, id: u64) {
        let member = self.members.get_mut(&id).unwrap();
        match std::mem::replace(member, Member::Moving) {
            Member::Up(core) => {
                let Disk { log, .. } = core.into_log();
                let kept = self.rng.below(log.unsynced() + 1);
                *member = Member::Down(Box::new(log.cut(kept)));
                self.waiting.retain(|_, (taken_by, _)| *taken_by != id);
                self.reads.retain(|_, (asked, _)| *asked != id);
            }
            other => *member = other,
        }
    }

    fn up(&mut self, id: u64) -> Option<&mut Core<Disk, Tape>> {
        match self.members.get_mut(&id) {
            Some(Member::Up(core)) => Some(core),
            _ => None,
        }
    }

    fn status(&self, id: u64) -> Option<Status> {
        match self.members.get(&id) {
            Some(Member::Up(core)) => Some(core.status()),
            _ => None,
        }
    }

    /// Works through everything that the last event made ready, and checks it. What a member
    /// handed over before its power went is on its way.
    fn settle(&mut self, id: u64) {
        let mut out = Outbox::default();
        while let Some(core) = self.up(id)
            && core.has_work()
        {
            let result = core.advance(&mut out);
            self.collect(id, &mut out);
            if result.is_err() {
                self.crash(id);
                self.crashes_inside += 1;
            }
        }
        if self.up(id).is_some_and(|core| core.is_removed()) {
            self.retire(id);
        }
        if let Some(status) = self.status(id)
            && status.role == Role::Leader
        {
            let leader = *self
                .history
                .lock()
                .unwrap()
                .leaders
                .entry(status.term)
                .or_insert(id);
            assert_eq!(leader, id, "two leaders in term {}", status.term);
        }
    }

    fn collect(&mut self, id: u64, out: &mut Outbox) {
        for message in &out.messages {
            if message.get_msg_type() == MessageType::MsgSnapshot {
                self.snapshots_sent += 1;
            }
        }
        self.network.append(&mut out.messages);
        for position in out.applied.drain(..) {
            if let Some((taken_by, command)) = self.waiting.get(&position)
                && *taken_by == id
            {
                self.acknowledged.push((position.0, command.clone()));
                self.waiting.remove(&position);
            }
        }
        for (context, index) in out.reads.drain(..) {
            if let Some((asked, before)) = self.reads.remove(&context) {
                assert_eq!(asked, id);
                assert!(
                    index >= before,
                    "stale read: {index}, after {before} was acknowledged"
                );
                self.reads_checked += 1;
            }
        }
    }

    fn propose(&mut self, id: u64) {
        self.proposals += 1;
        let command = self.proposals.to_be_bytes().to_vec();
        let Some(core) = self.up(id) else { return };
        if let Ok(Position { index, term }) = core.propose(command.clone()) {
            self.waiting.insert((index, term), (id, command));
        }
    }

    /// It stops for good.
    fn retire(&mut self, id: u64) {
        self.members.remove(&id);
        self.waiting.retain(|_, (taken_by, _)| *taken_by != id);
        self.reads.retain(|_, (asked, _)| *asked != id);
    }

    /// Something random that the rules allow.
    fn change(&mut self) {
        let leads = |id: &u64| self.status(*id).is_some_and(|s| s.leading().is_some());
        let Some(id) = self.members.keys().copied().find(leads) else {
            return;
        };
        let newest = self.newest + 1;
        let roll = self.rng.below(3);
        let any = self.any();
        let Some(core) = self.up(id) else { return };
        if core.is_changing() {
            return;
        }
        let members = core.members();
        let count = members.voters.len() + members.learners.len();
        let change = match roll {
            0 if count < 5 => Change::AddLearner(newest),
            1 => Change::Remove(any),
            _ => match members.learners.first() {
                Some(learner) => Change::Promote(learner.id),
                None => return,
            },
        };
        let step = match next_step(&members, id, change, &|_| true) {
            Ok(Step::HandOver(to)) => return core.transfer(to),
            Ok(step) => step,
            Err(_) => return,
        };
        if core.propose_step(step).is_ok_and(|at| at.is_some()) {
            self.changes += 1;
            if step == Step::AddLearner(newest) {
                self.newest = newest;
                self.add(newest);
            }
        }
    }

    /// By the only member of its group.
    fn change_member_2(&mut self, kind: ConfChangeType) -> Position {
        let mut single = ConfChangeSingle {
            node_id: 2,
            ..ConfChangeSingle::default()
        };
        single.set_change_type(kind);
        let mut change = ConfChangeV2::default();
        change.set_transition(ConfChangeTransition::Auto);
        change.set_changes(vec![single].into());
        let at = self.up(1).unwrap().propose_membership(change).unwrap();
        self.settle(1);
        at
    }

    fn read(&mut self, id: u64) {
        let context = self.proposals << 8 | id;
        let before = self.newest_acknowledged();
        let Some(core) = self.up(id) else { return };
        let status = core.status();
        let follows = status.role == Role::Follower && status.leader.is_some();
        if (status.caught_up || follows) && !self.reads.contains_key(&context) {
            self.up(id).unwrap().read_index(context);
            self.reads.insert(context, (id, before));
        }
    }

    fn deliver(&mut self, message: Message) {
        let (from, to) = (message.from, message.to);
        if message.get_msg_type() == MessageType::MsgSnapshot
            && let Some(sender) = self.up(from)
        {
            sender.snapshot_sent(to, true);
        }
        if let Some(core) = self.up(to) {
            let group = core.group();
            core.step(message);
            // As the transport would, to a member that does not know that it was removed.
            if !group.is_empty()
                && !group.contains(from)
                && let Some(sender) = self.up(from)
                && sender.is_removed_as_of(group.as_of)
            {
                self.retire(from);
            }
        }
        self.settle(from);
        self.settle(to);
    }

    fn lose(&mut self, message: &Message) {
        let (from, to) = (message.from, message.to);
        if let Some(sender) = self.up(from) {
            sender.unreachable(to);
            if message.get_msg_type() == MessageType::MsgSnapshot {
                sender.snapshot_sent(to, false);
            }
        }
        self.settle(from);
    }

    fn any(&mut self) -> u64 {
        let at = self.rng.below(self.members.len());
        *self.members.keys().nth(at).unwrap()
    }

    fn event(&mut self) {
        let id = self.any();
        match self.rng.below(100) {
            0..50 if !self.network.is_empty() => {
                let at = self.rng.below(self.network.len());
                let message = self.network.swap_remove(at);
                match self.rng.below(100) {
                    0..5 => self.lose(&message),
                    5..10 => {
                        self.network.push(message.clone());
                        self.deliver(message);
                    }
                    _ => self.deliver(message),
                }
            }
            0..75 => {
                if let Some(core) = self.up(id) {
                    core.tick();
                }
            }
            75..91 => {
                for _ in 0..self.rng.below(4) {
                    self.propose(id);
                }
            }
            91..95 if self.changing && self.rng.chance(50) => self.change(),
            91..95 => self.read(id),
            95 => self.crash(id),
            96 => {
                let lives = self.rng.below(3);
                if let Some(core) = self.up(id) {
                    core.log_mut().lives = Some(lives);
                }
            }
            _ => self.start(id),
        }
        // Not always at once, so that batches grow and crashes fall between.
        if self.rng.chance(80) {
            self.settle(id);
        }
    }

    /// Everyone up, nothing lost, until all have applied a last command.
    fn heal(&mut self) {
        let ids: Vec<u64> = self.members.keys().copied().collect();
        for id in &ids {
            self.start(*id);
            self.up(*id).unwrap().log_mut().lives = None;
        }
        for _ in 0..2_000 {
            for message in std::mem::take(&mut self.network) {
                self.deliver(message);
            }
            self.dismiss();
            let ids: Vec<u64> = self.members.keys().copied().collect();
            for id in &ids {
                let Some(core) = self.up(*id) else { continue };
                core.tick();
                // One. What an earlier leader took may never be heard of again.
                if let Some(term) = self.status(*id).unwrap().leading()
                    && self.waiting.keys().all(|(_, taken_in)| *taken_in != term)
                    && !self.healed_write()
                {
                    self.propose(*id);
                }
                self.settle(*id);
            }
            let statuses: Vec<Status> = ids.iter().filter_map(|id| self.status(*id)).collect();
            let leading = statuses
                .iter()
                .filter(|status| status.leading().is_some())
                .count();
            let applied = statuses.iter().map(|status| status.applied).min().unwrap();
            if leading == 1 && applied >= self.newest_acknowledged() && self.healed_write() {
                return;
            }
        }
        for (id, member) in &self.members {
            if let Member::Up(core) = member {
                eprintln!("{id}: {:?} {:?}", core.status(), core.members());
            }
        }
        panic!("the group did not recover");
    }

    fn newest_acknowledged(&self) -> u64 {
        let indexes = self.acknowledged.iter().map(|(index, _)| *index);
        indexes.max().unwrap_or(0)
    }

    /// Those whom the leader does not know are not waited for: they were removed without having
    /// heard of it, or their addition was lost.
    fn dismiss(&mut self) {
        let groups: Vec<_> = self
            .members
            .values()
            .filter_map(|member| match member {
                Member::Up(core) if core.status().leading().is_some() => Some(core.group()),
                _ => None,
            })
            .collect();
        let [group] = &groups[..] else { return };
        let unknown = self.members.keys().filter(|id| !group.contains(**id));
        for id in unknown.copied().collect::<Vec<_>>() {
            let core = self.up(id).unwrap();
            // A leader that is about to be replaced may know less.
            if core.group().is_empty() || core.is_removed_as_of(group.as_of) {
                self.retire(id);
            }
        }
    }

    /// Whether the newest acknowledged command is from after the last crash: everything
    /// that any earlier leader committed then lies below it.
    fn healed_write(&self) -> bool {
        let newest = self.newest_acknowledged();
        if newest == 0 {
            return false;
        }
        let history = self.history.lock().unwrap();
        let term = history.applied[&newest].0;
        let current = self
            .members
            .keys()
            .filter_map(|id| self.status(*id))
            .map(|s| s.term)
            .max();
        Some(term) == current
    }

    /// Every acknowledged command is in every member's state, once.
    fn check(&mut self) {
        let ids: Vec<u64> = self.members.keys().copied().collect();
        let acknowledged = self.acknowledged.clone();
        for id in ids {
            let commands = self.up(id).unwrap().machine().commands.clone();
            let mut seen: Vec<&[u8]> = commands.iter().map(|(_, bytes)| &bytes[..]).collect();
            seen.sort_unstable();
            assert!(
                seen.windows(2).all(|pair| pair[0] != pair[1]),
                "a command twice on {id}"
            );
            for (index, command) in &acknowledged {
                let found = commands
                    .iter()
                    .any(|(at, bytes)| at == index && bytes == command);
                assert!(
                    found,
                    "member {id} lost the acknowledged command at {index}"
                );
            }
        }
    }
}

#[derive(Debug, Default)]
struct Totals {
    acknowledged: usize,
    reads: usize,
    snapshots: usize,
    crashes_inside: usize,
    terms: u64,
    changes: usize,
}

fn run(seed: u64, size: u64, events: usize, changing: bool) -> Totals {
    let mut world = World::new(seed, size);
    world.changing = changing;
    for _ in 0..events {
        world.event();
    }
    world.heal();
    world.check();
    let terms = world
        .history
        .lock()
        .unwrap()
        .leaders
        .keys()
        .max()
        .copied()
        .unwrap_or(0);
    Totals {
        acknowledged: world.acknowledged.len(),
        reads: world.reads_checked,
        snapshots: world.snapshots_sent,
        crashes_inside: world.crashes_inside,
        terms,
        changes: world.changes,
    }
}

/// `CORACLE_SIM_FACTOR=50` runs fifty times as many seeds.
fn run_seeds(first: u64, seeds: u64, size: u64, events: usize) -> Totals {
    run_all(first, seeds, size, events, false)
}

fn run_all(first: u64, seeds: u64, size: u64, events: usize, changing: bool) -> Totals {
    let factor = std::env::var("CORACLE_SIM_FACTOR")
        .ok()
        .and_then(|factor| factor.parse().ok());
    let mut totals = Totals::default();
    for seed in first..first + seeds * factor.unwrap_or(1) {
        let result = std::panic::catch_unwind(|| run(seed, size, events, changing));
        let one = result.unwrap_or_else(|cause| {
            eprintln!(
                "seed {seed} of a group of {size} failed; run({seed}, {size}, {events}, {changing})"
            );
            std::panic::resume_unwind(cause)
        });
        totals.acknowledged += one.acknowledged;
        totals.reads += one.reads;
        totals.snapshots += one.snapshots;
        totals.crashes_inside += one.crashes_inside;
        totals.terms += one.terms;
        totals.changes += one.changes;
    }
    println!("{totals:?}");
    totals
}

/// A simulation in which nothing happens proves nothing, so what happened is asserted too.
#[test]
fn three_members_keep_one_history_through_losses_and_crashes() {
    let totals = run_seeds(0, 400, 3, 1_500);
    assert!(
        totals.acknowledged > 400 * 20,
        "{} acknowledged",
        totals.acknowledged
    );
    assert!(totals.reads > 400, "{} reads", totals.reads);
    assert!(
        totals.snapshots > 200,
        "{} snapshots sent",
        totals.snapshots
    );
    assert!(totals.terms > 400 * 3, "{} terms", totals.terms);
}

#[test]
fn five_members_keep_one_history() {
    let totals = run_seeds(1 << 32, 60, 5, 2_500);
    assert!(
        totals.acknowledged > 60 * 15,
        "{} acknowledged",
        totals.acknowledged
    );
}

#[test]
fn one_member_keeps_everything_through_crashes() {
    let totals = run_seeds(2 << 32, 200, 1, 600);
    assert!(
        totals.acknowledged > 200 * 30,
        "{} acknowledged",
        totals.acknowledged
    );
    assert!(totals.terms > 200 * 3, "{} restarts", totals.terms);
}

#[test]
fn members_come_and_go_through_losses_and_crashes() {
    for (first, size) in [(3 << 32, 1), (4 << 32, 3), (5 << 32, 5)] {
        let totals = run_all(first, 120, size, 3_000, true);
        assert!(
            totals.acknowledged > 120 * 10,
            "{} acknowledged",
            totals.acknowledged
        );
        assert!(totals.changes > 120 * 2, "{} changes", totals.changes);
    }
}

#[test]
fn a_seed_repeats_exactly() {
    let trace = || {
        let mut world = World::new(7, 3);
        world.changing = true;
        let mut trace = Vec::new();
        for _ in 0..800 {
            world.event();
            trace.push((
                world.network.len(),
                world.acknowledged.len(),
                world.waiting.len(),
            ));
        }
        trace
    };
    assert_eq!(trace(), trace());
}

/// From one member to two: first a learner, which needs a snapshot that names it, then a voter.
#[test]
fn a_group_grows_through_a_learner() {
    let mut world = World::new(1, 1);
    for _ in 0..60 {
        world.propose(1);
        world.settle(1);
    }
    assert!(
        world.up(1).unwrap().log().state().compacted_index > 0,
        "a learner needs a snapshot"
    );
    world.add(2);
    let change = |world: &mut World, kind: ConfChangeType| {
        let at = world.change_member_2(kind);
        for _ in 0..50 {
            for message in std::mem::take(&mut world.network) {
                world.deliver(message);
            }
            world.up(1).unwrap().tick();
            world.settle(1);
        }
        assert!(
            world.status(2).unwrap().applied >= at.index,
            "the new member did not catch up"
        );
    };
    change(&mut world, ConfChangeType::AddLearnerNode);
    assert!(world.snapshots_sent > 0);
    assert_eq!(world.up(2).unwrap().log().state().members.learners, [2]);
    change(&mut world, ConfChangeType::AddNode);
    world.crash(1);
    world.start(1);
    assert_eq!(
        world.status(1).unwrap().leading(),
        None,
        "no longer enough alone"
    );
    world.heal();
    world.check();
}

/// A member that forgot that its group grew would elect itself, beside the others' leader.
#[test]
fn an_applied_change_of_the_group_survives_a_cut_at_once() {
    let mut world = World::new(1, 1);
    world.add(2);
    let at = world.change_member_2(ConfChangeType::AddNode);
    assert!(world.status(1).unwrap().applied >= at.index);
    let Some(Member::Up(core)) = world.members.remove(&1) else {
        panic!("it is up")
    };
    let log = core.into_log().log.cut(0);
    assert_eq!(log.state().members.voters, [1, 2]);
    world.members.insert(1, Member::Down(Box::new(log)));
    world.start(1);
    assert_eq!(world.status(1).unwrap().leading(), None);
    world.heal();
    world.check();
    assert_eq!(world.up(2).unwrap().log().state().members.voters, [1, 2]);
}

/// The other member is gone for good, and the leader must not keep promising.
#[test]
fn a_leader_without_a_majority_steps_down() {
    let mut world = World::new(3, 3);
    world.heal();
    let leader = (1..=3)
        .find(|id| world.status(*id).unwrap().leading().is_some())
        .unwrap();
    for id in (1..=3).filter(|id| *id != leader) {
        world.crash(id);
    }
    let before = world.acknowledged.len();
    world.propose(leader);
    for _ in 0..50 {
        world.up(leader).unwrap().tick();
        world.settle(leader);
    }
    assert_ne!(world.status(leader).unwrap().role, Role::Leader);
    assert_eq!(world.acknowledged.len(), before);
}

/// From two voters to one, with the power of the one that stays failing at every write on the way.
/// Removed at once, the other one could hear that its removal is committed, and go, before this one
/// has stored that; the two of them could then not elect anybody.
#[test]
fn two_shrink_to_one_whenever_power_fails() {
    for lives in 0..8 {
        let mut world = World::new(9, 2);
        world.heal();
        let leads =
            |world: &World, id: u64| world.status(id).is_some_and(|s| s.leading().is_some());
        let stays = if leads(&world, 1) { 1 } else { 2 };
        let goes = 3 - stays;
        world.up(stays).unwrap().log_mut().lives = Some(lives);
        let mut failed = false;
        for _ in 0..400 {
            if leads(&world, stays) {
                let core = world.up(stays).unwrap();
                let step = next_step(&core.members(), stays, Change::Remove(goes), &|_| true);
                if let (Ok(step), false) = (step, core.is_changing()) {
                    core.propose_step(step).unwrap();
                }
                world.settle(stays);
            }
            for message in std::mem::take(&mut world.network) {
                world.deliver(message);
            }
            for id in [stays, goes] {
                if let Some(core) = world.up(id) {
                    core.tick();
                    world.settle(id);
                }
            }
            if matches!(world.members[&stays], Member::Down(_)) {
                failed = true;
                world.start(stays);
                assert_eq!(world.up(stays).unwrap().log().lives, None);
            }
        }
        world.dismiss();
        assert!(leads(&world, stays), "after {lives} writes");
        let group = world.up(stays).unwrap().group();
        assert_eq!((group.voters, group.learners), (vec![stays], vec![]));
        assert!(!world.members.contains_key(&goes));
        assert!(failed || lives >= 5, "nothing failed after {lives} writes");
        world.heal();
        world.check();
    }
}

/// Its own removal or demotion can be in the log of a member that comes to lead.
#[test]
fn a_leader_that_applies_its_own_demotion_stops_leading() {
    let mut world = World::new(5, 3);
    world.heal();
    let leader = (1..=3)
        .find(|id| world.status(*id).unwrap().leading().is_some())
        .unwrap();
    let core = world.up(leader).unwrap();
    core.propose_step(Step::Demote(leader)).unwrap();
    world.settle(leader);
    for _ in 0..200 {
        for message in std::mem::take(&mut world.network) {
            world.deliver(message);
        }
        for id in 1..=3 {
            world.up(id).unwrap().tick();
            world.settle(id);
        }
    }
    assert_eq!(world.status(leader).unwrap().role, Role::Follower);
    world.heal();
    world.check();
    assert_eq!(world.up(leader).unwrap().group().learners, [leader]);
}
