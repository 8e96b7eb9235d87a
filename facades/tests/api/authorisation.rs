//! Every route of every API, tried without a token, with wrong ones, and with another tenant's. The
//! routes come from the lists that the routers are built from, so a new one is tried too.

use coracle_model::{ProjectId, Timestamp, TokenRole};
use http::{Method, StatusCode};

use crate::support::{Answer, START, Server, gcore};

/// Says nothing about a server.
const PUBLIC: [&str; 1] = ["/api/v1/openapi.json"];
/// Routes whose answer depends on the token instead of being refused.
const FILTERED: [&str; 5] = [
    "/api/v1/version",
    "/api/v1/runtimes",
    "/api/v1/projects",
    "/cloud/v1/tasks",
    "/v1/tasks",
];

/// Method and path of every route, with the names of things that exist.
fn routes(task: &str) -> Vec<(Method, String)> {
    let mut routes = coracle_facades::gcore::route_list();
    let document = serde_json::to_value(coracle_facades::native::document()).expect("JSON");
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for method in methods.as_object().expect("methods").keys() {
            routes.push((
                method.to_uppercase().parse().expect("a method"),
                path.clone(),
            ));
        }
    }
    let fill = |path: String| {
        path.replace("{project_id}", "1")
            .replace("{region_id}", "1")
            .replace("{project}", "default")
            .replace("{namespace_name}", "space")
            .replace("{function_name}", "hello")
            .replace("{key_name}", "key")
            .replace("{token_id}", "00000000-0000-0000-0000-000000000001")
            .replace("{node_name}", "here")
            .replace("{member_id}", "2")
            .replace("{task_id}", task)
            .replace("{*path}", "a/b")
    };
    routes
        .into_iter()
        .map(|(method, path)| (method, fill(path)))
        .collect()
}

#[track_caller]
fn check_refused(answer: &Answer, status: StatusCode, what: &str) {
    assert_eq!(answer.status, status, "{what}: {}", answer.text);
    for secret in ["hello", "space", "default"] {
        assert!(!answer.text.contains(secret), "{what}: {}", answer.text);
    }
}

async fn server() -> (Server, String) {
    let server = gcore::with_hello().await;
    let tasks = server.get("/cloud/v1/tasks").await.ok();
    let task = tasks["results"][0]["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    (server, task)
}

#[tokio::test]
async fn every_route_needs_a_good_token() {
    let (server, task) = server().await;
    let routes = routes(&task);
    assert!(routes.len() > 50, "{}", routes.len());
    let id = server.admin.split('$').next().expect("an id").to_owned();
    let expired = server.token(TokenRole::Admin, Some(Timestamp(START)));
    let before = server.picture();
    let wrong = [
        None,
        Some(format!("{id}$wrong")),
        Some(format!("{id}$")),
        Some(id.clone()),
        Some("1234$abcdef".to_owned()),
        Some("00000000-0000-0000-0000-00000000ffff$5ec2e7".to_owned()),
        Some(expired),
    ];
    for (method, path) in &routes {
        for token in &wrong {
            let answer = server
                .with_token(token.as_deref(), method.clone(), path, "{}")
                .await;
            check_refused(
                &answer,
                StatusCode::UNAUTHORIZED,
                &format!("{method} {path} {token:?}"),
            );
            assert_eq!(answer.header("x-coracle-error"), "unauthenticated");
            assert!(!answer.header("www-authenticate").is_empty());
        }
    }
    assert_eq!(server.picture(), before);
}

#[tokio::test]
async fn another_tenants_token_gets_nothing_on_any_route() {
    let (server, task) = server().await;
    let other = server.other_project();
    let before = server.picture();
    for (method, path) in routes(&task) {
        let answer = server
            .with_token(Some(&other), method.clone(), &path, "{}")
            .await;
        let what = format!("{method} {path}");
        if FILTERED.contains(&path.as_str()) && method == Method::GET {
            assert_eq!(answer.status, StatusCode::OK, "{what}");
            assert!(
                !answer.text.contains("hello") && !answer.text.contains("\"default\""),
                "{what}"
            );
        } else if path.contains("/tasks/") && path.contains(&task) {
            // Tasks are not in a project's path: another's is simply not there.
            assert_eq!(
                answer.status,
                StatusCode::NOT_FOUND,
                "{what}: {}",
                answer.text
            );
        } else {
            check_refused(&answer, StatusCode::FORBIDDEN, &what);
        }
    }
    assert_eq!(server.picture(), before);
}

#[tokio::test]
async fn only_the_openapi_document_is_public() {
    let server = Server::new();
    for path in PUBLIC {
        let answer = server.with_token(None, Method::GET, path, "").await;
        assert_eq!(answer.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn a_projects_token_works_inside_it_and_cannot_tell_other_projects_from_none() {
    let server = gcore::server().await;
    let token = server.token(TokenRole::Project(ProjectId::DEFAULT), None);
    let get = |path: &'static str| server.with_token(Some(&token), Method::GET, path, "");
    assert_eq!(
        get("/cloud/v1/faas/namespaces/1/1").await.status,
        StatusCode::OK
    );
    assert_eq!(
        get("/api/v1/projects/default/namespaces").await.status,
        StatusCode::OK
    );
    let other = server.other_project();
    assert_ne!(other, token);
    let foreign = get("/cloud/v1/faas/namespaces/2/1").await;
    let missing = get("/cloud/v1/faas/namespaces/3/1").await;
    assert_eq!(foreign.status, StatusCode::FORBIDDEN);
    assert_eq!(foreign.json()["message"], missing.json()["message"]);
    assert_eq!(foreign.status, missing.status);
    let foreign = get("/api/v1/projects/other/keys").await;
    let missing = get("/api/v1/projects/nothing/keys").await;
    assert_eq!(foreign.status, StatusCode::FORBIDDEN);
    assert_eq!(foreign.json()["detail"], missing.json()["detail"]);
}

#[tokio::test]
async fn the_word_before_the_token_has_no_case_and_belongs_to_its_api() {
    let server = gcore::server().await;
    for (path, word, status) in [
        (gcore::NAMESPACES, "apikey", StatusCode::OK),
        (gcore::NAMESPACES, "APIKey", StatusCode::OK),
        (gcore::NAMESPACES, "APIKEY", StatusCode::OK),
        (gcore::NAMESPACES, "Bearer", StatusCode::UNAUTHORIZED),
        ("/api/v1/version", "bearer", StatusCode::OK),
        ("/api/v1/version", "apikey", StatusCode::UNAUTHORIZED),
    ] {
        let request = http::Request::get(path)
            .header("authorization", format!("{word} {}", server.admin))
            .body(axum::body::Body::empty())
            .expect("a request");
        assert_eq!(server.send(request).await.status, status, "{path} {word}");
    }
}
