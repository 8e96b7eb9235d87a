//! Error kinds without any transport: the gateway and each facade give them a status and a shape.

use std::fmt;

/// A value that could not be parsed into the model: which field, and which limit it broke.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct Invalid {
    /// The field in the words of the model; facades translate it into theirs with [`Invalid::at`].
    pub field: String,
    /// A sentence that names the limit, for example "must be at most 255 characters, is 300".
    pub reason: String,
}

impl Invalid {
    pub fn new(field: impl Into<String>, reason: impl fmt::Display) -> Self {
        Self {
            field: field.into(),
            reason: reason.to_string(),
        }
    }

    /// The same error under the name that the caller's API gives to the field.
    #[must_use]
    pub fn at(self, field: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            ..self
        }
    }
}

/// Why the state machine refused an operation. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The named thing does not exist ("function hello in namespace default").
    #[error("{0} does not exist")]
    NotFound(String),
    /// The name is taken.
    #[error("{0} already exists")]
    AlreadyExists(String),
    /// The thing is in a state that does not allow the operation; the text says what to do next.
    #[error("{0}")]
    Conflict(String),
    /// A reference or value is wrong in the light of the current state.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// A limit of the project or of the platform is reached.
    #[error("{0}")]
    Quota(String),
}
