//! What the server holds in memory when nothing happens.

use std::time::Duration;

use coracle_tests::Server;
use serde_json::json;

use crate::process::{machine, memory_kib};

const INSTANCES: u64 = 10;

/// `minutes` of idling first without any function, then with ten idle instances.
pub(crate) async fn run(minutes: u64) {
    println!("idle: {}; after {minutes} idle minute(s)", machine());
    let server = Server::with_flags(&["--idle-after=86400", "--stems=0"]).await;
    let idle = Duration::from_secs(minutes * 60);
    tokio::time::sleep(idle).await;
    report("coracle up, no function", &server);
    let scale = json!({"min": INSTANCES, "max": INSTANCES});
    let settings = json!({"scale": scale, "memory_mib": 64});
    server
        .deploy("idle", "def main():\n    return 'x'\n", settings)
        .await;
    server
        .ready_instances("idle", INSTANCES, Duration::from_secs(120))
        .await;
    tokio::time::sleep(idle).await;
    report("coracle up, 10 idle instances", &server);
    for (what, containing) in [
        ("our init", "/usr/lib/coracle/init"),
        ("Python with the shim", "shim.py"),
    ] {
        let mut sizes: Vec<u64> = server
            .container_processes(containing)
            .into_iter()
            .filter(|pid| {
                // The shim's path is an argument of the init too.
                let first =
                    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                (first.trim() == "init") == (what == "our init")
            })
            .map(|pid| memory_kib(pid, "smaps_rollup", "Pss"))
            .collect();
        sizes.sort_unstable();
        let median = sizes.get(sizes.len() / 2).copied().unwrap_or_default();
        println!(
            "  {what}: {} processes, median {median} KiB proportional",
            sizes.len()
        );
    }
}

fn report(what: &str, server: &Server) {
    for pid in server.pids() {
        println!(
            "  {what}: resident {:.1} MiB (anonymous {:.1}), {} threads",
            memory_kib(pid, "status", "VmRSS") as f64 / 1024.0,
            memory_kib(pid, "status", "RssAnon") as f64 / 1024.0,
            memory_kib(pid, "status", "Threads")
        );
    }
}
