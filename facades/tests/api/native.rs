//! The native API.

use std::collections::BTreeSet;

use coracle_model::{
    ExitReason, FunctionId, InstanceId, InstanceState, LogLine, LogStream, NodeId, RevisionId,
    Timestamp,
    query::{Decision, ExitRecord, FunctionRuntimeView, InstanceView},
};
use http::{Method, Request, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{START, Server, native};

#[tokio::test]
async fn function_has_all_members() {
    let server = native::server().await;
    let made = server.post(native::FUNCTIONS, native::create()).await;
    assert_eq!(made.status, StatusCode::CREATED);
    let mut function = made.json();
    assert!(Uuid::try_parse(function["id"].as_str().expect("an id")).is_ok());
    function.as_object_mut().expect("an object").remove("id");
    assert_eq!(
        function,
        json!({
            "name": "hello",
            "namespace": "space",
            "project": "default",
            "description": "",
            "runtime": "python3.11",
            "handler": "main",
            "convention": "http",
            "code": "def main(request):\n    return 'hi'",
            "dependencies": "",
            "env": {},
            "memory_mib": 128,
            "cpu_millis": 250,
            "timeout_seconds": 60,
            "init_timeout_seconds": 30,
            "concurrency": 1,
            "network": "egress",
            "scale": {"min": 0, "max": 10},
            "placement": {"required": {}, "preferred": {}, "spread": "auto"},
            "key_required": false,
            "keys": [],
            "disabled": false,
            "annotations": {},
            "revision": {
                "number": 1,
                "stage": "received",
                "reason": null,
                "message": null,
                "runtime_requested": "python3.11",
                "created_at": "2023-08-22T11:21:00Z",
            },
            "serving_revision": null,
            "instances": {"wanted": 0, "ready": 0},
            "endpoint": "https://example.com/fn/default/space/hello",
            "created_at": "2023-08-22T11:21:00Z",
            "updated_at": "2023-08-22T11:21:00Z",
        })
    );
}

#[tokio::test]
async fn function_patch_changes_each_field_and_nothing_else() {
    let server = native::server().await;
    let made = server
        .post("/api/v1/projects/default/keys", json!({"name": "mine"}))
        .await;
    assert_eq!(made.status, StatusCode::CREATED);
    server.post(native::FUNCTIONS, native::create()).await;
    let mut expected = server.get(native::HELLO).await.ok();
    for (member, value, revision) in [
        ("description", json!("Mine"), 1),
        ("handler", json!("app.run"), 2),
        ("convention", json!("scf"), 3),
        ("code", json!("def run(e, c): pass"), 4),
        ("dependencies", json!("flask==3.0.0"), 5),
        ("env", json!({"A": "1"}), 6),
        ("memory_mib", json!(256), 7),
        ("cpu_millis", json!(500), 8),
        ("timeout_seconds", json!(900), 9),
        ("init_timeout_seconds", json!(10), 10),
        ("concurrency", json!(4), 11),
        ("network", json!("none"), 12),
        ("scale", json!({"min": 1, "max": 3}), 12),
        ("key_required", json!(true), 12),
        ("keys", json!(["mine"]), 12),
        ("disabled", json!(true), 12),
        ("annotations", json!({"team": "a"}), 12),
        ("dependencies", json!(""), 13),
    ] {
        let now = server
            .patch(native::HELLO, json!({ member: value }))
            .await
            .ok();
        expected[member] = value;
        expected["revision"]["number"] = revision.into();
        assert_eq!(now, expected, "{member}");
        assert_eq!(server.get(native::HELLO).await.ok(), expected, "{member}");
    }
    // A member that is null stays; of a scale, only what is given changes.
    let patch = json!({"code": null, "scale": {"max": 2}, "dependencies": null});
    let now = server.patch(native::HELLO, patch).await.ok();
    expected["scale"]["max"] = 2.into();
    assert_eq!(now, expected);
}

#[tokio::test]
async fn function_stages_and_revisions() {
    let server = native::with_hello().await;
    server.run("hello");
    server.patch(native::HELLO, json!({"code": "2"})).await.ok();
    server.begin_build("hello");
    server.fail_build("hello", "no such package");
    let function = server.get(native::HELLO).await.ok();
    assert_eq!(function["serving_revision"], 1);
    assert_eq!(
        (
            &function["revision"]["stage"],
            &function["revision"]["reason"]
        ),
        (&json!("build_failed"), &json!("no such package"))
    );
    let list = server
        .get(&format!("{}/revisions", native::HELLO))
        .await
        .ok();
    let stages: Vec<_> = list["items"]
        .as_array()
        .expect("items")
        .iter()
        .map(|r| &r["stage"])
        .collect();
    assert_eq!(stages, ["build_failed", "running"]);
    assert_eq!(list["items"][1]["message"], "Built");
}

#[tokio::test]
async fn lists_leave_texts_out() {
    let server = native::with_hello().await;
    let other = "/api/v1/projects/default/namespaces";
    server.post(other, json!({"name": "other"})).await;
    for (path, count) in [
        ("/api/v1/projects/default/functions".to_owned(), 1),
        (native::FUNCTIONS.to_owned(), 1),
        (format!("{other}/other/functions"), 0),
        (format!("{}?search=none", native::FUNCTIONS), 0),
        // As long as a name may be.
        (
            format!("{}?search={}", native::FUNCTIONS, "x".repeat(63)),
            0,
        ),
    ] {
        let list = server.get(&path).await.ok();
        assert_eq!(list["count"], count, "{path}");
        if count == 1 {
            let item = &list["items"][0];
            assert_eq!(item["name"], "hello");
            assert!(item.get("code").is_none() && item.get("dependencies").is_none());
        }
    }
    let missing = server.get(&format!("{other}/none/functions")).await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    let misspelt = server.get(&format!("{}?serach=x", native::FUNCTIONS)).await;
    assert_eq!(
        (misspelt.status, misspelt.json()["field"].clone()),
        (StatusCode::BAD_REQUEST, json!("serach"))
    );
}

#[tokio::test]
async fn names_are_taken_once_and_things_are_deleted() {
    let server = native::with_hello().await;
    let key = json!({"name": "mine"});
    let cases = [
        (
            native::FUNCTIONS,
            native::create(),
            native::HELLO.to_owned(),
        ),
        (
            "/api/v1/projects/default/keys",
            key,
            "/api/v1/projects/default/keys/mine".to_owned(),
        ),
        (
            "/api/v1/projects/default/namespaces",
            json!({"name": "space"}),
            "/api/v1/projects/default/namespaces/space".to_owned(),
        ),
        (
            "/api/v1/projects",
            json!({"name": "second"}),
            "/api/v1/projects/second".to_owned(),
        ),
    ];
    for (list, body, one) in cases {
        server.post(list, body.clone()).await;
        let again = server.post(list, body).await;
        assert_eq!(again.status, StatusCode::CONFLICT, "{one}");
        assert_eq!(again.json()["code"], "already_exists", "{one}");
        assert_eq!(
            server.delete(&one).await.status,
            StatusCode::NO_CONTENT,
            "{one}"
        );
        assert_eq!(
            server.delete(&one).await.status,
            StatusCode::NOT_FOUND,
            "{one}"
        );
    }
}

#[tokio::test]
async fn full_namespaces_and_projects_stay() {
    let server = native::with_hello().await;
    let answer = server
        .delete("/api/v1/projects/default/namespaces/space")
        .await;
    assert_eq!(
        (answer.status, answer.json()["code"].clone()),
        (StatusCode::CONFLICT, json!("conflict"))
    );
    assert_eq!(
        server.delete("/api/v1/projects/default").await.status,
        StatusCode::CONFLICT
    );
}

#[tokio::test]
async fn namespaces_are_patched() {
    let server = native::server().await;
    let path = "/api/v1/projects/default/namespaces/space";
    let now = server.patch(path, json!({"env": {"A": "1"}})).await.ok();
    assert_eq!(now["env"], json!({"A": "1"}));
    let now = server
        .patch(path, json!({"description": "x", "env": null}))
        .await
        .ok();
    assert_eq!(
        (&now["description"], &now["env"]),
        (&json!("x"), &json!({"A": "1"}))
    );
    assert_eq!(server.get(path).await.ok(), now);
    let list = server.get("/api/v1/projects/default/namespaces").await.ok();
    assert_eq!(list, json!({"count": 1, "items": [now]}));
}

#[tokio::test]
async fn tokens_work_until_they_are_deleted() {
    let server = Server::new();
    server
        .post("/api/v1/projects", json!({"name": "second"}))
        .await;
    let body = json!({"role": "project", "project": "second", "description": "CI"});
    let made = server.post("/api/v1/tokens", body).await;
    assert_eq!(made.status, StatusCode::CREATED);
    let token = made.json()["token"].as_str().expect("a token").to_owned();
    let keys = async |project: &str| {
        let path = format!("/api/v1/projects/{project}/keys");
        server
            .with_token(Some(&token), Method::GET, &path, "")
            .await
            .status
    };
    assert_eq!(keys("second").await, StatusCode::OK);
    assert_eq!(keys("default").await, StatusCode::FORBIDDEN);
    let visible = server
        .with_token(Some(&token), Method::GET, "/api/v1/projects", "")
        .await
        .ok();
    assert_eq!(
        (&visible["count"], &visible["items"][0]["name"]),
        (&json!(1), &json!("second"))
    );
    let list = server.get("/api/v1/tokens").await;
    assert!(!list.text.contains(&token[37..]), "secrets are not listed");
    assert_eq!(list.json()["count"], 2);
    let id = made.json()["id"].as_str().expect("an id").to_owned();
    let gone = server.delete(&format!("/api/v1/tokens/{id}")).await;
    assert_eq!(gone.status, StatusCode::NO_CONTENT);
    assert_eq!(keys("second").await, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn keys_are_bound_patched_and_read() {
    let server = native::with_hello().await;
    let list = "/api/v1/projects/default/keys";
    let functions = json!([{"namespace": "space", "name": "hello"}]);
    let body =
        json!({"name": "mine", "functions": functions, "expires_at": "2023-08-22T11:22:00Z"});
    let made = server.post(list, body).await.json();
    assert_eq!(made["secret"].as_str().map(str::len), Some(64));
    let read = server.get(&format!("{list}/mine")).await.ok();
    assert_eq!(
        (&read["live"], &read["functions"], read.get("secret")),
        (&json!(true), &functions, None)
    );
    assert_eq!(
        server.get(native::HELLO).await.ok()["keys"],
        json!(["mine"])
    );
    server.advance(60_000);
    assert_eq!(
        server.get(&format!("{list}/mine")).await.ok()["live"],
        false
    );
    let now = server
        .patch(&format!("{list}/mine"), json!({"expires_at": null}))
        .await
        .ok();
    assert_eq!(
        (&now["live"], &now["expires_at"], &now["functions"]),
        (&json!(true), &Value::Null, &functions)
    );
    assert_eq!(server.get(list).await.ok()["items"], json!([now]));
}

#[tokio::test]
async fn placement_is_kept_replaced_as_a_whole_and_makes_no_revision() {
    let server = native::with_hello().await;
    let given = json!({"required": {"disk": "ssd"}, "preferred": {"zone": "a"}, "spread": "zone"});
    let set = server
        .patch(native::HELLO, json!({"placement": given}))
        .await
        .ok();
    assert_eq!(
        (&set["placement"], &set["revision"]["number"]),
        (&given, &json!(1))
    );
    let kept = server
        .patch(native::HELLO, json!({"description": "x"}))
        .await
        .ok();
    assert_eq!(kept["placement"], given);
    let other = json!({"placement": {"spread": "node"}});
    let replaced = server.patch(native::HELLO, other).await.ok();
    let expected = json!({"required": {}, "preferred": {}, "spread": "node"});
    assert_eq!(replaced["placement"], expected);
    for (placement, field) in [
        (json!({"required": {"a b": "c"}}), "placement.required.a b"),
        (json!({"preferred": {"a": "b/c"}}), "placement.preferred.a"),
        (json!({"spread": "rack"}), "placement.spread"),
        (json!({"require": {}}), "placement.require"),
    ] {
        let answer = server
            .patch(native::HELLO, json!({"placement": placement}))
            .await;
        assert_eq!(
            answer.status,
            StatusCode::BAD_REQUEST,
            "{field}: {}",
            answer.text
        );
        assert_eq!(answer.json()["field"], field);
    }
    assert_eq!(server.get(native::HELLO).await.ok()["placement"], expected);
}

fn running() -> FunctionRuntimeView {
    let revision = RevisionId {
        function: FunctionId(Uuid::from_u128(1)),
        number: 3,
    };
    let instance = InstanceId(Uuid::from_u128(2));
    FunctionRuntimeView {
        instances: vec![InstanceView {
            id: instance,
            revision,
            node: NodeId(Uuid::from_u128(9)),
            state: InstanceState::Exited(ExitReason::OutOfMemory { limit_mib: 64 }),
            since: Timestamp(START),
            placement: "the only node".to_owned(),
        }],
        decisions: vec![Decision {
            at: Timestamp(START),
            from: 1,
            to: 2,
            reason: "busy".to_owned(),
        }],
        exits: vec![ExitRecord {
            at: Timestamp(START),
            instance,
            revision,
            reason: ExitReason::Exited { code: 1 },
            retry_at: Some(Timestamp(START + 1_000)),
        }],
        shortage: Some("no node has room".to_owned()),
    }
}

#[tokio::test]
async fn describe_shows_instances_decisions_and_exits() {
    let server = native::with_hello().await;
    server.set_running(running());
    let description = server
        .get(&format!("{}/describe", native::HELLO))
        .await
        .ok();
    assert_eq!(
        description["function"],
        server.get(native::HELLO).await.ok()
    );
    let instance = json!({
        "id": "00000000-0000-0000-0000-000000000002",
        "revision": 3,
        "node": "00000000-0000-0000-0000-000000000009",
        "state": "exited",
        "reason": "killed by the kernel: out of memory (limit 64 MiB)",
        "since": "2023-08-22T11:21:00Z",
        "placement": "the only node",
    });
    assert_eq!(description["instances"], json!([instance]));
    assert_eq!(
        description["decisions"],
        json!([{"at": "2023-08-22T11:21:00Z", "from": 1, "to": 2, "reason": "busy"}])
    );
    assert_eq!(
        description["exits"],
        json!([{
            "at": "2023-08-22T11:21:00Z",
            "instance": "00000000-0000-0000-0000-000000000002",
            "revision": 3,
            "reason": "the process exited with code 1",
            "retry_at": "2023-08-22T11:21:01Z",
        }])
    );
    assert_eq!(description["shortage"], "no node has room");
    let instances = server
        .get(&format!("{}/instances", native::HELLO))
        .await
        .ok();
    assert_eq!(instances, json!({"count": 1, "items": [instance]}));
}

#[tokio::test]
async fn build_log_is_text_of_the_revision_asked_for() {
    let server = native::with_hello().await;
    let log = server.get(&format!("{}/build-log", native::HELLO)).await;
    assert_eq!(log.header("content-type"), "text/plain; charset=utf-8");
    assert_eq!(log.text, "revision 1, follow false\ndone\n");
    server.patch(native::HELLO, json!({"code": "2"})).await.ok();
    let log = server
        .get(&format!(
            "{}/build-log?revision=1&follow=true",
            native::HELLO
        ))
        .await;
    assert_eq!(log.text, "revision 1, follow true\ndone\n");
    for revision in ["0", "3", "x"] {
        let answer = server
            .get(&format!("{}/build-log?revision={revision}", native::HELLO))
            .await;
        assert_eq!(
            (answer.status, answer.json()["field"].clone()),
            (StatusCode::BAD_REQUEST, json!("revision"))
        );
    }
}

fn log() -> Vec<LogLine> {
    let line = |at: u64, request: Option<&str>, message: &str| LogLine {
        at_nanos: START * 1_000_000 + at,
        instance: InstanceId(Uuid::from_u128(u128::from(at % 2))),
        stream: LogStream::Stderr,
        request: request.map(str::to_owned),
        message: message.to_owned(),
    };
    vec![
        line(1, None, "one"),
        line(2, Some("r-1"), "two"),
        line(3, Some("r-2"), "three"),
    ]
}

#[tokio::test]
async fn logs_are_filtered() {
    let server = native::with_hello().await;
    server.set_log(log());
    for (query, messages) in [
        ("", vec!["one", "two", "three"]),
        ("?tail=2", vec!["two", "three"]),
        ("?tail=0", vec![]),
        ("?request_id=r-1", vec!["two"]),
        (
            "?instance=00000000-0000-0000-0000-000000000001",
            vec!["one", "three"],
        ),
        ("?since=2023-08-22T11:21:00Z", vec!["one", "two", "three"]),
        ("?since=2023-08-22T11:21:01Z", vec![]),
    ] {
        let answer = server
            .get(&format!("{}/logs{query}", native::HELLO))
            .await
            .ok();
        let lines = answer["lines"].as_array().expect("lines");
        let got: Vec<_> = lines
            .iter()
            .filter_map(|line| line["message"].as_str())
            .collect();
        assert_eq!(got, messages, "{query}");
    }
    let one = server
        .get(&format!("{}/logs?request_id=r-1", native::HELLO))
        .await
        .ok();
    assert_eq!(
        one["lines"][0],
        json!({
            "time": "2023-08-22T11:21:00.000000002Z",
            "instance": "00000000-0000-0000-0000-000000000000",
            "stream": "stderr",
            "request_id": "r-1",
            "message": "two",
        })
    );
    for query in [
        "tail=x",
        "tail=100001",
        "follow=maybe",
        "instance=x",
        "since=yesterday",
        "level=x",
    ] {
        let answer = server.get(&format!("{}/logs?{query}", native::HELLO)).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{query}");
        assert_eq!(
            answer.json()["field"].as_str(),
            query.split('=').next(),
            "{query}"
        );
    }
}

#[tokio::test]
async fn logs_are_followed_as_events() {
    let server = native::with_hello().await;
    server.set_log(log());
    let request = Request::get(format!("{}/logs", native::HELLO))
        .header("authorization", format!("Bearer {}", server.admin))
        .header("accept", "text/event-stream")
        .body(axum::body::Body::empty());
    let accepted = server.send(request.expect("a request")).await;
    let followed = server
        .get(&format!("{}/logs?follow=true", native::HELLO))
        .await;
    for answer in [accepted, followed] {
        assert_eq!(answer.header("content-type"), "text/event-stream");
        let events: Vec<Value> = answer
            .text
            .split("\n\n")
            .filter(|event| !event.is_empty())
            .map(|event| event.strip_prefix("data: ").expect("data"))
            .map(|data| serde_json::from_str(data).expect("JSON"))
            .collect();
        assert_eq!(events.len(), 3);
        assert_eq!(events[2]["message"], "three");
    }
}

#[tokio::test]
async fn invoke_of_nothing_is_not_found() {
    let server = native::with_hello().await;
    let answer = server
        .get(&format!("{}/none/invoke", native::FUNCTIONS))
        .await;
    assert_eq!(
        (answer.status, answer.json()["code"].clone()),
        (StatusCode::NOT_FOUND, json!("not_found"))
    );
}

#[tokio::test]
async fn invoke_hands_the_request_on_without_the_token() {
    let server = native::with_hello().await;
    for (method, rest, seen) in [
        (Method::GET, "/invoke", "GET /"),
        (
            Method::POST,
            "/invoke/a%2Fb//c?x=%20",
            "POST /a%2Fb//c?x=%20",
        ),
        (Method::DELETE, "/invoke/?q", "DELETE /?q"),
    ] {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{rest}", native::HELLO))
            .header("authorization", format!("Bearer {}", server.admin))
            .header("x-own", "kept")
            .header("x-request-id", "mine")
            .body(axum::body::Body::from("the body"));
        let answer = server.send(request.expect("a request")).await;
        assert_eq!(
            (answer.status, answer.text.as_str()),
            (StatusCode::IM_A_TEAPOT, seen)
        );
        assert_eq!(answer.header("x-request-id"), "mine");
        let (function, request) = server.invocations().pop().expect("one invocation");
        assert_eq!(function.to_string(), "space/hello");
        assert!(request.headers().get("authorization").is_none());
        assert_eq!(request.headers()["x-own"], "kept");
        assert_eq!(request.headers()["x-request-id"], "mine");
        assert_eq!(request.body().as_ref(), b"the body");
    }
    let large = vec![0; 6 * 1024 * 1024 + 1];
    let admin = Some(server.admin.as_str());
    let path = format!("{}/invoke", native::HELLO);
    let answer = server.with_token(admin, Method::POST, &path, large).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(server.invocations().is_empty());
}

#[tokio::test]
async fn version_and_runtimes() {
    let server = Server::new();
    let version = server.get("/api/v1/version").await.ok();
    assert_eq!(
        version,
        json!({"version": "0.1.0", "public_url": "https://example.com"})
    );
    let runtimes = server.get("/api/v1/runtimes").await.ok();
    let names: Vec<_> = runtimes["items"]
        .as_array()
        .expect("items")
        .iter()
        .map(|r| &r["name"])
        .collect();
    assert_eq!(names, ["nodejs20", "python3.11"]);
}

/// The document is made from the same declarations as the routes; here it is held against what the
/// router answers, method by method.
#[tokio::test]
async fn openapi_document_and_routes_agree() {
    let server = Server::new();
    let document = server
        .with_token(None, Method::GET, "/api/v1/openapi.json", "")
        .await
        .ok();
    assert!(
        document["openapi"]
            .as_str()
            .is_some_and(|version| version.starts_with("3."))
    );
    let methods = ["get", "head", "post", "put", "patch", "delete", "options"];
    let mut operations = BTreeSet::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        assert!(path.starts_with("/api/v1/"), "{path}");
        for method in methods {
            let declared = item.get(method).is_some();
            let upper: Method = method.to_uppercase().parse().expect("a method");
            let filled = path.replace("{*path}", "a").replace(['{', '}'], "");
            let answer = server.with_token(None, upper, &filled, "").await;
            // Without a token every route that exists answers 401, and what does not exist 405. HEAD
            // comes with every GET.
            let served = answer.status == StatusCode::UNAUTHORIZED;
            let implied = method == "head" && item.get("get").is_some();
            assert_eq!(served, declared || implied, "{method} {path}");
        }
        for (method, operation) in item.as_object().expect("an item") {
            if methods.contains(&method.as_str()) {
                operations.insert(format!("{} {path}", method.to_uppercase()));
                assert!(operation["responses"]["4XX"].is_object(), "{method} {path}");
            }
        }
    }
    for wanted in [
        "GET /api/v1/version",
        "POST /api/v1/projects",
        "GET /api/v1/nodes",
        "GET /api/v1/nodes/{node_name}",
        "POST /api/v1/nodes/{node_name}/cordon",
        "POST /api/v1/nodes/{node_name}/uncordon",
        "POST /api/v1/nodes/{node_name}/drain",
        "POST /api/v1/nodes/{node_name}/remove",
        "DELETE /api/v1/tokens/{token_id}",
        "PATCH /api/v1/projects/{project}/namespaces/{namespace_name}/functions/{function_name}",
        "GET /api/v1/projects/{project}/namespaces/{namespace_name}/functions/{function_name}/logs",
        "PATCH /api/v1/projects/{project}/keys/{key_name}",
    ] {
        assert!(
            operations.contains(wanted),
            "{wanted} is not among {operations:#?}"
        );
    }
    let references = document.to_string();
    let schemas = document["components"]["schemas"]
        .as_object()
        .expect("schemas");
    for reference in references.split("\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().expect("a name");
        assert!(
            schemas.contains_key(name),
            "{name} is referred to and not there"
        );
    }
}
