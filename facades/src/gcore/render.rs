//! Answers that carry source code. A function's code and dependencies can be 800 KB together and a
//! list has up to a thousand of them, so lists are written piece by piece: a few functions are in
//! memory at a time, however long the list.

use std::sync::Arc;

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use coracle_model::{Namespace, Source, query::FunctionView};
use futures_util::{StreamExt, stream};
use http::{HeaderValue, header};

use super::{map, wire};
use crate::{api::Api, codes::Code, failure::Failure};

/// Functions whose texts are fetched at once, in one answer.
const AHEAD: usize = 4;

enum Piece {
    Text(String),
    Function(Box<FunctionView>),
}

pub(super) async fn function(api: &Api, view: &FunctionView) -> Result<wire::Function, Failure> {
    let settings = &view.latest.settings;
    let Source::Inline { code } = settings.source;
    let code_text = api.text(code).await?;
    let dependencies = match settings.dependencies {
        Some(digest) => api.text(digest).await?,
        None => String::new(),
    };
    Ok(map::function(
        view,
        api.endpoint(view),
        code_text,
        dependencies,
    ))
}

pub(super) fn functions(api: &Arc<Api>, count: usize, views: Vec<FunctionView>) -> Response {
    let mut pieces = vec![Piece::Text(format!(r#"{{"count":{count},"results":["#))];
    push_functions(&mut pieces, views);
    pieces.push(Piece::Text("]}".to_owned()));
    streamed(api, pieces)
}

/// A namespace and its functions.
pub(super) type WithFunctions = (Namespace, Vec<FunctionView>);

pub(super) fn namespace(api: &Arc<Api>, namespace: WithFunctions) -> Result<Response, Failure> {
    let mut pieces = Vec::new();
    push_namespace(&mut pieces, namespace)?;
    Ok(streamed(api, pieces))
}

pub(super) fn namespaces(
    api: &Arc<Api>,
    count: usize,
    namespaces: Vec<WithFunctions>,
) -> Result<Response, Failure> {
    let mut pieces = vec![Piece::Text(format!(r#"{{"count":{count},"results":["#))];
    for (index, namespace) in namespaces.into_iter().enumerate() {
        if index > 0 {
            pieces.push(Piece::Text(",".to_owned()));
        }
        push_namespace(&mut pieces, namespace)?;
    }
    pieces.push(Piece::Text("]}".to_owned()));
    Ok(streamed(api, pieces))
}

fn push_functions(pieces: &mut Vec<Piece>, views: Vec<FunctionView>) {
    for (index, view) in views.into_iter().enumerate() {
        if index > 0 {
            pieces.push(Piece::Text(",".to_owned()));
        }
        pieces.push(Piece::Function(Box::new(view)));
    }
}

/// The member `functions` is put behind the others, which are written at once.
fn push_namespace(
    pieces: &mut Vec<Piece>,
    (namespace, views): WithFunctions,
) -> Result<(), Failure> {
    let mut head = json(&map::namespace(&namespace, &views))?;
    let closed = head.pop();
    debug_assert_eq!(closed, Some('}'), "a struct is written as an object");
    head.push_str(r#","functions":["#);
    pieces.push(Piece::Text(head));
    push_functions(pieces, views);
    pieces.push(Piece::Text("]}".to_owned()));
    Ok(())
}

fn json<T: serde::Serialize>(value: &T) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|error| {
        tracing::error!(%error, "an answer could not be written as JSON");
        Failure::new(
            Code::Internal,
            "The server failed; its log has the details.",
        )
    })
}

/// The status has been sent by the time an artifact turns out to be missing; then the connection is
/// cut, so that half a list is never taken for a whole one.
fn streamed(api: &Arc<Api>, pieces: Vec<Piece>) -> Response {
    let api = Arc::clone(api);
    let body = stream::iter(pieces)
        .map(move |piece| {
            let api = Arc::clone(&api);
            async move {
                match piece {
                    Piece::Text(text) => Ok(Bytes::from(text)),
                    Piece::Function(view) => json(&function(&api, &view).await?).map(Bytes::from),
                }
            }
        })
        .buffered(AHEAD);
    let kind = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, kind)], Body::from_stream(body)).into_response()
}
