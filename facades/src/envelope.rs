//! Around every request: its id, and the shape of its error if it has one.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::{api::Api, codes::Code, failure::Failure, gcore, native};

pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Tells errors of the platform from what a function answered through the invoke route.
pub(crate) const CORACLE_ERROR: HeaderName = HeaderName::from_static("x-coracle-error");
/// Read by SDKs that Stainless generates (Gcore's is one): they repeat every 409 unless told not to.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

const REQUEST_ID_MAX: usize = 128;

/// The id of the request at hand: the caller's own where it is fit to be logged, else a fresh UUID.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(pub(crate) String);

impl RequestId {
    fn of(headers: &HeaderMap, fresh: impl FnOnce() -> String) -> Self {
        let fit = |id: &&str| {
            (1..=REQUEST_ID_MAX).contains(&id.len())
                && id
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_.:/+=".contains(&b))
        };
        let given = headers
            .get(REQUEST_ID)
            .and_then(|v| v.to_str().ok())
            .filter(fit);
        Self(given.map_or_else(fresh, str::to_owned))
    }
}

/// An API, as far as the shape of its errors goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Native,
    Gcore,
}

impl Shape {
    fn of_path(path: &str) -> Self {
        let under = |prefix: &str| {
            path.strip_prefix(prefix)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if under("/cloud") || under("/v1/tasks") {
            Self::Gcore
        } else {
            Self::Native
        }
    }
}

pub(crate) async fn layer(
    State(api): State<Arc<Api>>,
    mut request: Request,
    next: Next,
) -> Response {
    let shape = Shape::of_path(request.uri().path());
    let id = RequestId::of(request.headers(), || api.env.fresh_uuid().to_string());
    request.extensions_mut().insert(id.clone());
    let mut response = next.run(request).await;
    if let Some(failure) = response.extensions_mut().remove::<Failure>() {
        render(&mut response, shape, &failure, &id);
    }
    if let Ok(value) = HeaderValue::from_str(&id.0) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

fn render(response: &mut Response, shape: Shape, failure: &Failure, id: &RequestId) {
    let (kind, body) = match shape {
        Shape::Native => (
            "application/problem+json",
            native::error::body(failure, &id.0),
        ),
        Shape::Gcore => ("application/json", gcore::error::body(failure, &id.0)),
    };
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(
        CORACLE_ERROR,
        HeaderValue::from_static(failure.code.as_str()),
    );
    let retry = if failure.code.worth_retrying() {
        "true"
    } else {
        "false"
    };
    headers.insert(SHOULD_RETRY, HeaderValue::from_static(retry));
    if failure.code.status() == http::StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if failure.code == Code::Unauthenticated {
        let challenge = match shape {
            Shape::Native => "Bearer",
            Shape::Gcore => "APIKey",
        };
        headers.insert(
            header::WWW_AUTHENTICATE,
            HeaderValue::from_static(challenge),
        );
    }
    if matches!(failure.code, Code::PayloadTooLarge | Code::RequestTimeout) {
        // The rest of the body is still on its way; the connection cannot carry another request.
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    *response.body_mut() = Body::from(body);
}

pub(crate) async fn no_route(request: Request) -> Failure {
    let path: String = request.uri().path().chars().take(200).collect();
    Failure::new(Code::RouteNotFound, format!("there is no route {path}"))
}

pub(crate) async fn no_method(request: Request) -> Failure {
    let path: String = request.uri().path().chars().take(200).collect();
    Failure::new(
        Code::MethodNotAllowed,
        format!("{path} does not have {}", request.method()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fit_request_id_is_kept_and_another_replaced() {
        let of = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_static(value));
            RequestId::of(&headers, || "fresh".to_owned()).0
        };
        assert_eq!(of("abc-1.2"), "abc-1.2");
        for bad in ["", "a b", "a\tb", "<script>", "x".repeat(129).leak()] {
            assert_eq!(of(bad), "fresh", "{bad:?}");
        }
        assert_eq!(
            RequestId::of(&HeaderMap::new(), || "fresh".to_owned()).0,
            "fresh"
        );
    }

    #[test]
    fn the_shape_goes_by_whole_path_segments() {
        assert_eq!(Shape::of_path("/cloud/v1/nothing"), Shape::Gcore);
        assert_eq!(Shape::of_path("/v1/tasks/x"), Shape::Gcore);
        assert_eq!(Shape::of_path("/v1/tasksx"), Shape::Native);
        assert_eq!(Shape::of_path("/cloudy"), Shape::Native);
        assert_eq!(Shape::of_path("/"), Shape::Native);
    }
}
