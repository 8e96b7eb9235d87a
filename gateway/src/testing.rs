//! One gateway's routes and slots without threads or sockets, for the simulator (`tests/sim`). Not an
//! API: it changes with what it opens up. Nothing is decided in here.
//!
//! What is left out: pauses after a refusal, which read the clock. The simulator waits itself.

use std::{sync::Arc, time::Duration};

use coracle_model::{FunctionId, InstanceId, NodeId};
use coracle_proto::v1;
use tokio::time::Instant;

use crate::{admission::Slot, function::Function, instance::Instance, nodes::Nodes, routes::Table};

#[derive(Debug)]
pub struct Gateway {
    table: Table,
    nodes: Nodes,
    began: Instant,
}

/// The right to have one request inside an instance; given back when dropped.
#[derive(Debug)]
pub struct Taken(Slot);

impl Taken {
    pub fn instance(&self) -> InstanceId {
        self.0.instance.id
    }

    pub fn node(&self) -> NodeId {
        self.0.instance.node
    }
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            table: Table::new(1, false),
            nodes: Nodes::default(),
            began: Instant::now(),
        }
    }
}

impl Gateway {
    fn at(&self, millis: u64) -> Instant {
        self.began + Duration::from_millis(millis)
    }

    fn function(&self, id: FunctionId) -> Option<Arc<Function>> {
        self.table.functions().into_iter().find(|f| f.id == id)
    }

    /// A new stream begins.
    pub fn restart(&self) {
        self.table.restart();
    }

    /// One update of the stream; an error means that a new stream is needed.
    pub fn apply(&self, update: &v1::RouteUpdate, millis: u64) -> Result<(), String> {
        let now = self.at(millis);
        let applied = self.table.apply(update, &self.nodes, now);
        applied.map_err(|gap| gap.to_string())
    }

    pub fn named(&self, name: &str) -> Option<FunctionId> {
        let functions = self.table.functions();
        functions.iter().find(|f| f.name == name).map(|f| f.id)
    }

    /// Whether requests are taken at all: it exists, may run, and a revision serves.
    pub fn serves(&self, id: FunctionId) -> bool {
        self.function(id).is_some_and(|function| {
            let route = function.route();
            !route.disabled && route.revision.is_some()
        })
    }

    pub fn is_warm(&self, id: FunctionId) -> bool {
        self.function(id).is_some_and(|function| function.is_warm())
    }

    pub fn take(&self, id: FunctionId) -> Option<Taken> {
        self.function(id)?.try_take().map(Taken)
    }

    /// A node says that an instance answers.
    pub fn learned(
        &self,
        id: FunctionId,
        instance: InstanceId,
        node: NodeId,
        revision: u32,
        millis: u64,
    ) {
        if let Some(function) = self.function(id) {
            let concurrency = function.route().concurrency;
            let socket = "/sim".into();
            let now = self.at(millis);
            let new = Instance::new(instance, node, revision, concurrency, socket, false, now);
            function.learned(new);
        }
    }

    /// Its node says that it is gone.
    pub fn forget(&self, id: FunctionId, instance: InstanceId) {
        if let Some(function) = self.function(id) {
            function.forget(instance);
        }
    }
}
