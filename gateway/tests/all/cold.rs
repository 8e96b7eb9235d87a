use std::{
    collections::HashSet,
    sync::{Arc, atomic::Ordering::SeqCst},
};

use coracle_proto::v1::{self, await_instance_response::Outcome};
use futures_util::future::join_all;
use tonic::Status;
use uuid::Uuid;

use crate::support::{Act, Instance, NODE, World, code, id_bytes, until};

const HELLO: &str = "/fn/default/ns/hello";

fn starting(function: Uuid, instances: &[&Instance]) -> v1::ActivateResponse {
    let named = |i: &&Instance| v1::RouteInstance {
        id: id_bytes(i.id),
        node: id_bytes(NODE),
        revision: Some(v1::RevisionId {
            function: id_bytes(function),
            number: 1,
        }),
        ..v1::RouteInstance::default()
    };
    v1::ActivateResponse {
        instances: instances.iter().map(named).collect(),
        ..v1::ActivateResponse::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_calls_to_zero_are_all_answered() {
    let world = Arc::new(World::new(|c| c.limits.queue_per_function = 200).await);
    let function = Uuid::new_v4();
    world.publish(world.route(function, &[])).await;
    let (one, two) = (world.instance(), world.instance());
    let answer = starting(function, &[&one, &two]);
    world.plane.on_activate(move |_| Ok(answer.clone()));
    let calls: Vec<_> = (0..200)
        .map(|_| {
            let world = world.clone();
            tokio::spawn(async move { world.get(HELLO).await.status().as_u16() })
        })
        .collect();
    until("all are parked", || world.gateway.health().queued == 200).await;
    until("demand is reported", || {
        world
            .plane
            .demand
            .lock()
            .unwrap()
            .iter()
            .any(|r| r.functions.iter().any(|f| f.queued > 0))
    })
    .await;
    world.plane.ready(&one);
    world.plane.ready(&two);
    let statuses: HashSet<_> = join_all(calls)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    assert_eq!(statuses, [200].into());
    assert_eq!(one.script.calls() + two.script.calls(), 200);
    for instance in [&one, &two] {
        let most = instance.script.most_running.load(SeqCst);
        assert_eq!(most, 1, "no more than its concurrency at once");
    }
    let parked: Vec<_> = world
        .plane
        .activations
        .lock()
        .unwrap()
        .iter()
        .map(|a| a.parked)
        .collect();
    assert!(
        parked.iter().any(|p| *p > 1),
        "the burst was told: {parked:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cold_answer_names_the_phases_of_the_start() {
    let world = World::new(|_| ()).await;
    let function = Uuid::new_v4();
    world.publish(world.route(function, &[])).await;
    let instance = world.instance();
    world.plane.ready(&instance);
    let answer = starting(function, &[&instance]);
    world.plane.on_activate(move |_| Ok(answer.clone()));
    let response = world.get(HELLO).await;
    assert_eq!(response.status(), 200);
    let timing = response.headers()["server-timing"].to_str().unwrap();
    assert!(
        timing.contains("start;dur=") && timing.contains(";desc=\"stem\""),
        "{timing}"
    );
    for phase in ["queue", "schedule", "init", "run"] {
        assert!(timing.contains(&format!("{phase};dur=")), "{timing}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_a_node_that_is_slower_than_the_feed() {
    let world = Arc::new(World::new(|_| ()).await);
    let function = Uuid::new_v4();
    world.publish(world.route(function, &[])).await;
    let instance = world.instance();
    let answer = starting(function, &[&instance]);
    world.plane.on_activate(move |_| Ok(answer.clone()));
    let call = tokio::spawn({
        let world = world.clone();
        async move { world.get(HELLO).await }
    });
    until("the node is asked", || world.plane.awaits.load(SeqCst) == 1).await;
    world.publish(world.route(function, &[&instance])).await;
    let response = call.await.unwrap();
    assert_eq!(response.status(), 200);
    let timing = response.headers()["server-timing"].to_str().unwrap();
    for phase in ["queue", "schedule", "start", "run"] {
        assert!(timing.contains(&format!("{phase};dur=")), "{timing}");
    }
    assert!(!timing.contains("init"), "nobody has said: {timing}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_fails_tells_everyone_who_waits_why() {
    let world = Arc::new(World::new(|_| ()).await);
    let function = Uuid::new_v4();
    world.publish(world.route(function, &[])).await;
    let instance = world.instance();
    let answer = starting(function, &[&instance]);
    world.plane.on_activate(move |_| Ok(answer.clone()));
    let calls: Vec<_> = (0..3)
        .map(|_| {
            let world = world.clone();
            tokio::spawn(async move { world.get(HELLO).await })
        })
        .collect();
    until("all are parked", || world.gateway.health().queued == 3).await;
    let message = "ModuleNotFoundError: no module named 'nope'".to_owned();
    let kind = v1::exit_reason::Kind::InitFailed(v1::exit_reason::Message { message });
    world.plane.settle(
        instance.id,
        Outcome::Failed(v1::ExitReason { kind: Some(kind) }),
    );
    for call in calls {
        let response = call.await.unwrap();
        assert_eq!(
            (response.status().as_u16(), code(&response)),
            (502, "init_failed")
        );
        assert!(String::from_utf8_lossy(response.body()).contains("no module named 'nope'"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_activation_is_repeated_under_the_same_id_until_a_controller_answers() {
    let world = World::new(|_| ()).await;
    let function = Uuid::new_v4();
    world.publish(world.route(function, &[])).await;
    let instance = world.instance();
    world.plane.ready(&instance);
    let (answer, plane) = (starting(function, &[&instance]), world.plane.clone());
    world.plane.on_activate(move |_| {
        if plane.activations.lock().unwrap().len() < 4 {
            return Err(Status::unavailable("no leader"));
        }
        Ok(answer.clone())
    });
    assert_eq!(world.get(HELLO).await.status(), 200);
    let ids: HashSet<_> = world.plane.activations.lock().unwrap()[..4]
        .iter()
        .map(|a| a.activation.clone())
        .collect();
    assert_eq!(ids.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_capacity_no_controller_and_back_off_are_told_apart() {
    let world = World::new(|_| ()).await;
    let function = Uuid::new_v4();
    let mut route = world.route(function, &[]);
    route.init_timeout_secs = 1;
    world.publish(route.clone()).await;
    world.plane.on_activate(|_| {
        Ok(v1::ActivateResponse {
            refusal: "no node has 128 MiB free".into(),
            retry_after_millis: 4_500,
            ..v1::ActivateResponse::default()
        })
    });
    let response = world.get(HELLO).await;
    assert_eq!(
        (response.status().as_u16(), code(&response)),
        (503, "no_capacity")
    );
    assert_eq!(response.headers()["retry-after"], "5");

    world
        .plane
        .on_activate(|_| Err(Status::unavailable("no leader")));
    let response = world.get(HELLO).await;
    assert_eq!(
        (response.status().as_u16(), code(&response)),
        (503, "no_controller")
    );

    world
        .plane
        .on_activate(|_| Ok(v1::ActivateResponse::default()));
    let response = world.get(HELLO).await;
    assert_eq!(
        (response.status().as_u16(), code(&response)),
        (504, "init_timeout")
    );

    route.failing = "the process exited with code 3".into();
    route.retry_at = u64::MAX / 2;
    world.publish(route).await;
    let before = world.plane.activations.lock().unwrap().len();
    let response = world.get(HELLO).await;
    assert_eq!(
        (response.status().as_u16(), code(&response)),
        (503, "function_failing")
    );
    assert!(response.headers().contains_key("retry-after"));
    assert_eq!(
        world.plane.activations.lock().unwrap().len(),
        before,
        "nothing was woken"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_died_before_it_was_reached_is_replaced_within_the_same_request() {
    let world = World::new(|_| ()).await;
    let function = Uuid::new_v4();
    world.publish(world.route(function, &[])).await;
    let mut dead = world.instance();
    let alive = world.instance();
    world.plane.ready(&dead);
    world.plane.ready(&alive);
    dead.stop();
    let (first, second) = (starting(function, &[&dead]), starting(function, &[&alive]));
    let plane = world.plane.clone();
    world.plane.on_activate(move |_| {
        let asked = plane.activations.lock().unwrap().len();
        Ok(if asked == 1 {
            first.clone()
        } else {
            second.clone()
        })
    });
    assert_eq!(world.get(HELLO).await.status(), 200);
    assert_eq!(alive.script.calls(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_warm_function_queues_within_its_timeout_and_its_bound() {
    let world = Arc::new(World::new(|c| c.limits.queue_per_function = 1).await);
    let (_, instance) = world.warm(|route| route.timeout_secs = 2).await;
    instance.script.then(Act::Wait);
    let first = tokio::spawn({
        let world = world.clone();
        async move { world.get(HELLO).await }
    });
    until("the instance is busy", || instance.script.calls() == 1).await;
    let second = tokio::spawn({
        let world = world.clone();
        async move { world.get(HELLO).await }
    });
    until("one is parked", || world.gateway.health().queued == 1).await;
    let third = world.get(HELLO).await;
    assert_eq!(
        (third.status().as_u16(), code(&third)),
        (429, "too_many_requests")
    );
    assert!(third.headers().contains_key("retry-after"));
    instance.script.release();
    assert_eq!(first.await.unwrap().status(), 200);
    assert_eq!(second.await.unwrap().status(), 200);
}
