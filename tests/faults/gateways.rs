//! Faults of gateways: the others go on, and a rolling restart costs no call.

use std::time::Duration;

use coracle_tests::{
    Cluster,
    load::{Load, Target},
};
use serde_json::json;

use crate::{Options, table::Table};

const CALLS_PER_SECOND: u32 = 250;

async fn scene() -> Cluster {
    let cluster = Cluster::start(1, 2, 2).await;
    cluster
        .deploy("g1", "warm", json!({"scale": {"min": 2, "max": 10}}))
        .await;
    cluster
        .ready_instances("g1", "warm", 2, Duration::from_secs(20))
        .await;
    for gateway in ["g1", "g2"] {
        let _first = cluster.call(gateway, "warm").await.ok();
    }
    cluster
}

/// Only what was inside the killed gateway fails; the other one's callers see nothing.
pub(crate) async fn kill(options: Options, table: &mut Table) {
    let mut cluster = scene().await;
    for run in 0..options.runs {
        let (victim, other) = if run % 2 == 0 {
            ("g1", "g2")
        } else {
            ("g2", "g1")
        };
        let spared = Load::start(cluster.invoke(other, "warm"), CALLS_PER_SECOND);
        cluster.kill(victim);
        cluster.restart(victim).await;
        let _answers = cluster.call(victim, "warm").await.ok();
        let report = spared.stop().await;
        let failed = report.failures();
        let wrong = (!failed.is_empty()).then(|| format!("{other} failed calls: {failed:?}"));
        table.fault(
            &format!("{victim} killed; {} calls through {other}", report.total()),
            wrong.as_slice(),
        );
    }
}

/// Clients are spread over the gateways that say they are ready, as whatever stands in front does.
pub(crate) async fn roll(options: Options, table: &mut Table) {
    let mut cluster = scene().await;
    for _ in 0..options.runs {
        let target = |gateway: &str| Target {
            url: cluster.invoke(gateway, "warm"),
            readiness: format!("{}/readyz", cluster.url(gateway, 9090)),
        };
        let load = Load::balanced(["g1", "g2"].map(target).into(), 2 * CALLS_PER_SECOND);
        for gateway in ["g1", "g2"] {
            cluster.terminate(gateway).await;
            cluster.restart(gateway).await;
            // Until the balancer has noticed, and a while longer.
            load.has_sent(load.sent() + 200).await;
        }
        let report = load.stop().await;
        let failed = report.failures();
        let wrong = (!failed.is_empty()).then(|| format!("failed calls: {failed:?}"));
        table.fault(
            &format!("both restarted in turn; {} calls", report.total()),
            wrong.as_slice(),
        );
    }
}
