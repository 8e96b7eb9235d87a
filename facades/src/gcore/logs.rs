//! `…/functions/{function_name}/logs`.

use std::sync::Arc;

use axum::{Json, extract::State};
use futures_util::StreamExt;

use super::{map, scope::Scope, wire};
use crate::{api::Api, failure::Failure, port::LogQuery, query::Params};

const LIMIT_DEFAULT: u64 = 1_000;
const LIMIT_MAX: u64 = 100_000;

/// The newest lines, oldest of them first.
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    scope: Scope,
    params: Params,
) -> Result<Json<wire::Logs>, Failure> {
    let limit = params.integer("limit", LIMIT_DEFAULT, 1..=LIMIT_MAX)?;
    let view = api
        .function(scope.project.id, &scope.path.function()?)
        .await?;
    let tail = u32::try_from(limit).unwrap_or(u32::MAX);
    let mut lines = api
        .port
        .logs(
            &view,
            LogQuery {
                tail,
                ..LogQuery::default()
            },
        )
        .await?;
    let mut logs = Vec::new();
    while let Some(batch) = lines.next().await {
        logs.extend(batch?.into_iter().map(map::log_entry));
    }
    // Several nodes may each have sent as many.
    let surplus = logs
        .len()
        .saturating_sub(usize::try_from(limit).unwrap_or(usize::MAX));
    logs.drain(..surplus);
    Ok(Json(wire::Logs { logs }))
}
