//! Members with a thread and a real clock each, over a transport in memory.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use coracle_replica::{
    Applied, Config, Doubt, Ended, LogStore, MemLog, PeerMessage, ProposeError, ReadError, Replica,
    Role, SnapshotPolicy, Transport,
};
use tokio::{sync::mpsc, time::Instant};

use crate::tape::{Tape, View, soon};

type Members = Mutex<BTreeMap<u64, Replica<usize>>>;

/// Bounded, as a network transport would be: what does not fit is lost.
struct Bus(mpsc::Sender<PeerMessage>);

impl Transport for Bus {
    fn send(&mut self, message: PeerMessage) {
        let _ = self.0.try_send(message);
    }
}

/// A member that is asked for by one that it knows to be none says so, as a real transport does.
async fn carry(from: u64, mut outbox: mpsc::Receiver<PeerMessage>, members: Weak<Members>) {
    while let Some(message) = outbox.recv().await {
        let Some(members) = members.upgrade() else {
            return;
        };
        let find = |id: u64| members.lock().unwrap().get(&id).cloned();
        let peer = find(message.to);
        let Some(sender) = find(from) else { continue };
        let arrived = match peer {
            Some(peer) => {
                let group = peer.group().borrow().clone();
                if !group.is_empty() && !group.contains(from) {
                    sender.report_removed(group.as_of).await;
                }
                peer.deliver(from, &message.bytes).is_ok()
            }
            None => false,
        };
        if message.snapshot {
            sender.report_snapshot(message.to, arrived).await;
        } else if !arrived {
            sender.report_unreachable(message.to).await;
        }
    }
}

pub(crate) struct Group {
    pub(crate) members: Arc<Members>,
    pub(crate) views: BTreeMap<u64, View>,
}

impl Group {
    pub(crate) async fn new(size: u64) -> Self {
        let mut group = Self {
            members: Arc::default(),
            views: BTreeMap::new(),
        };
        let voters: Vec<u64> = (1..=size).collect();
        for id in 1..=size {
            group.start(id, voters.clone(), MemLog::new(id)).await;
        }
        group
    }

    /// Without voters: to be added.
    pub(crate) async fn start(&mut self, id: u64, voters: Vec<u64>, log: impl LogStore) {
        let config = Config {
            tick: Duration::from_millis(20),
            snapshots: SnapshotPolicy {
                every_entries: 200,
                keep_entries: 20,
                ..SnapshotPolicy::default()
            },
            ..Config::member(id, voters)
        };
        let (tape, view) = Tape::new();
        let (bus, outbox) = mpsc::channel(256);
        let observer = Box::new(|_: Applied<'_, usize>| {});
        let replica = Replica::start(config, log, tape, Box::new(Bus(bus)), observer)
            .await
            .unwrap();
        self.members.lock().unwrap().insert(id, replica);
        self.views.insert(id, view);
        tokio::spawn(carry(id, outbox, Arc::downgrade(&self.members)));
    }

    pub(crate) fn get(&self, id: u64) -> Replica<usize> {
        self.members.lock().unwrap()[&id].clone()
    }

    /// Its messages reach nobody from now on, and nobody's reach it: as after a kill.
    pub(crate) fn cut(&self, id: u64) -> Replica<usize> {
        self.members.lock().unwrap().remove(&id).unwrap()
    }

    fn all(&self) -> Vec<(u64, Replica<usize>)> {
        self.members
            .lock()
            .unwrap()
            .iter()
            .map(|(id, replica)| (*id, replica.clone()))
            .collect()
    }

    /// Waits until somebody leads.
    pub(crate) async fn leader(&self) -> (u64, Replica<usize>) {
        let waits = self.all().into_iter().map(|(id, replica)| {
            tokio::spawn(async move {
                let mut status = replica.status();
                status
                    .wait_for(|status| status.leading().is_some())
                    .await
                    .unwrap();
                (id, replica)
            })
        });
        let (found, mut leaders) = mpsc::channel(3);
        for wait in waits.collect::<Vec<_>>() {
            let found = found.clone();
            tokio::spawn(async move {
                if let Ok(leader) = wait.await {
                    let _ = found.send(leader).await;
                }
            });
        }
        tokio::time::timeout_at(soon(), leaders.recv())
            .await
            .expect("nobody leads")
            .unwrap()
    }
}

#[tokio::test]
async fn a_follower_names_the_leader_and_every_member_applies() {
    let group = Group::new(3).await;
    let (leader, replica) = group.leader().await;
    let outcome = replica.propose(b"first".to_vec(), soon()).await.unwrap();
    assert!(replica.read_index(soon()).await.unwrap() >= outcome.index);
    for (id, replica) in group.all() {
        let mut status = replica.status();
        let applied = status.wait_for(|status| status.applied >= outcome.index);
        tokio::time::timeout_at(soon(), applied)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(*group.views[&id].lock().unwrap(), [b"first".to_vec()]);
        if id != leader {
            let refused = replica.propose(b"second".to_vec(), soon()).await;
            assert_eq!(
                refused,
                Err(ProposeError::NotLeader {
                    leader: Some(leader)
                })
            );
            let index = replica.read_index(soon()).await.unwrap();
            assert!(index >= outcome.index, "a follower's read asks the leader");
        }
    }
}

#[tokio::test]
async fn shutting_the_leader_down_hands_over() {
    let group = Group::new(3).await;
    let (first, replica) = group.leader().await;
    replica.propose(b"before".to_vec(), soon()).await.unwrap();
    assert!(matches!(replica.shutdown().await, Ended::Shutdown));
    group.members.lock().unwrap().remove(&first);
    let (second, replica) = group.leader().await;
    assert_ne!(first, second);
    replica.propose(b"after".to_vec(), soon()).await.unwrap();
    assert_eq!(
        *group.views[&second].lock().unwrap(),
        [b"before".to_vec(), b"after".to_vec()]
    );
}

#[tokio::test]
async fn a_leader_cut_off_answers_unknown_and_no_fresh_read() {
    let group = Group::new(3).await;
    let (leader, replica) = group.leader().await;
    group.members.lock().unwrap().retain(|id, _| *id == leader);
    let (write, read) = tokio::join!(
        replica.propose(b"alone".to_vec(), soon()),
        replica.read_index(Instant::now() + Duration::from_secs(1)),
    );
    assert_eq!(write, Err(ProposeError::Unknown(Doubt::LeadershipLost)));
    assert_eq!(read, Err(ReadError::Deadline));
    assert_ne!(replica.status().borrow().role, Role::Leader);
    assert!(group.views[&leader].lock().unwrap().is_empty());
}

#[tokio::test]
async fn noise_from_a_peer_is_refused() {
    let group = Group::new(3).await;
    let (_, replica) = group.leader().await;
    assert!(replica.deliver(2, &[0xff; 40]).is_err());
    // Well-formed, and from nobody.
    assert!(replica.deliver(2, &[]).is_err());
    replica
        .propose(b"still here".to_vec(), soon())
        .await
        .unwrap();
}
