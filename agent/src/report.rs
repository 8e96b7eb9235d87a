//! What runs here, in the words of the wire.

use std::{collections::BTreeMap, sync::Arc};

use coracle_base::Clock;
use coracle_driver::InstanceDriver;
use coracle_model::{
    NodeId, Stamp, Timestamp,
    node::{Node, Resources},
};
use coracle_proto::{Wire, v1};

use crate::{
    images::RuntimeImages,
    instances::{Instances, Observed},
};

/// What does not change while an agent runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeFacts {
    pub(crate) id: NodeId,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) allocatable: Resources,
    pub(crate) address: String,
}

#[derive(Debug)]
pub(crate) struct Reporter {
    pub(crate) facts: NodeFacts,
    pub(crate) driver: Arc<dyn InstanceDriver>,
    pub(crate) images: Arc<dyn RuntimeImages>,
    pub(crate) instances: Arc<Instances>,
    pub(crate) clock: Arc<dyn Clock>,
}

impl Reporter {
    /// Complete: replaces every report before it.
    pub(crate) fn report(&self, number: u64, accepted: Stamp) -> v1::Report {
        let facts = self.facts.clone();
        let node = Node {
            id: facts.id,
            name: facts.name,
            version: facts.version,
            labels: facts.labels,
            allocatable: facts.allocatable,
            address: facts.address,
            stems: self.driver.stems(),
            images: self.images.all(),
            reported_at: Timestamp(self.clock.now_millis()),
            schedulable: true,
        };
        let instances = self.instances.report(number);
        v1::Report {
            node: Some(node.into()),
            instances: instances.into_iter().map(observed).collect(),
            accepted: Some(accepted.into()),
            number,
        }
    }
}

pub(crate) fn observed(instance: Observed) -> v1::ObservedInstance {
    v1::ObservedInstance {
        id: instance.id.to_wire(),
        revision: Some(instance.revision.into()),
        state: Some(instance.state.into()),
        since: instance.since.millis(),
        memory_mib: instance.memory_mib,
        cpu_millis: instance.cpu_millis,
        socket: instance.socket.to_string_lossy().into_owned(),
        concurrency: instance.concurrency,
    }
}
