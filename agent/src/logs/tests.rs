use std::{os::unix::fs::PermissionsExt as _, path::Path, sync::Arc, time::Duration};

use coracle_base::ManualClock;
use coracle_driver::LogSink as _;
use coracle_model::{FunctionId, InstanceId, LogLine, LogLineRef, LogStream};
use uuid::Uuid;

use super::*;

fn function(n: u128) -> FunctionId {
    FunctionId(Uuid::from_u128(n))
}

fn open(folder: &Path, limits: LogLimits) -> LogStore {
    LogStore::open(folder.to_owned(), limits, Arc::new(ManualClock::at(1))).unwrap()
}

fn say(store: &LogStore, of: u128, at_nanos: u64, message: &str) {
    let instance = InstanceId(Uuid::from_u128(u128::from(at_nanos % 2)));
    let request = format!("r{}", at_nanos % 3);
    let stream = LogStream::Stdout;
    let line = LogLineRef {
        at_nanos,
        instance,
        stream,
        request: Some(&request),
        message,
    };
    store.line(function(of), line);
}

fn messages(lines: &[LogLine]) -> Vec<&str> {
    lines.iter().map(|line| line.message.as_str()).collect()
}

async fn tail(store: &LogStore, of: u128, count: usize) -> Vec<LogLine> {
    store
        .tail(function(of), count, &Filter::default())
        .await
        .unwrap()
}

fn disk(folder: &Path) -> u64 {
    let mut sum = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let metadata = entry.metadata().unwrap();
        sum += if metadata.is_dir() {
            disk(&entry.path())
        } else {
            metadata.len()
        };
    }
    sum
}

#[tokio::test]
async fn the_newest_lines_that_match_come_oldest_first() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), LogLimits::default());
    for n in 0..10 {
        say(&store, 1, n, &format!("line {n}"));
    }
    say(&store, 2, 99, "another function's");
    assert_eq!(
        messages(&tail(&store, 1, 3).await),
        ["line 7", "line 8", "line 9"]
    );
    assert_eq!(tail(&store, 1, 0).await, []);
    assert_eq!(tail(&store, 3, 5).await, []);
    let check = async |filter: Filter, expected: &[&str]| {
        let lines = store.tail(function(1), 3, &filter).await.unwrap();
        assert_eq!(messages(&lines), expected, "{filter:?}");
    };
    let request = Some("r0".to_owned());
    check(
        Filter {
            request,
            ..Filter::default()
        },
        &["line 3", "line 6", "line 9"],
    )
    .await;
    let instance = Some(InstanceId(Uuid::from_u128(1)));
    check(
        Filter {
            instance,
            ..Filter::default()
        },
        &["line 5", "line 7", "line 9"],
    )
    .await;
    check(
        Filter {
            since_nanos: 8,
            ..Filter::default()
        },
        &["line 8", "line 9"],
    )
    .await;
}

#[tokio::test]
async fn files_turn_over_and_outlive_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let limits = LogLimits {
        file_bytes: 20_000,
        ..LogLimits::default()
    };
    let store = open(dir.path(), limits.clone());
    for n in 0..1000 {
        say(&store, 1, n, &format!("line {n} {}", "x".repeat(50)));
        if n % 10 == 0 {
            // A batch at a time, as a function prints.
            tail(&store, 1, 1).await;
        }
    }
    let lines = tail(&store, 1, 10_000).await;
    assert!(lines.len() > 100 && lines.len() < 1000, "{}", lines.len());
    let newest = 1000 - lines.len() as u64;
    let times: Vec<_> = lines.iter().map(|line| line.at_nanos).collect();
    assert_eq!(
        times,
        (newest..1000).collect::<Vec<_>>(),
        "both files, without a gap"
    );
    assert!(
        disk(dir.path()) <= 2 * limits.file_bytes,
        "{}",
        disk(dir.path())
    );
    drop(store);
    let mode = std::fs::metadata(dir.path()).unwrap().permissions().mode();
    assert_eq!(
        mode & 0o777,
        0o700,
        "other users of the machine read nothing"
    );
    let store = open(dir.path(), limits);
    assert_eq!(tail(&store, 1, 10_000).await, lines);
}

#[tokio::test]
async fn the_longest_silent_function_loses_its_lines_first() {
    let dir = tempfile::tempdir().unwrap();
    let limits = LogLimits {
        total_bytes: 3 * 4096,
        ..LogLimits::default()
    };
    let store = open(dir.path(), limits.clone());
    for of in [1, 2, 3, 1, 4] {
        say(&store, of, 1, "x");
        tail(&store, of, 1).await;
    }
    assert_eq!(tail(&store, 2, 9).await, []);
    for of in [1, 3, 4] {
        assert!(!tail(&store, of, 9).await.is_empty(), "{of}");
    }
    drop(store);
    // The bound holds across a restart too, and the order of age is kept by the files.
    let store = open(dir.path(), limits);
    say(&store, 5, 1, "x");
    assert_eq!(messages(&tail(&store, 5, 9).await), ["x"]);
    let left = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 3);
}

#[tokio::test]
async fn a_line_cut_off_by_a_crash_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), LogLimits::default());
    say(&store, 1, 1, "before");
    drop(store);
    let file = dir.path().join(function(1).to_string()).join("new.jsonl");
    let mut text = std::fs::read(&file).unwrap();
    text.extend_from_slice(b"{\"at_nanos\":2,\"inst");
    std::fs::write(&file, text).unwrap();
    let store = open(dir.path(), LogLimits::default());
    say(&store, 1, 3, "after");
    assert_eq!(messages(&tail(&store, 1, 9).await), ["before", "after"]);
}

#[tokio::test]
async fn a_follower_sees_every_line_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(open(dir.path(), LogLimits::default()));
    let speaker = Arc::clone(&store);
    let speaking = tokio::task::spawn_blocking(move || {
        for n in 0..2000 {
            say(&speaker, 1, n, "x");
        }
    });
    let (lines, mut follow) = store
        .follow(function(1), 10_000, &Filter::default())
        .await
        .unwrap();
    let mut times: Vec<_> = lines.iter().map(|line| line.at_nanos).collect();
    while times.len() < 2000 {
        let next = tokio::time::timeout(Duration::from_secs(20), follow.next());
        let (lines, missed) = next.await.expect("more lines").expect("an open store");
        assert_eq!(missed, 0);
        times.extend(lines.iter().map(|line| line.at_nanos));
    }
    assert_eq!(times, (0..2000).collect::<Vec<_>>());
    speaking.await.unwrap();
    drop(follow);
    drop(store);
}

#[tokio::test]
async fn a_follower_ends_with_the_store_and_is_filtered() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), LogLimits::default());
    let filter = Filter {
        request: Some("r1".to_owned()),
        ..Filter::default()
    };
    let (past, mut follow) = store.follow(function(1), 0, &filter).await.unwrap();
    assert_eq!(past, []);
    say(&store, 1, 0, "not this");
    say(&store, 1, 1, "this");
    let (lines, _) = follow.next().await.expect("an open store");
    assert_eq!(messages(&lines), ["this"]);
    drop(store);
    assert_eq!(follow.next().await, None);
}

#[tokio::test]
async fn what_has_no_room_is_counted_and_one_function_cannot_take_it_all() {
    let queue = queue::Queue::new(40_000);
    let line = |n: u64| LogLine {
        at_nanos: n,
        instance: InstanceId(Uuid::nil()),
        stream: LogStream::Stdout,
        request: None,
        message: "x".repeat(872),
    };
    for n in 0..100 {
        queue.push(function(1), line(n));
    }
    queue.push(function(2), line(0));
    let taken = queue.take().unwrap();
    let (loud, quiet) = (&taken.batches[&function(1)], &taken.batches[&function(2)]);
    assert_eq!((loud.lines.len(), loud.dropped), (10, 90));
    assert_eq!((quiet.lines.len(), quiet.dropped), (1, 0));
    assert_eq!(taken.pushed, 101);
    queue.close();
    assert!(queue.take().is_none());
}

#[tokio::test]
async fn lost_lines_are_said_in_the_log_and_long_ones_cut() {
    let dir = tempfile::tempdir().unwrap();
    // Nothing fits: every line is lost, and the log says how many.
    let limits = LogLimits {
        queue_bytes: 0,
        ..LogLimits::default()
    };
    let store = open(dir.path(), limits);
    say(&store, 1, 1, "x");
    let lines = tail(&store, 1, 9).await;
    let said = "1 lines were lost: they came faster than the disk takes them";
    assert_eq!(messages(&lines), [said]);
    assert_eq!(lines[0].stream, LogStream::Platform);

    let limits = LogLimits {
        message_bytes: 5,
        ..LogLimits::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), limits);
    say(&store, 1, 1, "aaaaä");
    assert_eq!(messages(&tail(&store, 1, 9).await), ["aaaa…"]);
}

#[test]
fn lines_are_found_across_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    // Lines of many lengths, so that blocks end everywhere in them.
    let lines: Vec<String> = (0..3000_usize).map(|n| "y".repeat(n % 97 + 1)).collect();
    std::fs::write(&path, lines.join("\n") + "\n").unwrap();
    let length = std::fs::metadata(&path).unwrap().len();
    let mut found = Vec::new();
    let file = std::fs::File::open(&path).unwrap();
    read::backwards(file, length, |line| {
        found.push(String::from_utf8(line.to_vec()).unwrap());
        true
    })
    .unwrap();
    found.reverse();
    assert_eq!(found, lines);
}
