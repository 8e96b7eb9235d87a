//! Timeouts, memory, crashes: enforced and reported.

use std::time::Duration;

use coracle_tests::{Server, eventually};
use serde_json::json;

#[tokio::test]
async fn a_request_past_its_timeout_gets_504_and_its_process_is_gone() {
    let server = Server::start().await;
    let code = "import time\ndef main():\n    time.sleep(60)\n";
    server
        .deploy("slow", code, json!({"timeout_seconds": 1}))
        .await;
    server.call_starts("slow").await;
    let before = server.instances("slow").await;
    let answer = server.call("slow").await;
    assert_eq!(answer.status, 504, "{}", answer.text());
    assert_eq!(answer.header("x-coracle-error"), "timeout");
    let took = answer.took.as_secs_f64();
    assert!((0.9..2.5).contains(&took), "answered after {took} s");
    // The instance that ran it is killed, not only abandoned.
    eventually(
        "the instance that timed out is gone",
        Duration::from_secs(5),
        || server.instances("slow"),
        |now| before.iter().all(|id| !now.contains(id)),
    )
    .await;
    let exits = server.describe("slow").await["exits"].to_string();
    assert!(exits.contains("timeout"), "{exits}");
}

/// At its limits a bomb leaves its own first process no time in which to die.
#[tokio::test]
async fn a_fork_bomb_ends_with_its_timeout_and_the_next_call_is_answered() {
    let server = Server::start().await;
    let code = r#"
import os, time
def bomb():
    try:
        while True:
            os.fork()
    except OSError:
        time.sleep(300)

def main(request):
    if "bomb" not in request.query:
        return "ok"
    while True:
        try:
            if os.fork() == 0:
                bomb()
        except OSError:
            pass
"#;
    // Enough memory for all that the process limit allows: otherwise the kernel may be the one who
    // ends it, sooner.
    let settings = json!({"timeout_seconds": 3, "cpu_millis": 500, "memory_mib": 1024});
    server.deploy("bomb", code, settings).await;
    let url = format!("{}?bomb=1", server.url("bomb"));
    let answer = server.public.get(&url).await;
    assert_eq!(answer.status, 504, "{}", answer.text());
    let next = server.call("bomb").await.ok();
    assert_eq!(next.text(), "ok");
}

#[tokio::test]
async fn running_out_of_memory_is_reported_as_that() {
    let server = Server::start().await;
    let code = "def main():\n    x = bytearray(300 * 1024 * 1024)\n    return str(len(x))\n";
    server
        .deploy("hungry", code, json!({"memory_mib": 64}))
        .await;
    let answer = server.call("hungry").await;
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert!(answer.text().contains("memory"), "{}", answer.text());
    let reported = eventually(
        "the exit is recorded",
        Duration::from_secs(10),
        || async { server.describe("hungry").await["exits"].to_string() },
        |exits| exits.contains("out of memory"),
    )
    .await;
    assert!(reported.contains("64 MiB"), "{reported}");
    let logs = server.logs("hungry").await.join("\n");
    assert!(logs.contains("out of memory"), "{logs}");
}

#[tokio::test]
async fn a_crash_loop_backs_off_and_says_why() {
    let server = Server::start().await;
    // Starts, so that the deployment proves itself; ends with the first request.
    let code = "import os\ndef main():\n    os._exit(3)\n";
    let deployed = server
        .deploy("crash", code, json!({"scale": {"min": 0, "max": 1}}))
        .await;
    assert_eq!(deployed["revision"]["stage"], "running", "{deployed:#}");
    let answer = server.call("crash").await;
    assert_eq!(answer.status, 502, "{}", answer.text());
    let answer = eventually(
        "the function is backing off",
        Duration::from_secs(20),
        || server.call("crash"),
        |answer| answer.status == 503,
    )
    .await;
    assert!(
        answer.text().contains("exited with code 3"),
        "{}",
        answer.text()
    );
    assert!(!answer.header("retry-after").is_empty());
    let exits = server.describe("crash").await["exits"].clone();
    assert!(exits[0]["retry_at"].is_string(), "{exits:#}");
}

#[tokio::test]
async fn code_that_cannot_load_fails_its_deployment_and_leaves_the_old_revision_serving() {
    let server = Server::start().await;
    server
        .deploy("steady", "def main():\n    return 'one'\n", json!({}))
        .await;
    let failed = server
        .update(
            "steady",
            json!({"code": "import no_such_module\ndef main():\n    return 'two'\n"}),
        )
        .await;
    assert_eq!(failed["revision"]["stage"], "deploy_failed", "{failed:#}");
    let reason = failed["revision"]["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("no_such_module"), "{reason}");
    assert_eq!(failed["serving_revision"], 1);
    assert_eq!(server.call("steady").await.ok().text(), "one");

    let broken = server
        .update("steady", json!({"code": "def main(:\n"}))
        .await;
    assert_eq!(broken["revision"]["stage"], "build_failed", "{broken:#}");
    assert_eq!(server.call("steady").await.ok().text(), "one");
}

#[tokio::test]
async fn output_without_end_fills_no_disk_and_stays_readable() {
    let server = Server::start().await;
    let code = "def main():\n    line = 'x' * 1000\n    for _ in range(100_000):\n        \
                print(line)\n    print('the end')\n    return 'done'\n";
    server
        .deploy("chatty", code, json!({"cpu_millis": 1000}))
        .await;
    assert_eq!(server.call("chatty").await.ok().text(), "done");
    eventually(
        "the last line arrives, or a note of what was dropped",
        Duration::from_secs(20),
        || server.logs("chatty"),
        |lines| {
            lines
                .iter()
                .any(|l| l == "the end" || l.contains("dropped"))
        },
    )
    .await;
    let size = server.log_bytes();
    assert!(
        size < 40 * 1024 * 1024,
        "100 MB were printed, {size} bytes are kept"
    );
}
