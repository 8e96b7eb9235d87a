//! `/faas/keys/{project_id}/{region_id}`: keys that let their holders invoke functions.

use std::sync::Arc;

use axum::{Json, body::Body, extract::State};
use coracle_model::{
    FunctionKey, FunctionRef, KeyId, KeyName, Operation, ProjectId, SecretHash, Timestamp,
    operation::{CreateKey, UpdateKey},
};
use http::StatusCode;

use super::{map, namespaces::NEWEST_FIRST, scope::Scope, wire};
use crate::{
    api::Api,
    body,
    failure::Failure,
    query::{Listed, OrderKey, Page, Params},
};

const DAY_MILLIS: u64 = 24 * 60 * 60 * 1_000;

impl Listed for FunctionKey {
    fn name(&self) -> &str {
        &self.name
    }
    fn created_at(&self) -> Timestamp {
        self.created_at
    }
    fn expires_at(&self) -> Option<Timestamp> {
        self.expires_at
    }
}

/// A create that is sent again is refused by its name: the secret of the first answer is kept by
/// nobody, so there is no answer that would serve.
pub(super) async fn create(
    State(api): State<Arc<Api>>,
    scope: Scope,
    body: Body,
) -> Result<Json<wire::Key>, Failure> {
    let given: wire::CreateKey = body::json(body).await?;
    let name: KeyName = map::name("name", &given.name)?;
    let description = map::description(given.description.as_deref())?.unwrap_or_default();
    let functions = map::key_functions(given.functions.as_deref().unwrap_or_default())?;
    let expires_at = map::expire(given.expire.as_deref())?;
    let project = scope.project.id;
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
    Ok(Json(wire::Key {
        secret: Some(secret),
        ..map::key(&key, api.env.now())
    }))
}

/// The state machine checks it again; asking first gives the error its field.
async fn check_functions(
    api: &Api,
    project: ProjectId,
    functions: &[FunctionRef],
) -> Result<(), Failure> {
    for (at, function) in functions.iter().enumerate() {
        if api.port.function(project, function).await?.is_none() {
            return Err(Failure::invalid(
                format!("functions[{at}]"),
                format_args!(
                    "there is no function {} in namespace {}",
                    function.name, function.namespace
                ),
            ));
        }
    }
    Ok(())
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

pub(super) async fn list(
    State(api): State<Arc<Api>>,
    scope: Scope,
    params: Params,
) -> Result<Json<wire::List<wire::Key>>, Failure> {
    let orders = [OrderKey::Name, OrderKey::CreatedAt, OrderKey::Expire];
    let page = Page::parse(&params, NEWEST_FIRST, &orders, map::NAME_MAX)?;
    let now = api.env.now();
    let mut keys = api.port.keys(scope.project.id).await?;
    if params.get("expire_in").is_some() {
        let days = params.integer("expire_in", 0, 0..=36_500)?;
        let until = now.plus_millis(days * DAY_MILLIS);
        keys.retain(|key| key.expires_at.is_some_and(|at| at <= until));
    }
    let (count, shown) = page.apply(keys);
    let results = shown.iter().map(|key| map::key(key, now)).collect();
    Ok(Json(wire::List { count, results }))
}

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
    Ok(Json(map::key(&key, api.env.now())))
}

pub(super) async fn patch(
    State(api): State<Arc<Api>>,
    scope: Scope,
    body: Body,
) -> Result<Json<wire::Key>, Failure> {
    let given: wire::PatchKey = body::json(body).await?;
    let project = scope.project.id;
    let name: KeyName = scope.path.named("key_name", "key")?;
    let current = read(&api, project, &name).await?;
    map::immutable("name", given.name.as_deref(), &current.name)?;
    let functions = given
        .functions
        .as_deref()
        .map(map::key_functions)
        .transpose()?;
    check_functions(&api, project, functions.as_deref().unwrap_or_default()).await?;
    let expire = given
        .expire
        .map(|text| map::expire(text.as_deref()))
        .transpose()?;
    let update = UpdateKey {
        project,
        name: name.clone(),
        description: map::description(given.description.as_deref())?,
        functions,
        expires_at: expire,
    };
    api.write(Operation::UpdateKey(update), map::words).await?;
    let key = read(&api, project, &name).await?;
    Ok(Json(map::key(&key, api.env.now())))
}

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
