//! Functions: how they fare.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Json,
    body::Body,
    extract::State,
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
};
use coracle_model::RevisionId;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, header};

use super::{error::Problem, functions, map, params, scope::Scope, wire};
use crate::{
    api::Api,
    failure::Failure,
    port::{LogQuery, LogStream, PortError},
    query::Params,
};

const TAIL_DEFAULT: u64 = 100;
const TAIL_MAX: u64 = 100_000;

/// The function, its instances, and why there are as many as there are.
#[utoipa::path(
    get, path = "/projects/{project}/namespaces/{namespace_name}/functions/{function_name}/describe",
    tag = "functions", params(params::FunctionPath),
    responses((status = 200, body = wire::Description), (status = "4XX", body = Problem))
)]
pub(super) async fn describe(
    State(api): State<Arc<Api>>,
    scope: Scope,
) -> Result<Json<wire::Description>, Failure> {
    let function = scope.function()?;
    let view = api.function(scope.project.id, &function).await?;
    let running = api.port.describe(scope.project.id, &function).await?;
    Ok(Json(wire::Description {
        function: functions::whole(&api, &view).await?,
        instances: running.instances.iter().map(map::instance).collect(),
        decisions: running.decisions.iter().map(map::decision).collect(),
        exits: running.exits.iter().map(map::exit).collect(),
        shortage: running.shortage,
    }))
}

/// Newest first.
#[utoipa::path(
    get, path = "/projects/{project}/namespaces/{namespace_name}/functions/{function_name}/revisions",
    tag = "functions", params(params::FunctionPath),
    responses((status = 200, body = wire::List<wire::Revision>), (status = "4XX", body = Problem))
)]
pub(super) async fn revisions(
    State(api): State<Arc<Api>>,
    scope: Scope,
) -> Result<Json<wire::List<wire::Revision>>, Failure> {
    let function = scope.function()?;
    api.function(scope.project.id, &function).await?;
    let mut revisions = api.port.revisions(scope.project.id, &function).await?;
    revisions.sort_by_key(|revision| std::cmp::Reverse(revision.id.number));
    let items: Vec<_> = revisions.iter().map(map::revision).collect();
    Ok(Json(wire::List {
        count: items.len(),
        items,
    }))
}

#[utoipa::path(
    get, path = "/projects/{project}/namespaces/{namespace_name}/functions/{function_name}/instances",
    tag = "functions", params(params::FunctionPath),
    responses((status = 200, body = wire::List<wire::Instance>), (status = "4XX", body = Problem))
)]
pub(super) async fn instances(
    State(api): State<Arc<Api>>,
    scope: Scope,
) -> Result<Json<wire::List<wire::Instance>>, Failure> {
    let function = scope.function()?;
    api.function(scope.project.id, &function).await?;
    let running = api.port.describe(scope.project.id, &function).await?;
    let items: Vec<_> = running.instances.iter().map(map::instance).collect();
    Ok(Json(wire::List {
        count: items.len(),
        items,
    }))
}

/// What the build of a revision printed, as text.
#[utoipa::path(
    get, path = "/projects/{project}/namespaces/{namespace_name}/functions/{function_name}/build-log",
    tag = "functions", params(params::FunctionPath, params::BuildLogParams),
    responses(
        (status = 200, body = String, content_type = "text/plain"),
        (status = "4XX", body = Problem)
    )
)]
pub(super) async fn build_log(
    State(api): State<Arc<Api>>,
    scope: Scope,
    params: Params,
) -> Result<Response, Failure> {
    params.only(&["revision", "follow"])?;
    let follow = params.boolean("follow")?.unwrap_or(false);
    let view = api.function(scope.project.id, &scope.function()?).await?;
    let latest = u64::from(view.latest.id.number);
    let number = params.integer("revision", latest, 1..=latest)?;
    let number = u32::try_from(number).unwrap_or(view.latest.id.number);
    let revision = RevisionId {
        function: view.function.id,
        number,
    };
    let log = api.port.build_log(revision, follow).await?;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    Ok(([(header::CONTENT_TYPE, kind)], Body::from_stream(log)).into_response())
}

/// The newest lines, oldest of them first. With `follow`, or when the client accepts
/// text/event-stream, each line is a server-sent event.
#[utoipa::path(
    get, path = "/projects/{project}/namespaces/{namespace_name}/functions/{function_name}/logs",
    tag = "functions", params(params::FunctionPath, params::LogParams),
    responses(
        (status = 200, body = wire::LogLines),
        (status = 200, description = "One line an event", body = wire::LogLine,
         content_type = "text/event-stream"),
        (status = "4XX", body = Problem)
    )
)]
pub(super) async fn logs(
    State(api): State<Arc<Api>>,
    scope: Scope,
    params: Params,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    params.only(&["tail", "follow", "request_id", "instance", "since"])?;
    let tail = params.integer("tail", TAIL_DEFAULT, 0..=TAIL_MAX)?;
    let follow = params.boolean("follow")?.unwrap_or(false);
    let instance = params.get("instance").map(str::parse).transpose();
    let query = LogQuery {
        tail: u32::try_from(tail).unwrap_or(u32::MAX),
        follow,
        request: params.get("request_id").map(str::to_owned),
        instance: instance.map_err(|_| Failure::invalid("instance", "must be a UUID"))?,
        since_nanos: params
            .time("since")?
            .map_or(0, |at| at.millis().saturating_mul(1_000_000)),
    };
    let view = api.function(scope.project.id, &scope.function()?).await?;
    let lines = api.port.logs(&view, query).await?;
    if follow || accepts_events(&headers) {
        return Ok(events(lines).into_response());
    }
    collect(lines, usize::try_from(tail).unwrap_or(usize::MAX))
        .await
        .map(IntoResponse::into_response)
}

fn accepts_events(headers: &HeaderMap) -> bool {
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok());
    accept.is_some_and(|accept| {
        accept
            .split(',')
            .any(|kind| kind.trim().starts_with("text/event-stream"))
    })
}

async fn collect(mut from: LogStream, most: usize) -> Result<Json<wire::LogLines>, Failure> {
    let mut lines = Vec::new();
    while let Some(batch) = from.next().await {
        lines.extend(batch?.into_iter().map(map::log_line));
    }
    // Several nodes may each have sent as many.
    lines.drain(..lines.len().saturating_sub(most));
    Ok(Json(wire::LogLines { lines }))
}

/// An error in the middle becomes an event of that name, since the status has long been sent.
fn events(lines: LogStream) -> impl IntoResponse {
    let events = lines.flat_map(|batch| {
        let events: Vec<Result<Event, Infallible>> = match batch {
            Ok(batch) => batch.into_iter().map(|line| Ok(event(line))).collect(),
            Err(error) => vec![Ok(failed(error))],
        };
        stream::iter(events)
    });
    Sse::new(events).keep_alive(KeepAlive::default())
}

fn event(line: coracle_model::LogLine) -> Event {
    let json = serde_json::to_string(&map::log_line(line));
    Event::default().data(json.expect("strings can be written as JSON"))
}

fn failed(error: PortError) -> Event {
    let failure = Failure::from(error);
    let code = failure.code.as_str();
    let json = serde_json::json!({ "code": code, "detail": failure.message });
    Event::default().event("error").data(json.to_string())
}
