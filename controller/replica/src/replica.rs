//! The handle through which everyone else uses a replica.

use std::sync::Arc;

use protobuf::Message as _;
use raft::eraftpb::Message;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout_at},
};

use crate::{
    config::Config,
    driver::{self, Parts, Request},
    error::{Doubt, Ended, MalformedMessage, ProposeError, ReadError, StartError},
    log::LogStore,
    machine::{Machine, Observer},
    status::Status,
    transport::Transport,
};

/// A command that was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome<R> {
    pub index: u64,
    pub term: u64,
    pub response: R,
}

/// One running member of a group. Clones are the same member. When the last one is dropped the
/// replica ends as after [`Replica::shutdown`], only that nobody waits for it.
#[derive(Debug)]
pub struct Replica<R> {
    inbox: mpsc::Sender<Request<R>>,
    status: watch::Receiver<Status>,
    ended: watch::Receiver<Option<Ended>>,
}

impl<R> Clone for Replica<R> {
    fn clone(&self) -> Self {
        Self {
            inbox: self.inbox.clone(),
            status: self.status.clone(),
            ended: self.ended.clone(),
        }
    }
}

impl<R: Send + 'static> Replica<R> {
    /// Rebuilds the state and starts a thread for this member. Returns once the state is as it was
    /// when the member last stopped; whether it leads by then, [`Replica::status`] tells. A
    /// single voter leads within milliseconds.
    pub async fn start<M, S>(
        config: Config,
        log: S,
        machine: M,
        transport: Box<dyn Transport>,
        observer: Observer<R>,
    ) -> Result<Self, StartError>
    where
        M: Machine<Response = R>,
        S: LogStore,
    {
        config.validate()?;
        let (inbox, requests) = mpsc::channel(driver::INBOX);
        let (ended, ended_seen) = watch::channel(None);
        let (started, start) = oneshot::channel();
        let parts = Parts {
            config,
            log,
            machine,
            transport,
            observer,
            requests,
            ended,
            started,
        };
        std::thread::Builder::new()
            .name("replica".into())
            .spawn(move || driver::run(parts))
            .map_err(StartError::Thread)?;
        let status = start.await.map_err(|_| StartError::Panicked)??;
        Ok(Self {
            inbox,
            status,
            ended: ended_seen,
        })
    }

    /// Has the group apply a command, and returns what came of it. The answer comes after the
    /// machine has published the batch with it.
    ///
    /// Dropping the future does not take the command back.
    pub async fn propose(
        &self,
        command: Vec<u8>,
        deadline: Instant,
    ) -> Result<Outcome<R>, ProposeError> {
        let (reply, answer) = oneshot::channel();
        let request = Request::Propose { command, reply };
        match timeout_at(deadline, self.inbox.send(request)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(ProposeError::Stopped),
            Err(_) => return Err(ProposeError::Busy),
        }
        match timeout_at(deadline, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(ProposeError::Unknown(Doubt::Stopped)),
            Err(_) => Err(ProposeError::Unknown(Doubt::Deadline)),
        }
    }

    /// Returns an index that this replica has applied and published, and that covers every write
    /// answered anywhere in the group before the call: a read of the view is fresh from then on.
    pub async fn read_index(&self, deadline: Instant) -> Result<u64, ReadError> {
        let (reply, answer) = oneshot::channel();
        let exchange = async {
            self.inbox
                .send(Request::Read { reply })
                .await
                .map_err(|_| ReadError::Stopped)?;
            answer.await.map_err(|_| ReadError::Stopped)?
        };
        timeout_at(deadline, exchange)
            .await
            .unwrap_or(Err(ReadError::Deadline))
    }

    /// The latest status; changes with every batch.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// A message from a peer's [`Transport`]. Dropped when this member is too busy; raft repeats
    /// it. Bytes must come from an authenticated peer and be limited in size by whoever read them.
    pub fn deliver(&self, bytes: &[u8]) -> Result<(), MalformedMessage> {
        let message = Message::parse_from_bytes(bytes).map_err(MalformedMessage)?;
        if self
            .inbox
            .try_send(Request::Peer(Box::new(message)))
            .is_err()
        {
            tracing::debug!("message from a peer dropped: busy or stopped");
        }
        Ok(())
    }

    /// A message to this peer was not sent. Until it answers again, it is probed instead of
    /// streamed to.
    pub async fn report_unreachable(&self, peer: u64) {
        // Nothing to report to once it has stopped.
        let _ = self.inbox.send(Request::Unreachable(peer)).await;
    }

    /// How sending a snapshot ended. Owed for every message with `snapshot` set: the peer gets
    /// nothing else until then.
    pub async fn report_snapshot(&self, peer: u64, arrived: bool) {
        let _ = self
            .inbox
            .send(Request::SnapshotSent { peer, arrived })
            .await;
    }

    /// Hands leadership over if there is anyone to take it, brings everything to disk, and ends
    /// the thread. When this returns the store is closed and may be opened again.
    pub async fn shutdown(&self) -> Ended {
        let _ = self.inbox.send(Request::Shutdown).await;
        self.ended().await
    }

    /// Waits until the replica is no longer there, and says why. The process should end when it
    /// was not asked for: a replica that failed answers nothing.
    pub async fn ended(&self) -> Ended {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(value) => value.clone().unwrap_or(Ended::Panicked),
            Err(_) => Ended::Panicked,
        }
    }
}

impl Ended {
    pub(crate) fn because(result: Result<(), crate::error::Fatal>) -> Self {
        match result {
            Ok(()) => Self::Shutdown,
            Err(error) => Self::Failed(Arc::new(error)),
        }
    }
}
