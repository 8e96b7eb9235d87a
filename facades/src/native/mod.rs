//! Coracle's own JSON API under `/api/v1`. `docs/api/native.md` introduces it; the OpenAPI document
//! is generated from these handlers and served at `/api/v1/openapi.json`.

mod cluster;
pub(crate) mod error;
mod functions;
mod invoke;
mod keys;
mod map;
mod namespaces;
mod nodes;
mod observe;
mod params;
mod projects;
mod scope;
mod system;
mod wire;

use std::sync::Arc;

use axum::{Json, Router, response::IntoResponse, routing};
use utoipa::openapi::{
    InfoBuilder, OpenApi, OpenApiBuilder,
    security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::api::Api;

const MOUNT: &str = "/api/v1";

/// The routes, and the document about them, which is made from the same declarations.
fn parts() -> (Router<Arc<Api>>, OpenApi) {
    let info = InfoBuilder::new()
        .title("Coracle")
        .version("1")
        .description(Some(
            "Management of functions. Errors are problem details (RFC 9457).",
        ));
    let empty = OpenApiBuilder::new().info(info.build()).build();
    let routes = OpenApiRouter::new()
        .routes(routes!(system::version))
        .routes(routes!(system::runtimes))
        .routes(routes!(nodes::list))
        .routes(routes!(nodes::get))
        .routes(routes!(nodes::cordon))
        .routes(routes!(nodes::uncordon))
        .routes(routes!(nodes::drain))
        .routes(routes!(nodes::remove))
        .routes(routes!(cluster::get))
        .routes(routes!(cluster::transfer))
        .routes(routes!(cluster::remove))
        .routes(routes!(cluster::rotate_key))
        .routes(routes!(cluster::list_tokens, cluster::create_token))
        .routes(routes!(cluster::revoke_token))
        .routes(routes!(projects::list_projects, projects::create_project))
        .routes(routes!(projects::delete_project))
        .routes(routes!(projects::list_tokens, projects::create_token))
        .routes(routes!(projects::delete_token))
        .routes(routes!(namespaces::list, namespaces::create))
        .routes(routes!(
            namespaces::get,
            namespaces::patch,
            namespaces::delete
        ))
        .routes(routes!(functions::list_all))
        .routes(routes!(functions::list, functions::create))
        .routes(routes!(functions::get, functions::patch, functions::delete))
        .routes(routes!(observe::describe))
        .routes(routes!(observe::revisions))
        .routes(routes!(observe::instances))
        .routes(routes!(observe::build_log))
        .routes(routes!(observe::logs))
        .routes(routes!(invoke::root))
        .routes(routes!(invoke::slash))
        .routes(routes!(invoke::below))
        .routes(routes!(keys::list, keys::create))
        .routes(routes!(keys::get, keys::patch, keys::delete));
    let (router, mut document) = OpenApiRouter::with_openapi(empty)
        .nest(MOUNT, routes)
        .split_for_parts();
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .bearer_format("<token id>$<secret>")
        .build();
    document
        .components
        .get_or_insert_default()
        .add_security_scheme("token", SecurityScheme::Http(bearer));
    document.security = Some(vec![SecurityRequirement::new("token", [] as [&str; 0])]);
    (router, document)
}

/// The OpenAPI document of this API.
pub fn document() -> OpenApi {
    parts().1
}

pub(crate) fn router() -> Router<Arc<Api>> {
    let (router, document) = parts();
    let document = Arc::new(document);
    let serve = move || {
        let document = Arc::clone(&document);
        async move { Json(document.as_ref()).into_response() }
    };
    // The one route that asks no token: it says nothing about this server that its source does not.
    router.route(&format!("{MOUNT}/openapi.json"), routing::get(serve))
}
