//! Tasks.

use coracle_model::{
    Task, TaskState, Timestamp,
    task::{TaskSubject, TaskVerb},
};

use super::{ConvertError, Wire, enumeration, optional, required, unspecified};
use crate::v1;

impl From<TaskVerb> for v1::task::Verb {
    fn from(value: TaskVerb) -> Self {
        match value {
            TaskVerb::Create => Self::Create,
            TaskVerb::Update => Self::Update,
            TaskVerb::Delete => Self::Delete,
        }
    }
}

impl TryFrom<v1::task::Verb> for TaskVerb {
    type Error = ConvertError;
    fn try_from(value: v1::task::Verb) -> Result<Self, ConvertError> {
        Ok(match value {
            v1::task::Verb::Unspecified => return Err(unspecified()),
            v1::task::Verb::Create => Self::Create,
            v1::task::Verb::Update => Self::Update,
            v1::task::Verb::Delete => Self::Delete,
        })
    }
}

impl From<TaskSubject> for v1::TaskSubject {
    fn from(value: TaskSubject) -> Self {
        use v1::task_subject::{Function, Namespace, Subject};
        let subject = match value {
            TaskSubject::Namespace { name } => Subject::Namespace(Namespace { name }),
            TaskSubject::Function {
                namespace,
                name,
                id,
            } => Subject::Function(Function {
                namespace,
                name,
                id,
            }),
        };
        Self {
            subject: Some(subject),
        }
    }
}

impl TryFrom<v1::TaskSubject> for TaskSubject {
    type Error = ConvertError;
    fn try_from(value: v1::TaskSubject) -> Result<Self, ConvertError> {
        use v1::task_subject::{Function, Namespace, Subject};
        Ok(
            match value
                .subject
                .ok_or_else(|| ConvertError::missing("subject"))?
            {
                Subject::Namespace(Namespace { name }) => Self::Namespace { name },
                Subject::Function(Function {
                    namespace,
                    name,
                    id,
                }) => Self::Function {
                    namespace,
                    name,
                    id,
                },
            },
        )
    }
}

impl From<Task> for v1::Task {
    fn from(value: Task) -> Self {
        use v1::task::State;
        let (state, error) = match value.state {
            TaskState::New => (State::New, String::new()),
            TaskState::Running => (State::Running, String::new()),
            TaskState::Finished => (State::Finished, String::new()),
            TaskState::Error(error) => (State::Error, error),
        };
        Self {
            id: value.id.to_wire(),
            project: value.project.to_wire(),
            verb: v1::task::Verb::from(value.verb).into(),
            subject: Some(value.subject.into()),
            revision: value.revision.map(Into::into),
            state: state.into(),
            error,
            acknowledged_at: value.acknowledged_at.map(Timestamp::millis),
            created_at: value.created_at.0,
            updated_at: value.updated_at.0,
            finished_at: value.finished_at.map(Timestamp::millis),
        }
    }
}

impl TryFrom<v1::Task> for Task {
    type Error = ConvertError;
    fn try_from(value: v1::Task) -> Result<Self, ConvertError> {
        Ok(Self {
            id: Wire::from_wire("id", value.id)?,
            project: Wire::from_wire("project", value.project)?,
            verb: enumeration::<v1::task::Verb, _>("verb", value.verb)?,
            subject: required("subject", value.subject)?,
            revision: optional("revision", value.revision)?,
            state: state(value.state, value.error)?,
            acknowledged_at: value.acknowledged_at.map(Timestamp),
            created_at: Timestamp(value.created_at),
            updated_at: Timestamp(value.updated_at),
            finished_at: value.finished_at.map(Timestamp),
        })
    }
}

fn state(number: i32, error: String) -> Result<TaskState, ConvertError> {
    use v1::task::State;
    let unknown = |_| ConvertError::new("state", format_args!("unknown value {number}"));
    Ok(match State::try_from(number).map_err(unknown)? {
        State::Unspecified => return Err(ConvertError::missing("state")),
        State::New => TaskState::New,
        State::Running => TaskState::Running,
        State::Finished => TaskState::Finished,
        State::Error => TaskState::Error(error),
    })
}
