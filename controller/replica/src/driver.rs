//! The thread that owns a [`Core`] and feeds it from requests, peers and the clock.
//!
//! Each round: drain the inbox, work through one batch, answer. Nothing else touches raft, the
//! log or the machine, so none of them needs a lock, and the disk blocks nobody else.

use std::collections::VecDeque;

use protobuf::Message as _;
use raft::eraftpb::{Message, MessageType};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior, interval},
};

use crate::{
    changes::{ChangeReply, Changes, Gate, TransferReply, Wanted},
    config::Config,
    core::{Core, Done, Output, Position, Refused},
    error::{Doubt, Ended, Fatal, ProposeError, ReadError, StartError},
    log::{COMMAND_BYTES_MAX, LogStore},
    machine::{Applied, Machine, Observer},
    membership::{Change, Group, Members},
    reads::Reads,
    replica::{Outcome, Saved},
    status::{Role, Status},
    transport::{PeerMessage, Transport},
};

/// Requests that may wait for the thread. Senders beyond that wait themselves.
pub(crate) const INBOX: usize = 4_096;
/// Requests taken in one round, so that ticks and answers are not delayed under load.
const ROUND: usize = 1_024;
/// Proposals that may wait to be applied.
const WAITING_MAX: usize = 65_536;

pub(crate) enum Request<R> {
    Propose {
        command: Vec<u8>,
        reply: ProposeReply<R>,
    },
    Read {
        reply: ReadReply,
    },
    Peer(Box<Message>),
    Unreachable(u64),
    SnapshotSent {
        peer: u64,
        arrived: bool,
    },
    Change {
        change: Change,
        gate: Gate,
        reply: ChangeReply,
    },
    Transfer {
        to: Option<u64>,
        reply: TransferReply,
    },
    Members {
        reply: oneshot::Sender<Members>,
    },
    Save {
        reply: oneshot::Sender<Option<Saved>>,
    },
    /// A peer says that this member is none, as of this index.
    Removed {
        as_of: u64,
    },
    Shutdown,
}

type ProposeReply<R> = oneshot::Sender<Result<Outcome<R>, ProposeError>>;
type ReadReply = oneshot::Sender<Result<u64, ReadError>>;

pub(crate) struct Parts<M: Machine, S> {
    pub(crate) config: Config,
    pub(crate) log: S,
    pub(crate) machine: M,
    pub(crate) transport: Box<dyn Transport>,
    pub(crate) observer: Observer<M::Response>,
    pub(crate) requests: mpsc::Receiver<Request<M::Response>>,
    pub(crate) ended: watch::Sender<Option<Ended>>,
    pub(crate) started: oneshot::Sender<Result<Watched, StartError>>,
}

/// What a running member shows of itself.
#[derive(Debug, Clone)]
pub(crate) struct Watched {
    pub(crate) status: watch::Receiver<Status>,
    pub(crate) group: watch::Receiver<Group>,
}

/// The whole life of the thread.
pub(crate) fn run<M: Machine, S: LogStore>(parts: Parts<M, S>) {
    let Parts {
        config,
        log,
        machine,
        transport,
        observer,
        requests,
        ended,
        started,
    } = parts;
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = started.send(Err(StartError::Thread(error)));
            return;
        }
    };
    let core = match Core::new(&config, log, machine) {
        Ok(core) => core,
        Err(error) => {
            let _ = started.send(Err(StartError::Recover(error)));
            return;
        }
    };
    if core.is_removed() {
        let _ = started.send(Err(StartError::Removed { id: config.id }));
        return;
    }
    let (status, status_seen) = watch::channel(core.status());
    let (group, group_seen) = watch::channel(core.group());
    let watched = Watched {
        status: status_seen,
        group: group_seen,
    };
    if started.send(Ok(watched)).is_err() {
        return;
    }
    let desk = Desk {
        transport,
        observer,
        proposals: VecDeque::new(),
        reads: Reads::new(),
        changes: Changes::new(),
        leading_term: None,
    };
    let mut driver = Driver {
        config,
        core,
        desk,
        status,
        group,
        group_shown: 0,
        requests,
        leaving: None,
        removed: false,
    };
    let result = runtime.block_on(driver.work());
    if let Err(error) = &result {
        let error: &dyn std::error::Error = error;
        let cause = error.source().map(ToString::to_string);
        tracing::error!(%error, cause, "the replica stops: nothing more can be written");
    }
    // Waiters see their channels close, and the store is closed, before anyone hears of the end.
    drop(driver);
    ended.send_replace(Some(Ended::because(result)));
}

struct Driver<M: Machine, S: LogStore> {
    config: Config,
    core: Core<S, M>,
    desk: Desk<M::Response>,
    status: watch::Sender<Status>,
    group: watch::Sender<Group>,
    group_shown: u64,
    requests: mpsc::Receiver<Request<M::Response>>,
    /// Shutting down: until when a hand-over of leadership is waited for.
    leaving: Option<Instant>,
    removed: bool,
}

impl<M: Machine, S: LogStore> Driver<M, S> {
    async fn work(&mut self) -> Result<Ended, Fatal> {
        let mut ticks = interval(self.config.tick);
        // A disk that stalled for a second must not be followed by twenty ticks at once: they
        // would look like twenty ticks without a leader.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut round = Vec::new();
        loop {
            let busy = self.core.has_work();
            let taken = tokio::select! {
                biased;
                _ = ticks.tick() => {
                    self.tick();
                    None
                }
                taken = self.requests.recv_many(&mut round, ROUND) => Some(taken),
                () = std::future::ready(()), if busy => None,
            };
            if taken == Some(0) {
                // Every handle is gone.
                self.core.flush()?;
                return Ok(Ended::Shutdown);
            }
            for request in round.drain(..) {
                self.take(request);
            }
            self.show();
            self.desk.changes.advance(&mut self.core);
            self.ask_for_reads();
            self.core.advance(&mut self.desk)?;
            self.show();
            self.desk.answer_reads(self.core.applied());
            if self.removed || self.core.is_removed() {
                let id = self.config.id;
                tracing::error!(
                    id,
                    "this member was removed from its group and stops; to come back it must join \
                     under a new id"
                );
                self.core.flush()?;
                return Ok(Ended::Removed);
            }
            if self.may_leave() {
                self.core.flush()?;
                return Ok(Ended::Shutdown);
            }
        }
    }

    fn tick(&mut self) {
        self.core.tick();
        let patience = u32::try_from(self.config.election_ticks).unwrap_or(u32::MAX);
        self.desk.reads.tick(patience, ReadReply::is_closed);
    }

    fn take(&mut self, request: Request<M::Response>) {
        match request {
            Request::Propose { command, reply } => self.propose(command, reply),
            Request::Read { reply } => {
                if let Err(reply) = self.desk.reads.queue(reply) {
                    answer(reply, Err(ReadError::Busy));
                }
            }
            Request::Peer(message) => self.core.step(*message),
            Request::Unreachable(peer) => self.core.unreachable(peer),
            Request::SnapshotSent { peer, arrived } => self.core.snapshot_sent(peer, arrived),
            Request::Change {
                change,
                gate,
                reply,
            } => self.desk.changes.want(Wanted {
                change,
                gate,
                reply,
            }),
            Request::Transfer { to, reply } => {
                self.desk.changes.transfer(&mut self.core, to, reply);
            }
            Request::Save { reply } => answer(reply, self.core.save()),
            Request::Members { reply } => answer(reply, self.core.members()),
            Request::Removed { as_of } => self.removed |= self.core.is_removed_as_of(as_of),
            Request::Shutdown => {
                let patience = if self.core.hand_over() {
                    let ticks = u32::try_from(self.config.election_ticks).unwrap_or(u32::MAX);
                    self.config.tick.saturating_mul(ticks)
                } else {
                    std::time::Duration::ZERO
                };
                self.leaving.get_or_insert(Instant::now() + patience);
            }
        }
    }

    fn propose(&mut self, command: Vec<u8>, reply: ProposeReply<M::Response>) {
        // Whoever no longer waits has been told that the outcome is unknown; not starting it is
        // one of the outcomes.
        if reply.is_closed() {
            return;
        }
        if self.desk.proposals.len() >= WAITING_MAX {
            return answer(reply, Err(ProposeError::Busy));
        }
        match self.core.propose(command) {
            Ok(position) => self.desk.proposals.push_back((position, reply)),
            Err(refused) => answer(reply, Err(refused.into())),
        }
    }

    /// Raft drops a read request while the leader has committed nothing in its own term, so they
    /// wait here until then; and without a leader to ask.
    fn ask_for_reads(&mut self) {
        let status = self.core.status();
        let follows = status.role == Role::Follower && status.leader.is_some();
        if (status.caught_up || follows)
            && let Some(context) = self.desk.reads.send()
        {
            self.core.read_index(context);
        }
    }

    /// Publishes the status, and then lets go of whoever waited for a leadership that ended: they
    /// may look at the status next.
    fn show(&mut self) {
        let status = self.core.status();
        let reads = &mut self.desk.reads;
        self.status.send_if_modified(|seen| {
            if (seen.role, seen.term, seen.leader) != (status.role, status.term, status.leader) {
                let Status {
                    role,
                    term,
                    leader,
                    applied,
                    ..
                } = &status;
                tracing::info!(?role, term, ?leader, applied, "raft role");
                reads.send_again();
            }
            let changed = *seen != status;
            seen.clone_from(&status);
            changed
        });
        self.desk.check_leadership(&status);
        let transferring = self.core.is_transferring();
        self.desk.changes.look(&status, transferring);
        let version = self.core.group_version();
        if std::mem::replace(&mut self.group_shown, version) != version {
            self.group.send_replace(self.core.group());
        }
    }

    fn may_leave(&self) -> bool {
        self.leaving
            .is_some_and(|until| self.core.status().role != Role::Leader || Instant::now() >= until)
    }
}

impl From<Refused> for ProposeError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::NotLeader { leader } => Self::NotLeader { leader },
            Refused::TooLarge { bytes } => Self::TooLarge {
                bytes,
                limit: COMMAND_BYTES_MAX,
            },
            Refused::Empty => Self::Empty,
            Refused::Busy => Self::Busy,
        }
    }
}

/// Everyone who waits for something, and everyone who is told.
struct Desk<R> {
    transport: Box<dyn Transport>,
    observer: Observer<R>,
    /// By position, rising.
    proposals: VecDeque<(Position, ProposeReply<R>)>,
    reads: Reads<ReadReply>,
    changes: Changes,
    /// The term in which `proposals` were taken in.
    leading_term: Option<u64>,
}

impl<R> Desk<R> {
    /// Lets go of everyone when the term in which this member led has ended. Their commands may
    /// survive under the next leader, or not: nobody here will learn which.
    fn check_leadership(&mut self, status: &Status) {
        let leading = (status.role == Role::Leader).then_some(status.term);
        if leading == self.leading_term {
            return;
        }
        // The proposals of a term that has just begun stay.
        while let Some((_, reply)) = self
            .proposals
            .pop_front_if(|(position, _)| Some(position.term) != leading)
        {
            answer(reply, Err(ProposeError::Unknown(Doubt::LeadershipLost)));
        }
        self.leading_term = leading;
    }

    fn answer_reads(&mut self, applied: u64) {
        for reply in self.reads.applied(applied) {
            answer(reply, Ok(applied));
        }
    }
}

impl<R> Output<R> for Desk<R> {
    fn send(&mut self, message: Message) {
        let to = message.to;
        let snapshot = message.get_msg_type() == MessageType::MsgSnapshot;
        match message.write_to_bytes() {
            Ok(bytes) => self.transport.send(PeerMessage {
                to,
                bytes,
                snapshot,
            }),
            Err(error) => tracing::error!(%error, to, "message to a peer cannot be encoded"),
        }
    }

    fn applied(&mut self, applied: Done<R>) {
        let Done {
            index,
            term,
            leading,
            response,
        } = applied;
        (self.observer)(Applied {
            index,
            term,
            leading,
            response: &response,
        });
        // While this member leads, every entry of its term is applied in order, so whatever lies
        // before this one can only be a proposal that a membership change swallowed.
        while let Some((_, reply)) = self.proposals.pop_front_if(|(at, _)| at.index < index) {
            answer(reply, Err(ProposeError::Unknown(Doubt::LeadershipLost)));
        }
        let position = Position { index, term };
        if let Some((_, reply)) = self.proposals.pop_front_if(|(at, _)| *at == position) {
            answer(
                reply,
                Ok(Outcome {
                    index,
                    term,
                    response,
                }),
            );
        }
    }

    fn read_confirmed(&mut self, context: u64, index: u64) {
        self.reads.confirmed(context, index);
    }

    fn members_changed(&mut self, at: Position) {
        self.changes.applied(at);
    }
}

/// Whoever stopped waiting no longer wants to know.
fn answer<T>(reply: oneshot::Sender<T>, value: T) {
    let _ = reply.send(value);
}
