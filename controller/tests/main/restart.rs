//! Controllers and sessions that end and come back.

use coracle_model::TaskState;
use coracle_proto::Wire as _;

use crate::{agent::Agent, fixture::*};

#[tokio::test]
async fn a_restarted_controller_adopts_what_runs_and_starts_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::new();
    let before = {
        let server = Server::start(dir.path()).await;
        let session = agent.connect(&server.channel).await;
        server.create("hello", 2, 5).await;
        let view = server.serving("hello", 1).await;
        session.cut();
        server.stop().await;
        (view.function.id, agent.live(), agent.ordered())
    };
    let (id, live, ordered) = before;
    assert_eq!(live.len(), 2);

    let server = Server::start(dir.path()).await;
    assert_eq!(
        server
            .function("hello")
            .await
            .function
            .serving
            .unwrap()
            .number,
        1
    );
    let _session = agent.connect(&server.channel).await;
    let mut routes = server.routes().await;
    let route = routes.until(id, |route| open(route) == 2).await;
    assert!(
        route
            .instances
            .iter()
            .all(|i| i.socket.starts_with("/run/"))
    );
    wait("planning", || async {
        if server.controller.status().planning {
            Ok(())
        } else {
            Err("collecting".to_owned())
        }
    })
    .await;
    // Something written after planning began has gone through several plans when it is done.
    let task = server.create("other", 0, 1).await;
    assert_eq!(server.ended(task).await, TaskState::Finished);
    assert!(
        live.iter().all(|id| agent.live().contains(id)),
        "{:?}",
        agent.instances()
    );
    assert_eq!(
        agent.ordered().len(),
        ordered.len() + 1,
        "only the other function's proof"
    );
    server.stop().await;
}

/// A gateway serves from its last routes meanwhile. Routes without the instances that run would
/// have it park warm requests, and the leader start what is there already.
#[tokio::test]
async fn a_new_leader_tells_gateways_nothing_before_it_has_heard_the_agents() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::new();
    let id = {
        let server = Server::start(dir.path()).await;
        let session = agent.connect(&server.channel).await;
        server.create("hello", 2, 5).await;
        let id = server.serving("hello", 1).await.function.id;
        session.cut();
        server.stop().await;
        id
    };
    let server = Server::start(dir.path()).await;
    wait("the leader", || async {
        let status = server.controller.status();
        if status.leading {
            Ok(())
        } else {
            Err(format!("{status:?}"))
        }
    })
    .await;
    let gateway = async {
        let mut routes = server.routes().await;
        routes.step().await;
        routes
    };
    let (routes, _session) = tokio::join!(gateway, agent.connect(&server.channel));
    let first = &routes.routes[&id.to_wire()];
    assert_eq!(open(first), 2, "{first:?}");
}

#[tokio::test]
async fn a_build_that_lost_its_controller_is_built_again() {
    let dir = tempfile::tempdir().unwrap();
    let task = {
        let server = Server::start(dir.path()).await;
        let task = server.create("hello", 0, 5).await;
        server.stop().await;
        task
    };
    let server = Server::start(dir.path()).await;
    let agent = Agent::new();
    let _session = agent.connect(&server.channel).await;
    assert_eq!(server.ended(task).await, TaskState::Finished);
    assert_eq!(agent.builds(), 1);
}

#[tokio::test]
async fn a_broken_session_is_followed_by_a_snapshot_and_nothing_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let agent = Agent::new();
    let session = agent.connect(&server.channel).await;
    server.create("hello", 1, 5).await;
    let id = server.serving("hello", 1).await.function.id;
    let ordered = agent.ordered();
    session.cut();
    wait("the cut to be seen", || async {
        let status = server.controller.status();
        if status.nodes_alive == 0 {
            Ok(())
        } else {
            Err(format!("{status:?}"))
        }
    })
    .await;
    // Within the grace period its instance still counts, and is routed.
    let mut routes = server.routes().await;
    routes.until(id, |route| open(route) == 1).await;
    agent.restarted();
    let _session = agent.connect(&server.channel).await;
    let task = server.update("hello").await;
    assert_eq!(server.ended(task).await, TaskState::Finished);
    assert_eq!(
        agent.ordered().len(),
        ordered.len() + 1,
        "only the new revision's instance"
    );
}

#[tokio::test]
async fn what_nothing_names_is_collected_and_the_rest_stays() {
    let dir = tempfile::tempdir().unwrap();
    let at_once = |config: &mut coracle_controller::Config| {
        config.leader.artifact_grace = std::time::Duration::from_millis(1_500);
        config.leader.gc_interval = std::time::Duration::from_millis(20);
    };
    let server = Server::with(dir.path(), at_once).await;
    let agent = Agent::new();
    let _session = agent.connect(&server.channel).await;
    let task = server.create("hello", 0, 1).await;
    assert_eq!(server.ended(task).await, TaskState::Finished);
    let orphan = server.put(b"nobody names this").await;
    let names = || -> Vec<String> {
        let entries = std::fs::read_dir(dir.path().join("artifacts")).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    assert!(names().contains(&orphan.to_string()));
    wait("the orphan to go", || async {
        let names = names();
        if names.contains(&orphan.to_string()) {
            Err(format!("{names:?}"))
        } else {
            Ok(())
        }
    })
    .await;
    let latest = server.latest("hello").await;
    let coracle_model::Source::Inline { code } = latest.settings.source;
    for kept in [code, latest.build.unwrap().code] {
        assert!(names().contains(&kept.to_string()), "{kept} was collected");
    }
}
