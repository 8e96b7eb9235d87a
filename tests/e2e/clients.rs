//! The command line, the native API, logs, Node.

use std::time::Duration;

use coracle_tests::{Server, eventually};
use serde_json::{Value, json};

#[tokio::test]
async fn the_command_line_deploys_calls_explains_and_removes() {
    let server = Server::start().await;
    let dir = tempfile::tempdir().expect("tempdir");
    let file = dir.path().join("main.py");
    std::fs::write(&file, "def main():\n    print('called')\n    return 'hi'\n").expect("write");
    let file = file.display().to_string();

    let (code, out, err) = server.cli(&["fn", "deploy", "shop/cart", "--file", &file]);
    assert_eq!((code, out.as_str()), (2, ""), "a runtime is needed: {err}");
    let deploy = [
        "fn",
        "deploy",
        "shop/cart",
        "-f",
        &file,
        "-r",
        "python3.11",
        "--handler",
        "main",
    ];
    let (code, out, err) = server.cli(&deploy);
    assert_eq!(code, 0, "{err}");
    assert!(out.trim().ends_with("/fn/default/shop/cart"), "{out}");
    let (code, out, err) = server.cli(&["fn", "invoke", "shop/cart"]);
    assert_eq!((code, out.as_str()), (0, "hi"), "{err}");
    let (code, out, err) = server.cli(&["fn", "invoke", "shop/cart", "-o", "json"]);
    let whole: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((code, &whole["status"]), (0, &json!(200)), "{err}");
    assert_eq!(whole["body"], "hi", "{whole:#}");
    assert_eq!(server.cli(&["fn", "invoke", "shop/none"]).0, 3);
    let (code, out, _) = server.cli(&["fn", "ls", "-n", "shop", "-o", "json"]);
    let listed: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((code, &listed[0]["name"]), (0, &json!("cart")));
    let (code, out, _) = server.cli(&["fn", "ls", "-n", "shop", "-o", "yaml"]);
    assert_eq!(code, 0);
    assert!(out.contains("name: cart"), "{out}");
    let (code, out, _) = server.cli(&["fn", "describe", "shop/cart"]);
    assert_eq!(code, 0);
    assert!(out.contains("Instances"), "{out}");
    eventually(
        "the printed line is in the log",
        Duration::from_secs(10),
        || async { server.cli(&["fn", "logs", "shop/cart"]).1 },
        |out| out.contains("called"),
    )
    .await;
    let (code, out, err) = server.cli(&["key", "create", "door", "--function", "shop/cart"]);
    assert_eq!(code, 0, "{err}");
    let secret = out.trim().to_owned();
    let (code, _, err) = server.cli(&["fn", "deploy", "shop/cart", "--require-key", "true"]);
    assert_eq!(code, 0, "{err}");
    let url = format!("{}/fn/default/shop/cart", server.address("invoke"));
    eventually(
        "the key is required",
        Duration::from_secs(5),
        || server.public.get(&url),
        |answer| answer.status == 401,
    )
    .await;
    let opened = server
        .public
        .send(http::Method::GET, &url, &[("x-api-key", &secret)], "")
        .await;
    assert_eq!(opened.ok().text(), "hi");
    let (code, out, err) = server.cli(&["fn", "rm", "shop/cart", "-o", "json"]);
    let removed: Value = serde_json::from_str(&out).expect("JSON");
    let expected = json!([{"namespace": "shop", "name": "cart", "removed": true}]);
    assert_eq!((code, removed), (0, expected), "{err}");
    assert_eq!(server.cli(&["fn", "get", "shop/cart"]).0, 3);
    let (code, out, _) = server.cli(&["ns", "rm", "shop", "-o", "yaml"]);
    assert_eq!((code, out.as_str()), (0, "name: shop\nremoved: true\n"));
    let (code, out, _) = server.cli(&["node", "ls", "-o", "json"]);
    let nodes: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((code, nodes.as_array().map(Vec::len)), (0, Some(1)));
    assert_eq!(server.cli(&["fn", "ls", "--token", "x"]).0, 4);
    assert_eq!(server.cli(&["version"]).0, 0);
    assert_eq!(
        server.cli(&["fn", "ls", "--url", "http://127.0.0.1:9"]).0,
        8
    );
}

#[tokio::test]
async fn node_runs_with_a_package_from_its_registry() {
    let server = Server::start().await;
    let code = "const ms = require('ms');\nmodule.exports.main = async (request) => ({ \
                milliseconds: ms('2 days'), who: process.env.WHO });\n";
    let settings = json!({
        "runtime": "nodejs20",
        "dependencies": r#"{"name": "x", "dependencies": {"ms": "2.1.3"}}"#,
        "env": {"WHO": "node"},
    });
    let deployed = server.deploy("node", code, settings).await;
    assert_eq!(deployed["revision"]["stage"], "running", "{deployed:#}");
    let answer = server.call("node").await.ok().json();
    assert_eq!(answer, json!({"milliseconds": 172_800_000, "who": "node"}));
    let log = server.api("projects/default/namespaces/default/functions/node/build-log");
    let log = server.admin.get(&log).await.ok().text();
    assert!(
        log.contains("added 1 package"),
        "the build log is kept: {log}"
    );
}

#[tokio::test]
async fn log_lines_carry_their_request_and_outlive_the_instance() {
    let server = Server::with_flags(&["--idle-after=2", "--stable-window=2"]).await;
    let code = "import sys\ndef main():\n    print('to stdout')\n    print('to stderr', \
                file=sys.stderr)\n    return 'x'\n";
    server.deploy("talk", code, json!({})).await;
    let id = "0123456789abcdef0123456789abcdef";
    let url = server.url("talk");
    let answer = server
        .public
        .send(http::Method::GET, &url, &[("x-request-id", id)], "")
        .await
        .ok();
    assert_eq!(answer.header("x-request-id"), id);
    server.call("talk").await.ok();
    server
        .ready_instances("talk", 0, Duration::from_secs(30))
        .await;
    let path =
        format!("projects/default/namespaces/default/functions/talk/logs?tail=100&request_id={id}");
    let answer = server.admin.get(&server.api(&path)).await.ok().json();
    let lines: Vec<(&str, &str)> = answer["lines"]
        .as_array()
        .expect("lines")
        .iter()
        .map(|l| {
            (
                l["stream"].as_str().unwrap_or(""),
                l["message"].as_str().unwrap_or(""),
            )
        })
        .collect();
    assert!(lines.contains(&("stdout", "to stdout")), "{lines:?}");
    assert!(lines.contains(&("stderr", "to stderr")), "{lines:?}");
    assert_eq!(lines.len(), 2, "only that request's lines: {lines:?}");
}

#[tokio::test]
async fn the_openapi_document_describes_what_answers() {
    let server = Server::start().await;
    let document = server
        .public
        .get(&server.api("openapi.json"))
        .await
        .ok()
        .json();
    let paths = document["paths"].as_object().expect("paths");
    assert!(paths.len() > 10, "{:?}", paths.keys());
    for path in [
        "/api/v1/projects",
        "/api/v1/nodes",
        "/api/v1/runtimes",
        "/api/v1/version",
    ] {
        assert!(paths.contains_key(path), "{path} in {:?}", paths.keys());
        let url = format!("{}{path}", server.address("api"));
        server.admin.get(&url).await.ok();
    }
}
