//! Applying commands, one file per subject.
//!
//! Every operation first checks everything it needs and only then changes anything, so a refused
//! one leaves the state as it was.

mod checks;
mod cluster;
mod functions;
mod keys;
mod namespaces;
mod nodes;
mod projects;
mod revisions;
mod tasks;
mod tokens;

use std::collections::BTreeSet;

use coracle_model::{Operation, Refusal, Timestamp};

pub use checks::clip;
pub use revisions::REVISIONS_KEPT;

use crate::{Applied, Body, Command, Effect, State};

impl State {
    /// Applies one entry of the log. A pure function of the state and the command.
    pub fn apply(&mut self, command: Command) -> Applied {
        let Command { write_id, at, body } = command;
        if let Some(outcome) = self.writes.outcome(write_id) {
            return Applied {
                outcome,
                effects: Vec::new(),
            };
        }
        let mut change = Change {
            state: self,
            at,
            effects: BTreeSet::new(),
        };
        let outcome = change.body(body);
        let effects = change.effects;
        debug_assert!(
            outcome.is_ok() || effects.is_empty(),
            "a refusal changes nothing"
        );
        self.writes.record(write_id, at, &outcome);
        Applied {
            outcome,
            effects: effects.into_iter().collect(),
        }
    }
}

/// One command under way.
struct Change<'a> {
    state: &'a mut State,
    at: Timestamp,
    effects: BTreeSet<Effect>,
}

impl Change<'_> {
    fn body(&mut self, body: Body) -> Result<(), Refusal> {
        match body {
            Body::Operation(operation) => return self.operation(operation),
            Body::BeginBuild { revision } => self.begin_build(revision),
            Body::FinishBuild { revision, output } => self.finish_build(revision, output),
            Body::FailBuild { revision, reason } => self.fail_build(revision, &reason),
            Body::Promote { revision } => self.promote(revision),
            Body::FailDeploy { revision, reason } => self.fail_deploy(revision, &reason),
            Body::SetIncarnation { incarnation } => self.set_incarnation(incarnation),
            Body::InitCluster {
                first,
                ca_certificate,
                ca_key,
            } => return self.init_cluster(first, ca_certificate, ca_key),
            Body::RedeemJoinToken {
                id,
                hash,
                admission,
            } => return self.redeem_join_token(id, hash, admission),
            Body::RemoveMember { member } => return self.remove_member(member),
            Body::RotateClusterKey {
                generation,
                ca_key,
                wrapped,
            } => return self.rotate_cluster_key(generation, ca_key, wrapped),
            Body::RegisterNode(register) => return self.register_node(register),
            Body::CordonNode { node, cordoned } => return self.cordon_node(node, cordoned),
            Body::DrainNode {
                node,
                deadline,
                force,
            } => return self.drain_node(node, deadline, force),
            Body::RemoveNode { node } => return self.remove_node(node),
        }
        Ok(())
    }

    fn operation(&mut self, operation: Operation) -> Result<(), Refusal> {
        match operation {
            Operation::CreateProject { name } => self.create_project(name),
            Operation::DeleteProject { project } => self.delete_project(project),
            Operation::CreateNamespace(create) => self.create_namespace(create),
            Operation::UpdateNamespace(update) => self.update_namespace(update),
            Operation::DeleteNamespace {
                project,
                name,
                task,
            } => self.delete_namespace(project, name, task),
            Operation::CreateFunction(create) => self.create_function(*create),
            Operation::UpdateFunction(update) => self.update_function(*update),
            Operation::DeleteFunction {
                project,
                function,
                task,
            } => self.delete_function(project, &function, task),
            Operation::CreateKey(create) => self.create_key(create),
            Operation::UpdateKey(update) => self.update_key(update),
            Operation::DeleteKey { project, name } => self.delete_key(project, name),
            Operation::CreateToken(create) => self.create_token(create),
            Operation::DeleteToken { id } => self.delete_token(id),
            Operation::AcknowledgeTask { project, id } => self.acknowledge_task(project, id),
            Operation::CreateJoinToken(create) => self.create_join_token(create),
            Operation::RevokeJoinToken { id } => self.revoke_join_token(id),
        }
    }

    fn emit(&mut self, effect: Effect) {
        self.effects.insert(effect);
    }

    fn set_incarnation(&mut self, incarnation: u64) {
        let view = &mut self.state.view;
        if incarnation > view.incarnation {
            view.incarnation = incarnation;
            self.emit(Effect::IncarnationRaised(incarnation));
        }
    }
}
