//! First calls, and real handlers kept warm.

use std::{collections::BTreeMap, time::Duration};

use coracle_tests::{Client, Server};
use serde_json::json;

use crate::{
    process::machine,
    stats::{Median, quantile},
    wrk,
};

const PHASES: [&str; 5] = ["queue", "schedule", "start", "init", "run"];

/// All phases of one answer: from its request's head in the gateway to its own head there.
const INSIDE: &str = "together";

const PYTHON: &str = "def main():\n    return 'x'\n";
const NODE: &str = "module.exports.main = () => 'x';\n";

/// What a first call finds.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Pool {
    /// All stems wait, and nothing else happens on the node.
    Full,
    /// At least one waits; the others are being made meanwhile, on the same processors.
    Refilling,
    None,
}

const STEMS: u64 = 8;

/// Each function is called once, one after the other, after its deployment's own instance has gone.
pub(crate) async fn run(functions: usize) -> Result<(), String> {
    println!(
        "cold: {}; {functions} functions, each called once",
        machine()
    );
    for (runtime, code) in [("python3.11", PYTHON), ("nodejs20", NODE)] {
        measure(runtime, code, "egress", Pool::Full, functions).await;
        measure(runtime, code, "none", Pool::Full, functions).await;
        measure(runtime, code, "egress", Pool::Refilling, functions).await;
        measure(runtime, code, "egress", Pool::None, functions.min(30)).await;
    }
    Ok(())
}

async fn measure(runtime: &str, code: &str, network: &str, pool: Pool, functions: usize) {
    let stems = if pool == Pool::None { 0 } else { STEMS };
    let stems_flag = format!("--stems={stems}");
    let flags = [
        "--idle-after=1",
        "--stable-window=1",
        "--panic-window=1",
        &stems_flag,
    ];
    let server = Server::with_flags(&flags).await;
    for n in 0..functions {
        let settings = json!({
            "runtime": runtime, "network": network, "memory_mib": 128, "cpu_millis": 250,
            // Different bytes for each, so that no artifact is shared.
            "code": format!("{code}{} {n}\n", if runtime.starts_with("py") { "#" } else { "//" }),
        });
        server.deploy(&format!("cold-{n}"), code, settings).await;
    }
    let last = format!("cold-{}", functions - 1);
    server
        .ready_instances(&last, 0, Duration::from_secs(60))
        .await;
    let client = Client::new(None);
    let mut totals = Vec::new();
    let mut phases: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let mut from: BTreeMap<String, u32> = BTreeMap::new();
    // One connection, opened before: the client's own set-up is not the platform's.
    let _ = client.get(&server.address("invoke")).await;
    for n in 0..functions {
        match pool {
            Pool::Full => {
                // What the node reports lags behind: at first it still counts the stem just taken.
                tokio::time::sleep(Duration::from_millis(300)).await;
                wait_for_stems(&server, runtime, STEMS).await;
            }
            Pool::Refilling => wait_for_stems(&server, runtime, 1).await,
            Pool::None => {}
        }
        let answer = client.get(&server.url(&format!("cold-{n}"))).await;
        if answer.status != 200 {
            println!("  cold-{n}: {} {}", answer.status, answer.text());
            continue;
        }
        totals.push(answer.took.as_secs_f64() * 1e3);
        for phase in PHASES {
            phases.entry(phase).or_default().extend(answer.phase(phase));
        }
        // The rest of the total is the client's, and the way between the two.
        let inside = PHASES.iter().filter_map(|phase| answer.phase(phase)).sum();
        phases.entry(INSIDE).or_default().push(inside);
        let timing = answer.header("server-timing");
        let origin = timing
            .split("desc=")
            .nth(1)
            .unwrap_or("?")
            .trim_matches('"');
        let origin = origin.split(['"', ',']).next().unwrap_or("?").to_owned();
        *from.entry(origin).or_default() += 1;
    }
    totals.sort_by(f64::total_cmp);
    println!(
        "\n{runtime}, network {network}, pool {pool:?}: n={} p50 {:.2} ms, p90 {:.2}, p99 {:.2}, worst {:.2} (from {from:?})",
        totals.len(),
        quantile(&totals, 0.5),
        quantile(&totals, 0.9),
        quantile(&totals, 0.99),
        totals.last().copied().unwrap_or_default()
    );
    for phase in PHASES.into_iter().chain([INSIDE]) {
        if let Some(samples) = phases.get_mut(phase).filter(|s| !s.is_empty()) {
            samples.sort_by(f64::total_cmp);
            println!(
                "  {phase:9} p50 {:.2} ms, p99 {:.2}",
                quantile(samples, 0.5),
                quantile(samples, 0.99)
            );
        }
    }
}

/// The pool is refilled at a bounded rate.
async fn wait_for_stems(server: &Server, runtime: &str, count: u64) {
    coracle_tests::eventually(
        "stems wait",
        Duration::from_secs(60),
        || async {
            let nodes = server.admin.get(&server.api("nodes")).await.ok().json();
            nodes["items"][0]["stems"][runtime]
                .as_u64()
                .unwrap_or_default()
        },
        |stems| *stems >= count,
    )
    .await;
}

/// Requests a second and latency of kept instances with trivial handlers.
pub(crate) async fn handlers(runs: u32, seconds: u32) -> Result<(), String> {
    println!("handlers: {}; {runs} runs of {seconds} s", machine());
    let server = Server::start().await;
    for (runtime, code) in [("python3.11", PYTHON), ("nodejs20", NODE)] {
        let name = &runtime[..4];
        let settings = json!({
            "runtime": runtime, "scale": {"min": 2, "max": 2}, "cpu_millis": 2000, "concurrency": 16,
        });
        server.deploy(name, code, settings).await;
        server
            .ready_instances(name, 2, Duration::from_secs(60))
            .await;
        for connections in [1, 32] {
            let url = server.url(name);
            let mut results = Vec::new();
            for _ in 0..runs {
                results.push(wrk::run(&url, connections, seconds, server.pids()[0])?);
            }
            let column = |pick: fn(&wrk::Run) -> f64| {
                Median::of(&results.iter().map(pick).collect::<Vec<_>>())
            };
            println!(
                "  {runtime:10} {connections:3} connections: {} req/s, p50 {} us, p99 {} us, server cpu {} us, errors {}",
                column(|r| r.per_second),
                column(|r| r.p50_us),
                column(|r| r.p99_us),
                column(|r| r.cpu_us),
                results.iter().map(|r| r.errors).sum::<u64>()
            );
        }
    }
    Ok(())
}
