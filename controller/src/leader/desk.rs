//! What a leader decides from, and where its decisions go. No I/O behind any of it, and no clock:
//! the services and loops around it, and the simulator in their place, bring both.

use std::sync::{Arc, Mutex, MutexGuard};

use coracle_model::{FunctionId, InstanceId, NodeId, Timestamp};
use coracle_planner::{BackoffConfig, DemandSample, GatewayId, PlannerConfig};
use coracle_proto::v1;
use coracle_state::{RegisterNode, View};
use tokio::sync::{Notify, watch};

use super::{
    activate::{Activation, Answer, activate},
    memory::{Memory, Overcommit, SessionSender},
    nodes::NotAdmitted,
    reports::Report,
    routes,
};
use crate::{
    config::LeaderConfig,
    feed::RouteFeed,
    machine::{Changes, Published},
};

pub(crate) struct Desk {
    pub(crate) planner: PlannerConfig,
    pub(crate) config: LeaderConfig,
    pub(crate) published: watch::Receiver<Published>,
    pub(crate) changes: watch::Sender<Changes>,
    pub(crate) routes: RouteFeed,
    /// Where the controllers are, for agents; gateways hear it with their routes.
    pub(crate) controllers: watch::Sender<Vec<String>>,
    /// Wakes the loops that run while leading.
    pub(crate) plan_wake: Notify,
    pub(crate) build_wake: Notify,
    /// Marks in the memory's `dirty` wait to be published.
    pub(crate) routes_wake: Notify,
    pub(crate) memory: Mutex<Memory>,
}

/// It does not lead, so it has no say about instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotLeading;

impl Desk {
    pub(crate) fn new(
        planner: PlannerConfig,
        backoff: BackoffConfig,
        config: LeaderConfig,
        published: watch::Receiver<Published>,
        changes: watch::Sender<Changes>,
    ) -> Self {
        let overcommit = Overcommit {
            cpu_percent: config.cpu_overcommit_percent,
            memory_percent: config.memory_overcommit_percent,
        };
        Self {
            planner,
            config,
            published,
            changes,
            routes: RouteFeed::new(),
            controllers: watch::Sender::default(),
            plan_wake: Notify::new(),
            build_wake: Notify::new(),
            routes_wake: Notify::new(),
            memory: Mutex::new(Memory::new(backoff, overcommit)),
        }
    }

    /// As of the last applied batch; [`crate::core::Core::fresh_view`] is for reads that must be
    /// linearizable.
    pub(crate) fn view(&self) -> Arc<View> {
        Arc::clone(&self.published.borrow().view)
    }

    pub(crate) fn tell_controllers(&self, addresses: &[String]) {
        self.controllers.send_if_modified(|told| {
            let news = *told != addresses;
            if news {
                *told = addresses.to_vec();
            }
            news
        });
    }

    pub(crate) fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory
            .lock()
            .expect("never poisoned: no panic while held")
    }

    /// Something happened to instances or nodes: publish it, and plan anew.
    pub(crate) fn wake(&self) {
        self.routes_wake.notify_one();
        self.plan_wake.notify_one();
        self.build_wake.notify_one();
    }

    /// Whether an agent may have a session, and what has to be written before its hello is taken.
    pub(crate) fn admit(&self, report: &Report) -> Result<Option<RegisterNode>, NotAdmitted> {
        let memory = self.memory();
        // Read under the lock, so that it is not older than what the memory follows.
        memory.admit(&self.view(), report)
    }

    /// An agent's first word. Its snapshot goes into `sender`; returns the session's number, or
    /// `None` when the channel does not take it.
    pub(crate) fn hello(
        &self,
        now: Timestamp,
        report: Report,
        sender: SessionSender,
    ) -> Result<Option<u64>, NotLeading> {
        let mut memory = self.memory();
        if !memory.leads() {
            return Err(NotLeading);
        }
        let (node, number) = (report.node.id, report.number);
        let view = self.view();
        let grace = self.planner.drain_grace_ms;
        let session = memory.hello(now, &view, grace, report, sender);
        if session.is_some() {
            memory.acknowledge(node, number);
        }
        drop(memory);
        self.wake();
        Ok(session)
    }

    /// A later one, in the session through which the node is told what to do.
    pub(crate) fn report(&self, now: Timestamp, report: Report) {
        let (node, number) = (report.node.id, report.number);
        let mut memory = self.memory();
        memory.observe(now, report);
        memory.acknowledge(node, number);
        let changed = !memory.dirty.is_empty();
        drop(memory);
        if changed {
            self.wake();
        }
    }

    pub(crate) fn goodbye(&self, node: NodeId, session: u64) {
        self.memory().goodbye(node, session);
        self.wake();
    }

    /// The answer, with how the instances in it stand.
    pub(crate) fn activate(
        &self,
        now: Timestamp,
        activation: Activation,
        fresh: &mut dyn FnMut() -> InstanceId,
    ) -> Result<(Answer, Vec<v1::RouteInstance>), NotLeading> {
        let view = self.view();
        let mut memory = self.memory();
        if !memory.leads() {
            return Err(NotLeading);
        }
        let answer = activate(&mut memory, &view, &self.planner, now, activation, fresh);
        let found = answer.instances.iter();
        let found = found.filter_map(|id| memory.instances.get(id));
        let instances = found.map(routes::route_instance).collect();
        Ok((answer, instances))
    }

    /// What a gateway has of each function.
    pub(crate) fn demand(
        &self,
        now: Timestamp,
        gateway: GatewayId,
        samples: Vec<(FunctionId, DemandSample)>,
    ) -> Result<(), NotLeading> {
        let view = self.view();
        let mut queued = false;
        let mut memory = self.memory();
        if !memory.leads() {
            return Err(NotLeading);
        }
        for (id, sample) in samples {
            // A gateway may not have heard yet that it was deleted.
            if view.function(id).is_none() {
                continue;
            }
            queued |= sample.queued > 0;
            let scaling = &self.planner.scaling;
            let function = memory.function(id);
            function.demand.record(scaling, now, gateway, sample);
        }
        drop(memory);
        if queued {
            self.plan_wake.notify_one();
        }
        Ok(())
    }
}
