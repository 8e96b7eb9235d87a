//! Three controllers in one process, over TCP on the loopback.

use std::{collections::BTreeMap, fs::File, future::Future, path::Path, time::Duration};

use coracle_base::{Address, MemoryBus, Shutdown};
use coracle_controller::{
    ChangeError, ChangeRefused, Config, Controller, Member, PeerTable, RaftPace, RunError,
    SnapshotPolicy,
};
use coracle_model::{Env, NamespaceId, Operation, ProjectId, WriteId, operation::CreateNamespace};
use coracle_proto::{
    Wire as _,
    v1::{self, management_client::ManagementClient},
};
use tokio::task::JoinHandle;
use tonic::{Code, Request, Status, transport::Channel};
use uuid::Uuid;

use crate::fixture::{PATIENCE, config, fresh_write, wait};

struct Node {
    controller: Controller,
    channel: Channel,
    shutdown: Shutdown,
    running: JoinHandle<Result<(), RunError>>,
}

pub struct Cluster {
    dir: tempfile::TempDir,
    table: PeerTable,
    nodes: BTreeMap<u64, Node>,
    change: fn(&mut Config),
}

impl Cluster {
    pub fn empty() -> Self {
        Self::configured(|_| {})
    }

    fn configured(change: fn(&mut Config)) -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            table: PeerTable::default(),
            nodes: BTreeMap::new(),
            change,
        }
    }

    pub async fn new(size: u64) -> Self {
        Self::with(size, |_| {}).await
    }

    pub async fn with(size: u64, change: fn(&mut Config)) -> Self {
        let mut cluster = Self::configured(change);
        for id in 1..=size {
            cluster.start(id, (1..=size).collect()).await;
        }
        cluster
    }

    pub fn path(&self, id: u64) -> std::path::PathBuf {
        Path::new(self.dir.path()).join(id.to_string())
    }

    pub fn config(&self, id: u64, voters: Vec<u64>) -> Config {
        let mut config = config(&self.path(id), &MemoryBus::new());
        config.member = id;
        config.voters = voters;
        config.peers = self.table.clone();
        config.listen = vec![Address::Tcp("127.0.0.1:0".into())];
        config.pace = RaftPace {
            tick: Duration::from_millis(20),
            snapshots: SnapshotPolicy {
                every_entries: 50,
                keep_entries: 10,
                ..SnapshotPolicy::default()
            },
            ..RaftPace::default()
        };
        (self.change)(&mut config);
        config
    }

    /// Without voters: to be added.
    pub async fn start(&mut self, id: u64, voters: Vec<u64>) {
        self.start_in(id, id, voters).await;
    }

    /// In the directory of an earlier member.
    pub async fn start_in(&mut self, place: u64, id: u64, voters: Vec<u64>) {
        let mut config = self.config(id, voters);
        config.data_dir = self.path(place);
        let controller = config.build().await.unwrap();
        let address = controller.local_addrs()[0].unwrap();
        let address = Address::Tcp(address.to_string());
        self.table.insert(id, address.clone());
        let shutdown = Shutdown::new();
        let running = tokio::spawn({
            let (controller, shutdown) = (controller.clone(), shutdown.clone());
            async move { controller.run(shutdown).await }
        });
        let node = Node {
            controller,
            channel: address.channel(),
            shutdown,
            running,
        };
        self.nodes.insert(id, node);
    }

    /// Without a word to the others. Its data stays.
    pub async fn kill(&mut self, id: u64) {
        let Node {
            controller,
            shutdown,
            running,
            ..
        } = self.nodes.remove(&id).unwrap();
        running.abort();
        assert!(running.await.unwrap_err().is_cancelled());
        drop(controller);
        shutdown.request();
        assert!(shutdown.finished(PATIENCE).await, "a task did not end");
        // The replica's own thread ends a moment after whoever held on to it.
        let log = self.path(id).join("log/sled/db");
        wait("the log to be closed", || async {
            let log = File::open(&log).map_err(|error| error.to_string())?;
            log.try_lock().map_err(|error| error.to_string())
        })
        .await;
    }

    pub fn channel(&self, id: u64) -> Channel {
        self.nodes[&id].channel.clone()
    }

    pub fn management(&self, id: u64) -> ManagementClient<Channel> {
        ManagementClient::new(self.nodes[&id].channel.clone())
    }

    pub fn at(&self, id: u64) -> &Controller {
        &self.nodes[&id].controller
    }

    /// The one that leads with an up-to-date state.
    pub async fn leader(&self) -> u64 {
        wait("a leader", || async {
            let leading = |node: &&Node| node.controller.status().leading;
            let found = self.nodes.values().find(leading);
            let ids = self.nodes.values().map(|node| node.controller.status());
            found
                .map(|node| node.controller.status().member)
                .ok_or_else(|| format!("{:?}", ids.collect::<Vec<_>>()))
        })
        .await
    }

    pub async fn write_at(&self, at: u64, id: WriteId, name: &str) -> Result<(), Status> {
        let request = v1::WriteRequest {
            write_id: id.to_wire(),
            operation: Some(namespace(name).into()),
        };
        let answer = self.management(at).write(request).await?;
        assert_eq!(answer.into_inner().refusal, None, "{name}");
        Ok(())
    }

    pub async fn names_at(&self, at: u64) -> Result<Vec<String>, Status> {
        let request = v1::ListNamespacesRequest { project: 1 };
        let answer = self.management(at).list_namespaces(request).await?;
        let namespaces = answer.into_inner().namespaces.into_iter();
        Ok(namespaces.map(|namespace| namespace.name).collect())
    }

    /// Voters and learners, as the leader has them.
    pub async fn listed(&self) -> (Vec<u64>, Vec<u64>) {
        let leader = self.leader().await;
        let members = self.at(leader).members(PATIENCE).await.unwrap();
        let ids = |list: &[Member]| list.iter().map(|member| member.id).collect();
        (ids(&members.voters), ids(&members.learners))
    }

    /// Until the leader of the moment has done it.
    pub async fn changed<F>(&self, what: &str, change: impl Fn(Controller) -> F)
    where
        F: Future<Output = Result<(), ChangeError>>,
    {
        wait(what, || async {
            let leader = self.leader().await;
            let done = change(self.at(leader).clone()).await;
            done.map_err(|error| error.to_string())
        })
        .await;
    }

    pub async fn stop(mut self) {
        for (id, node) in std::mem::take(&mut self.nodes) {
            node.shutdown.request();
            let ended = tokio::time::timeout(PATIENCE, node.running).await;
            ended.unwrap().unwrap().unwrap();
            let finished = node.shutdown.finished(PATIENCE).await;
            assert!(finished, "a task of {id} did not end");
        }
    }
}

/// Some 20 KB each, so that a hundred of them make a snapshot of several pieces.
fn namespace(name: &str) -> Operation {
    let value = "x".repeat(250);
    let env = (0..80).map(|number| (format!("VALUE_{number}"), value.clone()));
    Operation::CreateNamespace(CreateNamespace {
        id: NamespaceId(Uuid::new_v4()),
        project: ProjectId::DEFAULT,
        name: name.parse().unwrap(),
        description: String::new(),
        env: Env::new(env.collect()).unwrap(),
        task: None,
    })
}

#[tokio::test]
async fn any_controller_takes_writes_and_answers_reads() {
    let cluster = Cluster::new(3).await;
    let leader = cluster.leader().await;
    for id in 1..=3 {
        let name = format!("by-{id}");
        cluster.write_at(id, fresh_write(), &name).await.unwrap();
        for reader in 1..=3 {
            let names = cluster.names_at(reader).await.unwrap();
            assert!(names.contains(&name), "{reader} does not see {name}");
        }
        let asked = wait("the leader's answer", || async {
            let answer = cluster
                .management(id)
                .list_nodes(v1::ListNodesRequest::default())
                .await;
            answer.map_err(|status| status.to_string())
        });
        asked.await;
    }
    // A refusal comes through as such.
    let follower = leader % 3 + 1;
    let request = v1::WriteRequest {
        write_id: fresh_write().to_wire(),
        operation: Some(namespace("by-1").into()),
    };
    let answer = cluster.management(follower).write(request).await.unwrap();
    let refusal = answer.into_inner().refusal.unwrap();
    assert_eq!(refusal.kind(), v1::refusal::Kind::AlreadyExists);

    // What was handed on once is refused by one that does not lead, with who does and where.
    let mut request = Request::new(v1::WriteRequest {
        write_id: fresh_write().to_wire(),
        operation: Some(namespace("never").into()),
    });
    let metadata = request.metadata_mut();
    metadata.insert("coracle-forwarded", 9_u64.into());
    let status = cluster.management(follower).write(request).await;
    let status = status.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    let text = |key| {
        status
            .metadata()
            .get(key)
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(text("coracle-leader"), leader.to_string());
    let address = cluster.table.get(leader).unwrap().to_string();
    assert_eq!(text("coracle-leader-address"), address);
    cluster.stop().await;
}

#[tokio::test]
async fn the_leader_is_killed_under_writes_and_nothing_acknowledged_is_lost() {
    let mut cluster = Cluster::new(3).await;
    let first = cluster.leader().await;
    let survivor = first % 3 + 1;
    let mut client = cluster.management(survivor);
    let (said, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let writer = tokio::spawn(async move {
        let mut written = Vec::new();
        for number in 0..60 {
            let name = format!("write-{number}");
            let request = v1::WriteRequest {
                write_id: fresh_write().to_wire(),
                operation: Some(namespace(&name).into()),
            };
            // Unknown outcomes are repeated under the same id, as every client should.
            let answer = loop {
                match client.write(request.clone()).await {
                    Ok(answer) => break answer.into_inner(),
                    Err(status) if status.code() == Code::Aborted => {}
                    Err(status) => panic!("{status}"),
                }
            };
            assert_eq!(answer.refusal, None, "{name} was done before");
            written.push(name);
            said.send(number).unwrap();
        }
        written
    });
    while heard.recv().await.unwrap() < 20 {}
    cluster.kill(first).await;
    let written = writer.await.unwrap();
    assert_ne!(cluster.leader().await, first);
    cluster.start(first, vec![1, 2, 3]).await;
    for id in 1..=3 {
        let names = wait("the members to answer", || async {
            cluster
                .names_at(id)
                .await
                .map_err(|status| status.to_string())
        });
        let names = names.await;
        for name in &written {
            assert!(names.contains(name), "{name} is missing on {id}");
        }
    }
    cluster.stop().await;
}

#[tokio::test]
async fn a_member_joins_through_a_snapshot_rises_and_leaves() {
    let mut cluster = Cluster::new(3).await;
    let leader = cluster.leader().await;
    for number in 0..120 {
        let name = format!("n-{number}");
        cluster
            .write_at(leader, fresh_write(), &name)
            .await
            .unwrap();
    }
    for id in [4, 5] {
        cluster.start(id, Vec::new()).await;
        let add = |leader: Controller| async move { leader.add_learner(id, PATIENCE).await };
        cluster.changed("the learner to be added", add).await;
    }
    wait("the learners to catch up", || async {
        for id in [4, 5] {
            let names = cluster.names_at(id).await.map_err(|s| s.to_string())?;
            if names.len() < 120 {
                return Err(format!("{id} has {}", names.len()));
            }
        }
        Ok(())
    })
    .await;
    assert_eq!(cluster.listed().await, (vec![1, 2, 3], vec![4, 5]));
    for id in [4, 5] {
        let rise = |leader: Controller| async move { leader.promote(id, PATIENCE).await };
        cluster.changed("the learner to rise", rise).await;
    }
    assert_eq!(cluster.listed().await, (vec![1, 2, 3, 4, 5], vec![]));
    let leader = cluster.leader().await;
    let nobody = cluster.at(leader).promote(6, PATIENCE).await;
    assert_eq!(nobody, Err(ChangeRefused::NotAMember { id: 6 }.into()));

    // The leader itself: another one leads first.
    let removed = cluster.at(leader).remove_member(leader, PATIENCE).await;
    let Err(ChangeError::NotLeader { leader: Some(next) }) = removed else {
        panic!("{removed:?}");
    };
    assert_ne!(next, leader);
    let remove = |asked: Controller| async move { asked.remove_member(leader, PATIENCE).await };
    cluster
        .changed("the old leader to be removed", remove)
        .await;
    let gone = cluster.nodes.remove(&leader).unwrap();
    let ended = tokio::time::timeout(PATIENCE, gone.running).await;
    let error = ended.unwrap().unwrap().unwrap_err();
    assert!(
        matches!(error, RunError::Removed(id) if id == leader),
        "{error}"
    );
    gone.shutdown.request();
    let left = (1..=5).filter(|id| *id != leader).collect();
    assert_eq!(cluster.listed().await, (left, vec![]));
    let asked = leader % 5 + 1;
    cluster
        .write_at(asked, fresh_write(), "after")
        .await
        .unwrap();
    cluster.stop().await;
}

#[tokio::test]
async fn without_a_majority_a_write_is_not_acknowledged_and_a_read_is_not_answered() {
    let mut cluster = Cluster::new(3).await;
    let leader = cluster.leader().await;
    cluster
        .write_at(leader, fresh_write(), "before")
        .await
        .unwrap();
    let alone = leader % 3 + 1;
    for id in (1..=3).filter(|id| *id != alone) {
        cluster.kill(id).await;
    }
    let mut request = Request::new(v1::WriteRequest {
        write_id: fresh_write().to_wire(),
        operation: Some(namespace("alone").into()),
    });
    request.set_timeout(Duration::from_millis(1_500));
    let status = cluster.management(alone).write(request).await.unwrap_err();
    assert!(
        matches!(
            status.code(),
            Code::Unavailable | Code::Aborted | Code::Cancelled | Code::DeadlineExceeded
        ),
        "{status}"
    );
    let mut request = Request::new(v1::ListNamespacesRequest { project: 1 });
    request.set_timeout(Duration::from_millis(500));
    let read = cluster.management(alone).list_namespaces(request).await;
    assert!(read.is_err());
    for id in (1..=3).filter(|id| *id != alone) {
        cluster.start(id, vec![1, 2, 3]).await;
    }
    let names = wait("the majority to be back", || async {
        cluster
            .names_at(alone)
            .await
            .map_err(|status| status.to_string())
    });
    assert!(names.await.contains(&"before".to_owned()));
    cluster.stop().await;
}

#[tokio::test]
async fn a_member_that_was_removed_while_it_was_away_is_told_and_stops() {
    let mut cluster = Cluster::new(3).await;
    let leader = cluster.leader().await;
    let away = leader % 3 + 1;
    cluster.kill(away).await;
    let remove = |asked: Controller| async move { asked.remove_member(away, PATIENCE).await };
    cluster.changed("the member to be removed", remove).await;
    let name = "after";
    let written = cluster.write_at(leader, fresh_write(), name).await;
    written.unwrap();
    cluster.start(away, vec![1, 2, 3]).await;
    let gone = cluster.nodes.remove(&away).unwrap();
    let ended = tokio::time::timeout(PATIENCE, gone.running).await;
    let error = ended.expect("nobody told it").unwrap().unwrap_err();
    assert!(
        matches!(error, RunError::Removed(id) if id == away),
        "{error}"
    );
    gone.shutdown.request();
    cluster.stop().await;
}
