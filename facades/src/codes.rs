//! Every error code that a management API can answer with. The page `docs/errors/<code>.md` says
//! what to do about each. Where the invocation path has the same error it has the same code.

use http::StatusCode;

/// Stable: clients compare these strings, so a code is never renamed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    InvalidValue,
    MalformedBody,
    Unauthenticated,
    Forbidden,
    NotFound,
    RouteNotFound,
    MethodNotAllowed,
    RequestTimeout,
    AlreadyExists,
    Conflict,
    PayloadTooLarge,
    QuotaExceeded,
    Internal,
    NoController,
    OutcomeUnknown,
    StorageFull,
}

impl Code {
    pub const ALL: [Self; 16] = [
        Self::InvalidValue,
        Self::MalformedBody,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::NotFound,
        Self::RouteNotFound,
        Self::MethodNotAllowed,
        Self::RequestTimeout,
        Self::AlreadyExists,
        Self::Conflict,
        Self::PayloadTooLarge,
        Self::QuotaExceeded,
        Self::Internal,
        Self::NoController,
        Self::OutcomeUnknown,
        Self::StorageFull,
    ];

    /// As it stands in answers and in the name of its page.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidValue => "invalid_value",
            Self::MalformedBody => "malformed_body",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::RouteNotFound => "route_not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::RequestTimeout => "request_timeout",
            Self::AlreadyExists => "already_exists",
            Self::Conflict => "conflict",
            Self::PayloadTooLarge => "payload_too_large",
            Self::QuotaExceeded => "quota_exceeded",
            Self::Internal => "internal",
            Self::NoController => "no_controller",
            Self::OutcomeUnknown => "outcome_unknown",
            Self::StorageFull => "storage_full",
        }
    }

    pub fn status(self) -> StatusCode {
        match self {
            Self::InvalidValue | Self::MalformedBody => StatusCode::BAD_REQUEST,
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            // A quota is no matter of waiting, so not 429: automatic retries would be in vain.
            Self::Forbidden | Self::QuotaExceeded => StatusCode::FORBIDDEN,
            Self::NotFound | Self::RouteNotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::AlreadyExists | Self::Conflict => StatusCode::CONFLICT,
            Self::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::NoController | Self::OutcomeUnknown => StatusCode::SERVICE_UNAVAILABLE,
            Self::StorageFull => StatusCode::INSUFFICIENT_STORAGE,
        }
    }

    /// The short human summary of the kind (RFC 9457 `title`): the same for every occurrence.
    pub fn title(self) -> &'static str {
        match self {
            Self::InvalidValue => "A value is missing or out of bounds",
            Self::MalformedBody => "The body is not valid JSON",
            Self::Unauthenticated => "No valid token was given",
            Self::Forbidden => "The token does not allow this",
            Self::NotFound => "It does not exist",
            Self::RouteNotFound => "No such route",
            Self::MethodNotAllowed => "The route does not have this method",
            Self::RequestTimeout => "The body did not arrive in time",
            Self::AlreadyExists => "The name is taken",
            Self::Conflict => "The current state does not allow this",
            Self::PayloadTooLarge => "The body is too large",
            Self::QuotaExceeded => "A limit is reached",
            Self::Internal => "The server failed",
            Self::NoController => "No controller can answer",
            Self::OutcomeUnknown => "The write may or may not have happened",
            Self::StorageFull => "The controller's disk is nearly full",
        }
    }

    /// Whether sending the same request again can end otherwise without anything else changing.
    pub fn worth_retrying(self) -> bool {
        matches!(
            self,
            Self::RequestTimeout | Self::Internal | Self::NoController | Self::OutcomeUnknown
        )
    }
}
