//! The decision: what to do so that what runs becomes what is wanted. Pure, and idempotent once
//! its actions are recorded in what is observed.
//!
//! What is absent: restarts. An instance that ended stays ended under its id, for as long as it is
//! still wanted; a replacement is a new order from the leader, which knows about back-off.

use std::{collections::BTreeMap, time::Duration};

use coracle_model::{InstanceId, Timestamp};

/// What is wanted of one instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// It should end, at the latest by this time.
    pub drain: Option<Timestamp>,
}

/// How one instance stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Ordered of the driver. `stopping`: ends as soon as the launch is over.
    Starting {
        stopping: bool,
    },
    Ready,
    /// Told to finish by then.
    Draining {
        until: Timestamp,
    },
    /// Told to end now.
    Stopping,
    /// `acknowledged`: the leader knows.
    Exited {
        acknowledged: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Launch(InstanceId),
    /// Let it finish what runs, at the latest by then.
    Drain(InstanceId, Timestamp),
    /// End it within the grace; what runs is cut off after that.
    Stop(InstanceId, Duration),
    /// Drop what is remembered of an ended one.
    Forget(InstanceId),
}

/// `grace` is what an instance gets that the leader no longer lists at all.
pub fn reconcile(
    wanted: &BTreeMap<InstanceId, Wanted>,
    seen: &BTreeMap<InstanceId, Seen>,
    grace: Duration,
) -> Vec<Action> {
    let missing = wanted
        .iter()
        .filter(|(id, wanted)| wanted.drain.is_none() && !seen.contains_key(id))
        .map(|(id, _)| Action::Launch(*id));
    let present = seen
        .iter()
        .filter_map(|(id, seen)| one(*id, wanted.get(id), *seen, grace));
    missing.chain(present).collect()
}

fn one(id: InstanceId, wanted: Option<&Wanted>, seen: Seen, grace: Duration) -> Option<Action> {
    match (wanted, seen) {
        // Wanted: nothing is undone, not even a stop that came before.
        (Some(Wanted { drain: None }), _) => None,
        (Some(Wanted { drain: Some(until) }), Seen::Ready) => Some(Action::Drain(id, *until)),
        // No request can be inside yet, so there is nothing to finish.
        (Some(Wanted { drain: Some(_) }), Seen::Starting { stopping: false }) => {
            Some(Action::Stop(id, grace))
        }
        // A deadline may come closer, never go away.
        (Some(Wanted { drain: Some(until) }), Seen::Draining { until: now }) if *until < now => {
            Some(Action::Drain(id, *until))
        }
        (None, Seen::Starting { stopping: false } | Seen::Ready | Seen::Draining { .. }) => {
            Some(Action::Stop(id, grace))
        }
        (None, Seen::Exited { acknowledged: true }) => Some(Action::Forget(id)),
        (Some(_) | None, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    const GRACE: Duration = Duration::from_secs(5);

    fn id(n: u8) -> InstanceId {
        InstanceId(Uuid::from_u128(u128::from(n)))
    }

    fn check(wanted: Option<Option<u64>>, seen: Option<Seen>, expected: Option<Action>) {
        let wanted = wanted.map(|drain| {
            (
                id(1),
                Wanted {
                    drain: drain.map(Timestamp),
                },
            )
        });
        let seen = seen.map(|seen| (id(1), seen));
        let actions = reconcile(
            &wanted.into_iter().collect(),
            &seen.into_iter().collect(),
            GRACE,
        );
        assert_eq!(actions, Vec::from_iter(expected), "{wanted:?} {seen:?}");
    }

    #[test]
    fn every_case() {
        let one = id(1);
        let stop = Some(Action::Stop(one, GRACE));
        check(Some(None), None, Some(Action::Launch(one)));
        check(Some(Some(9)), None, None);
        for seen in [
            Seen::Starting { stopping: false },
            Seen::Starting { stopping: true },
            Seen::Ready,
            Seen::Draining {
                until: Timestamp(5),
            },
            Seen::Stopping,
            Seen::Exited {
                acknowledged: false,
            },
            Seen::Exited { acknowledged: true },
        ] {
            check(Some(None), Some(seen), None);
        }
        let drain = |at| Some(Action::Drain(one, Timestamp(at)));
        check(Some(Some(9)), Some(Seen::Ready), drain(9));
        check(
            Some(Some(9)),
            Some(Seen::Starting { stopping: false }),
            stop,
        );
        check(Some(Some(9)), Some(Seen::Starting { stopping: true }), None);
        check(
            Some(Some(9)),
            Some(Seen::Draining {
                until: Timestamp(9),
            }),
            None,
        );
        check(
            Some(Some(9)),
            Some(Seen::Draining {
                until: Timestamp(10),
            }),
            drain(9),
        );
        check(
            Some(Some(9)),
            Some(Seen::Exited { acknowledged: true }),
            None,
        );
        check(None, Some(Seen::Starting { stopping: false }), stop);
        check(None, Some(Seen::Starting { stopping: true }), None);
        check(None, Some(Seen::Ready), stop);
        check(
            None,
            Some(Seen::Draining {
                until: Timestamp(9),
            }),
            stop,
        );
        check(None, Some(Seen::Stopping), None);
        check(
            None,
            Some(Seen::Exited {
                acknowledged: false,
            }),
            None,
        );
        check(
            None,
            Some(Seen::Exited { acknowledged: true }),
            Some(Action::Forget(one)),
        );
    }

    /// What the shell records when it carries an action out.
    fn record(seen: &mut BTreeMap<InstanceId, Seen>, action: Action) {
        match action {
            Action::Launch(id) => {
                seen.insert(id, Seen::Starting { stopping: false });
            }
            Action::Drain(id, until) => {
                seen.insert(id, Seen::Draining { until });
            }
            Action::Stop(id, _) => {
                let starting = matches!(seen[&id], Seen::Starting { .. });
                let now = if starting {
                    Seen::Starting { stopping: true }
                } else {
                    Seen::Stopping
                };
                seen.insert(id, now);
            }
            Action::Forget(id) => {
                seen.remove(&id);
            }
        }
    }

    /// The world moves one instance on by one step.
    fn progress(seen: &mut BTreeMap<InstanceId, Seen>, n: u8, fails: bool) {
        if let Some(seen) = seen.get_mut(&id(n)) {
            *seen = match *seen {
                Seen::Starting { .. } if fails => Seen::Exited {
                    acknowledged: false,
                },
                Seen::Starting { stopping: false } => Seen::Ready,
                Seen::Starting { stopping: true } => Seen::Stopping,
                Seen::Ready if fails => Seen::Exited {
                    acknowledged: false,
                },
                Seen::Ready => Seen::Ready,
                Seen::Draining { .. } | Seen::Stopping => Seen::Exited {
                    acknowledged: false,
                },
                Seen::Exited { .. } => Seen::Exited { acknowledged: true },
            };
        }
    }

    #[derive(Debug, Clone)]
    enum Event {
        Want(u8),
        Drain(u8, u64),
        Remove(u8),
        Progress(u8, bool),
    }

    fn event() -> impl Strategy<Value = Event> {
        let n = 0..6_u8;
        prop_oneof![
            n.clone().prop_map(Event::Want),
            (n.clone(), 1..100_u64).prop_map(|(n, at)| Event::Drain(n, at)),
            n.clone().prop_map(Event::Remove),
            (n, any::<bool>()).prop_map(|(n, fails)| Event::Progress(n, fails)),
        ]
    }

    proptest! {
        #[test]
        fn converges_and_repeats_nothing(events in prop::collection::vec(event(), 0..80)) {
            let mut wanted = BTreeMap::new();
            let mut seen = BTreeMap::new();
            for event in events {
                match event {
                    // An id is ordered once in its life; the leader makes a new one after that.
                    Event::Want(n) if !seen.contains_key(&id(n)) => {
                        wanted.insert(id(n), Wanted { drain: None });
                    }
                    Event::Want(_) => {}
                    Event::Drain(n, at) => {
                        if let Some(wanted) = wanted.get_mut(&id(n)) {
                            wanted.drain = Some(Timestamp(at));
                        }
                    }
                    Event::Remove(n) => { wanted.remove(&id(n)); }
                    Event::Progress(n, fails) => progress(&mut seen, n, fails),
                }
                for action in reconcile(&wanted, &seen, GRACE) {
                    if let Action::Launch(id) = action {
                        prop_assert!(!seen.contains_key(&id), "launched twice: {id}");
                    }
                    record(&mut seen, action);
                }
                prop_assert_eq!(reconcile(&wanted, &seen, GRACE), vec![], "not idempotent");
            }
            // The world comes to rest: nothing fails any more.
            for _ in 0..8 {
                for n in 0..6 {
                    progress(&mut seen, n, false);
                }
                for action in reconcile(&wanted, &seen, GRACE) {
                    record(&mut seen, action);
                }
            }
            for (id, want) in &wanted {
                match (want.drain, seen.get(id)) {
                    (_, Some(Seen::Exited { .. })) => {}
                    (None, seen) => prop_assert_eq!(seen, Some(&Seen::Ready)),
                    (Some(_), seen) => prop_assert_eq!(seen, None),
                }
            }
            for id in seen.keys() {
                prop_assert!(wanted.contains_key(id), "left over: {}", id);
            }
        }
    }
}
