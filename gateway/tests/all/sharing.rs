//! Several gateways with the same instances.

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::time::Instant;

use crate::support::{Instance, World};

const HELLO: &str = "/fn/default/ns/hello";

/// Three gateways that all route to these instances, which have one slot each.
async fn three(instances: usize) -> (Vec<Arc<World>>, Vec<Instance>) {
    let mut worlds = Vec::new();
    for _ in 0..3 {
        let world = World::new(|c| {
            c.threads = 1;
            c.limits.queue_per_function = 1_000;
        });
        worlds.push(Arc::new(world.await));
    }
    let instances: Vec<_> = (0..instances).map(|_| worlds[0].instance()).collect();
    let function = uuid::Uuid::new_v4();
    for instance in &instances {
        instance.script.slots.store(1, SeqCst);
    }
    for world in &worlds {
        let all: Vec<_> = instances.iter().collect();
        let mut route = world.route(function, &all);
        route.timeout_secs = 60;
        world.publish(route).await;
    }
    (worlds, instances)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_instance_has_two_requests_at_once_and_none_fails_for_it() {
    let (worlds, instances) = three(2).await;
    let calls = (0..24).map(|client| {
        let world = worlds[client % 3].clone();
        tokio::spawn(async move {
            for _ in 0..40 {
                assert_eq!(world.get(HELLO).await.status(), 200);
            }
        })
    });
    for call in join_all(calls).await {
        call.unwrap();
    }
    let served: usize = instances.iter().map(|i| i.script.calls()).sum();
    assert_eq!(served, 24 * 40, "each once");
    let refused: usize = instances
        .iter()
        .map(|i| i.script.refused.load(SeqCst))
        .sum();
    assert!(refused > 0, "they did meet");
    for instance in &instances {
        assert_eq!(instance.script.most_running.load(SeqCst), 1);
    }
    // Twelve clients for each slot: somebody always waits, and the leader hears of it.
    for world in &worlds {
        let asked = world.plane.activations.lock().unwrap();
        assert!(asked.iter().any(|activation| activation.parked > 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_with_a_long_queue_lets_the_others_have_a_turn() {
    let (worlds, instances) = three(1).await;
    // The first one always has requests waiting; none of the others ever has more than one.
    let crowd: Vec<_> = (0..30)
        .map(|_| {
            let world = worlds[0].clone();
            tokio::spawn(async move {
                loop {
                    world.get(HELLO).await;
                }
            })
        })
        .collect();
    crate::support::until("the crowd is served", || instances[0].script.calls() > 100).await;
    let mut slowest = Duration::ZERO;
    for _ in 0..10 {
        for world in &worlds[1..] {
            let began = Instant::now();
            assert_eq!(world.get(HELLO).await.status(), 200);
            slowest = slowest.max(began.elapsed());
        }
    }
    crowd.iter().for_each(tokio::task::JoinHandle::abort);
    // A turn and a pause; without them it is as long as the crowd keeps coming.
    assert!(slowest < Duration::from_secs(10), "waited {slowest:?}");
}
