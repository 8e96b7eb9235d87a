//! Build orders: their log, their result, their withdrawal.

use coracle_driver::fake::Gate;
use coracle_model::{BuildId, Digest};
use coracle_proto::{
    Wire,
    v1::{self, agent_message},
};
use uuid::Uuid;

use crate::{
    controller::{Controller, Session, stamp},
    node::{NodeUnderTest, assignment, id, revision, settings, until, wanted},
};

fn order(n: u128, code: Digest) -> v1::BuildOrder {
    v1::BuildOrder {
        build: BuildId(Uuid::from_u128(n)).to_wire(),
        revision: Some(revision().into()),
        settings: Some(settings(code).into()),
    }
}

fn snapshot(builds: Vec<v1::BuildOrder>) -> v1::Assignment {
    v1::Assignment {
        builds,
        ..assignment(vec![])
    }
}

/// The log and the result of the next build that ends.
async fn result(session: &mut Session) -> (String, v1::BuildResult) {
    let mut log = String::new();
    loop {
        match session.next().await {
            agent_message::Body::BuildLog(progress) => {
                log.push_str(std::str::from_utf8(&progress.data).unwrap());
            }
            agent_message::Body::BuildResult(result) => return (log, result),
            agent_message::Body::Report(report) => session.acknowledge(report.number).await,
            agent_message::Body::Hello(_) => panic!("a second hello"),
        }
    }
}

#[tokio::test]
async fn a_build_uploads_tells_its_log_and_feeds_the_launch() {
    let node = NodeUnderTest::new();
    let mut controller = Controller::start().await;
    let source = controller.put(b"def main(): return 1");
    let agent = node.start(&[controller.address.clone()]).await;
    let (mut session, _) = controller.session().await;
    session
        .snapshot(stamp(1, 1), snapshot(vec![order(1, source)]))
        .await;
    let (log, told) = result(&mut session).await;
    let said = format!("image python3.11: made\nbuild 1 of {}\n", revision());
    assert_eq!(log, said);
    assert_eq!(told.failure, "");
    let code = Digest::from_wire("code", told.output.clone().unwrap().code).unwrap();
    let uploaded = controller.artifacts.lock().unwrap().remove(&code);
    assert_eq!(uploaded.map(|bytes| Digest::of(&bytes)), Some(code));
    assert_eq!(
        std::fs::read_dir(node.path().join("builds"))
            .unwrap()
            .count(),
        0
    );

    // A session that breaks is told again, without building again.
    drop(session);
    let (mut session, _) = controller.session().await;
    session
        .snapshot(stamp(1, 2), snapshot(vec![order(1, source)]))
        .await;
    let (log, again) = result(&mut session).await;
    assert_eq!((log.as_str(), &again), ("", &told));
    assert_eq!(node.builder.builds(), 1);

    // No controller has the artifact any more, and none is asked: it is on the node.
    let delta = v1::AssignmentDelta {
        upsert: vec![wanted(1, code)],
        builds_remove: vec![order(1, source).build],
        ..v1::AssignmentDelta::default()
    };
    session.delta(delta).await;
    session.state(id(1), v1::instance_state::Kind::Ready).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_build_that_fails_says_why_in_one_sentence() {
    let node = NodeUnderTest::new();
    let mut controller = Controller::start().await;
    let source = controller.put(b"fail: requests 99.0 does not exist for Python 3.11");
    let agent = node.start(&[controller.address.clone()]).await;
    let (mut session, _) = controller.session().await;
    let missing = Digest([7; 32]);
    let orders = vec![order(1, source), order(2, missing)];
    session.snapshot(stamp(1, 1), snapshot(orders)).await;
    let mut failures = Vec::new();
    for _ in 0..2 {
        let (_, told) = result(&mut session).await;
        assert_eq!(told.output, None);
        failures.push(told.failure);
    }
    assert_eq!(
        failures,
        [
            "requests 99.0 does not exist for Python 3.11".to_owned(),
            format!("no controller has artifact {missing}"),
        ]
    );
    agent.stop().await;
}

#[tokio::test]
async fn a_withdrawn_build_makes_room_for_the_next() {
    let node = NodeUnderTest::new();
    let gate = Gate::closed();
    node.builder.hold(gate.clone());
    let mut controller = Controller::start().await;
    let source = controller.put(b"1");
    let agent = node.start(&[controller.address.clone()]).await;
    let (mut session, _) = controller.session().await;
    session
        .snapshot(stamp(1, 1), snapshot(vec![order(1, source)]))
        .await;
    until("the first build", || node.builder.builds() == 1).await;
    let delta = v1::AssignmentDelta {
        builds_upsert: vec![order(2, source)],
        builds_remove: vec![order(1, source).build],
        ..v1::AssignmentDelta::default()
    };
    session.delta(delta).await;
    until("the second build", || node.builder.builds() == 2).await;
    gate.open();
    let (_, told) = result(&mut session).await;
    assert_eq!(told.build, order(2, source).build);
    agent.stop().await;
}
