//! Small values for the tests of this crate.

use std::collections::{BTreeMap, BTreeSet};

use coracle_model::{FunctionId, InstanceId, NodeId, RevisionId, ScaleBounds, Timestamp};
use uuid::Uuid;

use crate::{Demand, FunctionInput, InstanceInput, NodeInput, Phase, RevisionInput, ScaleMemory};

pub(crate) fn node_id(n: u128) -> NodeId {
    NodeId(Uuid::from_u128(n))
}

pub(crate) fn function_id(n: u128) -> FunctionId {
    FunctionId(Uuid::from_u128(n))
}

pub(crate) fn revision_id(function: u128, number: u32) -> RevisionId {
    RevisionId {
        function: function_id(function),
        number,
    }
}

/// 1 GiB, 8 cores to promise, Python's image there.
pub(crate) fn node(name: &str) -> NodeInput {
    NodeInput {
        name: name.to_owned(),
        memory_mib: 1_024,
        cpu_millis: 8_000,
        used_memory_mib: 0,
        used_cpu_millis: 0,
        stems: BTreeMap::new(),
        images: BTreeSet::from(["python3.11".parse().unwrap()]),
        recent: BTreeSet::new(),
        functions: BTreeMap::new(),
        schedulable: true,
        alive: true,
        reachable: true,
    }
}

/// 128 MiB, a quarter of a core, one request at once.
pub(crate) fn revision(function: u128, number: u32) -> RevisionInput {
    RevisionInput {
        id: revision_id(function, number),
        runtime: "python3.11".parse().unwrap(),
        memory_mib: 128,
        cpu_millis: 250,
        concurrency: 1,
        failures: None,
    }
}

pub(crate) fn function(min: u32, max: u32) -> FunctionInput {
    FunctionInput {
        disabled: false,
        scale: ScaleBounds::new(min, max).unwrap(),
        serving: None,
        candidate: None,
        former: BTreeSet::new(),
        demand: Demand::default(),
        scaled: ScaleMemory::default(),
    }
}

pub(crate) fn instance(id: u128, revision: RevisionId, phase: Phase) -> InstanceInput {
    InstanceInput {
        id: InstanceId(Uuid::from_u128(id)),
        revision,
        node: node_id(1),
        phase,
        since: Timestamp(0),
        memory_mib: 128,
        timeout_ms: 60_000,
        busy: false,
    }
}
