//! Gcore keys.

use coracle_model::{KeyName, ProjectId};
use http::StatusCode;
use serde_json::json;

use crate::support::{Server, gcore};

const KEY: &str = "/cloud/v1/faas/keys/1/1/mine";

#[tokio::test]
async fn key_secret_is_shown_once_and_only_its_hash_is_kept() {
    let server = gcore::with_hello().await;
    let functions = json!([{"name": "hello", "namespace": "space"}]);
    let body = json!({"name": "mine", "description": "For me", "functions": functions,
                      "expire": "2030-01-01T00:00:00Z"});
    let mut made = server.post(gcore::KEYS, body).await.ok();
    let secret = made
        .as_object_mut()
        .expect("an object")
        .remove("secret")
        .expect("a secret");
    let secret = secret.as_str().expect("text");
    assert_eq!(secret.len(), 64);
    assert_eq!(
        made,
        json!({
            "name": "mine",
            "description": "For me",
            "functions": functions,
            "expire": "2030-01-01T00:00:00Z",
            "created_at": "2023-08-22T11:21:00Z",
            "status": "Active",
        })
    );
    assert_eq!(server.get(KEY).await.ok(), made);
    assert_eq!(
        server.get(gcore::KEYS).await.ok(),
        json!({"count": 1, "results": [made]})
    );
    let name: KeyName = "mine".parse().expect("a valid name");
    let view = server.view();
    let key = view.key_named(ProjectId::DEFAULT, &name).expect("the key");
    assert!(key.hash.matches(secret));
}

#[tokio::test]
async fn key_and_function_are_two_sides_of_one_relation() {
    let server = gcore::with_hello().await;
    server.post(gcore::KEYS, json!({"name": "mine"})).await.ok();
    server
        .patch(gcore::HELLO, json!({"keys": ["mine"]}))
        .await
        .ok();
    let bound = json!([{"name": "hello", "namespace": "space"}]);
    assert_eq!(server.get(KEY).await.ok()["functions"], bound);
    assert_eq!(gcore::hello(&server).await["keys"], json!(["mine"]));
    server.patch(KEY, json!({"functions": []})).await.ok();
    assert_eq!(gcore::hello(&server).await["keys"], json!([]));
    let mut second = gcore::create();
    second["name"] = "second".into();
    second["keys"] = json!(["mine"]);
    server.post(gcore::FUNCTIONS, second).await.ok();
    assert_eq!(server.get(KEY).await.ok()["functions"][0]["name"], "second");
}

#[tokio::test]
async fn key_patch_leaves_out_what_is_absent() {
    let server = gcore::with_hello().await;
    let functions = json!([{"name": "hello", "namespace": "space"}]);
    let body = json!({"name": "mine", "description": "a", "functions": functions,
                      "expire": "2030-01-01T00:00:00Z"});
    server.post(gcore::KEYS, body).await.ok();
    for (patch, member, value) in [
        (json!({"description": "b"}), "functions", functions.clone()),
        (json!({"description": null}), "description", json!("b")),
        (json!({"functions": null}), "functions", functions.clone()),
        (
            json!({"functions": []}),
            "expire",
            json!("2030-01-01T00:00:00Z"),
        ),
        (
            json!({"expire": "2031-01-01T00:00:00Z"}),
            "expire",
            json!("2031-01-01T00:00:00Z"),
        ),
        (json!({"expire": null}), "expire", json!(null)),
        (json!({"name": "mine"}), "description", json!("b")),
    ] {
        let now = server.patch(KEY, patch.clone()).await.ok();
        assert_eq!(now[member], value, "{patch}");
        assert!(now.get("secret").is_none());
        assert_eq!(server.get(KEY).await.ok(), now, "{patch}");
    }
    let renamed = server.patch(KEY, json!({"name": "yours"})).await;
    assert_eq!(renamed.json()["field"], "name");
}

#[tokio::test]
async fn key_expires_and_is_deleted() {
    let server = Server::new();
    let body = json!({"name": "mine", "expire": "2023-08-22T11:22:00Z"});
    server.post(gcore::KEYS, body).await.ok();
    server.advance(59_999);
    assert_eq!(server.get(KEY).await.ok()["status"], "Active");
    server.advance(1);
    assert_eq!(server.get(KEY).await.ok()["status"], "Expired");
    let gone = server.delete(KEY).await;
    assert_eq!(
        (gone.status, gone.text.as_str()),
        (StatusCode::NO_CONTENT, "")
    );
    for answer in [
        server.get(KEY).await,
        server.delete(KEY).await,
        server.patch(KEY, json!({})).await,
    ] {
        assert_eq!(answer.status, StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn key_lists_are_ordered_by_expiry_and_filtered_by_it() {
    let server = Server::new();
    for (name, expire) in [
        ("ever", json!(null)),
        ("late", json!("2023-09-22T00:00:00Z")),
        ("soon", json!("2023-08-23T00:00:00Z")),
    ] {
        server
            .post(gcore::KEYS, json!({"name": name, "expire": expire}))
            .await
            .ok();
    }
    for (query, names) in [
        ("order_by=expire.asc", vec!["soon", "late", "ever"]),
        ("order_by=expire.desc", vec!["ever", "late", "soon"]),
        ("expire_in=1", vec!["soon"]),
        ("expire_in=40&order_by=name.asc", vec!["late", "soon"]),
        ("expire_in=0", vec![]),
        ("search=oo", vec!["soon"]),
    ] {
        let list = server.get(&format!("{}?{query}", gcore::KEYS)).await.ok();
        let results = list["results"].as_array().expect("results");
        let got: Vec<_> = results
            .iter()
            .filter_map(|key| key["name"].as_str())
            .collect();
        assert_eq!(got, names, "{query}");
    }
}

#[tokio::test]
async fn key_names_are_taken_once() {
    let server = Server::new();
    server.post(gcore::KEYS, json!({"name": "mine"})).await.ok();
    let before = server.picture();
    assert_eq!(
        server
            .post(gcore::KEYS, json!({"name": "mine"}))
            .await
            .status,
        StatusCode::CONFLICT
    );
    assert_eq!(server.picture(), before);
}
