//! The leader's memory and its agents' words, without a network.

use coracle_model::{
    ActivationId, BuildOutput, Concurrency, Convention, Digest, ExitReason, FunctionId,
    FunctionRef, Handler, InstanceId, InstanceState, Memory as MemorySize, MilliCpu, Network,
    NodeId, Operation, ProjectId, RevisionId, RevisionSettings, ScaleBounds, Source, Stamp,
    Timeout, Timestamp, WriteId,
    operation::{CreateFunction, CreateNamespace},
};
use coracle_planner::{BackoffConfig, GatewayId, PlannerConfig};
use coracle_proto::{Wire as _, v1};
use coracle_state::{Body, Command, State, View};
use tokio::sync::mpsc;
use tonic::Status;
use uuid::Uuid;

use super::{
    activate::{Activation, activate},
    memory::{Leadership, Memory, Overcommit},
    reports::Report,
};

pub(super) const NOW: Timestamp = Timestamp(1_000_000);
pub(super) const FUNCTION: FunctionId = FunctionId(Uuid::from_u128(9));
pub(super) const REVISION: RevisionId = RevisionId {
    function: FUNCTION,
    number: 1,
};
const NODE: u128 = 1;

pub(super) type Orders = mpsc::Receiver<Result<v1::ControllerMessage, Status>>;

/// One function that serves, at most three instances.
pub(super) fn view() -> View {
    view_with(Vec::new())
}

/// The same after these commands.
pub(super) fn view_with(more: Vec<Body>) -> View {
    let mut state = State::new();
    let mut at = 0;
    let mut apply = |body| {
        at += 1;
        let write_id = WriteId(Uuid::from_u128(at));
        let applied = state.apply(Command {
            write_id,
            at: NOW,
            body,
        });
        assert_eq!(applied.outcome, Ok(()));
    };
    let namespace = CreateNamespace {
        id: Uuid::from_u128(3).into(),
        project: ProjectId::DEFAULT,
        name: "default".parse().unwrap(),
        description: String::new(),
        env: Default::default(),
        task: None,
    };
    apply(Body::Operation(Operation::CreateNamespace(namespace)));
    let create = CreateFunction {
        id: FUNCTION,
        project: ProjectId::DEFAULT,
        function: FunctionRef {
            namespace: "default".parse().unwrap(),
            name: "hello".parse().unwrap(),
        },
        description: String::new(),
        annotations: Default::default(),
        key_required: false,
        keys: Vec::new(),
        disabled: false,
        scale: ScaleBounds::new(0, 3).unwrap(),
        placement: Default::default(),
        settings: RevisionSettings {
            runtime: "python3.11".parse().unwrap(),
            runtime_requested: "python3.11".into(),
            handler: Handler::new("main", Convention::Http).unwrap(),
            source: Source::Inline {
                code: Digest::of(b"code"),
            },
            dependencies: None,
            env: Default::default(),
            memory: MemorySize::from_mib(128).unwrap(),
            cpu: MilliCpu::new(250).unwrap(),
            timeout: Timeout::from_secs(5).unwrap(),
            init_timeout: Timeout::from_secs(5).unwrap(),
            concurrency: Concurrency::ONE,
            network: Network::None,
        },
        task: None,
    };
    apply(Body::Operation(Operation::CreateFunction(Box::new(create))));
    apply(Body::BeginBuild { revision: REVISION });
    let output = BuildOutput {
        code: Digest::of(b"built"),
        dependencies: None,
        message: String::new(),
    };
    apply(Body::FinishBuild {
        revision: REVISION,
        output,
    });
    apply(Body::Promote { revision: REVISION });
    for body in more {
        apply(body);
    }
    state.view()
}

pub(super) fn memory() -> Memory {
    let overcommit = Overcommit {
        cpu_percent: 100,
        memory_percent: 100,
    };
    let mut memory = Memory::new(BackoffConfig::default(), overcommit);
    memory.begin(1, 2, Leadership::Leading);
    memory
}

pub(super) fn report(instances: &[(u128, InstanceState)], accepted: u64) -> Report {
    let instances = instances.iter().map(|(id, state)| v1::ObservedInstance {
        id: InstanceId(Uuid::from_u128(*id)).to_wire(),
        revision: Some(REVISION.into()),
        state: Some(state.clone().into()),
        ..Default::default()
    });
    let node = v1::Node {
        id: NodeId(Uuid::from_u128(NODE)).to_wire(),
        name: "node-1".into(),
        allocatable: Some(v1::Resources {
            memory_mib: 1_024,
            cpu_millis: 2_000,
        }),
        images: vec!["python3.11".into()],
        schedulable: true,
        ..Default::default()
    };
    let accepted = Stamp {
        incarnation: 1,
        term: 2,
        sequence: accepted,
    };
    let wire = v1::Report {
        node: Some(node),
        instances: instances.collect(),
        accepted: Some(accepted.into()),
        number: 1,
    };
    wire.try_into().unwrap()
}

pub(super) fn connect(memory: &mut Memory, view: &View, report: Report, depth: usize) -> Orders {
    let (sender, mut orders) = mpsc::channel(depth);
    memory.hello(NOW, view, 0, report, sender).unwrap();
    assert!(orders.try_recv().is_ok(), "the snapshot");
    orders
}

pub(super) fn ask(
    memory: &mut Memory,
    view: &View,
    id: u128,
    parked: u32,
) -> super::activate::Answer {
    let activation = Activation {
        id: ActivationId(Uuid::from_u128(id)),
        gateway: GatewayId([1; 16]),
        function: FUNCTION,
        parked,
    };
    let mut next = id * 100;
    let mut fresh = || {
        next += 1;
        InstanceId(Uuid::from_u128(next))
    };
    activate(
        memory,
        view,
        &PlannerConfig::default(),
        NOW,
        activation,
        &mut fresh,
    )
}

pub(super) fn node() -> NodeId {
    NodeId(Uuid::from_u128(NODE))
}

#[test]
fn the_order_is_in_the_agents_channel_when_the_answer_is_made() {
    let (view, mut memory) = (view(), memory());
    assert_eq!(
        ask(&mut memory, &view, 1, 1).refusal.unwrap().reason,
        "no node is connected"
    );
    let mut orders = connect(&mut memory, &view, report(&[], 0), 8);
    let answer = ask(&mut memory, &view, 2, 1);
    assert_eq!(
        (answer.instances.len(), answer.started, answer.refusal),
        (1, 1, None)
    );
    let Some(v1::controller_message::Body::Delta(delta)) = orders.try_recv().unwrap().unwrap().body
    else {
        panic!("no delta")
    };
    assert_eq!(
        delta.stamp,
        Some(v1::Stamp {
            incarnation: 1,
            term: 2,
            sequence: 2
        })
    );
    assert_eq!(
        delta.upsert[0].spec.as_ref().unwrap().id,
        answer.instances[0].to_wire()
    );
}

#[test]
fn starting_ones_cover_parked_requests_and_the_cap_holds() {
    let (view, mut memory) = (view(), memory());
    let _orders = connect(&mut memory, &view, report(&[], 0), 64);
    assert_eq!(ask(&mut memory, &view, 1, 2).started, 2);
    assert_eq!(ask(&mut memory, &view, 2, 2).started, 0);
    assert_eq!(ask(&mut memory, &view, 1, 3).started, 0, "repeated");
    assert_eq!(ask(&mut memory, &view, 3, 40).started, 1);
    assert_eq!(memory.inputs[&node()].used_memory_mib, 3 * 128);
}

#[test]
fn an_unseen_order_is_not_a_loss_and_a_seen_one_that_is_gone_is() {
    let (view, mut memory) = (view(), memory());
    let _orders = connect(&mut memory, &view, report(&[], 0), 64);
    ask(&mut memory, &view, 1, 1);
    memory.observe(NOW, report(&[], 1));
    assert_eq!(memory.instances.len(), 1);
    memory.observe(NOW, report(&[], 2));
    assert!(memory.instances.is_empty());
    let exits = &memory.functions[&FUNCTION].exits;
    assert_eq!(
        exits
            .iter()
            .map(|exit| exit.reason.clone())
            .collect::<Vec<_>>(),
        [ExitReason::Lost]
    );
    assert!(memory.failures.is_empty(), "nobody's fault");
    assert_eq!(memory.inputs[&node()].used_memory_mib, 0);
}

#[test]
fn an_agent_that_does_not_keep_up_is_cut_and_catches_up_from_a_snapshot() {
    let (view, mut memory) = (view(), memory());
    let mut orders = connect(&mut memory, &view, report(&[], 0), 1);
    // The second order did not fit, and is left to the snapshot; a third finds no node.
    assert_eq!(ask(&mut memory, &view, 1, 3).started, 2);
    assert!(memory.nodes[&node()].session.is_none());
    assert!(orders.try_recv().is_ok());
    assert!(matches!(
        orders.try_recv(),
        Err(mpsc::error::TryRecvError::Disconnected)
    ));
    let wanted = memory.instances.len();
    let (sender, mut orders) = mpsc::channel(8);
    memory
        .hello(
            NOW,
            &view,
            0,
            report(&[(101, InstanceState::Ready)], 2),
            sender,
        )
        .unwrap();
    let Some(v1::controller_message::Body::Snapshot(all)) =
        orders.try_recv().unwrap().unwrap().body
    else {
        panic!("no snapshot")
    };
    assert_eq!(all.instances.len(), wanted);
    assert!(
        all.stamp.unwrap().sequence > 2,
        "newer than everything accepted"
    );
}

#[test]
fn what_runs_is_adopted_and_what_ended_before_is_only_told() {
    let (view, mut memory) = (view(), memory());
    let exited = InstanceState::Exited(ExitReason::OutOfMemory { limit_mib: 128 });
    let known = [
        (5, InstanceState::Ready),
        (6, InstanceState::Draining),
        (7, exited),
    ];
    let _orders = connect(&mut memory, &view, report(&known, 0), 8);
    assert_eq!(memory.counts(REVISION), (1, 1));
    assert_eq!(memory.instances.len(), 2);
    assert_eq!(memory.functions[&FUNCTION].scaled.wanted, 1);
    for _ in 0..2 {
        memory.observe(NOW, report(&known, 1));
    }
    assert_eq!(memory.functions[&FUNCTION].exits.len(), 1, "told once");
}

#[test]
fn an_older_session_cannot_end_its_successor() {
    let (view, mut memory) = (view(), memory());
    let (first, _orders) = mpsc::channel(8);
    let first = memory.hello(NOW, &view, 0, report(&[], 0), first).unwrap();
    let (second, _orders) = mpsc::channel(8);
    let second = memory.hello(NOW, &view, 0, report(&[], 1), second).unwrap();
    assert!(!memory.is_current(node(), first));
    memory.goodbye(node(), first);
    assert!(memory.is_current(node(), second));
    memory.goodbye(node(), second);
    assert!(!memory.inputs[&node()].reachable);
    assert!(
        memory.inputs[&node()].alive,
        "until its grace period is over"
    );
}
