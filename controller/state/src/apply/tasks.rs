//! Tasks: made with the write they stand for, final with the revision they wait for.

use coracle_model::{
    ProjectId, Refusal, RevisionId, Task, TaskId, TaskState, limits,
    task::{TaskSubject, TaskVerb},
};

use super::Change;
use crate::Effect;

/// A task that is about to be made.
pub(super) struct NewTask {
    pub(super) project: ProjectId,
    pub(super) verb: TaskVerb,
    pub(super) subject: TaskSubject,
    /// The revision to wait for; `None` when there is nothing to wait for.
    pub(super) revision: Option<RevisionId>,
}

impl Change<'_> {
    /// Makes the task that the client asked for, if it did.
    pub(super) fn add_task(&mut self, id: Option<TaskId>, new: NewTask) {
        let Some(id) = id else { return };
        let NewTask {
            project,
            verb,
            subject,
            revision,
        } = new;
        let (state, finished_at) = match revision {
            Some(_) => (TaskState::Running, None),
            None => (TaskState::Finished, Some(self.at)),
        };
        let task = Task {
            id,
            project,
            verb,
            subject,
            revision,
            state,
            acknowledged_at: None,
            created_at: self.at,
            updated_at: self.at,
            finished_at,
        };
        self.state.view.tasks.insert(id, task);
        self.emit(Effect::TaskChanged(id));
        self.forget_old_tasks();
    }

    /// Ends whatever waits for this revision.
    pub(super) fn end_tasks(&mut self, revision: RevisionId, state: &TaskState) {
        let tasks = self.state.view.tasks.values();
        let waiting: Vec<_> = tasks
            .filter(|task| task.revision == Some(revision) && !task.state.is_final())
            .map(|task| task.id)
            .collect();
        for id in waiting {
            let task = self.state.view.tasks.get_mut(&id).expect("just found");
            task.state = state.clone();
            task.updated_at = self.at;
            task.finished_at = Some(self.at);
            self.emit(Effect::TaskChanged(id));
        }
        self.forget_old_tasks();
    }

    /// Keeps every task that something waits for, and the newest of the others. The former are as
    /// many as there are functions at most: a newer revision ends its predecessor's.
    fn forget_old_tasks(&mut self) {
        let tasks = &mut self.state.view.tasks;
        if tasks.len() <= limits::TASKS_KEPT {
            return;
        }
        let mut ended: Vec<_> = tasks
            .values()
            .filter_map(|task| Some((task.finished_at?, task.id)))
            .collect();
        let Some(surplus) = ended.len().checked_sub(limits::TASKS_KEPT) else {
            return;
        };
        ended.sort_unstable();
        for (_, id) in &ended[..surplus] {
            tasks.remove(id);
        }
    }

    pub(super) fn acknowledge_task(
        &mut self,
        project: ProjectId,
        id: TaskId,
    ) -> Result<(), Refusal> {
        let not_found = || Refusal::NotFound(format!("task {id}"));
        let task = self.state.view.tasks.get(&id).ok_or_else(not_found)?;
        if task.project != project {
            return Err(not_found());
        }
        if task.acknowledged_at.is_none() {
            let task = self.state.view.tasks.get_mut(&id).expect("just found");
            task.acknowledged_at = Some(self.at);
            self.emit(Effect::TaskChanged(id));
        }
        Ok(())
    }
}
