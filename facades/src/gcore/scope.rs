//! The caller and the project that the path names, established before a handler runs.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use coracle_model::{Project, ProjectId};
use http::request::Parts;

use crate::{
    api::Api,
    auth::{Principal, Right, Scheme, authenticate},
    failure::Failure,
    path::PathParts,
};

/// For routes with a project and a region in their path.
#[derive(Debug)]
pub(crate) struct Scope {
    pub(crate) project: Project,
    pub(crate) path: PathParts,
}

/// For routes without; the handler asks [`Caller::may_see`] about each thing that it shows.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) path: PathParts,
    principal: Principal,
}

impl Caller {
    pub(crate) fn may_see(&self, project: ProjectId) -> bool {
        self.principal.may(Right::Project(project))
    }
}

impl FromRequestParts<Arc<Api>> for Scope {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Failure> {
        let principal = authenticate(api, &parts.headers, Scheme::ApiKey).await?;
        let path = PathParts::of(parts, api).await?;
        let id = ProjectId(integer("project_id", path.get("project_id"))?);
        let region = integer("region_id", path.get("region_id"))?;
        let project = principal.enter(api.project(id).await?, id)?;
        if region != api.info.region {
            return Err(Failure::not_found(format_args!("region {region}")));
        }
        Ok(Self { project, path })
    }
}

impl FromRequestParts<Arc<Api>> for Caller {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Failure> {
        let principal = authenticate(api, &parts.headers, Scheme::ApiKey).await?;
        let path = PathParts::of(parts, api).await?;
        Ok(Self { principal, path })
    }
}

/// Decimal digits only; `parse` alone would also take a sign.
pub(super) fn integer(field: &str, text: &str) -> Result<u32, Failure> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let parsed = text.parse().ok().filter(|_| digits);
    parsed.ok_or_else(|| {
        let shown: String = text.chars().take(40).collect();
        Failure::invalid(field, format_args!("must be an integer, is {shown:?}"))
    })
}
