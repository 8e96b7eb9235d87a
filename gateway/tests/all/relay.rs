//! Instances on other machines.

use std::sync::{Arc, atomic::Ordering::SeqCst};

use coracle_identity::Component;
use coracle_model::NodeId;
use coracle_proto::relay::Answer;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use uuid::Uuid;

use crate::{
    ca::Ca,
    node::Node,
    support::{Act, Instance, PATIENCE, World, code, id_bytes, until},
};

const HELLO: &str = "/fn/default/ns/hello";

/// A warm function with these instances.
async fn serving(world: &World, instances: &[&Instance]) -> Uuid {
    let function = Uuid::new_v4();
    world.publish(world.route(function, instances)).await;
    function
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_relayed_connection_serves_one_request_after_the_other() {
    let world = World::new(|c| c.threads = 1).await;
    let node = Node::new(&world, "b");
    let instance = node.instance(&world);
    serving(&world, &[&instance]).await;
    for _ in 0..5 {
        assert_eq!(world.get(HELLO).await.status(), 200);
    }
    // Above 64 KiB a body is held back until the instance has taken a slot.
    for size in [10, 60_000, 1_000_000] {
        instance.script.then(Act::Echo);
        let body: Vec<u8> = (0..size).map(|n: u32| n.to_be_bytes()[2]).collect();
        let response = world.post(HELLO, body.clone()).await;
        assert_eq!(response.status(), 200);
        assert!(response.body() == &body, "{size} bytes come back as sent");
    }
    assert_eq!(node.asked(), 1, "all over one connection");
    assert_eq!(instance.script.connections.load(SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_refuses_goes_to_another_instance() {
    for (answer, named_again) in [
        (Some(Answer::Unknown), false),
        (Some(Answer::Ending), true),
        (Some(Answer::Full), true),
        (None, true),
    ] {
        let world = World::new(|c| c.threads = 1).await;
        let (mut refusing, near) = (Node::new(&world, "b"), world.instance());
        let far = refusing.instance(&world);
        match answer {
            Some(answer) => refusing.refuse(answer),
            None => refusing.kill(),
        }
        near.script.then(Act::Wait);
        let world = Arc::new(world);
        serving(&world, &[&near, &far]).await;
        let first = tokio::spawn({
            let world = world.clone();
            async move { world.get(HELLO).await.status() }
        });
        until("one of them runs it", || near.script.calls() == 1).await;
        // Only the other one is free, and it cannot be had: so this one waits for the first.
        let second = tokio::spawn({
            let world = world.clone();
            async move { world.get(HELLO).await.status() }
        });
        until("the second is parked", || {
            world.gateway.health().queued == 1
        })
        .await;
        near.script.release();
        assert_eq!(first.await.unwrap(), 200, "{answer:?}");
        assert_eq!(second.await.unwrap(), 200, "{answer:?}");
        assert_eq!((near.script.calls(), far.script.calls()), (2, 0));
        if answer.is_some() {
            let asked = refusing.asked();
            assert!(asked >= 1, "{answer:?}");
            assert!(named_again || asked == 1, "it is forgotten after one word");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn busy_passes_through_and_the_request_goes_elsewhere() {
    let world = World::new(|c| c.threads = 1).await;
    let node = Node::new(&world, "b");
    let (one, two) = (node.instance(&world), node.instance(&world));
    for instance in [&one, &two] {
        instance.script.then(Act::Busy);
    }
    serving(&world, &[&one, &two]).await;
    let response = world.post(HELLO, vec![7; 50_000]).await;
    assert_eq!(response.status(), 200);
    assert_eq!(one.script.calls() + two.script.calls(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_dies_in_the_middle_is_named_and_nothing_is_repeated() {
    for back in [false, true] {
        let world = Arc::new(World::new(|_| ()).await);
        let mut node = Node::new(&world, "node-b");
        let (far, spare) = (node.instance(&world), world.instance());
        far.script.then(Act::Wait);
        let function = serving(&world, &[&far]).await;
        world.plane.ready(&far);
        let call = tokio::spawn({
            let world = world.clone();
            async move { world.get(HELLO).await }
        });
        until("it runs", || far.script.calls() == 1).await;
        world.publish(world.route(function, &[&far, &spare])).await;
        node.kill();
        if back {
            node.start();
        }
        let response = call.await.unwrap();
        assert_eq!(response.status(), 502);
        assert_eq!(code(&response), "relay_failed");
        let text = String::from_utf8_lossy(response.body()).into_owned();
        assert!(text.contains(node.name), "{text}");
        assert_eq!(text.contains("goes on"), back, "{text}");
        assert_eq!((far.script.calls(), spare.script.calls()), (1, 0));
        assert_eq!(
            world.get(HELLO).await.status(),
            200,
            "the next one is served"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_dies_behind_its_agent_is_told_from_an_agent_that_dies() {
    let world = World::new(|_| ()).await;
    let node = Node::new(&world, "b");
    let far = node.instance(&world);
    far.script.then(Act::Die);
    serving(&world, &[&far]).await;
    let killed = coracle_model::ExitReason::OutOfMemory { limit_mib: 64 };
    world.plane.settle(
        far.id,
        coracle_proto::v1::await_instance_response::Outcome::Failed(killed.into()),
    );
    let response = world.get(HELLO).await;
    assert_eq!(code(&response), "instance_failed");
    let text = String::from_utf8_lossy(response.body()).into_owned();
    assert!(text.contains("64"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_has_begun_is_cut_and_never_completed() {
    let world = World::new(|_| ()).await;
    let mut node = Node::new(&world, "b");
    let far = node.instance(&world);
    far.script.then(Act::Cut);
    serving(&world, &[&far]).await;
    let mut client = TcpStream::connect(world.invoke).await.unwrap();
    let head = format!("GET {HELLO} HTTP/1.1\r\nhost: x\r\n\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"half\r\n") {
        assert_ne!(client.read_buf(&mut answer).await.unwrap(), 0);
    }
    node.kill();
    // Cut or reset, as the kernel pleases.
    let _ = tokio::time::timeout(PATIENCE, client.read_to_end(&mut answer))
        .await
        .expect("the connection ends");
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.ends_with("half\r\n"), "{answer}");
    assert_eq!(far.script.calls(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadline_and_departure_reach_an_instance_on_another_machine() {
    let world = World::new(|_| ()).await;
    let node = Node::new(&world, "b");
    let far = node.instance(&world);
    let function = Uuid::new_v4();
    let mut route = world.route(function, &[&far]);
    route.timeout_secs = 1;
    world.publish(route).await;
    far.script.then(Act::Wait);
    let response = world.get(HELLO).await;
    assert_eq!(code(&response), "timeout");
    assert!(far.script.last().millis <= 1_000, "the deadline goes along");
    let kills = world.plane.kills.lock().unwrap().clone();
    assert_eq!(kills, [id_bytes(far.id)]);

    let far = node.instance(&world);
    world.publish(world.route(function, &[&far])).await;
    far.script.then(Act::Hang);
    let mut client = TcpStream::connect(world.invoke).await.unwrap();
    let head = format!("GET {HELLO} HTTP/1.1\r\nhost: x\r\n\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
    until("it runs", || far.script.calls() == 1).await;
    drop(client);
    until("it hears of it", || far.script.cancelled.load(SeqCst) == 1).await;
    far.script.release();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_connection_that_its_agent_closed_is_replaced_before_anything_is_sent() {
    let world = World::new(|c| c.threads = 1).await;
    let mut node = Node::new(&world, "b");
    let far = node.instance(&world);
    serving(&world, &[&far]).await;
    assert_eq!(world.get(HELLO).await.status(), 200);
    node.kill();
    node.start();
    // The end of the old connection is on this machine's loopback: it is there with the listener.
    assert_eq!(world.get(HELLO).await.status(), 200);
    assert_eq!((node.asked(), far.script.calls()), (2, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_a_node_has_to_be_the_one_that_the_routes_name() {
    let ca = Ca::new();
    let own = ca.tls(Some(Component::Gateway(Uuid::from_u128(1))));
    let world = World::new(|c| (c.tls, c.threads) = (Some(own), 1)).await;
    let agent = |node: Uuid| Some(ca.tls(Some(Component::Agent(NodeId(node)))));
    let [right, wrong, other] = [1, 2, 3].map(Uuid::from_u128);
    // The second shows another node's certificate.
    let mut honest = Node::shown(&world, "a", right, agent(right));
    let liar = Node::shown(&world, "b", wrong, agent(other));
    let (far, never) = (honest.instance(&world), liar.instance(&world));
    serving(&world, &[&never, &far]).await;
    for size in [10, 50_000, 300_000] {
        far.script.then(Act::Echo);
        let response = world.post(HELLO, vec![5; size]).await;
        assert_eq!(response.status(), 200, "{size}");
        assert_eq!(response.body().len(), size);
    }
    assert_eq!((liar.asked(), never.script.calls()), (0, 0));
    assert_eq!(honest.asked(), 1, "one connection for all");
    far.script.then(Act::Wait);
    let world = Arc::new(world);
    let call = tokio::spawn({
        let world = world.clone();
        async move { world.get(HELLO).await }
    });
    until("it runs", || far.script.calls() == 4).await;
    honest.kill();
    assert_eq!(code(&call.await.unwrap()), "relay_failed");
}
