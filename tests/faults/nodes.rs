//! Faults of nodes, and scale.

use std::time::Duration;

use coracle_tests::{Cluster, Role, eventually, load::Load};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{Options, table::Table};

/// How long a silent node keeps its instances here; the default is longer than a test should be.
const GRACE: &str = "--node-grace=3";

pub(crate) async fn kill(options: Options, table: &mut Table) {
    let mut cluster = Cluster::with_flags(1, 3, 1, &[(Role::Controller, GRACE)]).await;
    cluster
        .deploy("g1", "kept", json!({"scale": {"min": 3, "max": 10}}))
        .await;
    cluster
        .ready_instances("g1", "kept", 3, Duration::from_secs(20))
        .await;
    let mut times = Vec::new();
    for run in 0..options.runs {
        let victim = format!("n{}", 1 + run % 3);
        let calls = Load::start(cluster.invoke("g1", "kept"), 50);
        cluster.kill(&victim);
        let began = Instant::now();
        let _replaced = eventually(
            "three instances answer on the nodes that are left",
            Duration::from_secs(30),
            || cluster.describe("g1", "kept"),
            |described| {
                let instances = described["instances"].as_array().map(Vec::as_slice);
                let alive = |i: &&Value| i["state"] == "ready" && i["node"] != victim.as_str();
                instances.unwrap_or_default().iter().filter(alive).count() == 3
            },
        )
        .await;
        times.push(began.elapsed());
        let report = calls.stop().await;
        cluster.restart(&victim).await;
        table.fault(
            &format!(
                "{victim} killed; replaced after {} ms; {} calls, not answered by the function: {:?}",
                began.elapsed().as_millis(),
                report.total(),
                report.failures()
            ),
            &[],
        );
    }
    table.spread("from the kill to three ready instances elsewhere", times);
}

/// Up from nothing, down to nothing, and again: every call below the queue's bound is answered.
pub(crate) async fn scale(options: Options, table: &mut Table) {
    let flags = [
        (Role::Controller, "--idle-after=2"),
        (Role::Controller, "--stable-window=4"),
    ];
    let cluster = Cluster::with_flags(1, 2, 2, &flags).await;
    let settings = json!({"scale": {"min": 0, "max": 20}, "env": {"FAKE_LATENCY_MS": "20"}});
    cluster.deploy("g1", "elastic", settings).await;
    let calls = 100_000 / u64::from(options.runs.max(1));
    for _ in 0..options.runs {
        let loads = ["g1", "g2"].map(|g| Load::start(cluster.invoke(g, "elastic"), 250));
        let began = Instant::now();
        tokio::time::sleep(Duration::from_millis(calls * 2)).await;
        let (mut total, mut wrong) = (0, Vec::new());
        for load in loads {
            let report = load.stop().await;
            total += report.total();
            let failed = report.failures();
            if !failed.is_empty() {
                wrong.push(format!("{failed:?}"));
            }
        }
        let took = began.elapsed();
        cluster
            .ready_instances("g1", "elastic", 0, Duration::from_secs(60))
            .await;
        table.fault(
            &format!("{total} calls in {} s, then none left", took.as_secs()),
            &wrong,
        );
    }
}
