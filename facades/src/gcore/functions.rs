//! `/faas/namespaces/{project_id}/{region_id}/{namespace_name}/functions`.

use std::sync::Arc;

use axum::{Json, body::Body, extract::State, response::Response};
use coracle_model::{
    Digest, FunctionId, FunctionRef, KeyName, Operation, ProjectId, Source, TaskId, Timestamp,
    query::FunctionView,
    task::{TaskSubject, TaskVerb},
};

use super::{
    map,
    namespaces::{self, NEWEST_FIRST, tasks},
    render,
    replay::Repeated,
    scope::Scope,
    wire,
};
use crate::{
    api::Api,
    body,
    codes::Code,
    failure::Failure,
    query::{Listed, OrderKey, Page, Params},
    runtimes,
};

impl Listed for FunctionView {
    fn name(&self) -> &str {
        &self.function.name
    }
    fn created_at(&self) -> Timestamp {
        self.function.created_at
    }
}

fn is(function: &FunctionRef) -> impl Fn(&TaskSubject) -> bool {
    move |subject| {
        matches!(
            subject,
            TaskSubject::Function { namespace, name, .. }
                if *namespace == *function.namespace && *name == *function.name
        )
    }
}

pub(super) async fn create(
    State(api): State<Arc<Api>>,
    scope: Scope,
    repeated: Repeated,
    body: Body,
) -> Result<Json<wire::Tasks>, Failure> {
    let given: wire::CreateFunction = body::json(body).await?;
    let mut new = map::NewFunction::parse(given, |requested| {
        runtimes::resolve(&api.catalog, requested)
    })?;
    let project = scope.project.id;
    let namespace = namespaces::find(&api, &scope).await?;
    let reference = new.reference(namespace.name.clone());
    check_keys(&api, project, &new.keys).await?;

    // Text is stored before the write that refers to it, so that the write never dangles. What a
    // refused write leaves behind is collected as any artifact that nothing refers to.
    let code = api.store(std::mem::take(&mut new.code_text)).await?;
    let dependencies = store_dependencies(&api, std::mem::take(&mut new.dependencies)).await?;
    let task = TaskId(api.env.fresh_uuid());
    let id = FunctionId(api.env.fresh_uuid());
    let create = new.operation(project, namespace.name, id, task, code, dependencies);
    match api
        .write(
            Operation::CreateFunction(Box::new(create.clone())),
            map::words,
        )
        .await
    {
        Ok(()) => Ok(tasks(task)),
        Err(failure) if failure.code == Code::AlreadyExists => {
            let first = repeated
                .task(&api, project, TaskVerb::Create, is(&reference))
                .await?;
            let Some(first) = first else {
                return Err(failure);
            };
            let view = api.port.function(project, &reference).await?;
            let same = view.is_some_and(|view| map::made_by(&create, &view));
            if same { Ok(tasks(first)) } else { Err(failure) }
        }
        Err(failure) => Err(failure),
    }
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
    match names
        .iter()
        .position(|name| known.iter().all(|key| key.name != *name))
    {
        None => Ok(()),
        Some(at) => Err(Failure::invalid(
            format!("keys[{at}]"),
            format_args!("there is no key {}", names[at]),
        )),
    }
}

pub(super) async fn list(
    State(api): State<Arc<Api>>,
    scope: Scope,
    params: Params,
) -> Result<Response, Failure> {
    let page = Page::parse(
        &params,
        NEWEST_FIRST,
        &[OrderKey::Name, OrderKey::CreatedAt],
        map::NAME_MAX,
    )?;
    let namespace = namespaces::find(&api, &scope).await?;
    let views = api
        .port
        .functions(scope.project.id, Some(&namespace.name))
        .await?;
    let (count, shown) = page.apply(views);
    Ok(render::functions(&api, count, shown))
}

pub(super) async fn get(
    State(api): State<Arc<Api>>,
    scope: Scope,
) -> Result<Json<wire::Function>, Failure> {
    let view = api
        .function(scope.project.id, &scope.path.function()?)
        .await?;
    render::function(&api, &view).await.map(Json)
}

pub(super) async fn patch(
    State(api): State<Arc<Api>>,
    scope: Scope,
    body: Body,
) -> Result<Json<wire::Tasks>, Failure> {
    let given: wire::PatchFunction = body::json(body).await?;
    let project = scope.project.id;
    let current = api.function(project, &scope.path.function()?).await?;
    let task = TaskId(api.env.fresh_uuid());
    let mut change = map::change(given, &current, task)?;
    check_keys(
        &api,
        project,
        change.operation.keys.as_deref().unwrap_or_default(),
    )
    .await?;
    if let Some(text) = change.code_text {
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
    Ok(tasks(task))
}

pub(super) async fn delete(
    State(api): State<Arc<Api>>,
    scope: Scope,
    repeated: Repeated,
) -> Result<Json<wire::Tasks>, Failure> {
    let function = scope.path.function()?;
    let project = scope.project.id;
    let task = TaskId(api.env.fresh_uuid());
    let delete = Operation::DeleteFunction {
        project,
        function: function.clone(),
        task: Some(task),
    };
    match api.write(delete, map::words).await {
        Ok(()) => Ok(tasks(task)),
        Err(failure) if failure.code == Code::NotFound => {
            let first = repeated
                .task(&api, project, TaskVerb::Delete, is(&function))
                .await?;
            first.map(tasks).ok_or(failure)
        }
        Err(failure) => Err(failure),
    }
}
