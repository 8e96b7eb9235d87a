//! Launch, invoke, stop, and every way to end.

use std::time::Duration;

use coracle_driver::{Exit, InstanceDriver, LaunchError, Origin, Stop};
use coracle_model::{Convention, ExitReason, Handler, LogStream, Memory, Timeout};
use tokio::time::timeout;

use crate::harness::{Host, PATIENCE, ask, invoke, timed, until};

#[tokio::test]
async fn from_a_stem_and_from_scratch_to_an_answer_and_away() {
    let host = Host::new();
    let driver = host.start().await;
    let mut exits = driver.exits();

    let scratch = host.spec();
    let launched = driver
        .launch(host.order(scratch.clone()))
        .await
        .expect("launched");
    assert_eq!(launched.origin, Origin::Scratch);
    assert_eq!(
        ask(&launched.socket, "read:/fn/code/main.txt").await,
        "the code"
    );
    assert_eq!(
        ask(&launched.socket, "read:/fn/deps/lib.txt").await,
        "the dependencies"
    );
    let claim = ask(&launched.socket, "claim").await;
    for part in [
        "\"KEY\":\"value\"",
        "\"memory_mib\":64",
        "\"deps\":\"/fn/deps\"",
        "\"http\"",
    ] {
        assert!(claim.contains(part), "{part} in {claim}");
    }

    host.stems(&driver, 2);
    host.wait_for_stems(&driver, 2).await;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("readable");
    let spec = host.spec();
    let claimed = driver
        .launch(host.order(spec.clone()))
        .await
        .expect("launched");
    assert_eq!(claimed.origin, Origin::Stem);
    eprintln!("claim {:?}, init {:?}", claimed.start, claimed.init);
    let after = std::fs::read_to_string("/proc/self/mountinfo").expect("readable");
    assert_eq!(
        mounts.lines().count(),
        after.lines().count(),
        "the host's mounts are unchanged"
    );
    assert_eq!(
        ask(&claimed.socket, "read:/fn/code/main.txt").await,
        "the code"
    );
    host.wait_for_stems(&driver, 2).await;

    // The same order again is the same instance.
    let again = driver
        .launch(host.order(spec.clone()))
        .await
        .expect("launched");
    assert_eq!(
        (again.origin, &again.socket),
        (Origin::Running, &claimed.socket)
    );

    let grace = Stop::Gracefully(Duration::from_secs(5));
    driver.stop(spec.id, grace).await.expect("stopped");
    assert!(
        !claimed.socket.exists(),
        "its directory is gone when stop returns"
    );
    let exit = timeout(PATIENCE, exits.recv())
        .await
        .expect("in time")
        .expect("an exit");
    assert_eq!(
        exit,
        Exit {
            id: spec.id,
            revision: spec.revision,
            reason: ExitReason::Stopped
        }
    );
    driver
        .stop(spec.id, grace)
        .await
        .expect("an unknown id is a success");
    assert!(exits.try_recv().is_err(), "one exit only");
    host.finish(driver).await;
}

#[tokio::test]
async fn each_end_has_its_reason() {
    let host = Host::new();
    let driver = host.start().await;
    let mut exits = driver.exits();
    host.stems(&driver, 2);
    for (target, expected) in [
        ("eat:200", ExitReason::OutOfMemory { limit_mib: 64 }),
        ("exit:3", ExitReason::Exited { code: 3 }),
        ("exit:139", ExitReason::Signaled { signal: 11 }),
    ] {
        let spec = host.spec();
        let launched = driver
            .launch(host.order(spec.clone()))
            .await
            .expect("launched");
        let broken = invoke(&launched.socket, target).await;
        assert!(broken.is_err(), "{target}: {broken:?}");
        let exit = timeout(PATIENCE, exits.recv())
            .await
            .expect("in time")
            .expect("an exit");
        assert_eq!((exit.id, exit.reason), (spec.id, expected), "{target}");
    }
    host.finish(driver).await;
}

#[tokio::test]
async fn code_that_does_not_load_is_the_functions_fault() {
    let host = Host::new();
    let driver = host.start().await;
    let mut exits = driver.exits();
    host.stems(&driver, 1);
    for entry in ["fails", "exits", "hangs"] {
        let mut spec = host.spec();
        spec.handler = Handler::new(entry, spec.handler.convention).expect("a handler");
        spec.init_timeout = Timeout::from_secs(1).expect("in bounds");
        let error = driver.launch(host.order(spec)).await.expect_err(entry);
        let LaunchError::Function(reason) = error else {
            panic!("{entry}: {error:?}")
        };
        let expected = match entry {
            "fails" => ExitReason::InitFailed {
                message: "ImportError: no module x".into(),
            },
            "exits" => ExitReason::Exited { code: 3 },
            _ => ExitReason::InitTimedOut { seconds: 1 },
        };
        assert_eq!(reason, expected, "{entry}");
    }
    assert!(exits.try_recv().is_err(), "what never ran has no exit");
    host.finish(driver).await;
}

#[tokio::test]
async fn what_passes_its_deadline_is_gone_within_a_second() {
    let host = Host::new();
    let driver = host.start().await;
    let mut exits = driver.exits();
    let spec = host.spec();
    let launched = driver
        .launch(host.order(spec.clone()))
        .await
        .expect("launched");
    let socket = launched.socket.clone();
    let hanging = tokio::spawn(async move { invoke(&socket, "hang").await });
    assert_eq!(
        ask(&launched.socket, "read:/fn/code/main.txt").await,
        "the code"
    );
    let (stopped, took) = timed(driver.stop(spec.id, Stop::DeadlinePassed)).await;
    stopped.expect("stopped");
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(hanging.await.expect("no panic").is_err());
    let exit = timeout(PATIENCE, exits.recv())
        .await
        .expect("in time")
        .expect("an exit");
    assert_eq!(exit.reason, ExitReason::TimedOut);
    host.finish(driver).await;
}

#[tokio::test]
async fn stopped_while_it_starts() {
    let host = Host::new();
    let driver = host.start().await;
    let mut spec = host.spec();
    spec.handler = Handler::new("hangs", spec.handler.convention).expect("a handler");
    spec.init_timeout = Timeout::from_secs(60).expect("in bounds");
    let launching = {
        let (driver, order) = (driver.clone(), host.order(spec.clone()));
        tokio::spawn(async move { driver.launch(order).await })
    };
    tokio::task::yield_now().await;
    driver
        .stop(spec.id, Stop::Gracefully(Duration::from_secs(60)))
        .await
        .expect("stopped");
    match timeout(PATIENCE, launching)
        .await
        .expect("in time")
        .expect("no panic")
    {
        Err(LaunchError::Function(ExitReason::Stopped)) => {}
        other => panic!("{other:?}"),
    }
    host.finish(driver).await;
}

#[tokio::test]
async fn output_becomes_lines_of_the_request_and_a_flood_is_cut() {
    let host = Host::new();
    let driver = host.start().await;
    let spec = host.spec();
    let launched = driver
        .launch(host.order(spec.clone()))
        .await
        .expect("launched");
    ask(&launched.socket, "print:hello").await;
    for (stream, message) in [
        (LogStream::Stdout, "hello"),
        (LogStream::Stderr, "to stderr"),
    ] {
        let line = until("a line", || {
            let lines = host.lines.all();
            lines
                .iter()
                .find(|l| l.message == message)
                .cloned()
                .ok_or(format!("{lines:?}"))
        })
        .await;
        assert_eq!((line.instance, line.stream), (spec.id, stream));
        assert_eq!(line.request.as_deref(), Some("request-1"));
    }
    ask(&launched.socket, "flood:20000").await;
    driver
        .stop(spec.id, Stop::DeadlinePassed)
        .await
        .expect("stopped");
    let lines = host.lines.all();
    assert!(lines.len() < 15_000, "{}", lines.len());
    let note = lines
        .iter()
        .find(|l| l.stream == LogStream::Platform)
        .expect("a note");
    assert!(note.message.starts_with("dropped "), "{}", note.message);
    host.finish(driver).await;
}

#[tokio::test]
async fn limits_are_the_functions_and_not_the_stems() {
    let host = Host::new();
    let driver = host.start().await;
    host.stems(&driver, 1);
    host.wait_for_stems(&driver, 1).await;
    let mut spec = host.spec();
    spec.memory = Memory::from_mib(256).expect("in bounds");
    let launched = driver.launch(host.order(spec)).await.expect("launched");
    assert_eq!(launched.origin, Origin::Stem);
    assert_eq!(ask(&launched.socket, "eat:150").await, "150");
    // The smaller way round: below what its stem had.
    host.wait_for_stems(&driver, 1).await;
    let mut spec = host.spec();
    spec.memory = Memory::from_mib(16).expect("in bounds");
    let launched = driver.launch(host.order(spec)).await.expect("launched");
    assert_eq!(launched.origin, Origin::Stem);
    assert!(invoke(&launched.socket, "eat:28").await.is_err());
    host.finish(driver).await;
}

#[tokio::test]
async fn many_come_and_go_at_once() {
    let host = Host::new();
    let driver = host.start().await;
    host.stems(&driver, 3);
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let (driver, orders) = (
                driver.clone(),
                (0..8).map(|_| host.order(host.spec())).collect::<Vec<_>>(),
            );
            tokio::spawn(async move {
                for order in orders {
                    let id = order.spec.id;
                    let launched = driver.launch(order).await.expect("launched");
                    assert!(
                        ask(&launched.socket, "claim")
                            .await
                            .contains(&id.to_string())
                    );
                    driver
                        .stop(id, Stop::DeadlinePassed)
                        .await
                        .expect("stopped");
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.expect("no launch failed");
    }
    host.finish(driver).await;
}

#[tokio::test]
async fn code_that_hangs_while_it_loads_holds_up_nobody_else() {
    let host = Host::new();
    let driver = host.start().await;
    let mut hanging = Vec::new();
    host.stems(&driver, 5);
    host.wait_for_stems(&driver, 5).await;
    // As many as may be claimed at once.
    for _ in 0..4 {
        let mut spec = host.spec();
        spec.handler = Handler::new("hangs", Convention::Http).expect("a handler");
        spec.init_timeout = Timeout::from_secs(120).expect("in bounds");
        let (driver, order) = (driver.clone(), host.order(spec.clone()));
        hanging.push((
            spec.id,
            tokio::spawn(async move { driver.launch(order).await }),
        ));
    }
    until("claims", || match driver.stems().values().sum::<u32>() {
        1 => Ok(()),
        have => Err(format!("{have} stems")),
    })
    .await;

    let order = host.order(host.spec());
    let launched = timeout(PATIENCE, driver.launch(order)).await;
    let launched = launched.expect("not held up").expect("launched");
    assert_eq!(launched.origin, Origin::Stem);
    // And the pool is filled again meanwhile.
    host.wait_for_stems(&driver, 5).await;
    for (id, launch) in hanging {
        driver.stop(id, Stop::DeadlinePassed).await.expect("gone");
        let error = launch.await.expect("no panic").expect_err("it was ended");
        assert!(
            matches!(error, LaunchError::Function(ExitReason::TimedOut)),
            "{error:?}"
        );
    }
    host.finish(driver).await;
}
