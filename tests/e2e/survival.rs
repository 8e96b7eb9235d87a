//! Killed processes: nothing is lost, instances are adopted and not restarted.

use std::time::Duration;

use coracle_tests::{Server, ServerOptions, eventually, load::Load};
use serde_json::json;

/// Answers with the moment its module was loaded: the same text means the same instance.
const WHO: &str = "import time\nborn = str(time.time_ns())\ndef main():\n    return born\n";

#[tokio::test]
async fn kill_9_loses_nothing_and_instances_are_adopted() {
    let mut server = Server::start().await;
    server
        .deploy("who", WHO, json!({"scale": {"min": 1, "max": 1}}))
        .await;
    let before = server.call("who").await.ok().text();
    server.kill();
    server.start_processes().await;
    let after = eventually(
        "the function answers again",
        Duration::from_secs(15),
        || server.call("who"),
        |answer| answer.status == 200,
    )
    .await;
    assert_eq!(
        after.text(),
        before,
        "the instance was adopted, not restarted"
    );
    server
        .ready_instances("who", 1, Duration::from_secs(10))
        .await;
    // And the control plane goes on: logs, a new revision.
    let updated = server
        .update("who", json!({"description": "changed", "code": WHO}))
        .await;
    assert_eq!(updated["description"], "changed");
    server
        .deploy("other", "def main():\n    return 'x'\n", json!({}))
        .await;
    assert_eq!(server.call("other").await.ok().text(), "x");
}

#[tokio::test]
async fn a_term_signal_drains_and_leaves_instances_for_the_next_start() {
    let mut server = Server::start().await;
    let code = "import time\nborn = str(time.time_ns())\ndef main():\n    time.sleep(2)\n    return born\n";
    server
        .deploy("who", code, json!({"scale": {"min": 1, "max": 1}}))
        .await;
    let before = server.call("who").await.ok().text();
    let in_flight = || async { server.metric("coracle_gateway_requests_in_flight").await };
    let limit = Duration::from_secs(5);
    // Not the first call's, which is counted until its connection noticed the end.
    eventually("nothing runs", limit, in_flight, |n| *n == 0.0).await;
    let running = {
        let (client, url) = (server.public.clone(), server.url("who"));
        tokio::spawn(async move { client.get(&url).await })
    };
    eventually("the request runs", limit, in_flight, |n| *n >= 1.0).await;
    server.ask_to_stop();
    let readyz = format!("{}/readyz", server.address("admin"));
    eventually(
        "it says that it takes nothing new",
        Duration::from_secs(1),
        || async { server.public.get(&readyz).await.status },
        |status| *status == 503,
    )
    .await;
    server.has_stopped().await;
    assert_eq!(
        running.await.expect("no panic").ok().text(),
        before,
        "the request was finished"
    );
    server.start_processes().await;
    assert_eq!(
        server.call("who").await.ok().text(),
        before,
        "the instance was adopted"
    );
}

#[tokio::test]
async fn containerd_killed_and_restarted_costs_no_instance() {
    let mut server = Server::start().await;
    server
        .deploy("who", WHO, json!({"scale": {"min": 1, "max": 1}}))
        .await;
    let before = server.call("who").await.ok().text();
    let load = Load::start(server.url("who"), 20);
    server.kill_containerd();
    server.start_containerd().await;
    // New containers can be made again.
    server
        .deploy("next", "def main():\n    return 'new'\n", json!({}))
        .await;
    assert_eq!(server.call("next").await.ok().text(), "new");
    let report = load.stop().await;
    assert_eq!(report.failures(), Default::default(), "{report:#?}");
    assert_eq!(
        report.bodies.keys().collect::<Vec<_>>(),
        [&before],
        "never restarted"
    );
}

#[tokio::test]
async fn the_three_roles_run_as_three_processes() {
    let options = ServerOptions {
        apart: true,
        ..ServerOptions::default()
    };
    let mut server = Server::with(options).await;
    server
        .deploy("who", WHO, json!({"scale": {"min": 1, "max": 1}}))
        .await;
    let before = server.call("who").await.ok().text();
    server.kill();
    server.start_processes().await;
    let after = eventually(
        "the function answers again",
        Duration::from_secs(15),
        || server.call("who"),
        |answer| answer.status == 200,
    )
    .await;
    assert_eq!(
        after.text(),
        before,
        "the instance was adopted, not restarted"
    );
}
