//! Functions.

use std::{collections::BTreeMap, sync::Arc};

use coracle_model::{
    Function, FunctionId, FunctionRef, Namespace, ProjectId, Refusal, RevisionId, RevisionSettings,
    ScaleBounds, Stage, TaskId, TaskState,
    operation::{CreateFunction, SettingsPatch, UpdateFunction},
    task::{TaskSubject, TaskVerb},
};

use super::{Change, checks, tasks::NewTask};
use crate::{Effect, FunctionRecord};

impl Change<'_> {
    pub(super) fn create_function(&mut self, create: CreateFunction) -> Result<(), Refusal> {
        let CreateFunction {
            id,
            project,
            function,
            ..
        } = &create;
        let (id, project, by_name) = (*id, *project, function.clone());
        let namespace = self.namespace(project, &by_name.namespace)?.clone();
        self.task_is_free(create.task)?;
        if self.state.view.function_named(project, &by_name).is_some() {
            return Err(Refusal::AlreadyExists(checks::named(&by_name)));
        }
        if self.state.view.functions.contains(&id) {
            return Err(Refusal::AlreadyExists(format!(
                "a function with the id {id}"
            )));
        }
        checks::description(&create.description)?;
        checks::annotations(&create.annotations)?;
        let keys = self.keys_for_function(project, None, create.keys)?;

        let first = RevisionId {
            function: id,
            number: 1,
        };
        let revision = self.received(first, create.settings, &namespace);
        let function = Function {
            id,
            project,
            namespace: namespace.id,
            name: by_name.name.clone(),
            description: create.description,
            annotations: create.annotations,
            key_required: create.key_required,
            disabled: create.disabled,
            scale: create.scale,
            placement: create.placement,
            latest: first,
            serving: None,
            created_at: self.at,
            updated_at: self.at,
        };
        let view = &mut self.state.view;
        view.function_names
            .insert((namespace.id, by_name.name.clone()), id);
        let revisions = BTreeMap::from([(first.number, Arc::new(revision))]);
        view.functions.insert(
            id,
            FunctionRecord {
                function,
                revisions,
            },
        );
        self.set_keys(project, &(by_name.clone(), id), &keys);
        let new = NewTask::of_function(project, TaskVerb::Create, &by_name, id, Some(first));
        self.add_task(create.task, new);
        Ok(())
    }

    /// Merges what is given into what is there. Makes a revision when a setting of the latest
    /// really changes; and when the latest failed and the client gives any setting at all, since
    /// sending the same again is how a client asks for another try.
    pub(super) fn update_function(&mut self, update: UpdateFunction) -> Result<(), Refusal> {
        let UpdateFunction {
            project,
            function: by_name,
            settings: patch,
            task,
            ..
        } = update;
        let record = self.function(project, &by_name)?;
        let (before, latest) = (record.function.clone(), Arc::clone(record.latest()));
        let id = before.id;
        self.task_is_free(task)?;
        if let Some(text) = &update.description {
            checks::description(text)?;
        }
        if let Some(entries) = &update.annotations {
            checks::annotations(entries)?;
        }
        let scale = ScaleBounds::new(
            update.scale_min.unwrap_or(before.scale.min()),
            update.scale_max.unwrap_or(before.scale.max()),
        )?;
        let keys = update
            .keys
            .map(|keys| self.keys_for_function(project, Some(id), keys));
        let keys = keys.transpose()?;
        let again = has_failed(&latest.stage) && patch != SettingsPatch::default();
        let settings = patched(&latest.settings, patch);
        let new_revision = again || settings != latest.settings;
        if new_revision {
            self.next_revision(id)?;
        }

        let after = Function {
            description: update
                .description
                .unwrap_or_else(|| before.description.clone()),
            annotations: update
                .annotations
                .unwrap_or_else(|| before.annotations.clone()),
            key_required: update.key_required.unwrap_or(before.key_required),
            disabled: update.disabled.unwrap_or(before.disabled),
            scale,
            placement: update.placement.unwrap_or_else(|| before.placement.clone()),
            ..before.clone()
        };
        let mut changed = after != before;
        let may_run = after.may_run();
        if changed {
            let record = self.state.view.functions.get_mut(&id).expect("just found");
            record.function = after;
        }
        if let Some(keys) = keys {
            changed |= self.set_keys(project, &(by_name.clone(), id), &keys);
        }
        let revision = new_revision.then(|| self.add_revision(id, settings));
        if changed || revision.is_some() {
            self.touch(id);
        }
        if !may_run && revision.is_none() && latest.stage == Stage::Deploying {
            // It cannot prove itself while it may not run; nobody can be asked to wait for that.
            self.end_tasks(latest.id, &TaskState::Finished);
        }
        let new = NewTask::of_function(project, TaskVerb::Update, &by_name, id, revision);
        self.add_task(task, new);
        Ok(())
    }

    /// Gone at once. Its instances go because nothing wants them any more.
    pub(super) fn delete_function(
        &mut self,
        project: ProjectId,
        by_name: &FunctionRef,
        task: Option<TaskId>,
    ) -> Result<(), Refusal> {
        let record = self.function(project, by_name)?;
        let (id, namespace) = (record.function.id, record.function.namespace);
        let latest = record.function.latest;
        self.task_is_free(task)?;

        self.set_keys(project, &(by_name.clone(), id), &[].into());
        self.end_tasks(
            latest,
            &TaskState::Error("the function was deleted".to_owned()),
        );
        let view = &mut self.state.view;
        view.function_names
            .remove(&(namespace, by_name.name.clone()));
        let record = view.functions.remove(&id).expect("just found");
        for revision in record.revisions() {
            self.forget_artifacts(revision);
        }
        self.emit(Effect::FunctionChanged(id));
        let new = NewTask::of_function(project, TaskVerb::Delete, by_name, id, None);
        self.add_task(task, new);
        Ok(())
    }

    /// The namespace that an existing function is in.
    pub(super) fn namespace_of(&self, function: FunctionId) -> &Namespace {
        let record = self
            .state
            .view
            .functions
            .get(&function)
            .expect("the caller has it");
        let namespace = self.state.view.namespaces.get(&record.function.namespace);
        namespace.expect("a namespace with functions cannot be deleted")
    }
}

fn has_failed(stage: &Stage) -> bool {
    matches!(
        stage,
        Stage::BuildFailed { .. } | Stage::DeployFailed { .. }
    )
}

fn patched(settings: &RevisionSettings, patch: SettingsPatch) -> RevisionSettings {
    let old = settings.clone();
    RevisionSettings {
        runtime: old.runtime,
        runtime_requested: old.runtime_requested,
        handler: patch.handler.unwrap_or(old.handler),
        source: patch.source.unwrap_or(old.source),
        dependencies: patch.dependencies.unwrap_or(old.dependencies),
        env: patch.env.unwrap_or(old.env),
        memory: patch.memory.unwrap_or(old.memory),
        cpu: patch.cpu.unwrap_or(old.cpu),
        timeout: patch.timeout.unwrap_or(old.timeout),
        init_timeout: patch.init_timeout.unwrap_or(old.init_timeout),
        concurrency: patch.concurrency.unwrap_or(old.concurrency),
        network: patch.network.unwrap_or(old.network),
    }
}

impl NewTask {
    fn of_function(
        project: ProjectId,
        verb: TaskVerb,
        function: &FunctionRef,
        id: FunctionId,
        revision: Option<RevisionId>,
    ) -> Self {
        let subject = TaskSubject::Function {
            namespace: function.namespace.to_string(),
            name: function.name.to_string(),
            id: id.to_string(),
        };
        Self {
            project,
            verb,
            subject,
            revision,
        }
    }
}
