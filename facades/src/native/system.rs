//! The server itself: version, runtimes, nodes, and the document about this API.

use std::sync::Arc;

use axum::{Json, extract::State};
use coracle_model::node::Resources;

use super::{
    error::Problem,
    scope::{Admin, Caller},
    wire,
};
use crate::{api::Api, failure::Failure, port::NodeView};

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

/// Administrators only.
#[utoipa::path(
    get, path = "/nodes", tag = "system",
    responses((status = 200, body = wire::List<wire::Node>), (status = "4XX", body = Problem))
)]
pub(super) async fn nodes(
    State(api): State<Arc<Api>>,
    _: Admin,
) -> Result<Json<wire::List<wire::Node>>, Failure> {
    let items: Vec<_> = api.port.nodes().await?.into_iter().map(node).collect();
    Ok(Json(wire::List {
        count: items.len(),
        items,
    }))
}

fn node(view: NodeView) -> wire::Node {
    let amounts = |resources: Resources| wire::Amounts {
        memory_mib: resources.memory_mib,
        cpu_millis: resources.cpu_millis,
    };
    let node = view.node;
    wire::Node {
        id: node.id.to_string(),
        name: node.name,
        version: node.version,
        labels: node.labels,
        address: node.address,
        alive: view.alive,
        schedulable: node.schedulable,
        allocatable: amounts(node.allocatable),
        used: amounts(view.used),
        instances: view.instances,
        stems: node
            .stems
            .into_iter()
            .map(|(name, count)| (name.to_string(), count))
            .collect(),
        images: node.images.iter().map(ToString::to_string).collect(),
        reported_at: node.reported_at.rfc3339(),
    }
}
