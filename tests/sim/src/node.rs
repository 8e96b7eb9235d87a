//! Nodes: machines with processes on them, and the agents that decide. The driver is imitated; what
//! is to be done, and whose orders count, is real.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use coracle_agent::{
    Outcome,
    ledger::{LedgerError, Store},
    testing::{Ended, Heard, Parts, Task},
};
use coracle_driver::{Launched, Origin, Survivor};
use coracle_model::{
    ExitReason, InstanceId, InstanceSpec, NodeId, Stamp, Timestamp,
    node::{Node, Resources},
};
use coracle_proto::v1::{self, controller_message};

use crate::{
    net::Host,
    options::Planted,
    world::{Event, Packet, World},
};

/// What an instance gets that the leader no longer lists.
const GRACE: Duration = Duration::from_millis(500);
const REPORT_EVERY: u64 = 1_000;
const SILENT_AFTER: u64 = 3_000;
const RECONCILE_EVERY: u64 = 2_000;

/// The agent's small file: what was written survives its crash.
#[derive(Debug, Clone, Default)]
struct Kept(Arc<Mutex<Option<(u64, u64)>>>);

impl Store for Kept {
    fn read(&self) -> Result<Option<(u64, u64)>, LedgerError> {
        Ok(*self.0.lock().expect("never poisoned: a plain copy"))
    }

    fn write(&self, term: (u64, u64)) -> Result<(), LedgerError> {
        *self.0.lock().expect("never poisoned: a plain copy") = Some(term);
        Ok(())
    }
}

/// A copy of a function that runs on the machine, whether or not an agent watches.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) spec: Arc<InstanceSpec>,
    pub(crate) ready: bool,
    /// Takes nothing new.
    pub(crate) stopping: bool,
    pub(crate) running: BTreeSet<u64>,
    started_at: Timestamp,
}

#[derive(Debug)]
struct Up {
    parts: Parts,
    pipe: Option<u64>,
    number: u64,
    dirty: bool,
    unacknowledged: Option<u64>,
    heard_at: u64,
    reported_at: u64,
    reconciled_at: u64,
    acts_at: Option<u64>,
}

#[derive(Debug, Default)]
pub(crate) struct Machine {
    kept: Kept,
    up: Option<Box<Up>>,
    pub(crate) processes: BTreeMap<InstanceId, Process>,
    life: u64,
    /// The newest stamp that was ever accepted, and in which life.
    newest: (Stamp, u64),
    /// Gateways that wait for an instance.
    waiting: BTreeMap<InstanceId, BTreeSet<u64>>,
}

impl Machine {
    pub(crate) fn life(&self) -> u64 {
        self.life
    }
}

pub(crate) fn node_id(number: u64) -> NodeId {
    NodeId(uuid::Uuid::from_u128(0x0d0e_0000 + u128::from(number)))
}

fn describe(number: u64, now: Timestamp) -> Node {
    Node {
        id: node_id(number),
        name: format!("node-{number}"),
        version: "sim".to_owned(),
        labels: BTreeMap::new(),
        allocatable: Resources {
            memory_mib: 1_024,
            cpu_millis: 4_000,
        },
        address: format!("http://node-{number}:7000"),
        stems: BTreeMap::new(),
        images: vec!["python3.11".parse().expect("a valid name")],
        reported_at: now,
        schedulable: true,
    }
}

impl World {
    pub(crate) fn agent_starts(&mut self, id: u64) {
        let at = self.now;
        let machine = self.machines.get_mut(&id).expect("one of them");
        if machine.up.is_some() {
            return;
        }
        machine.life += 1;
        // Half-made ones are cleared; the others are found, and a stop that was under way is not
        // known any more.
        machine.processes.retain(|_, process| process.ready);
        let mut survivors = Vec::new();
        for (instance, process) in &mut machine.processes {
            process.stopping = false;
            survivors.push(Survivor {
                id: *instance,
                revision: process.spec.revision,
                runtime: process.spec.runtime.clone(),
                socket: "/sim".into(),
                memory: process.spec.memory,
                cpu: process.spec.cpu,
                concurrency: process.spec.concurrency.get(),
                started_at: process.started_at,
            });
        }
        let parts = match Parts::start(Box::new(machine.kept.clone()), survivors) {
            Ok(parts) => parts,
            Err(error) => return self.oracle.fail(format!("agent {id}: {error}")),
        };
        machine.up = Some(Box::new(Up {
            parts,
            pipe: None,
            number: 0,
            dirty: false,
            unacknowledged: None,
            heard_at: at,
            reported_at: at,
            reconciled_at: at,
            acts_at: None,
        }));
        self.say(|| format!("a{id} starts"));
        self.agent_within(id, 1);
    }

    /// The process of the agent dies; what runs goes on. Or the whole machine does.
    pub(crate) fn agent_crashes(&mut self, id: u64, machine_too: bool) {
        let machine = self.machines.get_mut(&id).expect("one of them");
        if machine.up.is_none() {
            return;
        }
        machine.up = None;
        machine.waiting.clear();
        if machine_too {
            machine.processes.clear();
        }
        self.tally.crashes += 1;
        self.say(|| {
            format!(
                "a{id} crashes{}",
                if machine_too { " with its machine" } else { "" }
            )
        });
        self.break_pipes_of(Host::Agent(id));
        let wait = self.rng.wait(self.profile.fault_lasts_ms);
        self.after(wait, Event::AgentStarts(id));
    }

    fn up(&mut self, id: u64) -> Option<&mut Up> {
        self.machines.get_mut(&id)?.up.as_deref_mut()
    }

    fn agent_within(&mut self, id: u64, wait: u64) {
        let at = self.now + wait;
        let machine = self.machines.get_mut(&id).expect("one of them");
        let life = machine.life;
        let Some(up) = machine.up.as_deref_mut() else {
            return;
        };
        if up
            .acts_at
            .is_none_or(|planned| planned > at || planned < self.now)
        {
            up.acts_at = Some(at);
            self.after(wait, Event::AgentActs(id, life));
        }
    }

    /// The session's loop: opens, reports, gives up; and the timer of the reconciler.
    pub(crate) fn agent_acts(&mut self, id: u64, life: u64) {
        let at = self.now;
        if self.machines[&id].life != life {
            return;
        }
        let Some(up) = self.up(id) else { return };
        if up.acts_at.is_some_and(|planned| planned > at) {
            return;
        }
        up.acts_at = None;
        if up.reconciled_at + RECONCILE_EVERY <= at {
            up.reconciled_at = at;
            self.agent_reconciles(id);
        }
        let Some(up) = self.up(id) else { return };
        match up.pipe {
            None => self.agent_opens(id),
            Some(pipe) if at >= up.heard_at + SILENT_AFTER => {
                up.pipe = None;
                self.say(|| format!("a{id} gives its leader up"));
                self.break_pipe(pipe);
            }
            Some(_) => {
                up.dirty |= at >= up.reported_at + REPORT_EVERY;
                let paced = up.unacknowledged.is_none_or(|sent| sent + 100 <= at);
                if up.dirty && paced {
                    self.agent_reports(id);
                }
            }
        }
        self.agent_within(id, 120);
    }

    /// Its session breaks, which it notices at once.
    pub(crate) fn shaken(&mut self, id: u64) {
        if let Some(up) = self.up(id)
            && let Some(pipe) = up.pipe.take()
        {
            self.break_pipe(pipe);
            let wait = self.rng.between(1, 20);
            self.agent_within(id, wait);
        }
    }

    fn agent_opens(&mut self, id: u64) {
        let mut to = self.rng.between(1, self.profile.members);
        if self.profile.shaky && self.rng.chance(8_000) {
            // Whoever says that it leads; there may be two.
            let leads = |id: &u64| {
                self.members[id]
                    .up
                    .as_ref()
                    .is_some_and(|up| up.lead.led.is_some())
            };
            let leaders: Vec<u64> = self.members.keys().copied().filter(leads).collect();
            if !leaders.is_empty() {
                to = *self.rng.pick(&leaders);
            }
        }
        let to = Host::Controller(to);
        let pipe = self.open_pipe(Host::Agent(id), to);
        let planted = self.options.planted == Some(Planted::OlderStampAccepted);
        let (at, now) = (self.now, self.clock_of(Host::Agent(id)));
        let Some(up) = self.up(id) else { return };
        up.pipe = Some(pipe);
        up.parts.new_session();
        up.number = 1;
        up.heard_at = at;
        up.reported_at = at;
        up.unacknowledged = Some(at);
        up.dirty = false;
        let mut report = up.parts.report(&describe(id, now), 1);
        if planted {
            // A deposed leader refuses a node that has obeyed its successor, so a ledger that takes
            // everything has to remember nothing as well to do harm.
            report.accepted = None;
        }
        self.pipe(pipe, Host::Agent(id), Packet::Hello(Box::new(report)));
    }

    fn agent_reports(&mut self, id: u64) {
        let (at, now) = (self.now, self.clock_of(Host::Agent(id)));
        let Some(up) = self.up(id) else { return };
        let Some(pipe) = up.pipe else { return };
        up.number += 1;
        up.dirty = false;
        up.reported_at = at;
        up.unacknowledged = Some(at);
        let report = up.parts.report(&describe(id, now), up.number);
        self.pipe(pipe, Host::Agent(id), Packet::Report(Box::new(report)));
    }

    pub(crate) fn agent_loses(&mut self, id: u64, pipe: u64) {
        if let Some(up) = self.up(id)
            && up.pipe == Some(pipe)
        {
            up.pipe = None;
            let wait = self.rng.between(5, 120);
            self.agent_within(id, wait);
        }
    }

    pub(crate) fn agent_hears(&mut self, id: u64, pipe: u64, message: v1::ControllerMessage) {
        let at = self.now;
        let planted = self.options.planted;
        let Some(up) = self.up(id).filter(|up| up.pipe == Some(pipe)) else {
            return;
        };
        up.heard_at = at;
        let given = stamp(&message);
        let message = match planted {
            Some(Planted::OlderStampAccepted) => obedient(message, up.parts.accepted()),
            _ => message,
        };
        match up.parts.hear(message) {
            Ok(Heard::Acknowledged(number)) => {
                if number >= up.number {
                    up.unacknowledged = None;
                }
                self.agent_reconciles(id);
            }
            Ok(Heard::Nothing) => {}
            Ok(Heard::Accepted(accepted)) => {
                up.dirty = true;
                self.accepted(id, given.unwrap_or(accepted));
                self.agent_reconciles(id);
                self.agent_within(id, 5);
            }
            Err(ended) => {
                if let Ended::Refused(why) = &ended {
                    self.tally.refused += 1;
                    self.say(|| format!("a{id}: {why}"));
                }
                if let Some(up) = self.up(id) {
                    up.pipe = None;
                }
                self.break_pipe(pipe);
                let wait = self.rng.between(20, 300);
                self.agent_within(id, wait);
            }
        }
    }

    /// Within a process the sequence counts too; over restarts, the term.
    fn accepted(&mut self, id: u64, stamp: Stamp) {
        let machine = self.machines.get_mut(&id).expect("one of them");
        let (newest, life) = machine.newest;
        let term = |s: Stamp| (s.incarnation, s.term);
        let older = term(stamp) < term(newest)
            || (term(stamp) == term(newest)
                && life == machine.life
                && stamp.sequence < newest.sequence);
        machine.newest = (stamp, machine.life);
        if older {
            self.oracle.fail(format!(
                "agent {id} accepted an order of {stamp} after one of {newest}"
            ));
        }
    }

    fn agent_reconciles(&mut self, id: u64) {
        let now = self.clock_of(Host::Agent(id));
        let machine = self.machines.get_mut(&id).expect("one of them");
        let life = machine.life;
        let Some(up) = machine.up.as_deref_mut() else {
            return;
        };
        let tasks = up.parts.reconcile(GRACE, now);
        up.dirty |= !tasks.is_empty();
        for task in tasks {
            match task {
                Task::Launch(spec) => {
                    let instance = spec.id;
                    let process = Process {
                        spec,
                        ready: false,
                        stopping: false,
                        running: BTreeSet::new(),
                        started_at: now,
                    };
                    let machine = self.machines.get_mut(&id).expect("one of them");
                    machine.processes.insert(instance, process);
                    self.say(|| format!("a{id} launches {instance}"));
                    let wait = self.rng.wait(self.profile.launch_ms);
                    self.after(wait, Event::Launched(id, life, instance));
                }
                Task::Stop(instance, grace) => self.stop(id, instance, grace),
            }
        }
    }

    fn stop(&mut self, id: u64, instance: InstanceId, grace: Duration) {
        let machine = self.machines.get_mut(&id).expect("one of them");
        let life = machine.life;
        let Some(process) = machine.processes.get_mut(&instance) else {
            // An unknown id is a success.
            return self.exited(id, instance, ExitReason::Stopped);
        };
        process.stopping = true;
        let idle = process.running.is_empty();
        let grace = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let wait = if idle { self.rng.between(1, 30) } else { grace };
        self.say(|| format!("a{id} stops {instance}"));
        self.after(wait, Event::Stopped(id, life, instance));
    }

    pub(crate) fn launched(&mut self, id: u64, life: u64, instance: InstanceId) {
        let now = self.clock_of(Host::Agent(id));
        let fails = !self.quiet && self.rng.chance(300);
        let machine = self.machines.get_mut(&id).expect("one of them");
        if machine.life != life {
            return;
        }
        let Some(up) = machine.up.as_deref_mut() else {
            return;
        };
        let Some(process) = machine.processes.get_mut(&instance) else {
            return;
        };
        if fails {
            let message = "as the seed says".to_owned();
            return self.exited(id, instance, ExitReason::LaunchFailed { message });
        }
        process.ready = true;
        let launched = Launched {
            socket: "/sim".into(),
            origin: Origin::Scratch,
            start: Duration::from_millis(1),
            init: Duration::from_millis(1),
        };
        let stop = up.parts.ready(instance, launched, now);
        up.dirty = true;
        self.tell_waiting(id, instance);
        if let Some(grace) = stop {
            self.stop(id, instance, grace);
        }
        self.agent_within(id, 1);
    }

    pub(crate) fn stopped(&mut self, id: u64, life: u64, instance: InstanceId) {
        if self.machines[&id].life == life {
            self.exited(id, instance, ExitReason::Stopped);
        }
    }

    /// A process is gone.
    pub(crate) fn exited(&mut self, id: u64, instance: InstanceId, reason: ExitReason) {
        let now = self.clock_of(Host::Agent(id));
        let machine = self.machines.get_mut(&id).expect("one of them");
        if machine.processes.remove(&instance).is_some() {
            self.say(|| format!("a{id}: {instance} ended"));
        }
        if let Some(up) = self.up(id) {
            up.parts.exited(instance, reason, now);
            up.dirty = true;
        }
        self.tell_waiting(id, instance);
        self.agent_within(id, 1);
    }

    /// A gateway asks how a start went.
    pub(crate) fn awaited(&mut self, id: u64, gateway: u64, instance: InstanceId) {
        let machine = self.machines.get_mut(&id).expect("one of them");
        if machine.up.is_some() {
            machine.waiting.entry(instance).or_default().insert(gateway);
            self.tell_waiting(id, instance);
        }
    }

    fn tell_waiting(&mut self, id: u64, instance: InstanceId) {
        let machine = self.machines.get_mut(&id).expect("one of them");
        let outcome = machine
            .up
            .as_ref()
            .and_then(|up| up.parts.outcome(instance));
        let Some(outcome) = outcome else { return };
        let ready = matches!(outcome, Outcome::Ready(_));
        for gateway in machine.waiting.remove(&instance).unwrap_or_default() {
            let packet = Packet::Born { instance, ready };
            self.send(Host::Agent(id), Host::Gateway(gateway), packet);
        }
    }
}

fn stamp(message: &v1::ControllerMessage) -> Option<Stamp> {
    let wire = match message.body.as_ref()? {
        controller_message::Body::Snapshot(snapshot) => snapshot.stamp,
        controller_message::Body::Delta(delta) => delta.stamp,
        _ => None,
    };
    wire.map(|s| Stamp {
        incarnation: s.incarnation,
        term: s.term,
        sequence: s.sequence,
    })
}

/// The planted bug: a ledger that takes whatever comes.
fn obedient(mut message: v1::ControllerMessage, accepted: Stamp) -> v1::ControllerMessage {
    let lift = |stamp: &mut Option<v1::Stamp>| {
        if let Some(stamp) = stamp
            && (stamp.incarnation, stamp.term) < (accepted.incarnation, accepted.term)
        {
            (stamp.incarnation, stamp.term) = (accepted.incarnation, accepted.term);
            stamp.sequence = accepted.sequence + 1;
        }
    };
    match &mut message.body {
        Some(controller_message::Body::Snapshot(snapshot)) => lift(&mut snapshot.stamp),
        Some(controller_message::Body::Delta(delta)) => lift(&mut delta.stamp),
        _ => {}
    }
    message
}
