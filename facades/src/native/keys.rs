//! Function keys: what callers of a function with `key_required` present.

use std::sync::Arc;

use axum::{Json, body::Body, extract::State};
use coracle_model::{
    FunctionKey, FunctionRef, KeyId, KeyName, Operation, ProjectId, SecretHash, limits,
    operation::{CreateKey, UpdateKey},
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

fn view(api: &Api, scope: &Scope, key: &FunctionKey) -> wire::Key {
    map::key(key, scope.project.name.to_string(), api.env.now())
}

async fn read(api: &Api, project: ProjectId, name: &KeyName) -> Result<FunctionKey, Failure> {
    let found = api
        .port
        .keys(project)
        .await?
        .into_iter()
        .find(|key| key.name == *name);
    found.ok_or_else(|| Failure::not_found(format_args!("key {name}")))
}

/// The state machine checks it again; asking first gives the error its field.
async fn check_functions(
    api: &Api,
    project: ProjectId,
    functions: &[FunctionRef],
) -> Result<(), Failure> {
    for (at, function) in functions.iter().enumerate() {
        if api.port.function(project, function).await?.is_none() {
            let reason = format_args!("there is no function {function}");
            return Err(Failure::invalid(format!("functions[{at}]"), reason));
        }
    }
    Ok(())
}

#[utoipa::path(
    get, path = "/projects/{project}/keys", tag = "keys",
    params(params::ProjectPath, params::PageParams),
    responses((status = 200, body = wire::List<wire::Key>), (status = "4XX", body = Problem))
)]
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    scope: Scope,
    params: Params,
) -> Result<Json<wire::List<wire::Key>>, Failure> {
    params.only(&Page::PARAMS)?;
    let page = Page::parse(&params, BY_NAME, &ORDERS, limits::NAME_MAX)?;
    let (count, shown) = page.apply(api.port.keys(scope.project.id).await?);
    let items = shown.iter().map(|key| view(&api, &scope, key)).collect();
    Ok(Json(wire::List { count, items }))
}

/// The secret is in this answer only.
#[utoipa::path(
    post, path = "/projects/{project}/keys", tag = "keys",
    params(params::ProjectPath), request_body = wire::CreateKey,
    responses((status = 201, body = wire::Key), (status = "4XX", body = Problem))
)]
pub(super) async fn create(
    State(api): State<Arc<Api>>,
    scope: Scope,
    body: Body,
) -> Result<(StatusCode, Json<wire::Key>), Failure> {
    let given: wire::CreateKey = body::json(body).await?;
    let project = scope.project.id;
    let name: KeyName = map::name("name", &given.name)?;
    let functions = map::key_functions(given.functions.as_deref().unwrap_or_default())?;
    let description = map::description(given.description)?.unwrap_or_default();
    let expires_at = map::time("expires_at", given.expires_at.as_deref())?;
    check_functions(&api, project, &functions).await?;
    let secret = api.env.fresh_secret();
    let create = CreateKey {
        id: KeyId(api.env.fresh_uuid()),
        project,
        name: name.clone(),
        description,
        hash: SecretHash::of(&secret),
        functions,
        expires_at,
    };
    api.write(Operation::CreateKey(create), map::words).await?;
    let key = read(&api, project, &name).await?;
    let view = wire::Key {
        secret: Some(secret),
        ..view(&api, &scope, &key)
    };
    Ok((StatusCode::CREATED, Json(view)))
}

#[utoipa::path(
    get, path = "/projects/{project}/keys/{key_name}", tag = "keys", params(params::KeyPath),
    responses((status = 200, body = wire::Key), (status = "4XX", body = Problem))
)]
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    scope: Scope,
) -> Result<Json<wire::Key>, Failure> {
    let key = read(
        &api,
        scope.project.id,
        &scope.path.named("key_name", "key")?,
    )
    .await?;
    Ok(Json(view(&api, &scope, &key)))
}

#[utoipa::path(
    patch, path = "/projects/{project}/keys/{key_name}", tag = "keys",
    params(params::KeyPath), request_body = wire::PatchKey,
    responses((status = 200, body = wire::Key), (status = "4XX", body = Problem))
)]
pub(super) async fn patch(
    State(api): State<Arc<Api>>,
    scope: Scope,
    body: Body,
) -> Result<Json<wire::Key>, Failure> {
    let given: wire::PatchKey = body::json(body).await?;
    let project = scope.project.id;
    let name: KeyName = scope.path.named("key_name", "key")?;
    read(&api, project, &name).await?;
    let functions = given
        .functions
        .as_deref()
        .map(map::key_functions)
        .transpose()?;
    check_functions(&api, project, functions.as_deref().unwrap_or_default()).await?;
    let expires_at = given
        .expires_at
        .map(|text| map::time("expires_at", text.as_deref()));
    let update = UpdateKey {
        project,
        name: name.clone(),
        description: map::description(given.description)?,
        functions,
        expires_at: expires_at.transpose()?,
    };
    api.write(Operation::UpdateKey(update), map::words).await?;
    let key = read(&api, project, &name).await?;
    Ok(Json(view(&api, &scope, &key)))
}

/// Calls with the key are refused from now on.
#[utoipa::path(
    delete, path = "/projects/{project}/keys/{key_name}", tag = "keys", params(params::KeyPath),
    responses((status = 204), (status = "4XX", body = Problem))
)]
pub(super) async fn delete(
    State(api): State<Arc<Api>>,
    scope: Scope,
) -> Result<StatusCode, Failure> {
    let name: KeyName = scope.path.named("key_name", "key")?;
    let delete = Operation::DeleteKey {
        project: scope.project.id,
        name,
    };
    api.write(delete, map::words).await?;
    Ok(StatusCode::NO_CONTENT)
}
