//! The caller and the project that the path names, established before a handler runs.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use coracle_model::{FunctionRef, NamespaceName, Project, ProjectName};
use http::request::Parts;

use crate::{
    api::Api,
    auth::{Principal, Right, Scheme, authenticate},
    failure::Failure,
    path::PathParts,
};

/// Any live token.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) principal: Principal,
}

/// An administrator's token.
#[derive(Debug)]
pub(crate) struct Admin {
    pub(crate) path: PathParts,
}

/// A token that may enter the project of the path.
#[derive(Debug)]
pub(crate) struct Scope {
    pub(crate) project: Project,
    pub(crate) path: PathParts,
}

impl Scope {
    pub(crate) fn namespace(&self) -> Result<NamespaceName, Failure> {
        self.path.namespace()
    }

    pub(crate) fn function(&self) -> Result<FunctionRef, Failure> {
        self.path.function()
    }
}

impl FromRequestParts<Arc<Api>> for Caller {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Failure> {
        let principal = authenticate(api, &parts.headers, Scheme::Bearer).await?;
        Ok(Self { principal })
    }
}

impl FromRequestParts<Arc<Api>> for Admin {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Failure> {
        let principal = authenticate(api, &parts.headers, Scheme::Bearer).await?;
        principal.require(Right::Admin)?;
        Ok(Self {
            path: PathParts::of(parts, api).await?,
        })
    }
}

impl FromRequestParts<Arc<Api>> for Scope {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Failure> {
        let principal = authenticate(api, &parts.headers, Scheme::Bearer).await?;
        let path = PathParts::of(parts, api).await?;
        let text = path.get("project").to_owned();
        let found = match text.parse::<ProjectName>() {
            Ok(name) => {
                let mut all = api.port.projects().await?.into_iter();
                all.find(|project| project.name == name)
            }
            Err(_) => None,
        };
        let shown: String = text.chars().take(80).collect();
        let project = principal.enter(found, format_args!("{shown:?}"))?;
        Ok(Self { project, path })
    }
}
