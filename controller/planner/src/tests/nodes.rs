//! Nodes that drain, fall silent and come back.

use std::collections::BTreeMap;

use coracle_model::{InstanceId, Timestamp};
use proptest::prelude::*;

use crate::test_support::*;
use crate::{DemandSample, DrainInput, GatewayId, Input, InstanceInput, Phase, Plan, plan};
use Phase::{Ready, Starting};

/// Revision 1 of function 1 serves; its instances are on these nodes. The first node drains.
fn draining(min: u32, max: u32, placed: &[(u128, Phase)]) -> Input {
    let mut function = function(min, max);
    function.serving = Some(revision(1, 1));
    function.demand.touch(Timestamp(NOW));
    let live = u32::try_from(placed.len()).unwrap();
    function.scaled.hold(Timestamp(NOW), live.min(max));
    let mut input = world([(function_id(1), function)]);
    for (n, (node, phase)) in (1..).zip(placed) {
        let mut instance = instance(n, revision_id(1, 1), *phase);
        instance.node = node_id(*node);
        input.instances.push(instance);
    }
    drain(&mut input, 1, None);
    input
}

fn drain(input: &mut Input, node: u128, forced_at: Option<u64>) {
    let node = input.nodes.get_mut(&node_id(node)).unwrap();
    node.schedulable = false;
    node.draining = Some(DrainInput {
        forced_at: forced_at.map(Timestamp),
    });
}

fn drained(plan: &Plan) -> Vec<InstanceId> {
    plan.drain.iter().map(|drain| drain.id).collect()
}

#[track_caller]
fn check(input: &Input, expected: &str) {
    assert_eq!(summary(input, &plan(input, &mut ids())), expected);
}

#[test]
fn a_drain_makes_before_it_breaks() {
    let input = draining(2, 2, &[(1, Ready), (1, Ready)]);
    check(&input, "start 1.1 ×2");
    let starts = plan(&input, &mut ids()).start;
    assert!(starts.iter().all(|start| start.node == node_id(2)));
    check(
        &draining(2, 2, &[(1, Ready), (1, Ready), (2, Starting)]),
        "start 1.1 ×1",
    );
    let half = draining(2, 2, &[(1, Ready), (1, Ready), (2, Ready), (2, Starting)]);
    check(&half, "drain 1.1 ×1");
    let done = draining(2, 2, &[(1, Ready), (1, Ready), (2, Ready), (2, Ready)]);
    check(&done, "drain 1.1 ×2");
    assert_eq!(
        drained(&plan(&done, &mut ids())),
        [instance_id(1), instance_id(2)]
    );
}

#[test]
fn without_room_elsewhere_a_drain_waits_and_says_why_until_it_is_forced() {
    let mut input = draining(1, 2, &[(1, Ready)]);
    let other = input.nodes.get_mut(&node_id(2)).unwrap();
    other.used_memory_mib = other.memory_mib;
    check(&input, "");
    let stuck = plan(&input, &mut ids());
    let shortage = &stuck.shortages[&function_id(1)];
    assert!(shortage.reason.contains("1 full, 1 closed"), "{shortage:?}");

    drain(&mut input, 1, Some(NOW + 500));
    assert_eq!(plan(&input, &mut ids()).wake_at, Some(Timestamp(NOW + 500)));
    check(&input, "");
    input.now = Timestamp(NOW + 500);
    check(&input, "drain 1.1 ×1");
    let forced = plan(&input, &mut ids());
    assert_eq!(forced.drain[0].deadline, input.now, "not a moment more");
}

#[test]
fn what_drains_already_ends_with_its_nodes_force() {
    let late = Timestamp(NOW + 60_000);
    let mut input = draining(0, 2, &[(1, Phase::Draining { deadline: late })]);
    check(&input, "");
    drain(&mut input, 1, Some(NOW + 1_000));
    let hastened = plan(&input, &mut ids());
    assert_eq!(hastened.drain[0].deadline, Timestamp(NOW + 1_000));
    input.instances[0].phase = Phase::Draining {
        deadline: Timestamp(NOW + 1_000),
    };
    input.now = Timestamp(NOW + 6_000);
    assert_eq!(plan(&input, &mut ids()).stop, [instance_id(1)]);
}

#[test]
fn former_instances_and_a_deploy_leave_a_draining_node_too() {
    let mut input = draining(0, 5, &[(1, Ready), (2, Ready)]);
    let function = input.functions.get_mut(&function_id(1)).unwrap();
    function.serving = Some(revision(1, 2));
    function.former.insert(revision_id(1, 1));
    // One is enough until the new revision has its own: the one that stays.
    input
        .instances
        .push(instance(9, revision_id(1, 2), Starting));
    input.instances[2].node = node_id(2);
    function.scaled.wanted = 1;
    function.scaled.peak = 1;
    assert_eq!(drained(&plan(&input, &mut ids())), [instance_id(1)]);

    let mut input = draining(0, 5, &[]);
    let function = input.functions.get_mut(&function_id(1)).unwrap();
    function.serving = None;
    function.candidate = Some(crate::CandidateInput {
        revision: revision(1, 1),
        since: Timestamp(NOW),
        proved_at: None,
    });
    input
        .instances
        .push(instance(9, revision_id(1, 1), Starting));
    check(&input, "start 1.1 ×1");
}

#[test]
fn what_an_unheard_node_runs_counts_until_its_grace_period_is_over() {
    let mut input = draining(2, 2, &[]);
    input.nodes.get_mut(&node_id(1)).unwrap().draining = None;
    let unheard = input.nodes.get_mut(&node_id(1)).unwrap();
    (unheard.heard, unheard.reachable, unheard.memory_mib) = (false, false, 0);
    let waiting = plan(&input, &mut ids());
    assert_eq!(summary(&input, &waiting), "");
    let shortage = &waiting.shortages[&function_id(1)];
    assert_eq!(shortage.missing, 2);
    assert!(shortage.reason.contains("has not spoken"), "{shortage:?}");
    input.nodes.get_mut(&node_id(1)).unwrap().alive = false;
    check(&input, "start 1.1 ×2");
}

#[derive(Debug, Clone)]
enum Event {
    Load(u32),
    Drain(u128, bool),
    Open(u128),
    Lose(u128),
    Return(u128),
}

fn event() -> impl Strategy<Value = Event> {
    let node = || 1..4_u128;
    prop_oneof![
        4 => (0_u32..8).prop_map(Event::Load),
        2 => (node(), Just(false)).prop_map(|(n, force)| Event::Drain(n, force)),
        2 => node().prop_map(Event::Open),
        1 => node().prop_map(Event::Lose),
        2 => node().prop_map(Event::Return),
    ]
}

/// Four nodes with room for everything, the last of which always stays.
struct World {
    input: Input,
    next: u128,
}

impl World {
    fn new(min: u32, max: u32) -> Self {
        let mut function = function(min, max);
        function.serving = Some(revision(1, 1));
        let mut input = world([(function_id(1), function)]);
        for n in 1..=4 {
            let mut node = node(&format!("node-{n}"));
            (node.memory_mib, node.cpu_millis) = (100_000, 1_000_000);
            input.nodes.insert(node_id(n), node);
        }
        Self { input, next: 100 }
    }

    fn happen(&mut self, event: &Event) {
        self.input.now = self.input.now.plus_millis(1_000);
        let now = self.input.now;
        let node = |n: &u128| node_id(*n);
        let nodes = &mut self.input.nodes;
        match event {
            Event::Load(mean) => {
                let sample = DemandSample {
                    in_flight: *mean,
                    arrivals: u64::from(*mean),
                    mean_millis: u64::from(*mean) * 1_000,
                    ..DemandSample::default()
                };
                let scaling = self.input.config.scaling.clone();
                let function = self.input.functions.get_mut(&function_id(1)).unwrap();
                function
                    .demand
                    .record(&scaling, now, GatewayId([1; 16]), sample);
            }
            Event::Drain(n, force) => drain(&mut self.input, *n, force.then_some(now.0)),
            Event::Open(n) => {
                let node = nodes.get_mut(&node(n)).unwrap();
                (node.schedulable, node.draining) = (true, None);
            }
            Event::Lose(n) => nodes.get_mut(&node(n)).unwrap().alive = false,
            Event::Return(n) => nodes.get_mut(&node(n)).unwrap().alive = true,
        }
    }

    fn count(&self, of: impl Fn(&InstanceInput) -> bool) -> u32 {
        u32::try_from(self.input.instances.iter().filter(|i| of(i)).count()).unwrap()
    }

    fn live(&self) -> u32 {
        self.count(|i| !i.is_draining())
    }

    /// Plans and carries out; what was starting before is ready after, what drained is gone.
    fn turn(&mut self) -> Result<(), TestCaseError> {
        let mut next = self.next;
        let mut fresh = || {
            next += 1;
            instance_id(next)
        };
        let plan = plan(&self.input, &mut fresh);
        self.next = next;
        let now = self.input.now;
        let max = self.input.functions[&function_id(1)].scale.max();
        let moving = self.count(|i| {
            let node = &self.input.nodes[&i.node];
            node.draining.is_some() && node.alive && !i.is_draining()
        });
        self.input
            .instances
            .retain(|i| !i.is_draining() && !plan.lost.contains(&i.id));
        let ends: BTreeMap<_, _> = plan.drain.iter().map(|d| (d.id, d.deadline)).collect();
        for instance in &mut self.input.instances {
            (instance.phase, instance.since) = (Ready, now);
            if let Some(deadline) = ends.get(&instance.id) {
                instance.phase = Phase::Draining {
                    deadline: *deadline,
                };
            }
        }
        for start in &plan.start {
            let node = &self.input.nodes[&start.node];
            prop_assert!(node.alive && node.draining.is_none() && node.schedulable);
            let mut new = instance(start.id.0.as_u128(), start.revision, Starting);
            (new.node, new.since) = (start.node, now);
            self.input.instances.push(new);
        }
        let function = self.input.functions.get_mut(&function_id(1)).unwrap();
        function.scaled = plan.scaled[&function_id(1)].clone();
        // The surge: one for each that is on its way off a draining node.
        prop_assert!(
            self.live() <= max + moving,
            "{} live, {moving} moving",
            self.live()
        );
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Ready ones never fall below the minimum by a drain or an opening, and after a loss they are
    /// back as fast as instances start.
    #[test]
    fn the_minimum_is_kept_through_drains_and_losses(
        min in 1_u32..5,
        spread in 0_u32..4,
        events in prop::collection::vec(event(), 1..60),
    ) {
        let mut world = World::new(min, min + spread);
        for _ in 0..3 {
            world.happen(&Event::Load(0));
            world.turn()?;
        }
        let ready = |world: &World| world.count(|i| i.phase == Ready);
        prop_assert!(ready(&world) >= min);
        let mut lost_before = 3;
        for event in &events {
            world.happen(event);
            if matches!(event, Event::Lose(_)) {
                lost_before = 0;
            }
            world.turn()?;
            // The turn that sees the loss orders, the next one finds them ready.
            if lost_before > 1 {
                prop_assert!(ready(&world) >= min, "{} of {min} after {event:?}", ready(&world));
            }
            prop_assert!(world.live() >= min);
            lost_before += 1;
        }
        // At rest nothing is left on a node that drains.
        for _ in 0..200 {
            world.happen(&Event::Load(0));
            world.turn()?;
        }
        let left = world.count(|i| world.input.nodes[&i.node].draining.is_some());
        prop_assert_eq!((left, world.live()), (0, min));
    }
}
