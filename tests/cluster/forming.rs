//! Becoming a cluster, and what does not become part of one.

use std::{fs, time::Duration};

use coracle_tests::{Cluster, Role, eventually};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn three_controllers_two_nodes_and_two_gateways_serve_a_function() {
    let cluster = Cluster::start(3, 2, 2).await;
    let voters = eventually(
        "all three vote",
        SOON,
        || cluster.members("g2"),
        |members| members.iter().filter(|m| m["standing"] == "voter").count() == 3,
    )
    .await;
    assert_eq!(voters.iter().filter(|m| m["leader"] == true).count(), 1);
    cluster
        .deploy("g1", "hello", json!({"scale": {"min": 2, "max": 4}}))
        .await;
    cluster.ready_instances("g2", "hello", 2, SOON).await;
    for gateway in ["g1", "g2"] {
        let _answer = cluster.call(gateway, "hello").await.ok();
    }
    // A floor of two does not depend on one machine.
    let described = cluster.describe("g1", "hello").await;
    let nodes: Vec<_> = described["instances"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|instance| instance["node"].to_string())
        .collect();
    assert_ne!(nodes[0], nodes[1], "{described}");
}

/// What a machine that may not join is told, in one sentence, and nothing has changed.
#[tokio::test]
async fn a_machine_that_may_not_join_is_told_why_and_changes_nothing() {
    let mut cluster = Cluster::start(1, 1, 1).await;
    let good = cluster.join_token(Role::Agent, 600, 1).await;
    let gateway = cluster.join_token(Role::Gateway, 600, 1).await;
    let used = cluster.join_token(Role::Agent, 600, 1).await;
    let revoked = cluster.join_token(Role::Agent, 600, 1).await;
    let url = cluster.api(
        "g1",
        &format!("join-tokens/{}", revoked["id"].as_str().expect("id")),
    );
    let _revoked = cluster
        .admin
        .send(http::Method::DELETE, &url, &[], "")
        .await
        .ok();
    cluster.insert("n2", Role::Agent);
    cluster.spawn("n2", &Cluster::join_flags(&used));
    cluster.ready("n2").await;

    let with = |made: &Value, field: &str, text: &str| {
        let mut changed = made.clone();
        changed[field] = json!(text);
        Cluster::join_flags(&changed)
    };
    let id = good["id"].as_str().expect("id");
    let cases = [
        (
            with(&good, "token", &format!("{id}${}", "0".repeat(64))),
            "token",
        ),
        (Cluster::join_flags(&gateway), "gateway"),
        (Cluster::join_flags(&used), "used"),
        (Cluster::join_flags(&revoked), "token"),
        (
            with(&good, "ca_hash", &format!("sha256:{}", "0".repeat(64))),
            "CA",
        ),
    ];
    for (number, (flags, word)) in cases.into_iter().enumerate() {
        let name = format!("n{}", number + 3);
        cluster.insert(&name, Role::Agent);
        cluster.spawn(&name, &flags);
        let code = cluster.ended(&name).await;
        let said = cluster.log(&name);
        let last = said.lines().last().unwrap_or_default().to_owned();
        assert_ne!(code, 0, "{said}");
        assert!(
            last.contains("] coracle: ") && last.contains(word),
            "{word}: {said}"
        );
        assert!(
            !cluster.data(&name).join("identity.json").exists(),
            "{said}"
        );
    }
    let nodes = cluster.nodes("g1").await;
    assert_eq!(nodes.len(), 2, "{nodes:?}");
    // The good token was refused to none of them.
    cluster.insert("n9", Role::Agent);
    cluster.spawn("n9", &Cluster::join_flags(&good));
    cluster.ready("n9").await;
}

#[tokio::test]
async fn a_node_of_a_name_that_is_connected_is_refused_and_a_reinstalled_one_comes_back() {
    let mut cluster = Cluster::start(1, 1, 1).await;
    let before = cluster.nodes("g1").await[0]["id"].clone();
    cluster.insert("n2", Role::Agent);
    let mut flags = cluster.joining(Role::Agent).await;
    flags.push("--node-name=n1".into());
    cluster.spawn_replacing("n2", &flags);
    let code = cluster.ended("n2").await;
    assert_ne!(code, 0, "{}", cluster.log("n2"));
    assert!(cluster.log("n2").contains("n1"), "{}", cluster.log("n2"));

    cluster.kill("n1");
    fs::remove_dir_all(cluster.data("n1")).expect("remove");
    let _gone = eventually(
        "the node is not connected",
        SOON,
        || cluster.nodes("g1"),
        |nodes| {
            nodes
                .iter()
                .any(|node| node["name"] == "n1" && node["state"] != "ready")
        },
    )
    .await;
    let flags = cluster.joining(Role::Agent).await;
    cluster.spawn("n1", &flags);
    cluster.ready("n1").await;
    let after = eventually(
        "the node is back under its name",
        SOON,
        || cluster.nodes("g1"),
        |nodes| {
            nodes
                .iter()
                .any(|n| n["name"] == "n1" && n["state"] == "ready" && n["id"] != before)
        },
    )
    .await;
    assert_eq!(
        after.iter().filter(|n| n["name"] == "n1").count(),
        1,
        "{after:?}"
    );
}

#[tokio::test]
async fn a_directory_of_another_cluster_and_an_address_in_use_are_refused() {
    let mut one = Cluster::start(1, 1, 1).await;
    let two = Cluster::start(1, 0, 1).await;
    one.terminate("n1").await;
    let flags = two.joining(Role::Agent).await;
    one.spawn("n1", &flags);
    let code = one.ended("n1").await;
    assert_ne!(code, 0);
    assert!(
        one.log("n1").contains("has joined cluster"),
        "{}",
        one.log("n1")
    );
    one.restart("n1").await;

    one.insert("c2", Role::Controller);
    let mut flags = one.joining(Role::Controller).await;
    let taken = one.url("c1", 7400).replace("http://", "");
    flags.extend([format!("--listen={taken}"), format!("--advertise={taken}")]);
    one.spawn_replacing("c2", &flags);
    let code = one.ended("c2").await;
    assert_ne!(code, 0);
    let said = one.log("c2");
    assert!(said.contains(&taken), "{said}");
    assert_eq!(one.members("g1").await.len(), 1, "{said}");
}
