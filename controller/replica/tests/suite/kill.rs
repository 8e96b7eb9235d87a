//! A process killed while it writes.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use coracle_replica::{Config, SledLog, SnapshotPolicy};

use crate::tape::{alone, soon};

const DIRECTORY: &str = "CORACLE_REPLICA_KILL_TEST";

fn config() -> Config {
    // Often enough that kills fall into snapshots and compaction too.
    let policy = SnapshotPolicy {
        every_entries: 20,
        every_bytes: 1 << 20,
        keep_entries: 3,
    };
    Config {
        snapshots: policy,
        ..Config::alone(1)
    }
}

/// Writes until it is killed, and says each command once it is acknowledged.
#[tokio::main(flavor = "current_thread")]
async fn write_forever(directory: &str) {
    let log = SledLog::open(directory.as_ref(), 1).unwrap();
    let (replica, view) = alone(config(), log).await.unwrap();
    let mut next = view.lock().unwrap().len();
    loop {
        replica
            .propose(next.to_be_bytes().to_vec(), soon())
            .await
            .unwrap();
        eprintln!("acknowledged {next}");
        next += 1;
    }
}

/// Runs itself as the process to kill.
#[test]
fn kill_9_loses_nothing_acknowledged() {
    if let Ok(directory) = std::env::var(DIRECTORY) {
        return write_forever(&directory);
    }
    let directory = tempfile::tempdir().unwrap();
    let mut acknowledged = 0;
    for round in 0..8 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "kill::kill_9_loses_nothing_acknowledged",
                "--nocapture",
            ])
            .env(DIRECTORY, directory.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut take = |wanted: usize| {
            let numbers = lines.by_ref().map_while(Result::ok).filter_map(|line| {
                line.strip_prefix("acknowledged ")
                    .and_then(|number| number.parse::<usize>().ok())
            });
            numbers.take(wanted).last()
        };
        let last = take(10 + 17 * round).expect("the writer died by itself");
        child.kill().unwrap();
        child.wait().unwrap();
        // What it said between our last look and its end counts as well.
        acknowledged = take(usize::MAX).unwrap_or(last) + 1;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let log = SledLog::open(directory.path(), 1).unwrap();
        let (_replica, view) = alone(config(), log).await.unwrap();
        let kept = view.lock().unwrap().clone();
        // One more may have been written and not announced.
        assert!(
            (acknowledged..=acknowledged + 1).contains(&kept.len()),
            "{}",
            kept.len()
        );
        let expected: Vec<_> = (0..kept.len()).map(|n| n.to_be_bytes().to_vec()).collect();
        assert_eq!(kept, expected);
    });
}
