//! Gcore tasks, and writes that a client sends twice because it missed the answer.

use axum::body::Body;
use http::{Method, Request, StatusCode};
use serde_json::{Value, json};

use crate::support::{Answer, Server, gcore};

async fn task(server: &Server, answer: Value) -> Value {
    let id = answer["tasks"][0].as_str().expect("a task").to_owned();
    let task = server.get(&format!("/cloud/v1/tasks/{id}")).await.ok();
    assert_eq!(
        server.get(&format!("/v1/tasks/{id}")).await.ok(),
        task,
        "both paths"
    );
    task
}

#[tokio::test]
async fn task_follows_its_revision_to_the_end() {
    let server = gcore::server().await;
    let answer = server.post(gcore::FUNCTIONS, gcore::create()).await.ok();
    let made = task(&server, answer.clone()).await;
    assert_eq!(made["task_type"], "create_faas_function");
    assert!(["NEW", "RUNNING"].contains(&made["state"].as_str().expect("a state")));
    assert_eq!(
        (&made["finished_on"], &made["error"]),
        (&Value::Null, &Value::Null)
    );
    server.begin_build("hello");
    assert_eq!(task(&server, answer.clone()).await["state"], "RUNNING");
    server.advance(1_500);
    server.finish_build("hello");
    server.promote("hello");
    let done = task(&server, answer).await;
    let id = gcore::hello(&server).await["id"].clone();
    assert_eq!(
        done,
        json!({
            "id": made["id"],
            "task_type": "create_faas_function",
            "state": "FINISHED",
            "created_on": "2023-08-22T11:21:00Z",
            "updated_on": "2023-08-22T11:21:01.5Z",
            "finished_on": "2023-08-22T11:21:01.5Z",
            "error": null,
            "created_resources": {"faas_functions": [id]},
            "project_id": 1,
            "region_id": 1,
            "user_id": 0,
            "client_id": 0,
            "user_client_id": 0,
            "request_id": null,
            "data": {"namespace_name": "space", "function_name": "hello"},
            "detailed_state": null,
            "acknowledged_at": null,
            "acknowledged_by": null,
            "job_id": null,
            "schedule_id": null,
            "lifecycle_policy_id": null,
        })
    );
}

#[tokio::test]
async fn task_of_a_failed_build_or_deploy_ends_in_error_with_the_reason() {
    let server = gcore::server().await;
    let answer = server.post(gcore::FUNCTIONS, gcore::create()).await.ok();
    server.begin_build("hello");
    server.fail_build("hello", "numpy==1.21.0 does not exist for Python 3.11");
    let failed = task(&server, answer).await;
    assert_eq!(failed["state"], "ERROR");
    assert_eq!(
        failed["error"],
        "numpy==1.21.0 does not exist for Python 3.11"
    );
    let answer = server
        .patch(gcore::HELLO, json!({"code_text": "x"}))
        .await
        .ok();
    server.begin_build("hello");
    server.finish_build("hello");
    server.fail_deploy("hello", "no module named x");
    let failed = task(&server, answer).await;
    assert_eq!(
        (&failed["task_type"], &failed["state"], &failed["error"]),
        (
            &json!("patch_faas_function"),
            &json!("ERROR"),
            &json!("no module named x")
        )
    );
    assert_eq!(failed["created_resources"], json!({}));
}

#[tokio::test]
async fn task_types_name_verb_and_kind() {
    let server = Server::new();
    let space = format!("{}/space", gcore::NAMESPACES);
    let mut types = Vec::new();
    for (method, path, body) in [
        (Method::POST, gcore::NAMESPACES, json!({"name": "space"})),
        (Method::PATCH, &space, json!({"description": "x"})),
        (Method::POST, gcore::FUNCTIONS, gcore::create()),
        (Method::PATCH, gcore::HELLO, json!({"description": "y"})),
        (Method::DELETE, gcore::HELLO, Value::Null),
        (Method::DELETE, &space, Value::Null),
    ] {
        let answer = server.call(method, path, body).await.ok();
        types.push(
            task(&server, answer).await["task_type"]
                .as_str()
                .expect("a type")
                .to_owned(),
        );
    }
    assert_eq!(
        types,
        [
            "create_faas_namespace",
            "patch_faas_namespace",
            "create_faas_function",
            "patch_faas_function",
            "delete_faas_function",
            "delete_faas_namespace",
        ]
    );
}

#[tokio::test]
async fn tasks_are_listed_filtered_and_acknowledged() {
    let server = gcore::server().await;
    server.advance(1_000);
    let answer = server.post(gcore::FUNCTIONS, gcore::create()).await.ok();
    server.begin_build("hello");
    let id = answer["tasks"][0].as_str().expect("a task").to_owned();
    let acknowledged = server
        .post(&format!("/cloud/v1/tasks/{id}/acknowledge"), Value::Null)
        .await
        .ok();
    assert_eq!(acknowledged["acknowledged_at"], "2023-08-22T11:21:01Z");
    assert_eq!(acknowledged["acknowledged_by"], 0);
    let (function, namespace) = ("create_faas_function", "create_faas_namespace");
    for (query, types) in [
        ("", vec![function, namespace]),
        ("?order_by=asc", vec![namespace, function]),
        ("?limit=1", vec![function]),
        ("?limit=1&offset=1", vec![namespace]),
        ("?state=RUNNING", vec![function]),
        ("?state=RUNNING&state=FINISHED", vec![function, namespace]),
        ("?state=RUNNING,FINISHED", vec![function, namespace]),
        ("?state=ERROR", vec![]),
        ("?task_type=create_faas_namespace", vec![namespace]),
        ("?project_id=1&region_id=1", vec![function, namespace]),
        ("?project_id=2", vec![]),
        ("?region_id=2", vec![]),
        ("?from_timestamp=2023-08-22T11:21:01Z", vec![function]),
        ("?to_timestamp=2023-08-22T11:21:00", vec![namespace]),
        ("?is_acknowledged=true", vec![function]),
        ("?is_acknowledged=false", vec![namespace]),
    ] {
        let list = server.get(&format!("/cloud/v1/tasks{query}")).await.ok();
        let results = list["results"].as_array().expect("results");
        let got: Vec<_> = results
            .iter()
            .filter_map(|task| task["task_type"].as_str())
            .collect();
        assert_eq!(got, types, "{query}");
    }
    let active = server.get("/cloud/v1/tasks/1/1/active").await.ok();
    assert_eq!(
        (&active["count"], &active["results"][0]["id"]),
        (&json!(1), &json!(id))
    );
}

#[tokio::test]
async fn task_that_does_not_exist_is_not_found() {
    let server = Server::new();
    for id in ["00000000-0000-0000-0000-0000000000aa", "x"] {
        let answer = server.get(&format!("/cloud/v1/tasks/{id}")).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND);
        assert_eq!(answer.json()["exception_class"], "NotFoundError");
    }
}

/// As the Python SDK sends a request for the second time.
async fn again(server: &Server, method: Method, path: &str, body: Value) -> Answer {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("authorization", format!("APIKey {}", server.admin))
        .header("x-stainless-retry-count", "1")
        .body(Body::from(body.to_string()));
    server.send(request.expect("a request")).await
}

#[tokio::test]
async fn repeated_writes_answer_with_the_first_task() {
    let server = Server::new();
    for (method, path, body) in [
        (Method::POST, gcore::NAMESPACES, json!({"name": "space"})),
        (Method::POST, gcore::FUNCTIONS, gcore::create()),
        (Method::DELETE, gcore::HELLO, Value::Null),
        (
            Method::DELETE,
            "/cloud/v1/faas/namespaces/1/1/space",
            Value::Null,
        ),
    ] {
        server.advance(1_000);
        let first = server.call(method.clone(), path, body.clone()).await.ok();
        let before = server.view();
        let second = again(&server, method.clone(), path, body).await.ok();
        assert_eq!(first, second, "{method} {path}");
        assert!(server.view() == before, "{method} {path}");
    }
}

#[tokio::test]
async fn another_create_under_a_taken_name_is_refused_even_when_repeated() {
    let server = gcore::with_hello().await;
    let mut other = gcore::create();
    other["code_text"] = "something else".into();
    for (path, body) in [
        (gcore::FUNCTIONS, other),
        (
            gcore::NAMESPACES,
            json!({"name": "space", "description": "another"}),
        ),
    ] {
        let answer = again(&server, Method::POST, path, body).await;
        assert_eq!(answer.status, StatusCode::CONFLICT, "{path}");
    }
    server.advance(6 * 60 * 1_000);
    let late = again(&server, Method::POST, gcore::FUNCTIONS, gcore::create()).await;
    assert_eq!(late.status, StatusCode::CONFLICT);
}
