//! Functions: what clients choose about them.

use std::sync::Arc;

use axum::{Json, body::Body, extract::State};
use coracle_model::{
    Digest, FunctionId, FunctionRef, KeyName, NamespaceName, Operation, ProjectId, Source, limits,
    query::FunctionView,
};
use http::StatusCode;

use super::{
    error::Problem,
    map, namespaces, params,
    projects::{BY_NAME, ORDERS},
    scope::Scope,
    wire,
};
use crate::{
    api::Api,
    body,
    failure::Failure,
    query::{Page, Params},
    runtimes,
};

/// With code and dependencies.
pub(super) async fn whole(api: &Api, view: &FunctionView) -> Result<wire::Function, Failure> {
    let settings = &view.latest.settings;
    let Source::Inline { code } = settings.source;
    let dependencies = match settings.dependencies {
        Some(digest) => api.text(digest).await?,
        None => String::new(),
    };
    Ok(wire::Function {
        code: Some(api.text(code).await?),
        dependencies: Some(dependencies),
        ..map::function(view, api.endpoint(view))
    })
}

async fn page_of(
    api: &Api,
    project: ProjectId,
    namespace: Option<&NamespaceName>,
    params: &Params,
) -> Result<Json<wire::List<wire::Function>>, Failure> {
    params.only(&Page::PARAMS)?;
    let page = Page::parse(params, BY_NAME, &ORDERS, limits::NAME_MAX)?;
    let views = api
        .port
        .functions(project, namespace.map(NamespaceName::as_str))
        .await?;
    let (count, shown) = page.apply(views);
    let items = shown
        .iter()
        .map(|view| map::function(view, api.endpoint(view)))
        .collect();
    Ok(Json(wire::List { count, items }))
}

/// Functions of every namespace, without their texts.
#[utoipa::path(
    get, path = "/projects/{project}/functions", tag = "functions",
    params(params::ProjectPath, params::PageParams),
    responses((status = 200, body = wire::List<wire::Function>), (status = "4XX", body = Problem))
)]
pub(super) async fn list_all(
    State(api): State<Arc<Api>>,
    scope: Scope,
    params: Params,
) -> Result<Json<wire::List<wire::Function>>, Failure> {
    page_of(&api, scope.project.id, None, &params).await
}

/// Functions of one namespace, without their texts.
#[utoipa::path(
    get, path = "/projects/{project}/namespaces/{namespace_name}/functions", tag = "functions",
    params(params::NamespacePath, params::PageParams),
    responses((status = 200, body = wire::List<wire::Function>), (status = "4XX", body = Problem))
)]
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    scope: Scope,
    params: Params,
) -> Result<Json<wire::List<wire::Function>>, Failure> {
    let namespace = namespaces::find(&api, scope.project.id, &scope.namespace()?).await?;
    page_of(&api, scope.project.id, Some(&namespace.name), &params).await
}

/// Answers as soon as the function is recorded; `revision.stage` tells how it goes on.
#[utoipa::path(
    post, path = "/projects/{project}/namespaces/{namespace_name}/functions", tag = "functions",
    params(params::NamespacePath), request_body = wire::CreateFunction,
    responses((status = 201, body = wire::Function), (status = "4XX", body = Problem))
)]
pub(super) async fn create(
    State(api): State<Arc<Api>>,
    scope: Scope,
    body: Body,
) -> Result<(StatusCode, Json<wire::Function>), Failure> {
    let given: wire::CreateFunction = body::json(body).await?;
    let mut new = map::NewFunction::parse(given, |requested| {
        runtimes::resolve(&api.catalog, requested)
    })?;
    let project = scope.project.id;
    let namespace = namespaces::find(&api, project, &scope.namespace()?)
        .await?
        .name;
    check_keys(&api, project, &new.keys).await?;
    let code = api.store(std::mem::take(&mut new.code)).await?;
    let dependencies = store_dependencies(&api, std::mem::take(&mut new.dependencies)).await?;
    let function = FunctionRef {
        namespace: namespace.clone(),
        name: new.name.clone(),
    };
    let id = FunctionId(api.env.fresh_uuid());
    let create = new.operation(project, namespace, id, code, dependencies);
    api.write(Operation::CreateFunction(Box::new(create)), map::words)
        .await?;
    let view = api.function(project, &function).await?;
    Ok((StatusCode::CREATED, Json(whole(&api, &view).await?)))
}

async fn store_dependencies(api: &Api, text: String) -> Result<Option<Digest>, Failure> {
    if text.is_empty() {
        Ok(None)
    } else {
        api.store(text).await.map(Some)
    }
}

/// The state machine checks it again; asking first gives the error its field.
async fn check_keys(api: &Api, project: ProjectId, names: &[KeyName]) -> Result<(), Failure> {
    if names.is_empty() {
        return Ok(());
    }
    let known = api.port.keys(project).await?;
    for (at, name) in names.iter().enumerate() {
        if known.iter().all(|key| key.name != *name) {
            let reason = format_args!("there is no key {name}");
            return Err(Failure::invalid(format!("keys[{at}]"), reason));
        }
    }
    Ok(())
}

#[utoipa::path(
    get, path = "/projects/{project}/namespaces/{namespace_name}/functions/{function_name}",
    tag = "functions", params(params::FunctionPath),
    responses((status = 200, body = wire::Function), (status = "4XX", body = Problem))
)]
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    scope: Scope,
) -> Result<Json<wire::Function>, Failure> {
    let view = api.function(scope.project.id, &scope.function()?).await?;
    whole(&api, &view).await.map(Json)
}

/// Makes a new revision if something changes that a running instance cannot take over.
#[utoipa::path(
    patch, path = "/projects/{project}/namespaces/{namespace_name}/functions/{function_name}",
    tag = "functions", params(params::FunctionPath), request_body = wire::PatchFunction,
    responses((status = 200, body = wire::Function), (status = "4XX", body = Problem))
)]
pub(super) async fn patch(
    State(api): State<Arc<Api>>,
    scope: Scope,
    body: Body,
) -> Result<Json<wire::Function>, Failure> {
    let given: wire::PatchFunction = body::json(body).await?;
    let (project, function) = (scope.project.id, scope.function()?);
    let current = api.function(project, &function).await?;
    let mut change = map::change(given, &current)?;
    check_keys(
        &api,
        project,
        change.operation.keys.as_deref().unwrap_or_default(),
    )
    .await?;
    if let Some(text) = change.code {
        change.operation.settings.source = Some(Source::Inline {
            code: api.store(text).await?,
        });
    }
    if let Some(text) = change.dependencies {
        change.operation.settings.dependencies = Some(store_dependencies(&api, text).await?);
    }
    api.write(
        Operation::UpdateFunction(Box::new(change.operation)),
        map::words,
    )
    .await?;
    let view = api.function(project, &function).await?;
    whole(&api, &view).await.map(Json)
}

/// Running calls are finished; new ones are refused at once.
#[utoipa::path(
    delete, path = "/projects/{project}/namespaces/{namespace_name}/functions/{function_name}",
    tag = "functions", params(params::FunctionPath),
    responses((status = 204), (status = "4XX", body = Problem))
)]
pub(super) async fn delete(
    State(api): State<Arc<Api>>,
    scope: Scope,
) -> Result<StatusCode, Failure> {
    let function = scope.function()?;
    let delete = Operation::DeleteFunction {
        project: scope.project.id,
        function,
        task: None,
    };
    api.write(delete, map::words).await?;
    Ok(StatusCode::NO_CONTENT)
}
