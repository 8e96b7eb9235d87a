//! Several gateways in front of the same instances.

use std::time::Duration;

use coracle_tests::{
    Cluster,
    load::{Load, Target},
};
use serde_json::json;

const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn three_gateways_share_instances_of_one_slot_and_lose_no_call() {
    let cluster = Cluster::start(1, 2, 3).await;
    let settings = json!({"scale": {"min": 2, "max": 6}, "env": {"FAKE_LATENCY_MS": "30"}});
    cluster.deploy("g1", "shared", settings).await;
    cluster.ready_instances("g1", "shared", 2, SOON).await;
    let loads = ["g1", "g2", "g3"].map(|g| Load::start(cluster.invoke(g, "shared"), 20));
    for load in loads {
        load.has_sent(100).await;
        let report = load.stop().await;
        assert!(report.failures().is_empty(), "{:?}", report.failures());
    }
}

#[tokio::test]
async fn a_rolling_restart_of_gateways_loses_no_call() {
    let mut cluster = Cluster::start(1, 1, 2).await;
    cluster
        .deploy("g1", "warm", json!({"scale": {"min": 2, "max": 4}}))
        .await;
    cluster.ready_instances("g1", "warm", 2, SOON).await;
    let target = |gateway: &str| Target {
        url: cluster.invoke(gateway, "warm"),
        readiness: format!("{}/readyz", cluster.url(gateway, 9090)),
    };
    let load = Load::balanced(["g1", "g2"].map(target).into(), 100);
    load.has_sent(10).await;
    for gateway in ["g1", "g2"] {
        cluster.terminate(gateway).await;
        cluster.restart(gateway).await;
        // Until the balancer has noticed, and a while longer.
        load.has_sent(load.sent() + 50).await;
    }
    let report = load.stop().await;
    assert!(report.failures().is_empty(), "{:?}", report.failures());
}
