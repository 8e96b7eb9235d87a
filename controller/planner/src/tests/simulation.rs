//! Random load, exits and time over many plans: what must hold after every one of them.

use std::collections::BTreeMap;

use crate::test_support::*;
use crate::{BackoffConfig, CandidateInput, DemandSample, Failures, GatewayId, Input, Phase, plan};
use coracle_model::{ExitReason, InstanceId};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Event {
    /// This mean concurrency for a second.
    Load(u32),
    Quiet(u16),
    /// The n-th live instance ends by itself.
    Exit(usize),
    /// A new revision is built.
    Update,
    NodeGoes,
    NodeComes,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0_u32..12).prop_map(Event::Load),
        1 => (1_u16..90).prop_map(Event::Quiet),
        2 => (0_usize..20).prop_map(Event::Exit),
        1 => Just(Event::Update),
        1 => Just(Event::NodeGoes),
        1 => Just(Event::NodeComes),
    ]
}

/// A leader, agents and state machine of the simplest kind around the planner.
struct World {
    input: Input,
    next_id: u128,
    failures: BTreeMap<u32, Failures>,
    latest: u32,
    min: u32,
    max: u32,
}

impl World {
    fn new(min: u32, max: u32) -> Self {
        let mut function = function(min, max);
        function.serving = Some(revision(1, 1));
        let mut input = world([(function_id(1), function)]);
        for node in input.nodes.values_mut() {
            node.memory_mib = 100_000;
            node.cpu_millis = 1_000_000;
        }
        Self {
            input,
            next_id: 1,
            failures: BTreeMap::new(),
            latest: 1,
            min,
            max,
        }
    }

    fn happen(&mut self, event: &Event) {
        let now = self.input.now;
        match event {
            Event::Load(mean) => {
                self.pass(1_000);
                self.report(*mean);
            }
            Event::Quiet(seconds) => self.pass(u64::from(*seconds) * 1_000),
            Event::Exit(n) => {
                if self.input.instances.is_empty() {
                    return;
                }
                let ended = self.input.instances.remove(n % self.input.instances.len());
                let lived = if ended.phase == Phase::Ready {
                    now.since(ended.since)
                } else {
                    0
                };
                let number = ended.revision.number;
                let reason = ExitReason::Exited { code: 1 };
                let before = self.failures.get(&number);
                let config = BackoffConfig::default();
                if let Some(after) = Failures::after(before, &config, now, &reason, lived) {
                    self.failures.insert(number, after);
                }
            }
            Event::Update => {
                self.latest += 1;
                let latest = self.latest;
                let function = self.input.functions.get_mut(&function_id(1)).unwrap();
                let revision = revision(1, latest);
                function.candidate = Some(CandidateInput {
                    revision,
                    since: now,
                    proved_at: None,
                });
            }
            // The second node; the first one always stays.
            Event::NodeGoes => self.input.nodes.get_mut(&node_id(2)).unwrap().alive = false,
            Event::NodeComes => self.input.nodes.get_mut(&node_id(2)).unwrap().alive = true,
        }
    }

    fn pass(&mut self, ms: u64) {
        self.input.now = self.input.now.plus_millis(ms);
    }

    fn report(&mut self, mean: u32) {
        let scaling = self.input.config.scaling.clone();
        let now = self.input.now;
        let sample = DemandSample {
            in_flight: mean,
            arrivals: u64::from(mean),
            mean_millis: u64::from(mean) * 1_000,
            ..DemandSample::default()
        };
        let function = self.input.functions.get_mut(&function_id(1)).unwrap();
        function
            .demand
            .record(&scaling, now, GatewayId([1; 16]), sample);
    }

    /// Plans, checks, carries out; what was starting is ready afterwards.
    fn turn(&mut self) -> Result<(), TestCaseError> {
        self.show_failures();
        let mut next_id = self.next_id;
        let mut fresh = || {
            next_id += 1;
            instance_id(next_id)
        };
        let plan = plan(&self.input, &mut fresh);
        self.next_id = next_id;
        let now = self.input.now;

        let drained: Vec<InstanceId> = plan.drain.iter().map(|d| d.id).collect();
        let gone = |id: &InstanceId| plan.lost.contains(id) || plan.stop.contains(id);
        self.input.instances.retain(|i| !gone(&i.id));
        for instance in &mut self.input.instances {
            if instance.phase == Phase::Starting {
                instance.phase = Phase::Ready;
                instance.since = now;
            }
            if let Some(drain) = plan.drain.iter().find(|d| d.id == instance.id) {
                prop_assert!(drained.iter().filter(|d| **d == drain.id).count() == 1);
                instance.phase = Phase::Draining {
                    deadline: drain.deadline,
                };
            }
        }
        for start in &plan.start {
            let failing = self.failures.get(&start.revision.number);
            prop_assert!(
                !failing.is_some_and(|f| f.is_waiting(now)),
                "started while backing off"
            );
            prop_assert!(self.input.nodes[&start.node].alive);
            let mut new = instance(start.id.0.as_u128(), start.revision, Phase::Starting);
            new.node = start.node;
            new.since = now;
            self.input.instances.push(new);
        }
        let ready_of = |number: u32, instances: &[crate::InstanceInput]| {
            instances
                .iter()
                .filter(|i| i.revision.number == number && i.phase == Phase::Ready)
                .count()
        };
        let function = self.input.functions.get_mut(&function_id(1)).unwrap();
        function.scaled = plan.scaled[&function_id(1)].clone();
        for promoted in &plan.promote {
            prop_assert!(
                ready_of(promoted.number, &self.input.instances) > 0,
                "promoted unproved"
            );
            function
                .former
                .extend(function.serving.as_ref().map(|s| s.id));
            function.serving = function.candidate.take().map(|c| c.revision);
            prop_assert_eq!(function.serving.as_ref().map(|s| s.id), Some(*promoted));
            function.demand.touch(now);
        }
        for failed in &plan.fail_deploy {
            prop_assert!(self.failures.contains_key(&failed.revision.number));
            function.candidate = None;
        }
        if let Some(candidate) = &mut function.candidate
            && ready_of(candidate.revision.id.number, &self.input.instances) > 0
        {
            candidate.proved_at.get_or_insert(now);
        }
        self.check_bounds()
    }

    fn show_failures(&mut self) {
        let function = self.input.functions.get_mut(&function_id(1)).unwrap();
        if let Some(serving) = &mut function.serving {
            serving.failures = self.failures.get(&serving.id.number).cloned();
        }
        if let Some(candidate) = &mut function.candidate {
            candidate.revision.failures = self.failures.get(&candidate.revision.id.number).cloned();
        }
    }

    fn live(&self, number: Option<u32>) -> u32 {
        let live = self.input.instances.iter().filter(|i| {
            !i.is_draining() && number.is_none_or(|number| i.revision.number == number)
        });
        u32::try_from(live.count()).unwrap()
    }

    fn check_bounds(&self) -> Result<(), TestCaseError> {
        let function = &self.input.functions[&function_id(1)];
        for revision in 1..=self.latest {
            prop_assert!(
                self.live(Some(revision)) <= self.max,
                "revision {revision} over the cap"
            );
        }
        // The surge: one more set for the candidate, and one for each former revision that had
        // something ready when the one after it was promoted. Updates within seconds of each other
        // can leave two such; the next plan lets them go.
        let serving = function.serving.as_ref().map_or(0, |s| s.id.number);
        let former = (1..serving).filter(|number| self.live(Some(*number)) > 0);
        let former = u32::try_from(former.count()).unwrap();
        let updates = u32::from(function.candidate.is_some()) + former;
        prop_assert!(self.live(None) <= self.max * (1 + updates));
        prop_assert!(former <= 2, "former revisions pile up");
        Ok(())
    }

    /// Time without faults: everything comes to rest.
    fn settle(&mut self, mean: u32) -> Result<(), TestCaseError> {
        for _ in 0..400 {
            self.pass(1_000);
            self.report(mean);
            self.turn()?;
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn bounds_hold_through_any_history_and_the_load_gets_what_it_needs(
        min in 0_u32..4,
        spread in 1_u32..6,
        events in prop::collection::vec(event(), 1..80),
        last in 0_u32..12,
    ) {
        let mut world = World::new(min, min + spread);
        for event in &events {
            world.happen(event);
            world.turn()?;
        }
        world.settle(last)?;
        let serving = world.input.functions[&function_id(1)].serving.as_ref().unwrap().id.number;
        prop_assert_eq!(world.live(Some(serving)), last.clamp(world.min, world.max));
        prop_assert_eq!(world.live(None), last.clamp(world.min, world.max), "old ones are gone");
        prop_assert!(world.input.functions[&function_id(1)].candidate.is_none());
        // At rest the next plan does nothing.
        let at_rest = plan(&world.input, &mut ids());
        prop_assert_eq!(summary(&world.input, &at_rest), "");
    }
}

/// Two updates within seconds and a crash between them: both former revisions still have an
/// instance for a moment, and none of them after it.
#[test]
fn former_revisions_of_quick_updates_are_let_go() {
    let mut world = World::new(0, 1);
    let history = [
        Event::Update,
        Event::Load(0),
        Event::Load(1),
        Event::Exit(2),
        Event::Update,
        Event::Load(1),
        Event::NodeGoes,
    ];
    for event in &history {
        world.happen(event);
        world.turn().unwrap();
    }
    world.settle(1).unwrap();
    assert_eq!((world.live(Some(3)), world.live(None)), (1, 1));
}
