//! Small values for the tests of this crate, and a line of text for a plan.

use std::collections::{BTreeMap, BTreeSet};

use coracle_model::{FunctionId, InstanceId, NodeId, RevisionId, ScaleBounds, Timestamp};
use uuid::Uuid;

use crate::{
    Demand, FunctionInput, Input, InstanceInput, NodeInput, Phase, Plan, RevisionInput, ScaleMemory,
};

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
        labels: BTreeMap::new(),
        schedulable: true,
        draining: None,
        heard: true,
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
        rules: Default::default(),
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

pub(crate) const NOW: u64 = 1_000_000_000;

pub(crate) fn instance_id(n: u128) -> InstanceId {
    InstanceId(Uuid::from_u128(n))
}

/// Two empty nodes and these functions.
pub(crate) fn world<const N: usize>(functions: [(FunctionId, FunctionInput); N]) -> Input {
    Input {
        now: Timestamp(NOW),
        nodes: [(node_id(1), node("a")), (node_id(2), node("b"))].into(),
        functions: functions.into(),
        ..Input::default()
    }
}

pub(crate) fn ids() -> impl FnMut() -> InstanceId {
    let mut next = 1_000;
    move || {
        next += 1;
        instance_id(next)
    }
}

/// The actions of a plan in one line, counted by revision.
pub(crate) fn summary(input: &Input, plan: &Plan) -> String {
    let name = |r: RevisionId| format!("{}.{}", r.function.0.as_u128(), r.number);
    let mut said: Vec<String> = Vec::new();
    let mut counted = |verb: &str, revisions: Vec<RevisionId>| {
        let mut by: BTreeMap<RevisionId, usize> = BTreeMap::new();
        for revision in revisions {
            *by.entry(revision).or_default() += 1;
        }
        said.extend(
            by.into_iter()
                .map(|(r, n)| format!("{verb} {} ×{n}", name(r))),
        );
    };
    counted("start", plan.start.iter().map(|s| s.revision).collect());
    let revision_of = |id| {
        input
            .instances
            .iter()
            .find(|i| i.id == id)
            .unwrap()
            .revision
    };
    counted(
        "drain",
        plan.drain.iter().map(|d| revision_of(d.id)).collect(),
    );
    said.extend(plan.promote.iter().map(|r| format!("promote {}", name(*r))));
    said.extend(
        plan.fail_deploy
            .iter()
            .map(|f| format!("fail {}: {}", name(f.revision), f.reason)),
    );
    said.join("; ")
}
