//! Nodes as the leader has them: who is let in, who is waited for, who is lost, who drains.

use std::time::Duration;

use coracle_model::{
    ExitReason, InstanceId, InstanceState, NodeId, Stamp, Timestamp,
    node::{NodeChange, NodeState},
};
use coracle_planner::{Input, PlannerConfig, plan};
use coracle_proto::v1;
use coracle_state::{Body, RegisterNode, View};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{
    memory::{Leadership, Memory},
    nodes::NotAdmitted,
    plan::input,
    reports::Report,
    tests::{FUNCTION, NOW, REVISION, ask, connect, memory, node, report, view, view_with},
};
use crate::config::LeaderConfig;

const OTHER: NodeId = NodeId(Uuid::from_u128(2));

fn register(id: NodeId, name: &str) -> Body {
    Body::RegisterNode(RegisterNode {
        id,
        name: name.parse().unwrap(),
        labels: Default::default(),
        replaces: None,
    })
}

/// A leader that has just begun, with these nodes registered.
fn begun(view: &View) -> Memory {
    let mut memory = memory();
    let collecting = Leadership::Collecting {
        since: NOW,
        heard: None,
    };
    memory.begin(1, 2, collecting);
    memory.expect_nodes(NOW, view);
    memory
}

fn of(id: NodeId, name: &str) -> Report {
    let mut report = report(&[], 0);
    report.node.id = id;
    report.node.name = name.to_owned();
    report
}

fn config() -> LeaderConfig {
    LeaderConfig {
        node_grace: Duration::from_secs(15),
        collect_deadline: Duration::from_secs(5),
        tick: Duration::from_secs(3_600),
        ..LeaderConfig::default()
    }
}

fn after(ms: u64) -> Timestamp {
    NOW.plus_millis(ms)
}

fn planned(memory: &mut Memory, view: &View, now: Timestamp) -> (Input, coracle_planner::Plan) {
    let input = input(memory, view, &PlannerConfig::default(), now);
    let mut next = 5_000;
    let plan = plan(&input, &mut || {
        next += 1;
        InstanceId(Uuid::from_u128(next))
    });
    (input, plan)
}

#[test]
fn a_hello_is_registered_once_and_again_when_it_says_something_new() {
    let memory = memory();
    let admitted = memory.admit(&view(), &of(node(), "node-1")).unwrap();
    assert_eq!(admitted.unwrap().id, node());
    let view = view_with(vec![register(node(), "node-1")]);
    assert_eq!(memory.admit(&view, &of(node(), "node-1")), Ok(None));
    let mut labelled = of(node(), "node-1");
    labelled.node.labels.insert("zone".into(), "a".into());
    let again = memory.admit(&view, &labelled).unwrap().unwrap();
    assert_eq!(again.labels["zone"], "a");
    labelled.node.labels.insert("zone".into(), "a b".into());
    let refused = memory.admit(&view, &labelled).unwrap_err();
    assert!(
        matches!(&refused, NotAdmitted::Invalid(why) if why.starts_with("labels.zone")),
        "{refused}"
    );
}

#[test]
fn a_name_is_its_nodes_while_that_is_connected_or_may_come_back() {
    let view = view_with(vec![register(OTHER, "node-1")]);
    let mut memory = begun(&view);
    let newcomer = of(node(), "node-1");
    let held = memory.admit(&view, &newcomer).unwrap_err();
    assert!(
        matches!(held, NotAdmitted::NameHeld { other: OTHER, .. }),
        "{held}"
    );
    let orders = connect(&mut memory, &view, of(OTHER, "node-1"), 8);
    let taken = memory.admit(&view, &newcomer).unwrap_err();
    assert!(
        matches!(taken, NotAdmitted::NameTaken { other: OTHER, .. }),
        "{taken}"
    );
    assert!(taken.to_string().contains("--node-name"));
    drop(orders);
    memory.disconnected(OTHER);
    assert!(
        memory.admit(&view, &newcomer).is_err(),
        "within the grace period"
    );
    memory.watch_nodes(&config(), after(15_000));
    let admitted = memory.admit(&view, &newcomer).unwrap().unwrap();
    assert_eq!(admitted.replaces, Some(OTHER));
}

#[test]
fn removed_nodes_and_those_of_a_later_term_are_turned_away() {
    let view = view_with(vec![
        register(node(), "node-1"),
        Body::RemoveNode { node: node() },
    ]);
    let memory = memory();
    assert_eq!(
        memory.admit(&view, &of(node(), "node-1")),
        Err(NotAdmitted::Removed(node()))
    );
    for (incarnation, term, admitted) in [(1, 2, true), (1, 3, false), (2, 1, false), (0, 9, true)]
    {
        let mut report = of(OTHER, "other");
        report.accepted = Stamp {
            incarnation,
            term,
            sequence: 7,
        };
        let answer = memory.admit(&view, &report);
        assert_eq!(
            answer != Err(NotAdmitted::Deposed),
            admitted,
            "{incarnation}.{term}"
        );
    }
}

#[test]
fn the_collection_ends_when_every_registered_node_has_spoken() {
    let view = view_with(vec![register(node(), "node-1"), register(OTHER, "node-2")]);
    let mut memory = begun(&view);
    let _one = connect(&mut memory, &view, of(node(), "node-1"), 8);
    assert!(!memory.collect(&config(), after(4_999)));
    let _two = connect(&mut memory, &view, of(OTHER, "node-2"), 8);
    assert!(memory.collect(&config(), NOW));
    assert_eq!(memory.leadership, Leadership::Leading);
}

/// Two nodes, one of which does not come: activations go on, nothing of the minimum is started
/// until the silent node's grace period is over, and it is shown as what it is.
#[test]
fn a_node_that_has_not_spoken_counts_as_full_and_alive_until_it_is_lost() {
    let mut view = view_with(vec![register(node(), "node-1"), register(OTHER, "node-2")]);
    let mut memory = begun(&view);
    let _one = connect(&mut memory, &view, of(node(), "node-1"), 64);
    assert_eq!(
        ask(&mut memory, &view, 1, 1).started,
        1,
        "while it collects"
    );
    assert!(memory.collect(&config(), after(5_000)), "the deadline");
    memory.watch_nodes(&config(), after(5_000));
    view = view_with(vec![
        register(node(), "node-1"),
        register(OTHER, "node-2"),
        minimum(3),
    ]);
    let (input, plan) = planned(&mut memory, &view, after(5_000));
    assert_eq!(input.nodes[&OTHER].free_memory_mib(), 0);
    assert_eq!((plan.start.len(), plan.drain.len()), (0, 0));
    assert!(plan.shortages.contains_key(&FUNCTION));
    assert_eq!(
        ask(&mut memory, &view, 2, 2).started,
        1,
        "on the other node"
    );
    let state = |memory: &Memory| memory.node_views(&view, Some(OTHER))[0].state;
    assert_eq!(state(&memory), NodeState::Silent);

    memory.watch_nodes(&config(), after(15_000));
    assert_eq!(state(&memory), NodeState::Lost);
    let (_, plan) = planned(&mut memory, &view, after(15_000));
    assert_eq!(plan.start.len(), 1);
}

fn minimum(min: u32) -> Body {
    use coracle_model::{Operation, ProjectId, operation::UpdateFunction};
    Body::Operation(Operation::UpdateFunction(Box::new(UpdateFunction {
        project: ProjectId::DEFAULT,
        function: coracle_model::FunctionRef {
            namespace: "default".parse().unwrap(),
            name: "hello".parse().unwrap(),
        },
        description: None,
        annotations: None,
        key_required: None,
        keys: None,
        disabled: None,
        scale_min: Some(min),
        scale_max: None,
        placement: None,
        settings: Default::default(),
        task: None,
    })))
}

#[test]
fn what_a_lost_node_brings_back_is_adopted_and_is_no_reason_to_want_more() {
    let view = view_with(vec![register(node(), "node-1"), register(OTHER, "node-2")]);
    let mut memory = begun(&view);
    let running = [(5, InstanceState::Ready)];
    let _one = connect(&mut memory, &view, report(&running, 0), 64);
    let _two = connect(&mut memory, &view, of(OTHER, "node-2"), 64);
    memory.collect(&config(), NOW);
    memory.disconnected(node());
    memory.watch_nodes(&config(), after(15_000));
    let (_, plan) = planned(&mut memory, &view, after(15_000));
    assert_eq!(plan.lost.len(), 1);
    memory.ended(after(15_000), plan.lost[0], ExitReason::Lost);
    assert_eq!(memory.counts(REVISION), (0, 0));
    assert_eq!(ask(&mut memory, &view, 3, 1).started, 1, "its replacement");
    let wanted = memory.functions[&FUNCTION].scaled.wanted;

    let _back = connect(&mut memory, &view, report(&running, 1), 64);
    assert_eq!(
        memory.counts(REVISION),
        (1, 2),
        "adopted beside its replacement"
    );
    assert_eq!(memory.functions[&FUNCTION].scaled.wanted, wanted);
}

#[test]
fn a_session_that_brings_nothing_is_cut_and_a_leader_that_slept_blames_nobody() {
    let view = view_with(vec![register(node(), "node-1")]);
    let mut memory = begun(&view);
    let mut orders = connect(&mut memory, &view, of(node(), "node-1"), 8);
    let ticking = LeaderConfig {
        tick: Duration::from_secs(1),
        ..config()
    };
    memory.watch_nodes(&ticking, NOW);
    // An hour in which this process did not run, or the clock was set.
    memory.watch_nodes(&ticking, after(3_600_000));
    assert!(memory.inputs[&node()].alive && memory.nodes[&node()].session.is_some());
    for second in 1..=20 {
        memory.watch_nodes(&ticking, after(3_600_000 + second * 1_000));
    }
    assert!(!memory.inputs[&node()].alive && memory.nodes[&node()].session.is_none());
    while orders.try_recv().is_ok() {}
    assert_eq!(
        orders.try_recv().err(),
        Some(mpsc::error::TryRecvError::Disconnected)
    );
}

#[test]
fn closed_and_draining_nodes_get_nothing_new_from_the_moment_on_that_it_is_known() {
    let registered = register(node(), "node-1");
    let view = view_with(vec![registered.clone()]);
    let mut memory = begun(&view);
    let _orders = connect(&mut memory, &view, of(node(), "node-1"), 64);
    assert_eq!(ask(&mut memory, &view, 1, 1).started, 1);
    let drain = Body::DrainNode {
        node: node(),
        deadline: None,
        force: false,
    };
    for body in [
        Body::CordonNode {
            node: node(),
            cordoned: true,
        },
        drain,
    ] {
        let closed = view_with(vec![registered.clone(), body]);
        memory.follow_nodes(NOW, &closed);
        // Also after its agent has said again that it would take some.
        memory.observe(NOW, of(node(), "node-1"));
        assert!(!memory.inputs[&node()].schedulable);
        assert_eq!(ask(&mut memory, &closed, 2, 3).started, 0);
    }
    assert_eq!(memory.node_views(&view, None)[0].state, NodeState::Draining);
    memory.follow_nodes(NOW, &view);
    assert_eq!(ask(&mut memory, &view, 3, 3).started, 2);
}

#[test]
fn a_drain_is_done_when_the_last_process_has_ended_and_not_when_the_last_order_has() {
    let draining = view_with(vec![
        register(node(), "node-1"),
        Body::DrainNode {
            node: node(),
            deadline: None,
            force: false,
        },
    ]);
    let mut memory = begun(&draining);
    let running = [(5, InstanceState::Draining)];
    let mut held = report(&running, 0);
    held.node.stems.insert("python3.11".parse().unwrap(), 1);
    let _orders = connect(&mut memory, &draining, held, 64);
    let state = |memory: &Memory| memory.node_views(&draining, None)[0].state;
    memory.remove(InstanceId(Uuid::from_u128(5)));
    assert_eq!(
        state(&memory),
        NodeState::Draining,
        "its process is still there"
    );
    let mut stems = report(&[], 1);
    stems.node.stems.insert("python3.11".parse().unwrap(), 1);
    memory.observe(NOW, stems);
    assert_eq!(state(&memory), NodeState::Draining, "a stem is a process");
    memory.observe(NOW, report(&[], 1));
    assert_eq!(state(&memory), NodeState::Drained);
}

#[test]
fn the_last_home_of_a_minimum_is_not_drained_and_a_node_at_work_not_removed() {
    let nodes = vec![register(node(), "node-1"), register(OTHER, "node-2")];
    let view = view_with([nodes.clone(), vec![minimum(1)]].concat());
    let mut memory = begun(&view);
    let running = [(5, InstanceState::Ready)];
    let _one = connect(&mut memory, &view, report(&running, 0), 64);
    let gentle = NodeChange::Drain {
        deadline: None,
        force: false,
    };
    let why = memory
        .check_change(&view, node(), gentle)
        .unwrap_err()
        .to_string();
    assert!(
        why.starts_with("node node-1 is the last one that can hold function default/hello"),
        "{why}"
    );
    let forced = NodeChange::Drain {
        deadline: None,
        force: true,
    };
    assert!(memory.check_change(&view, node(), forced).is_ok());
    let free = view_with(nodes);
    assert!(
        memory.check_change(&free, node(), gentle).is_ok(),
        "no minimum"
    );
    let _two = connect(&mut memory, &view, of(OTHER, "node-2"), 64);
    assert!(
        memory.check_change(&view, node(), gentle).is_ok(),
        "another home"
    );

    let remove = |force| NodeChange::Remove { force };
    let why = memory
        .check_change(&view, node(), remove(false))
        .unwrap_err();
    assert_eq!(
        why.to_string(),
        "node node-1 runs 1 instance(s): drain it first, or remove it with force"
    );
    assert!(memory.check_change(&view, node(), remove(true)).is_ok());
    assert!(
        memory.check_change(&view, OTHER, remove(false)).is_ok(),
        "idle"
    );
    memory.disconnected(OTHER);
    let why = memory
        .check_change(&view, OTHER, remove(false))
        .unwrap_err();
    assert!(why.to_string().contains("not yet lost"), "{why}");
    memory.watch_nodes(&config(), after(15_000));
    assert!(
        memory.check_change(&view, OTHER, remove(false)).is_ok(),
        "lost"
    );
    // What is gone already is left to the command, which knows whether it repeats itself.
    assert!(
        memory
            .check_change(&view, NodeId(Uuid::from_u128(9)), remove(false))
            .is_ok()
    );
}

#[test]
fn a_removed_node_is_told_to_end_everything_and_its_session_ends() {
    let registered = register(node(), "node-1");
    let view = view_with(vec![registered.clone()]);
    let mut memory = begun(&view);
    let running = [(5, InstanceState::Ready)];
    let mut orders = connect(&mut memory, &view, report(&running, 0), 64);
    let removed = view_with(vec![registered, Body::RemoveNode { node: node() }]);
    memory.follow_nodes(NOW, &removed);
    assert!(memory.nodes.is_empty() && memory.inputs.is_empty() && memory.instances.is_empty());
    let mut ended = 0;
    while let Ok(Ok(message)) = orders.try_recv() {
        if let Some(v1::controller_message::Body::Delta(delta)) = message.body {
            ended += delta.remove.len();
        }
    }
    assert_eq!(ended, 1);
    assert_eq!(
        orders.try_recv().err(),
        Some(mpsc::error::TryRecvError::Disconnected)
    );
}
