//! Deploying, updating, scaling.

use std::time::Duration;

use coracle_tests::{Client, Server, load::Load};
use serde_json::json;
use tokio::task::JoinSet;

#[tokio::test]
async fn an_update_under_load_loses_no_request() {
    let server = Server::start().await;
    let code =
        |n: u32| format!("import time\ndef main():\n    time.sleep(0.02)\n    return 'v{n}'\n");
    let settings = json!({"scale": {"min": 2, "max": 6}, "cpu_millis": 500});
    server.deploy("app", &code(1), settings).await;
    server.call("app").await.ok();
    let load = Load::start(server.url("app"), 50);
    for n in 2..=4 {
        let updated = server.update("app", json!({"code": code(n)})).await;
        assert_eq!(updated["revision"]["stage"], "running", "{updated:#}");
        // The floor holds at all times, right after an update too.
        assert!(
            updated["instances"]["ready"].as_u64() >= Some(2),
            "{updated:#}"
        );
    }
    coracle_tests::eventually(
        "the newest code answers",
        Duration::from_secs(10),
        || server.call("app"),
        |answer| answer.text() == "v4",
    )
    .await;
    let report = load.stop().await;
    assert_eq!(report.failures(), Default::default(), "{report:#?}");
    // The load went on through the updates: it saw revisions come and go.
    assert!(report.bodies.len() >= 3, "{report:?}");
}

#[tokio::test]
async fn scales_to_five_under_load_to_zero_without_and_back() {
    let server =
        Server::with_flags(&["--idle-after=3", "--stable-window=4", "--panic-window=2"]).await;
    let code = "import time\ndef main():\n    time.sleep(0.3)\n    return 'ok'\n";
    let settings = json!({"scale": {"min": 0, "max": 5}, "cpu_millis": 200});
    server.deploy("burst", code, settings).await;
    server.call("burst").await.ok();
    // 20 requests a second of 0.3 s each keep six busy; five are allowed.
    let load = Load::start(server.url("burst"), 20);
    server
        .ready_instances("burst", 5, Duration::from_secs(40))
        .await;
    let report = load.stop().await;
    let wrong: Vec<_> = report
        .failures()
        .into_keys()
        .filter(|o| !o.starts_with("429"))
        .collect();
    assert!(wrong.is_empty(), "{report:#?}");
    server
        .ready_instances("burst", 0, Duration::from_secs(30))
        .await;
    assert_eq!(server.call("burst").await.ok().text(), "ok");
    let decisions = server.describe("burst").await["decisions"].to_string();
    for input in ["parked", "idle for 3 s"] {
        assert!(decisions.contains(input), "{input} in {decisions}");
    }
}

#[tokio::test]
async fn a_hundred_calls_at_once_to_zero_are_all_answered() {
    let server = Server::with_flags(&["--idle-after=2", "--stable-window=2"]).await;
    let settings = json!({"scale": {"min": 0, "max": 4}});
    server
        .deploy("sleepy", "def main():\n    return 'awake'\n", settings)
        .await;
    server
        .ready_instances("sleepy", 0, Duration::from_secs(30))
        .await;
    let mut calls = JoinSet::new();
    let client = Client::new(None);
    for _ in 0..100 {
        let (client, url) = (client.clone(), server.url("sleepy"));
        calls.spawn(async move { client.get(&url).await });
    }
    while let Some(answer) = calls.join_next().await {
        assert_eq!(answer.expect("no panic").ok().text(), "awake");
    }
}

#[tokio::test]
async fn a_cold_start_shows_its_phases() {
    let server = Server::with_flags(&["--idle-after=2", "--stable-window=2"]).await;
    server
        .deploy("cold", "def main():\n    return 'x'\n", json!({}))
        .await;
    server
        .ready_instances("cold", 0, Duration::from_secs(30))
        .await;
    let answer = server.call("cold").await.ok();
    for phase in ["queue", "schedule", "start", "init", "run"] {
        assert!(
            answer.phase(phase).is_some(),
            "{phase} in {}",
            answer.header("server-timing")
        );
    }
    let warm = server.call("cold").await.ok();
    assert!(
        warm.phase("start").is_none_or(|ms| ms == 0.0),
        "{}",
        warm.header("server-timing")
    );
}

#[tokio::test]
async fn a_floor_is_kept_and_a_disabled_function_has_nothing() {
    let server = Server::start().await;
    server
        .deploy(
            "floor",
            "def main():\n    return 'x'\n",
            json!({"scale": {"min": 2, "max": 3}}),
        )
        .await;
    server
        .ready_instances("floor", 2, Duration::from_secs(20))
        .await;
    let url = server.api("projects/default/namespaces/default/functions/floor");
    server
        .admin
        .json(http::Method::PATCH, &url, &json!({"disabled": true}))
        .await
        .ok();
    server
        .ready_instances("floor", 0, Duration::from_secs(20))
        .await;
    assert_eq!(server.call("floor").await.status, 503);
    server
        .admin
        .json(http::Method::PATCH, &url, &json!({"disabled": false}))
        .await
        .ok();
    server
        .ready_instances("floor", 2, Duration::from_secs(20))
        .await;
    assert_eq!(server.call("floor").await.ok().text(), "x");
    let none = json!({"scale": {"min": 0, "max": 0}});
    server
        .admin
        .json(http::Method::PATCH, &url, &none)
        .await
        .ok();
    server
        .ready_instances("floor", 0, Duration::from_secs(20))
        .await;
    let refused = server.call("floor").await;
    assert_eq!(refused.status, 503);
    assert_eq!(refused.header("x-coracle-error"), "no_instances");
    server
        .admin
        .send(http::Method::DELETE, &url, &[], "")
        .await
        .ok();
    assert_eq!(server.call("floor").await.status, 404);
}
