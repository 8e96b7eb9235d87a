//! Why the state machine refused.

use coracle_model::{Invalid, Refusal};

use super::ConvertError;
use crate::v1;

impl From<Refusal> for v1::Refusal {
    fn from(value: Refusal) -> Self {
        use v1::refusal::Kind;
        let (kind, message, field) = match value {
            Refusal::NotFound(what) => (Kind::NotFound, what, String::new()),
            Refusal::AlreadyExists(what) => (Kind::AlreadyExists, what, String::new()),
            Refusal::Conflict(text) => (Kind::Conflict, text, String::new()),
            Refusal::Invalid(Invalid { field, reason }) => (Kind::Invalid, reason, field),
            Refusal::Quota(text) => (Kind::Quota, text, String::new()),
        };
        Self {
            kind: kind.into(),
            message,
            field,
        }
    }
}

impl TryFrom<v1::Refusal> for Refusal {
    type Error = ConvertError;
    fn try_from(value: v1::Refusal) -> Result<Self, ConvertError> {
        use v1::refusal::Kind;
        let v1::Refusal {
            kind,
            message,
            field,
        } = value;
        let unknown = |_| ConvertError::new("kind", format_args!("unknown value {kind}"));
        Ok(match Kind::try_from(kind).map_err(unknown)? {
            Kind::Unspecified => return Err(ConvertError::missing("kind")),
            Kind::NotFound => Self::NotFound(message),
            Kind::AlreadyExists => Self::AlreadyExists(message),
            Kind::Conflict => Self::Conflict(message),
            Kind::Invalid if field.is_empty() => return Err(ConvertError::missing("field")),
            Kind::Invalid => Self::Invalid(Invalid {
                field,
                reason: message,
            }),
            Kind::Quota => Self::Quota(message),
        })
    }
}
