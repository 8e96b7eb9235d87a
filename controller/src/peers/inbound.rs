//! From other members.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use coracle_base::Shutdown;
use coracle_identity::Peer;
use coracle_model::MemberId;
use coracle_proto::v1::{
    self, peer_frame, peer_notice::Body as Notice, peers_server::Peers, snapshot_frame,
};
use coracle_replica::Replica;
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response as Answer, Status, Streaming};

use super::{Me, PIECE_BYTES, SNAPSHOT_BYTES_MAX, admit, group};
use crate::machine::Response;

const HELLO_WITHIN: Duration = Duration::from_secs(5);
const ALIVE_EVERY: Duration = Duration::from_millis(500);
/// A snapshot that says nothing for this long is given up.
const PIECE_WITHIN: Duration = Duration::from_secs(10);

pub(crate) type Belongs = Arc<dyn Fn(MemberId) -> bool + Send + Sync>;

#[derive(Clone)]
pub(crate) struct Inbound {
    pub(crate) me: Me,
    pub(crate) replica: Replica<Response>,
    pub(crate) shutdown: Shutdown,
    /// Whether a controller with a certificate was not removed since.
    belongs: Belongs,
    /// Members whose snapshots are being received: one each.
    receiving: Arc<Mutex<BTreeSet<u64>>>,
}

impl Inbound {
    pub(crate) fn new(
        me: Me,
        replica: Replica<Response>,
        belongs: Belongs,
        shutdown: Shutdown,
    ) -> Self {
        Self {
            belongs,
            me,
            replica,
            shutdown,
            receiving: Arc::default(),
        }
    }

    /// Who speaks. The one place where a peer's word for it is checked: by its certificate, unless
    /// it is on the same machine.
    fn speaker(&self, peer: &Peer, hello: Option<v1::PeerHello>) -> Result<Speaker, Status> {
        let hello = hello.ok_or_else(|| Status::invalid_argument("it begins with a hello"))?;
        if *hello.cluster_id != *self.me.cluster_id {
            return Err(Status::failed_precondition("this is another cluster"));
        }
        if hello.to != self.me.id {
            let text = format!("this is member {}, not {}", self.me.id, hello.to);
            return Err(Status::failed_precondition(text));
        }
        if hello.from == 0 || hello.from == self.me.id {
            return Err(Status::invalid_argument("nobody has that id"));
        }
        let vouched = match peer {
            Peer::Local => true,
            Peer::Component(_) | Peer::Anonymous => peer.member() == Some(MemberId(hello.from)),
        };
        if !vouched {
            let text = format!("the certificate is not member {}'s", hello.from);
            return Err(Status::permission_denied(text));
        }
        let speaker = Speaker {
            id: hello.from,
            applied: hello.applied,
            incarnation: hello.incarnation,
            removed: peer.member().is_some_and(|id| !(self.belongs)(id)),
        };
        if self.is_apart(speaker) {
            let (from, theirs) = (hello.from, hello.incarnation);
            tracing::warn!(
                from,
                theirs,
                "a member of another incarnation was turned away"
            );
            return Err(Status::failed_precondition(
                "the cluster was recovered without this member: join again with an empty data \
                 directory, under a new id",
            ));
        }
        Ok(speaker)
    }

    /// Of a cluster that was recovered since, or before. The order of the log, which tells who knows
    /// more, holds within one incarnation only.
    fn is_apart(&self, speaker: Speaker) -> bool {
        let own = self.me.incarnation();
        own != 0 && speaker.incarnation != 0 && own != speaker.incarnation
    }

    /// What one that was removed from the books says of its log counts for nothing.
    fn admit(&self, speaker: Speaker) -> Result<(), u64> {
        if speaker.removed {
            return Err(group(&self.replica).borrow().as_of);
        }
        admit(&group(&self.replica).borrow(), speaker.id, speaker.applied)
    }
}

#[derive(Debug, Clone, Copy)]
struct Speaker {
    id: u64,
    applied: u64,
    incarnation: u64,
    removed: bool,
}

fn notice(body: Notice) -> Result<v1::PeerNotice, Status> {
    Ok(v1::PeerNotice { body: Some(body) })
}

#[tonic::async_trait]
impl Peers for Inbound {
    type MessagesStream = ReceiverStream<Result<v1::PeerNotice, Status>>;

    async fn messages(
        &self,
        request: Request<Streaming<v1::PeerFrame>>,
    ) -> Result<Answer<Self::MessagesStream>, Status> {
        let peer = Peer::of(&request);
        let mut frames = request.into_inner();
        let first = timeout(HELLO_WITHIN, frames.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no hello"))??;
        let hello = match first.and_then(|frame| frame.body) {
            Some(peer_frame::Body::Hello(hello)) => Some(hello),
            _ => None,
        };
        let speaker = self.speaker(&peer, hello)?;
        let (notices, stream) = mpsc::channel(4);
        let own = self.clone();
        self.shutdown.spawn("peer", async move {
            tokio::select! {
                reason = own.listen(speaker, frames, notices) => {
                    tracing::debug!(from = speaker.id, reason, "peer's connection ended");
                }
                () = own.shutdown.requested() => {}
            }
        });
        Ok(Answer::new(ReceiverStream::new(stream)))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<v1::SnapshotFrame>>,
    ) -> Result<Answer<v1::SnapshotReceived>, Status> {
        let peer = Peer::of(&request);
        let mut frames = request.into_inner();
        let hello = match next(&mut frames).await? {
            Some(snapshot_frame::Body::Hello(hello)) => hello,
            _ => return Err(Status::invalid_argument("it begins with a hello")),
        };
        let speaker = self.speaker(&peer, hello.hello)?;
        if self.admit(speaker).is_err() {
            return Err(Status::permission_denied("not a member"));
        }
        let _only = Receiving::begin(&self.receiving, speaker.id)?;
        let bytes = receive(&mut frames, hello.bytes, &hello.digest).await?;
        let delivered = self.replica.deliver_snapshot(speaker.id, &bytes).await;
        delivered.map_err(|error| Status::invalid_argument(error.to_string()))?;
        tracing::info!(from = speaker.id, bytes = bytes.len(), "snapshot received");
        Ok(Answer::new(v1::SnapshotReceived {}))
    }
}

impl Inbound {
    /// Until it ends; says why.
    async fn listen(
        &self,
        speaker: Speaker,
        mut frames: Streaming<v1::PeerFrame>,
        notices: mpsc::Sender<Result<v1::PeerNotice, Status>>,
    ) -> String {
        let mut group = group(&self.replica);
        let mut beats = interval(ALIVE_EVERY);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut speaker = speaker;
        group.mark_changed();
        loop {
            tokio::select! {
                changed = group.changed() => {
                    if changed.is_err() {
                        return "this replica ended".to_owned();
                    }
                    group.mark_unchanged();
                    if self.is_apart(speaker) {
                        return "it is of another incarnation".to_owned();
                    }
                    if let Err(as_of) = self.admit(speaker) {
                        let not = Notice::NotAMember(v1::NotAMember { as_of });
                        let _ = notices.send(notice(not)).await;
                        return "it is not a member".to_owned();
                    }
                    // It was ahead when it said hello. From the next change on it is to be in the
                    // group, or to say hello again.
                    speaker.applied = 0;
                }
                _ = beats.tick() => {
                    // A peer that does not read has not heard the last one either.
                    if let Err(mpsc::error::TrySendError::Closed(_)) =
                        notices.try_send(notice(Notice::Alive(v1::Alive {})))
                    {
                        return "it went away".to_owned();
                    }
                }
                frame = frames.message() => {
                    let body = match frame {
                        Ok(Some(frame)) => frame.body,
                        Ok(None) => return "the peer ended it".to_owned(),
                        Err(status) => return status.to_string(),
                    };
                    let Some(peer_frame::Body::Message(bytes)) = body else {
                        return "neither hello nor message".to_owned();
                    };
                    if let Err(error) = self.replica.deliver(speaker.id, &bytes) {
                        // Of a newer version, perhaps: raft can do without it.
                        tracing::warn!(from = speaker.id, %error, "message dropped");
                    }
                }
            }
        }
    }
}

/// Holds a member's place while its snapshot is received.
struct Receiving {
    all: Arc<Mutex<BTreeSet<u64>>>,
    from: u64,
}

impl Receiving {
    fn begin(all: &Arc<Mutex<BTreeSet<u64>>>, from: u64) -> Result<Self, Status> {
        let new = lock(all).insert(from);
        if !new {
            return Err(Status::resource_exhausted("one of its snapshots is coming"));
        }
        Ok(Self {
            all: Arc::clone(all),
            from,
        })
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        lock(&self.all).remove(&self.from);
    }
}

fn lock(all: &Mutex<BTreeSet<u64>>) -> std::sync::MutexGuard<'_, BTreeSet<u64>> {
    all.lock().expect("never poisoned: no panic while held")
}

async fn next(
    frames: &mut Streaming<v1::SnapshotFrame>,
) -> Result<Option<snapshot_frame::Body>, Status> {
    let frame = timeout(PIECE_WITHIN, frames.message()).await;
    let frame = frame.map_err(|_| Status::deadline_exceeded("the snapshot stopped"))??;
    Ok(frame.and_then(|frame| frame.body))
}

async fn receive(
    frames: &mut Streaming<v1::SnapshotFrame>,
    expected: u64,
    digest: &[u8],
) -> Result<Vec<u8>, Status> {
    if expected > SNAPSHOT_BYTES_MAX {
        let text = format!("a snapshot may have {SNAPSHOT_BYTES_MAX} bytes at most");
        return Err(Status::resource_exhausted(text));
    }
    // Grows with what comes, not with what was announced.
    let mut bytes = Vec::new();
    let mut hash = Sha256::new();
    while let Some(body) = next(frames).await? {
        let snapshot_frame::Body::Data(piece) = body else {
            return Err(Status::invalid_argument("one hello is enough"));
        };
        if piece.len() > PIECE_BYTES || (bytes.len() + piece.len()) as u64 > expected {
            return Err(Status::invalid_argument("more than was announced"));
        }
        hash.update(&piece);
        bytes.extend_from_slice(&piece);
    }
    if bytes.len() as u64 != expected || hash.finalize()[..] != *digest {
        return Err(Status::data_loss("the snapshot is not what was announced"));
    }
    Ok(bytes)
}
