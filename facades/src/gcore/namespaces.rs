//! `/faas/namespaces/{project_id}/{region_id}`.

use std::{collections::HashMap, sync::Arc};

use axum::{Json, body::Body, extract::State, response::Response};
use coracle_model::{
    Namespace, NamespaceId, NamespaceName, Operation, TaskId, Timestamp,
    operation::{CreateNamespace, UpdateNamespace},
    query::FunctionView,
    task::{TaskSubject, TaskVerb},
};

use super::{map, render, replay::Repeated, scope::Scope, wire};
use crate::{
    api::Api,
    body,
    codes::Code,
    failure::Failure,
    query::{Listed, Order, OrderKey, Page, Params},
};

pub(super) const NEWEST_FIRST: Order = Order {
    by: OrderKey::CreatedAt,
    descending: true,
};

impl Listed for Namespace {
    fn name(&self) -> &str {
        &self.name
    }
    fn created_at(&self) -> Timestamp {
        self.created_at
    }
}

pub(super) fn tasks(id: TaskId) -> Json<wire::Tasks> {
    Json(wire::Tasks {
        tasks: vec![id.to_string()],
    })
}

fn is(name: &str) -> impl Fn(&TaskSubject) -> bool {
    move |subject| matches!(subject, TaskSubject::Namespace { name: own } if own == name)
}

pub(super) async fn find(api: &Api, scope: &Scope) -> Result<Namespace, Failure> {
    let name = scope.path.namespace()?;
    let all = api.port.namespaces(scope.project.id).await?;
    all.into_iter()
        .find(|namespace| namespace.name == name)
        .ok_or_else(|| missing(&name))
}

fn missing(name: &NamespaceName) -> Failure {
    Failure::not_found(format_args!("namespace {name}"))
}

pub(super) async fn create(
    State(api): State<Arc<Api>>,
    scope: Scope,
    repeated: Repeated,
    body: Body,
) -> Result<Json<wire::Tasks>, Failure> {
    let given: wire::CreateNamespace = body::json(body).await?;
    let name: NamespaceName = map::name("name", &given.name)?;
    let description = map::description(given.description.as_deref())?.unwrap_or_default();
    let env = map::envs(given.envs)?.unwrap_or_default();
    let task = TaskId(api.env.fresh_uuid());
    let project = scope.project.id;
    let create = CreateNamespace {
        id: NamespaceId(api.env.fresh_uuid()),
        project,
        name,
        description,
        env,
        task: Some(task),
    };
    let written = api
        .write(Operation::CreateNamespace(create.clone()), map::words)
        .await;
    match written {
        Ok(()) => Ok(tasks(task)),
        Err(failure) if failure.code == Code::AlreadyExists => {
            let same = |namespace: &Namespace| {
                namespace.name == create.name
                    && namespace.description == create.description
                    && namespace.env == create.env
            };
            let first = repeated
                .task(&api, project, TaskVerb::Create, is(&create.name))
                .await?;
            let unchanged = api.port.namespaces(project).await?.iter().any(same);
            first.filter(|_| unchanged).map(tasks).ok_or(failure)
        }
        Err(failure) => Err(failure),
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
    let (count, shown) = page.apply(api.port.namespaces(scope.project.id).await?);
    let mut functions: HashMap<NamespaceId, Vec<FunctionView>> = HashMap::new();
    for view in api.port.functions(scope.project.id, None).await? {
        functions
            .entry(view.function.namespace)
            .or_default()
            .push(view);
    }
    let with_functions = shown
        .into_iter()
        .map(|namespace| {
            let own = functions.remove(&namespace.id).unwrap_or_default();
            (namespace, own)
        })
        .collect();
    render::namespaces(&api, count, with_functions)
}

pub(super) async fn get(State(api): State<Arc<Api>>, scope: Scope) -> Result<Response, Failure> {
    let namespace = find(&api, &scope).await?;
    let functions = api
        .port
        .functions(scope.project.id, Some(&namespace.name))
        .await?;
    render::namespace(&api, (namespace, functions))
}

pub(super) async fn patch(
    State(api): State<Arc<Api>>,
    scope: Scope,
    body: Body,
) -> Result<Json<wire::Tasks>, Failure> {
    let given: wire::PatchNamespace = body::json(body).await?;
    let namespace = find(&api, &scope).await?;
    map::immutable("name", given.name.as_deref(), &namespace.name)?;
    let task = TaskId(api.env.fresh_uuid());
    let update = UpdateNamespace {
        project: scope.project.id,
        name: namespace.name,
        description: map::description(given.description.as_deref())?,
        env: map::envs(given.envs)?,
        task: Some(task),
    };
    api.write(Operation::UpdateNamespace(update), map::words)
        .await?;
    Ok(tasks(task))
}

pub(super) async fn delete(
    State(api): State<Arc<Api>>,
    scope: Scope,
    repeated: Repeated,
) -> Result<Json<wire::Tasks>, Failure> {
    let name = scope.path.namespace()?;
    let project = scope.project.id;
    let task = TaskId(api.env.fresh_uuid());
    let delete = Operation::DeleteNamespace {
        project,
        name: name.clone(),
        task: Some(task),
    };
    match api.write(delete, map::words).await {
        Ok(()) => Ok(tasks(task)),
        Err(failure) if failure.code == Code::NotFound => {
            let first = repeated
                .task(&api, project, TaskVerb::Delete, is(&name))
                .await?;
            first.map(tasks).ok_or(failure)
        }
        Err(failure) => Err(failure),
    }
}
