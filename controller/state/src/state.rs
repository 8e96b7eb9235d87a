//! The state itself.

use std::ops::Deref;

use coracle_model::{Digest, Project, ProjectId, Timestamp};

use crate::{artifacts::Artifacts, view::View, writes::Writes};

/// Everything that the controllers replicate. Read through [`View`], which it derefs to; changed
/// only by [`State::apply`](crate::State::apply).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub(crate) view: View,
    pub(crate) writes: Writes,
    pub(crate) artifacts: Artifacts,
}

impl State {
    /// Before the first command: the default project, and nothing else.
    pub fn new() -> Self {
        let mut view = View {
            last_project: ProjectId::DEFAULT.0,
            ..View::default()
        };
        view.projects.insert(
            ProjectId::DEFAULT,
            Project {
                id: ProjectId::DEFAULT,
                name: "default".parse().expect("a valid name"),
                // No command made it, so it has no time of its own.
                created_at: Timestamp(0),
            },
        );
        Self {
            view,
            writes: Writes::default(),
            artifacts: Artifacts::default(),
        }
    }

    /// A picture for readers that later commands do not touch. Cheap: it shares everything until
    /// something changes.
    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// Whether a revision names this artifact.
    pub fn references(&self, digest: &Digest) -> bool {
        self.artifacts.contains(digest)
    }
}

impl Default for State {
    fn default() -> Self {
        Self::new()
    }
}

impl Deref for State {
    type Target = View;
    fn deref(&self) -> &View {
        &self.view
    }
}
