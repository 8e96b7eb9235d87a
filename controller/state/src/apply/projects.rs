//! Projects.

use coracle_model::{Project, ProjectId, ProjectName, Refusal, TokenRole};

use super::Change;
use crate::Effect;

impl Change<'_> {
    pub(super) fn create_project(&mut self, name: ProjectName) -> Result<(), Refusal> {
        if self.state.view.project_named(&name).is_some() {
            return Err(Refusal::AlreadyExists(format!("project {name}")));
        }
        let number = self.state.view.last_project.checked_add(1);
        let number =
            number.ok_or_else(|| Refusal::Quota("there are no more project numbers".to_owned()))?;
        let id = ProjectId(number);
        let view = &mut self.state.view;
        view.last_project = number;
        view.projects.insert(
            id,
            Project {
                id,
                name,
                created_at: self.at,
            },
        );
        self.emit(Effect::ProjectChanged(id));
        Ok(())
    }

    /// Its keys and tokens go with it; by then no function is left that they could be good for.
    pub(super) fn delete_project(&mut self, id: ProjectId) -> Result<(), Refusal> {
        let project = self.project(id)?;
        if id == ProjectId::DEFAULT {
            let text = format!("project {} belongs to every server", project.name);
            return Err(Refusal::Conflict(text));
        }
        let namespaces = self.state.view.namespaces(id).count();
        if namespaces > 0 {
            return Err(Refusal::Conflict(format!(
                "project {} still holds {namespaces} namespace(s): delete them first",
                project.name
            )));
        }
        let view = &mut self.state.view;
        let keys: Vec<_> = view
            .keys(id)
            .map(|key| (key.id, key.name.clone()))
            .collect();
        for (key, name) in keys {
            view.keys.remove(&key);
            view.key_names.remove(&(id, name));
            self.effects.insert(Effect::KeyChanged(key));
        }
        let role = TokenRole::Project(id);
        let tokens: Vec<_> = view
            .tokens()
            .filter(|t| t.role == role)
            .map(|t| t.id)
            .collect();
        for token in tokens {
            view.tokens.remove(&token);
            self.effects.insert(Effect::TokenChanged(token));
        }
        view.projects.remove(&id);
        self.emit(Effect::ProjectChanged(id));
        Ok(())
    }
}
