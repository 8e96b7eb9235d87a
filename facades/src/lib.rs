//! Management APIs: the native one and the clouds', each a translation onto [`port::ControlPlane`].
//!
//! Nothing here keeps state: what a handler knows it has read through the port during the request.
//! Function keys are not checked here (that is the gateway's work, on invocations), and TLS,
//! connection limits and header limits belong to the listener that serves the router.
#![forbid(unsafe_code)]

mod api;
mod auth;
mod body;
pub mod codes;
mod envelope;
mod failure;
pub mod gcore;
pub mod native;
mod path;
pub mod port;
mod query;
mod runtimes;

use std::sync::Arc;

use axum::Router;
use coracle_runtimes::Catalog;

use crate::{
    api::Api,
    port::{ControlPlane, Environment, ServerInfo},
};

/// All management APIs over one port: the native one under `/api/v1`, Gcore's under `/cloud/v1` and
/// `/v1/tasks`. Every answer carries `X-Request-Id`; every error has the shape of the API whose path
/// was called, the native one's where no API has the path.
pub fn router(port: Arc<dyn ControlPlane>, info: ServerInfo, env: Arc<dyn Environment>) -> Router {
    let info = ServerInfo {
        public_url: info.public_url.trim_end_matches('/').to_owned(),
        ..info
    };
    let api = Arc::new(Api {
        port,
        info,
        env,
        catalog: Catalog::builtin(),
    });
    let envelope = axum::middleware::from_fn_with_state(Arc::clone(&api), envelope::layer);
    Router::new()
        .merge(native::router())
        .merge(gcore::router())
        .fallback(envelope::no_route)
        .method_not_allowed_fallback(envelope::no_method)
        .layer(envelope)
        .with_state(api)
}
