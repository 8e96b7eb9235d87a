//! Loss of controllers.

use std::time::Duration;

use coracle_tests::{Cluster, Registers, Role, eventually, load::Load};
use serde_json::json;

const SOON: Duration = Duration::from_secs(20);

async fn all_vote(cluster: &Cluster) {
    let _voters = eventually(
        "all controllers vote",
        SOON,
        || cluster.members("g1"),
        |members| members.iter().all(|member| member["standing"] == "voter"),
    )
    .await;
}

#[tokio::test]
async fn the_leader_is_killed_and_nothing_acknowledged_is_lost_and_no_warm_call_fails() {
    let mut cluster = Cluster::start(3, 1, 2).await;
    all_vote(&cluster).await;
    cluster
        .deploy("g1", "warm", json!({"scale": {"min": 1, "max": 3}}))
        .await;
    cluster.ready_instances("g1", "warm", 1, SOON).await;
    let _first = cluster.call("g1", "warm").await.ok();
    let instances = cluster.instances("g1", "warm").await;
    let gateways = ["g1", "g2"].map(|g| cluster.url(g, 8081)).into();
    let registers = Registers::start(cluster.admin.clone(), gateways, 8, 100).await;
    let warm = Load::start(cluster.invoke("g1", "warm"), 50);
    for _ in 0..2 {
        let before = registers.acknowledged().await;
        let leader = cluster.leader().await;
        cluster.kill(&leader);
        let _more = eventually(
            "writes go on under another leader",
            SOON,
            || registers.acknowledged(),
            |now| *now > before + 50,
        )
        .await;
        cluster.restart(&leader).await;
    }
    let tally = registers.stop().await;
    assert!(tally.violations.is_empty(), "{tally:?}");
    assert!(tally.reads > 0, "{tally:?}");
    let report = warm.stop().await;
    assert!(report.failures().is_empty(), "{:?}", report.failures());
    // The new leaders kept what ran; more may have been started for the load.
    let now = cluster.instances("g1", "warm").await;
    assert!(instances.iter().all(|id| now.contains(id)), "{now:?}");
}

#[tokio::test]
async fn without_any_controller_warm_calls_go_on_and_cold_ones_wait_for_a_leader() {
    let flags = [
        (Role::Controller, "--idle-after=2"),
        (Role::Controller, "--stable-window=4"),
    ];
    let mut cluster = Cluster::with_flags(1, 1, 1, &flags).await;
    cluster
        .deploy("g1", "warm", json!({"scale": {"min": 1, "max": 3}}))
        .await;
    cluster
        .deploy("g1", "cold", json!({"timeout_seconds": 60}))
        .await;
    cluster.ready_instances("g1", "warm", 1, SOON).await;
    cluster
        .ready_instances("g1", "cold", 0, Duration::from_secs(90))
        .await;
    cluster.kill("c1");
    for _ in 0..20 {
        let _answer = cluster.call("g1", "warm").await.ok();
    }
    let url = cluster.invoke("g1", "cold");
    let public = cluster.public.clone();
    let parked = tokio::spawn(async move { public.get(&url).await });
    cluster.restart("c1").await;
    let _answer = parked.await.expect("no panic").ok();
}

#[tokio::test]
async fn a_controller_is_replaced_by_another_one() {
    let mut cluster = Cluster::start(3, 0, 1).await;
    all_vote(&cluster).await;
    let leader = cluster.leader().await;
    let members = cluster.members("g1").await;
    let id = |name: &str| {
        let found = members.iter().find(|member| member["name"] == name);
        found
            .and_then(|member| member["id"].as_u64())
            .expect("an id")
            .to_string()
    };
    // The leader itself: leadership moves first.
    let (status, _, error) = cluster.cli("g1", &["cluster", "remove", &id(&leader)]);
    assert_eq!(status, 0, "{error}");
    let code = cluster.ended(&leader).await;
    assert_ne!(
        code, 0,
        "a removed controller says so and does not come back by itself"
    );
    let _left = eventually(
        "two are left, and one of them leads",
        SOON,
        || cluster.members("g1"),
        |members| members.len() == 2 && members.iter().any(|member| member["leader"] == true),
    )
    .await;
    cluster.add("c4", Role::Controller).await;
    let three = eventually(
        "three vote again",
        SOON,
        || cluster.members("g1"),
        |members| {
            members
                .iter()
                .filter(|member| member["standing"] == "voter")
                .count()
                == 3
        },
    )
    .await;
    let ids: Vec<_> = three
        .iter()
        .filter_map(|member| member["id"].as_u64())
        .collect();
    assert!(ids.contains(&4), "numbers are not given out again: {ids:?}");
}
