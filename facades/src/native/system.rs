//! The server itself: version and runtimes.

use std::sync::Arc;

use axum::{Json, extract::State};

use super::{error::Problem, scope::Caller, wire};
use crate::api::Api;

#[utoipa::path(
    get, path = "/version", tag = "system",
    responses((status = 200, body = wire::Version), (status = "4XX", body = Problem))
)]
pub(super) async fn version(State(api): State<Arc<Api>>, _: Caller) -> Json<wire::Version> {
    let info = &api.info;
    Json(wire::Version {
        version: info.version.clone(),
        public_url: info.public_url.clone(),
    })
}

/// What functions can ask for. Other versions of the same languages are accepted where one of these
/// can stand in.
#[utoipa::path(
    get, path = "/runtimes", tag = "system",
    responses((status = 200, body = wire::List<wire::Runtime>), (status = "4XX", body = Problem))
)]
pub(super) async fn runtimes(
    State(api): State<Arc<Api>>,
    _: Caller,
) -> Json<wire::List<wire::Runtime>> {
    let runtimes = api.catalog.runtimes().map(|runtime| wire::Runtime {
        name: runtime.name.to_string(),
        language: runtime.language.clone(),
        version: runtime.version.to_string(),
        title: runtime.title.clone(),
    });
    let items: Vec<_> = runtimes.collect();
    Json(wire::List {
        count: items.len(),
        items,
    })
}
