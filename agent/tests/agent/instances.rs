//! Launches, waiting for them, draining, killing, output.

use std::time::Duration;

use coracle_base::{Clock as _, SystemClock};
use coracle_driver::fake::{Gate, Script};
use coracle_model::ExitReason;
use coracle_proto::{
    Wire,
    v1::{self, await_instance_response::Outcome, instance_state::Kind},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};
use tonic::Code;

use crate::{
    controller::{Controller, Session, stamp, within},
    node::{NodeUnderTest, Running, assignment, function, id, tar_of, wanted},
};

/// An agent that follows, with nothing to do yet.
pub(crate) async fn following(node: &NodeUnderTest) -> (Controller, Session, Running) {
    let mut controller = Controller::start().await;
    let agent = node.start(&[controller.address.clone()]).await;
    let (mut session, _) = controller.session().await;
    session.snapshot(stamp(1, 1), assignment(vec![])).await;
    agent
        .until("a session", |agent| agent.health().is_ready())
        .await;
    (controller, session, agent)
}

pub(crate) fn upsert(instance: v1::DesiredInstance) -> v1::AssignmentDelta {
    v1::AssignmentDelta {
        upsert: vec![instance],
        ..v1::AssignmentDelta::default()
    }
}

#[tokio::test]
async fn an_instance_is_waited_for_before_it_is_ordered() {
    let node = NodeUnderTest::new();
    let (controller, mut session, agent) = following(&node).await;
    let code = controller.put(&tar_of("1"));
    let (outcome, ()) = tokio::join!(agent.await_instance(id(1)), async {
        // Both waits begin in the same poll; the order is sent after the call has been.
        session.delta(upsert(wanted(1, code))).await;
    });
    let Outcome::Ready(ready) = outcome.unwrap() else {
        panic!("failed")
    };
    assert!(ready.start_micros > 0 && ready.init_micros > 0);
    assert_eq!(ready.from, "scratch");
    UnixStream::connect(&ready.socket).await.unwrap();
    // Asked again, it is there at once.
    assert!(matches!(
        agent.await_instance(id(1)).await,
        Ok(Outcome::Ready(_))
    ));
    agent.stop().await;
}

#[tokio::test]
async fn an_order_that_never_comes_ends_with_the_calls_deadline() {
    let node = NodeUnderTest::new();
    let (_controller, _session, agent) = following(&node).await;
    let mut request = tonic::Request::new(v1::AwaitInstanceRequest {
        instance: id(1).to_wire(),
    });
    request.set_timeout(Duration::from_millis(50));
    let status = within("the deadline", agent.node.clone().await_instance(request)).await;
    let code = status.unwrap_err().code();
    assert!(
        matches!(code, Code::DeadlineExceeded | Code::Cancelled),
        "{code:?}"
    );
    agent.stop().await;
}

#[tokio::test]
async fn code_that_does_not_load_is_said_to_those_who_wait_and_not_tried_again() {
    let node = NodeUnderTest::new();
    let (controller, mut session, agent) = following(&node).await;
    let code = controller.put(&tar_of("1"));
    let reason = ExitReason::InitFailed {
        message: "no module named x".to_owned(),
    };
    let script = Script {
        fail: Some(reason.clone()),
        ..Script::default()
    };
    node.driver.script(&"hello".parse().unwrap(), script);
    session.delta(upsert(wanted(1, code))).await;
    let outcome = agent.await_instance(id(1)).await.unwrap();
    assert_eq!(outcome, Outcome::Failed(reason.clone().into()));
    let reported = session.state(id(1), Kind::Exited).await;
    assert_eq!(reported.state.unwrap().exit, Some(reason.into()));
    assert_eq!(node.driver.launches(), 1);
    let lines = logs(&agent, 10).await;
    let said = "instance ended: the code could not be loaded: no module named x";
    assert_eq!(lines.last().unwrap().message, said);
    agent.stop().await;
}

#[tokio::test]
async fn code_that_no_controller_has_fails_the_launch() {
    let node = NodeUnderTest::new();
    let (_controller, mut session, agent) = following(&node).await;
    session
        .delta(upsert(wanted(1, coracle_model::Digest([9; 32]))))
        .await;
    let Outcome::Failed(reason) = agent.await_instance(id(1)).await.unwrap() else {
        panic!("ready")
    };
    let reason = ExitReason::try_from(reason).unwrap().to_string();
    assert!(
        reason.contains("no controller has artifact 0909"),
        "{reason}"
    );
    assert_eq!(node.driver.launches(), 0);
    session.state(id(1), Kind::Exited).await;
    agent.stop().await;
}

#[tokio::test]
async fn an_instance_that_is_withdrawn_while_its_code_hangs_ends_at_once() {
    let node = NodeUnderTest::new();
    let (controller, mut session, agent) = following(&node).await;
    let code = controller.put(&tar_of("1"));
    let script = Script {
        gate: Some(Gate::closed()),
        ..Script::default()
    };
    node.driver.script(&"hello".parse().unwrap(), script);
    session.delta(upsert(wanted(1, code))).await;
    session.state(id(1), Kind::Starting).await;
    let delta = v1::AssignmentDelta {
        remove: vec![id(1).to_wire()],
        ..v1::AssignmentDelta::default()
    };
    session.delta(delta).await;
    let outcome = agent.await_instance(id(1)).await.unwrap();
    assert_eq!(outcome, Outcome::Failed(ExitReason::Stopped.into()));
    session.state(id(1), Kind::Exited).await;
    assert!(node.driver.running().is_empty());
    agent.stop().await;
}

/// An invocation without the end of its body, so that it stays inside until `finish`.
async fn begin(socket: &str) -> UnixStream {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    let head = b"\0\0\0\0request\0POST\0/";
    let mut frame = u32::try_from(head.len()).unwrap().to_le_bytes().to_vec();
    // HOLD: the acceptance says that the slot is taken.
    frame.extend_from_slice(&[0x01, 2, 0, 0]);
    frame.extend_from_slice(head);
    stream.write_all(&frame).await.unwrap();
    assert_eq!(kind(&mut stream).await, Some(0x85));
    stream
}

/// The kind of the next frame. `None` when the connection was cut.
async fn kind(stream: &mut UnixStream) -> Option<u8> {
    let length = stream.read_u32_le().await.ok()?;
    let kind = stream.read_u8().await.ok()?;
    let mut rest = vec![0; 3 + length as usize];
    stream.read_exact(&mut rest).await.ok()?;
    Some(kind)
}

#[tokio::test]
async fn draining_finishes_what_runs() {
    let node = NodeUnderTest::new();
    let (controller, mut session, agent) = following(&node).await;
    let code = controller.put(&tar_of("1"));
    session.delta(upsert(wanted(1, code))).await;
    let ready = session.state(id(1), Kind::Ready).await;
    let mut request = begin(&ready.socket).await;
    let drain_deadline = SystemClock.now_millis() + 3_600_000;
    let draining = v1::DesiredInstance {
        drain: true,
        drain_deadline,
        ..wanted(1, code)
    };
    session.delta(upsert(draining)).await;
    session.state(id(1), Kind::Draining).await;
    assert_eq!(node.driver.running(), [id(1)]);
    request
        .write_all(&[0, 0, 0, 0, 0x02, 1, 0, 0])
        .await
        .unwrap();
    assert_eq!(within("the answer", kind(&mut request)).await, Some(0x81));
    let ended = session.state(id(1), Kind::Exited).await;
    assert_eq!(ended.state.unwrap().exit, Some(ExitReason::Stopped.into()));
    assert!(node.driver.running().is_empty());
    agent.stop().await;
}

#[tokio::test]
async fn a_drain_deadline_cuts_off_what_does_not_finish() {
    let node = NodeUnderTest::new();
    let (controller, mut session, agent) = following(&node).await;
    let code = controller.put(&tar_of("1"));
    session.delta(upsert(wanted(1, code))).await;
    let ready = session.state(id(1), Kind::Ready).await;
    let mut request = begin(&ready.socket).await;
    let far = SystemClock.now_millis() + 3_600_000;
    let draining = v1::DesiredInstance {
        drain: true,
        drain_deadline: far,
        ..wanted(1, code)
    };
    session.delta(upsert(draining.clone())).await;
    session.state(id(1), Kind::Draining).await;
    // A deadline that comes closer counts.
    let drain_deadline = SystemClock.now_millis();
    session
        .delta(upsert(v1::DesiredInstance {
            drain_deadline,
            ..draining
        }))
        .await;
    session.state(id(1), Kind::Exited).await;
    assert_eq!(within("the cut", kind(&mut request)).await, None);
    agent.stop().await;
}

#[tokio::test]
async fn a_killed_instance_timed_out() {
    let node = NodeUnderTest::new();
    let (controller, mut session, agent) = following(&node).await;
    let code = controller.put(&tar_of("1"));
    session.delta(upsert(wanted(1, code))).await;
    let ready = session.state(id(1), Kind::Ready).await;
    let mut request = begin(&ready.socket).await;
    let kill = |n| v1::KillInstanceRequest {
        instance: id(n).to_wire(),
        request: "r-1".to_owned(),
    };
    let mut client = agent.node.clone();
    within("the kill", client.kill_instance(kill(1)))
        .await
        .unwrap();
    assert!(node.driver.running().is_empty(), "gone when it is answered");
    assert_eq!(within("the cut", kind(&mut request)).await, None);
    let ended = session.state(id(1), Kind::Exited).await;
    assert_eq!(ended.state.unwrap().exit, Some(ExitReason::TimedOut.into()));
    within("another kill", client.kill_instance(kill(1)))
        .await
        .unwrap();
    within("a kill of nobody", client.kill_instance(kill(9)))
        .await
        .unwrap();
    let messages: Vec<_> = logs(&agent, 10)
        .await
        .into_iter()
        .map(|line| line.message)
        .collect();
    let end = &messages[messages.len() - 2..];
    assert_eq!(
        end,
        [
            "request r-1 ran past its deadline: the instance is killed",
            "instance ended: killed: a request ran past the function's timeout",
        ]
    );
    agent.stop().await;
}

async fn logs(agent: &Running, tail: u32) -> Vec<v1::LogLine> {
    let request = v1::LogsRequest {
        function: function().to_wire(),
        tail,
        ..v1::LogsRequest::default()
    };
    let mut batches = agent.node.clone().logs(request).await.unwrap().into_inner();
    let mut lines = Vec::new();
    while let Some(batch) = within("a log", batches.message()).await.unwrap() {
        lines.extend(batch.lines);
    }
    lines
}

#[tokio::test]
async fn a_log_is_followed_until_the_agent_ends() {
    let node = NodeUnderTest::new();
    let (controller, mut session, agent) = following(&node).await;
    let code = controller.put(&tar_of("1"));
    session.delta(upsert(wanted(1, code))).await;
    session.state(id(1), Kind::Ready).await;
    let request = v1::LogsRequest {
        function: function().to_wire(),
        tail: 10,
        follow: true,
        ..v1::LogsRequest::default()
    };
    let mut batches = agent.node.clone().logs(request).await.unwrap().into_inner();
    let past = within("the past", batches.message())
        .await
        .unwrap()
        .unwrap();
    assert!(
        past.lines[0]
            .message
            .starts_with("instance started (scratch"),
        "{past:?}"
    );
    assert_eq!(past.lines[0].stream(), v1::log_line::Stream::Platform);
    node.driver.crash(id(1), ExitReason::Exited { code: 3 });
    let next = within("the next", batches.message())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        next.lines[0].message,
        "instance ended: the process exited with code 3"
    );
    agent.stop().await;
    assert!(matches!(
        within("the end", batches.message()).await,
        Ok(None) | Err(_)
    ));
}
