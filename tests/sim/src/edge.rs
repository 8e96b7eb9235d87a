//! Gateways: the real route table with its fences and slots; the queue, the activations and the
//! retries are imitated by the rules of the gateway's OVERVIEW.md: a request goes elsewhere only
//! after *refused* or *busy*, which say that nothing of it was consumed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use coracle_gateway::testing::{Gateway, Taken};
use coracle_model::{FunctionId, InstanceId, NodeId};
use coracle_proto::{Wire as _, v1};

use crate::{
    net::Host,
    node,
    options::Planted,
    world::{Event, Packet, World},
};

const ASK_AGAIN: u64 = 500;
const DEMAND_EVERY: u64 = 500;

/// One synchronous request that is not idempotent.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) function: FunctionId,
    deadline: u64,
    pub(crate) executed: u32,
    over: bool,
}

#[derive(Debug)]
struct Asked {
    id: [u8; 16],
    at: u64,
    /// An answer came: a new one is a new question.
    answered: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Edge {
    real: Gateway,
    pipe: Option<u64>,
    prefers: Option<u64>,
    waiting: BTreeMap<FunctionId, VecDeque<u64>>,
    inside: BTreeMap<u64, (FunctionId, Taken)>,
    asked: BTreeMap<FunctionId, Asked>,
    /// Named by the leader, and not heard of from their nodes.
    awaited: BTreeMap<InstanceId, (FunctionId, NodeId, u32)>,
    /// Requests since the last report of demand.
    arrivals: BTreeMap<FunctionId, u64>,
    reported: BTreeSet<FunctionId>,
    /// Incarnation and term of the newest routes taken.
    newest: Option<(u64, u64)>,
}

impl World {
    fn edge(&mut self, id: u64) -> &mut Edge {
        self.edges.get_mut(&id).expect("one of them")
    }

    /// Its process dies: what was inside is given up on, and it starts anew with nothing.
    pub(crate) fn gateway_crashes(&mut self, id: u64) {
        self.say(|| format!("g{id} crashes"));
        self.break_pipes_of(Host::Gateway(id));
        let edge = std::mem::take(self.edge(id));
        let waiting = edge.waiting.into_values().flatten();
        let requests: Vec<u64> = edge.inside.into_keys().chain(waiting).collect();
        for request in requests {
            self.over(request);
        }
        self.tally.crashes += 1;
    }

    /// Its timers.
    pub(crate) fn gateway_acts(&mut self, id: u64) {
        let at = self.now;
        if self.edge(id).pipe.is_none() {
            self.gateway_subscribes(id);
        }
        let functions: Vec<FunctionId> = self.edge(id).waiting.keys().copied().collect();
        for function in functions {
            self.give_up_late(id, function);
            self.dispatch(id, function);
        }
        let awaited: Vec<(InstanceId, NodeId)> = {
            let edge = self.edge(id);
            edge.awaited.iter().map(|(i, (_, n, _))| (*i, *n)).collect()
        };
        for (instance, node) in awaited {
            self.await_instance(id, instance, node);
        }
        if at % DEMAND_EVERY < 100 {
            self.report_demand(id);
        }
        self.after(100, Event::GatewayActs(id));
    }

    fn gateway_subscribes(&mut self, id: u64) {
        let to = self.rng.between(1, self.profile.members);
        let edge = self.edge(id);
        let to = edge.prefers.take().unwrap_or(to);
        edge.real.restart();
        let pipe = self.open_pipe(Host::Gateway(id), Host::Controller(to));
        self.edge(id).pipe = Some(pipe);
        self.pipe(pipe, Host::Gateway(id), Packet::Subscribe);
    }

    pub(crate) fn gateway_loses(&mut self, id: u64, pipe: u64) {
        let edge = self.edge(id);
        if edge.pipe == Some(pipe) {
            edge.pipe = None;
        }
    }

    pub(crate) fn gateway_hears_routes(&mut self, id: u64, pipe: u64, update: &v1::RouteUpdate) {
        let at = self.now;
        let from = self.pipes.get(&pipe).map(|pipe| pipe.ends[1]);
        let edge = self.edge(id);
        if edge.pipe != Some(pipe) {
            return;
        }
        let before = edge.newest;
        match edge.real.apply(update, at) {
            Ok(()) => {
                if let Some(Host::Controller(leader)) = from {
                    edge.prefers = Some(leader);
                }
                let term = update.stamp.map(|s| (s.incarnation, s.term));
                edge.newest = edge.newest.max(term);
                if term < before {
                    self.oracle.fail(format!(
                        "gateway {id} took routes of {term:?} after {before:?}"
                    ));
                }
                let functions: Vec<FunctionId> = self.edge(id).waiting.keys().copied().collect();
                for function in functions {
                    self.dispatch(id, function);
                }
            }
            Err(gap) => {
                self.tally.refused += 1;
                self.say(|| format!("g{id}: {gap}"));
                self.edge(id).pipe = None;
                self.break_pipe(pipe);
            }
        }
    }

    // ---- requests

    pub(crate) fn call(&mut self, id: u64) {
        if self.quiet {
            return;
        }
        let wait = self.rng.wait(self.profile.call_ms);
        self.after(wait, Event::Call(id));
        let key = self.rng.below(self.profile.keys);
        let deadline = self.now + 4_000;
        let edge = self.edge(id);
        let Some(function) = edge.real.named(&format!("f{key}")) else {
            return;
        };
        if !edge.real.serves(function) {
            return;
        }
        *edge.arrivals.entry(function).or_default() += 1;
        self.next_call += 1;
        let request = self.next_call;
        let call = Call {
            function,
            deadline,
            executed: 0,
            over: false,
        };
        self.calls.insert(request, call);
        let edge = self.edge(id);
        edge.waiting.entry(function).or_default().push_back(request);
        self.dispatch(id, function);
    }

    /// Hands free slots to those who wait, and asks the leader for more where none is.
    fn dispatch(&mut self, id: u64, function: FunctionId) {
        loop {
            let edge = self.edge(id);
            let Some(waiting) = edge.waiting.get_mut(&function) else {
                return;
            };
            if waiting.is_empty() {
                edge.waiting.remove(&function);
                return;
            }
            let Some(taken) = edge.real.take(function) else {
                break;
            };
            let request = waiting.pop_front().expect("not empty");
            let (instance, node) = (taken.instance(), taken.node());
            edge.inside.insert(request, (function, taken));
            self.invoke(id, request, instance, node);
        }
        self.activate(id, function);
    }

    fn invoke(&mut self, id: u64, request: u64, instance: InstanceId, node: NodeId) {
        let machine = self.machine_of(node);
        let (from, to) = (Host::Gateway(id), Host::Agent(machine));
        if self.cuts.is_cut(from, to) {
            // It cannot be reached: nothing has left.
            let wait = self.rng.between(5, 60);
            return self.after(wait, Event::TryAgain(id, request));
        }
        let deadline = self.calls[&request].deadline.saturating_sub(self.now) + 1;
        self.after(deadline, Event::CallEnds(id, request));
        self.send(from, to, Packet::Invoke { request, instance });
    }

    pub(crate) fn try_again(&mut self, id: u64, request: u64) {
        let at = self.now;
        let Some((function, taken)) = self.edge(id).inside.remove(&request) else {
            return;
        };
        drop(taken);
        let call = &self.calls[&request];
        if call.over || call.deadline <= at {
            return self.over(request);
        }
        let edge = self.edge(id);
        edge.waiting
            .entry(function)
            .or_default()
            .push_front(request);
        self.dispatch(id, function);
    }

    fn over(&mut self, request: u64) {
        if let Some(call) = self.calls.get_mut(&request) {
            call.over = true;
        }
    }

    fn give_up_late(&mut self, id: u64, function: FunctionId) {
        let at = self.now;
        let calls = &self.calls;
        let edge = self.edges.get_mut(&id).expect("one of them");
        let gone = edge.real.serves(function);
        if let Some(waiting) = edge.waiting.get_mut(&function) {
            waiting.retain(|request| gone && calls[request].deadline > at);
        }
    }

    /// The deadline: whatever became of it, it is not repeated.
    pub(crate) fn call_ends(&mut self, id: u64, request: u64) {
        let edge = self.edge(id);
        if let Some((function, taken)) = edge.inside.remove(&request) {
            drop(taken);
            if self.options.planted == Some(Planted::RetryAfterSend) && !self.quiet {
                let at = self.now;
                self.calls.get_mut(&request).expect("known").deadline = at + 4_000;
                let edge = self.edge(id);
                edge.waiting
                    .entry(function)
                    .or_default()
                    .push_front(request);
                return self.dispatch(id, function);
            }
            self.over(request);
            self.dispatch(id, function);
        }
    }

    /// At the instance, whose own count is the authority.
    pub(crate) fn invoked(
        &mut self,
        machine: u64,
        gateway: u64,
        request: u64,
        instance: InstanceId,
    ) {
        let here = Host::Agent(machine);
        let found = self.machines.get_mut(&machine).expect("one of them");
        let process = found.processes.get_mut(&instance);
        let process = process.filter(|process| process.ready && !process.stopping);
        let free = |p: &node::Process| p.running.len() < p.spec.concurrency.get() as usize;
        let Some(process) = process.filter(|process| free(process)) else {
            let packet = Packet::NotTaken { request };
            self.send(here, Host::Gateway(gateway), packet);
            return;
        };
        process.running.insert(request);
        let revision = process.spec.revision;
        let call = self.calls.get_mut(&request).expect("known");
        call.executed += 1;
        let (executed, function) = (call.executed, call.function);
        self.tally.executed += 1;
        if executed > 1 {
            self.oracle
                .fail(format!("request {request} executed {executed} times"));
        }
        if revision.function != function {
            self.oracle
                .fail(format!("request {request} reached {revision}"));
        }
        let wait = self.rng.wait(self.profile.run_ms);
        self.after(
            wait,
            Event::Ran {
                machine,
                gateway,
                request,
                instance,
            },
        );
    }

    pub(crate) fn ran(&mut self, machine: u64, gateway: u64, request: u64, instance: InstanceId) {
        let found = self.machines.get_mut(&machine).expect("one of them");
        let life = found.life();
        let Some(process) = found.processes.get_mut(&instance) else {
            return;
        };
        if !process.running.remove(&request) {
            return;
        }
        let ends = process.stopping && process.running.is_empty();
        let packet = Packet::Ran { request };
        self.send(Host::Agent(machine), Host::Gateway(gateway), packet);
        if ends {
            self.after(1, Event::Stopped(machine, life, instance));
        }
    }

    pub(crate) fn gateway_hears_end(&mut self, id: u64, request: u64) {
        if let Some((function, taken)) = self.edge(id).inside.remove(&request) {
            drop(taken);
            self.over(request);
            self.tally.answered += 1;
            self.dispatch(id, function);
        }
    }

    pub(crate) fn not_taken(&mut self, id: u64, request: u64) {
        let wait = self.rng.between(1, 50);
        self.after(wait, Event::TryAgain(id, request));
    }

    // ---- cold starts

    fn activate(&mut self, id: u64, function: FunctionId) {
        let at = self.now;
        let fresh = self.rng.uuid();
        let random = self.rng.between(1, self.profile.members);
        let edge = self.edge(id);
        let parked = edge.waiting.get(&function).map_or(0, VecDeque::len);
        let asked = edge.asked.get(&function);
        if parked == 0 || asked.is_some_and(|asked| at < asked.at + ASK_AGAIN) {
            return;
        }
        // Not answered: asked again under the same id.
        let activation = match asked {
            Some(asked) if !asked.answered => asked.id,
            _ => *fresh.as_bytes(),
        };
        let asked = Asked {
            id: activation,
            at,
            answered: false,
        };
        edge.asked.insert(function, asked);
        let to = edge.prefers.unwrap_or(random);
        let request = v1::ActivateRequest {
            activation: activation.to_vec().into(),
            gateway: gateway_id(id),
            function: function.to_wire(),
            parked: u32::try_from(parked).unwrap_or(u32::MAX),
        };
        let packet = Packet::Activate {
            function,
            request: Box::new(request),
        };
        self.send(Host::Gateway(id), Host::Controller(to), packet);
    }

    pub(crate) fn activated(
        &mut self,
        id: u64,
        function: FunctionId,
        activation: &[u8],
        answer: Option<Box<v1::ActivateResponse>>,
    ) {
        let edge = self.edge(id);
        let Some(asked) = edge.asked.get_mut(&function) else {
            return;
        };
        if asked.id != activation {
            return;
        }
        let Some(answer) = answer else {
            edge.prefers = None;
            return;
        };
        asked.answered = true;
        let mut new = Vec::new();
        for named in answer.instances.iter().filter(|named| !named.draining) {
            let instance = InstanceId::from_wire("id", named.id.clone()).expect("ours");
            let node = NodeId::from_wire("node", named.node.clone()).expect("ours");
            let revision = named.revision.as_ref().map_or(0, |r| r.number);
            edge.awaited.insert(instance, (function, node, revision));
            new.push((instance, node));
        }
        for (instance, node) in new {
            self.await_instance(id, instance, node);
        }
    }

    fn await_instance(&mut self, id: u64, instance: InstanceId, node: NodeId) {
        let machine = self.machine_of(node);
        let packet = Packet::Await { instance };
        self.send(Host::Gateway(id), Host::Agent(machine), packet);
    }

    pub(crate) fn born(&mut self, id: u64, instance: InstanceId, ready: bool) {
        let at = self.now;
        let edge = self.edge(id);
        let Some((function, node, revision)) = edge.awaited.remove(&instance) else {
            return;
        };
        if ready {
            edge.real.learned(function, instance, node, revision, at);
        } else {
            edge.real.forget(function, instance);
        }
        self.dispatch(id, function);
    }

    // ---- demand

    fn report_demand(&mut self, id: u64) {
        let random = self.rng.between(1, self.profile.members);
        let edge = self.edge(id);
        let mut functions: BTreeMap<FunctionId, v1::FunctionDemand> = BTreeMap::new();
        let mut of = |function: FunctionId, change: &dyn Fn(&mut v1::FunctionDemand)| {
            let entry = functions
                .entry(function)
                .or_insert_with(|| v1::FunctionDemand {
                    function: function.to_wire(),
                    ..Default::default()
                });
            change(entry);
        };
        for (function, _) in edge.inside.values() {
            of(*function, &|d| {
                d.in_flight += 1;
                d.mean_concurrency_millis += 1_000;
            });
        }
        for (function, waiting) in &edge.waiting {
            let queued = u32::try_from(waiting.len()).unwrap_or(u32::MAX);
            of(*function, &|d| {
                d.queued += queued;
                d.mean_concurrency_millis += u64::from(queued) * 1_000;
            });
        }
        for (function, arrivals) in &edge.arrivals {
            of(*function, &|d| d.arrivals += arrivals);
        }
        // What has become idle is said once more.
        for function in &edge.reported {
            of(*function, &|_| ());
        }
        let busy = functions
            .iter()
            .filter(|(_, d)| d.in_flight + d.queued > 0 || d.arrivals > 0);
        edge.reported = busy.map(|(function, _)| *function).collect();
        edge.arrivals.clear();
        if functions.is_empty() {
            return;
        }
        let to = edge.prefers.unwrap_or(random);
        let report = v1::DemandReport {
            gateway: gateway_id(id),
            functions: functions.into_values().collect(),
        };
        let packet = Packet::Demand(Box::new(report));
        self.send(Host::Gateway(id), Host::Controller(to), packet);
    }

    pub(crate) fn not_leading(&mut self, id: u64) {
        self.edge(id).prefers = None;
    }

    pub(crate) fn is_idle(&self) -> bool {
        let idle = |edge: &Edge| edge.waiting.is_empty() && edge.inside.is_empty();
        self.edges.values().all(idle)
    }

    fn machine_of(&self, node: NodeId) -> u64 {
        let mut machines = self.machines.keys();
        let found = machines.find(|number| node::node_id(**number) == node);
        *found.expect("nodes are known by their ids")
    }
}

fn gateway_id<T: From<Vec<u8>>>(id: u64) -> T {
    uuid::Uuid::from_u128(0x9a7e_0000 + u128::from(id))
        .as_bytes()
        .to_vec()
        .into()
}
