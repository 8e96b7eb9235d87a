//! The handle through which everyone else uses a replica.

use std::sync::Arc;

use protobuf::Message as _;
use raft::eraftpb::Message;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout_at},
};

use crate::{
    changes::{Gate, Progressed},
    config::Config,
    core::is_from_a_member,
    driver::{self, Parts, Request, Watched},
    error::{ChangeError, Doubt, Ended, MalformedMessage, ProposeError, ReadError, StartError},
    log::LogStore,
    machine::{Machine, Observer},
    membership::{Change, Group, Members},
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

/// The whole state, as bytes for [`Machine::restore`], and where in the log it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    pub index: u64,
    pub term: u64,
    pub group: Group,
    pub state: Vec<u8>,
}

/// One running member of a group. Clones are the same member. When the last one is dropped the
/// replica ends as after [`Replica::shutdown`], only that nobody waits for it.
#[derive(Debug)]
pub struct Replica<R> {
    inbox: mpsc::Sender<Request<R>>,
    id: u64,
    watched: Watched,
    ended: watch::Receiver<Option<Ended>>,
}

impl<R> Clone for Replica<R> {
    fn clone(&self) -> Self {
        Self {
            inbox: self.inbox.clone(),
            id: self.id,
            watched: self.watched.clone(),
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
        let id = config.id;
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
        let watched = start.await.map_err(|_| StartError::Panicked)??;
        Ok(Self {
            inbox,
            id,
            watched,
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
    /// Any member may be asked; one that follows asks the leader, and waits while there is none.
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

    pub fn id(&self) -> u64 {
        self.id
    }

    /// The latest status; changes with every batch.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.watched.status.clone()
    }

    /// Who is in the group, as far as this member knows; changes with the group.
    pub fn group(&self) -> watch::Receiver<Group> {
        self.watched.group.clone()
    }

    /// Who is in the group and, on the leader, how far they have come.
    pub async fn members(&self, deadline: Instant) -> Result<Members, ReadError> {
        let (reply, answer) = oneshot::channel();
        let exchange = async {
            let sent = self.inbox.send(Request::Members { reply }).await;
            sent.map_err(|_| ReadError::Stopped)?;
            answer.await.map_err(|_| ReadError::Stopped)
        };
        timeout_at(deadline, exchange)
            .await
            .unwrap_or(Err(ReadError::Deadline))
    }

    /// The state as this member has it: after [`Replica::read_index`], with everything acknowledged
    /// before. The group waits while it is written out, as for any snapshot.
    pub async fn save(&self, deadline: Instant) -> Result<Saved, ReadError> {
        let (reply, answer) = oneshot::channel();
        let exchange = async {
            let sent = self.inbox.send(Request::Save { reply }).await;
            sent.map_err(|_| ReadError::Stopped)?;
            let saved = answer.await.map_err(|_| ReadError::Stopped)?;
            saved.ok_or(ReadError::Nothing)
        };
        timeout_at(deadline, exchange)
            .await
            .unwrap_or(Err(ReadError::Deadline))
    }

    /// Adds a member that receives everything and counts for no majority. Its id must never have
    /// been another member's. It is to be started with no voters in its [`Config`].
    pub async fn add_learner(&self, id: u64, deadline: Instant) -> Result<(), ChangeError> {
        let change = Change::AddLearner(id);
        self.change(change, Box::new(|_| true), deadline).await
    }

    /// Makes a learner a voter, once it has caught up and `ready` says that it has what it needs
    /// beside the log. `ready` is called on the replica's thread and must not block. A second or
    /// fourth voter is let in only when another learner may follow it at once.
    pub async fn promote(
        &self,
        id: u64,
        ready: impl Fn(u64) -> bool + Send + 'static,
        deadline: Instant,
    ) -> Result<(), ChangeError> {
        let change = Change::Promote(id);
        self.change(change, Box::new(ready), deadline).await
    }

    /// Removes a member; a voter becomes a learner on the way. Its id is spent: it must not come
    /// back under it. Asked to remove itself, the leader hands leadership over, waits for that,
    /// and answers [`ChangeError::NotLeader`] with whom to ask.
    pub async fn remove(&self, id: u64, deadline: Instant) -> Result<(), ChangeError> {
        let change = Change::Remove(id);
        self.change(change, Box::new(|_| true), deadline).await
    }

    async fn change(
        &self,
        change: Change,
        gate: Gate,
        deadline: Instant,
    ) -> Result<(), ChangeError> {
        let mut gate = Some(gate);
        loop {
            let (reply, answer) = oneshot::channel();
            let request = Request::Change {
                change,
                // Only a removal has a second step, and it has no gate.
                gate: gate.take().unwrap_or_else(|| Box::new(|_| true)),
                reply,
            };
            match self.ask(request, answer, deadline).await? {
                Progressed::Done => return Ok(()),
                Progressed::Step => {}
                Progressed::HandOver(to) => {
                    let leader = Some(self.transfer(Some(to), deadline).await?);
                    return Err(ChangeError::NotLeader { leader });
                }
            }
        }
    }

    /// Hands leadership to this voter, or to the one that has most of the log, and waits until it
    /// leads. Returns who does.
    pub async fn transfer(&self, to: Option<u64>, deadline: Instant) -> Result<u64, ChangeError> {
        let (reply, answer) = oneshot::channel();
        let request = Request::Transfer { to, reply };
        self.ask(request, answer, deadline).await
    }

    async fn ask<T>(
        &self,
        request: Request<R>,
        answer: oneshot::Receiver<Result<T, ChangeError>>,
        deadline: Instant,
    ) -> Result<T, ChangeError> {
        match timeout_at(deadline, self.inbox.send(request)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(ChangeError::Stopped),
            Err(_) => return Err(ChangeError::Busy),
        }
        match timeout_at(deadline, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(ChangeError::Unknown(Doubt::Stopped)),
            Err(_) => Err(ChangeError::Unknown(Doubt::Deadline)),
        }
    }

    /// A message from a peer's [`Transport`]. Dropped when this member is too busy; raft repeats
    /// it. `peer` must be authenticated, and the bytes limited in size, by whoever read them.
    pub fn deliver(&self, peer: u64, bytes: &[u8]) -> Result<(), MalformedMessage> {
        let request = Request::Peer(Box::new(self.parse(peer, bytes)?));
        if self.inbox.try_send(request).is_err() {
            tracing::debug!("message from a peer dropped: busy or stopped");
        }
        Ok(())
    }

    /// As [`Replica::deliver`], and waits while this member is busy: a snapshot costs too much to
    /// be sent twice.
    pub async fn deliver_snapshot(&self, peer: u64, bytes: &[u8]) -> Result<(), MalformedMessage> {
        let request = Request::Peer(Box::new(self.parse(peer, bytes)?));
        // Nothing to deliver to once it has stopped.
        let _ = self.inbox.send(request).await;
        Ok(())
    }

    fn parse(&self, peer: u64, bytes: &[u8]) -> Result<Message, MalformedMessage> {
        let message = Message::parse_from_bytes(bytes).map_err(MalformedMessage::Format)?;
        let (from, to) = (message.from, message.to);
        if from != peer || to != self.id {
            return Err(MalformedMessage::Address { from, to, peer });
        }
        if !is_from_a_member(&message, self.id) {
            return Err(MalformedMessage::Kind);
        }
        Ok(message)
    }

    /// A peer said that this member is not in its group, as of that index of the log. When that is
    /// news, and not old news from a peer that lags, the replica ends as [`Ended::Removed`].
    pub async fn report_removed(&self, as_of: u64) {
        let _ = self.inbox.send(Request::Removed { as_of }).await;
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
    pub(crate) fn because(result: Result<Self, crate::error::Fatal>) -> Self {
        result.unwrap_or_else(|error| Self::Failed(Arc::new(error)))
    }
}
