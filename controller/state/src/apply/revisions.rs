//! Revisions, from received to running or failed.
//!
//! Only the latest revision of a function can be on its way, so the leader's steps are taken when
//! they are about the latest and fit its stage, and change nothing otherwise.

use std::sync::Arc;

use coracle_model::{
    BuildOutput, FunctionId, Namespace, Refusal, Revision, RevisionId, RevisionSettings, Stage,
    TaskState,
};

use super::{Change, clip};
use crate::{Effect, artifacts};

/// Old revisions kept per function, beside the latest and the one that serves.
pub const REVISIONS_KEPT: usize = 10;

impl Change<'_> {
    /// The number that the next revision of an existing function gets.
    pub(super) fn next_revision(&self, function: FunctionId) -> Result<u32, Refusal> {
        let record = self
            .state
            .view
            .functions
            .get(&function)
            .expect("the caller has it");
        let next = record.function.latest.number.checked_add(1);
        next.ok_or_else(|| Refusal::Quota("the function has no revision numbers left".to_owned()))
    }

    /// Makes a revision the latest of its function, which [`Change::next_revision`] allowed, and
    /// abandons the one before where it was still on its way.
    pub(super) fn add_revision(
        &mut self,
        function: FunctionId,
        settings: RevisionSettings,
    ) -> RevisionId {
        let number = self.next_revision(function).expect("checked before");
        let before = RevisionId {
            function,
            number: number - 1,
        };
        self.end(before, Stage::Abandoned, "superseded by a newer update");

        let id = RevisionId { function, number };
        let namespace = self.namespace_of(function).clone();
        let revision = self.received(id, settings, &namespace);
        let record = self
            .state
            .view
            .functions
            .get_mut(&function)
            .expect("the caller has it");
        record.function.latest = id;
        record.revisions.insert(number, Arc::new(revision));
        self.forget_old_revisions(function);
        id
    }

    /// A new revision of a function that may be still in the making.
    pub(super) fn received(
        &mut self,
        id: RevisionId,
        settings: RevisionSettings,
        namespace: &Namespace,
    ) -> Revision {
        self.state.artifacts.add(artifacts::of_settings(&settings));
        self.emit(Effect::RevisionReceived(id));
        self.emit(Effect::FunctionChanged(id.function));
        Revision {
            id,
            instance_env: namespace.env.overlaid(&settings.env),
            settings,
            stage: Stage::Received,
            build: None,
            created_at: self.at,
            updated_at: self.at,
        }
    }

    fn forget_old_revisions(&mut self, function: FunctionId) {
        let record = self
            .state
            .view
            .functions
            .get_mut(&function)
            .expect("the caller has it");
        let (latest, serving) = (record.function.latest, record.function.serving);
        let old: Vec<u32> = record
            .revisions
            .values()
            .map(|revision| revision.id)
            .filter(|id| *id != latest && Some(*id) != serving)
            .map(|id| id.number)
            .collect();
        let surplus = old.len().saturating_sub(REVISIONS_KEPT);
        let dropped: Vec<_> = old[..surplus]
            .iter()
            .filter_map(|number| record.revisions.remove(number))
            .collect();
        for revision in dropped {
            self.forget_artifacts(&revision);
        }
    }

    pub(super) fn forget_artifacts(&mut self, revision: &Revision) {
        for digest in self
            .state
            .artifacts
            .remove(artifacts::of_revision(revision))
        {
            self.emit(Effect::ArtifactUnreferenced(digest));
        }
    }

    /// Also taken again for a revision that is building: the leader may be a new one.
    pub(super) fn begin_build(&mut self, id: RevisionId) {
        if let Some(revision) = self.on_its_way(id, |stage| *stage == Stage::Received) {
            revision.stage = Stage::Building;
        }
    }

    /// From `Received` too: the step that began the build may have been lost with its leader.
    pub(super) fn finish_build(&mut self, id: RevisionId, output: BuildOutput) {
        let output = BuildOutput {
            message: clip(&output.message),
            ..output
        };
        let named = artifacts::of_build(&output);
        let Some(revision) = self.on_its_way(id, is_unbuilt) else {
            return;
        };
        revision.stage = Stage::Deploying;
        revision.build = Some(output);
        self.state.artifacts.add(named);
        let record = self
            .state
            .view
            .functions
            .get(&id.function)
            .expect("just found");
        if !record.function.may_run() {
            // It proves itself when it may run; nobody can be asked to wait for that.
            self.end_tasks(id, &TaskState::Finished);
        }
    }

    pub(super) fn fail_build(&mut self, id: RevisionId, reason: &str) {
        let reason = clip(reason);
        if self.on_its_way(id, is_unbuilt).is_some() {
            self.end(
                id,
                Stage::BuildFailed {
                    reason: reason.clone(),
                },
                &reason,
            );
        }
    }

    pub(super) fn promote(&mut self, id: RevisionId) {
        let Some(revision) = self.on_its_way(id, |stage| *stage == Stage::Deploying) else {
            return;
        };
        revision.stage = Stage::Running;
        let record = self
            .state
            .view
            .functions
            .get_mut(&id.function)
            .expect("just found");
        record.function.serving = Some(id);
        self.end_tasks(id, &TaskState::Finished);
        // The one that served before is old now.
        self.forget_old_revisions(id.function);
    }

    /// Leaves what serves alone.
    pub(super) fn fail_deploy(&mut self, id: RevisionId, reason: &str) {
        let reason = clip(reason);
        if self
            .on_its_way(id, |stage| *stage == Stage::Deploying)
            .is_some()
        {
            self.end(
                id,
                Stage::DeployFailed {
                    reason: reason.clone(),
                },
                &reason,
            );
        }
    }

    /// The revision, noted as changed, if it is its function's latest and in a fitting stage.
    fn on_its_way(
        &mut self,
        id: RevisionId,
        fits: impl Fn(&Stage) -> bool,
    ) -> Option<&mut Revision> {
        let found = self.state.view.functions.get(&id.function)?;
        if found.function.latest != id || !fits(&found.latest().stage) {
            return None;
        }
        self.effects.insert(Effect::FunctionChanged(id.function));
        let record = self
            .state
            .view
            .functions
            .get_mut(&id.function)
            .expect("just found");
        let revision = Arc::make_mut(record.revisions.get_mut(&id.number).expect("latest"));
        revision.updated_at = self.at;
        Some(revision)
    }

    /// Ends a revision that is on its way, and with it what waits for it.
    fn end(&mut self, id: RevisionId, stage: Stage, error: &str) {
        if let Some(revision) = self.on_its_way(id, |stage| !stage.is_final()) {
            revision.stage = stage;
            self.end_tasks(id, &TaskState::Error(error.to_owned()));
        }
    }
}

fn is_unbuilt(stage: &Stage) -> bool {
    matches!(stage, Stage::Received | Stage::Building)
}
