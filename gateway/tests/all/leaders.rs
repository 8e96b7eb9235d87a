//! Leaders that die, are replaced, come back, and know less than the one before.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, atomic::Ordering::SeqCst},
};

use coracle_base::Told;
use coracle_proto::v1;
use futures_util::future::join_all;
use tonic::Status;
use uuid::Uuid;

use crate::{
    controllers::{Controller, Group},
    support::{Act, Instance, NODE, Plane, World, code, id_bytes, until},
};

const HELLO: &str = "/fn/default/ns/hello";

/// A gateway and three controllers, of which the first leads.
async fn three(hints: bool) -> (Arc<Group>, Vec<Controller>, Arc<World>) {
    let (group, controllers) = Group::start(3, hints);
    group.elect(0, &controllers[0], 1);
    let addresses = controllers.iter().map(Controller::dial).collect();
    let world = World::with_controllers(Arc::new(Plane::default()), addresses, |_| ()).await;
    (group, controllers, Arc::new(world))
}

/// The routes of one controller, as if they had been there before anybody asked.
fn know(controller: &Controller, routes: Vec<v1::Route>) {
    controller.plane.routes.lock().unwrap().1 = routes;
}

async fn follows(world: &World, term: u64) {
    until("the new leader is followed", || {
        let health = world.gateway.health();
        health.controller_connected && health.routes.is_some_and(|s| s.term == term)
    })
    .await;
}

fn ordered(function: Uuid, instance: &Instance) -> v1::ActivateResponse {
    let named = v1::RouteInstance {
        id: id_bytes(instance.id),
        node: id_bytes(NODE),
        revision: Some(v1::RevisionId {
            function: id_bytes(function),
            number: 1,
        }),
        ..v1::RouteInstance::default()
    };
    v1::ActivateResponse {
        instances: vec![named],
        ..v1::ActivateResponse::default()
    }
}

fn call(world: &Arc<World>) -> tokio::task::JoinHandle<(u16, String)> {
    let world = world.clone();
    tokio::spawn(async move {
        let response = world.get(HELLO).await;
        (response.status().as_u16(), code(&response).to_owned())
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn warm_functions_go_on_without_any_controller() {
    let (group, mut controllers, world) = three(true).await;
    let (function, instance) = (Uuid::new_v4(), world.instance());
    controllers[0]
        .plane
        .publish(world.route(function, &[&instance]))
        .await;
    until("it is warm", || world.gateway.health().functions == 1).await;
    group.depose();
    for controller in &mut controllers {
        controller.kill();
    }
    until("the gateway has noticed", || {
        !world.gateway.health().controller_connected
    })
    .await;
    for _ in 0..20 {
        let statuses = join_all((0..10).map(|_| call(&world))).await;
        for status in statuses {
            assert_eq!(status.unwrap().0, 200);
        }
    }
    assert!(world.gateway.health().is_ready());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parked_request_waits_for_a_leader_under_one_activation() {
    for hints in [true, false] {
        let (group, mut controllers, world) = three(hints).await;
        let (function, instance) = (Uuid::new_v4(), world.instance());
        for controller in &controllers {
            know(controller, vec![world.route(function, &[])]);
            let answer = ordered(function, &instance);
            controller.plane.on_activate(move |_| Ok(answer.clone()));
        }
        controllers[0].plane.drop_feeds();
        until("the function is known", || {
            world.gateway.health().functions == 1
        })
        .await;
        group.depose();
        controllers[0].kill();
        let parked = call(&world);
        let asked = |number: usize| {
            let asked = group.asked.lock().unwrap();
            asked.iter().filter(|(who, _)| *who == number).count()
        };
        // The two that live have both been asked, more than once.
        until("everybody was asked", || asked(1) > 2 && asked(2) > 2).await;
        assert!(!parked.is_finished());
        world.plane.ready(&instance);
        group.elect(2, &controllers[2], 2);
        assert_eq!(parked.await.unwrap().0, 200, "hints: {hints}");
        let ids: HashSet<_> = group
            .asked
            .lock()
            .unwrap()
            .iter()
            .map(|(_, id)| id.clone())
            .collect();
        assert_eq!(ids.len(), 1, "one activation, however often it was put");
        assert_eq!(controllers[2].plane.activations.lock().unwrap().len(), 1);
        follows(&world, 2).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_was_lost_with_its_leader_is_asked_for_under_the_same_id() {
    let (group, controllers, world) = three(true).await;
    let (function, instance) = (Uuid::new_v4(), world.instance());
    for controller in &controllers {
        know(controller, vec![world.route(function, &[])]);
    }
    controllers[0].plane.drop_feeds();
    until("the function is known", || {
        world.gateway.health().functions == 1
    })
    .await;
    world.plane.ready(&instance);
    // It orders, and is deposed before it can say so.
    controllers[0]
        .plane
        .on_activate(|_| Err(Status::aborted("lost the lead")));
    let answer = ordered(function, &instance);
    controllers[1]
        .plane
        .on_activate(move |_| Ok(answer.clone()));
    let parked = call(&world);
    until("the old leader was asked", || {
        !controllers[0].plane.activations.lock().unwrap().is_empty()
    })
    .await;
    group.elect(1, &controllers[1], 2);
    assert_eq!(parked.await.unwrap().0, 200);
    let id = |number: usize| {
        let activations = controllers[number].plane.activations.lock().unwrap();
        activations[0].activation.clone()
    };
    assert_eq!(id(0), id(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_leader_ordered_and_nobody_started_is_ordered_again() {
    let (group, mut controllers, world) = three(true).await;
    let function = Uuid::new_v4();
    let (never, second) = (world.instance(), world.instance());
    for controller in &controllers {
        know(controller, vec![world.route(function, &[])]);
    }
    controllers[0].plane.drop_feeds();
    until("the function is known", || {
        world.gateway.health().functions == 1
    })
    .await;
    let answer = ordered(function, &never);
    controllers[0]
        .plane
        .on_activate(move |_| Ok(answer.clone()));
    let answer = ordered(function, &second);
    controllers[1]
        .plane
        .on_activate(move |_| Ok(answer.clone()));
    world.plane.ready(&second);
    let parked = call(&world);
    until("the node is asked for the first", || {
        world.plane.awaits.load(SeqCst) == 1
    })
    .await;
    group.elect(1, &controllers[1], 2);
    controllers[0].kill();
    assert_eq!(parked.await.unwrap().0, 200);
    assert_eq!((never.script.calls(), second.script.calls()), (0, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_term_without_an_instance_ends_its_use_and_not_what_runs_in_it() {
    let (group, controllers, world) = three(true).await;
    let function = Uuid::new_v4();
    let (old, new) = (world.instance(), world.instance());
    let route = world.route(function, &[&old]);
    controllers[0].plane.publish(route).await;
    until("it is warm", || world.gateway.health().functions == 1).await;
    old.script.then(Act::Wait);
    let running = call(&world);
    until("it runs", || old.script.calls() == 1).await;
    know(&controllers[1], vec![world.route(function, &[&new])]);
    group.elect(1, &controllers[1], 2);
    controllers[0].plane.drop_feeds();
    follows(&world, 2).await;
    assert_eq!(call(&world).await.unwrap().0, 200);
    old.script.release();
    assert_eq!(running.await.unwrap().0, 200);
    assert_eq!((old.script.calls(), new.script.calls()), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_of_an_older_term_is_not_believed() {
    let (group, controllers, world) = three(true).await;
    let (function, instance) = (Uuid::new_v4(), world.instance());
    group.elect(1, &controllers[1], 5);
    know(&controllers[1], vec![world.route(function, &[&instance])]);
    controllers[0].plane.drop_feeds();
    follows(&world, 5).await;
    // It was away, and believes that it still leads; it knows of no function.
    group.elect(0, &controllers[0], 3);
    controllers[1].plane.drop_feeds();
    let refused = || !world.gateway.health().controller_connected;
    until("the old leader's routes were refused", refused).await;
    for _ in 0..10 {
        assert_eq!(call(&world).await.unwrap().0, 200);
    }
    assert_eq!(world.gateway.health().routes.unwrap().term, 5);
    know(&controllers[2], vec![world.route(function, &[&instance])]);
    group.elect(2, &controllers[2], 6);
    follows(&world, 6).await;
    assert_eq!(call(&world).await.unwrap().0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_feed_follows_to_whoever_an_activation_finds() {
    let (group, controllers, world) = three(true).await;
    let (function, instance) = (Uuid::new_v4(), world.instance());
    for controller in &controllers {
        know(controller, vec![world.route(function, &[])]);
    }
    controllers[0].plane.drop_feeds();
    until("the function is known", || {
        world.gateway.health().functions == 1
    })
    .await;
    world.plane.ready(&instance);
    let answer = ordered(function, &instance);
    controllers[1]
        .plane
        .on_activate(move |_| Ok(answer.clone()));
    // The old leader's feed stays open and silent, as a stopped process' does.
    group.elect(1, &controllers[1], 2);
    assert_eq!(call(&world).await.unwrap().0, 200);
    follows(&world, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn controllers_are_learned_kept_and_enough_without_the_configured_one() {
    let (group, mut controllers) = Group::start(1, false);
    let kept = Arc::new(Mutex::new(Vec::new()));
    let keep = {
        let kept = kept.clone();
        Arc::new(move |list: &[String]| *kept.lock().unwrap() = list.to_vec())
    };
    let later = group.member(1);
    let list = vec![format!("http://{}", later.address)];
    *controllers[0].plane.controllers.lock().unwrap() = list.clone();
    group.elect(0, &controllers[0], 1);
    let addresses = vec![controllers[0].dial()];
    let world = World::with_controllers(Arc::new(Plane::default()), addresses, |config| {
        config.told = Told {
            keep,
            ..Told::default()
        };
    })
    .await;
    until("it was kept", || *kept.lock().unwrap() == list).await;
    group.elect(1, &later, 2);
    controllers[0].kill();
    follows(&world, 2).await;
}
