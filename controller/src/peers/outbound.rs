//! To other members: one lane for each, made and ended as members come and go.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use coracle_base::{Shutdown, ShutdownGuard};
use coracle_replica::{PeerMessage, Replica, Transport};
use tokio::sync::mpsc;

use super::{Me, group, lane, snapshots};
use crate::{machine::Response, metrics};

/// Messages that may wait for one peer's connection.
const QUEUE: usize = 1_024;
/// Losses that may wait to be reported. More are not: raft finds out by itself, only later.
const LOSSES: usize = 256;

/// A message that was not sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Loss {
    to: u64,
    snapshot: bool,
}

#[derive(Debug)]
struct Lane {
    messages: mpsc::Sender<Bytes>,
    snapshots: mpsc::Sender<Bytes>,
    /// Ends its loops when dropped with the lane.
    _alive: ShutdownGuard,
}

type Lanes = Arc<Mutex<BTreeMap<u64, Lane>>>;

/// Both ends of the transport, before the replica that uses it is there.
#[derive(Debug)]
pub(crate) struct Outbound {
    me: Me,
    lanes: Lanes,
    losses: mpsc::Receiver<Loss>,
    lost: mpsc::Sender<Loss>,
}

/// The replica's end. Called on its thread, so it only puts messages into queues.
struct Queues {
    lanes: Lanes,
    lost: mpsc::Sender<Loss>,
}

impl Transport for Queues {
    fn send(&mut self, message: PeerMessage) {
        let PeerMessage {
            to,
            bytes,
            snapshot,
        } = message;
        let lanes = self
            .lanes
            .lock()
            .expect("never poisoned: no panic while held");
        let sent = lanes.get(&to).is_some_and(|lane| {
            let queue = if snapshot {
                &lane.snapshots
            } else {
                &lane.messages
            };
            queue.try_send(bytes.into()).is_ok()
        });
        drop(lanes);
        if !sent {
            metrics::peer_message_dropped();
            let _ = self.lost.try_send(Loss { to, snapshot });
        }
    }
}

impl Outbound {
    pub(crate) fn new(me: Me) -> Self {
        let (lost, losses) = mpsc::channel(LOSSES);
        Self {
            me,
            lanes: Lanes::default(),
            losses,
            lost,
        }
    }

    pub(crate) fn transport(&self) -> Box<dyn Transport> {
        Box::new(Queues {
            lanes: Arc::clone(&self.lanes),
            lost: self.lost.clone(),
        })
    }

    /// Keeps a lane to every member and to everyone in the table.
    pub(crate) async fn run(mut self, replica: Replica<Response>, shutdown: Shutdown) {
        let mut members = group(&replica);
        let mut table = self.me.table.subscribe();
        loop {
            let mut wanted: BTreeSet<u64> = members.borrow_and_update().ids().collect();
            wanted.extend(table.borrow_and_update().keys());
            wanted.remove(&self.me.id);
            self.follow(&wanted, &replica, &shutdown);
            loop {
                tokio::select! {
                    changed = members.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return self.end(),
                    },
                    // The table is ours too, so its sender is there.
                    _ = table.changed() => break,
                    Some(loss) = self.losses.recv() => report(&replica, loss).await,
                    () = shutdown.requested() => return self.end(),
                }
            }
        }
    }

    fn follow(&self, wanted: &BTreeSet<u64>, replica: &Replica<Response>, shutdown: &Shutdown) {
        let mut lanes = self
            .lanes
            .lock()
            .expect("never poisoned: no panic while held");
        lanes.retain(|id, _| wanted.contains(id));
        for id in wanted {
            lanes.entry(*id).or_insert_with(|| {
                let (messages, queue) = mpsc::channel(QUEUE);
                // Raft sends none before the last one was reported.
                let (snapshots, snapshot_queue) = mpsc::channel(1);
                let own = shutdown.child();
                let line = lane::Line {
                    me: self.me.clone(),
                    to: *id,
                    replica: replica.clone(),
                    shutdown: own.clone(),
                };
                shutdown.spawn("peer messages", lane::run(line.clone(), queue));
                shutdown.spawn("peer snapshots", snapshots::run(line, snapshot_queue));
                Lane {
                    messages,
                    snapshots,
                    _alive: own.guard(),
                }
            });
        }
    }

    fn end(&self) {
        self.lanes
            .lock()
            .expect("never poisoned: no panic while held")
            .clear();
    }
}

async fn report(replica: &Replica<Response>, loss: Loss) {
    if loss.snapshot {
        replica.report_snapshot(loss.to, false).await;
    } else {
        replica.report_unreachable(loss.to).await;
    }
}
