//! Tasks: what a caller polls while a write takes effect.

use serde::{Deserialize, Serialize};

use crate::{ProjectId, RevisionId, TaskId, Timestamp};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    New,
    Running,
    Finished,
    /// With the reason in one sentence.
    Error(String),
}

impl TaskState {
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Finished | Self::Error(_))
    }
}

/// What a task made or changed, by kind; facades name the kinds in their own words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskSubject {
    Namespace {
        name: String,
    },
    Function {
        namespace: String,
        name: String,
        id: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskVerb {
    Create,
    Update,
    Delete,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    pub id: TaskId,
    pub project: ProjectId,
    pub verb: TaskVerb,
    pub subject: TaskSubject,
    /// The revision whose fate decides this task; `None` when it was final at once.
    pub revision: Option<RevisionId>,
    pub state: TaskState,
    pub acknowledged_at: Option<Timestamp>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub finished_at: Option<Timestamp>,
}
