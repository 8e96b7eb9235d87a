//! What the server holds in memory when nothing happens.

use std::time::Duration;

use coracle_tests::{Server, load::Load};
use serde_json::json;

use crate::process::{machine, memory_kib};

const INSTANCES: u64 = 10;
/// The use before the second idling: so many functions, each built and called, and then calls of
/// one of them for so long.
const FUNCTIONS: usize = 20;
const CALLS: u32 = 500;
const CALLING: Duration = Duration::from_secs(20);

/// `minutes` of idling first without any function, then after use, with ten idle instances. With
/// `CORACLE_TEST_APART=1` controller, agent and gateway are processes of their own.
pub(crate) async fn run(minutes: u64) {
    println!("idle: {}; after {minutes} idle minute(s)", machine());
    let server = Server::with_flags(&["--idle-after=86400", "--stems=0"]).await;
    let idle = Duration::from_secs(minutes * 60);
    tokio::time::sleep(idle).await;
    report("fresh, no function", &server);
    let scale = json!({"min": INSTANCES, "max": INSTANCES});
    let settings = json!({"scale": scale, "memory_mib": 64});
    server
        .deploy("idle", "def main():\n    return 'x'\n", settings)
        .await;
    server
        .ready_instances("idle", INSTANCES, Duration::from_secs(120))
        .await;
    put_to_use(&server).await;
    report("right after use", &server);
    tokio::time::sleep(idle).await;
    report("after use, 10 idle instances", &server);
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

/// Functions that come, run and go, a deploy and a build each; and load on one that stays.
async fn put_to_use(server: &Server) {
    for n in 0..FUNCTIONS {
        let name = format!("used-{n}");
        let code = format!("def main():\n    return '{n}'\n");
        server.deploy(&name, &code, json!({"memory_mib": 64})).await;
        server.call_starts(&name).await;
        let url = server.api(&format!(
            "projects/default/namespaces/default/functions/{name}"
        ));
        let gone = server.admin.send(http::Method::DELETE, &url, &[], "").await;
        assert!(gone.status.is_success(), "{name} is removed");
    }
    let load = Load::start(server.url("idle"), CALLS);
    tokio::time::sleep(CALLING).await;
    let report = load.stop().await;
    println!(
        "  in use: {FUNCTIONS} functions built, called and removed, {} calls, not answered: {:?}",
        report.total(),
        report.failures()
    );
}

fn report(what: &str, server: &Server) {
    for pid in server.pids() {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let role = line.split(|byte| *byte == 0).nth(1).unwrap_or_default();
        let role = String::from_utf8_lossy(role);
        println!(
            "  coracle {role}, {what}: resident {:.1} MiB (anonymous {:.1}), {} threads",
            memory_kib(pid, "status", "VmRSS") as f64 / 1024.0,
            memory_kib(pid, "status", "RssAnon") as f64 / 1024.0,
            memory_kib(pid, "status", "Threads")
        );
    }
}
