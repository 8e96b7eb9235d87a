//! Members that come, rise, lead, leave and fall, in a group of real threads.

use coracle_replica::{ChangeError, ChangeRefused, Ended, MemLog, Members, Replica, StartError};

use crate::{
    group::Group,
    tape::{Tape, soon},
};

fn ids(members: &Members) -> (Vec<u64>, Vec<u64>) {
    let ids = |list: &[coracle_replica::Member]| list.iter().map(|m| m.id).collect();
    (ids(&members.voters), ids(&members.learners))
}

/// Asks whoever leads until it is done, as an operator would after a failure.
async fn insist<F>(group: &Group, what: impl Fn(Replica<usize>) -> F)
where
    F: Future<Output = Result<(), ChangeError>>,
{
    let deadline = soon();
    loop {
        let (_, leader) = group.leader().await;
        match what(leader).await {
            Ok(()) => return,
            Err(ChangeError::Refused(
                refused @ (ChangeRefused::AlreadyVoter { .. }
                | ChangeRefused::Full { .. }
                | ChangeRefused::LastVoter { .. }),
            )) => panic!("{refused}"),
            // What was done before the answer was lost.
            Err(ChangeError::Refused(ChangeRefused::NotAMember { .. })) => return,
            Err(error) => {
                assert!(tokio::time::Instant::now() < deadline, "{error}");
                tokio::task::yield_now().await;
            }
        }
    }
}

async fn caught_up(group: &Group, id: u64, index: u64) {
    let mut status = group.get(id).status();
    let applied = status.wait_for(|status| status.applied >= index);
    tokio::time::timeout_at(soon(), applied)
        .await
        .expect("it did not catch up")
        .unwrap();
}

async fn write(group: &Group, text: &str) -> u64 {
    let (_, leader) = group.leader().await;
    let outcome = leader.propose(text.as_bytes().to_vec(), soon()).await;
    outcome.unwrap().index
}

async fn try_promote(group: &Group, id: u64) -> Result<(), ChangeError> {
    let (_, leader) = group.leader().await;
    leader.promote(id, |_| true, soon()).await
}

/// Until the rules allow it: it may not have caught up yet.
async fn promote(group: &Group, id: u64) {
    insist(group, |leader| async move {
        leader.promote(id, |_| true, soon()).await
    })
    .await;
}

#[tokio::test]
async fn one_grows_to_three_and_shrinks_to_one_again() {
    let mut group = Group::new(1).await;
    for number in 0..500 {
        write(&group, &format!("before {number}")).await;
    }
    let (_, leader) = group.leader().await;
    for id in [2, 3] {
        group.start(id, Vec::new(), MemLog::new(id)).await;
        leader.add_learner(id, soon()).await.unwrap();
        leader.add_learner(id, soon()).await.unwrap();
    }
    let closed = leader.promote(2, |_| false, soon()).await;
    assert!(
        matches!(closed, Err(ChangeError::Refused(_))),
        "behind, or not ready: {closed:?}"
    );
    // Through a snapshot: the log no longer goes that far back.
    let index = write(&group, "with learners").await;
    caught_up(&group, 2, index).await;
    caught_up(&group, 3, index).await;
    assert_eq!(group.views[&3].lock().unwrap().len(), 501);
    let alone = leader.promote(2, |id| id == 2, soon()).await;
    let even = ChangeRefused::Even { id: 2, voters: 1 };
    assert_eq!(alone, Err(even.into()));
    promote(&group, 2).await;
    promote(&group, 3).await;
    let members = leader.members(soon()).await.unwrap();
    assert_eq!(ids(&members), (vec![1, 2, 3], vec![]));
    assert!(members.voters.iter().all(|m| m.progress.unwrap().active));

    for gone in [3, 2] {
        let (_, leader) = group.leader().await;
        let leads = leader.id();
        // Whoever leads stays here; the other test removes leaders.
        let id = if leads == gone { 1 } else { gone };
        let leaving = group.get(id);
        leader.remove(id, soon()).await.unwrap();
        let ended = tokio::time::timeout_at(soon(), leaving.ended()).await;
        assert!(matches!(ended.unwrap(), Ended::Removed));
        group.cut(id);
        write(&group, "after one left").await;
    }
    let (last, leader) = group.leader().await;
    let members = leader.members(soon()).await.unwrap();
    assert_eq!(ids(&members), (vec![last], vec![]));
    let refused = leader.remove(last, soon()).await;
    assert_eq!(refused, Err(ChangeRefused::LastVoter { id: last }.into()));
}

#[tokio::test]
async fn removing_the_leader_hands_over_first() {
    let group = Group::new(3).await;
    write(&group, "first").await;
    let (first, leader) = group.leader().await;
    let Err(ChangeError::NotLeader { leader: Some(next) }) = leader.remove(first, soon()).await
    else {
        panic!("it led itself");
    };
    assert_ne!(next, first);
    insist(&group, |leader| async move {
        leader.remove(first, soon()).await
    })
    .await;
    let ended = tokio::time::timeout_at(soon(), leader.ended()).await;
    assert!(matches!(ended.unwrap(), Ended::Removed));
    group.cut(first);
    write(&group, "second").await;
    let (_, leader) = group.leader().await;
    let members = leader.members(soon()).await.unwrap();
    assert_eq!(members.voters.len(), 2);
    assert!(members.voters.iter().all(|member| member.id != first));
}

#[tokio::test]
async fn leadership_goes_where_it_is_sent() {
    let group = Group::new(3).await;
    write(&group, "first").await;
    for _ in 0..4 {
        let (id, leader) = group.leader().await;
        let to = id % 3 + 1;
        assert_eq!(leader.transfer(Some(to), soon()).await, Ok(to));
        let mut status = group.get(to).status();
        let leads = status.wait_for(|status| status.leading().is_some());
        tokio::time::timeout_at(soon(), leads)
            .await
            .unwrap()
            .unwrap();
        let refused = leader.transfer(None, soon()).await;
        let follower = Err(ChangeError::NotLeader { leader: Some(to) });
        assert_eq!(refused, follower);
        let refused = leader.add_learner(9, soon()).await;
        assert_eq!(refused, Err(ChangeError::NotLeader { leader: Some(to) }));
        let refused = group.get(to).transfer(Some(9), soon()).await;
        assert_eq!(refused, Err(ChangeRefused::NotAVoter { id: 9 }.into()));
    }
}

#[tokio::test]
async fn a_fourth_voter_waits_for_a_fifth_and_a_sixth_is_refused() {
    let mut group = Group::new(3).await;
    for id in [4, 5, 6] {
        group.start(id, Vec::new(), MemLog::new(id)).await;
    }
    insist(&group, |leader| async move {
        leader.add_learner(4, soon()).await
    })
    .await;
    let index = write(&group, "first").await;
    caught_up(&group, 4, index).await;
    let even = ChangeRefused::Even { id: 4, voters: 3 };
    assert_eq!(try_promote(&group, 4).await, Err(even.into()));
    for id in [5, 6] {
        insist(&group, |leader| async move {
            leader.add_learner(id, soon()).await
        })
        .await;
    }
    let index = write(&group, "second").await;
    caught_up(&group, 5, index).await;
    promote(&group, 4).await;
    promote(&group, 5).await;
    caught_up(&group, 6, index).await;
    let full = ChangeRefused::Full { id: 6, voters: 5 };
    assert_eq!(try_promote(&group, 6).await, Err(full.into()));
}

/// The change is finished by the next leader, or was never begun; either way it can be asked for
/// again, and nobody who was answered is wrong.
#[tokio::test]
async fn the_leader_falls_in_the_middle_of_a_change() {
    for round in 0..6 {
        let mut group = Group::new(5).await;
        for number in 0..round * 40 {
            write(&group, &format!("{number}")).await;
        }
        for id in [6, 7] {
            group.start(id, Vec::new(), MemLog::new(id)).await;
        }
        let (first, leader) = group.leader().await;
        let victim = first % 5 + 1;
        let (added, removed) = {
            let (adder, remover) = (leader.clone(), leader.clone());
            let added = tokio::spawn(async move { adder.add_learner(6, soon()).await });
            let removed = tokio::spawn(async move { remover.remove(victim, soon()).await });
            // At different points of the two changes.
            for _ in 0..round * 30 {
                tokio::task::yield_now().await;
            }
            drop(group.cut(first));
            (added.await.unwrap(), removed.await.unwrap())
        };
        insist(&group, |leader| async move {
            leader.add_learner(6, soon()).await
        })
        .await;
        insist(&group, |leader| async move {
            leader.remove(victim, soon()).await
        })
        .await;
        let index = write(&group, "after").await;
        caught_up(&group, 6, index).await;
        let (_, leader) = group.leader().await;
        let (voters, learners) = ids(&leader.members(soon()).await.unwrap());
        let expected: Vec<u64> = (1..=5).filter(|id| *id != victim).collect();
        assert_eq!(
            (voters, learners),
            (expected, vec![6]),
            "{added:?} {removed:?}"
        );
    }
}

#[tokio::test]
async fn a_removed_member_that_was_away_learns_of_it_and_does_not_start_again() {
    let group = Group::new(3).await;
    write(&group, "first").await;
    let (leads, leader) = group.leader().await;
    let away = leads % 3 + 1;
    let replica = group.cut(away);
    insist(
        &group,
        |leader| async move { leader.remove(away, soon()).await },
    )
    .await;
    let index = write(&group, "second").await;
    assert!(replica.status().borrow().applied < index);
    group.members.lock().unwrap().insert(away, replica.clone());
    let ended = tokio::time::timeout_at(soon(), replica.ended()).await;
    assert!(matches!(ended.unwrap(), Ended::Removed));
    drop(leader);

    // One that learned it from its own log finds it there when it is started again.
    let alone = Group::new(1).await;
    let directory = tempfile::tempdir().unwrap();
    let open = || coracle_replica::SledLog::open(directory.path(), 2).unwrap();
    let mut alone = alone;
    alone.start(2, Vec::new(), open()).await;
    let (_, leader) = alone.leader().await;
    leader.add_learner(2, soon()).await.unwrap();
    let index = write(&alone, "third").await;
    caught_up(&alone, 2, index).await;
    leader.remove(2, soon()).await.unwrap();
    let leaving = alone.cut(2);
    alone.members.lock().unwrap().insert(2, leaving.clone());
    let ended = tokio::time::timeout_at(soon(), leaving.ended()).await;
    assert!(matches!(ended.unwrap(), Ended::Removed));
    let config = coracle_replica::Config::member(2, Vec::new());
    let transport = Box::new(coracle_replica::NoPeers);
    let again = Replica::start(config, open(), Tape::new().0, transport, Box::new(|_| {})).await;
    assert!(matches!(again, Err(StartError::Removed { id: 2 })));
}
