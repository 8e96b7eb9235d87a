//! Copies between a few members without a log: some of them slow, full or away.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use coracle_base::{Address, MemoryBus, SystemClock};
use coracle_model::Digest;
use coracle_proto::v1::{
    self,
    artifact_peers_server::{ArtifactPeers, ArtifactPeersServer},
};
use coracle_replica::Group;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tonic::{Request, Response, Status, Streaming, transport::Server};

use super::{Copies, Fellows, Held, SpreadError, spread::Pace};
use crate::{
    api::copies::ArtifactPeers as RealPeer,
    artifacts::{Artifacts, FileStore},
    peers::PeerTable,
};

const PATIENCE: Duration = Duration::from_secs(20);
/// So patient that nobody is cut who is only slow because the machine is busy.
const PACE: Pace = Pace {
    patience: Duration::from_secs(10),
    stall: Duration::from_secs(10),
    confirm: Duration::from_secs(10),
};
const LARGE: usize = 12 * 1024 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Good,
    /// Takes the connection and reads nothing.
    Stuck,
    Full,
    Away,
}

#[derive(Debug)]
struct Bad(Kind);

#[tonic::async_trait]
impl ArtifactPeers for Bad {
    async fn store(
        &self,
        _: Request<Streaming<v1::StoreArtifactFrame>>,
    ) -> Result<Response<v1::StoreArtifactResponse>, Status> {
        match self.0 {
            Kind::Full => Err(Status::unavailable("no space left on device")),
            _ => pending().await,
        }
    }

    async fn have(
        &self,
        _: Request<v1::HaveArtifactsRequest>,
    ) -> Result<Response<v1::HaveArtifactsResponse>, Status> {
        match self.0 {
            Kind::Full => Err(Status::unavailable("input/output error")),
            _ => pending().await,
        }
    }
}

/// Member 1 and others, all voters unless said otherwise.
struct Members {
    one: Copies,
    others: BTreeMap<u64, Artifacts>,
    dir: tempfile::TempDir,
    group: watch::Sender<Group>,
}

fn members(kinds: &[Kind]) -> Members {
    let dir = tempfile::tempdir().unwrap();
    let (table, mut others) = (PeerTable::default(), BTreeMap::new());
    let ids: Vec<u64> = (1..=kinds.len() as u64 + 1).collect();
    let (group, groups) = watch::channel(Group {
        as_of: 1,
        voters: ids,
        learners: Vec::new(),
    });
    let open = |id: u64| {
        let store = FileStore::open(dir.path().join(id.to_string())).unwrap();
        Artifacts::new(Box::new(store), 1 << 30, Arc::new(SystemClock))
    };
    for (id, kind) in (2..).zip(kinds) {
        let bus = Address::Memory(MemoryBus::new());
        table.insert(id, bus.clone());
        let artifacts = open(id);
        let fellows = Fellows::new(id, groups.clone(), table.clone());
        let copies = Copies::new(artifacts.clone(), fellows);
        others.insert(id, artifacts);
        let kind = *kind;
        if kind == Kind::Away {
            table.set(
                table
                    .ids()
                    .into_iter()
                    .filter(|other| *other != id)
                    .map(|other| (other, table.get(other).unwrap()))
                    .collect(),
            );
            continue;
        }
        tokio::spawn(async move {
            let incoming = bus.listen().await.unwrap();
            let serving = match kind {
                Kind::Good => Server::builder()
                    .add_service(ArtifactPeersServer::new(RealPeer { copies }))
                    .serve_with_incoming(incoming),
                _ => {
                    return Server::builder()
                        .add_service(ArtifactPeersServer::new(Bad(kind)))
                        .serve_with_incoming(incoming)
                        .await;
                }
            };
            serving.await
        });
    }
    let one = Copies::new(open(1), Fellows::new(1, groups, table));
    Members {
        one,
        others,
        dir,
        group,
    }
}

impl Members {
    async fn put(&self, bytes: &[u8]) -> Result<Digest, SpreadError> {
        self.put_at(PACE, bytes).await
    }

    async fn put_at(&self, pace: Pace, bytes: &[u8]) -> Result<Digest, SpreadError> {
        let mut spread = self.one.spread_at(pace).await?;
        for piece in bytes.chunks(1024 * 1024) {
            spread.write(Bytes::copy_from_slice(piece)).await?;
        }
        Ok(spread.finish().await?.0)
    }

    async fn holders(&self, digest: Digest) -> BTreeSet<u64> {
        let mut holders = BTreeSet::new();
        let all = self.others.iter().map(|(id, artifacts)| (*id, artifacts));
        for (id, artifacts) in all.chain([(1, &self.one.artifacts)]) {
            if artifacts.contains(digest).await.unwrap() {
                holders.insert(id);
            }
        }
        holders
    }

    async fn until_held_by(&self, digest: Digest, expected: &[u64]) {
        let expected = expected.iter().copied().collect();
        let reached = async {
            while self.holders(digest).await != expected {
                tokio::task::yield_now().await;
            }
        };
        if timeout(PATIENCE, reached).await.is_err() {
            panic!("{digest} is held by {:?}", self.holders(digest).await);
        }
    }

    async fn held(&self, digest: Digest) -> Held {
        let deadline = Instant::now() + Duration::from_millis(500);
        self.one.held(&[digest], deadline).await
    }

    fn partials(&self) -> usize {
        let ids = 1..=self.others.len() + 1;
        ids.map(|id| self.dir.path().join(id.to_string()).join("partial"))
            .map(|dir| std::fs::read_dir(dir).unwrap().count())
            .sum()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_is_on_a_majority_when_it_is_answered_and_then_on_all() {
    let members = members(&[Kind::Good, Kind::Good]);
    for size in [0, 1, LARGE] {
        let bytes = vec![size.to_be_bytes()[7]; size];
        let digest = members.put(&bytes).await.unwrap();
        assert_eq!(digest, Digest::of(&bytes));
        assert!(members.holders(digest).await.len() >= 2);
        members.until_held_by(digest, &[1, 2, 3]).await;
        assert_eq!(members.held(digest).await, Held::Yes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_slow_full_or_away_holds_nobody_up() {
    let hurried = Pace {
        patience: Duration::from_secs(1),
        ..PACE
    };
    for kind in [Kind::Stuck, Kind::Full, Kind::Away] {
        let members = members(&[kind, Kind::Good]);
        let digest = members.put_at(hurried, &vec![1; LARGE]).await.unwrap();
        members.until_held_by(digest, &[1, 3]).await;
        assert_eq!(members.held(digest).await, Held::Yes);
    }
    // Two of five.
    let members = members(&[Kind::Stuck, Kind::Good, Kind::Stuck, Kind::Good]);
    let digest = members.put_at(hurried, &vec![2; LARGE]).await.unwrap();
    members.until_held_by(digest, &[1, 3, 5]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_nothing_is_acknowledged_and_why_is_said() {
    for (kinds, reason) in [
        ([Kind::Full, Kind::Away], "no space left"),
        ([Kind::Away, Kind::Away], "its address is not known"),
        ([Kind::Stuck, Kind::Full], "no space left"),
    ] {
        let members = members(&kinds);
        let pace = Pace {
            stall: Duration::from_millis(300),
            confirm: Duration::from_millis(300),
            ..PACE
        };
        let upload = async {
            let mut spread = members.one.spread_at(pace).await?;
            spread.write(vec![3; LARGE].into()).await?;
            spread.finish().await
        };
        let error = upload.await.unwrap_err();
        assert!(
            matches!(
                error,
                SpreadError::NoMajority {
                    have: 1,
                    voters: 3,
                    needed: 2,
                    ..
                }
            ),
            "{kinds:?}: {error:?}"
        );
        assert!(error.to_string().contains(reason), "{kinds:?}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learners_own_copy_does_not_count() {
    let members = members(&[Kind::Good, Kind::Good, Kind::Full]);
    members.group.send_modify(|group| {
        group.voters = vec![2, 3, 4];
        group.learners = vec![1];
    });
    let digest = members.put(b"by a learner").await.unwrap();
    members.until_held_by(digest, &[1, 2, 3]).await;
    members
        .group
        .send_modify(|group| group.voters = vec![2, 4, 5]);
    let error = members.put(b"again").await.unwrap_err();
    assert!(
        matches!(error, SpreadError::NoMajority { needed: 2, .. }),
        "{error:?}"
    );
    members.group.send_replace(Group::default());
    let error = members.put(b"by a stranger").await.unwrap_err();
    assert!(matches!(error, SpreadError::NoGroup));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_breaks_off_leaves_nothing_anywhere() {
    let members = members(&[Kind::Good, Kind::Good]);
    let mut spread = members.one.spread_at(PACE).await.unwrap();
    spread.write(vec![4; LARGE].into()).await.unwrap();
    let begun = async {
        while members.partials() < 3 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, begun).await.unwrap();
    drop(spread);
    let gone = async {
        while members.partials() > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, gone).await.unwrap();
    for artifacts in members.others.values().chain([&members.one.artifacts]) {
        assert_eq!(artifacts.list().await.unwrap(), []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_may_name_what_a_majority_has() {
    let members = members(&[Kind::Good, Kind::Good]);
    let absent = Digest::of(b"absent");
    assert_eq!(members.held(absent).await, Held::Nowhere(absent));
    let mut upload = members.others[&2].upload().await.unwrap();
    upload.write(Bytes::from_static(b"alone")).await.unwrap();
    let (alone, _) = upload.finish().await.unwrap();
    // One has it. The others would fetch it, had they somebody who serves it here.
    let expected = Held::TooFew {
        digest: alone,
        have: 1,
        needed: 2,
    };
    assert_eq!(members.held(alone).await, expected);
    let mut upload = members.others[&3].upload().await.unwrap();
    upload.write(Bytes::from_static(b"alone")).await.unwrap();
    upload.finish().await.unwrap();
    assert_eq!(members.held(alone).await, Held::Yes);
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_is_neither_a_copy_nor_its_absence() {
    let members = members(&[Kind::Stuck, Kind::Full]);
    let mut upload = members.one.artifacts.upload().await.unwrap();
    upload.write(Bytes::from_static(b"here")).await.unwrap();
    let (here, _) = upload.finish().await.unwrap();
    let absent = Digest::of(b"absent");
    for (digest, have) in [(here, 1), (absent, 0)] {
        let expected = Held::TooFew {
            digest,
            have,
            needed: 2,
        };
        assert_eq!(members.held(digest).await, expected);
    }
}
