//! Nodes: what they have and run, and what operators do to them. Administrators only.

use std::sync::Arc;

use axum::{Json, body::Body, extract::State};
use coracle_model::{
    NodeId, Timestamp,
    node::{NodeChange, Resources},
    query::NodeView,
};

use super::{error::Problem, map, params, scope::Admin, wire};
use crate::{api::Api, body, failure::Failure};

/// A year: longer is a mistake.
const DEADLINE_MAX_SECONDS: i64 = 365 * 24 * 3_600;

#[utoipa::path(
    get, path = "/nodes", tag = "nodes",
    responses((status = 200, body = wire::List<wire::Node>), (status = "4XX", body = Problem))
)]
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    _: Admin,
) -> Result<Json<wire::List<wire::Node>>, Failure> {
    let mut items: Vec<_> = api.port.nodes().await?.into_iter().map(node).collect();
    items.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Json(wire::List {
        count: items.len(),
        items,
    }))
}

/// A node by its name or its id, with the instances on it.
#[utoipa::path(
    get, path = "/nodes/{node_name}", tag = "nodes", params(params::NodePath),
    responses((status = 200, body = wire::Node), (status = "4XX", body = Problem))
)]
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    admin: Admin,
) -> Result<Json<wire::Node>, Failure> {
    let id = find(&api, &admin).await?;
    shown(&api, &admin, id).await
}

/// Closes it: nothing new goes there, what runs stays.
#[utoipa::path(
    post, path = "/nodes/{node_name}/cordon", tag = "nodes", params(params::NodePath),
    responses((status = 200, body = wire::Node), (status = "4XX", body = Problem))
)]
pub(super) async fn cordon(
    State(api): State<Arc<Api>>,
    admin: Admin,
) -> Result<Json<wire::Node>, Failure> {
    change(&api, &admin, NodeChange::Cordon).await
}

/// Opens it again; a drain ends.
#[utoipa::path(
    post, path = "/nodes/{node_name}/uncordon", tag = "nodes", params(params::NodePath),
    responses((status = 200, body = wire::Node), (status = "4XX", body = Problem))
)]
pub(super) async fn uncordon(
    State(api): State<Arc<Api>>,
    admin: Admin,
) -> Result<Json<wire::Node>, Failure> {
    change(&api, &admin, NodeChange::Uncordon).await
}

/// Closes it and moves what runs there elsewhere: each instance goes when its replacement answers.
/// Answers at once; the node's `state` becomes `drained` when its last process has ended.
#[utoipa::path(
    post, path = "/nodes/{node_name}/drain", tag = "nodes", params(params::NodePath),
    request_body = Option<wire::DrainNode>,
    responses((status = 200, body = wire::Node), (status = "4XX", body = Problem))
)]
pub(super) async fn drain(
    State(api): State<Arc<Api>>,
    admin: Admin,
    body: Body,
) -> Result<Json<wire::Node>, Failure> {
    let given: wire::DrainNode = read(body).await?;
    let deadline = match given.deadline_seconds {
        None => None,
        Some(seconds) if (0..=DEADLINE_MAX_SECONDS).contains(&seconds) => {
            let millis = seconds.unsigned_abs().saturating_mul(1_000);
            Some(api.env.now().plus_millis(millis))
        }
        Some(seconds) => {
            let reason = format!("must be 0 to {DEADLINE_MAX_SECONDS}, is {seconds}");
            return Err(Failure::invalid("deadline_seconds", reason));
        }
    };
    let force = given.force.unwrap_or(false);
    change(&api, &admin, NodeChange::Drain { deadline, force }).await
}

/// Takes it out of the cluster for good: its id may not join again. Refused while it runs instances,
/// unless it is lost or `force` is set. The answer is the node as it was.
#[utoipa::path(
    post, path = "/nodes/{node_name}/remove", tag = "nodes", params(params::NodePath),
    request_body = Option<wire::RemoveNode>,
    responses((status = 200, body = wire::Node), (status = "4XX", body = Problem))
)]
pub(super) async fn remove(
    State(api): State<Arc<Api>>,
    admin: Admin,
    body: Body,
) -> Result<Json<wire::Node>, Failure> {
    let given: wire::RemoveNode = read(body).await?;
    let id = find(&api, &admin).await?;
    let before = shown(&api, &admin, id).await?;
    let force = given.force.unwrap_or(false);
    api.change_node(id, NodeChange::Remove { force }).await?;
    Ok(before)
}

/// A body that is not there asks for nothing special.
async fn read<T: serde::de::DeserializeOwned + Default>(body: Body) -> Result<T, Failure> {
    let bytes = body::read(body, body::JSON_MAX_BYTES).await?;
    if bytes.is_empty() {
        return Ok(T::default());
    }
    body::parse(&bytes)
}

async fn change(api: &Api, admin: &Admin, change: NodeChange) -> Result<Json<wire::Node>, Failure> {
    let id = find(api, admin).await?;
    api.change_node(id, change).await?;
    shown(api, admin, id).await
}

async fn find(api: &Api, admin: &Admin) -> Result<NodeId, Failure> {
    let wanted = admin.path.get("node_name");
    let nodes = api.port.nodes().await?;
    let found = nodes
        .iter()
        .find(|view| view.node.name == wanted || view.node.id.to_string() == wanted);
    found.map(|view| view.node.id).ok_or_else(|| missing(admin))
}

fn missing(admin: &Admin) -> Failure {
    let shown: String = admin.path.get("node_name").chars().take(80).collect();
    Failure::not_found(format_args!("node {shown:?}"))
}

async fn shown(api: &Api, admin: &Admin, id: NodeId) -> Result<Json<wire::Node>, Failure> {
    let view = api.port.node(id).await?.ok_or_else(|| missing(admin))?;
    let placed = view.placed.iter().map(|placed| wire::NodeInstance {
        project: placed.project.clone(),
        namespace: placed.namespace.clone(),
        function: placed.function.clone(),
        instance: map::instance(&placed.instance),
    });
    let placed = placed.collect();
    Ok(Json(wire::Node {
        placed: Some(placed),
        ..node(view)
    }))
}

fn node(view: NodeView) -> wire::Node {
    let amounts = |resources: Resources| wire::Amounts {
        memory_mib: resources.memory_mib,
        cpu_millis: resources.cpu_millis,
    };
    let drain = view.draining.map(|drain| wire::Drain {
        since: drain.since.rfc3339(),
        deadline: drain.deadline.map(Timestamp::rfc3339),
        force: drain.force,
        waiting: view.waiting,
    });
    let node = view.node;
    wire::Node {
        id: node.id.to_string(),
        name: node.name,
        state: view.state.as_str().to_owned(),
        version: node.version,
        labels: node.labels,
        address: node.address,
        alive: view.state != coracle_model::node::NodeState::Lost,
        schedulable: node.schedulable,
        cordoned: view.cordoned,
        drain,
        allocatable: amounts(node.allocatable),
        used: amounts(view.used),
        instances: view.instances,
        running: view.running,
        builds: view.builds,
        stems: node
            .stems
            .into_iter()
            .map(|(name, count)| (name.to_string(), count))
            .collect(),
        images: node.images.iter().map(ToString::to_string).collect(),
        reported_at: view.heard_at.map(Timestamp::rfc3339),
        joined_at: view.joined_at.map(Timestamp::rfc3339),
        placed: None,
    }
}
