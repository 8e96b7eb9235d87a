//! Namespaces of a project.

use std::sync::Arc;

use axum::{Json, body::Body, extract::State};
use coracle_model::{
    Env, Namespace, NamespaceId, NamespaceName, Operation, ProjectId, limits,
    operation::{CreateNamespace, UpdateNamespace},
};
use http::StatusCode;

use super::{
    error::Problem,
    map, params,
    projects::{BY_NAME, ORDERS},
    scope::Scope,
    wire,
};
use crate::{
    api::Api,
    body,
    failure::Failure,
    query::{Page, Params},
};

fn view(namespace: &Namespace, scope: &Scope) -> wire::Namespace {
    wire::Namespace {
        id: namespace.id.to_string(),
        name: namespace.name.to_string(),
        project: scope.project.name.to_string(),
        description: namespace.description.clone(),
        env: namespace.env.clone().into(),
        created_at: namespace.created_at.rfc3339(),
    }
}

pub(super) async fn find(
    api: &Api,
    project: ProjectId,
    name: &NamespaceName,
) -> Result<Namespace, Failure> {
    let mut all = api.port.namespaces(project).await?.into_iter();
    let found = all.find(|namespace| namespace.name == *name);
    found.ok_or_else(|| Failure::not_found(format_args!("namespace {name}")))
}

#[utoipa::path(
    get, path = "/projects/{project}/namespaces", tag = "namespaces",
    params(params::ProjectPath, params::PageParams),
    responses((status = 200, body = wire::List<wire::Namespace>), (status = "4XX", body = Problem))
)]
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    scope: Scope,
    params: Params,
) -> Result<Json<wire::List<wire::Namespace>>, Failure> {
    params.only(&Page::PARAMS)?;
    let page = Page::parse(&params, BY_NAME, &ORDERS, limits::NAME_MAX)?;
    let (count, shown) = page.apply(api.port.namespaces(scope.project.id).await?);
    let items = shown
        .iter()
        .map(|namespace| view(namespace, &scope))
        .collect();
    Ok(Json(wire::List { count, items }))
}

#[utoipa::path(
    post, path = "/projects/{project}/namespaces", tag = "namespaces",
    params(params::ProjectPath), request_body = wire::CreateNamespace,
    responses((status = 201, body = wire::Namespace), (status = "4XX", body = Problem))
)]
pub(super) async fn create(
    State(api): State<Arc<Api>>,
    scope: Scope,
    body: Body,
) -> Result<(StatusCode, Json<wire::Namespace>), Failure> {
    let given: wire::CreateNamespace = body::json(body).await?;
    let name: NamespaceName = map::name("name", &given.name)?;
    let create = CreateNamespace {
        id: NamespaceId(api.env.fresh_uuid()),
        project: scope.project.id,
        name: name.clone(),
        description: map::description(given.description)?.unwrap_or_default(),
        env: Env::new(given.env.unwrap_or_default())?,
        task: None,
    };
    api.write(Operation::CreateNamespace(create), map::words)
        .await?;
    let made = find(&api, scope.project.id, &name).await?;
    Ok((StatusCode::CREATED, Json(view(&made, &scope))))
}

#[utoipa::path(
    get, path = "/projects/{project}/namespaces/{namespace_name}", tag = "namespaces",
    params(params::NamespacePath),
    responses((status = 200, body = wire::Namespace), (status = "4XX", body = Problem))
)]
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    scope: Scope,
) -> Result<Json<wire::Namespace>, Failure> {
    let namespace = find(&api, scope.project.id, &scope.namespace()?).await?;
    Ok(Json(view(&namespace, &scope)))
}

/// A changed environment gives every function of the namespace a new revision.
#[utoipa::path(
    patch, path = "/projects/{project}/namespaces/{namespace_name}", tag = "namespaces",
    params(params::NamespacePath), request_body = wire::PatchNamespace,
    responses((status = 200, body = wire::Namespace), (status = "4XX", body = Problem))
)]
pub(super) async fn patch(
    State(api): State<Arc<Api>>,
    scope: Scope,
    body: Body,
) -> Result<Json<wire::Namespace>, Failure> {
    let given: wire::PatchNamespace = body::json(body).await?;
    let name = scope.namespace()?;
    let update = UpdateNamespace {
        project: scope.project.id,
        name: name.clone(),
        description: map::description(given.description)?,
        env: given.env.map(Env::new).transpose()?,
        task: None,
    };
    api.write(Operation::UpdateNamespace(update), map::words)
        .await?;
    let namespace = find(&api, scope.project.id, &name).await?;
    Ok(Json(view(&namespace, &scope)))
}

/// Refused while the namespace holds functions.
#[utoipa::path(
    delete, path = "/projects/{project}/namespaces/{namespace_name}", tag = "namespaces",
    params(params::NamespacePath),
    responses((status = 204), (status = "4XX", body = Problem))
)]
pub(super) async fn delete(
    State(api): State<Arc<Api>>,
    scope: Scope,
) -> Result<StatusCode, Failure> {
    let name = scope.namespace()?;
    let delete = Operation::DeleteNamespace {
        project: scope.project.id,
        name,
        task: None,
    };
    api.write(delete, map::words).await?;
    Ok(StatusCode::NO_CONTENT)
}
