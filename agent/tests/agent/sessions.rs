//! Snapshots, deltas, fencing, restarts.

use coracle_base::Address;
use coracle_model::{ExitReason, Stamp};
use coracle_proto::{
    Wire,
    v1::{self, instance_state::Kind},
};

use crate::{
    controller::{Controller, stamp, state_of, within},
    node::{NodeUnderTest, assignment, id, tar_of, until, wanted},
};

#[tokio::test]
async fn a_hello_is_complete_and_orders_are_followed() {
    let node = NodeUnderTest::new();
    let mut controller = Controller::start().await;
    let code = controller.put(&tar_of("1"));
    let agent = node.start(&[controller.address.clone()]).await;
    let (mut session, hello) = controller.session().await;
    let facts = hello.node.unwrap();
    assert_eq!(
        (facts.name.as_str(), facts.address.as_str()),
        ("node", "memory:")
    );
    assert_eq!(
        facts.allocatable,
        Some(v1::Resources {
            memory_mib: 3072,
            cpu_millis: 3500
        })
    );
    assert_eq!(
        (hello.number, hello.accepted),
        (1, Some(Stamp::default().into()))
    );
    assert!(!agent.agent.health().is_ready());

    session
        .snapshot(stamp(1, 10), assignment(vec![wanted(1, code)]))
        .await;
    let ready = session.state(id(1), Kind::Ready).await;
    assert!(ready.socket.ends_with(".sock"), "{}", ready.socket);
    assert_eq!(
        (ready.memory_mib, ready.cpu_millis, ready.concurrency),
        (64, 100, 1)
    );
    assert!(agent.agent.health().is_ready());

    let delta = v1::AssignmentDelta {
        upsert: vec![wanted(2, code)],
        remove: vec![id(1).to_wire()],
        ..v1::AssignmentDelta::default()
    };
    session.delta(delta).await;
    let report = session
        .report("2 instead of 1", |report| {
            state_of(report, id(2)) == Some(Kind::Ready)
                && state_of(report, id(1)) == Some(Kind::Exited)
        })
        .await;
    assert_eq!(report.accepted, Some(stamp(1, 11).into()));
    let stopped = report
        .instances
        .iter()
        .find(|one| one.id == id(1).to_wire())
        .unwrap();
    assert_eq!(
        stopped.state.clone().unwrap().exit,
        Some(ExitReason::Stopped.into())
    );
    assert_eq!(node.driver.running(), [id(2)]);
    agent.stop().await;
}

#[tokio::test]
async fn a_gap_asks_for_a_snapshot_and_changes_nothing() {
    let node = NodeUnderTest::new();
    let mut controller = Controller::start().await;
    let code = controller.put(&tar_of("1"));
    let agent = node.start(&[controller.address.clone()]).await;
    let (mut session, _) = controller.session().await;
    session
        .snapshot(stamp(1, 10), assignment(vec![wanted(1, code)]))
        .await;
    session.state(id(1), Kind::Ready).await;
    let delta = v1::AssignmentDelta {
        remove: vec![id(1).to_wire()],
        ..v1::AssignmentDelta::default()
    };
    session.delta_stamped(stamp(1, 12), delta).await;
    assert!(session.ended().await);
    let (mut session, hello) = controller.session().await;
    assert_eq!(hello.accepted, Some(stamp(1, 10).into()));
    assert_eq!(state_of(&hello, id(1)), Some(Kind::Ready));
    // The same term and sequence again is the same state: nothing is started anew.
    session
        .snapshot(
            stamp(1, 12),
            assignment(vec![wanted(1, code), wanted(2, code)]),
        )
        .await;
    session.state(id(2), Kind::Ready).await;
    assert_eq!(node.driver.launches(), 2);
    agent.stop().await;
}

#[tokio::test]
async fn a_deposed_leader_is_refused_also_after_a_restart() {
    let node = NodeUnderTest::new();
    let mut controller = Controller::start().await;
    let code = controller.put(&tar_of("1"));
    let agent = node.start(&[controller.address.clone()]).await;
    let (mut session, _) = controller.session().await;
    session
        .snapshot(stamp(5, 10), assignment(vec![wanted(1, code)]))
        .await;
    session.state(id(1), Kind::Ready).await;
    session.snapshot(stamp(5, 9), assignment(vec![])).await;
    assert!(session.ended().await, "an older sequence");
    let (mut session, _) = controller.session().await;
    session.snapshot(stamp(4, 99), assignment(vec![])).await;
    assert!(session.ended().await, "an older term");
    assert_eq!(node.driver.running(), [id(1)]);
    agent.stop().await;

    let agent = node.start(&[controller.address.clone()]).await;
    let (mut session, hello) = controller.session().await;
    assert_eq!(hello.accepted, Some(stamp(5, 0).into()));
    session.snapshot(stamp(4, 99), assignment(vec![])).await;
    assert!(session.ended().await, "an older term, remembered");
    assert_eq!(node.driver.running(), [id(1)]);
    agent.stop().await;
}

#[tokio::test]
async fn instances_outlive_controllers_and_agents() {
    let node = NodeUnderTest::new();
    let mut controller = Controller::start().await;
    let code = controller.put(&tar_of("1"));
    let agent = node.start(&[controller.address.clone()]).await;
    let (mut session, _) = controller.session().await;
    let both = assignment(vec![wanted(1, code), wanted(2, code)]);
    session.snapshot(stamp(1, 1), both).await;
    let ready = |report: &v1::Report, n| state_of(report, id(n)) == Some(Kind::Ready);
    session
        .report("both", |report| ready(report, 1) && ready(report, 2))
        .await;
    controller.stop();
    drop(session);
    agent
        .until("the session's end", |agent| agent.health().session.is_err())
        .await;
    assert_eq!(node.driver.running(), [id(1), id(2)]);
    agent.stop().await;
    assert_eq!(node.driver.running(), [id(1), id(2)]);

    // The next agent adopts both, keeps the one that is listed and ends the other.
    let mut controller = Controller::start().await;
    let agent = node.start(&[controller.address.clone()]).await;
    let (mut session, hello) = controller.session().await;
    assert_eq!(state_of(&hello, id(1)), Some(Kind::Ready));
    assert_eq!(state_of(&hello, id(2)), Some(Kind::Ready));
    session
        .snapshot(stamp(2, 1), assignment(vec![wanted(1, code)]))
        .await;
    session.state(id(2), Kind::Exited).await;
    assert_eq!(node.driver.running(), [id(1)]);
    assert_eq!(node.driver.launches(), 2, "adopted, not started again");
    agent
        .agent
        .stop_all(std::time::Duration::from_secs(5))
        .await;
    assert!(node.driver.running().is_empty());
    agent.stop().await;
}

#[tokio::test]
async fn controllers_are_tried_in_turn() {
    let node = NodeUnderTest::new();
    let nobody = Address::Unix(node.path().join("nobody.sock"));
    let mut controller = Controller::start().await;
    let agent = node.start(&[nobody, controller.address.clone()]).await;
    let (mut session, _) = controller.session().await;
    session.snapshot(stamp(1, 1), assignment(vec![])).await;
    agent
        .until("a session", |agent| agent.health().is_ready())
        .await;
    agent.stop().await;
}

#[tokio::test]
async fn a_driver_that_is_down_is_waited_for_before_anything_is_reported() {
    let node = NodeUnderTest::new();
    node.driver.fail_adoption(Some("containerd is down"));
    let mut controller = Controller::start().await;
    let agent = node.start(&[controller.address.clone()]).await;
    let down = |agent: &coracle_agent::Agent| {
        agent.health().driver == Err("cannot list containers: containerd is down".to_owned())
    };
    agent.until("the driver's failure", down).await;
    node.driver.fail_adoption(None);
    let (_session, _) = controller.session().await;
    agent
        .until("the driver", |agent| agent.health().driver.is_ok())
        .await;
    agent.stop().await;
}

#[tokio::test]
async fn an_end_is_reported_until_it_is_acknowledged_and_never_repaired() {
    let node = NodeUnderTest::new();
    let mut controller = Controller::start().await;
    let code = controller.put(&tar_of("1"));
    let agent = node.start(&[controller.address.clone()]).await;
    let (mut session, _) = controller.session().await;
    session
        .snapshot(stamp(1, 1), assignment(vec![wanted(1, code)]))
        .await;
    session.state(id(1), Kind::Ready).await;
    let reason = ExitReason::OutOfMemory { limit_mib: 64 };
    assert!(node.driver.crash(id(1), reason.clone()));
    let ended = |report: &v1::Report| state_of(report, id(1)) == Some(Kind::Exited);
    within("an unacknowledged end", async {
        while !ended(&session.report_unacknowledged().await) {}
    })
    .await;
    // The session breaks before the acknowledgement: the next one tells it again.
    drop(session);
    let (mut session, hello) = controller.session().await;
    assert!(ended(&hello));
    assert_eq!(
        hello.instances[0].state.clone().unwrap().exit,
        Some(reason.into())
    );
    session
        .snapshot(stamp(1, 1), assignment(vec![wanted(1, code)]))
        .await;
    session.acknowledge(hello.number).await;
    session
        .report("no end", |report| report.instances.is_empty())
        .await;
    // Still listed, so it is remembered and not started again; then it is forgotten.
    let delta = v1::AssignmentDelta {
        remove: vec![id(1).to_wire()],
        upsert: vec![wanted(2, code)],
        ..v1::AssignmentDelta::default()
    };
    session.delta(delta).await;
    session.state(id(2), Kind::Ready).await;
    assert_eq!(node.driver.launches(), 2);
    agent.stop().await;
}

#[tokio::test]
async fn stems_are_kept_for_runtimes_with_an_image() {
    let node = NodeUnderTest::new();
    let mut controller = Controller::start().await;
    let code = controller.put(&tar_of("1"));
    let agent = node.start(&[controller.address.clone()]).await;
    let (mut session, _) = controller.session().await;
    let stems = [("python3.11".to_owned(), 2), ("nodejs20".to_owned(), 1)];
    let snapshot = v1::Assignment {
        stems: stems.into(),
        ..assignment(vec![wanted(1, code)])
    };
    session.snapshot(stamp(1, 1), snapshot).await;
    session.state(id(1), Kind::Ready).await;
    until("stems", || {
        use coracle_driver::InstanceDriver as _;
        node.driver
            .stems()
            .into_iter()
            .map(|(name, n)| (name.to_string(), n))
            .collect::<Vec<_>>()
            == [("python3.11".to_owned(), 2)]
    })
    .await;
    session
        .delta(v1::AssignmentDelta {
            upsert: vec![wanted(2, code)],
            ..Default::default()
        })
        .await;
    let report = session
        .report("2", |report| state_of(report, id(2)) == Some(Kind::Ready))
        .await;
    let facts = report.node.unwrap();
    assert_eq!(facts.stems, [("python3.11".to_owned(), 2)].into());
    assert_eq!(facts.images, ["python3.11"]);
    agent.stop().await;
}
