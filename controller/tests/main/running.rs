//! What happens to instances while a function serves.

use coracle_model::{ExitReason, InstanceState};

use crate::{agent::Agent, fixture::*};

#[tokio::test]
async fn zero_is_reached_and_left_by_an_activation_once_per_id() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let agent = Agent::new();
    let _session = agent.connect(&server.channel).await;
    server.create("hello", 0, 3).await;
    let id = server.serving("hello", 1).await.function.id;
    let mut routes = server.routes().await;
    routes
        .until(id, |route| serves(route, 1) && route.instances.is_empty())
        .await;
    let decisions = server.describe("hello").await.decisions;
    assert!(
        decisions[0].reason.starts_with("1 → 0: idle for"),
        "{decisions:?}"
    );

    agent.script(|script| script.launch = InstanceState::Starting);
    let before = agent.ordered().len();
    let answer = server.activate(id, 10, 2).await;
    assert_eq!((answer.instances.len(), answer.refusal.as_str()), (2, ""));
    assert!(answer.instances.iter().all(|i| !i.ready));
    // The same activation, and one whose requests are covered already, start nothing.
    for (activation, parked) in [(10, 2), (11, 2)] {
        assert_eq!(
            server
                .activate(id, activation, parked)
                .await
                .instances
                .len(),
            2
        );
    }
    // Never above the cap.
    assert_eq!(server.activate(id, 12, 50).await.instances.len(), 3);
    wait("the orders", || async {
        let ordered = agent.ordered().len() - before;
        if ordered == 3 {
            Ok(())
        } else {
            Err(ordered.to_string())
        }
    })
    .await;
    let decisions = server.describe("hello").await.decisions;
    assert!(
        decisions.iter().any(|d| d.reason == "0 → 2: 2 parked"),
        "{decisions:?}"
    );
}

#[tokio::test]
async fn the_minimum_is_restored_after_a_loss_and_a_crash_loop_is_backed_off_and_shown() {
    let dir = tempfile::tempdir().unwrap();
    let slow = |config: &mut coracle_controller::Config| {
        config.backoff.first_ms = 60_000;
        config.backoff.answered_most_ms = 60_000;
    };
    let server = Server::with(dir.path(), slow).await;
    let agent = Agent::new();
    let session = agent.connect(&server.channel).await;
    server.create("hello", 1, 3).await;
    let id = server.serving("hello", 1).await.function.id;
    let mut routes = server.routes().await;
    let first = routes.until(id, |route| open(route) == 1).await.instances[0]
        .id
        .clone();

    // Gone without a word: nobody's fault, replaced at once.
    agent.lose(agent.live()[0]);
    session.report().await;
    routes
        .until(id, |route| {
            open(route) == 1 && route.instances[0].id != first
        })
        .await;

    agent.exit(agent.live()[0], ExitReason::Exited { code: 3 });
    session.report().await;
    let failing = routes.until(id, |route| !route.failing.is_empty()).await;
    assert_eq!(failing.failing, "the process exited with code 3");
    assert!(failing.instances.is_empty() && failing.retry_at > 0);
    let exits = server.describe("hello").await.exits;
    assert_eq!(exits.len(), 2);
    assert_eq!(exits[0].retry_at, Some(failing.retry_at));
    let refused = server.activate(id, 1, 1).await;
    assert_eq!(refused.refusal, failing.failing);
    assert!(refused.retry_after_millis > 50_000);
}

#[tokio::test]
async fn the_second_hang_in_a_row_is_backed_off_and_shown() {
    let dir = tempfile::tempdir().unwrap();
    let slow = |config: &mut coracle_controller::Config| {
        config.backoff.first_ms = 60_000;
        config.backoff.answered_most_ms = 60_000;
        config.backoff.together_ms = 0;
    };
    let server = Server::with(dir.path(), slow).await;
    let agent = Agent::new();
    let session = agent.connect(&server.channel).await;
    server.create("hello", 1, 3).await;
    let id = server.serving("hello", 1).await.function.id;
    let mut routes = server.routes().await;
    let first = routes.until(id, |route| open(route) == 1).await.instances[0]
        .id
        .clone();

    agent.exit(agent.live()[0], ExitReason::TimedOut);
    session.report().await;
    routes
        .until(id, |route| {
            open(route) == 1 && route.instances[0].id != first
        })
        .await;
    let exits = server.describe("hello").await.exits;
    assert_eq!(
        (exits[0].reason.clone(), exits[0].retry_at),
        (Some(ExitReason::TimedOut.into()), None),
        "replaced at once"
    );

    agent.exit(agent.live()[0], ExitReason::TimedOut);
    session.report().await;
    let failing = routes.until(id, |route| !route.failing.is_empty()).await;
    assert_eq!(failing.failing, ExitReason::TimedOut.to_string());
    let exits = server.describe("hello").await.exits;
    assert_eq!(exits[0].retry_at, Some(failing.retry_at));
    let refused = server.activate(id, 1, 1).await;
    assert_eq!(refused.refusal, failing.failing);
}

#[tokio::test]
async fn without_room_an_activation_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let agent = Agent::new();
    agent.script(|script| script.memory_mib = 200);
    let session = agent.connect(&server.channel).await;
    server.create("small", 1, 3).await;
    server.serving("small", 1).await;
    agent.script(|script| script.memory_mib = 100);
    session.report().await;
    agent.exit(agent.live()[0], ExitReason::TimedOut);
    session.report().await;
    let id = server.function("small").await.function.id;
    let refused = wait("no room", || async {
        let answer = server.activate(id, 7, 1).await;
        if answer.refusal.is_empty() {
            Err(format!("{answer:?}"))
        } else {
            Ok(answer)
        }
    });
    // The first answer may be of a repeated activation; what counts is that it waits for room.
    assert!(refused.await.retry_after_millis > 0);
    let fresh = server.activate(id, 8, 1).await;
    assert!(
        fresh.refusal.starts_with("no node has room for 128 MiB"),
        "{fresh:?}"
    );
}

#[tokio::test]
async fn a_function_that_may_not_run_has_no_instances_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let agent = Agent::new();
    let _session = agent.connect(&server.channel).await;
    server.create("hello", 1, 3).await;
    let id = server.serving("hello", 1).await.function.id;
    let mut routes = server.routes().await;
    for disabled in [true, false] {
        server
            .done(update("hello", |update| update.disabled = Some(disabled)).0)
            .await;
        let count = usize::from(!disabled);
        routes
            .until(id, |route| {
                route.disabled == disabled && open(route) == count
            })
            .await;
        if disabled {
            assert_eq!(
                server.activate(id, 1, 1).await.refusal,
                "the function is disabled"
            );
        }
    }
    for max in [0, 3] {
        let bounds = |update: &mut coracle_model::operation::UpdateFunction| {
            update.scale_min = Some(max.min(1));
            update.scale_max = Some(max);
        };
        server.done(update("hello", bounds).0).await;
        let count = usize::from(max > 0);
        routes
            .until(id, |route| {
                let shown = route.scale.as_ref().is_some_and(|scale| scale.max == max);
                shown && open(route) == count
            })
            .await;
        if max == 0 {
            assert_eq!(
                server.activate(id, 1, 1).await.refusal,
                "the function's maximum is no instance"
            );
        }
    }
    let (operation, _) = delete("hello");
    server.done(operation).await;
    wait("its instances to go", || async {
        if agent.instances().is_empty() {
            Ok(())
        } else {
            Err(format!("{:?}", agent.instances()))
        }
    })
    .await;
}
