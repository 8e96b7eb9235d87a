//! From a write to what serves, and to what a failed one leaves.

use coracle_model::{
    ExitReason, InstanceState, Refusal, ScaleBounds, Stage, TaskState, Token, TokenId,
};
use coracle_proto::{Wire as _, v1};

use crate::{agent::Agent, fixture::*};

#[tokio::test]
async fn a_function_is_built_deployed_and_routed() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let agent = Agent::new();
    let session = agent.connect(&server.channel).await;
    let task = server.create("hello", 2, 5).await;
    assert_eq!(server.ended(task).await, TaskState::Finished);

    let view = server.function("hello").await;
    assert_eq!(view.latest.stage, Stage::Running);
    assert_eq!(view.function.serving, Some(view.latest.id));
    let mut routes = server.routes().await;
    let route = routes
        .until(view.function.id, |route| open(route) == 2)
        .await;
    assert!(serves(&route, 1));
    assert!(
        route
            .instances
            .iter()
            .all(|i| i.socket.starts_with("/run/"))
    );
    let described = server.describe("hello").await;
    assert!(
        described.instances[0]
            .placement
            .starts_with("node-1: image there"),
        "{described:?}"
    );
    assert_eq!(agent.stems().get("python3.11"), Some(&4));

    let log = v1::BuildLogRequest {
        only_here: false,
        revision: Some(view.latest.id.into()),
        follow: true,
    };
    let mut log = server
        .management()
        .build_log(log)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(log.message().await.unwrap().unwrap().data, "installing\n");
    assert_eq!(
        log.message().await.unwrap(),
        None,
        "it ends, since the build has"
    );

    let nodes = server
        .management()
        .list_nodes(v1::ListNodesRequest { node: None })
        .await
        .unwrap();
    let node = &nodes.into_inner().nodes[0];
    assert_eq!((node.instances, node.alive), (2, true));
    assert_eq!(node.used.as_ref().unwrap().memory_mib, 256);
    drop(session);
    server.stop().await;
}

#[tokio::test]
async fn a_failed_build_says_why_and_leaves_what_serves() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let agent = Agent::new();
    let _session = agent.connect(&server.channel).await;
    assert_eq!(
        server.create("hello", 1, 5).await,
        server.task_of("hello").await
    );
    server.serving("hello", 1).await;
    let before = agent.live();
    agent.script(|script| script.build = Err("no matching distribution: left-pad==9".into()));
    let task = server.update("hello").await;
    let error = "no matching distribution: left-pad==9".to_owned();
    assert_eq!(server.ended(task).await, TaskState::Error(error.clone()));
    let view = server.function("hello").await;
    assert_eq!(view.latest.stage, Stage::BuildFailed { reason: error });
    assert_eq!(view.serving.unwrap().id.number, 1);
    assert_eq!(agent.live(), before);
}

#[tokio::test]
async fn a_deploy_that_cannot_start_fails_after_two_tries() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let agent = Agent::new();
    let fault = ExitReason::InitFailed {
        message: "no module named yaml".into(),
    };
    agent.script(|script| script.launch = InstanceState::Exited(fault));
    let _session = agent.connect(&server.channel).await;
    let task = server.create("hello", 0, 5).await;
    let error = "the code could not be loaded: no module named yaml".to_owned();
    assert_eq!(server.ended(task).await, TaskState::Error(error.clone()));
    assert_eq!(agent.ordered().len(), 2);
    let described = server.describe("hello").await;
    assert_eq!(described.exits.len(), 2);
    let view = server.function("hello").await;
    assert_eq!(
        view.latest.stage,
        Stage::DeployFailed {
            reason: error.clone()
        }
    );
    let refused = server.activate(view.function.id, 1, 1).await;
    assert_eq!(refused.refusal, format!("the deploy failed: {error}"));
}

#[tokio::test]
async fn an_update_switches_without_a_moment_closed() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let agent = Agent::new();
    let _session = agent.connect(&server.channel).await;
    let first = server.create("hello", 2, 5).await;
    assert_eq!(server.ended(first).await, TaskState::Finished);
    let id = server.function("hello").await.function.id;
    let mut routes = server.routes().await;
    routes.until(id, |route| open(route) == 2).await;

    let task = server.update("hello").await;
    let of = |route: &v1::Route, number: u32| {
        let open = route.instances.iter().filter(|i| i.ready && !i.draining);
        open.filter(|i| i.revision.as_ref().is_some_and(|r| r.number == number))
            .count()
    };
    let switched = routes
        .until(id, |route| {
            assert!(open(route) >= 2, "closed for a moment: {route:?}");
            assert!(
                serves(route, 2) || of(route, 2) == 0,
                "unproved and routed: {route:?}"
            );
            serves(route, 2)
        })
        .await;
    assert_eq!(
        (of(&switched, 1), of(&switched, 2)),
        (0, 2),
        "switched at once: {switched:?}"
    );
    assert_eq!(server.ended(task).await, TaskState::Finished);
    routes.until(id, |route| route.instances.len() == 2).await;
}

#[tokio::test]
async fn a_superseded_revision_does_not_proceed() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let agent = Agent::new();
    agent.script(|script| script.launch = InstanceState::Starting);
    let _session = agent.connect(&server.channel).await;
    let first = server.create("hello", 0, 5).await;
    wait("an instance of the first", || async {
        if agent.live().len() == 1 {
            Ok(())
        } else {
            Err(format!("{:?}", agent.instances()))
        }
    })
    .await;
    agent.script(|script| script.launch = InstanceState::Ready);
    let second = server.update("hello").await;
    assert!(matches!(server.ended(first).await, TaskState::Error(_)));
    assert_eq!(server.ended(second).await, TaskState::Finished);
    assert_eq!(
        server
            .function("hello")
            .await
            .function
            .serving
            .unwrap()
            .number,
        2
    );
    wait("the first's instance to go", || async {
        let live = agent.live();
        let all = agent.instances();
        if live.iter().all(|id| all[id].revision.number == 2) {
            Ok(())
        } else {
            Err(format!("{all:?}"))
        }
    })
    .await;
}

#[tokio::test]
async fn a_write_is_applied_once_and_refusals_name_the_field() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let code = server.put(b"code").await;
    let scale = ScaleBounds::new(0, 1).unwrap();
    let (operation, _) = create("hello", code, scale);
    let id = fresh_write();
    for _ in 0..2 {
        assert_eq!(server.write(id, operation.clone()).await, None);
    }
    let (again, _) = create("hello", code, scale);
    let refusal: Refusal = server
        .write(fresh_write(), again)
        .await
        .unwrap()
        .try_into()
        .unwrap();
    assert!(matches!(refusal, Refusal::AlreadyExists(_)), "{refusal:?}");
    let (absent, _) = create("other", coracle_model::Digest::of(b"never sent"), scale);
    let refusal: Refusal = server
        .write(fresh_write(), absent)
        .await
        .unwrap()
        .try_into()
        .unwrap();
    let Refusal::Invalid(invalid) = refusal else {
        panic!("{refusal:?}")
    };
    assert_eq!(invalid.field, "source");
    assert!(
        !server
            .controller
            .bootstrap(token(), PATIENCE)
            .await
            .unwrap(),
        "there is a token"
    );
}

#[tokio::test]
async fn a_lost_admin_token_is_replaced_and_not_by_a_bootstrap() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let another = Token {
        id: TokenId(uuid::Uuid::from_u128(78)),
        ..token()
    };
    let made = server.controller.bootstrap(another.clone(), PATIENCE).await;
    assert!(!made.unwrap(), "there is one already");
    let count = async || {
        let mut management = server.management();
        let listed = management.list_tokens(v1::ListTokensRequest {});
        listed.await.unwrap().into_inner().tokens.len()
    };
    assert_eq!(count().await, 1);
    for _ in 0..2 {
        server.controller.add_token(another.clone()).await.unwrap();
        assert_eq!(count().await, 2);
    }
    server.stop().await;
}

/// A log that cannot be written ends the controller, so that it stops taking things long before.
#[tokio::test]
async fn a_disk_that_is_nearly_full_refuses_changes_and_takes_removals() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    server.create("kept", 0, 1).await;
    server.stop().await;
    let full = |config: &mut coracle_controller::Config| {
        config.leader.disk_reserve = u64::MAX;
    };
    let server = Server::with(dir.path(), full).await;
    let asked = |operation: coracle_model::Operation| {
        let request = v1::WriteRequest {
            write_id: fresh_write().to_wire(),
            operation: Some(operation.into()),
        };
        let mut management = server.management();
        async move { management.write(request).await }
    };
    let (change, _) = update("kept", |update| update.disabled = Some(true));
    let refused = asked(change).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("nearly full"), "{refused}");
    let (removal, _) = delete("kept");
    let taken = asked(removal).await.unwrap().into_inner();
    assert_eq!(taken.refusal, None);
}
