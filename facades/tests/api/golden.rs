//! Recorded requests and answers of Gcore's API, compared whole. Time and ids of the test server are
//! fixed, so nothing in them is left out. `GOLDEN=record` writes the answers anew; read the
//! difference before committing it.

use std::{fs, path::PathBuf};

use axum::body::Body;
use http::Request;
use serde_json::{Value, json};

use crate::support::Server;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden/gcore")
}

async fn exchange(server: &Server, request: &Value) -> Value {
    let text = |member: &str| request[member].as_str().unwrap_or_default().to_owned();
    let word = if request["authorization"].is_null() {
        "apikey".to_owned()
    } else {
        text("authorization")
    };
    let body = if request["body"].is_null() {
        String::new()
    } else {
        request["body"].to_string()
    };
    let built = Request::builder()
        .method(text("method").as_str())
        .uri(text("path"))
        .header("authorization", format!("{word} {}", server.admin))
        .header("content-type", "application/json")
        .header("x-request-id", "golden")
        .body(Body::from(body));
    let answer = server.send(built.expect("a request")).await;
    let body = if answer.text.is_empty() {
        Value::Null
    } else {
        answer.json()
    };
    json!({ "status": answer.status.as_u16(), "body": body })
}

fn step(server: &Server, step: &Value) {
    let function = step["function"].as_str().expect("a function");
    match step["step"].as_str().expect("a step") {
        "begin_build" => server.begin_build(function),
        "finish_build" => server.finish_build(function),
        "fail_build" => server.fail_build(function, step["reason"].as_str().expect("a reason")),
        "promote" => server.promote(function),
        "instances" => server.set_instances(1, 1),
        other => panic!("unknown step {other}"),
    }
}

/// Puts ids that an earlier answer had into a path: `{task}` is the first of its tasks.
fn fill(request: &Value, last_task: &str) -> Value {
    let mut request = request.clone();
    let path = request["path"]
        .as_str()
        .expect("a path")
        .replace("{task}", last_task);
    request["path"] = path.into();
    request
}

async fn play(name: &str) {
    let file = folder().join(format!("{name}.json"));
    let text = fs::read_to_string(&file).expect("a golden file");
    let mut script: Value = serde_json::from_str(&text).expect("JSON");
    let recording = std::env::var("GOLDEN").is_ok_and(|mode| mode == "record");
    let server = Server::new();
    let mut last_task = String::new();
    for entry in script["exchanges"].as_array_mut().expect("exchanges") {
        if !entry["step"].is_null() {
            step(&server, entry);
            continue;
        }
        let got = exchange(&server, &fill(&entry["request"], &last_task)).await;
        if let Some(task) = got["body"]["tasks"][0].as_str() {
            last_task = task.to_owned();
        }
        if recording {
            entry["response"] = got;
        } else {
            assert_eq!(got, entry["response"], "{name}: {}", entry["request"]);
        }
    }
    if recording {
        let text = serde_json::to_string_pretty(&script).expect("JSON");
        fs::write(&file, text + "\n").expect("written");
    }
}

#[tokio::test]
async fn seed_documents() {
    play("seed").await;
}

#[tokio::test]
async fn recorded_namespaces() {
    play("namespaces").await;
}

#[tokio::test]
async fn recorded_keys() {
    play("keys").await;
}

#[tokio::test]
async fn recorded_errors() {
    play("errors").await;
}

#[tokio::test]
async fn recorded_catalogues() {
    play("catalogues").await;
}

/// Every member of the seed's sample answer, with the sample's own value where the server is free to
/// give it: the id and the address are the server's to choose.
#[test]
fn the_recorded_function_is_the_seeds_sample() {
    let text = fs::read_to_string(folder().join("seed.json")).expect("a golden file");
    let script: Value = serde_json::from_str(&text).expect("JSON");
    let got = script["exchanges"]
        .as_array()
        .and_then(|all| all.last())
        .expect("an exchange");
    let got = &got["response"]["body"];
    let sample = json!({
        "autoscaling": {"max_instances": 2, "min_instances": 1},
        "build_message": "Building",
        "build_status": "Building",
        "code_text": "def main():\n    return 'Hello World'",
        "created_at": "2023-08-22T11:21:00Z",
        "dependencies": "numpy==1.21.0\npandas==1.3.0",
        "description": "This is a sample function.",
        "enable_api_key": true,
        "envs": {"ENV_VAR": "value"},
        "flavor": "64m-64MB",
        "main_method": "run",
        "name": "function-name",
        "runtime": "python3.7.12",
        "status": "Running",
        "timeout": 5
    });
    for (member, value) in sample.as_object().expect("an object") {
        assert_eq!(got[member], *value, "{member}");
    }
    assert_eq!(got["deploy_status"]["deployed"], 1);
    assert!(
        got["endpoint"]
            .as_str()
            .is_some_and(|url| url.starts_with("https://"))
    );
    assert!(
        got["id"]
            .as_str()
            .is_some_and(|id| uuid::Uuid::try_parse(id).is_ok())
    );
}
