//! Every route, once: the router is built from this list, and so is the test that tries each of
//! them without a token and with other people's.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    routing::{MethodRouter, delete, get, patch, post},
};
use http::Method;
use serde_json::{Value, json};

use super::{flavor, functions, keys, logs, namespaces, scope::Scope, tasks, wire};
use crate::{api::Api, query::Params, runtimes};

type Route = (Method, String, MethodRouter<Arc<Api>>);

fn table() -> Vec<Route> {
    let place = "{project_id}/{region_id}";
    let spaces = format!("/cloud/v1/faas/namespaces/{place}");
    let space = format!("{spaces}/{{namespace_name}}");
    let fns = format!("{space}/functions");
    let function = format!("{fns}/{{function_name}}");
    let all_keys = format!("/cloud/v1/faas/keys/{place}");
    let key = format!("{all_keys}/{{key_name}}");
    let mut table = vec![
        (Method::POST, spaces.clone(), post(namespaces::create)),
        (Method::GET, spaces, get(namespaces::list)),
        (Method::GET, space.clone(), get(namespaces::get)),
        (Method::PATCH, space.clone(), patch(namespaces::patch)),
        (Method::DELETE, space, delete(namespaces::delete)),
        (Method::POST, fns.clone(), post(functions::create)),
        (Method::GET, fns, get(functions::list)),
        (Method::GET, function.clone(), get(functions::get)),
        (Method::PATCH, function.clone(), patch(functions::patch)),
        (Method::DELETE, function.clone(), delete(functions::delete)),
        (Method::GET, format!("{function}/logs"), get(logs::get)),
        (Method::POST, all_keys.clone(), post(keys::create)),
        (Method::GET, all_keys, get(keys::list)),
        (Method::GET, key.clone(), get(keys::get)),
        (Method::PATCH, key.clone(), patch(keys::patch)),
        (Method::DELETE, key, delete(keys::delete)),
        (
            Method::GET,
            format!("/cloud/v1/faas/flavors/{place}"),
            get(list_flavors),
        ),
        (
            Method::GET,
            format!("/cloud/v1/faas/runtimes/{place}"),
            get(list_runtimes),
        ),
        (
            Method::POST,
            format!("/cloud/v1/pricing/{place}/faas/functions"),
            post(price),
        ),
        (
            Method::GET,
            format!("/cloud/v1/tasks/{place}/active"),
            get(tasks::active),
        ),
    ];
    // The seed's prose names the task route without the prefix that its URLs have.
    for prefix in ["/cloud", ""] {
        let all = format!("{prefix}/v1/tasks");
        let task = format!("{all}/{{task_id}}");
        let acknowledge = format!("{task}/acknowledge");
        table.push((Method::GET, all, get(tasks::list)));
        table.push((Method::GET, task, get(tasks::get)));
        table.push((Method::POST, acknowledge, post(tasks::acknowledge)));
    }
    table
}

/// Method and path of every route, for tests that go through all of them.
pub fn route_list() -> Vec<(Method, String)> {
    table()
        .into_iter()
        .map(|(method, path, _)| (method, path))
        .collect()
}

pub(crate) fn router() -> Router<Arc<Api>> {
    let add = |router: Router<Arc<Api>>, (_, path, handler): Route| router.route(&path, handler);
    table().into_iter().fold(Router::new(), add)
}

async fn list_flavors(_: Scope, params: Params) -> Json<wire::List<wire::Flavor>> {
    let results = flavor::list(params.get("name"));
    Json(wire::List {
        count: results.len(),
        results,
    })
}

async fn list_runtimes(State(api): State<Arc<Api>>, _: Scope) -> Json<Value> {
    Json(json!({ "runtimes": runtimes::by_language(&api.catalog) }))
}

/// There are no prices here; `hide` is Gcore's own word for a project that is not shown any.
async fn price(_: Scope) -> Json<Value> {
    Json(json!({
        "price_status": "hide",
        "price_per_hour": null,
        "price_per_month": null,
        "currency_code": null,
    }))
}
