//! Names of this crate's metrics, in one place.

use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

pub const WRITE_SECONDS: &str = "coracle_controller_write_seconds";
pub const ACTIVATE_SECONDS: &str = "coracle_controller_activate_seconds";
pub const ACTIVATIONS_TOTAL: &str = "coracle_controller_activations_total";
pub const PLAN_SECONDS: &str = "coracle_controller_plan_seconds";
pub const STARTS_TOTAL: &str = "coracle_controller_instance_starts_total";
pub const EXITS_TOTAL: &str = "coracle_controller_instance_exits_total";
pub const BUILDS_TOTAL: &str = "coracle_controller_builds_total";
pub const INSTANCES: &str = "coracle_controller_instances";
pub const NODES: &str = "coracle_controller_nodes";
pub const LEADING: &str = "coracle_controller_leading";
pub const ARTIFACTS_REPAIRED_TOTAL: &str = "coracle_controller_artifacts_repaired_total";
pub const ARTIFACTS_REMOVED_TOTAL: &str = "coracle_controller_artifacts_removed_total";
pub const PEER_MESSAGES_DROPPED_TOTAL: &str = "coracle_controller_peer_messages_dropped_total";
pub const SNAPSHOTS_SENT_TOTAL: &str = "coracle_controller_snapshots_sent_total";

/// Every name, with what it measures.
pub const ALL: [(&str, &str); 14] = [
    (
        WRITE_SECONDS,
        "From a write's arrival to its application, durable on a majority",
    ),
    (
        ACTIVATE_SECONDS,
        "Deciding an activation and pushing its orders",
    ),
    (
        ACTIVATIONS_TOTAL,
        "Activations by outcome: instances, refused",
    ),
    (
        PLAN_SECONDS,
        "Making and carrying out one plan, without its writes",
    ),
    (
        STARTS_TOTAL,
        "Instances ordered, by cause: plan, activation",
    ),
    (
        EXITS_TOTAL,
        "Instances that ended by themselves, by kind of reason",
    ),
    (
        BUILDS_TOTAL,
        "Builds that ended, by outcome: finished, failed",
    ),
    (
        INSTANCES,
        "Instances that should be, by phase: starting, ready, draining",
    ),
    (NODES, "Nodes known, by state: alive, gone"),
    (LEADING, "1 while this controller leads"),
    (
        ARTIFACTS_REPAIRED_TOTAL,
        "Artifacts that were missing here and came from another controller",
    ),
    (
        ARTIFACTS_REMOVED_TOTAL,
        "Artifacts collected since nothing named them",
    ),
    (
        PEER_MESSAGES_DROPPED_TOTAL,
        "Raft messages that found no room in the queue to their member",
    ),
    (
        SNAPSHOTS_SENT_TOTAL,
        "Snapshots to other members, by outcome: arrived, failed",
    ),
];

/// Registers the descriptions with whatever recorder the process has.
pub fn describe() {
    for (name, text) in ALL {
        if name.ends_with("_total") {
            describe_counter!(name, text);
        } else if name.ends_with("_seconds") {
            describe_histogram!(name, text);
        } else {
            describe_gauge!(name, text);
        }
    }
}

pub(crate) fn write_took(time: Duration) {
    histogram!(WRITE_SECONDS).record(time.as_secs_f64());
}

pub(crate) fn peer_message_dropped() {
    counter!(PEER_MESSAGES_DROPPED_TOTAL).increment(1);
}

pub(crate) fn snapshot_sent(arrived: bool) {
    let outcome = if arrived { "arrived" } else { "failed" };
    counter!(SNAPSHOTS_SENT_TOTAL, "outcome" => outcome).increment(1);
}

pub(crate) fn activated(time: Duration, refused: bool, started: u64) {
    histogram!(ACTIVATE_SECONDS).record(time.as_secs_f64());
    counter!(ACTIVATIONS_TOTAL, "outcome" => if refused { "refused" } else { "instances" })
        .increment(1);
    counter!(STARTS_TOTAL, "cause" => "activation").increment(started);
}

pub(crate) fn planned(time: Duration, started: u64) {
    histogram!(PLAN_SECONDS).record(time.as_secs_f64());
    counter!(STARTS_TOTAL, "cause" => "plan").increment(started);
}

pub(crate) fn exited(kind: &'static str) {
    counter!(EXITS_TOTAL, "kind" => kind).increment(1);
}

pub(crate) fn built(finished: bool) {
    counter!(BUILDS_TOTAL, "outcome" => if finished { "finished" } else { "failed" }).increment(1);
}

pub(crate) fn leading(leads: bool) {
    gauge!(LEADING).set(if leads { 1.0 } else { 0.0 });
}

pub(crate) fn population(starting: u32, ready: u32, draining: u32, alive: u32, gone: u32) {
    for (phase, count) in [
        ("starting", starting),
        ("ready", ready),
        ("draining", draining),
    ] {
        gauge!(INSTANCES, "phase" => phase).set(f64::from(count));
    }
    for (state, count) in [("alive", alive), ("gone", gone)] {
        gauge!(NODES, "state" => state).set(f64::from(count));
    }
}

pub(crate) fn artifact_repaired() {
    counter!(ARTIFACTS_REPAIRED_TOTAL).increment(1);
}

pub(crate) fn artifacts_removed(count: u64) {
    counter!(ARTIFACTS_REMOVED_TOTAL).increment(count);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_well_formed_and_described() {
        let names: BTreeSet<_> = ALL.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), ALL.len());
        for (name, text) in ALL {
            let rest = name.strip_prefix("coracle_controller_").expect(name);
            assert!(
                rest.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
                "{name}"
            );
            assert!(!rest.ends_with('_') && !rest.contains("__"), "{name}");
            assert!(text.len() > 10, "{name}");
        }
        // Every constant of this file is in the list, and every name on the page.
        let source = include_str!("metrics.rs");
        let constants = source
            .lines()
            .filter(|line| line.starts_with("pub const ") && line.contains(": &str"));
        assert_eq!(constants.count(), ALL.len());
        let page = include_str!("../../docs/metrics.md");
        let listed = page
            .lines()
            .filter_map(|line| line.strip_prefix("| `coracle_controller_"));
        let listed: BTreeSet<_> = listed.filter_map(|rest| rest.split('`').next()).collect();
        let ours: BTreeSet<_> = ALL
            .iter()
            .filter_map(|(name, _)| name.strip_prefix("coracle_controller_"))
            .collect();
        assert_eq!(listed, ours);
    }
}
