//! Namespaces.

use coracle_model::{
    FunctionId, Namespace, NamespaceName, ProjectId, Refusal, TaskId,
    operation::{CreateNamespace, UpdateNamespace},
    task::{TaskSubject, TaskVerb},
};

use super::{Change, checks, tasks::NewTask};
use crate::Effect;

impl Change<'_> {
    pub(super) fn create_namespace(&mut self, create: CreateNamespace) -> Result<(), Refusal> {
        let CreateNamespace {
            id,
            project,
            name,
            description,
            env,
            task,
        } = create;
        self.project(project)?;
        self.task_is_free(task)?;
        checks::description(&description)?;
        let view = &mut self.state.view;
        if view.namespace_named(project, &name).is_some() {
            return Err(Refusal::AlreadyExists(format!("namespace {name}")));
        }
        if view.namespaces.contains(&id) {
            return Err(Refusal::AlreadyExists(format!(
                "a namespace with the id {id}"
            )));
        }
        let created_at = self.at;
        view.namespace_names.insert((project, name.clone()), id);
        let namespace = Namespace {
            id,
            project,
            name: name.clone(),
            description,
            env,
            created_at,
        };
        view.namespaces.insert(id, namespace);
        self.emit(Effect::NamespaceChanged(id));
        self.add_task(
            task,
            NewTask::of_namespace(project, TaskVerb::Create, &name),
        );
        Ok(())
    }

    /// A changed environment makes new revisions, which then go their own ways: the task is about
    /// the namespace and is finished at once, since one function that no longer builds must not
    /// hold it up or fail it.
    pub(super) fn update_namespace(&mut self, update: UpdateNamespace) -> Result<(), Refusal> {
        let UpdateNamespace {
            project,
            name,
            description,
            env,
            task,
        } = update;
        let namespace = self.namespace(project, &name)?.clone();
        self.task_is_free(task)?;
        if let Some(text) = &description {
            checks::description(text)?;
        }
        let changed = Namespace {
            description: description.unwrap_or_else(|| namespace.description.clone()),
            env: env.unwrap_or_else(|| namespace.env.clone()),
            ..namespace.clone()
        };
        let mut affected = Vec::new();
        if changed.env != namespace.env {
            for id in self.state.view.function_ids_in(namespace.id) {
                let latest = self
                    .state
                    .view
                    .functions
                    .get(&id)
                    .expect("indexed")
                    .latest();
                // A function that sets the changed variables itself gets what it got before.
                if latest.instance_env != changed.env.overlaid(&latest.settings.env) {
                    self.next_revision(id)?;
                    affected.push((id, latest.settings.clone()));
                }
            }
        }
        if changed != namespace {
            self.emit(Effect::NamespaceChanged(namespace.id));
            self.state.view.namespaces.insert(namespace.id, changed);
        }
        for (function, settings) in affected {
            self.add_revision(function, settings);
            self.touch(function);
        }
        self.add_task(
            task,
            NewTask::of_namespace(project, TaskVerb::Update, &name),
        );
        Ok(())
    }

    pub(super) fn delete_namespace(
        &mut self,
        project: ProjectId,
        name: NamespaceName,
        task: Option<TaskId>,
    ) -> Result<(), Refusal> {
        let id = self.namespace(project, &name)?.id;
        self.task_is_free(task)?;
        let functions = self.state.view.function_ids_in(id).count();
        if functions > 0 {
            return Err(Refusal::Conflict(format!(
                "namespace {name} still holds {functions} function(s): delete them first"
            )));
        }
        self.state.view.namespaces.remove(&id);
        self.state
            .view
            .namespace_names
            .remove(&(project, name.clone()));
        self.emit(Effect::NamespaceChanged(id));
        self.add_task(
            task,
            NewTask::of_namespace(project, TaskVerb::Delete, &name),
        );
        Ok(())
    }

    /// Notes that a function changed just now.
    pub(super) fn touch(&mut self, id: FunctionId) {
        let record = self
            .state
            .view
            .functions
            .get_mut(&id)
            .expect("the caller has it");
        record.function.updated_at = self.at;
        self.emit(Effect::FunctionChanged(id));
    }
}

impl NewTask {
    fn of_namespace(project: ProjectId, verb: TaskVerb, name: &NamespaceName) -> Self {
        let subject = TaskSubject::Namespace {
            name: name.to_string(),
        };
        Self {
            project,
            verb,
            subject,
            revision: None,
        }
    }
}
