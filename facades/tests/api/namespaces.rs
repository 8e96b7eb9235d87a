//! Gcore namespaces.

use http::StatusCode;
use serde_json::json;

use crate::support::{Server, gcore};

#[tokio::test]
async fn namespace_is_created_read_and_listed() {
    let server = Server::new();
    let body = json!({"name": "space", "description": "Mine", "envs": {"A": "1"}});
    let answer = server.post(gcore::NAMESPACES, body).await.ok();
    assert_eq!(answer["tasks"].as_array().map(Vec::len), Some(1));
    let one = server
        .get(&format!("{}/space", gcore::NAMESPACES))
        .await
        .ok();
    assert_eq!(
        one,
        json!({
            "name": "space",
            "description": "Mine",
            "envs": {"A": "1"},
            "status": "Active",
            "created_at": "2023-08-22T11:21:00Z",
            "functions_deploy_status": {"total": 0, "ready": 0, "deployed": 0},
            "functions": [],
        })
    );
    let list = server.get(gcore::NAMESPACES).await.ok();
    assert_eq!(list, json!({"count": 1, "results": [one]}));
}

#[tokio::test]
async fn namespace_lists_hold_whole_functions() {
    let server = gcore::with_hello().await;
    server
        .post(gcore::NAMESPACES, json!({"name": "empty"}))
        .await
        .ok();
    let hello = gcore::hello(&server).await;
    let list = server
        .get(&format!("{}?order_by=name.asc", gcore::NAMESPACES))
        .await
        .ok();
    assert_eq!(list["count"], 2);
    assert_eq!(list["results"][0]["functions"], json!([]));
    assert_eq!(list["results"][1]["functions"], json!([hello]));
    let status = &list["results"][1]["functions_deploy_status"];
    assert_eq!(*status, json!({"total": 1, "ready": 0, "deployed": 0}));
    server.run("hello");
    let one = server
        .get(&format!("{}/space", gcore::NAMESPACES))
        .await
        .ok();
    assert_eq!(
        one["functions_deploy_status"],
        json!({"total": 1, "ready": 1, "deployed": 1})
    );
}

#[tokio::test]
async fn namespace_patch_leaves_out_what_is_absent_or_null() {
    let server = Server::new();
    let body = json!({"name": "space", "description": "Mine", "envs": {"A": "1"}});
    server.post(gcore::NAMESPACES, body).await.ok();
    let path = format!("{}/space", gcore::NAMESPACES);
    for (patch, description, envs) in [
        (json!({}), "Mine", json!({"A": "1"})),
        (
            json!({"description": null, "envs": null}),
            "Mine",
            json!({"A": "1"}),
        ),
        (json!({"description": "Yours"}), "Yours", json!({"A": "1"})),
        (json!({"envs": {"B": "2"}}), "Yours", json!({"B": "2"})),
        (json!({"description": "", "envs": {}}), "", json!({})),
    ] {
        server.patch(&path, patch.clone()).await.ok();
        let now = server.get(&path).await.ok();
        assert_eq!(
            (now["description"].as_str(), &now["envs"]),
            (Some(description), &envs),
            "{patch}"
        );
    }
}

#[tokio::test]
async fn namespace_names_are_taken_once() {
    let server = gcore::server().await;
    let before = server.picture();
    let answer = server
        .post(gcore::NAMESPACES, json!({"name": "space"}))
        .await;
    assert_eq!(answer.status, StatusCode::CONFLICT);
    assert_eq!(answer.json()["exception_class"], "AlreadyExistsError");
    assert_eq!(server.picture(), before);
}

#[tokio::test]
async fn namespace_with_functions_is_not_deleted() {
    let server = gcore::with_hello().await;
    let path = format!("{}/space", gcore::NAMESPACES);
    assert_eq!(server.delete(&path).await.status, StatusCode::CONFLICT);
    server.delete(gcore::HELLO).await.ok();
    let answer = server.delete(&path).await.ok();
    let task = answer["tasks"][0].as_str().expect("a task").to_owned();
    let task = server.get(&format!("/cloud/v1/tasks/{task}")).await.ok();
    assert_eq!(task["state"], "FINISHED");
    assert_eq!(server.get(&path).await.status, StatusCode::NOT_FOUND);
    assert_eq!(server.delete(&path).await.status, StatusCode::NOT_FOUND);
    assert_eq!(
        server.patch(&path, json!({})).await.status,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn lists_are_paged_ordered_and_searched() {
    let server = Server::new();
    for name in ["bb", "aa", "ab"] {
        server
            .post(gcore::NAMESPACES, json!({"name": name}))
            .await
            .ok();
        server.advance(1_000);
    }
    for (query, count, names) in [
        ("", 3, vec!["ab", "aa", "bb"]),
        ("?order_by=created_at.asc", 3, vec!["bb", "aa", "ab"]),
        ("?order_by=name.asc&limit=2", 3, vec!["aa", "ab"]),
        ("?order_by=name.desc&offset=1", 3, vec!["ab", "aa"]),
        ("?search=b&order_by=name.asc", 2, vec!["ab", "bb"]),
        ("?search=none", 0, vec![]),
    ] {
        let list = server
            .get(&format!("{}{query}", gcore::NAMESPACES))
            .await
            .ok();
        let results = list["results"].as_array().expect("results");
        let got: Vec<_> = results
            .iter()
            .filter_map(|one| one["name"].as_str())
            .collect();
        assert_eq!(
            (list["count"].as_u64(), got),
            (Some(count), names),
            "{query}"
        );
    }
}
