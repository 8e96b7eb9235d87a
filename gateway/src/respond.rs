//! The one place where an error becomes an HTTP answer.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::json;

/// Marks answers that the platform made, with the error's code; functions cannot set it.
pub const PLATFORM_ERROR: &str = "x-coracle-error";
/// Marks answers to a handler that raised; functions cannot set it.
pub const FUNCTION_ERROR: &str = "x-coracle-function-error";

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $status:ident, $hint:expr;)*) => {
        /// Stable names of the platform's errors; `docs/errors/<code>.md` explains each.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code { $($(#[$doc])* $name,)* }

        impl Code {
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            pub fn status(self) -> StatusCode {
                match self { $(Self::$name => StatusCode::$status,)* }
            }

            /// What the caller can do about it, in one sentence.
            fn hint(self) -> Option<&'static str> {
                match self { $(Self::$name => $hint,)* }
            }
        }
    };
}

codes! {
    BadRequest = "bad_request", BAD_REQUEST, None;
    Unauthorized = "unauthorized", UNAUTHORIZED,
        Some("Send a live key of this function in the X-API-Key header.");
    NotFound = "not_found", NOT_FOUND,
        Some("Paths are /fn/{project}/{namespace}/{function}/…");
    HeadTooLarge = "head_too_large", REQUEST_HEADER_FIELDS_TOO_LARGE, None;
    RequestTimeout = "request_timeout", REQUEST_TIMEOUT, None;
    PayloadTooLarge = "payload_too_large", PAYLOAD_TOO_LARGE, None;
    TooManyRequests = "too_many_requests", TOO_MANY_REQUESTS,
        Some("Repeat after the time in Retry-After, or raise the function's scale.max.");
    /// The handler raised. The only one that is the function's own doing in the middle of a call.
    FunctionError = "function_error", INTERNAL_SERVER_ERROR,
        Some("The function's logs have the trace under this request id.");
    Internal = "internal", INTERNAL_SERVER_ERROR, None;
    NotImplemented = "not_implemented", NOT_IMPLEMENTED, None;
    InstanceFailed = "instance_failed", BAD_GATEWAY,
        Some("The request may have run; repeat it only if that is safe.");
    RelayFailed = "relay_failed", BAD_GATEWAY,
        Some("The request may have run; repeat it only if that is safe.");
    BadResponse = "bad_response", BAD_GATEWAY, None;
    InitFailed = "init_failed", BAD_GATEWAY, Some("The function's logs say what its code did.");
    Disabled = "disabled", SERVICE_UNAVAILABLE, None;
    NoInstances = "no_instances", SERVICE_UNAVAILABLE,
        Some("Raise the function's scale.max (Gcore: autoscaling.max_instances).");
    NotDeployed = "not_deployed", SERVICE_UNAVAILABLE,
        Some("Its first revision is still being built or deployed, or failed to.");
    FunctionFailing = "function_failing", SERVICE_UNAVAILABLE,
        Some("The function's logs say what its code did.");
    LaunchFailed = "launch_failed", SERVICE_UNAVAILABLE, None;
    NoCapacity = "no_capacity", SERVICE_UNAVAILABLE, None;
    NoController = "no_controller", SERVICE_UNAVAILABLE, None;
    QueueTimeout = "queue_timeout", SERVICE_UNAVAILABLE,
        Some("The request never ran. Every instance was busy; raise scale.max or concurrency.");
    ShuttingDown = "shutting_down", SERVICE_UNAVAILABLE, None;
    Timeout = "timeout", GATEWAY_TIMEOUT,
        Some("The function ran past its timeout and was stopped.");
    InitTimeout = "init_timeout", GATEWAY_TIMEOUT,
        Some("The request never ran. The function took too long to start.");
}

/// Why an invocation got no answer from its function.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", code.as_str())]
pub(crate) struct Error {
    pub(crate) code: Code,
    /// For the caller: says what happened in one sentence, and nothing that is ours alone.
    pub(crate) message: Cow<'static, str>,
    /// Whole seconds until it makes sense to try again.
    pub(crate) retry_after: Option<u64>,
    /// The rest of the request's body will not be read, so the connection cannot be kept.
    pub(crate) close: bool,
}

impl Error {
    pub(crate) fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            message: message.into(),
            retry_after: None,
            close: false,
        }
    }

    #[must_use]
    pub(crate) fn retry_after(self, seconds: u64) -> Self {
        Self {
            retry_after: Some(seconds.max(1)),
            ..self
        }
    }

    #[must_use]
    pub(crate) fn closing(self) -> Self {
        Self {
            close: true,
            ..self
        }
    }

    pub(crate) fn into_response<B: From<Bytes>>(self, request_id: &str) -> Response<B> {
        let mut body = json!({
            "code": self.code.as_str(),
            "message": self.message,
            "request_id": request_id,
        });
        if let Some(hint) = self.code.hint() {
            body["hint"] = hint.into();
        }
        let mut response = Response::new(B::from(Bytes::from(body.to_string())));
        *response.status_mut() = self.code.status();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        // A function's error must not look like ours: the two wake different people.
        if self.code == Code::FunctionError {
            headers.insert(FUNCTION_ERROR, HeaderValue::from_static("exception"));
        } else {
            headers.insert(PLATFORM_ERROR, HeaderValue::from_static(self.code.as_str()));
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.code == Code::Unauthorized {
            headers.insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static("X-API-Key"),
            );
        }
        if self.close {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    #[test]
    fn every_code_has_a_page_and_every_page_a_code() {
        let pages = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/errors");
        let codes: BTreeSet<_> = Code::ALL.iter().map(|c| c.as_str().to_owned()).collect();
        assert_eq!(codes.len(), Code::ALL.len(), "codes are unique");
        for code in Code::ALL {
            let page = pages.join(format!("{}.md", code.as_str()));
            let text = fs::read_to_string(&page).unwrap_or_default();
            assert!(
                text.starts_with(&format!("# `{}`", code.as_str()))
                    && text.contains(code.status().as_str()),
                "{} has to begin with the code as its title and name its status {}",
                page.display(),
                code.status()
            );
        }
    }

    #[test]
    fn a_functions_error_does_not_carry_the_platforms_mark() {
        let ours = Error::new(Code::NoCapacity, "full")
            .retry_after(0)
            .into_response::<Bytes>("r");
        assert_eq!(ours.headers()[PLATFORM_ERROR], "no_capacity");
        assert_eq!(ours.headers()[header::RETRY_AFTER], "1");
        let theirs = Error::new(Code::FunctionError, "boom").into_response::<Bytes>("r");
        assert!(!theirs.headers().contains_key(PLATFORM_ERROR));
        assert_eq!(theirs.headers()[FUNCTION_ERROR], "exception");
    }
}
