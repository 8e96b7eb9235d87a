//! A cluster saved to a file, made anew of one, or of the one member that is left.

use std::{fs, path::Path};

use coracle_controller::{
    BuildError,
    backup::{self, BackupError, Keys},
};
use coracle_model::Timestamp;
use coracle_proto::v1::{self, cluster_client::ClusterClient};

use crate::{
    cluster::Cluster,
    fixture::{PATIENCE, fresh_write, wait},
};

const NOW: Timestamp = Timestamp(1_700_000_000_000);

async fn save(cluster: &Cluster, at: u64, path: &Path) {
    let mut client = ClusterClient::new(cluster.channel(at));
    let answer = client.save_snapshot(v1::SaveSnapshotRequest {}).await;
    let mut pieces = answer.unwrap().into_inner();
    let (mut bytes, mut count) = (Vec::new(), 0);
    while let Some(piece) = pieces.message().await.unwrap() {
        bytes.extend_from_slice(&piece.data);
        count += 1;
    }
    assert!(count > 1, "one piece only");
    backup::write_backup(path, &bytes).unwrap();
    let again = backup::write_backup(path, &bytes);
    assert!(again.is_err(), "an older file is kept");
}

async fn incarnation(cluster: &Cluster, at: u64) -> u64 {
    let status = cluster.management(at).status(v1::StatusRequest {}).await;
    status.unwrap().into_inner().incarnation
}

async fn names(cluster: &Cluster, at: u64) -> Vec<String> {
    wait("an answer", || async {
        let names = cluster.names_at(at).await;
        names.map_err(|status| status.to_string())
    })
    .await
}

#[tokio::test]
async fn a_cluster_is_saved_by_any_member_and_made_anew_of_the_file() {
    let cluster = Cluster::new(3).await;
    let leader = cluster.leader().await;
    for number in 0..60 {
        let name = format!("n-{number}");
        cluster
            .write_at(leader, fresh_write(), &name)
            .await
            .unwrap();
    }
    let before = incarnation(&cluster, leader).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("saved");
    save(&cluster, leader % 3 + 1, &path).await;
    cluster
        .write_at(leader, fresh_write(), "too-late")
        .await
        .unwrap();
    cluster.stop().await;

    let info = backup::inspect(&path).unwrap();
    assert_eq!(info.voters, [1, 2, 3]);
    assert_eq!(info.member, leader % 3 + 1);
    assert_eq!((info.incarnation, info.projects), (before, 1));
    assert!(info.index >= 60);

    let mut restored = Cluster::empty();
    let data_dir = restored.path(7);
    fs::create_dir_all(&data_dir).unwrap();
    assert_eq!(
        backup::restore(&path, &data_dir, 7, Keys::Keep, NOW).unwrap(),
        info
    );
    let twice = backup::restore(&path, &data_dir, 7, Keys::Keep, NOW);
    assert!(matches!(twice, Err(BackupError::Occupied { .. })));
    restored.start(7, Vec::new()).await;
    assert_eq!(restored.leader().await, 7);
    assert_eq!(incarnation(&restored, 7).await, before + 1);
    let found = names(&restored, 7).await;
    assert!(found.contains(&"n-59".to_owned()) && !found.contains(&"too-late".to_owned()));
    restored.write_at(7, fresh_write(), "after").await.unwrap();
    restored.stop().await;

    // Every byte counts.
    let bytes = fs::read(&path).unwrap();
    for at in [0, 9, 40, bytes.len() / 2, bytes.len() - 1] {
        let mut bad = bytes.clone();
        bad[at] ^= 1;
        fs::write(&path, &bad).unwrap();
        match backup::inspect(&path) {
            Err(_) => {}
            // What the header says beside the state is not covered by its hash.
            Ok(other) => assert!(at == 40 && other != info, "byte {at}"),
        }
    }
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    assert!(backup::inspect(&path).is_err(), "cut");
}

#[tokio::test]
async fn one_survivor_goes_on_and_those_that_it_left_behind_are_turned_away() {
    let mut cluster = Cluster::new(3).await;
    let leader = cluster.leader().await;
    for number in 0..70 {
        let name = format!("n-{number}");
        cluster
            .write_at(leader, fresh_write(), &name)
            .await
            .unwrap();
    }
    let survivor = leader % 3 + 1;
    assert_eq!(names(&cluster, survivor).await.len(), 70);
    let before = incarnation(&cluster, survivor).await;
    for id in 1..=3 {
        cluster.kill(id).await;
    }
    let path = cluster.path(survivor);
    let survey = backup::survey(&path, survivor).unwrap();
    let recovered = backup::recover(&path, survivor, NOW).unwrap();
    let mut others: Vec<u64> = (1..=3).filter(|id| *id != survivor).collect();
    assert_eq!(recovered.lost, others);
    assert_eq!(recovered.incarnation, before + 1);
    assert!(recovered.last_index > 70 && recovered.doubtful <= recovered.last_index);
    assert!(recovered.kept.exists());
    assert_eq!(
        (survey.last_index, survey.others),
        (recovered.last_index, recovered.lost)
    );

    cluster.start(survivor, vec![1, 2, 3]).await;
    assert_eq!(cluster.leader().await, survivor);
    assert_eq!(names(&cluster, survivor).await.len(), 70);
    assert_eq!(cluster.listed().await, (vec![survivor], vec![]));
    assert_eq!(incarnation(&cluster, survivor).await, before + 1);
    cluster
        .write_at(survivor, fresh_write(), "after")
        .await
        .unwrap();

    // A new one joins; an old one does not, whatever it knows.
    cluster.start(4, Vec::new()).await;
    let add = |leader: coracle_controller::Controller| async move {
        leader.add_learner(4, PATIENCE).await
    };
    cluster.changed("the learner to be added", add).await;
    let old = others.remove(0);
    cluster.start(old, vec![1, 2, 3]).await;
    wait("the learner to catch up", || async {
        match cluster.names_at(4).await {
            Ok(names) if names.len() == 71 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let status = cluster.at(old).status();
    assert_eq!((status.leader, status.leading), (None, false));
    assert!(cluster.at(survivor).status().leading);
    cluster.stop().await;
}

#[tokio::test]
async fn a_damaged_log_is_set_aside_and_its_member_comes_back_under_a_new_id() {
    let mut cluster = Cluster::new(3).await;
    let leader = cluster.leader().await;
    for number in 0..120 {
        let name = format!("n-{number}");
        cluster
            .write_at(leader, fresh_write(), &name)
            .await
            .unwrap();
    }
    let broken = leader % 3 + 1;
    assert_eq!(names(&cluster, broken).await.len(), 120);
    cluster.kill(broken).await;
    let snapshots = cluster.path(broken).join("log/snapshots");
    for file in fs::read_dir(snapshots).unwrap() {
        fs::write(file.unwrap().path(), b"not what it was").unwrap();
    }
    let Err(BuildError::SetAside { member, path, .. }) =
        cluster.config(broken, vec![1, 2, 3]).build().await
    else {
        panic!("it was not set aside");
    };
    assert_eq!(member, broken);
    assert!(path.join("snapshots").exists(), "kept");
    // Not even with a clean slate: it may have voted.
    let again = cluster.config(broken, vec![1, 2, 3]).build().await;
    assert!(matches!(again, Err(BuildError::Spent { member }) if member == broken));
    assert!(!cluster.path(broken).join("log").exists());

    cluster.start_in(broken, 4, Vec::new()).await;
    let remove = |leader: coracle_controller::Controller| async move {
        leader.remove_member(broken, PATIENCE).await
    };
    cluster
        .changed("the spent member to be removed", remove)
        .await;
    let add = |leader: coracle_controller::Controller| async move {
        leader.add_learner(4, PATIENCE).await
    };
    cluster.changed("the learner to be added", add).await;
    let rise =
        |leader: coracle_controller::Controller| async move { leader.promote(4, PATIENCE).await };
    cluster.changed("the learner to rise", rise).await;
    assert_eq!(names(&cluster, 4).await.len(), 120);
    cluster.stop().await;
}
