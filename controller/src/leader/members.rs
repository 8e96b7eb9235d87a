//! Brings the group of controllers to what the cluster's books say: who was let in is added as a
//! learner and becomes a voter when it can, who is in the books no more is taken out.
//!
//! Everything may be repeated, and what is refused now (a learner has not caught up, a second voter
//! would make an even number) is asked again at the next turn.

use std::{collections::BTreeSet, sync::Arc};

use coracle_base::Shutdown;
use coracle_replica::{ChangeError, Members};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::core::{Core, chain};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Add(u64),
    Promote(u64),
    Remove(u64),
}

pub(super) async fn run(core: Arc<Core>, shutdown: Shutdown) {
    let mut ticks = interval(core.config.tick);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.requested() => return,
            _ = ticks.tick() => {}
        }
        let leads = core.replica.status().borrow().leading().is_some();
        // A server by itself has no books of controllers.
        if core.identity.is_none() || !leads {
            continue;
        }
        // Somebody else changes the group now, in the order that is right for it.
        let Ok(_held) = core.membership.try_lock() else {
            continue;
        };
        turn(&core).await;
    }
}

async fn turn(core: &Core) {
    let deadline = Instant::now() + core.config.write_deadline;
    let Ok(group) = core.replica.members(deadline).await else {
        return;
    };
    let books = core.view().members().map(|member| member.id.0).collect();
    for step in steps(&books, &group) {
        let done = match step {
            Step::Add(id) => core.replica.add_learner(id, deadline).await,
            Step::Promote(id) => core.promote(id, deadline).await,
            Step::Remove(id) => core.replica.remove(id, deadline).await,
        };
        match done {
            Ok(()) => tracing::info!(?step, "the group of controllers changed"),
            Err(ChangeError::Refused(why)) => {
                tracing::debug!(?step, %why, "the group of controllers stays as it is");
            }
            Err(error) => {
                tracing::warn!(?step, error = chain(&error), "the group was not changed");
                return;
            }
        }
    }
}

/// Those that leave go first: their place may be what a learner waits for.
fn steps(books: &BTreeSet<u64>, group: &Members) -> Vec<Step> {
    // Before the cluster was made there are none, and a group must not lose its only member to that.
    if books.is_empty() {
        return Vec::new();
    }
    let members = || group.voters.iter().chain(&group.learners);
    let gone = members().filter(|member| !books.contains(&member.id));
    let mut steps: Vec<_> = gone.map(|member| Step::Remove(member.id)).collect();
    let is_in = |id: &u64| members().any(|member| member.id == *id);
    let new = books.iter().filter(|id| !is_in(id));
    steps.extend(new.map(|id| Step::Add(*id)));
    let caught_up = group.learners.iter().filter(|learner| {
        let progress = learner.progress;
        books.contains(&learner.id) && progress.is_some_and(|p| p.active && !p.snapshot)
    });
    steps.extend(caught_up.map(|learner| Step::Promote(learner.id)));
    steps
}

#[cfg(test)]
mod tests {
    use coracle_replica::{Member, Progress};

    use super::*;

    fn member(id: u64, active: bool) -> Member {
        let progress = Progress {
            matched: 1,
            active,
            snapshot: false,
        };
        Member {
            id,
            progress: Some(progress),
        }
    }

    fn check(books: &[u64], voters: &[u64], learners: &[(u64, bool)], expected: &[Step]) {
        let group = Members {
            voters: voters.iter().map(|id| member(*id, true)).collect(),
            learners: learners
                .iter()
                .map(|(id, active)| member(*id, *active))
                .collect(),
            ..Members::default()
        };
        let books = books.iter().copied().collect();
        assert_eq!(steps(&books, &group), expected);
    }

    #[test]
    fn the_group_follows_the_books() {
        use Step::{Add, Promote, Remove};
        check(&[], &[1], &[], &[]);
        check(&[1], &[1], &[], &[]);
        check(&[1, 2, 3], &[1], &[], &[Add(2), Add(3)]);
        check(&[1, 2, 3], &[1], &[(2, true), (3, false)], &[Promote(2)]);
        // 3 was installed anew as 4: 3 goes, 4 comes.
        check(&[1, 2, 4], &[1, 2, 3], &[], &[Remove(3), Add(4)]);
        check(&[1, 2, 4], &[1, 2], &[(4, true)], &[Promote(4)]);
        // A learner that was removed is not promoted on its way out.
        check(&[1], &[1], &[(2, true)], &[Remove(2)]);
    }
}
