//! Single plans by table: what is known, and the actions that must come of it.

use crate::test_support::*;
use crate::{CandidateInput, DemandSample, Failures, GatewayId, Input, Phase, PlannerConfig, plan};
use Phase::{Ready, Starting};
use coracle_model::{ExitReason, Timestamp};

/// A function with revision 1 serving, nodes with room, and these instances of revision 1.
fn serving(min: u32, max: u32, phases: &[Phase]) -> Input {
    let mut function = function(min, max);
    function.serving = Some(revision(1, 1));
    function.demand.touch(Timestamp(NOW));
    let mut input = world([(function_id(1), function)]);
    for (n, phase) in phases.iter().enumerate() {
        input
            .instances
            .push(instance(n as u128 + 1, revision_id(1, 1), *phase));
    }
    input
}

fn deploying(min: u32, phases_of_old: &[Phase], phases_of_new: &[Phase]) -> Input {
    let mut input = serving(min, 10, phases_of_old);
    let old = u32::try_from(phases_of_old.len()).unwrap();
    let function = input.functions.get_mut(&function_id(1)).unwrap();
    if phases_of_old.is_empty() {
        function.serving = None;
    }
    let proved = phases_of_new.contains(&Ready).then_some(Timestamp(NOW));
    function.candidate = Some(CandidateInput {
        revision: revision(1, 2),
        since: Timestamp(NOW),
        proved_at: proved,
    });
    function.scaled.wanted = old;
    if !phases_of_old.is_empty() {
        function.scaled.hold(Timestamp(NOW), old);
    }
    for (n, phase) in phases_of_new.iter().enumerate() {
        input
            .instances
            .push(instance(n as u128 + 100, revision_id(1, 2), *phase));
    }
    input
}

/// "start F.R ×n; drain F.R ×n; promote F.R; fail F.R: why", in this order.
fn check(input: &Input, expected: &str) {
    assert_eq!(summary(input, &plan(input, &mut ids())), expected);
}

#[test]
fn the_minimum_is_kept_at_all_times() {
    check(&serving(3, 5, &[]), "start 1.1 ×3");
    check(&serving(3, 5, &[Ready]), "start 1.1 ×2");
    check(&serving(3, 5, &[Ready, Starting, Ready]), "");
    let idle = serving(3, 5, &[Ready, Ready, Ready]);
    check(&idle, "");
}

#[test]
fn idle_functions_go_to_their_minimum_and_the_last_goes_last() {
    let mut input = serving(0, 5, &[Ready, Starting, Ready]);
    check(&input, "drain 1.1 ×2");
    let plan = plan(&input, &mut ids());
    assert!(
        plan.drain.iter().any(|d| d.id == instance_id(2)),
        "the one that only starts goes first"
    );
    assert_eq!(
        plan.decisions[&function_id(1)].reason,
        "0 → 1: kept until idle for 60 s"
    );
    input.now = Timestamp(NOW + 60_000);
    check(&input, "drain 1.1 ×3");
}

#[test]
fn busy_instances_are_the_last_to_drain() {
    let mut input = serving(0, 5, &[Ready, Ready, Ready]);
    input.instances[2].busy = true;
    let drained: Vec<_> = plan(&input, &mut ids())
        .drain
        .iter()
        .map(|d| d.id)
        .collect();
    assert_eq!(drained, [instance_id(1), instance_id(2)]);
}

#[test]
fn nothing_is_started_or_ended_before_the_agents_were_heard() {
    for mut input in [
        serving(3, 5, &[]),
        serving(0, 5, &[Ready, Ready]),
        deploying(0, &[], &[Ready]),
    ] {
        input.collecting = true;
        input.functions.get_mut(&function_id(1)).unwrap().disabled = true;
        input.nodes.get_mut(&node_id(1)).unwrap().alive = false;
        let plan = plan(&input, &mut ids());
        assert_eq!(summary(&input, &plan), "");
        assert!(plan.lost.is_empty() && plan.decisions.is_empty());
    }
}

#[test]
fn a_first_deploy_proves_itself_with_the_minimum_and_serves_at_the_first_answer() {
    check(&deploying(0, &[], &[]), "start 1.2 ×1");
    check(&deploying(3, &[], &[]), "start 1.2 ×3");
    check(&deploying(0, &[], &[Starting]), "");
    check(
        &deploying(3, &[], &[Ready, Starting, Starting]),
        "promote 1.2",
    );
}

#[test]
fn an_update_is_make_before_break() {
    let three = [Ready, Ready, Ready];
    check(&deploying(0, &three, &[]), "start 1.2 ×1");
    check(&deploying(0, &three, &[Starting]), "");
    check(&deploying(0, &three, &[Ready]), "start 1.2 ×2");
    check(&deploying(0, &three, &[Ready, Starting, Starting]), "");
    check(&deploying(0, &three, &[Ready, Ready, Ready]), "promote 1.2");

    // Promoted before it had all: the former fill in one by one.
    let mut input = deploying(0, &three, &[Ready, Starting, Starting]);
    let function = input.functions.get_mut(&function_id(1)).unwrap();
    function.candidate = None;
    function.serving = Some(revision(1, 2));
    function.former.insert(revision_id(1, 1));
    check(&input, "drain 1.1 ×1");
    for instance in &mut input.instances {
        instance.phase = Ready;
    }
    check(&input, "drain 1.1 ×3");
}

#[test]
fn an_update_without_room_for_both_rolls() {
    let mut input = deploying(0, &[Ready, Ready, Ready], &[Ready]);
    for node in input.nodes.values_mut() {
        node.used_memory_mib = node.memory_mib;
    }
    check(&input, "promote 1.2");
}

#[test]
fn the_switch_does_not_wait_for_ever() {
    let mut input = deploying(0, &[Ready, Ready], &[Ready, Starting]);
    check(&input, "");
    let function = input.functions.get_mut(&function_id(1)).unwrap();
    function.demand.touch(Timestamp(NOW + 60_000));
    function.scaled.hold(Timestamp(NOW + 60_000), 2);
    input.now = Timestamp(NOW + 60_000);
    check(&input, "promote 1.2");
}

#[test]
fn a_deploy_that_fails_twice_fails_with_the_reason_and_leaves_the_old_one() {
    let mut input = deploying(1, &[Ready], &[]);
    let config = crate::BackoffConfig::default();
    let fault = ExitReason::InitFailed {
        message: "ModuleNotFoundError: no yaml".into(),
    };
    let mut failures = None;
    let mut failed = |input: &mut Input, reason: &ExitReason, at| {
        failures = Failures::after(failures.as_ref(), &config, Timestamp(at), reason, 0);
        let candidate = input
            .functions
            .get_mut(&function_id(1))
            .unwrap()
            .candidate
            .as_mut();
        candidate.unwrap().revision.failures = failures.clone();
    };
    failed(&mut input, &fault, NOW);
    check(&input, "");
    assert_eq!(
        plan(&input, &mut ids()).wake_at,
        Some(Timestamp(NOW + 1_000))
    );
    input.now = Timestamp(NOW + 1_000);
    check(&input, "start 1.2 ×1");
    failed(&mut input, &fault, NOW + 1_500);
    check(
        &input,
        "fail 1.2: the code could not be loaded: ModuleNotFoundError: no yaml",
    );
}

#[test]
fn a_deploy_that_fits_nowhere_fails_after_its_patience_unless_no_node_is_there() {
    let mut input = deploying(0, &[], &[]);
    input.nodes.get_mut(&node_id(1)).unwrap().memory_mib = 100;
    input.nodes.get_mut(&node_id(2)).unwrap().memory_mib = 100;
    check(&input, "");
    assert_eq!(
        plan(&input, &mut ids()).shortages[&function_id(1)].missing,
        1
    );
    input.now = Timestamp(NOW + 60_000);
    let failed = plan(&input, &mut ids()).fail_deploy;
    assert!(
        failed[0].reason.starts_with("no node has room for 128 MiB"),
        "{failed:?}"
    );
    for node in input.nodes.values_mut() {
        node.alive = false;
    }
    check(&input, "");
}

#[test]
fn disabled_deleted_and_superseded_ones_drain_until_their_timeout() {
    let mut input = serving(2, 5, &[Ready, Ready]);
    input.functions.get_mut(&function_id(1)).unwrap().disabled = true;
    check(&input, "drain 1.1 ×2");
    let plan = plan(&input, &mut ids());
    assert_eq!(plan.drain[0].deadline, Timestamp(NOW + 60_000 + 10_000));

    let mut input = serving(2, 5, &[Ready, Ready]);
    let function = input.functions.get_mut(&function_id(1)).unwrap();
    function.scale = coracle_model::ScaleBounds::new(0, 0).unwrap();
    check(&input, "drain 1.1 ×2");

    let mut input = serving(0, 5, &[Ready]);
    input.instances.push(instance(9, revision_id(1, 7), Ready));
    input
        .instances
        .push(instance(10, revision_id(2, 1), Starting));
    check(&input, "drain 1.7 ×1; drain 2.1 ×1");
}

#[test]
fn a_drain_past_its_deadline_is_taken_off() {
    let deadline = Timestamp(NOW);
    let mut input = serving(0, 5, &[Phase::Draining { deadline }]);
    assert!(plan(&input, &mut ids()).stop.is_empty());
    input.now = Timestamp(NOW + 5_000);
    assert_eq!(plan(&input, &mut ids()).stop, [instance_id(1)]);
}

#[test]
fn instances_of_a_node_that_is_gone_are_replaced_elsewhere() {
    let mut input = serving(2, 5, &[Ready, Ready]);
    input.instances[0].node = node_id(2);
    input.nodes.get_mut(&node_id(2)).unwrap().alive = false;
    let plan = plan(&input, &mut ids());
    assert_eq!(plan.lost, [instance_id(1)]);
    assert_eq!(plan.start.len(), 1);
    assert_eq!(plan.start[0].node, node_id(1));
}

#[test]
fn a_crash_loop_waits_then_tries_one() {
    let mut input = serving(3, 5, &[]);
    let exit = ExitReason::Exited { code: 1 };
    let config = crate::BackoffConfig::default();
    let failures = Failures::after(None, &config, Timestamp(NOW), &exit, 0);
    let function = input.functions.get_mut(&function_id(1)).unwrap();
    function.serving.as_mut().unwrap().failures = failures;
    check(&input, "");
    input.now = Timestamp(NOW + 1_000);
    check(&input, "start 1.1 ×1");
}

#[test]
fn a_nearly_full_node_sheds_what_nobody_calls() {
    let mut input = world([]);
    for n in 1..=8_u64 {
        let id = u128::from(n);
        let mut function = function(u32::from(n == 1), 5);
        function.serving = Some(revision(id, 1));
        function.scaled.wanted = 1;
        function.demand.touch(Timestamp(NOW - n * 3_000));
        input.functions.insert(function_id(id), function);
        input
            .instances
            .push(instance(id, revision_id(id, 1), Ready));
        input
            .nodes
            .get_mut(&node_id(1))
            .unwrap()
            .take(&revision(id, 1));
    }
    // 1 GiB full; a tenth is to be free: the longest unused goes, and not the kept minimum.
    check(&input, "drain 8.1 ×1");
    let sample = DemandSample {
        in_flight: 1,
        mean_millis: 1_000,
        ..DemandSample::default()
    };
    let function = input.functions.get_mut(&function_id(8)).unwrap();
    function.demand.record(
        &PlannerConfig::default().scaling,
        Timestamp(NOW),
        GatewayId([1; 16]),
        sample,
    );
    check(&input, "drain 7.1 ×1");
}

#[test]
fn the_same_input_gives_the_same_plan() {
    let input = deploying(3, &[Ready, Ready], &[Ready, Starting]);
    assert_eq!(plan(&input, &mut ids()), plan(&input, &mut ids()));
}
