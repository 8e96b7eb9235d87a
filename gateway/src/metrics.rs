//! Names, meanings and handles of the gateway's metrics. `docs/metrics.md` lists them.

use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};

use crate::{function::Function, respond::Code, shared::Shared};

pub const REQUESTS: &str = "coracle_gateway_requests_total";
pub const HEAD_SECONDS: &str = "coracle_gateway_response_head_seconds";
pub const ERRORS: &str = "coracle_gateway_platform_errors_total";
pub const PARKED: &str = "coracle_gateway_parked_total";
pub const QUEUED: &str = "coracle_gateway_queued_requests";
pub const IN_FLIGHT: &str = "coracle_gateway_requests_in_flight";
pub const ACTIVATIONS: &str = "coracle_gateway_activations_total";
pub const DIALS: &str = "coracle_gateway_instance_dials_total";
pub const BUSY: &str = "coracle_gateway_instance_busy_total";
pub const UNREACHABLE: &str = "coracle_gateway_instance_unreachable_total";
pub const KILLS: &str = "coracle_gateway_instance_kills_total";
pub const CLIENTS_GONE: &str = "coracle_gateway_clients_gone_total";
pub const CONNECTIONS: &str = "coracle_gateway_connections";
pub const FUNCTIONS: &str = "coracle_gateway_functions";
pub const FEED_CONNECTED: &str = "coracle_gateway_route_feed_connected";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

const ALL: &[(&str, Kind, Unit, &str)] = &[
    (
        REQUESTS,
        Kind::Counter,
        Unit::Count,
        "Answers begun, by function and class of status.",
    ),
    (
        HEAD_SECONDS,
        Kind::Histogram,
        Unit::Seconds,
        "From a request's head to its answer's head.",
    ),
    (
        ERRORS,
        Kind::Counter,
        Unit::Count,
        "Answers that the platform made, by error code.",
    ),
    (
        PARKED,
        Kind::Counter,
        Unit::Count,
        "Requests that had to wait for a free instance.",
    ),
    (
        QUEUED,
        Kind::Gauge,
        Unit::Count,
        "Requests that wait for an instance, as of the last second.",
    ),
    (
        IN_FLIGHT,
        Kind::Gauge,
        Unit::Count,
        "Requests inside instances, as of the last second.",
    ),
    (
        ACTIVATIONS,
        Kind::Counter,
        Unit::Count,
        "Questions to the leader for more instances.",
    ),
    (
        DIALS,
        Kind::Counter,
        Unit::Count,
        "New connections to instances.",
    ),
    (
        BUSY,
        Kind::Counter,
        Unit::Count,
        "Instances that answered that they are full.",
    ),
    (
        UNREACHABLE,
        Kind::Counter,
        Unit::Count,
        "Instances that could not be reached or broke off.",
    ),
    (
        KILLS,
        Kind::Counter,
        Unit::Count,
        "Instances killed because a request ran too long.",
    ),
    (
        CLIENTS_GONE,
        Kind::Counter,
        Unit::Count,
        "Clients that left before their answer ended.",
    ),
    (
        CONNECTIONS,
        Kind::Gauge,
        Unit::Count,
        "Open client connections, by listener.",
    ),
    (
        FUNCTIONS,
        Kind::Gauge,
        Unit::Count,
        "Functions in the route table.",
    ),
    (
        FEED_CONNECTED,
        Kind::Gauge,
        Unit::Count,
        "1 while the route feed is followed, else 0.",
    ),
];

/// Tells the recorder what each name means. Harmless when repeated.
pub(crate) fn describe() {
    for (name, kind, unit, text) in ALL {
        match kind {
            Kind::Counter => describe_counter!(*name, *unit, *text),
            Kind::Gauge => describe_gauge!(*name, *unit, *text),
            Kind::Histogram => describe_histogram!(*name, *unit, *text),
        }
    }
}

/// Handles made once, so that counting is an atomic addition.
pub(crate) struct GatewayMetrics {
    pub(crate) parked: Counter,
    pub(crate) queued: Gauge,
    pub(crate) in_flight: Gauge,
    pub(crate) activations: Counter,
    pub(crate) dials: Counter,
    pub(crate) busy: Counter,
    pub(crate) unreachable: Counter,
    pub(crate) kills: Counter,
    pub(crate) clients_gone: Counter,
    pub(crate) invoke_connections: Gauge,
    pub(crate) api_connections: Gauge,
    pub(crate) functions: Gauge,
    pub(crate) feed_connected: Gauge,
}

impl std::fmt::Debug for GatewayMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GatewayMetrics")
    }
}

impl GatewayMetrics {
    pub(crate) fn new() -> Self {
        Self {
            parked: counter!(PARKED),
            queued: gauge!(QUEUED),
            in_flight: gauge!(IN_FLIGHT),
            activations: counter!(ACTIVATIONS),
            dials: counter!(DIALS),
            busy: counter!(BUSY),
            unreachable: counter!(UNREACHABLE),
            kills: counter!(KILLS),
            clients_gone: counter!(CLIENTS_GONE),
            invoke_connections: gauge!(CONNECTIONS, "listener" => "invoke"),
            api_connections: gauge!(CONNECTIONS, "listener" => "api"),
            functions: gauge!(FUNCTIONS),
            feed_connected: gauge!(FEED_CONNECTED),
        }
    }
}

/// Errors are rare, so their handles are looked up each time.
pub(crate) fn count_error(code: Code) {
    counter!(ERRORS, "code" => code.as_str()).increment(1);
}

/// One function's own series.
pub(crate) struct FunctionMetrics {
    classes: [Counter; 4],
    seconds: Histogram,
}

impl std::fmt::Debug for FunctionMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FunctionMetrics")
    }
}

impl FunctionMetrics {
    /// Made at a function's first request. Functions beyond the bound share the name `other`, so
    /// that the number of series stays bounded whatever the users create.
    pub(crate) fn of<'a>(shared: &Shared, function: &'a Function) -> &'a Self {
        function.metrics.get_or_init(|| {
            let name = if shared.take_label() {
                format!("{}/{}/{}", function.project, function.namespace, function.name)
            } else {
                "other".to_owned()
            };
            let class = |class: &'static str| {
                counter!(REQUESTS, "function" => name.clone(), "class" => class)
            };
            Self {
                classes: [class("2xx"), class("3xx"), class("4xx"), class("5xx")],
                seconds: histogram!(HEAD_SECONDS, "function" => name.clone()),
            }
        })
    }

    pub(crate) fn answered(&self, status: http::StatusCode, took: std::time::Duration) {
        let class = usize::from(status.as_u16() / 100).clamp(2, 5) - 2;
        self.classes[class].increment(1);
        self.seconds.record(took.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs};

    use super::*;

    #[test]
    fn names_are_unique_well_formed_and_documented() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
        let page = fs::read_to_string(page).expect("docs/metrics.md is there");
        let names: BTreeSet<_> = ALL.iter().map(|(name, ..)| *name).collect();
        assert_eq!(names.len(), ALL.len());
        for (name, kind, unit, text) in ALL {
            assert!(name.starts_with("coracle_gateway_"), "{name}");
            assert!(
                name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
                "{name}"
            );
            assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
            assert_eq!(name.ends_with("_seconds"), *unit == Unit::Seconds, "{name}");
            assert!(text.ends_with('.'), "{name}");
            assert!(
                page.contains(&format!("| `{name}` |")),
                "{name} is missing in docs/metrics.md"
            );
        }
        let listed = page
            .lines()
            .filter(|l| l.starts_with("| `coracle_gateway_"))
            .count();
        assert_eq!(
            listed,
            ALL.len(),
            "docs/metrics.md lists a metric that does not exist"
        );
    }
}
