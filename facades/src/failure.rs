//! What went wrong, before any API gave it a shape. Handlers return it; [`crate::envelope`] turns
//! it into a body once the request's id is known.

use axum::response::{IntoResponse, Response};
use coracle_model::{Invalid, Refusal};

use crate::{codes::Code, port::PortError};

/// An answer that is an error. The message is for the caller and never holds our own internals.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) message: String,
    /// In the words of the API that was called.
    pub(crate) field: Option<String>,
}

impl Failure {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            field: None,
        }
    }

    /// A bad value in the named field.
    pub(crate) fn invalid(field: impl Into<String>, reason: impl std::fmt::Display) -> Self {
        let field = field.into();
        Self {
            code: Code::InvalidValue,
            message: format!("{field}: {reason}"),
            field: Some(field),
        }
    }

    pub(crate) fn not_found(what: impl std::fmt::Display) -> Self {
        Self::new(Code::NotFound, format!("{what} does not exist"))
    }

    /// A port error whose field names are first translated by `words`.
    pub(crate) fn from_port(error: PortError, words: fn(&str) -> String) -> Self {
        match error {
            PortError::Refused(refusal) => Self::from_refusal(refusal, words),
            PortError::Unknown(detail) => {
                tracing::warn!(%detail, "the outcome of a write is unknown");
                Self::new(
                    Code::OutcomeUnknown,
                    "The write may or may not have happened; read the state before repeating it.",
                )
            }
            PortError::Unavailable(detail) => {
                tracing::warn!(%detail, "no controller can answer");
                Self::new(
                    Code::NoController,
                    "No controller can answer at the moment; nothing was changed.",
                )
            }
            PortError::StorageFull(detail) => {
                tracing::error!(%detail, "a write was refused");
                Self::new(
                    Code::StorageFull,
                    "The controller's disk is nearly full; nothing was changed. Removals are taken.",
                )
            }
            PortError::Internal(detail) => {
                tracing::error!(%detail, "internal error behind a management call");
                Self::new(
                    Code::Internal,
                    "The server failed; its log has the details.",
                )
            }
        }
    }

    fn from_refusal(refusal: Refusal, words: fn(&str) -> String) -> Self {
        let message = refusal.to_string();
        match refusal {
            Refusal::NotFound(_) => Self::new(Code::NotFound, message),
            Refusal::AlreadyExists(_) => Self::new(Code::AlreadyExists, message),
            Refusal::Conflict(_) => Self::new(Code::Conflict, message),
            Refusal::Quota(_) => Self::new(Code::QuotaExceeded, message),
            Refusal::Invalid(Invalid { field, reason }) => Self::invalid(words(&field), reason),
        }
    }
}

/// For calls that carry no field of the caller's.
impl From<PortError> for Failure {
    fn from(error: PortError) -> Self {
        Self::from_port(error, str::to_owned)
    }
}

/// For values whose field name is already the API's.
impl From<Invalid> for Failure {
    fn from(invalid: Invalid) -> Self {
        Self::invalid(invalid.field, invalid.reason)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = self.code.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}
