//! What survives the end of this process, and of containerd.

use std::{
    io::{BufRead, BufReader},
    time::Duration,
};

use coracle_containerd::{ContainerdDriver, Daemon};
use coracle_driver::{InstanceDriver, Stop};
use coracle_model::ExitReason;
use tokio::time::timeout;

use crate::harness::{Host, PATIENCE, ask, invoke, runtime, until};

#[tokio::test]
async fn instances_are_adopted_and_stems_are_not() {
    let host = Host::new();
    let first = host.start().await;
    host.stems(&first, 1);
    host.wait_for_stems(&first, 1).await;
    let spec = host.spec();
    let launched = first
        .launch(host.order(spec.clone()))
        .await
        .expect("launched");
    host.wait_for_stems(&first, 1).await;
    until("its labels", || {
        match host.containers("labels.\"coracle.kind\"==instance") {
            listed if listed.len() == 1 => Ok(()),
            listed => Err(format!("{listed:?}")),
        }
    })
    .await;
    drop(first);

    let second = ContainerdDriver::start(host.config())
        .await
        .expect("started");
    let mut exits = second.exits();
    let survivors = second.adopt().await.expect("adopted");
    let [survivor] = survivors.as_slice() else {
        panic!("{survivors:?}")
    };
    assert_eq!((survivor.id, survivor.revision), (spec.id, spec.revision));
    assert_eq!((survivor.memory, survivor.cpu), (spec.memory, spec.cpu));
    assert_eq!((&survivor.runtime, survivor.concurrency), (&runtime(), 1));
    assert_eq!(survivor.socket, launched.socket);
    assert_eq!(
        ask(&survivor.socket, "read:/fn/code/main.txt").await,
        "the code"
    );
    // Its output is read again, under its name.
    ask(&survivor.socket, "print:after").await;
    until("a line", || {
        let lines = host.lines.all();
        let found = lines
            .iter()
            .any(|l| l.message == "after" && l.instance == spec.id);
        if found {
            Ok(())
        } else {
            Err(format!("{lines:?}"))
        }
    })
    .await;
    assert_eq!(host.containers("").len(), 1, "the stem was removed");
    assert!(invoke(&survivor.socket, "exit:5").await.is_err());
    let exit = timeout(PATIENCE, exits.recv())
        .await
        .expect("in time")
        .expect("an exit");
    assert_eq!(
        (exit.id, exit.reason),
        (spec.id, ExitReason::Exited { code: 5 })
    );
    host.finish(second).await;
}

#[tokio::test]
async fn a_killed_containerd_costs_no_instance() {
    let host = Host::new();
    let driver = host.start().await;
    let mut exits = driver.exits();
    let (staying, ending) = (host.spec(), host.spec());
    let stays = driver
        .launch(host.order(staying.clone()))
        .await
        .expect("launched");
    let ends = driver
        .launch(host.order(ending.clone()))
        .await
        .expect("launched");

    let socket = Daemon::private_socket(&host.path("data"));
    let pid = || {
        let stream = std::os::unix::net::UnixStream::connect(&socket).ok()?;
        let credentials = rustix::net::sockopt::socket_peercred(&stream).ok()?;
        Some(credentials.pid)
    };
    let before = pid().expect("it runs");
    rustix::process::kill_process(before, rustix::process::Signal::KILL).expect("killed");
    // One ends while nobody is there to say so.
    assert!(invoke(&ends.socket, "exit:7").await.is_err());
    assert_eq!(
        ask(&stays.socket, "read:/fn/code/main.txt").await,
        "the code"
    );
    until("another containerd", || match pid() {
        Some(now) if now != before => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let exit = timeout(PATIENCE, exits.recv())
        .await
        .expect("in time")
        .expect("an exit");
    // containerd forgets the status of what it finds ended when it starts.
    let known = matches!(
        exit.reason,
        ExitReason::Exited { code: 7 } | ExitReason::Lost
    );
    assert!(exit.id == ending.id && known, "{exit:?}");
    let third = driver
        .launch(host.order(host.spec()))
        .await
        .expect("launched");
    assert_eq!(
        ask(&third.socket, "read:/fn/code/main.txt").await,
        "the code"
    );
    driver
        .stop(staying.id, Stop::Gracefully(Duration::from_secs(5)))
        .await
        .expect("stopped");
    let exit = timeout(PATIENCE, exits.recv())
        .await
        .expect("in time")
        .expect("an exit");
    assert_eq!((exit.id, exit.reason), (staying.id, ExitReason::Stopped));
    host.finish(driver).await;
}

/// Another process's part of the next test; does nothing when it is run by itself.
#[tokio::test]
async fn in_another_process() {
    let Ok(name) = std::env::var("CORACLE_E2E_HOST") else {
        return;
    };
    let host = Host::again(&name);
    let driver = host.start().await;
    host.stems(&driver, 2);
    host.wait_for_stems(&driver, 2).await;
    for _ in 0..3 {
        driver
            .launch(host.order(host.spec()))
            .await
            .expect("launched");
    }
    until("labels", || {
        match host.containers("labels.\"coracle.kind\"==instance") {
            listed if listed.len() == 3 => Ok(()),
            listed => Err(format!("{listed:?}")),
        }
    })
    .await;
    println!("launched");
    // Launches go on until the end comes, so that it finds every step half-done.
    loop {
        let launched = driver
            .launch(host.order(host.spec()))
            .await
            .expect("launched");
        invoke(&launched.socket, "claim").await.expect("answered");
    }
}

#[tokio::test]
async fn a_killed_agent_leaves_its_instances_to_the_next() {
    let host = Host::new();
    let mut other = std::process::Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "adoption::in_another_process", "--nocapture"])
        .env("CORACLE_E2E_HOST", host.name())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("started");
    let lines = BufReader::new(other.stdout.take().expect("piped")).lines();
    let launched = lines
        .map_while(Result::ok)
        .any(|line| line.contains("launched"));
    assert!(launched, "it launched three");
    other.kill().expect("killed");
    other.wait().expect("reaped");

    let driver = ContainerdDriver::start(host.config())
        .await
        .expect("started");
    let survivors = driver.adopt().await.expect("adopted");
    assert!(survivors.len() >= 3, "{survivors:?}");
    for survivor in &survivors {
        let claim = ask(&survivor.socket, "claim").await;
        assert!(claim.contains(&survivor.id.to_string()), "{claim}");
    }
    let left = host.containers("");
    assert_eq!(
        left.len(),
        survivors.len(),
        "nothing but instances is left: {left:?}"
    );
    assert_eq!(host.container_dirs(), survivors.len());
    driver
        .stop(survivors[0].id, Stop::DeadlinePassed)
        .await
        .expect("stopped");
    let another = driver
        .launch(host.order(host.spec()))
        .await
        .expect("launched");
    assert_eq!(
        ask(&another.socket, "read:/fn/code/main.txt").await,
        "the code"
    );
    host.finish(driver).await;
}
