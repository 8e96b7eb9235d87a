//! What survives the end of this process, and of containerd.

use std::time::Duration;

use coracle_containerd::{ContainerdDriver, Daemon};
use coracle_driver::{InstanceDriver, Stop};
use coracle_model::ExitReason;
use tokio::time::timeout;

use crate::harness::{Host, PATIENCE, ask, invoke, run, runtime, until};

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
    let socket = Daemon::private_socket(&host.path("data"));
    let namespace = format!("coracle-{}", host.cluster);
    until("its labels", || {
        let listed = run(
            "ctr",
            &[
                "-a",
                &socket.to_string_lossy(),
                "-n",
                &namespace,
                "containers",
                "ls",
                "-q",
                "labels.\"coracle.kind\"==instance",
            ],
        );
        if listed.lines().count() == 1 {
            Ok(())
        } else {
            Err(listed)
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
    let containers = || {
        run(
            "ctr",
            &[
                "-a",
                &socket.to_string_lossy(),
                "-n",
                &namespace,
                "containers",
                "ls",
                "-q",
            ],
        )
    };
    assert_eq!(containers().lines().count(), 1, "the stem was removed");
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
    assert_eq!(
        (exit.id, exit.reason),
        (ending.id, ExitReason::Exited { code: 7 })
    );
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
