//! The world of one seed: hosts, what is on its way between them, and the order in which it
//! happens. Everything that is random comes from one generator, and nothing else decides.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use coracle_controller::testing::Leader;
use coracle_model::{FunctionId, InstanceId, ProjectId, RevisionId, Timestamp, WriteId};
use coracle_proto::v1;
use coracle_replica::{
    Role,
    testing::{Message, MessageType, Refused},
};

use crate::{
    client::{self, Client, Pending, Reply, Request},
    edge::{Call, Edge},
    faults::Fault,
    linear::{self, Action, Op, Outcome},
    member::{Member, Outbox, Waiter},
    net::{Cuts, Host},
    node::Machine,
    options::{Options, Profile},
    oracle::Oracle,
    pipe::Pipe,
    rng::Rng,
};

/// When every seed begins, by its own clock.
const EPOCH: u64 = 1_700_000_000_000;
/// How long everyone may take to find together again once nothing breaks any more.
const QUIET_MS: u64 = 120_000;

#[derive(Debug, Clone)]
pub(crate) enum Packet {
    Raft(Box<Message>),
    Ask {
        attempt: u64,
        key: u64,
        request: Request,
    },
    Answer {
        attempt: u64,
        reply: Reply,
    },
    // Along pipes.
    Hello(Box<v1::Report>),
    Report(Box<v1::Report>),
    Order(Box<v1::ControllerMessage>),
    Subscribe,
    Routes(Arc<v1::RouteUpdate>),
    Closed,
    // Between gateways and controllers.
    Activate {
        function: FunctionId,
        request: Box<v1::ActivateRequest>,
    },
    Activated {
        function: FunctionId,
        activation: bytes::Bytes,
        /// `None`: it does not lead.
        answer: Option<Box<v1::ActivateResponse>>,
    },
    Demand(Box<v1::DemandReport>),
    NotLeading,
    // Between gateways and nodes.
    Await {
        instance: InstanceId,
    },
    Born {
        instance: InstanceId,
        ready: bool,
    },
    Invoke {
        request: u64,
        instance: InstanceId,
    },
    /// Refused or busy: nothing of it was consumed.
    NotTaken {
        request: u64,
    },
    Ran {
        request: u64,
    },
}

#[derive(Debug)]
pub(crate) enum Event {
    Deliver {
        from: Host,
        to: Host,
        packet: Packet,
    },
    /// Of a controller, in one of its lives.
    Tick(u64, u64),
    Settle(u64),
    Start(u64),
    /// A new cluster makes its first objects before anybody uses it.
    Bootstrap,
    ClientActs(u64),
    ClientWaited(u64, u64),
    Fault,
    FaultEnds(u64),
    Piped {
        pipe: u64,
        from: Host,
        packet: Packet,
    },
    PipeEnds(u64, Host),
    /// Of a controller, in one of its lives.
    Plan(u64, u64),
    Resume(u64),
    Shake(u64),
    AgentStarts(u64),
    /// Of an agent, in one of its lives.
    AgentActs(u64, u64),
    Launched(u64, u64, InstanceId),
    Stopped(u64, u64, InstanceId),
    GatewayActs(u64),
    Call(u64),
    TryAgain(u64, u64),
    CallEnds(u64, u64),
    Ran {
        machine: u64,
        gateway: u64,
        request: u64,
        instance: InstanceId,
    },
}

/// What happened, so that a run in which nothing did is noticed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    pub events: u64,
    pub acknowledged: u64,
    pub unknown: u64,
    pub reads: u64,
    pub snapshots: u64,
    pub crashes: u64,
    pub terms: u64,
    pub plans: u64,
    /// Instances that leaders placed.
    pub placed: u64,
    /// Orders and routes that were refused for their stamp.
    pub refused: u64,
    pub executed: u64,
    /// Requests whose answer came back.
    pub answered: u64,
}

fn off(rng: &mut Rng, most: u64) -> i64 {
    let most = i64::try_from(most).expect("small");
    i64::try_from(rng.below(2 * most.unsigned_abs() + 1)).expect("small") - most
}

#[derive(Debug)]
pub struct World {
    pub(crate) options: Options,
    pub(crate) profile: Profile,
    pub(crate) rng: Rng,
    /// Milliseconds since the seed began.
    pub(crate) now: u64,
    agenda: BTreeMap<(u64, u64), Event>,
    posted: u64,
    pub(crate) cuts: Cuts,
    pub(crate) members: BTreeMap<u64, Member>,
    clients: BTreeMap<u64, Client>,
    pub(crate) oracle: Oracle,
    /// What clients saw, by name. Moments are numbers that only ever rise.
    history: BTreeMap<u64, Vec<Op>>,
    versions: u64,
    pub(crate) faults: BTreeMap<u64, Fault>,
    pub(crate) next_fault: u64,
    pub(crate) quiet: bool,
    pub(crate) tally: Tally,
    /// How far each controller's clock is off, in milliseconds and in thousandths.
    clocks: BTreeMap<Host, (i64, i64)>,
    settling: BTreeSet<u64>,
    pub(crate) machines: BTreeMap<u64, Machine>,
    pub(crate) edges: BTreeMap<u64, Edge>,
    pub(crate) calls: BTreeMap<u64, Call>,
    pub(crate) next_call: u64,
    pub(crate) pipes: BTreeMap<u64, Pipe>,
    pub(crate) next_pipe: u64,
    /// Controllers that do not run, with what waits for them.
    paused: BTreeMap<u64, Vec<Event>>,
}

impl World {
    pub fn new(options: Options) -> Self {
        let mut rng = Rng::new(options.seed);
        let profile = Profile::draw(&mut rng);
        let mut world = Self {
            options,
            rng,
            now: 0,
            agenda: BTreeMap::new(),
            posted: 0,
            cuts: Cuts::default(),
            members: BTreeMap::new(),
            clients: BTreeMap::new(),
            oracle: Oracle::default(),
            history: BTreeMap::new(),
            versions: 0,
            faults: BTreeMap::new(),
            next_fault: 0,
            quiet: false,
            tally: Tally::default(),
            clocks: BTreeMap::new(),
            settling: BTreeSet::new(),
            machines: BTreeMap::new(),
            edges: BTreeMap::new(),
            calls: BTreeMap::new(),
            next_call: 0,
            pipes: BTreeMap::new(),
            next_pipe: 0,
            paused: BTreeMap::new(),
            profile,
        };
        world.say(|| format!("{:?}", world.profile));
        let controllers = (1..=world.profile.members).map(Host::Controller);
        let agents = (1..=world.profile.machines).map(Host::Agent);
        let clocks: Vec<Host> = controllers.chain(agents).collect();
        for host in clocks {
            let skew = off(&mut world.rng, world.profile.skew_ms);
            let drift = off(&mut world.rng, world.profile.drift);
            world.clocks.insert(host, (skew, drift));
        }
        for id in 1..=world.profile.members {
            world.members.insert(id, Member::new(id));
            world.start(id);
        }
        for id in 1..=world.profile.machines {
            world.machines.insert(id, Machine::default());
            world.after(id, Event::AgentStarts(id));
        }
        for id in 1..=world.profile.gateways {
            world.edges.insert(id, Edge::default());
            world.after(id, Event::GatewayActs(id));
        }
        for id in 0..world.profile.clients {
            world.clients.insert(id, Client::default());
        }
        world.after(100, Event::Bootstrap);
        world
    }

    /// Runs to the end. `Err` says what did not hold.
    pub fn run(mut self) -> Result<Tally, String> {
        while self.tally.events < self.options.events {
            self.step()?;
        }
        self.say(|| "quiet".to_owned());
        self.end_faults();
        let until = self.now + QUIET_MS;
        while !self.is_at_rest() {
            if self.now >= until {
                let unrest = self.unrest();
                return Err(format!("no rest within {QUIET_MS} ms of quiet: {unrest:?}"));
            }
            self.step()?;
        }
        for member in self.members.values() {
            if let Some(running) = &member.up {
                running.core.machine().compare(running.core.applied());
            }
        }
        if let Some(what) = self.oracle.violation() {
            return Err(what);
        }
        self.check_history()?;
        self.tally.terms = self.oracle.terms_led() as u64;
        Ok(self.tally)
    }

    fn step(&mut self) -> Result<(), String> {
        let Some(((at, _), event)) = self.agenda.pop_first() else {
            return Err("nothing is left to happen".to_owned());
        };
        self.now = at;
        self.tally.events += 1;
        self.happen(event);
        match self.oracle.violation() {
            None => Ok(()),
            Some(what) => Err(format!(
                "{what} (event {}, {} ms)",
                self.tally.events, self.now
            )),
        }
    }

    /// The controller that this is about.
    fn target(&self, event: &Event) -> Option<u64> {
        let host = match event {
            Event::Deliver { to, .. } => *to,
            Event::Tick(id, _) | Event::Settle(id) | Event::Plan(id, _) => Host::Controller(*id),
            Event::Piped { pipe, from, .. } => {
                let ends = self.pipes.get(pipe)?.ends;
                ends[usize::from(ends[0] == *from)]
            }
            Event::PipeEnds(_, end) => *end,
            _ => return None,
        };
        match host {
            Host::Controller(id) => Some(id),
            _ => None,
        }
    }

    /// Its process stops for so long, and does not know that it did: what came meanwhile is waiting.
    pub(crate) fn pause(&mut self, id: u64, lasts: u64) {
        if self.members[&id].up.is_some() && !self.paused.contains_key(&id) {
            self.say(|| format!("m{id} is paused for {lasts} ms"));
            self.paused.insert(id, Vec::new());
            self.after(lasts, Event::Resume(id));
        }
    }

    pub(crate) fn resume(&mut self, id: u64) {
        for event in self.paused.remove(&id).unwrap_or_default() {
            self.after(0, event);
        }
    }

    fn happen(&mut self, event: Event) {
        if let Some(id) = self.target(&event)
            && let Some(waiting) = self.paused.get_mut(&id)
        {
            return waiting.push(event);
        }
        match event {
            Event::Resume(id) => self.resume(id),
            Event::Deliver { from, to, packet } => self.deliver(from, to, packet),
            Event::Tick(id, life) => self.tick(id, life),
            Event::Settle(id) => {
                self.settling.remove(&id);
                self.settle(id);
            }
            Event::Start(id) => self.start(id),
            Event::Bootstrap => self.bootstrap(),
            Event::ClientActs(id) => self.client_acts(id),
            Event::ClientWaited(id, attempt) => self.client_waited(id, attempt),
            Event::Fault => self.fault(),
            Event::FaultEnds(number) => self.fault_ends(number),
            Event::Piped { pipe, from, packet } => self.piped(pipe, from, packet),
            Event::PipeEnds(number, end) => self.pipe_ends(number, end),
            Event::Plan(id, life) => self.plan(id, life),
            Event::Shake(id) => self.shaken(id),
            Event::AgentStarts(id) => self.agent_starts(id),
            Event::AgentActs(id, life) => self.agent_acts(id, life),
            Event::Launched(id, life, instance) => self.launched(id, life, instance),
            Event::Stopped(id, life, instance) => self.stopped(id, life, instance),
            Event::GatewayActs(id) => self.gateway_acts(id),
            Event::Call(id) => self.call(id),
            Event::TryAgain(id, request) => self.try_again(id, request),
            Event::CallEnds(id, request) => self.call_ends(id, request),
            Event::Ran {
                machine,
                gateway,
                request,
                instance,
            } => self.ran(machine, gateway, request, instance),
        }
    }

    pub(crate) fn say(&self, what: impl FnOnce() -> String) {
        if self.options.trace {
            println!("{:>7} {:>6} {}", self.now, self.tally.events, what());
        }
    }

    pub(crate) fn after(&mut self, wait: u64, event: Event) {
        self.posted += 1;
        self.agenda.insert((self.now + wait, self.posted), event);
    }

    /// What the clock of a controller says.
    pub(crate) fn clock(&self, id: u64) -> Timestamp {
        self.clock_of(Host::Controller(id))
    }

    pub(crate) fn clock_of(&self, host: Host) -> Timestamp {
        let (skew, drift) = self.clocks[&host];
        let elapsed = i64::try_from(self.now).expect("a run is short");
        let at = i64::try_from(EPOCH).expect("a year") + elapsed + elapsed * drift / 1_000 + skew;
        Timestamp(u64::try_from(at).expect("after 1970"))
    }

    pub(crate) fn collect_deadline(&self) -> u64 {
        let usual = crate::member::leading(None).collect_deadline;
        u64::try_from(usual.as_millis()).expect("small")
    }

    pub(crate) fn some_leader(&self) -> Option<u64> {
        self.members
            .iter()
            .filter_map(|(id, member)| Some((member.status()?, *id)))
            .filter(|(status, _)| status.role == Role::Leader)
            .max_by_key(|(status, _)| status.term)
            .map(|(_, id)| id)
    }

    // ---- the network

    /// Puts a packet on its way, if it gets anywhere. False when it is lost.
    pub(crate) fn send(&mut self, from: Host, to: Host, packet: Packet) -> bool {
        if self.cuts.is_cut(from, to) || (!self.quiet && self.rng.chance(self.profile.drop)) {
            return false;
        }
        let raft = matches!(packet, Packet::Raft(_));
        if raft && !self.quiet && self.rng.chance(self.profile.duplicate) {
            let wait = self.latency();
            let packet = packet.clone();
            self.after(wait, Event::Deliver { from, to, packet });
        }
        let wait = self.latency();
        self.after(wait, Event::Deliver { from, to, packet });
        true
    }

    pub(crate) fn latency(&mut self) -> u64 {
        let (low, high) = self.profile.latency;
        if self.quiet {
            return self.rng.between(1, 5);
        }
        let wait = self.rng.between(low, high);
        if self.rng.chance(self.profile.late) {
            wait + self.rng.below(20_000)
        } else {
            wait
        }
    }

    fn deliver(&mut self, from: Host, to: Host, packet: Packet) {
        // A cut that came while it was on its way swallows it too.
        let cut = self.cuts.is_cut(from, to);
        match (to, packet) {
            (Host::Controller(id), Packet::Raft(message)) => {
                let Host::Controller(sender) = from else {
                    return;
                };
                self.raft_arrives(sender, id, *message, cut);
            }
            (
                Host::Controller(id),
                Packet::Ask {
                    attempt,
                    key,
                    request,
                },
            ) if !cut => {
                let Host::Client(client) = from else { return };
                let waiter = Waiter {
                    client,
                    attempt,
                    key,
                    asked: self.now,
                };
                self.asked(id, waiter, request);
            }
            (Host::Client(id), Packet::Answer { attempt, reply }) if !cut => {
                self.client_hears(id, attempt, from, reply);
            }
            (_, packet) if !cut => self.edge_packet(from, to, packet),
            _ => {}
        }
    }

    fn edge_packet(&mut self, from: Host, to: Host, packet: Packet) {
        match (from, to, packet) {
            (Host::Gateway(from), Host::Controller(id), Packet::Activate { function, request }) => {
                self.activation_arrives(id, from, function, &request);
            }
            (Host::Gateway(from), Host::Controller(id), Packet::Demand(report)) => {
                self.demand_arrives(id, from, *report);
            }
            (Host::Gateway(from), Host::Agent(id), Packet::Await { instance }) => {
                self.awaited(id, from, instance);
            }
            (Host::Gateway(from), Host::Agent(id), Packet::Invoke { request, instance }) => {
                self.invoked(id, from, request, instance);
            }
            (
                _,
                Host::Gateway(id),
                Packet::Activated {
                    function,
                    activation,
                    answer,
                },
            ) => self.activated(id, function, &activation, answer),
            (_, Host::Gateway(id), Packet::NotLeading) => self.not_leading(id),
            (_, Host::Gateway(id), Packet::Born { instance, ready }) => {
                self.born(id, instance, ready);
            }
            (_, Host::Gateway(id), Packet::NotTaken { request }) => self.not_taken(id, request),
            (_, Host::Gateway(id), Packet::Ran { request }) => self.gateway_hears_end(id, request),
            _ => {}
        }
    }

    fn raft_arrives(&mut self, from: u64, to: u64, message: Message, cut: bool) {
        let snapshot = message.get_msg_type() == MessageType::MsgSnapshot;
        let up = self.members[&to].up.is_some();
        let arrived = up && !cut;
        if snapshot && let Some(sender) = self.running(from) {
            sender.core.snapshot_sent(to, arrived);
            self.soon(from);
        }
        if !arrived {
            return self.lost(from, to);
        }
        let what = message.get_msg_type();
        self.say(|| format!("m{to} hears {what:?} from m{from}, term {}", message.term));
        if let Some(running) = self.running(to) {
            running.core.step(message);
        }
        self.soon(to);
    }

    /// The sender may notice that it could not send.
    fn lost(&mut self, from: u64, to: u64) {
        if self.rng.chance(5_000)
            && let Some(sender) = self.running(from)
        {
            sender.core.unreachable(to);
            self.soon(from);
        }
    }

    // ---- controllers

    pub(crate) fn running(&mut self, id: u64) -> Option<&mut crate::member::Running> {
        self.members.get_mut(&id)?.up.as_deref_mut()
    }

    pub(crate) fn start(&mut self, id: u64) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        if !member.start(id, &self.options, &self.profile, &self.oracle) {
            return;
        }
        let life = member.life;
        self.say(|| format!("m{id} starts"));
        let wait = self.rng.between(1, self.profile.tick_ms);
        self.after(wait, Event::Tick(id, life));
        self.soon(id);
    }

    pub(crate) fn crash(&mut self, id: u64) {
        let wait = self.rng.wait(self.profile.fault_lasts_ms);
        self.crash_for(id, wait);
    }

    fn crash_for(&mut self, id: u64, wait: u64) {
        let Some(member) = self.members.get_mut(&id).filter(|m| m.up.is_some()) else {
            return;
        };
        let rng = &mut self.rng;
        member.crash(|unsynced| usize::try_from(rng.below(unsynced as u64 + 1)).expect("small"));
        self.tally.crashes += 1;
        self.say(|| format!("m{id} crashes"));
        self.break_pipes_of(Host::Controller(id));
        self.after(wait, Event::Start(id));
    }

    fn tick(&mut self, id: u64, life: u64) {
        let drift = self.clocks[&Host::Controller(id)].1;
        let member = self.members.get_mut(&id).expect("of the group");
        if member.life != life || member.up.is_none() {
            return;
        }
        let patience = u32::try_from(self.profile.election_ticks).expect("small");
        let forgotten = self.now.saturating_sub(2 * client::patience_ms());
        let running = member.up.as_deref_mut().expect("just seen");
        running.core.log_mut().sync_late();
        running.core.tick();
        running.age_reads(patience, forgotten);
        // A clock that runs fast ticks often.
        let tick = i64::try_from(self.profile.tick_ms).expect("small");
        let wait = u64::try_from(tick - tick * drift / 1_000).expect("drift is small");
        self.after(wait, Event::Tick(id, life));
        self.soon(id);
    }

    /// Works soon, from inside something that works.
    pub(crate) fn later(&mut self, id: u64) {
        if self.settling.insert(id) {
            self.after(1, Event::Settle(id));
        }
    }

    /// Works at once, or a little later, so that batches grow and other things come between.
    fn soon(&mut self, id: u64) {
        if self.rng.chance(7_000) {
            return self.settle(id);
        }
        if self.settling.insert(id) {
            let wait = self.rng.between(0, 3);
            self.after(wait, Event::Settle(id));
        }
    }

    /// Works through everything that is ready at one member.
    fn settle(&mut self, id: u64) {
        if !self.quiet && self.rng.chance(self.profile.cut_inside) {
            let lives = self.rng.below(3);
            if let Some(running) = self.running(id) {
                running.core.log_mut().lives = Some(lives);
            }
        }
        loop {
            let mut out = Outbox::default();
            let Some(running) = self.running(id) else {
                return;
            };
            running.ask_for_reads();
            if !running.core.has_work() {
                break;
            }
            let result = running.core.advance(&mut out);
            let voted = |m: &Message| m.get_msg_type() == MessageType::MsgRequestVoteResponse;
            let voted = out.messages.iter().any(voted);
            self.carry_out(id, out);
            if voted && !self.quiet && self.rng.chance(self.profile.cut_after_vote) {
                let wait = self.rng.between(1, 15);
                return self.crash_for(id, wait);
            }
            if let Err(fatal) = result {
                self.say(|| format!("m{id} stops: {fatal}"));
                if !matches!(fatal, coracle_replica::Fatal::Log(_)) {
                    self.oracle.fail(format!("{id} cannot go on: {fatal:?}"));
                }
                self.crash(id);
                return;
            }
        }
        self.look(id);
    }

    fn carry_out(&mut self, id: u64, out: Outbox) {
        for message in out.messages {
            let to = message.to;
            if message.get_msg_type() == MessageType::MsgSnapshot {
                self.tally.snapshots += 1;
            }
            let snapshot = message.get_msg_type() == MessageType::MsgSnapshot;
            let packet = Packet::Raft(Box::new(message));
            if !self.send(Host::Controller(id), Host::Controller(to), packet) {
                if snapshot && let Some(running) = self.running(id) {
                    running.core.snapshot_sent(to, false);
                }
                self.lost_quietly(id, to);
            }
        }
        for (position, leading, response) in out.applied {
            let Some(running) = self.running(id) else {
                return;
            };
            let (dropped, waiter) = running.applied(position);
            for waiter in dropped {
                self.answer(id, waiter, Reply::Unknown);
            }
            if leading && let Some(waiter) = waiter {
                self.oracle.acknowledged(position.index, position.term);
                self.answer(id, waiter, Reply::Written(response));
            }
        }
        if let Some(running) = self.running(id) {
            for (context, index) in out.reads {
                running.read_confirmed(context, index);
            }
        }
    }

    /// As [`World::lost`], without working on it at once: this is called from inside that.
    fn lost_quietly(&mut self, from: u64, to: u64) {
        if self.rng.chance(5_000)
            && let Some(sender) = self.running(from)
        {
            sender.core.unreachable(to);
        }
    }

    /// After work: what its status says, who may be answered, who has to be let go.
    fn look(&mut self, id: u64) {
        let Some(running) = self.running(id) else {
            return;
        };
        let status = running.core.status();
        let let_go = running.check_leadership(&status);
        let readable = running.readable(status.applied);
        for waiter in let_go {
            self.answer(id, waiter, Reply::Unknown);
        }
        for waiter in readable {
            let view = self.members[&id].up.as_ref().map(|up| up.leader.view());
            let Some(view) = view else { return };
            let value = client::value(&view, waiter.key);
            self.answer(id, waiter, Reply::Value(value));
        }
        if status.role == Role::Leader {
            self.oracle.leads(id, status.term);
            if status.caught_up {
                self.oracle.caught_up(id, status.term, status.applied);
            }
        }
        self.serve(id);
    }

    fn asked(&mut self, id: u64, waiter: Waiter, request: Request) {
        let at = self.clock(id);
        let Some(running) = self.running(id) else {
            return;
        };
        let reply = match request {
            // Of any member: a follower asks the leader.
            Request::Read => {
                running.reads_queued.push(waiter);
                None
            }
            Request::Write { write_id, body } => {
                let bytes = Leader::command(write_id, at, *body);
                match running.core.propose(bytes) {
                    Ok(position) => {
                        running.proposals.push_back((position, waiter));
                        None
                    }
                    Err(Refused::NotLeader { leader }) => Some(Reply::NotLeader(leader)),
                    Err(_) => Some(Reply::Busy),
                }
            }
        };
        match reply {
            Some(reply) => self.answer(id, waiter, reply),
            None => self.soon(id),
        }
    }

    fn answer(&mut self, id: u64, waiter: Waiter, reply: Reply) {
        let Waiter {
            client, attempt, ..
        } = waiter;
        let packet = Packet::Answer { attempt, reply };
        self.send(Host::Controller(id), Host::Client(client), packet);
    }

    fn bootstrap(&mut self) {
        let leader = self.some_leader();
        let made = leader.and_then(|id| {
            let view = self.members[&id].up.as_ref()?.leader.view();
            let name = client::reference(0).namespace;
            view.namespace_named(ProjectId::DEFAULT, &name).map(|_| ())
        });
        if made.is_some() {
            for id in 0..self.profile.clients {
                self.after(id + 1, Event::ClientActs(id));
            }
            for id in 1..=self.profile.gateways {
                self.after(500 + id, Event::Call(id));
            }
            return self.schedule_fault();
        }
        if let Some(id) = leader {
            let at = self.clock(id);
            let write_id = WriteId(uuid::Uuid::from_u128(1));
            let command = Leader::command(write_id, at, client::namespace());
            if let Some(running) = self.running(id) {
                // One that is not taken is proposed again.
                let _ = running.core.propose(command);
            }
            self.soon(id);
        }
        self.after(200, Event::Bootstrap);
    }

    // ---- clients

    fn client_acts(&mut self, id: u64) {
        if self.clients[&id].pending.is_none() {
            if self.quiet {
                return;
            }
            self.new_operation(id);
        }
        self.attempt(id);
    }

    fn new_operation(&mut self, id: u64) {
        let key = self.rng.below(self.profile.keys);
        let action = match self.rng.below(100) {
            0..30 => Action::Create {
                id: self.rng.uuid(),
            },
            30..48 => Action::Delete,
            48..72 => {
                self.versions += 1;
                Action::Update {
                    version: self.versions,
                }
            }
            _ => Action::Read,
        };
        let write = WriteId(self.rng.uuid());
        let op = Op {
            client: id,
            write,
            action,
            called: self.oracle.moment(),
            answered: None,
        };
        let pending = Pending {
            key,
            op,
            attempts: 0,
            doubtful: false,
        };
        self.say(|| format!("c{id} f{key} {action:?}"));
        self.client(id).pending = Some(pending);
    }

    fn client(&mut self, id: u64) -> &mut Client {
        self.clients.get_mut(&id).expect("one of them")
    }

    fn attempt(&mut self, id: u64) {
        let members = self.profile.members;
        let random = self.rng.between(1, members);
        let prefer = self.rng.chance(9_000);
        let client = self.client(id);
        client.attempt += 1;
        let attempt = client.attempt;
        let to = client.prefers.filter(|_| prefer).unwrap_or(random);
        client.prefers = Some(to);
        let Some(pending) = &mut client.pending else {
            return;
        };
        pending.attempts += 1;
        let key = pending.key;
        let request = match client::body(key, pending.op.action) {
            None => Request::Read,
            Some(body) => Request::Write {
                write_id: pending.op.write,
                body: Box::new(body),
            },
        };
        let packet = Packet::Ask {
            attempt,
            key,
            request,
        };
        self.send(Host::Client(id), Host::Controller(to), packet);
        self.after(client::patience_ms(), Event::ClientWaited(id, attempt));
    }

    fn client_waited(&mut self, id: u64, attempt: u64) {
        let client = self.client(id);
        if client.attempt != attempt {
            return;
        }
        let Some(pending) = &mut client.pending else {
            return;
        };
        // The message may be on its way still.
        pending.doubtful = true;
        client.prefers = None;
        self.again_or_not(id);
    }

    fn client_hears(&mut self, id: u64, attempt: u64, from: Host, reply: Reply) {
        let client = self.client(id);
        if client.attempt != attempt || client.pending.is_none() {
            return;
        }
        let outcome = match reply {
            Reply::Written(answer) => match client::outcome(&answer) {
                Some(outcome) => outcome,
                None => {
                    self.oracle
                        .fail(format!("a client was answered {answer:?}"));
                    return;
                }
            },
            Reply::Value(value) => Outcome::Value(value),
            Reply::NotLeader(leader) => {
                client.prefers = leader.filter(|leader| Host::Controller(*leader) != from);
                return self.again_or_not(id);
            }
            Reply::Busy => return self.again_or_not(id),
            Reply::Unknown => {
                if let Some(pending) = &mut client.pending {
                    pending.doubtful = true;
                }
                client.prefers = None;
                return self.again_or_not(id);
            }
        };
        self.finish(id, Some(outcome));
    }

    /// Tries once more, under the same id, or leaves it there.
    fn again_or_not(&mut self, id: u64) {
        let gives_up = !self.quiet && self.rng.chance(600);
        let client = self.client(id);
        let doubtful = client.pending.as_ref().is_some_and(|p| p.doubtful);
        client.attempt += 1;
        if gives_up && doubtful {
            return self.finish(id, None);
        }
        let wait = self.rng.wait(60);
        self.after(wait, Event::ClientActs(id));
    }

    fn finish(&mut self, id: u64, outcome: Option<Outcome>) {
        let moment = self.oracle.moment();
        let client = self.client(id);
        client.attempt += 1;
        let Some(Pending { key, mut op, .. }) = client.pending.take() else {
            return;
        };
        self.say(|| format!("c{id} f{key} {:?}: {outcome:?}", op.action));
        op.answered = outcome.map(|outcome| (moment, outcome));
        match outcome {
            None => self.tally.unknown += 1,
            Some(Outcome::Value(_)) => self.tally.reads += 1,
            Some(_) => self.tally.acknowledged += 1,
        }
        self.history.entry(key).or_default().push(op);
        let wait = self.rng.wait(self.profile.think_ms);
        self.after(wait, Event::ClientActs(id));
    }

    // ---- the end

    /// Everyone has applied everything that was acknowledged, and nobody waits.
    fn is_at_rest(&self) -> bool {
        let newest = self.oracle.last_acknowledged();
        let statuses: Option<Vec<_>> = self.members.values().map(Member::status).collect();
        let Some(statuses) = statuses else {
            return false;
        };
        let last = statuses.iter().map(|s| s.applied).max().unwrap_or(0);
        let leading = statuses.iter().filter(|s| s.leading().is_some()).count();
        let waiting = self.clients.values().any(|client| client.pending.is_some());
        let replicated = leading == 1
            && !waiting
            && last >= newest
            && statuses.iter().all(|s| s.applied == last);
        replicated && self.is_idle() && self.unrest().is_none()
    }

    /// What is not as it should be once everything has had its time.
    fn unrest(&self) -> Option<String> {
        let leader = self.some_leader()?;
        let running = self.members[&leader].up.as_ref()?;
        if running.lead.led.is_none() {
            return Some(format!("{leader} has not begun to lead"));
        }
        let view = running.leader.view();
        // By revision: those that answer, and all.
        let mut counts: BTreeMap<RevisionId, (u32, u32)> = BTreeMap::new();
        for machine in self.machines.values() {
            for process in machine.processes.values() {
                let (ready, all) = counts.entry(process.spec.revision).or_default();
                *ready += u32::from(process.ready && !process.stopping);
                *all += 1;
            }
        }
        for (revision, (_, all)) in &counts {
            let Some(record) = view.function(revision.function) else {
                return Some(format!(
                    "{all} instances of {revision}, whose function is deleted"
                ));
            };
            let function = &record.function;
            if !function.may_run() {
                return Some(format!("{all} instances of {revision}, which may not run"));
            }
            if function.serving != Some(*revision) {
                return Some(format!(
                    "{all} instances of {revision}, which does not serve"
                ));
            }
        }
        for record in view.functions().filter(|record| record.function.may_run()) {
            let Some(serving) = record.function.serving else {
                // Its deploy failed, as the seed said.
                if record.latest().stage.is_final() {
                    continue;
                }
                return Some(format!("{} does not serve yet", record.function.name));
            };
            if record.function.latest != serving && !record.latest().stage.is_final() {
                return Some(format!("{} is being deployed", record.function.name));
            }
            let (ready, all) = counts.get(&serving).copied().unwrap_or_default();
            let (min, max) = (record.function.scale.min(), record.function.scale.max());
            if ready < min || all > max {
                return Some(format!(
                    "{serving} has {all} instances, of which {ready} answer: at least {min}, at most {max}"
                ));
            }
        }
        None
    }

    /// An operation whose client never learned its outcome, with what the log says of it: that it
    /// never happened, or by when and with which outcome it did. As unknown ones, a dozen of them
    /// would have to be tried in every order.
    fn resolved(&self, op: &Op) -> Option<Op> {
        if op.answered.is_some() {
            return Some(op.clone());
        }
        let (moment, answer) = self.oracle.first_written(op.write)?;
        let answered = client::outcome(&answer).map(|outcome| (moment, outcome));
        Some(Op {
            answered,
            ..op.clone()
        })
    }

    fn check_history(&self) -> Result<(), String> {
        for (key, ops) in &self.history {
            let ops: Vec<Op> = ops.iter().filter_map(|op| self.resolved(op)).collect();
            let ops = &ops;
            if let Err(op) = linear::check(ops) {
                return Err(format!(
                    "the history of f{key} has no explanation: client {} was answered {:?} to {:?}",
                    op.client, op.answered, op.action
                ));
            }
        }
        Ok(())
    }
}

/// Runs one seed and catches what panics: raft-rs ends a process that way when it sees what
/// cannot be.
pub fn run(options: Options) -> Result<Tally, String> {
    let ran = std::panic::catch_unwind(move || World::new(options).run());
    ran.unwrap_or_else(|cause| {
        let text = cause
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| cause.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("panicked: {}", text.unwrap_or_default()))
    })
}
