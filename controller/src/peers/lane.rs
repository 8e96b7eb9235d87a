//! The connection for messages to one member: dialled anew whenever it breaks or falls silent.

use std::time::Duration;

use bytes::Bytes;
use coracle_base::{Backoff, Shutdown};
use coracle_proto::v1::{self, peer_frame, peer_notice::Body as Notice, peers_client::PeersClient};
use coracle_replica::Replica;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{Me, applied};
use crate::machine::Response;

/// A peer that does not answer within this is dialled again: packets to one that was cut off are
/// repeated ever more slowly, so an old connection is slower than a new one.
const DIAL: Duration = Duration::from_millis(1_500);
/// Without a notice for this long the connection is dead.
const SILENCE: Duration = Duration::from_secs(2);
const REDIAL_FIRST: Duration = Duration::from_millis(50);
const REDIAL_MOST: Duration = Duration::from_secs(1);
/// Frames between the queue and the connection's own buffers.
const WIRE: usize = 16;

/// From this member to one other.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) me: Me,
    pub(super) to: u64,
    pub(super) replica: Replica<Response>,
    /// Requested when the other one is no member any more, or at the end of everything.
    pub(super) shutdown: Shutdown,
}

impl Line {
    pub(super) fn hello(&self) -> v1::PeerHello {
        v1::PeerHello {
            cluster_id: self.me.cluster_id.to_string(),
            from: self.me.id,
            to: self.to,
            applied: applied(&self.replica),
            incarnation: self.me.incarnation(),
        }
    }

    /// A connection of its own. It connects when it is used.
    pub(super) fn client(&self) -> Option<PeersClient<tonic::transport::Channel>> {
        let address = self.me.table.get(self.to)?;
        Some(PeersClient::new(address.channel()))
    }
}

pub(super) async fn run(line: Line, queue: mpsc::Receiver<Bytes>) {
    let shutdown = line.shutdown.clone();
    tokio::select! {
        () = shutdown.requested() => {}
        () = talk(&line, queue) => {}
    }
}

/// Until the queue's other end is gone.
async fn talk(line: &Line, mut queue: mpsc::Receiver<Bytes>) {
    let mut backoff = Backoff::new(REDIAL_FIRST, REDIAL_MOST);
    let mut table = line.me.table.subscribe();
    loop {
        table.mark_unchanged();
        let since = Instant::now();
        let ended = match dial(line).await {
            Ok(mut connection) => {
                tracing::debug!(to = line.to, "connected to a peer");
                let ended = connection.carry(line, &mut queue).await;
                if since.elapsed() > REDIAL_MOST {
                    backoff.reset();
                }
                ended
            }
            Err(reason) => reason,
        };
        tracing::debug!(to = line.to, reason = %ended, "peer not connected");
        line.replica.report_unreachable(line.to).await;
        // A peer may have moved in the meantime.
        let _ = timeout(backoff.wait(), table.changed()).await;
        // What waited is old by now.
        loop {
            match queue.try_recv() {
                Ok(_) => {}
                Err(mpsc::error::TryRecvError::Empty) => break,
                Err(mpsc::error::TryRecvError::Disconnected) => return,
            }
        }
    }
}

struct Connection {
    wire: mpsc::Sender<v1::PeerFrame>,
    notices: Streaming<v1::PeerNotice>,
}

async fn dial(line: &Line) -> Result<Connection, String> {
    let mut client = line.client().ok_or("its address is not known")?;
    let (wire, frames) = mpsc::channel(WIRE);
    let hello = v1::PeerFrame {
        body: Some(peer_frame::Body::Hello(line.hello())),
    };
    wire.try_send(hello).map_err(|_| "a new channel was full")?;
    let opened = timeout(DIAL, client.messages(ReceiverStream::new(frames))).await;
    match opened {
        Ok(Ok(notices)) => Ok(Connection {
            wire,
            notices: notices.into_inner(),
        }),
        Ok(Err(status)) => Err(status.to_string()),
        Err(_) => Err("it did not answer".to_owned()),
    }
}

impl Connection {
    /// Until it breaks; says why.
    async fn carry(&mut self, line: &Line, queue: &mut mpsc::Receiver<Bytes>) -> String {
        let mut next = None;
        let mut heard = Instant::now();
        loop {
            tokio::select! {
                notice = timeout_at(heard + SILENCE, self.notices.message()) => {
                    if let Some(ended) = hear(line, notice).await {
                        return ended;
                    }
                    heard = Instant::now();
                }
                message = queue.recv(), if next.is_none() => match message {
                    Some(message) => next = Some(message),
                    None => return "it is no peer any more".to_owned(),
                },
                // While the connection takes nothing the queue fills, and drops.
                permit = self.wire.reserve(), if next.is_some() => match permit {
                    Ok(permit) => {
                        let body = next.take().map(peer_frame::Body::Message);
                        permit.send(v1::PeerFrame { body });
                    }
                    Err(_) => return "the connection closed".to_owned(),
                },
            }
        }
    }
}

type Heard = Result<Result<Option<v1::PeerNotice>, Status>, tokio::time::error::Elapsed>;

async fn hear(line: &Line, notice: Heard) -> Option<String> {
    match notice {
        Err(_) => Some("it fell silent".to_owned()),
        Ok(Err(status)) => Some(status.to_string()),
        Ok(Ok(None)) => Some("it ended".to_owned()),
        Ok(Ok(Some(notice))) => match notice.body {
            Some(Notice::NotAMember(not)) => {
                line.replica.report_removed(not.as_of).await;
                Some("it does not take this one for a member".to_owned())
            }
            Some(Notice::Alive(_)) | None => None,
        },
    }
}
