//! Operating a cluster through the native API.

use http::StatusCode;
use serde_json::{Value, json};

use crate::support::Server;

#[tokio::test]
async fn a_join_token_says_all_that_a_machine_has_to_be_told_once() {
    let server = Server::new();
    server.found_cluster();
    let made = server
        .post("/api/v1/join-tokens", json!({"role": "agent", "uses": 3}))
        .await;
    assert_eq!(made.status, StatusCode::CREATED);
    let made = made.json();
    let hash = format!("sha256:{}", coracle_model::Digest::of(b"certificate"));
    assert_eq!(made["ca_hash"], hash);
    assert_eq!(
        made["controllers"],
        json!(["10.0.0.1:7000", "10.0.0.2:7000"])
    );
    assert_eq!(
        (&made["role"], &made["uses_left"]),
        (&json!("agent"), &json!(3))
    );
    assert_eq!(made["expires_at"], "2023-08-22T12:21:00Z");
    let token = made["token"].as_str().expect("a token").to_owned();
    let (id, secret) = token.split_once('$').expect("an id and a secret");
    assert_eq!(made["id"], id);

    let listed = server.get("/api/v1/join-tokens").await;
    assert!(!listed.text.contains(secret), "secrets are not listed");
    let listed = listed.json();
    assert_eq!(
        (&listed["count"], &listed["items"][0]["live"]),
        (&json!(1), &json!(true))
    );
    server.advance(60 * 60 * 1_000);
    let later = server.get("/api/v1/join-tokens").await.ok();
    assert_eq!(later["items"][0]["live"], false);

    let path = format!("/api/v1/join-tokens/{id}");
    assert_eq!(server.delete(&path).await.status, StatusCode::NO_CONTENT);
    assert_eq!(server.delete(&path).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn what_a_join_token_may_not_be_is_refused_with_its_field() {
    let server = Server::new();
    let alone = server
        .post("/api/v1/join-tokens", json!({"role": "agent"}))
        .await;
    assert_eq!(alone.status, StatusCode::CONFLICT);
    assert!(alone.text.contains("cluster init --from"), "{}", alone.text);
    server.found_cluster();
    for (body, field) in [
        (json!({"role": "agent", "uses": 0}), "uses"),
        (json!({"role": "agent", "ttl_seconds": 0}), "ttl_seconds"),
        (
            json!({"role": "agent", "ttl_seconds": 40_000_000}),
            "ttl_seconds",
        ),
    ] {
        let answer = server.post("/api/v1/join-tokens", body.clone()).await;
        assert!(answer.status.is_client_error(), "{body}");
        assert_eq!(answer.json()["field"], field, "{body}");
    }
    let answer = server
        .post("/api/v1/join-tokens", json!({"role": "admin"}))
        .await;
    assert!(answer.status.is_client_error());
}

#[tokio::test]
async fn a_cluster_is_shown_and_operated() {
    let server = Server::new();
    let alone = server.get("/api/v1/cluster").await.ok();
    assert_eq!(
        (&alone["ca_hash"], &alone["members"]),
        (&Value::Null, &json!([]))
    );
    server.found_cluster();
    let cluster = server.get("/api/v1/cluster").await.ok();
    assert_eq!(cluster["leader"], 1);
    assert_eq!(
        cluster["members"][1],
        json!({
            "id": 2,
            "name": "c2",
            "address": "10.0.0.2:7000",
            "joined_at": "2023-08-22T11:21:00Z",
            "standing": "voter",
            "leader": false,
            "matched": 7,
            "active": true,
            "receiving_snapshot": false,
        })
    );
    let transfer = async |body| server.post("/api/v1/cluster/transfer", body).await;
    assert_eq!(transfer(json!({"member": 2})).await.ok()["leader"], 2);
    let refused = transfer(json!({"member": 9})).await;
    assert_eq!(refused.status, StatusCode::CONFLICT);
    let rotated = server.post("/api/v1/cluster/rotate-key", json!({})).await;
    assert_eq!(rotated.ok()["key_generation"], 2);
    let remove = async |id: &str| {
        let path = format!("/api/v1/cluster/members/{id}");
        server.delete(&path).await.status
    };
    assert_eq!(remove("2").await, StatusCode::NO_CONTENT);
    assert_eq!(remove("2").await, StatusCode::NOT_FOUND);
    assert_eq!(remove("1").await, StatusCode::CONFLICT);
    assert_eq!(remove("x").await, StatusCode::NOT_FOUND);
}
