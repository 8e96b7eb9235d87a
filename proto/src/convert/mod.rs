//! Conversions between the wire and the model, one file per subject.

mod access;
mod cluster;
mod function;
mod instance;
mod log;
mod node;
mod operation;
mod query;
mod refusal;
mod scalar;
mod settings;
mod task;
mod tenancy;

#[cfg(test)]
mod tests;

use std::fmt;

use coracle_model::Invalid;

pub use scalar::Wire;

/// A message that cannot be a value of the model: which field, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct ConvertError {
    /// Path from the outermost message, in the names of the `.proto` files
    /// ("settings.handler.entry").
    pub field: String,
    pub reason: String,
}

impl ConvertError {
    pub fn new(field: impl Into<String>, reason: impl fmt::Display) -> Self {
        Self {
            field: field.into(),
            reason: reason.to_string(),
        }
    }

    pub fn missing(field: impl Into<String>) -> Self {
        Self::new(field, "is missing")
    }

    /// The same error, seen from the message that holds the failing one in `outer`.
    #[must_use]
    pub fn inside(self, outer: &str) -> Self {
        Self {
            field: format!("{outer}.{}", self.field),
            ..self
        }
    }
}

impl From<ConvertError> for tonic::Status {
    /// For servers: what the caller sent is at fault.
    fn from(error: ConvertError) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

/// Converts a message field that must be there.
pub fn required<M, T>(field: &str, message: Option<M>) -> Result<T, ConvertError>
where
    T: TryFrom<M, Error = ConvertError>,
{
    let message = message.ok_or_else(|| ConvertError::missing(field))?;
    T::try_from(message).map_err(|error| error.inside(field))
}

/// Converts a message field that may be absent.
fn optional<M, T>(field: &str, message: Option<M>) -> Result<Option<T>, ConvertError>
where
    T: TryFrom<M, Error = ConvertError>,
{
    message
        .map(T::try_from)
        .transpose()
        .map_err(|error| error.inside(field))
}

/// Converts each item of a list; the path of an error holds the index.
fn each<M, T>(field: &str, items: Vec<M>) -> Result<Vec<T>, ConvertError>
where
    T: TryFrom<M, Error = ConvertError>,
{
    let convert = |(index, item)| {
        T::try_from(item).map_err(|error: ConvertError| error.inside(&format!("{field}[{index}]")))
    };
    items.into_iter().enumerate().map(convert).collect()
}

/// Reads an enum field: unknown numbers and the unspecified zero are refused.
fn enumeration<E, T>(field: &str, number: i32) -> Result<T, ConvertError>
where
    E: TryFrom<i32>,
    T: TryFrom<E, Error = ConvertError>,
{
    let value = E::try_from(number)
        .map_err(|_| ConvertError::new(field, format_args!("unknown value {number}")))?;
    T::try_from(value).map_err(|error| ConvertError {
        field: field.to_owned(),
        ..error
    })
}

fn unspecified() -> ConvertError {
    ConvertError::new("value", "is not specified")
}

/// Gives the model's own refusal of a value the name that the field has on the wire.
fn parsed<T>(field: &str, result: Result<T, Invalid>) -> Result<T, ConvertError> {
    result.map_err(|invalid| ConvertError::new(field, invalid.reason))
}
