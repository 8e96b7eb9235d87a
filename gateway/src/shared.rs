//! What all threads of a gateway share. Everything in it is either immutable or made for being
//! read by many; nothing here is locked on the warm path.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use coracle_base::Replicas;
use tokio::{runtime::Handle, sync::Notify};

use crate::{
    config::Config, controllers::Controllers, metrics::GatewayMetrics, nodes::Nodes, routes::Table,
};

/// How long after the init timeout a node may still say why a start failed.
const START_GRACE: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) table: Table,
    pub(crate) controllers: Controllers,
    pub(crate) nodes: Nodes,
    pub(crate) metrics: GatewayMetrics,
    /// Functions that have metrics under their own name.
    pub(crate) labelled: AtomicUsize,
    /// It is to stop: not ready for anything new, and kept connections are given up.
    pub(crate) leaving: AtomicBool,
    /// Some request was parked: demand is worth reporting now.
    pub(crate) parked: Notify,
    /// The multi-threaded runtime for everything that is not on the warm path.
    pub(crate) control: Handle,
    pub(crate) start_grace: Duration,
}

impl Shared {
    /// Has to be called inside the control runtime.
    pub(crate) fn new(config: Config) -> Arc<Self> {
        crate::metrics::describe();
        Arc::new(Self {
            table: Table::new(config.threads, config.base_domain.is_some()),
            controllers: Controllers::new(Replicas::new(&config.controllers, config.told.clone())),
            nodes: Nodes::new(
                config.local_node.clone(),
                config.local_node_id,
                config.tls.clone(),
            ),
            metrics: GatewayMetrics::new(),
            labelled: AtomicUsize::new(0),
            leaving: AtomicBool::new(false),
            parked: Notify::new(),
            control: Handle::current(),
            start_grace: START_GRACE,
            config,
        })
    }

    /// Whether one more function may have metrics of its own.
    pub(crate) fn take_label(&self) -> bool {
        self.labelled.fetch_add(1, Relaxed) < self.config.limits.metric_functions_max
    }

    #[cfg(test)]
    pub(crate) fn for_test(change: impl FnOnce(&mut crate::config::Limits)) -> Arc<Self> {
        let bus = coracle_base::MemoryBus::new();
        let mut config = Config::new(vec![coracle_base::Address::Memory(bus)]);
        change(&mut config.limits);
        Self::new(config)
    }
}
