//! Nodes that leave: drained, killed, come back.

use std::time::Duration;

use coracle_tests::{Cluster, Role, eventually, load::Load};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);

fn on(described: &Value, node: &str) -> usize {
    let instances = described["instances"].as_array().map(Vec::as_slice);
    let there = |instance: &&Value| instance["node"] == node;
    instances.unwrap_or_default().iter().filter(there).count()
}

async fn id_of(cluster: &Cluster, name: &str) -> String {
    let nodes = cluster.nodes("g1").await;
    let found = nodes.iter().find(|node| node["name"] == name);
    found
        .and_then(|node| node["id"].as_str())
        .expect("an id")
        .to_owned()
}

#[tokio::test]
async fn a_drain_under_load_loses_no_call_and_ends_with_the_last_process() {
    let cluster = Cluster::start(1, 2, 1).await;
    cluster
        .deploy(
            "g1",
            "kept",
            json!({"scale": {"min": 2, "max": 4}, "env": {"FAKE_LATENCY_MS": "20"}}),
        )
        .await;
    cluster.ready_instances("g1", "kept", 2, SOON).await;
    let n1 = id_of(&cluster, "n1").await;
    let load = Load::start(cluster.invoke("g1", "kept"), 40);
    let (status, out, error) = cluster.cli("g1", &["node", "drain", "n1", "--deadline", "1m"]);
    assert_eq!(status, 0, "{out}{error}");
    let described = cluster.describe("g1", "kept").await;
    assert_eq!(on(&described, &n1), 0, "{described}");
    let report = load.stop().await;
    assert!(report.failures().is_empty(), "{:?}", report.failures());
    cluster.ready_instances("g1", "kept", 2, SOON).await;

    // The last node that could hold it.
    let (status, _, error) = cluster.cli("g1", &["node", "drain", "n2", "--deadline", "1m"]);
    assert_ne!(status, 0);
    assert!(error.contains("kept"), "{error}");
    let (status, _, error) = cluster.cli("g1", &["node", "uncordon", "n1"]);
    assert_eq!(status, 0, "{error}");
}

#[tokio::test]
async fn a_lost_node_is_replaced_and_settled_when_it_comes_back() {
    let flags = [(Role::Controller, "--node-grace=2")];
    let cluster = Cluster::with_flags(1, 2, 1, &flags).await;
    cluster
        .deploy("g1", "kept", json!({"scale": {"min": 2, "max": 2}}))
        .await;
    cluster.ready_instances("g1", "kept", 2, SOON).await;
    let n1 = id_of(&cluster, "n1").await;
    cluster.signal("n1", rustix::process::Signal::STOP);
    let _replaced = eventually(
        "both instances answer on the other node",
        SOON,
        || cluster.describe("g1", "kept"),
        |described| {
            let ready = |i: &&Value| i["state"] == "ready" && i["node"] != n1.as_str();
            let instances = described["instances"].as_array().map(Vec::as_slice);
            instances.unwrap_or_default().iter().filter(ready).count() == 2
        },
    )
    .await;
    cluster.signal("n1", rustix::process::Signal::CONT);
    // What it still runs and what was started in its place: two of them stay.
    let _settled = eventually(
        "both nodes are ready and run two instances together",
        SOON,
        || cluster.nodes("g1"),
        |nodes| {
            let running: u64 = nodes
                .iter()
                .filter_map(|node| node["running"].as_u64())
                .sum();
            nodes.iter().all(|node| node["state"] == "ready") && running == 2
        },
    )
    .await;
    cluster.ready_instances("g1", "kept", 2, SOON).await;
}
