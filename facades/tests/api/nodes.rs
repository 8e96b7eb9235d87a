//! Nodes in the native API.

use coracle_facades::port::PortError;
use coracle_model::{NodeId, Refusal, Timestamp, node::NodeChange};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{START, Server};

const HERE: NodeId = NodeId(Uuid::from_u128(9));

#[tokio::test]
async fn nodes_are_shown_with_what_they_have_run_and_wait_for() {
    let server = Server::new();
    let nodes = server.get("/api/v1/nodes").await.ok();
    let node = json!({
        "id": "00000000-0000-0000-0000-000000000009",
        "name": "here",
        "state": "draining",
        "version": "0.1.0",
        "labels": {"zone": "a"},
        "address": "memory:",
        "alive": true,
        "schedulable": false,
        "cordoned": true,
        "drain": {
            "since": "2023-08-22T11:21:00Z",
            "deadline": "2023-08-22T11:22:00Z",
            "force": false,
            "waiting": ["default/hello: no node has room"],
        },
        "allocatable": {"memory_mib": 2048, "cpu_millis": 2000},
        "used": {"memory_mib": 1024, "cpu_millis": 1000},
        "instances": 1,
        "running": 2,
        "builds": 0,
        "stems": {"python3.11": 2},
        "images": ["python3.11"],
        "reported_at": "2023-08-22T11:21:00Z",
        "joined_at": "2023-08-22T11:21:00Z",
    });
    assert_eq!(nodes, json!({"count": 1, "items": [node]}));
    let mut whole = node;
    whole["placed"] = json!([{
        "project": "default",
        "namespace": "default",
        "function": "hello",
        "id": "00000000-0000-0000-0000-000000000002",
        "revision": 3,
        "node": "00000000-0000-0000-0000-000000000009",
        "state": "ready",
        "reason": null,
        "since": "2023-08-22T11:21:00Z",
        "placement": "the only node",
    }]);
    // By name and by id.
    for name in ["here", "00000000-0000-0000-0000-000000000009"] {
        assert_eq!(
            server.get(&format!("/api/v1/nodes/{name}")).await.ok(),
            whole
        );
    }
    let missing = server.get("/api/v1/nodes/elsewhere").await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
}

async fn post(server: &Server, verb: &str, body: &str) -> (StatusCode, Value) {
    let admin = Some(server.admin.as_str());
    let path = format!("/api/v1/nodes/here/{verb}");
    let answer = server
        .with_token(admin, Method::POST, &path, body.to_owned())
        .await;
    (answer.status, answer.json())
}

#[tokio::test]
async fn operators_verbs_become_changes_and_a_body_is_optional() {
    let server = Server::new();
    let drain = |deadline: Option<u64>, force| NodeChange::Drain {
        deadline: deadline.map(Timestamp),
        force,
    };
    for (verb, body, change) in [
        ("cordon", "", NodeChange::Cordon),
        ("uncordon", "", NodeChange::Uncordon),
        ("drain", "", drain(None, false)),
        ("drain", "{\"force\": true}", drain(None, true)),
        (
            "drain",
            "{\"deadline_seconds\": 60}",
            drain(Some(START + 60_000), false),
        ),
        ("remove", "{}", NodeChange::Remove { force: false }),
        (
            "remove",
            "{\"force\": true}",
            NodeChange::Remove { force: true },
        ),
    ] {
        let (status, answer) = post(&server, verb, body).await;
        assert_eq!(
            (status, &answer["name"]),
            (StatusCode::OK, &json!("here")),
            "{verb}"
        );
        assert_eq!(
            server.node_changes().last(),
            Some(&(HERE, change)),
            "{verb} {body}"
        );
    }
    let before = server.node_changes().len();
    for (verb, body, field) in [
        ("drain", "{\"deadline\": 60}", "deadline"),
        ("drain", "{\"deadline_seconds\": -1}", "deadline_seconds"),
        ("remove", "{\"force\": 1}", "force"),
    ] {
        let (status, answer) = post(&server, verb, body).await;
        assert_eq!(
            (status, &answer["field"]),
            (StatusCode::BAD_REQUEST, &json!(field))
        );
    }
    assert_eq!(server.node_changes().len(), before);
}

#[tokio::test]
async fn a_refusal_is_told_and_an_unknown_outcome_asked_again() {
    let server = Server::new();
    let why = "node here is the last one that can hold function default/hello";
    server.fail_next(Refusal::Conflict(why.to_owned()).into());
    let (status, answer) = post(&server, "drain", "").await;
    assert_eq!(
        (status, &answer["detail"]),
        (StatusCode::CONFLICT, &json!(why))
    );
    server.fail_next(PortError::Unknown("election".to_owned()));
    assert_eq!(post(&server, "cordon", "").await.0, StatusCode::OK);
    assert_eq!(server.node_changes(), [(HERE, NodeChange::Cordon)]);
}
