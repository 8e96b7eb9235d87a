//! What gateways are told of a function.

use std::{collections::BTreeMap, sync::Arc};

use coracle_base::Shutdown;
use coracle_model::{FunctionId, RevisionId, Stage, Timestamp};
use coracle_planner::Phase;
use coracle_proto::{Wire as _, v1};
use coracle_state::{FunctionRecord, View};

use super::{
    desk::Desk,
    memory::{Instance, Leadership, Memory},
};
use crate::{core::Core, machine::Changes};

/// `None` when there is no such function.
pub(crate) fn route(
    view: &View,
    memory: &Memory,
    now: Timestamp,
    id: FunctionId,
) -> Option<v1::Route> {
    let record = view.function(id)?;
    let function = &record.function;
    let serving = record.serving();
    // Until one serves, the newest tells how long a first request may take.
    let settings = &serving.unwrap_or_else(|| record.latest()).settings;
    let keys = view.keys_of(function).map(|key| v1::RouteKey {
        hash: key.hash.to_wire(),
        expires_at: key.expires_at.map(|at| at.0),
    });
    let instances: Vec<_> = match serving {
        Some(serving) => instances(record, serving.id, memory),
        None => Vec::new(),
    };
    let failures = serving
        .and_then(|s| memory.failures.get(&s.id))
        .filter(|f| f.is_waiting(now));
    let failing = failures.filter(|_| !instances.iter().any(|i| i.ready && !i.draining));
    Some(v1::Route {
        function: id.to_wire(),
        project_id: function.project.to_wire(),
        project: view.project(function.project)?.name.to_string(),
        namespace: view.namespace(function.namespace)?.name.to_string(),
        name: function.name.to_string(),
        disabled: function.disabled,
        key_required: function.key_required,
        keys: keys.collect(),
        revision: serving.map(|revision| revision.id.into()),
        timeout_secs: settings.timeout.secs(),
        init_timeout_secs: settings.init_timeout.secs(),
        concurrency: settings.concurrency.get(),
        scale: Some(function.scale.into()),
        failing: failing.map(|f| f.reason.clone()).unwrap_or_default(),
        retry_at: failing.map_or(0, |f| f.retry_at.0),
        instances,
    })
}

/// Those of the serving revision, and former ones as far as they fill in for what the serving one
/// has not ready yet. The planner drains the rest; here they close in the same update in which the
/// serving revision changes, so that no request goes to the old code after the switch.
fn instances(
    record: &FunctionRecord,
    serving: RevisionId,
    memory: &Memory,
) -> Vec<v1::RouteInstance> {
    let id = record.function.id;
    let (ready, _) = memory.counts(serving);
    let wanted = memory.functions.get(&id).map_or(0, |f| f.scaled.wanted);
    let mut fill_in = wanted.saturating_sub(ready);
    let mut routed = Vec::new();
    for (_, instance) in memory.of_function(id) {
        let revision = instance.spec.revision;
        let mut shown = route_instance(instance);
        if revision != serving {
            // What has to prove itself, or never did, takes no requests.
            let stage = record.revision(revision.number).map(|r| &r.stage);
            if !matches!(stage, Some(Stage::Running) | None) {
                continue;
            }
            if !shown.draining && shown.ready && fill_in > 0 {
                fill_in -= 1;
            } else {
                shown.draining = true;
            }
        }
        routed.push(shown);
    }
    routed
}

pub(crate) fn route_instance(instance: &Instance) -> v1::RouteInstance {
    v1::RouteInstance {
        id: instance.spec.id.to_wire(),
        node: instance.node.to_wire(),
        revision: Some(instance.spec.revision.into()),
        ready: instance.ready_at.is_some(),
        socket: instance.socket.clone(),
        draining: matches!(instance.phase, Phase::Draining { .. }),
    }
}

/// Those whose instances the routes know, and those that may have some all the same: a later leader
/// has not heard them yet, and has not given them up.
pub(crate) fn nodes(memory: &Memory) -> Vec<v1::NodeAddress> {
    let hoped_for = |id| memory.inputs.get(id).is_some_and(|input| input.alive);
    let nodes = memory.nodes.iter();
    let nodes = nodes.filter(|(id, entry)| entry.heard || hoped_for(id));
    let address = nodes.map(|(id, entry)| v1::NodeAddress {
        node: id.to_wire(),
        address: entry.node.address.clone(),
        name: entry.node.name.clone(),
        silent: !entry.heard,
    });
    address.collect()
}

/// Where agents and gateways find the controllers; empty before there is a cluster.
pub(crate) fn controllers(view: &View) -> Vec<String> {
    view.members()
        .map(|member| member.address.clone())
        .collect()
}

/// The term's feed begins. Not before the agents were heard: routes without the instances that run
/// would take them from gateways that serve from what they last had.
pub(super) fn begin(desk: &Desk, memory: &mut Memory, now: Timestamp) {
    // Read under the lock: whoever took marks of changes before is in this view.
    let view = desk.view();
    let ids = view.functions().map(|record| record.function.id);
    let routes: BTreeMap<_, _> = ids
        .filter_map(|id| Some((id, route(&view, memory, now, id)?)))
        .collect();
    memory.dirty.clear();
    memory.nodes_dirty = false;
    let nodes = nodes(memory);
    let controllers = controllers(&view);
    desk.tell_controllers(&controllers);
    desk.routes
        .begin(memory.incarnation, memory.term, routes, nodes, controllers);
}

/// Publishes what changed: by writes, and by what happened to instances.
pub(crate) async fn run(core: Arc<Core>, shutdown: Shutdown) {
    let mut changes = core.changes.subscribe();
    loop {
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = core.routes_wake.notified() => {}
            () = shutdown.requested() => return,
        }
        publish(&core, core.now());
    }
}

/// Takes the marks and sends how things stand now. Marks are taken before the view is read, so a
/// change in between is sent by this turn or by the next, never lost.
pub(crate) fn publish(desk: &Desk, now: Timestamp) {
    let mut written = Changes::default();
    desk.changes.send_if_modified(|changes| {
        written = std::mem::take(changes);
        false
    });
    if written.all || written.nodes || !written.functions.is_empty() {
        // Instances and builds follow from what was written, too.
        desk.plan_wake.notify_one();
        desk.build_wake.notify_one();
    }
    let mut memory = desk.memory();
    if memory.leadership != Leadership::Leading {
        return;
    }
    let view = desk.view();
    let mut ids = std::mem::take(&mut memory.dirty);
    ids.append(&mut written.functions);
    if written.all {
        ids.extend(view.functions().map(|record| record.function.id));
    }
    let changed: Vec<_> = ids
        .into_iter()
        .map(|id| (id, route(&view, &memory, now, id)))
        .collect();
    let nodes = std::mem::take(&mut memory.nodes_dirty).then(|| nodes(&memory));
    let controllers = controllers(&view);
    desk.tell_controllers(&controllers);
    // Under the memory's lock, so that two publications keep their order.
    desk.routes.publish(changed, nodes, controllers);
}
