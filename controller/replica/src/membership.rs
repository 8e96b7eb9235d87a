//! Who may join, rise and leave: decided here from values, proposed and applied elsewhere.
//!
//! A member comes as a learner, which counts for no majority, and becomes a voter once it has
//! caught up. It leaves in two steps, as a learner again first. One step of one member at a time;
//! joint configurations are not needed.

use raft::eraftpb::ConfState;

use crate::error::ChangeRefused;

/// A learner that lacks more entries than this would hold up commits if it became a voter.
pub(crate) const LAG_MAX: u64 = 1_000;
/// More voters make every write slower, and a group of five survives two losses.
const VOTERS_MAX: usize = 5;
/// Each is sent everything that is written.
const LEARNERS_MAX: usize = 8;

/// The ids of a group's members, and since which entry of the log they are those.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Group {
    /// Up to here the member that says this had applied the log when it learned of them.
    pub as_of: u64,
    /// Rising, both.
    pub voters: Vec<u64>,
    pub learners: Vec<u64>,
}

impl Group {
    pub(crate) fn of(members: &ConfState, as_of: u64) -> Self {
        let sorted = |ids: &[u64]| {
            let mut ids = ids.to_vec();
            ids.sort_unstable();
            ids
        };
        let learners = [&members.learners[..], &members.learners_next].concat();
        Self {
            as_of,
            voters: sorted(&members.voters),
            learners: sorted(&learners),
        }
    }

    pub fn contains(&self, id: u64) -> bool {
        self.voters.contains(&id) || self.learners.contains(&id)
    }

    /// A member that waits to be added knows of nobody.
    pub fn is_empty(&self) -> bool {
        self.voters.is_empty() && self.learners.is_empty()
    }

    pub fn ids(&self) -> impl Iterator<Item = u64> + '_ {
        self.voters.iter().chain(&self.learners).copied()
    }
}

/// The members as the leader sees them, or, without [`Member::progress`], as any other member does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Members {
    /// By id, both.
    pub voters: Vec<Member>,
    pub learners: Vec<Member>,
    pub leader: Option<u64>,
    /// The last entry of this member's log.
    pub last_index: u64,
    /// Up to here this member has applied the log.
    pub applied: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    pub id: u64,
    /// Only the leader knows.
    pub progress: Option<Progress>,
}

/// How far a member has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Up to here its log is the leader's.
    pub matched: u64,
    /// Something was heard from it within two election timeouts.
    pub active: bool,
    /// It is being sent a snapshot.
    pub snapshot: bool,
}

impl Members {
    fn learner(&self, id: u64) -> Option<&Member> {
        self.learners.iter().find(|member| member.id == id)
    }

    fn voter(&self, id: u64) -> Option<&Member> {
        self.voters.iter().find(|member| member.id == id)
    }

    /// Why a member must not be trusted with a vote, or with leadership, yet.
    fn behind(&self, member: &Member) -> Option<ChangeRefused> {
        let id = member.id;
        let progress = member.progress?;
        if !progress.active {
            return Some(ChangeRefused::Silent { id });
        }
        let lag = self.last_index.saturating_sub(progress.matched);
        (lag > LAG_MAX || progress.snapshot).then_some(ChangeRefused::Behind { id, lag })
    }

    /// Whether a majority of these voters was heard from; the leader hears itself.
    fn majority<'a>(voters: impl Iterator<Item = &'a Member>) -> Result<(), ChangeRefused> {
        let (mut left, mut active) = (0, 0);
        for voter in voters {
            left += 1;
            active += usize::from(voter.progress.is_none_or(|progress| progress.active));
        }
        if active > left / 2 {
            return Ok(());
        }
        Err(ChangeRefused::LosesMajority { left, active })
    }

    /// The voter that should lead when `leader` no longer does.
    pub(crate) fn heir(&self, leader: u64) -> Option<u64> {
        let others = self.voters.iter().filter(|voter| voter.id != leader);
        let able = others.filter(|voter| self.behind(voter).is_none());
        able.max_by_key(|voter| (voter.progress.map(|p| p.matched), voter.id))
            .map(|voter| voter.id)
    }
}

/// What somebody wants of the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    AddLearner(u64),
    Promote(u64),
    Remove(u64),
}

/// The next thing to do about it, on the leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// It is so already.
    Nothing,
    AddLearner(u64),
    Promote(u64),
    /// From voter to learner.
    Demote(u64),
    Remove(u64),
    /// Another member must lead first.
    HandOver(u64),
}

/// `me` leads. `ready` says whether a learner has what it needs beside the log.
pub(crate) fn next_step(
    members: &Members,
    me: u64,
    change: Change,
    ready: &dyn Fn(u64) -> bool,
) -> Result<Step, ChangeRefused> {
    match change {
        Change::AddLearner(0) => Err(ChangeRefused::NotAMember { id: 0 }),
        Change::AddLearner(id) => add_learner(members, id),
        Change::Promote(id) => promote(members, id, ready),
        Change::Remove(id) => remove(members, me, id),
    }
}

fn add_learner(members: &Members, id: u64) -> Result<Step, ChangeRefused> {
    if members.voter(id).is_some() {
        return Err(ChangeRefused::AlreadyVoter { id });
    }
    if members.learner(id).is_some() {
        return Ok(Step::Nothing);
    }
    if members.learners.len() >= LEARNERS_MAX {
        let limit = LEARNERS_MAX;
        return Err(ChangeRefused::TooManyLearners { limit });
    }
    Ok(Step::AddLearner(id))
}

fn promote(members: &Members, id: u64, ready: &dyn Fn(u64) -> bool) -> Result<Step, ChangeRefused> {
    if members.voter(id).is_some() {
        return Ok(Step::Nothing);
    }
    let learner = members.learner(id);
    let learner = learner.ok_or(ChangeRefused::NotAMember { id })?;
    let voters = members.voters.len();
    if voters >= VOTERS_MAX {
        return Err(ChangeRefused::Full { id, voters });
    }
    if let Some(reason) = members.behind(learner) {
        return Err(reason);
    }
    if !ready(id) {
        return Err(ChangeRefused::NotReady { id });
    }
    // Two or four voters survive no more losses than one or three do, and need one more for a
    // majority. So it is a step on the way, taken when the next one can follow.
    let company = members
        .learners
        .iter()
        .any(|other| other.id != id && members.behind(other).is_none() && ready(other.id));
    if voters % 2 == 1 && !company {
        return Err(ChangeRefused::Even { id, voters });
    }
    Members::majority(members.voters.iter().chain([learner]))?;
    Ok(Step::Promote(id))
}

/// A voter becomes a learner first. It may be needed for one more election: the leader may fall
/// before it stored that the change is committed, and if the one that left had heard of that
/// and gone, the two of them could not elect anybody any more.
fn remove(members: &Members, me: u64, id: u64) -> Result<Step, ChangeRefused> {
    if members.learner(id).is_some() {
        return Ok(Step::Remove(id));
    }
    if members.voter(id).is_none() {
        return Err(ChangeRefused::NotAMember { id });
    }
    if members.voters.len() == 1 {
        return Err(ChangeRefused::LastVoter { id });
    }
    Members::majority(members.voters.iter().filter(|voter| voter.id != id))?;
    if id != me {
        return Ok(Step::Demote(id));
    }
    // A leader that leaves its group does not stop leading by itself.
    let heir = members.heir(me);
    heir.map(Step::HandOver).ok_or(ChangeRefused::NoHeir)
}

/// Whether leadership may go to `to`, or to the best there is.
pub(crate) fn transfer_target(
    members: &Members,
    me: u64,
    to: Option<u64>,
) -> Result<u64, ChangeRefused> {
    let Some(id) = to else {
        return members.heir(me).ok_or(ChangeRefused::NoHeir);
    };
    let voter = members.voter(id);
    let voter = voter.ok_or(ChangeRefused::NotAVoter { id })?;
    match members.behind(voter) {
        Some(reason) if id != me => Err(reason),
        _ => Ok(id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// At entry 5,000 of the leader's log, which is member 1's.
    fn members(voters: &[u64], learners: &[u64]) -> Members {
        let member = |id: &u64| Member {
            id: *id,
            progress: Some(Progress {
                matched: 4_999,
                active: true,
                snapshot: false,
            }),
        };
        Members {
            voters: voters.iter().map(member).collect(),
            learners: learners.iter().map(member).collect(),
            leader: Some(1),
            last_index: 5_000,
            applied: 5_000,
        }
    }

    fn progress(members: &mut Members, id: u64) -> &mut Progress {
        let mut all = members.voters.iter_mut().chain(&mut members.learners);
        all.find(|member| member.id == id)
            .and_then(|member| member.progress.as_mut())
            .unwrap()
    }

    fn step(members: &Members, change: Change) -> Result<Step, ChangeRefused> {
        next_step(members, 1, change, &|_| true)
    }

    #[test]
    fn a_member_comes_as_a_learner_once() {
        let group = members(&[1], &[2]);
        let add = |id| step(&group, Change::AddLearner(id));
        assert_eq!(add(3), Ok(Step::AddLearner(3)));
        assert_eq!(add(2), Ok(Step::Nothing));
        assert_eq!(add(1), Err(ChangeRefused::AlreadyVoter { id: 1 }));
        assert!(add(0).is_err());
        let full = members(&[1], &[2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(
            step(&full, Change::AddLearner(10)),
            Err(ChangeRefused::TooManyLearners { limit: 8 })
        );
    }

    #[test]
    fn a_learner_rises_when_it_has_caught_up_and_its_gate_is_open() {
        let mut group = members(&[1, 2], &[3]);
        let rise = |group: &Members| step(group, Change::Promote(3));
        assert_eq!(rise(&group), Ok(Step::Promote(3)));
        let closed = next_step(&group, 1, Change::Promote(3), &|_| false);
        assert_eq!(closed, Err(ChangeRefused::NotReady { id: 3 }));
        progress(&mut group, 3).matched = 5_000 - LAG_MAX;
        assert_eq!(rise(&group), Ok(Step::Promote(3)));
        progress(&mut group, 3).matched -= 1;
        let lag = LAG_MAX + 1;
        assert_eq!(rise(&group), Err(ChangeRefused::Behind { id: 3, lag }));
        progress(&mut group, 3).active = false;
        assert_eq!(rise(&group), Err(ChangeRefused::Silent { id: 3 }));
        let stranger = step(&group, Change::Promote(4));
        assert_eq!(stranger, Err(ChangeRefused::NotAMember { id: 4 }));
    }

    #[test]
    fn an_even_number_of_voters_is_only_passed_through() {
        for (voters, learners) in [(&[1][..], &[2][..]), (&[1, 3, 4], &[2])] {
            let mut group = members(voters, learners);
            let voters = voters.len();
            let alone = step(&group, Change::Promote(2));
            assert_eq!(alone, Err(ChangeRefused::Even { id: 2, voters }));
            group.learners.extend(members(&[], &[9]).learners);
            assert_eq!(step(&group, Change::Promote(2)), Ok(Step::Promote(2)));
            let company = next_step(&group, 1, Change::Promote(2), &|id| id == 2);
            assert_eq!(company, Err(ChangeRefused::Even { id: 2, voters }));
            progress(&mut group, 9).active = false;
            let company = step(&group, Change::Promote(2));
            assert_eq!(company, Err(ChangeRefused::Even { id: 2, voters }));
        }
        let five = members(&[1, 2, 3, 4, 5], &[6, 7]);
        assert_eq!(
            step(&five, Change::Promote(6)),
            Err(ChangeRefused::Full { id: 6, voters: 5 })
        );
    }

    #[test]
    fn a_voter_leaves_in_two_steps_and_never_the_last() {
        let group = members(&[1, 2], &[3]);
        let leave = |id| step(&group, Change::Remove(id));
        assert_eq!(leave(2), Ok(Step::Demote(2)));
        assert_eq!(leave(3), Ok(Step::Remove(3)));
        assert_eq!(leave(1), Ok(Step::HandOver(2)), "it leads");
        assert_eq!(leave(4), Err(ChangeRefused::NotAMember { id: 4 }));
        let alone = step(&members(&[1], &[]), Change::Remove(1));
        assert_eq!(alone, Err(ChangeRefused::LastVoter { id: 1 }));
    }

    #[test]
    fn whoever_leaves_must_leave_a_majority_behind() {
        let mut group = members(&[1, 2, 3], &[]);
        progress(&mut group, 3).active = false;
        assert_eq!(step(&group, Change::Remove(3)), Ok(Step::Demote(3)));
        assert_eq!(
            step(&group, Change::Remove(2)),
            Err(ChangeRefused::LosesMajority { left: 2, active: 1 })
        );
    }

    #[test]
    fn leadership_goes_to_the_voter_that_has_most() {
        let mut group = members(&[1, 2, 3], &[4]);
        let target = |group: &Members, to| transfer_target(group, 1, to);
        assert_eq!(target(&group, None), Ok(3));
        progress(&mut group, 2).matched += 1;
        assert_eq!(target(&group, None), Ok(2));
        progress(&mut group, 2).active = false;
        assert_eq!(target(&group, None), Ok(3));
        let silent = target(&group, Some(2));
        assert_eq!(silent, Err(ChangeRefused::Silent { id: 2 }));
        let learner = target(&group, Some(4));
        assert_eq!(learner, Err(ChangeRefused::NotAVoter { id: 4 }));
        assert_eq!(target(&group, Some(1)), Ok(1));
        progress(&mut group, 3).active = false;
        assert_eq!(target(&group, None), Err(ChangeRefused::NoHeir));
    }
}
