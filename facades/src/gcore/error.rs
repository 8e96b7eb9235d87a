//! Gcore's error body. Its clients show `message` and `request_id`; two schemas are published, and
//! the members of both are sent.

use serde_json::json;

use crate::{codes::Code, failure::Failure};

pub(crate) fn body(failure: &Failure, request_id: &str) -> String {
    let mut body = json!({
        "exception_class": class(failure.code),
        "message": failure.message,
        "request_id": request_id,
        "code": failure.code.as_str(),
    });
    if let Some(field) = &failure.field {
        body["field"] = field.as_str().into();
    }
    body.to_string()
}

fn class(code: Code) -> &'static str {
    match code {
        Code::InvalidValue | Code::MalformedBody => "ValidationError",
        Code::Unauthenticated => "AuthenticationError",
        Code::Forbidden => "ForbiddenError",
        Code::NotFound | Code::RouteNotFound => "NotFoundError",
        Code::MethodNotAllowed => "MethodNotAllowedError",
        Code::RequestTimeout => "RequestTimeoutError",
        Code::AlreadyExists => "AlreadyExistsError",
        Code::Conflict => "ConflictError",
        Code::PayloadTooLarge => "PayloadTooLargeError",
        Code::QuotaExceeded => "QuotaLimitExceededError",
        Code::Internal => "InternalServerError",
        Code::NoController | Code::OutcomeUnknown => "ServiceUnavailableError",
        Code::StorageFull => "InsufficientStorageError",
    }
}
