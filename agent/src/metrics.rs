//! What an agent counts. Names are `coracle_agent_…`, in base units; no label is a function.

use coracle_driver::Launched;
use coracle_model::ExitReason;
use coracle_proto::relay::Answer;
use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use crate::instances::Counts;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

macro_rules! metrics {
    ($($constant:ident = $name:literal, $kind:ident, [$($label:literal),*], $help:literal;)*) => {
        $(const $constant: &str = $name;)*
        /// Every metric of this crate.
        pub const ALL: &[Metric] = &[$(Metric {
            name: $constant, kind: Kind::$kind, labels: &[$($label),*], help: $help,
        }),*];
    };
}

metrics! {
    INSTANCES = "coracle_agent_instances", Gauge, ["state"],
        "Instances on this node by state.";
    WAITING = "coracle_agent_waiting_calls", Gauge, [],
        "Calls of gateways that wait for an instance.";
    LAUNCHES = "coracle_agent_launches_total", Counter, ["origin"],
        "Launches that succeeded, by how the container came to be.";
    LAUNCH_FAILURES = "coracle_agent_launch_failures_total", Counter, [],
        "Launches that failed, for whatever reason.";
    START = "coracle_agent_start_seconds", Histogram, ["origin"],
        "Making or claiming the container of an instance.";
    INIT = "coracle_agent_init_seconds", Histogram, ["origin"],
        "Loading the user's code in an instance.";
    EXITS = "coracle_agent_exits_total", Counter, ["reason"],
        "Instances that ended, by reason.";
    EXITS_DROPPED = "coracle_agent_exits_dropped_total", Counter, [],
        "Ends that were forgotten before a controller heard of them.";
    KILLS = "coracle_agent_kills_total", Counter, [],
        "Instances killed because a request ran past its deadline.";
    RELAYED = "coracle_agent_relayed_connections", Gauge, [],
        "Connections of gateways on other machines to instances.";
    RELAY_ANSWERS = "coracle_agent_relay_answers_total", Counter, ["answer"],
        "Connections to instances that gateways on other machines asked for, by answer.";
    CONNECTED = "coracle_agent_session_connected", Gauge, [],
        "1 while a leader's assignment is followed, otherwise 0.";
    SESSIONS = "coracle_agent_sessions_total", Counter, [],
        "Sessions opened to controllers.";
    REFUSED = "coracle_agent_orders_refused_total", Counter, ["why"],
        "Orders refused for their stamp: stale, or after a gap.";
    BUILDS = "coracle_agent_builds_total", Counter, ["outcome"],
        "Builds that ended, by outcome.";
    ARTIFACT_BYTES = "coracle_agent_artifact_bytes", Gauge, [],
        "Disk that unpacked artifacts use.";
    ARTIFACT_FETCHES = "coracle_agent_artifact_fetches_total", Counter, [],
        "Artifacts fetched from a controller.";
    ARTIFACT_EVICTIONS = "coracle_agent_artifact_evictions_total", Counter, [],
        "Artifacts removed to stay within the bound.";
    IMAGES_REMOVED = "coracle_agent_images_removed_total", Counter, [],
        "Superseded runtime images that were removed.";
    LOG_LINES = "coracle_agent_log_lines_total", Counter, [],
        "Lines of functions' output that were written.";
    LOG_LINES_DROPPED = "coracle_agent_log_lines_dropped_total", Counter, [],
        "Lines of functions' output that were lost because the disk was slow or full.";
    LOG_BYTES = "coracle_agent_log_bytes", Gauge, [],
        "Disk that functions' logs use.";
}

/// Tells the recorder of this process what each metric means.
pub fn describe() {
    for metric in ALL {
        match metric.kind {
            Kind::Counter => describe_counter!(metric.name, metric.help),
            Kind::Gauge => describe_gauge!(metric.name, metric.help),
            Kind::Histogram => describe_histogram!(metric.name, Unit::Seconds, metric.help),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn set(name: &'static str, value: u64) {
    gauge!(name).set(value as f64);
}

pub(crate) fn instances(counts: &Counts) {
    for (state, count) in [
        ("starting", counts.starting),
        ("ready", counts.ready),
        ("draining", counts.draining),
    ] {
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
        gauge!(INSTANCES, "state" => state).set(count as f64);
    }
    set(WAITING, counts.waiting as u64);
}

pub(crate) fn images_removed(count: usize) {
    counter!(IMAGES_REMOVED).increment(count as u64);
}

pub(crate) fn launched(launched: &Launched) {
    let origin = launched.origin.as_str();
    counter!(LAUNCHES, "origin" => origin).increment(1);
    histogram!(START, "origin" => origin).record(launched.start.as_secs_f64());
    histogram!(INIT, "origin" => origin).record(launched.init.as_secs_f64());
}

pub(crate) fn launch_failed() {
    counter!(LAUNCH_FAILURES).increment(1);
}

pub(crate) fn exited(reason: &ExitReason) {
    let reason = match reason {
        ExitReason::Stopped => "stopped",
        ExitReason::TimedOut => "timed_out",
        ExitReason::OutOfMemory { .. } => "out_of_memory",
        ExitReason::Exited { .. } => "exited",
        ExitReason::Signaled { .. } => "signaled",
        ExitReason::InitFailed { .. } => "init_failed",
        ExitReason::InitTimedOut { .. } => "init_timed_out",
        ExitReason::LaunchFailed { .. } => "launch_failed",
        ExitReason::Lost => "lost",
    };
    counter!(EXITS, "reason" => reason).increment(1);
}

pub(crate) fn exits_dropped(count: usize) {
    counter!(EXITS_DROPPED).increment(count as u64);
}

pub(crate) fn killed() {
    counter!(KILLS).increment(1);
}

pub(crate) fn relay_answered(answer: Answer) {
    let answer = match answer {
        Answer::Open => "open",
        Answer::Unknown => "unknown",
        Answer::Ending => "ending",
        Answer::Full => "full",
    };
    counter!(RELAY_ANSWERS, "answer" => answer).increment(1);
}

/// One more relayed connection while it lives.
pub(crate) struct Relayed(());

impl Relayed {
    pub(crate) fn new() -> Self {
        relayed(1.0);
        Self(())
    }
}

impl Drop for Relayed {
    fn drop(&mut self) {
        relayed(-1.0);
    }
}

fn relayed(more: f64) {
    gauge!(RELAYED).increment(more);
}

pub(crate) fn connected(connected: bool) {
    set(CONNECTED, u64::from(connected));
}

pub(crate) fn session_opened() {
    counter!(SESSIONS).increment(1);
}

pub(crate) fn order_refused(why: &'static str) {
    counter!(REFUSED, "why" => why).increment(1);
}

pub(crate) fn build_ended(outcome: &'static str) {
    counter!(BUILDS, "outcome" => outcome).increment(1);
}

pub(crate) fn artifact_bytes(bytes: u64) {
    set(ARTIFACT_BYTES, bytes);
}

pub(crate) fn artifact_fetched() {
    counter!(ARTIFACT_FETCHES).increment(1);
}

pub(crate) fn artifact_evicted() {
    counter!(ARTIFACT_EVICTIONS).increment(1);
}

pub(crate) fn log_lines(count: u64) {
    counter!(LOG_LINES).increment(count);
}

pub(crate) fn log_lines_dropped(count: u64) {
    counter!(LOG_LINES_DROPPED).increment(count);
}

pub(crate) fn log_bytes(bytes: u64) {
    set(LOG_BYTES, bytes);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_well_formed_and_described() {
        let names: BTreeSet<_> = ALL.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), ALL.len());
        for metric in ALL {
            let name = metric.name;
            let rest = name.strip_prefix("coracle_agent_").expect(name);
            assert!(
                rest.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
                "{name}"
            );
            assert_eq!(
                metric.kind == Kind::Counter,
                name.ends_with("_total"),
                "{name}"
            );
            assert_eq!(
                metric.kind == Kind::Histogram,
                name.ends_with("_seconds"),
                "{name}"
            );
            assert!(
                metric.help.ends_with('.') && metric.help.len() > 20,
                "{name}"
            );
        }
    }

    #[test]
    fn every_metric_has_its_row_in_the_documents() {
        let page = include_str!("../../docs/metrics.md");
        let rows: BTreeSet<_> = page
            .lines()
            .filter(|line| line.starts_with("| `coracle_agent_"))
            .map(str::to_owned)
            .collect();
        let row = |metric: &Metric| {
            let kind = format!("{:?}", metric.kind).to_lowercase();
            let labels = match metric.labels {
                [] => "–".to_owned(),
                [label] => format!("`{label}`"),
                more => panic!("how are the labels {more:?} shown?"),
            };
            format!(
                "| `{}` | {kind} | {labels} | {} |",
                metric.name, metric.help
            )
        };
        let ours: BTreeSet<_> = ALL.iter().map(row).collect();
        assert_eq!(rows, ours);
    }

    /// A constant that nothing records would be a promise that is not kept.
    #[test]
    fn every_metric_is_recorded() {
        let source = include_str!("metrics.rs");
        for line in source
            .lines()
            .filter(|line| line.contains("= \"coracle_agent_"))
        {
            let constant = line.trim().split(' ').next().expect("a name");
            let uses: usize = ["!(", "set("]
                .into_iter()
                .flat_map(|call| [format!("{call}{constant})"), format!("{call}{constant},")])
                .map(|call| source.matches(&call).count())
                .sum();
            assert_eq!(uses, 1, "{constant}");
        }
    }
}
