//! Seeds that failed once, a few hundred others, and the bugs that the simulator has to find.

use coracle_sim::{Options, Planted, run};

/// Each of them is found within so many seeds, or the simulator is not worth its time.
const WITHIN: u64 = 200;
/// `CORACLE_SIM_SEEDS=2000` runs as many.
const SEEDS: u64 = 200;

fn quiet() {
    // What panics is told with its seed.
    std::panic::set_hook(Box::new(|info| {
        if !info.to_string().contains("raft") {
            eprintln!("{info}");
        }
    }));
}

fn clean(seeds: impl IntoIterator<Item = (u64, u64)>) {
    quiet();
    let mut failed = Vec::new();
    for (seed, events) in seeds {
        let options = Options {
            events,
            ..Options::seed(seed)
        };
        if let Err(what) = run(options) {
            failed.push(format!(
                "seed {seed}: {what}\n  replay: tests/sim/run.sh --from {seed} --seeds 1 --events {events} --trace"
            ));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn seeds_that_failed_once() {
    let lines = include_str!("../found.txt").lines();
    let seeds = lines.filter(|line| !line.starts_with('#')).map(|line| {
        let mut words = line.split_whitespace();
        let mut number = || words.next().and_then(|word| word.parse().ok());
        let number: (Option<u64>, Option<u64>) = (number(), number());
        number.0.zip(number.1).expect("a seed and its events")
    });
    clean(seeds);
}

/// In two halves, since each test has one processor.
fn half(which: u64) {
    let seeds = std::env::var("CORACLE_SIM_SEEDS").ok();
    let seeds = seeds.and_then(|seeds| seeds.parse().ok()).unwrap_or(SEEDS);
    clean(
        (0..seeds)
            .filter(|seed| seed % 2 == which)
            .map(|seed| (seed, Options::EVENTS)),
    );
}

#[test]
fn even_seeds_hold() {
    half(0);
}

#[test]
fn odd_seeds_hold() {
    half(1);
}

#[test]
fn a_seed_repeats_exactly() {
    for seed in [3, 4] {
        assert_eq!(run(Options::seed(seed)), run(Options::seed(seed)));
    }
}

fn found(planted: Planted, change: impl Fn(&mut Options)) -> String {
    quiet();
    for seed in 0..WITHIN {
        let mut options = Options {
            planted: Some(planted),
            ..Options::seed(seed)
        };
        change(&mut options);
        if let Err(what) = run(options) {
            println!("{planted:?}: seed {seed}: {what}");
            return what;
        }
    }
    panic!("{planted:?} was not found within {WITHIN} seeds");
}

#[test]
fn finds_votes_that_leave_before_they_are_synced() {
    found(Planted::VotesBeforeSync, |_| ());
}

#[test]
fn finds_acknowledgements_that_leave_before_they_are_synced() {
    found(Planted::AcknowledgementsBeforeSync, |_| ());
}

#[test]
fn finds_deduplication_that_a_snapshot_lost() {
    found(Planted::DeduplicationLostAtSnapshot, |_| ());
}

/// Also where nobody compares states: by what clients were answered.
#[test]
fn clients_see_a_lost_deduplication() {
    let what = found(Planted::DeduplicationLostAtSnapshot, |options| {
        options.compare_states = false;
    });
    assert!(what.contains("has no explanation"), "{what}");
}

#[test]
fn finds_an_agent_that_takes_orders_of_an_older_stamp() {
    let what = found(Planted::OlderStampAccepted, |_| ());
    assert!(what.contains("accepted an order"), "{what}");
}

#[test]
fn finds_a_leader_that_plans_before_its_agents_were_heard() {
    let what = found(Planted::ScaleDownBeforeCollection, |_| ());
    assert!(what.contains("before its agents were heard"), "{what}");
}

#[test]
fn finds_a_request_that_is_executed_twice() {
    let what = found(Planted::RetryAfterSend, |_| ());
    assert!(what.contains("executed 2 times"), "{what}");
}
