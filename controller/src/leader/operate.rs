//! What operators do to nodes, and what they are shown of them.

use coracle_model::{
    FunctionId, NodeId, Refusal,
    node::{NodeChange, NodeState, Resources},
    query::{NodeInstance, NodeView},
};
use coracle_planner::is_last_home;
use coracle_state::{Body, FunctionRecord, View};

use super::{
    memory::{Memory, NodeEntry},
    spec,
};

impl Memory {
    /// The command for an operator's wish, or why it is refused. A node that is not there any more
    /// is left to the command itself: it may be a repetition of the write that removed it.
    pub(crate) fn check_change(
        &self,
        view: &View,
        node: NodeId,
        change: NodeChange,
    ) -> Result<Body, Refusal> {
        let body = match change {
            NodeChange::Cordon | NodeChange::Uncordon => Body::CordonNode {
                node,
                cordoned: change == NodeChange::Cordon,
            },
            NodeChange::Drain { deadline, force } => Body::DrainNode {
                node,
                deadline,
                force,
            },
            NodeChange::Remove { .. } => Body::RemoveNode { node },
        };
        let (Some(record), Some(entry)) = (view.node(node), self.nodes.get(&node)) else {
            return Ok(body);
        };
        let name = &record.name;
        match change {
            // One that drains already was looked at when it began.
            NodeChange::Drain { force: false, .. } if record.draining.is_none() => {
                if let Some(function) = self.depends_on(view, node) {
                    let (min, function) = (function.function.scale.min(), named(view, function));
                    return Err(Refusal::Conflict(format!(
                        "node {name} is the last one that can hold function {function}, which \
                         keeps at least {min} instance(s): add a node, lower the minimum, or drain \
                         with force"
                    )));
                }
            }
            NodeChange::Remove { force: false } => self.check_removal(node, entry)?,
            _ => {}
        }
        Ok(body)
    }

    /// A function with a minimum that could be nowhere else.
    fn depends_on<'a>(&self, view: &'a View, node: NodeId) -> Option<&'a FunctionRecord> {
        view.functions().find(|record| {
            let function = &record.function;
            let revision = record.serving().unwrap_or_else(|| record.latest());
            let input = spec::revision_input(function, revision, None);
            function.scale.min() > 0
                && !function.disabled
                && is_last_home(&self.inputs, node, &input)
        })
    }

    fn check_removal(&self, node: NodeId, entry: &NodeEntry) -> Result<(), Refusal> {
        let name = &entry.node.name;
        let alive = self.inputs.get(&node).is_some_and(|input| input.alive);
        let running = entry
            .running
            .max(u32::try_from(entry.instances.len()).unwrap_or(u32::MAX));
        if !alive {
            return Ok(());
        }
        if entry.session.is_none() {
            return Err(Refusal::Conflict(format!(
                "node {name} is not connected and not yet lost: what it runs counts as alive until \
                 its grace period is over; wait for that, or remove it with force"
            )));
        }
        if running > 0 {
            return Err(Refusal::Conflict(format!(
                "node {name} runs {running} instance(s): drain it first, or remove it with force"
            )));
        }
        Ok(())
    }

    /// Every node, or the one asked for, that one with its instances.
    pub(crate) fn node_views(&self, view: &View, only: Option<NodeId>) -> Vec<NodeView> {
        let asked = |id: &NodeId| only.is_none_or(|only| only == *id);
        let nodes = self.nodes.iter().filter(|(id, _)| asked(id));
        nodes
            .map(|(id, entry)| self.node_view(view, *id, entry, only.is_some()))
            .collect()
    }

    fn node_view(&self, view: &View, id: NodeId, entry: &NodeEntry, whole: bool) -> NodeView {
        let small = |amount: u64| u32::try_from(amount).unwrap_or(u32::MAX);
        let input = self.inputs.get(&id);
        let used = input.map_or_else(Resources::default, |input| Resources {
            memory_mib: small(input.used_memory_mib),
            cpu_millis: small(input.used_cpu_millis),
        });
        let builds = self.builds.values();
        let builds = builds.filter(|b| b.node == id && b.result.is_none());
        let builds = small(builds.count() as u64);
        let mut node = entry.node.clone();
        node.schedulable = entry.takes_instances();
        NodeView {
            state: self.node_state(id, entry, builds),
            node,
            cordoned: entry.cordoned,
            draining: entry.draining,
            used,
            instances: small(entry.instances.len() as u64),
            running: entry.running,
            builds,
            heard_at: entry.heard.then_some(entry.heard_at),
            joined_at: view.node(id).map(|record| record.joined_at),
            waiting: self.waits_for(view, entry),
            placed: if whole {
                self.placed(entry)
            } else {
                Vec::new()
            },
        }
    }

    fn node_state(&self, id: NodeId, entry: &NodeEntry, builds: u32) -> NodeState {
        let stems: u32 = entry.node.stems.values().sum();
        let is_empty =
            entry.instances.is_empty() && entry.running == 0 && stems == 0 && builds == 0;
        if !self.inputs.get(&id).is_some_and(|input| input.alive) {
            NodeState::Lost
        } else if entry.session.is_none() {
            NodeState::Silent
        } else if entry.draining.is_some() && is_empty {
            NodeState::Drained
        } else if entry.draining.is_some() {
            NodeState::Draining
        } else if entry.takes_instances() {
            NodeState::Ready
        } else {
            NodeState::Cordoned
        }
    }

    /// Functions that a drain cannot move, with the reason.
    fn waits_for(&self, view: &View, entry: &NodeEntry) -> Vec<String> {
        if entry.draining.is_none() {
            return Vec::new();
        }
        let here = entry
            .instances
            .iter()
            .filter_map(|id| self.instances.get(id));
        let staying = here.filter(|instance| !instance.is_draining());
        let mut functions: Vec<FunctionId> = staying
            .map(|instance| instance.spec.revision.function)
            .collect();
        functions.sort();
        functions.dedup();
        let why = |id: &FunctionId| {
            let shortage = self.functions.get(id)?.shortage.as_ref()?;
            Some(format!("{}: {shortage}", named(view, view.function(*id)?)))
        };
        functions.iter().filter_map(why).collect()
    }

    fn placed(&self, entry: &NodeEntry) -> Vec<NodeInstance> {
        let ids = entry.instances.iter();
        let found = ids.filter_map(|id| Some((*id, self.instances.get(id)?)));
        let mut placed: Vec<_> = found
            .map(|(id, instance)| NodeInstance {
                instance: instance.view(id),
                project: instance.spec.project.to_string(),
                namespace: instance.spec.namespace.to_string(),
                function: instance.spec.function.to_string(),
            })
            .collect();
        placed.sort_by(|a, b| {
            let key = |p: &NodeInstance| {
                (
                    p.project.clone(),
                    p.namespace.clone(),
                    p.function.clone(),
                    p.instance.id,
                )
            };
            key(a).cmp(&key(b))
        });
        placed
    }
}

fn named(view: &View, record: &FunctionRecord) -> String {
    let function = view.function_ref(&record.function);
    format!("{}/{}", function.namespace, function.name)
}
