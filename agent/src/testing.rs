//! One agent's decisions without threads, sockets or clocks, for the simulator (`tests/sim`). Not
//! an API: it changes with what it opens up. Nothing is decided in here.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use coracle_driver::{Launched, Survivor};
use coracle_model::{ExitReason, InstanceId, InstanceSpec, Stamp, Timestamp, node::Node};
use coracle_proto::v1::{self, controller_message};

use crate::{
    artifacts::Hold,
    desired::Desired,
    instances::{
        Outcome,
        table::{Table, Work},
    },
    ledger::{Fence, Ledger, LedgerError, Store},
    orders::{self, Refused},
    report,
};

/// What the driver has to be told.
#[derive(Debug, Clone)]
pub enum Task {
    Launch(Arc<InstanceSpec>),
    Stop(InstanceId, Duration),
}

/// What a message of the leader came to.
#[derive(Debug)]
pub enum Heard {
    /// An order under this stamp was accepted.
    Accepted(Stamp),
    Acknowledged(u64),
    /// It was about something else.
    Nothing,
}

#[derive(Debug, thiserror::Error)]
pub enum Ended {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// The parts that decide, in one process's life of an agent.
#[derive(Debug)]
pub struct Parts {
    ledger: Ledger,
    table: Table,
    desired: Option<Desired>,
    /// The session has shown its snapshot.
    followed: bool,
}

impl Parts {
    pub fn start(store: Box<dyn Store>, survivors: Vec<Survivor>) -> Result<Self, LedgerError> {
        let mut table = Table::default();
        for survivor in survivors {
            table.adopted(survivor, Hold::Leases(Vec::new()));
        }
        Ok(Self {
            ledger: Ledger::over(store)?,
            table,
            desired: None,
            followed: false,
        })
    }

    pub fn new_session(&mut self) {
        self.followed = false;
        self.table.new_session();
    }

    pub fn accepted(&self) -> Stamp {
        self.ledger.fence().accepted()
    }

    /// As the session's `handle` does it.
    pub fn hear(&mut self, message: v1::ControllerMessage) -> Result<Heard, Ended> {
        let fence: Fence = *self.ledger.fence();
        let Some(body) = message.body else {
            return Ok(Heard::Nothing);
        };
        match body {
            controller_message::Body::Snapshot(snapshot) => {
                let (stamp, desired) = orders::snapshot(&fence, snapshot)?;
                self.ledger.accept_snapshot(stamp)?;
                self.desired = Some(desired);
                self.followed = true;
                Ok(Heard::Accepted(stamp))
            }
            controller_message::Body::Delta(delta) => {
                let stamp = orders::delta(&fence, self.followed, &delta)?;
                let desired = self.desired.get_or_insert_default();
                desired.apply(delta).map_err(Refused::Malformed)?;
                self.ledger.accept_delta(stamp);
                Ok(Heard::Accepted(stamp))
            }
            controller_message::Body::Ack(ack) => {
                self.table.acknowledged(ack.number);
                Ok(Heard::Acknowledged(ack.number))
            }
        }
    }

    /// What has to be done for what runs to be what is wanted.
    pub fn reconcile(&mut self, grace: Duration, now: Timestamp) -> Vec<Task> {
        let Some(desired) = &self.desired else {
            return Vec::new();
        };
        let (_, work) = self.table.follow(&desired.instances, grace, now);
        let task = |work| match work {
            Work::Launch(spec) => Task::Launch(spec),
            Work::Stop(id, grace) => Task::Stop(id, grace),
        };
        work.into_iter().map(task).collect()
    }

    /// Gives the grace when it is to be stopped right away.
    pub fn ready(
        &mut self,
        id: InstanceId,
        launched: Launched,
        now: Timestamp,
    ) -> Option<Duration> {
        self.table.ready(id, launched, now)
    }

    pub fn stop_done(&mut self, id: InstanceId, now: Timestamp) {
        self.table.stop_done(id, now);
    }

    pub fn exited(&mut self, id: InstanceId, reason: ExitReason, now: Timestamp) {
        self.table.exited(id, reason, now);
    }

    /// What whoever waits for an instance is told, once it can be.
    pub fn outcome(&self, id: InstanceId) -> Option<Outcome> {
        self.table.outcome(id)
    }

    pub fn report(&mut self, node: &Node, number: u64) -> v1::Report {
        let instances = self.table.report(number);
        v1::Report {
            node: Some(node.clone().into()),
            instances: instances.into_iter().map(report::observed).collect(),
            accepted: Some(self.accepted().into()),
            number,
        }
    }

    /// The instances that the leader wants here and that are not to end.
    pub fn wanted(&self) -> BTreeMap<InstanceId, Arc<InstanceSpec>> {
        let instances = self.desired.iter().flat_map(|desired| &desired.instances);
        let kept = instances.filter(|(_, want)| want.drain.is_none());
        kept.map(|(id, want)| (*id, Arc::clone(&want.spec)))
            .collect()
    }
}
