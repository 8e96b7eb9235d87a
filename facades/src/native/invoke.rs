//! Calling a function with a management token: for the CLI and for trying things out. Ordinary
//! traffic goes to the invocation listener, which streams and asks no token.

use std::sync::Arc;

use axum::{
    Extension,
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderName, HeaderValue, Request, Uri, header, request::Parts};

use super::{error::Problem, params, scope::Scope};
use crate::{
    api::Api,
    body,
    envelope::{CORACLE_ERROR, REQUEST_ID, RequestId},
    failure::Failure,
    port::Invocation,
};

/// Where, below the mount point, the function's own path begins: after
/// `/projects/p/namespaces/n/functions/f/invoke`.
const SEGMENTS_BEFORE: usize = 8;

/// What the gateway says of a function that it has no revision of.
const NO_ROUTE: &str = "not_deployed";

/// The caller's credential is for us, not for the function; a length is set anew from the body.
const NOT_HANDED_ON: [HeaderName; 7] = [
    header::AUTHORIZATION,
    header::HOST,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::EXPECT,
];

/// Calls the function at `/`. Any method; the answer is the function's own.
#[utoipa::path(
    method(get, head, post, put, patch, delete, options),
    path = "/projects/{project}/namespaces/{namespace_name}/functions/{function_name}/invoke",
    tag = "functions", params(params::FunctionPath),
    responses((status = "default", description = "What the function answers"),
              (status = "4XX", body = Problem))
)]
pub(super) async fn root(
    api: State<Arc<Api>>,
    scope: Scope,
    id: Extension<RequestId>,
    parts: Parts,
    body: Body,
) -> Result<Response, Failure> {
    invoke(api, scope, id, parts, body).await
}

/// Calls the function at `/`, like the route without the last slash.
#[utoipa::path(
    method(get, head, post, put, patch, delete, options),
    path = "/projects/{project}/namespaces/{namespace_name}/functions/{function_name}/invoke/",
    tag = "functions", params(params::FunctionPath),
    responses((status = "default", description = "What the function answers"),
              (status = "4XX", body = Problem))
)]
pub(super) async fn slash(
    api: State<Arc<Api>>,
    scope: Scope,
    id: Extension<RequestId>,
    parts: Parts,
    body: Body,
) -> Result<Response, Failure> {
    invoke(api, scope, id, parts, body).await
}

/// Calls the function at the rest of the path. Any method; the answer is the function's own.
#[utoipa::path(
    method(get, head, post, put, patch, delete, options),
    path = "/projects/{project}/namespaces/{namespace_name}/functions/{function_name}/invoke/{*path}",
    tag = "functions", params(params::InvokePath),
    responses((status = "default", description = "What the function answers"),
              (status = "4XX", body = Problem))
)]
pub(super) async fn below(
    api: State<Arc<Api>>,
    scope: Scope,
    id: Extension<RequestId>,
    parts: Parts,
    body: Body,
) -> Result<Response, Failure> {
    invoke(api, scope, id, parts, body).await
}

async fn invoke(
    State(api): State<Arc<Api>>,
    scope: Scope,
    Extension(id): Extension<RequestId>,
    mut parts: Parts,
    body: Body,
) -> Result<Response, Failure> {
    let function = scope.function()?;
    let body = body::read(body, body::INVOKE_MAX_BYTES).await?;
    parts.uri = target(&parts.uri)?;
    for name in NOT_HANDED_ON {
        parts.headers.remove(name);
    }
    if let Ok(value) = HeaderValue::from_str(&id.0) {
        parts.headers.insert(REQUEST_ID, value);
    }
    parts.extensions.clear();
    let request = Request::from_parts(parts, body);
    let invocation = Invocation {
        project: scope.project.id,
        function: function.clone(),
        request,
    };
    let response = api.port.invoke(invocation).await?;
    let error = response.headers().get(CORACLE_ERROR);
    if error.is_some_and(|code| code == NO_ROUTE) {
        // The gateway knows routes, and one that has not come yet from one that never will only the
        // controllers can tell. They are asked only here, so that a call that goes well needs none.
        api.function(scope.project.id, &function).await?;
    }
    Ok(response.into_response())
}

/// Path and query as the function is to see them, byte for byte as the caller wrote them.
fn target(uri: &Uri) -> Result<Uri, Failure> {
    let rest = uri
        .path()
        .splitn(SEGMENTS_BEFORE + 1, '/')
        .nth(SEGMENTS_BEFORE)
        .unwrap_or("");
    let query = uri
        .query()
        .map(|query| format!("?{query}"))
        .unwrap_or_default();
    let target = format!("/{rest}{query}").parse();
    target.map_err(|_| Failure::invalid("path", "is not a valid request target"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_functions_own_path_is_kept_as_it_was_written() {
        let before = "/projects/p/namespaces/n/functions/invoke/invoke";
        for (rest, expected) in [
            ("", "/"),
            ("/", "/"),
            ("?a=1", "/?a=1"),
            ("/a/b%2Fc//d/?q=%20", "/a/b%2Fc//d/?q=%20"),
            ("/invoke/x", "/invoke/x"),
        ] {
            let uri = format!("{before}{rest}").parse().expect("a valid URI");
            assert_eq!(target(&uri).expect("a valid target"), expected, "{rest}");
        }
    }
}
