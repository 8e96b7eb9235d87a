//! Every message comes back as it went, through bytes; and whatever is missing or out of bounds is
//! refused by name.

#![allow(clippy::unwrap_used, reason = "tests")]

mod refused;
mod refused_operations;
mod round_trip;
mod sample_operations;
mod samples;

use std::fmt::Debug;

use prost::Message;

use super::ConvertError;

/// Model to wire to bytes to wire to model.
fn comes_back<W, M>(value: M)
where
    W: From<M> + Message + Default,
    M: TryFrom<W, Error = ConvertError> + Clone + PartialEq + Debug,
{
    let bytes = W::from(value.clone()).encode_to_vec();
    let wire = W::decode(bytes.as_slice()).expect("our own bytes");
    assert_eq!(M::try_from(wire), Ok(value));
}

/// Breaks one field of a good message and expects the error to name it.
fn refused<W, M>(good: M, field: &str, break_it: impl FnOnce(&mut W))
where
    W: From<M>,
    M: TryFrom<W, Error = ConvertError> + Debug,
{
    let mut wire = W::from(good);
    break_it(&mut wire);
    let error = M::try_from(wire).expect_err(field);
    assert_eq!(error.field, field, "{error}");
}

#[test]
fn servers_answer_invalid_argument_with_the_field() {
    let status = tonic::Status::from(ConvertError::missing("id").inside("function"));
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    assert_eq!(status.message(), "function.id: is missing");
}
