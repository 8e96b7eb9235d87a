//! One controller's decisions without threads, sockets or clocks, for the simulator (`tests/sim`).
//! Not an API: it changes with what it opens up. Nothing is decided in here.

use std::{sync::Arc, time::Duration};

use coracle_model::{
    ActivationId, FunctionId, InstanceId, NodeId, Refusal, RevisionId, Timestamp, WriteId,
};
use coracle_planner::{BackoffConfig, DemandSample, GatewayId, Phase, PlannerConfig};
use coracle_proto::{ConvertError, Wire as _, v1};
use coracle_replica::{Machine, MachineError};
use coracle_state::{Body, Command, View};
use futures_util::FutureExt as _;
use tokio::sync::mpsc;
use tonic::Status;

use crate::{
    LeaderConfig,
    feed::Subscription,
    leader::{
        activate::Activation,
        desk::{Desk, NotLeading},
        memory::{Leadership, SessionSender},
        plan,
        reports::Report,
        routes, term,
    },
    machine::StateMachine,
};

/// The real state machine; what it publishes is read by the [`Leader`] made with it.
pub struct State(StateMachine);

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("State")
    }
}

impl Machine for State {
    type Response = Result<(), Refusal>;

    fn apply(
        &mut self,
        command: coracle_replica::Command<'_>,
    ) -> Result<Self::Response, MachineError> {
        Ok(self.0.apply(command)?.outcome)
    }

    fn batch_applied(&mut self, index: u64) {
        self.0.batch_applied(index);
    }

    fn snapshot(&self) -> Vec<u8> {
        self.0.snapshot()
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), MachineError> {
        self.0.restore(snapshot)
    }
}

/// What the services and loops of one controller decide from, with time handed in.
pub struct Leader(Desk);

impl std::fmt::Debug for Leader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Leader")
    }
}

/// What came of one plan.
#[derive(Debug)]
pub struct Turn {
    /// To be replicated, each under a fresh write id.
    pub writes: Vec<Body>,
    /// When the next one is due if nothing wakes it before.
    pub next: Timestamp,
}

/// What a stream has ready.
#[derive(Debug)]
pub enum Ready<T> {
    Item(T),
    Nothing,
    Ended,
}

/// An agent's session as the controller's end of it.
#[derive(Debug)]
pub struct Session {
    pub node: NodeId,
    pub number: u64,
    orders: mpsc::Receiver<Result<v1::ControllerMessage, Status>>,
}

impl Session {
    /// The next message to the agent; ended when the leader has cut the session.
    pub fn poll(&mut self) -> Ready<v1::ControllerMessage> {
        match self.orders.try_recv() {
            Ok(Ok(message)) => Ready::Item(message),
            Err(mpsc::error::TryRecvError::Empty) => Ready::Nothing,
            Ok(Err(_)) | Err(mpsc::error::TryRecvError::Disconnected) => Ready::Ended,
        }
    }
}

/// Routes as a gateway's stream gives them.
#[derive(Debug)]
pub struct Routes(Subscription);

impl Routes {
    /// The next update; ended when the term has.
    pub fn poll(&mut self) -> Ready<Arc<v1::RouteUpdate>> {
        match self.0.next().now_or_never() {
            None => Ready::Nothing,
            Some(None) => Ready::Ended,
            Some(Some(update)) => Ready::Item(update),
        }
    }
}

/// An instance as the leader's books have it.
#[derive(Debug, Clone)]
pub struct Booked {
    pub id: InstanceId,
    pub revision: RevisionId,
    pub node: NodeId,
    pub phase: Phase,
}

const ORDERS: usize = 1_024;

impl Leader {
    /// A controller that follows, and the state machine for its replica.
    pub fn new(
        planner: PlannerConfig,
        backoff: BackoffConfig,
        config: LeaderConfig,
    ) -> (Self, State) {
        let (machine, published, changes) = StateMachine::new();
        let desk = Desk::new(planner, backoff, config, published, changes);
        (Self(desk), State(machine))
    }

    pub fn view(&self) -> Arc<View> {
        self.0.view()
    }

    /// The bytes of a write as the controller would propose it.
    pub fn command(write_id: WriteId, at: Timestamp, body: Body) -> Vec<u8> {
        let command = Command { write_id, at, body };
        command
            .encode()
            .expect("the simulator's commands are small")
    }

    /// The replica leads. Gives what has to be written first, if anything; then call it again.
    pub fn begin(&self, term: u64, now: Timestamp) -> Option<Body> {
        let first = term::first_write(&self.0.view());
        if first.is_none() {
            term::take_over(&self.0, term, now);
        }
        first
    }

    pub fn end(&self) {
        term::end(&self.0);
    }

    /// The term that it leads in, and whether it still collects.
    pub fn leads(&self) -> Option<(u64, bool)> {
        let memory = self.0.memory();
        let collecting = memory.leadership != Leadership::Leading;
        memory.leads().then_some((memory.term, collecting))
    }

    /// Whether something asked for a plan, or for routes to be sent, since the last call.
    pub fn woken(&self) -> (bool, bool) {
        let asked = |notify: &tokio::sync::Notify| notify.notified().now_or_never().is_some();
        // Nobody builds in the simulator; builds are written by its clients.
        asked(&self.0.build_wake);
        (asked(&self.0.plan_wake), asked(&self.0.routes_wake))
    }

    pub fn plan(&self, now: Timestamp, fresh: &mut dyn FnMut() -> InstanceId) -> Turn {
        let turn = plan::decide(&self.0, now, fresh);
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let next = turn
            .wake_at
            .unwrap_or_else(|| now.plus_millis(millis(turn.due)));
        let last = now.plus_millis(millis(self.0.config.tick));
        Turn {
            writes: turn.writes,
            next: next.max(now.plus_millis(1)).min(last),
        }
    }

    /// Sends what changed to gateways.
    pub fn publish(&self, now: Timestamp) {
        routes::publish(&self.0, now);
    }

    /// What has to be written before this hello can be taken; an error when it must not be.
    pub fn admit(&self, hello: &v1::Report) -> Result<Option<Body>, String> {
        let report = Report::try_from(hello.clone()).map_err(|error| error.to_string())?;
        let admitted = self.0.admit(&report).map_err(|error| error.to_string())?;
        Ok(admitted.map(Body::RegisterNode))
    }

    /// `None` when it does not lead.
    pub fn hello(
        &self,
        now: Timestamp,
        hello: v1::Report,
    ) -> Result<Option<Session>, ConvertError> {
        let report = Report::try_from(hello)?;
        let node = report.node.id;
        let (sender, orders): (SessionSender, _) = mpsc::channel(ORDERS);
        Ok(match self.0.hello(now, report, sender) {
            Ok(Some(number)) => Some(Session {
                node,
                number,
                orders,
            }),
            Ok(None) | Err(NotLeading) => None,
        })
    }

    /// A report within a session; false when another one took the session's place.
    pub fn report(
        &self,
        now: Timestamp,
        session: &Session,
        report: v1::Report,
    ) -> Result<bool, ConvertError> {
        if !self.0.memory().is_current(session.node, session.number) {
            return Ok(false);
        }
        self.0.report(now, Report::try_from(report)?);
        Ok(true)
    }

    pub fn goodbye(&self, session: &Session) {
        self.0.goodbye(session.node, session.number);
    }

    /// `None` when it does not lead.
    pub fn activate(
        &self,
        now: Timestamp,
        request: &v1::ActivateRequest,
        fresh: &mut dyn FnMut() -> InstanceId,
    ) -> Result<Option<v1::ActivateResponse>, ConvertError> {
        let activation = Activation {
            id: ActivationId::from_wire("activation", request.activation.clone())?,
            gateway: gateway(&request.gateway)?,
            function: FunctionId::from_wire("function", request.function.clone())?,
            parked: request.parked,
        };
        let Ok((answer, instances)) = self.0.activate(now, activation, fresh) else {
            return Ok(None);
        };
        self.0.wake();
        let refusal = answer.refusal;
        Ok(Some(v1::ActivateResponse {
            instances,
            retry_after_millis: refusal.as_ref().map_or(0, |refusal| refusal.retry_after_ms),
            refusal: refusal.map(|refusal| refusal.reason).unwrap_or_default(),
        }))
    }

    /// False when it does not lead.
    pub fn demand(&self, now: Timestamp, report: v1::DemandReport) -> Result<bool, ConvertError> {
        let gateway = gateway(&report.gateway)?;
        let mut samples = Vec::new();
        for demand in report.functions {
            let sample = DemandSample {
                in_flight: demand.in_flight,
                queued: demand.queued,
                arrivals: demand.arrivals,
                mean_millis: demand.mean_concurrency_millis,
                busy: crate::api::routing::busy(demand.busy)?,
            };
            let id = FunctionId::from_wire("function", demand.function)?;
            samples.push((id, sample));
        }
        Ok(self.0.demand(now, gateway, samples).is_ok())
    }

    /// `None` while there is nothing to follow.
    pub fn routes(&self) -> Option<Routes> {
        self.0.routes.subscribe().map(Routes)
    }

    pub fn booked(&self) -> Vec<Booked> {
        let memory = self.0.memory();
        let booked = |(id, instance): (&InstanceId, &crate::leader::memory::Instance)| Booked {
            id: *id,
            revision: instance.spec.revision,
            node: instance.node,
            phase: instance.phase,
        };
        memory.instances.iter().map(booked).collect()
    }
}

fn gateway(bytes: &[u8]) -> Result<GatewayId, ConvertError> {
    let id = bytes.try_into();
    id.map(GatewayId)
        .map_err(|_| ConvertError::new("gateway", "must be 16 bytes"))
}
