//! Artifacts in a cluster of three: copied, missed, damaged, collected.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use coracle_controller::{ChangeError, ChangeRefused};
use coracle_model::{Digest, Operation, ScaleBounds, operation::CreateNamespace};
use coracle_proto::{Wire as _, v1};
use tonic::{Code, Status};

use crate::{
    agent::Agent,
    cluster::Cluster,
    fixture::{PATIENCE, create, fresh_write, named, wait},
};

const ALL: [u64; 3] = [1, 2, 3];

impl Cluster {
    /// With the namespace that functions go to.
    async fn with_namespace(size: u64) -> Self {
        let cluster = Self::new(size).await;
        cluster.make_namespace().await;
        cluster
    }

    async fn make_namespace(&self) {
        let leader = self.leader().await;
        let namespace = CreateNamespace {
            id: uuid::Uuid::new_v4().into(),
            project: coracle_model::ProjectId::DEFAULT,
            name: "default".parse().unwrap(),
            description: String::new(),
            env: Default::default(),
            task: None,
        };
        let namespace = Operation::CreateNamespace(namespace);
        assert_eq!(self.write(leader, namespace).await.unwrap(), None);
    }

    async fn write(&self, at: u64, operation: Operation) -> Result<Option<v1::Refusal>, Status> {
        let request = v1::WriteRequest {
            write_id: fresh_write().to_wire(),
            operation: Some(operation.into()),
        };
        let answer = self.management(at).write(request).await?;
        Ok(answer.into_inner().refusal)
    }

    async fn put(&self, at: u64, bytes: &[u8]) -> Result<Digest, Status> {
        let chunk = v1::ArtifactChunk {
            data: bytes.to_vec().into(),
        };
        let mut management = self.management(at);
        let answer = management.put_artifact(tokio_stream::once(chunk)).await?;
        Ok(Digest::from_wire("digest", answer.into_inner().digest).unwrap())
    }

    async fn name(
        &self,
        at: u64,
        function: &str,
        code: Digest,
    ) -> Result<Option<v1::Refusal>, Status> {
        let (operation, _) = create(function, code, ScaleBounds::new(0, 1).unwrap());
        self.write(at, operation).await
    }

    async fn get(&self, at: u64, digest: Digest, only_here: bool) -> Result<Vec<u8>, Status> {
        let request = v1::GetArtifactRequest {
            digest: digest.to_wire(),
            from: 0,
            only_here,
        };
        let mut pieces = self
            .management(at)
            .get_artifact(request)
            .await?
            .into_inner();
        let mut bytes = Vec::new();
        while let Some(piece) = pieces.message().await? {
            bytes.extend_from_slice(&piece.data);
        }
        Ok(bytes)
    }

    fn file(&self, id: u64, digest: Digest) -> PathBuf {
        self.path(id).join("artifacts").join(digest.to_string())
    }

    fn holders(&self, digest: Digest) -> BTreeSet<u64> {
        let holds = |id: &u64| self.file(*id, digest).is_file();
        (1..=5).filter(holds).collect()
    }

    async fn until_held_by(&self, digest: Digest, expected: &[u64]) {
        let expected: BTreeSet<u64> = expected.iter().copied().collect();
        wait("the copies", || async {
            let holders = self.holders(digest);
            if holders == expected {
                Ok(())
            } else {
                Err(format!("{digest} is on {holders:?}"))
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_member_that_was_away_gets_what_was_stored_and_named_meanwhile() {
    let mut cluster = Cluster::with_namespace(3).await;
    let leader = cluster.leader().await;
    let (away, other) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    let before = cluster.put(other, b"before").await.unwrap();
    cluster.until_held_by(before, &ALL).await;
    cluster.kill(away).await;
    let code = cluster.put(other, b"meanwhile").await.unwrap();
    assert_eq!(cluster.holders(code), BTreeSet::from([leader, other]));
    assert_eq!(cluster.name(other, "f", code).await.unwrap(), None);
    cluster.start(away, ALL.to_vec()).await;
    cluster.until_held_by(code, &ALL).await;
    assert_eq!(cluster.get(away, code, true).await.unwrap(), b"meanwhile");
    cluster.stop().await;
}

#[tokio::test]
async fn a_minority_takes_no_upload() {
    let mut cluster = Cluster::with_namespace(3).await;
    let alone = cluster.leader().await;
    for id in ALL.into_iter().filter(|id| *id != alone) {
        cluster.kill(id).await;
    }
    let status = cluster.put(alone, b"lonely").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(status.message().contains("2 are needed"), "{status}");
    for id in ALL.into_iter().filter(|id| *id != alone) {
        cluster.start(id, ALL.to_vec()).await;
    }
    let digest = wait("the majority to be back", || async {
        let put = cluster.put(alone, b"lonely").await;
        put.map_err(|status| status.to_string())
    });
    let digest = digest.await;
    cluster.until_held_by(digest, &ALL).await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_write_may_not_name_what_is_nowhere_and_what_one_has_is_copied_first() {
    let cluster = Cluster::with_namespace(3).await;
    let leader = cluster.leader().await;
    let absent = Digest::of(b"absent");
    let refusal = cluster.name(leader, "f", absent).await.unwrap().unwrap();
    assert_eq!(refusal.kind(), v1::refusal::Kind::Invalid);
    for holder in [leader, leader % 3 + 1] {
        let bytes = format!("only on {holder}");
        let digest = Digest::of(bytes.as_bytes());
        std::fs::write(cluster.file(holder, digest), bytes).unwrap();
        let name = format!("of-{holder}");
        assert_eq!(cluster.name(leader, &name, digest).await.unwrap(), None);
        assert!(cluster.holders(digest).len() >= 2);
        // Applied, it is brought to everyone.
        cluster.until_held_by(digest, &ALL).await;
    }
    cluster.stop().await;
}

#[tokio::test]
async fn damage_is_noticed_at_a_read_and_mended_and_whoever_lacks_it_fetches() {
    let cluster = Cluster::with_namespace(3).await;
    let leader = cluster.leader().await;
    let code = cluster.put(leader, b"right").await.unwrap();
    assert_eq!(cluster.name(leader, "f", code).await.unwrap(), None);
    cluster.until_held_by(code, &ALL).await;
    std::fs::write(cluster.file(2, code), b"wrong").unwrap();
    let status = cluster.get(2, code, false).await.unwrap_err();
    assert_eq!(status.code(), Code::DataLoss, "{status}");
    cluster.until_held_by(code, &ALL).await;
    assert_eq!(cluster.get(2, code, true).await.unwrap(), b"right");
    let aside = cluster.path(2).join("artifacts/damaged");
    assert_eq!(
        std::fs::read(aside.join(code.to_string())).unwrap(),
        b"wrong"
    );

    std::fs::remove_file(cluster.file(3, code)).unwrap();
    let status = cluster.get(3, code, true).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(cluster.get(3, code, false).await.unwrap(), b"right");
    cluster.until_held_by(code, &ALL).await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_learner_rises_when_it_has_every_artifact() {
    let mut cluster = Cluster::with_namespace(1).await;
    let code = cluster.put(1, b"code").await.unwrap();
    assert_eq!(cluster.name(1, "f", code).await.unwrap(), None);
    let (kept, put) = (cluster.path(1).join("kept"), cluster.file(1, code));
    std::fs::rename(&put, &kept).unwrap();
    for id in [2, 3] {
        cluster.start(id, Vec::new()).await;
        cluster.at(1).add_learner(id, PATIENCE).await.unwrap();
    }
    let gate = ChangeRefused::NotReady { id: 2 };
    wait("the gate", || async {
        match cluster.at(1).promote(2, PATIENCE).await {
            Err(ChangeError::Refused(why)) if why == gate => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    std::fs::rename(&kept, &put).unwrap();
    for id in [2, 3] {
        wait("the learner to rise", || async {
            let promoted = cluster.at(1).promote(id, PATIENCE).await;
            promoted.map_err(|error| error.to_string())
        })
        .await;
    }
    cluster.until_held_by(code, &ALL).await;
}

/// Uploads of the same bytes at any member, writes that name them around the moment at which their
/// leases end: a write is refused, or what it names stays.
#[tokio::test]
async fn collection_on_any_member_never_takes_what_a_write_in_flight_names() {
    const GRACE: Duration = Duration::from_millis(120);
    let cluster = Cluster::with(3, |config| {
        config.leader.artifact_grace = GRACE;
        config.leader.gc_interval = Duration::from_millis(3);
    })
    .await;
    cluster.make_namespace().await;
    let leader = cluster.leader().await;
    let (mut named, mut refused) = (Vec::new(), 0);
    for round in 0..30_u32 {
        let bytes = format!("round {round}");
        let at = u64::from(round) % 3 + 1;
        let code = cluster.put(at, bytes.as_bytes()).await.unwrap();
        if round % 2 == 0 {
            // Its lease is young again on those that store it, and old on nobody.
            tokio::time::sleep(GRACE / 2).await;
            assert_eq!(
                cluster.put(at % 3 + 1, bytes.as_bytes()).await.unwrap(),
                code
            );
        }
        // The race is in where this ends.
        tokio::time::sleep(GRACE * (80 + round % 10 * 4) / 100).await;
        match cluster.name(leader, &format!("f-{round}"), code).await {
            Ok(None) => named.push(code),
            Ok(Some(refusal)) => {
                assert_eq!(refusal.kind(), v1::refusal::Kind::Invalid);
                refused += 1;
            }
            Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status}"),
        }
    }
    assert!(
        !named.is_empty() && refused > 0,
        "{} {refused}",
        named.len()
    );
    for code in named {
        assert!(cluster.holders(code).len() >= 2, "{code}");
        cluster.until_held_by(code, &ALL).await;
    }
    cluster.stop().await;
}

#[tokio::test]
async fn a_build_log_outlives_the_leader_that_wrote_it() {
    let mut cluster = Cluster::with_namespace(3).await;
    let leader = cluster.leader().await;
    let agent = Agent::new();
    let _session = agent.connect(&cluster.channel(leader)).await;
    let code = cluster.put(leader, b"def main(): return 1").await.unwrap();
    assert_eq!(cluster.name(leader, "hello", code).await.unwrap(), None);
    let log = |at: u64| {
        let mut management = cluster.management(at);
        async move {
            let function = v1::GetFunctionRequest {
                project: 1,
                function: Some(named("hello").into()),
            };
            let function = management.get_function(function).await?.into_inner();
            let revision = function.function.and_then(|f| f.latest).unwrap().id;
            let request = v1::BuildLogRequest {
                revision,
                follow: true,
                only_here: false,
            };
            let mut pieces = management.build_log(request).await?.into_inner();
            let mut log = Vec::new();
            while let Some(piece) = pieces.message().await? {
                log.extend_from_slice(&piece.data);
            }
            Ok::<_, Status>(String::from_utf8(log).unwrap())
        }
    };
    // A follower hands the question on while it grows.
    let follower = leader % 3 + 1;
    let first = wait("the log", || async {
        let log = log(follower).await.map_err(|status| status.to_string())?;
        (!log.is_empty()).then_some(log).ok_or("empty".to_owned())
    })
    .await;
    for id in ALL {
        wait("its copies", || async {
            let logs = std::fs::read_dir(cluster.path(id).join("build-logs")).unwrap();
            let mut names = logs.map(|log| log.unwrap().file_name().into_string().unwrap());
            names
                .any(|name| name.ends_with(".log"))
                .then_some(())
                .ok_or(id.to_string())
        })
        .await;
    }
    cluster.kill(leader).await;
    let next = cluster.leader().await;
    assert_ne!(next, leader);
    let log = std::fs::read_dir(cluster.path(next).join("build-logs")).unwrap();
    let paths: Vec<_> = log.map(|log| log.unwrap().path()).collect();
    assert_eq!(paths.len(), 1, "{paths:?}");
    assert_eq!(std::fs::read_to_string(&paths[0]).unwrap(), first);
    cluster.stop().await;
}
