//! What a controller does beside replicating: the loops of its leader, and its sessions with agents
//! and gateways. The loops here only call; what they call is real.

use std::collections::{BTreeMap, BTreeSet};

use coracle_controller::testing::{Leader, Ready, Routes, Session};
use coracle_model::{
    BuildOutput, Digest, FunctionId, InstanceId, NodeId, RevisionId, Stage, Timestamp, WriteId,
};
use coracle_planner::Phase;
use coracle_proto::v1;
use coracle_state::Body;

use crate::{
    net::Host,
    world::{Event, Packet, World},
};

/// The leader's side of one controller's life.
#[derive(Debug, Default)]
pub(crate) struct Lead {
    /// The term whose work has begun.
    pub(crate) led: Option<u64>,
    plan_at: Option<u64>,
    begin_again: u64,
    pub(crate) sessions: BTreeMap<u64, Session>,
    pub(crate) streams: BTreeMap<u64, Routes>,
    builds: BTreeMap<RevisionId, u64>,
    collection: Option<Collection>,
}

/// What the oracle knows of a new leader's collection.
#[derive(Debug)]
struct Collection {
    began: Timestamp,
    unheard: BTreeSet<NodeId>,
}

type Live = BTreeMap<InstanceId, (RevisionId, bool)>;

fn live(leader: &Leader) -> Live {
    let booked = leader.booked().into_iter();
    booked
        .map(|b| {
            (
                b.id,
                (b.revision, matches!(b.phase, Phase::Draining { .. })),
            )
        })
        .collect()
}

impl World {
    /// After anything that happened at a controller: follow its role, send what its leader has to say.
    pub(crate) fn serve(&mut self, id: u64) {
        self.follow_role(id);
        let now = self.clock(id);
        let Some(running) = self.running(id) else {
            return;
        };
        let (plan, routes) = running.leader.woken();
        if routes {
            running.leader.publish(now);
        }
        if plan {
            let wait = self.rng.between(1, 4);
            self.plan_within(id, wait);
        }
        self.drain_streams(id);
    }

    fn plan_within(&mut self, id: u64, wait: u64) {
        let (now, at) = (self.now, self.now + wait);
        let life = self.members[&id].life;
        let Some(running) = self.running(id) else {
            return;
        };
        let planned = running.lead.plan_at;
        if planned.is_none_or(|planned| planned > at || planned < now) {
            running.lead.plan_at = Some(at);
            self.after(wait, Event::Plan(id, life));
        }
    }

    fn follow_role(&mut self, id: u64) {
        let (at, now) = (self.now, self.clock(id));
        let deadline = self.collect_deadline();
        let Some(running) = self.running(id) else {
            return;
        };
        let leading = running.core.status().leading();
        if leading == running.lead.led {
            return;
        }
        let Some(term) = leading else {
            running.leader.end();
            running.lead.led = None;
            running.lead.collection = None;
            self.say(|| format!("m{id} no longer leads"));
            return;
        };
        if at < running.lead.begin_again {
            return;
        }
        match running.leader.begin(term, now) {
            Some(body) => {
                running.lead.begin_again = at + 200;
                self.write(id, body);
                let life = self.members[&id].life;
                self.after(201, Event::Plan(id, life));
            }
            None => {
                running.lead.led = Some(term);
                running.lead.builds.clear();
                let nodes = running.leader.view();
                let unheard = nodes.nodes().map(|node| node.id).collect();
                running.lead.collection = Some(Collection {
                    began: now,
                    unheard,
                });
                self.say(|| format!("m{id} leads term {term}, collects for {deadline} ms"));
            }
        }
    }

    /// A step of the leader's loops; one that is not taken is tried by the next turn.
    fn write(&mut self, id: u64, body: Body) {
        let write_id = WriteId(self.rng.uuid());
        let command = Leader::command(write_id, self.clock(id), body);
        if let Some(running) = self.running(id) {
            // As said above.
            let _ = running.core.propose(command);
        }
        self.later(id);
    }

    pub(crate) fn plan(&mut self, id: u64, life: u64) {
        if self.members[&id].life != life {
            return;
        }
        self.follow_role(id);
        let (at, now) = (self.now, self.clock(id));
        let mut rng = self.rng.clone();
        let mut fresh = || InstanceId(rng.uuid());
        let Some(running) = self.running(id) else {
            return;
        };
        if running.lead.plan_at.is_some_and(|planned| planned > at) || running.lead.led.is_none() {
            return;
        }
        running.lead.plan_at = None;
        let before = live(&running.leader);
        let turn = running.leader.plan(now, &mut fresh);
        let after = live(&running.leader);
        let wait = turn.next.since(now);
        self.rng = rng;
        self.tally.plans += 1;
        self.check_collection(id, now, &before, &after);
        self.check_bounds(id, &before, &after);
        for body in turn.writes {
            self.write(id, body);
        }
        self.finish_builds(id);
        self.plan_within(id, wait);
        self.serve(id);
    }

    /// Nothing is decided about instances before every registered node was heard, or had its time.
    fn check_collection(&mut self, id: u64, now: Timestamp, before: &Live, after: &Live) {
        let deadline = self.collect_deadline();
        let Some(running) = self.running(id) else {
            return;
        };
        let Some(collection) = &running.lead.collection else {
            return;
        };
        let over = collection.unheard.is_empty() || now.since(collection.began) >= deadline;
        if over {
            running.lead.collection = None;
            return;
        }
        let unheard = collection.unheard.len();
        let fewer = before.iter().any(|(id, (_, draining))| {
            !draining && after.get(id).is_none_or(|(_, draining)| *draining)
        });
        let more = after.keys().any(|id| !before.contains_key(id));
        if fewer || more {
            self.oracle.fail(format!(
                "{id} scaled {} before its agents were heard ({unheard} missing)",
                if fewer { "down" } else { "up" }
            ));
        }
    }

    /// What this leader placed is never more than the maximum of one revision at a time.
    fn check_bounds(&mut self, id: u64, before: &Live, after: &Live) {
        let Some(running) = self.running(id) else {
            return;
        };
        let view = running.leader.view();
        let mut counts: BTreeMap<RevisionId, u32> = BTreeMap::new();
        for (revision, draining) in after.values() {
            *counts.entry(*revision).or_default() += u32::from(!draining);
        }
        let placed = after.iter().filter(|(id, _)| !before.contains_key(*id));
        for (_, (revision, _)) in placed {
            self.tally.placed += 1;
            let Some(record) = view.function(revision.function) else {
                self.oracle
                    .fail(format!("{id} started {revision} of no function"));
                continue;
            };
            let (count, max) = (counts[revision], record.function.scale.max());
            if count > max {
                self.oracle
                    .fail(format!("{id} placed {count} of {revision}, at most {max}"));
            }
        }
    }

    /// Nobody builds here: what the leader's loop would learn from an agent is written by itself.
    fn finish_builds(&mut self, id: u64) {
        let at = self.now;
        let Some(running) = self.running(id) else {
            return;
        };
        let view = running.leader.view();
        let unbuilt = view
            .unsettled()
            .filter(|r| matches!(r.stage, Stage::Received | Stage::Building));
        let mut due = Vec::new();
        for revision in unbuilt {
            let again = running.lead.builds.entry(revision.id).or_insert(at + 50);
            if *again <= at {
                *again = at + 500;
                due.push(revision.id);
            }
        }
        for revision in due {
            let output = BuildOutput {
                code: Digest::of(b"built"),
                dependencies: None,
                message: String::new(),
            };
            self.write(id, Body::FinishBuild { revision, output });
        }
    }

    // ---- agents

    pub(crate) fn hello_arrives(&mut self, id: u64, pipe: u64, report: v1::Report) {
        let now = self.clock(id);
        let Some(running) = self.running(id) else {
            return self.break_pipe(pipe);
        };
        let here = Host::Controller(id);
        if running.lead.led.is_none() {
            return self.pipe(pipe, here, Packet::Closed);
        }
        match running.leader.admit(&report) {
            Err(why) => {
                self.say(|| format!("m{id} does not admit: {why}"));
                self.pipe(pipe, here, Packet::Closed);
            }
            Ok(Some(body)) => {
                self.write(id, body);
                self.pipe(pipe, here, Packet::Closed);
            }
            Ok(None) => match running.leader.hello(now, report) {
                Ok(Some(session)) => {
                    if let Some(collection) = &mut running.lead.collection {
                        collection.unheard.remove(&session.node);
                    }
                    running.lead.sessions.insert(pipe, session);
                    self.serve(id);
                }
                Ok(None) => self.pipe(pipe, here, Packet::Closed),
                Err(error) => self.oracle.fail(format!("a hello was refused: {error}")),
            },
        }
    }

    pub(crate) fn report_arrives(&mut self, id: u64, pipe: u64, report: v1::Report) {
        let now = self.clock(id);
        let Some(running) = self.running(id) else {
            return;
        };
        let Some(session) = running.lead.sessions.get(&pipe) else {
            return;
        };
        match running.leader.report(now, session, report) {
            Ok(true) => self.serve(id),
            Ok(false) => {
                running.lead.sessions.remove(&pipe);
                self.pipe(pipe, Host::Controller(id), Packet::Closed);
            }
            Err(error) => self.oracle.fail(format!("a report was refused: {error}")),
        }
    }

    pub(crate) fn controller_loses(&mut self, id: u64, pipe: u64) {
        if let Some(running) = self.running(id) {
            running.lead.streams.remove(&pipe);
            if let Some(session) = running.lead.sessions.remove(&pipe) {
                running.leader.goodbye(&session);
                self.serve(id);
            }
        }
    }

    pub(crate) fn subscribes(&mut self, id: u64, pipe: u64, from: Host) {
        let Some(running) = self.running(id) else {
            return self.break_pipe(pipe);
        };
        match running.leader.routes() {
            Some(routes) => {
                running.lead.streams.insert(pipe, routes);
                self.drain_streams(id);
            }
            None => {
                self.say(|| format!("m{id} has no routes for {from}"));
                self.pipe(pipe, Host::Controller(id), Packet::Closed);
            }
        }
    }

    /// Whatever waits in the channels of sessions goes on its way.
    fn drain_streams(&mut self, id: u64) {
        let Some(running) = self.running(id) else {
            return;
        };
        let mut out = Vec::new();
        running.lead.sessions.retain(|pipe, session| {
            loop {
                match session.poll() {
                    Ready::Item(message) => out.push((*pipe, Packet::Order(Box::new(message)))),
                    Ready::Nothing => return true,
                    Ready::Ended => {
                        out.push((*pipe, Packet::Closed));
                        return false;
                    }
                }
            }
        });
        running.lead.streams.retain(|pipe, routes| {
            loop {
                match routes.poll() {
                    Ready::Item(update) => out.push((*pipe, Packet::Routes(update))),
                    Ready::Nothing => return true,
                    Ready::Ended => {
                        out.push((*pipe, Packet::Closed));
                        return false;
                    }
                }
            }
        });
        for (pipe, packet) in out {
            self.pipe(pipe, Host::Controller(id), packet);
        }
    }

    // ---- gateways

    pub(crate) fn activation_arrives(
        &mut self,
        id: u64,
        gateway: u64,
        function: FunctionId,
        request: &v1::ActivateRequest,
    ) {
        let now = self.clock(id);
        let mut rng = self.rng.clone();
        let mut fresh = || InstanceId(rng.uuid());
        let Some(running) = self.running(id) else {
            return;
        };
        let before = live(&running.leader);
        let answer = match running.leader.activate(now, request, &mut fresh) {
            Ok(answer) => answer.map(Box::new),
            Err(error) => {
                return self
                    .oracle
                    .fail(format!("an activation was refused: {error}"));
            }
        };
        let after = live(&running.leader);
        self.rng = rng;
        self.check_bounds(id, &before, &after);
        let activation = request.activation.clone();
        let packet = Packet::Activated {
            function,
            activation,
            answer,
        };
        self.send(Host::Controller(id), Host::Gateway(gateway), packet);
        self.serve(id);
    }

    pub(crate) fn demand_arrives(&mut self, id: u64, gateway: u64, report: v1::DemandReport) {
        let now = self.clock(id);
        let Some(running) = self.running(id) else {
            return;
        };
        match running.leader.demand(now, report) {
            Ok(true) => self.serve(id),
            Ok(false) => {
                let packet = Packet::NotLeading;
                self.send(Host::Controller(id), Host::Gateway(gateway), packet);
            }
            Err(error) => self.oracle.fail(format!("demand was refused: {error}")),
        }
    }
}
