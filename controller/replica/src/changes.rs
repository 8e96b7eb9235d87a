//! Changes of the group and transfers of leadership that somebody waits for: one at a time, in the
//! order in which they were asked for.

use std::collections::VecDeque;

use tokio::sync::oneshot;

use crate::{
    core::{Core, Position, Refused},
    error::{ChangeError, ChangeRefused, Doubt},
    log::LogStore,
    machine::Machine,
    membership::{Change, Step, next_step, transfer_target},
    status::{Role, Status},
};

const WAITING_MAX: usize = 64;

/// Whether a learner has what it needs beside the log. Called on the replica's thread.
pub(crate) type Gate = Box<dyn Fn(u64) -> bool + Send>;
pub(crate) type ChangeReply = oneshot::Sender<Result<Progressed, ChangeError>>;
pub(crate) type TransferReply = oneshot::Sender<Result<u64, ChangeError>>;

/// How far a change has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progressed {
    Done,
    /// One step of it; ask again for the next.
    Step,
    /// Nothing before another member leads.
    HandOver(u64),
}

pub(crate) struct Wanted {
    pub(crate) change: Change,
    pub(crate) gate: Gate,
    pub(crate) reply: ChangeReply,
}

pub(crate) struct Changes {
    waiting: VecDeque<Wanted>,
    /// Proposed, and what applying it means.
    proposed: Option<(Position, Progressed, ChangeReply)>,
    transfer: Option<(u64, TransferReply)>,
}

impl Changes {
    pub(crate) fn new() -> Self {
        Self {
            waiting: VecDeque::new(),
            proposed: None,
            transfer: None,
        }
    }

    pub(crate) fn want(&mut self, wanted: Wanted) {
        if self.waiting.len() >= WAITING_MAX {
            return answer(wanted.reply, Err(ChangeError::Busy));
        }
        self.waiting.push_back(wanted);
    }

    /// Takes up what waits, if this is the time for it.
    pub(crate) fn advance<S: LogStore, M: Machine>(&mut self, core: &mut Core<S, M>) {
        while !self.waiting.is_empty() {
            let status = core.status();
            let leads = status.role == Role::Leader;
            // A new leader may have a change to finish that an earlier one began.
            if leads && (!status.caught_up || core.is_changing() || core.is_transferring()) {
                return;
            }
            let Some(wanted) = self.waiting.pop_front() else {
                return;
            };
            if wanted.reply.is_closed() {
                continue;
            }
            if !leads {
                let leader = status.leader;
                answer(wanted.reply, Err(ChangeError::NotLeader { leader }));
                continue;
            }
            self.begin(core, status.id, wanted);
        }
    }

    fn begin<S: LogStore, M: Machine>(&mut self, core: &mut Core<S, M>, me: u64, wanted: Wanted) {
        let Wanted {
            change,
            gate,
            reply,
        } = wanted;
        let step = match next_step(&core.members(), me, change, &*gate) {
            Ok(step) => step,
            Err(refused) => return answer(reply, Err(refused.into())),
        };
        let means = match step {
            Step::Nothing => return answer(reply, Ok(Progressed::Done)),
            Step::HandOver(to) => return answer(reply, Ok(Progressed::HandOver(to))),
            Step::Demote(_) => Progressed::Step,
            Step::AddLearner(_) | Step::Promote(_) | Step::Remove(_) => Progressed::Done,
        };
        match core.propose_step(step) {
            Ok(Some(at)) => self.proposed = Some((at, means, reply)),
            Ok(None) => answer(reply, Ok(means)),
            Err(Refused::NotLeader { leader }) => {
                answer(reply, Err(ChangeError::NotLeader { leader }));
            }
            Err(Refused::Busy | Refused::Empty | Refused::TooLarge { .. }) => {
                answer(reply, Err(ChangeError::Busy));
            }
        }
    }

    pub(crate) fn applied(&mut self, at: Position) {
        if let Some((_, means, reply)) = self.proposed.take_if(|(position, ..)| *position == at) {
            answer(reply, Ok(means));
        }
    }

    pub(crate) fn transfer<S: LogStore, M: Machine>(
        &mut self,
        core: &mut Core<S, M>,
        to: Option<u64>,
        reply: TransferReply,
    ) {
        let status = core.status();
        if status.role != Role::Leader {
            let leader = status.leader;
            return answer(reply, Err(ChangeError::NotLeader { leader }));
        }
        if self.transfer.is_some() {
            return answer(reply, Err(ChangeError::Busy));
        }
        match transfer_target(&core.members(), status.id, to) {
            Err(refused) => answer(reply, Err(refused.into())),
            Ok(to) if to == status.id => answer(reply, Ok(to)),
            Ok(to) => {
                core.transfer(to);
                self.transfer = Some((to, reply));
            }
        }
    }

    /// Lets go of whoever waits for what can no longer come.
    pub(crate) fn look(&mut self, status: &Status, transferring: bool) {
        let leading = (status.role == Role::Leader).then_some(status.term);
        let lost = |(at, ..): &mut (Position, Progressed, ChangeReply)| Some(at.term) != leading;
        if let Some((_, _, reply)) = self.proposed.take_if(lost) {
            answer(reply, Err(ChangeError::Unknown(Doubt::LeadershipLost)));
        }
        // Who leads next is not known at once.
        let ended = |_: &mut (u64, TransferReply)| match leading {
            Some(_) => !transferring,
            None => status.leader.is_some(),
        };
        if let Some((id, reply)) = self.transfer.take_if(ended) {
            let outcome = match status.leader {
                Some(leader) if leader == id => Ok(id),
                _ => Err(ChangeRefused::NotTaken { id }.into()),
            };
            answer(reply, outcome);
        }
    }
}

/// Whoever stopped waiting no longer wants to know.
fn answer<T>(reply: oneshot::Sender<T>, value: T) {
    let _ = reply.send(value);
}
