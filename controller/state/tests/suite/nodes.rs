use coracle_model::{NodeId, Refusal, Timestamp, limits, node::NodeDrain};
use coracle_state::{Body, Effect, RegisterNode, State};
use uuid::Uuid;

use crate::fixture::Fixture;

fn node(n: u128) -> NodeId {
    NodeId(Uuid::from_u128(n))
}

fn register(n: u128, name: &str, replaces: Option<u128>) -> Body {
    Body::RegisterNode(RegisterNode {
        id: node(n),
        name: name.parse().unwrap(),
        labels: Default::default(),
        replaces: replaces.map(node),
    })
}

fn cordon(n: u128, cordoned: bool) -> Body {
    let node = node(n);
    Body::CordonNode { node, cordoned }
}

fn drain(n: u128, deadline: Option<u64>, force: bool) -> Body {
    Body::DrainNode {
        node: node(n),
        deadline: deadline.map(Timestamp),
        force,
    }
}

fn refused(f: &mut Fixture, body: Body) -> Refusal {
    let before = f.state.view();
    let applied = f.apply(body);
    assert!(before == f.state.view() && applied.effects.is_empty());
    applied.outcome.expect_err("refused")
}

fn names(state: &State) -> Vec<String> {
    state.nodes().map(|node| node.name.to_string()).collect()
}

#[test]
fn a_node_registers_once_and_may_change_its_name_and_labels() {
    let mut f = Fixture::new();
    assert_eq!(
        f.step(register(1, "one", None)),
        [Effect::NodeChanged(node(1))]
    );
    let joined = f.now();
    assert_eq!(f.step(register(1, "one", None)), []);
    f.step(cordon(1, true));
    assert_eq!(
        f.step(register(1, "uno", None)),
        [Effect::NodeChanged(node(1))]
    );
    let record = f.state.node(node(1)).unwrap();
    assert_eq!((record.joined_at, record.cordoned), (joined, true));
    assert!(f.state.node_named(&"one".parse().unwrap()).is_none());
    assert_eq!(f.state.node_named(&"uno".parse().unwrap()), Some(record));
}

#[test]
fn a_name_is_taken_over_only_from_the_node_that_is_said_to_be_gone() {
    let mut f = Fixture::new();
    f.step(register(1, "one", None));
    f.step(cordon(1, true));
    for replaces in [None, Some(7)] {
        let refusal = refused(&mut f, register(2, "one", replaces));
        assert_eq!(refusal, Refusal::AlreadyExists("node one".into()));
    }
    let effects = f.step(register(2, "one", Some(1)));
    assert_eq!(effects, [1, 2].map(|n| Effect::NodeChanged(node(n))));
    assert_eq!(names(&f.state), ["one"]);
    assert!(
        f.state.node(node(2)).unwrap().cordoned,
        "the machine was closed"
    );
    // The machine before it, should it still be somewhere, stays out.
    let Refusal::Conflict(why) = refused(&mut f, register(1, "other", None)) else {
        panic!("another refusal")
    };
    assert!(why.contains("was removed from the cluster"), "{why}");
}

#[test]
fn draining_closes_and_opening_ends_it() {
    let mut f = Fixture::new();
    f.step(register(1, "one", None));
    f.step(drain(1, None, false));
    let since = f.now();
    let record = |f: &Fixture| f.state.node(node(1)).unwrap().clone();
    assert!(record(&f).cordoned && !record(&f).takes_instances());
    assert_eq!(f.step(drain(1, None, false)), []);
    f.step(drain(1, Some(99), true));
    let draining = NodeDrain {
        since,
        deadline: Some(Timestamp(99)),
        force: true,
    };
    assert_eq!(record(&f).draining, Some(draining));
    assert_eq!(draining.forced_at(), Some(Timestamp(99)));
    f.step(cordon(1, true));
    assert_eq!(
        record(&f).draining,
        Some(draining),
        "closing it again changes nothing"
    );
    f.step(cordon(1, false));
    assert!(record(&f).takes_instances());
}

#[test]
fn a_removed_node_is_forgotten_and_stays_out_as_long_as_room_lasts() {
    let mut f = Fixture::new();
    for body in [
        cordon(1, true),
        drain(1, None, true),
        Body::RemoveNode { node: node(1) },
    ] {
        assert!(matches!(refused(&mut f, body), Refusal::NotFound(_)));
    }
    let most = u128::try_from(limits::REMOVED_NODES_KEPT).unwrap();
    for n in 1..=most + 1 {
        f.step(register(n, "one", None));
        assert_eq!(
            f.step(Body::RemoveNode { node: node(n) }),
            [Effect::NodeChanged(node(n))]
        );
    }
    assert_eq!(names(&f.state), [""; 0]);
    assert!(!f.state.is_removed(node(1)) && f.state.is_removed(node(2)));
    assert!(matches!(
        refused(&mut f, register(2, "one", None)),
        Refusal::Conflict(_)
    ));
    f.step(register(1, "one", None));
    assert_eq!(State::decode(&f.state.encode()).unwrap(), f.state);
}
