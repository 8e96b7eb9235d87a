//! Nodes: who belongs to the cluster, and who is to take instances.

use coracle_model::{
    NodeId, Refusal, Timestamp, limits,
    node::{NodeDrain, NodeRecord},
};

use super::Change;
use crate::{Effect, RegisterNode};

impl Change<'_> {
    /// The same again changes nothing. A record under a name that another id takes over ends, and
    /// what an operator said about the machine of that name goes on: one that was closed for work
    /// is still closed after it was installed anew.
    pub(super) fn register_node(&mut self, register: RegisterNode) -> Result<(), Refusal> {
        let RegisterNode {
            id,
            name,
            labels,
            replaces,
        } = register;
        let view = &self.state.view;
        if view.is_removed(id) {
            return Err(Refusal::Conflict(format!(
                "node {id} was removed from the cluster; to join again the machine needs an empty \
                 data directory"
            )));
        }
        let mut cordoned = false;
        let holder = view.node_named(&name).filter(|holder| holder.id != id);
        if let Some(holder) = holder {
            if replaces != Some(holder.id) {
                return Err(Refusal::AlreadyExists(format!("node {name}")));
            }
            cordoned = holder.cordoned;
            let holder = holder.id;
            self.forget_node(holder);
        }
        let before = self.state.view.nodes.get(&id).cloned();
        let after = match before.clone() {
            Some(record) => NodeRecord {
                name,
                labels,
                ..record
            },
            None => NodeRecord {
                id,
                name,
                labels,
                cordoned,
                draining: None,
                joined_at: self.at,
            },
        };
        if before.as_ref() == Some(&after) {
            return Ok(());
        }
        let view = &mut self.state.view;
        if let Some(before) = before {
            view.node_names.remove(&before.name);
        }
        view.node_names.insert(after.name.clone(), id);
        view.nodes.insert(id, after);
        self.emit(Effect::NodeChanged(id));
        Ok(())
    }

    pub(super) fn cordon_node(&mut self, id: NodeId, cordoned: bool) -> Result<(), Refusal> {
        self.change_node(id, |node| {
            node.cordoned = cordoned;
            if !cordoned {
                node.draining = None;
            }
        })
    }

    /// Said again it changes the deadline and the force, and goes on from where it began.
    pub(super) fn drain_node(
        &mut self,
        id: NodeId,
        deadline: Option<Timestamp>,
        force: bool,
    ) -> Result<(), Refusal> {
        let now = self.at;
        self.change_node(id, |node| {
            let since = node.draining.map_or(now, |drain| drain.since);
            node.cordoned = true;
            node.draining = Some(NodeDrain {
                since,
                deadline,
                force,
            });
        })
    }

    pub(super) fn remove_node(&mut self, id: NodeId) -> Result<(), Refusal> {
        if !self.state.view.nodes.contains(&id) {
            return Err(no_node(id));
        }
        self.forget_node(id);
        Ok(())
    }

    fn change_node(
        &mut self,
        id: NodeId,
        change: impl FnOnce(&mut NodeRecord),
    ) -> Result<(), Refusal> {
        let before = self.state.view.nodes.get(&id).ok_or_else(|| no_node(id))?;
        let mut after = before.clone();
        change(&mut after);
        if after != *before {
            self.state.view.nodes.insert(id, after);
            self.emit(Effect::NodeChanged(id));
        }
        Ok(())
    }

    /// Its record goes and its id stays out, for as long as room lasts.
    fn forget_node(&mut self, id: NodeId) {
        let view = &mut self.state.view;
        if let Some(record) = view.nodes.remove(&id) {
            view.node_names.remove(&record.name);
        }
        view.removed_nodes.insert(id, self.at);
        if view.removed_nodes.len() > limits::REMOVED_NODES_KEPT {
            let oldest = view.removed_nodes.iter().map(|(id, at)| (*at, *id)).min();
            if let Some((_, oldest)) = oldest {
                view.removed_nodes.remove(&oldest);
            }
        }
        self.emit(Effect::NodeChanged(id));
    }
}

fn no_node(id: NodeId) -> Refusal {
    Refusal::NotFound(format!("node {id}"))
}
