//! What a request's path names.

use std::{str::FromStr, sync::Arc};

use axum::extract::{FromRequestParts, RawPathParams};
use coracle_model::{FunctionRef, NamespaceName};
use http::request::Parts;

use crate::{api::Api, failure::Failure};

#[derive(Debug)]
pub(crate) struct PathParts(Vec<(String, String)>);

impl PathParts {
    pub(crate) async fn of(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Failure> {
        let raw = RawPathParams::from_request_parts(parts, api).await;
        let raw = raw.map_err(|_| Failure::invalid("path", "is not valid UTF-8"))?;
        Ok(Self(
            raw.iter()
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
        ))
    }

    /// Empty when the route has no such part.
    pub(crate) fn get(&self, param: &str) -> &str {
        let found = self.0.iter().find(|(key, _)| key == param);
        found.map_or("", |(_, value)| value.as_str())
    }

    /// A name that no thing can have is the name of a thing that does not exist.
    pub(crate) fn named<T: FromStr>(&self, param: &str, kind: &str) -> Result<T, Failure> {
        let text = self.get(param);
        text.parse().map_err(|_| {
            let shown: String = text.chars().take(80).collect();
            Failure::not_found(format_args!("{kind} {shown:?}"))
        })
    }

    pub(crate) fn namespace(&self) -> Result<NamespaceName, Failure> {
        self.named("namespace_name", "namespace")
    }

    pub(crate) fn function(&self) -> Result<FunctionRef, Failure> {
        let name = self.named("function_name", "function")?;
        Ok(FunctionRef {
            namespace: self.namespace()?,
            name,
        })
    }
}
