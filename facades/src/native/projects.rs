//! Projects and tokens.

use std::sync::Arc;

use axum::{Json, body::Body, extract::State};
use coracle_model::{
    Operation, Project, ProjectName, SecretHash, Timestamp, Token, TokenId, TokenRole, limits,
    operation::CreateToken,
};
use http::StatusCode;

use super::{
    error::Problem,
    map, params,
    scope::{Admin, Caller, Scope},
    wire,
};
use crate::{
    api::Api,
    auth::Right,
    body,
    failure::Failure,
    query::{Listed, Order, OrderKey, Page, Params},
};

pub(super) const BY_NAME: Order = Order {
    by: OrderKey::Name,
    descending: false,
};
pub(super) const ORDERS: [OrderKey; 2] = [OrderKey::Name, OrderKey::CreatedAt];

impl Listed for Project {
    fn name(&self) -> &str {
        &self.name
    }
    fn created_at(&self) -> Timestamp {
        self.created_at
    }
}

fn view(project: &Project) -> wire::Project {
    wire::Project {
        id: project.id.0,
        name: project.name.to_string(),
        created_at: project.created_at.rfc3339(),
    }
}

/// Those that the token may enter.
#[utoipa::path(
    get, path = "/projects", tag = "projects", params(params::PageParams),
    responses((status = 200, body = wire::List<wire::Project>), (status = "4XX", body = Problem))
)]
pub(super) async fn list_projects(
    State(api): State<Arc<Api>>,
    caller: Caller,
    params: Params,
) -> Result<Json<wire::List<wire::Project>>, Failure> {
    params.only(&Page::PARAMS)?;
    let page = Page::parse(&params, BY_NAME, &ORDERS, limits::NAME_MAX)?;
    let mut projects = api.port.projects().await?;
    projects.retain(|project| caller.principal.may(Right::Project(project.id)));
    let (count, shown) = page.apply(projects);
    Ok(Json(wire::List {
        count,
        items: shown.iter().map(view).collect(),
    }))
}

/// Creates a project. Administrators only.
#[utoipa::path(
    post, path = "/projects", tag = "projects", request_body = wire::CreateProject,
    responses((status = 201, body = wire::Project), (status = "4XX", body = Problem))
)]
pub(super) async fn create_project(
    State(api): State<Arc<Api>>,
    _: Admin,
    body: Body,
) -> Result<(StatusCode, Json<wire::Project>), Failure> {
    let given: wire::CreateProject = body::json(body).await?;
    let name: ProjectName = map::name("name", &given.name)?;
    api.write(Operation::CreateProject { name: name.clone() }, map::words)
        .await?;
    let projects = api.port.projects().await?;
    let made = projects.iter().find(|project| project.name == name);
    // Gone again already: then the answer to a read of it is the truth.
    let made = made.ok_or_else(|| Failure::not_found(format_args!("project {name}")))?;
    Ok((StatusCode::CREATED, Json(view(made))))
}

/// Deletes a project that holds nothing. Administrators only.
#[utoipa::path(
    delete, path = "/projects/{project}", tag = "projects", params(params::ProjectPath),
    responses((status = 204), (status = "4XX", body = Problem))
)]
pub(super) async fn delete_project(
    State(api): State<Arc<Api>>,
    _: Admin,
    scope: Scope,
) -> Result<StatusCode, Failure> {
    api.write(
        Operation::DeleteProject {
            project: scope.project.id,
        },
        map::words,
    )
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

fn token_view(token: &Token, projects: &[Project]) -> wire::Token {
    let (role, project) = match token.role {
        TokenRole::Admin => (wire::Role::Admin, None),
        TokenRole::Project(id) => {
            let found = projects.iter().find(|project| project.id == id);
            (
                wire::Role::Project,
                found.map(|project| project.name.to_string()),
            )
        }
    };
    wire::Token {
        id: token.id.to_string(),
        description: token.description.clone(),
        role,
        project,
        expires_at: token.expires_at.map(Timestamp::rfc3339),
        created_at: token.created_at.rfc3339(),
        token: None,
    }
}

/// Management tokens, newest first. Administrators only.
#[utoipa::path(
    get, path = "/tokens", tag = "tokens",
    responses((status = 200, body = wire::List<wire::Token>), (status = "4XX", body = Problem))
)]
pub(super) async fn list_tokens(
    State(api): State<Arc<Api>>,
    _: Admin,
) -> Result<Json<wire::List<wire::Token>>, Failure> {
    let projects = api.port.projects().await?;
    let mut tokens = api.port.tokens().await?;
    tokens.sort_by_key(|token| std::cmp::Reverse((token.created_at, token.id)));
    let items: Vec<_> = tokens
        .iter()
        .map(|token| token_view(token, &projects))
        .collect();
    Ok(Json(wire::List {
        count: items.len(),
        items,
    }))
}

/// Creates a token; its secret is in this answer only. Administrators only.
#[utoipa::path(
    post, path = "/tokens", tag = "tokens", request_body = wire::CreateToken,
    responses((status = 201, body = wire::Token), (status = "4XX", body = Problem))
)]
pub(super) async fn create_token(
    State(api): State<Arc<Api>>,
    _: Admin,
    body: Body,
) -> Result<(StatusCode, Json<wire::Token>), Failure> {
    let given: wire::CreateToken = body::json(body).await?;
    let projects = api.port.projects().await?;
    let role = role(&given, &projects)?;
    let secret = api.env.fresh_secret();
    let create = CreateToken {
        id: TokenId(api.env.fresh_uuid()),
        description: map::description(given.description)?.unwrap_or_default(),
        hash: SecretHash::of(&secret),
        role,
        expires_at: map::time("expires_at", given.expires_at.as_deref())?,
    };
    api.write(Operation::CreateToken(create.clone()), map::words)
        .await?;
    let token = Token {
        id: create.id,
        description: create.description,
        hash: create.hash,
        role,
        expires_at: create.expires_at,
        created_at: api.env.now(),
    };
    let view = wire::Token {
        token: Some(format!("{}${secret}", token.id)),
        ..token_view(&token, &projects)
    };
    Ok((StatusCode::CREATED, Json(view)))
}

fn role(given: &wire::CreateToken, projects: &[Project]) -> Result<TokenRole, Failure> {
    match (given.role, given.project.as_deref()) {
        (wire::Role::Admin, None) => Ok(TokenRole::Admin),
        (wire::Role::Admin, Some(_)) => Err(Failure::invalid(
            "project",
            "must be absent for the role admin",
        )),
        (wire::Role::Project, None) => Err(Failure::invalid(
            "project",
            "is required for the role project",
        )),
        (wire::Role::Project, Some(name)) => {
            let found = projects.iter().find(|project| *project.name == *name);
            let missing = || Failure::invalid("project", "there is no such project");
            Ok(TokenRole::Project(found.ok_or_else(missing)?.id))
        }
    }
}

/// Ends a token at once. Administrators only.
#[utoipa::path(
    delete, path = "/tokens/{token_id}", tag = "tokens", params(params::TokenPath),
    responses((status = 204), (status = "4XX", body = Problem))
)]
pub(super) async fn delete_token(
    State(api): State<Arc<Api>>,
    admin: Admin,
) -> Result<StatusCode, Failure> {
    let id = admin.path.named("token_id", "token")?;
    api.write(Operation::DeleteToken { id }, map::words).await?;
    Ok(StatusCode::NO_CONTENT)
}
