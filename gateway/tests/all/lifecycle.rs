use std::{sync::Arc, time::Duration};

use coracle_base::{Address, MemoryBus, Shutdown};
use coracle_gateway::Config;

use crate::support::{Act, PATIENCE, World, until};

const HELLO: &str = "/fn/default/ns/hello";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn warm_functions_go_on_while_the_feed_is_broken_and_updates_follow_after_it() {
    let world = World::new(|_| ()).await;
    let (function, one) = world.warm(|_| ()).await;
    world.plane.drop_feeds();
    until("the gateway has noticed", || {
        !world.gateway.health().controller_connected
    })
    .await;
    assert!(world.gateway.health().is_ready());
    assert_eq!(world.get(HELLO).await.status(), 200);
    until("the feed is followed again", || {
        world.gateway.health().controller_connected
    })
    .await;
    let two = world.instance();
    world.publish(world.route(function, &[&two])).await;
    assert_eq!(world.get(HELLO).await.status(), 200);
    assert_eq!((one.script.calls(), two.script.calls()), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_without_routes_says_so() {
    let config = Config::new(vec![Address::Memory(MemoryBus::new())]);
    let gateway = config.bind().await.unwrap();
    let (address, handle, shutdown) = (gateway.invoke_address(), gateway.handle(), Shutdown::new());
    let run = tokio::spawn({
        let shutdown = shutdown.clone();
        async move { gateway.run(shutdown).await }
    });
    assert!(!handle.health().is_ready());
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut client, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get(HELLO)
        .header("host", "x")
        .body(http_body_util::Empty::<bytes::Bytes>::new())
        .unwrap();
    let response = client.send_request(request).await.unwrap();
    assert_eq!(response.headers()["x-coracle-error"], "no_controller");
    drop(client);
    shutdown.request();
    tokio::time::timeout(PATIENCE, run)
        .await
        .expect("it ends")
        .unwrap()
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_finishes_what_runs_and_takes_nothing_new() {
    let mut world = World::new(|_| ()).await;
    let (_, instance) = world.warm(|_| ()).await;
    let run = world.run.take().unwrap();
    let world = Arc::new(world);
    instance.script.then(Act::Wait);
    let running = tokio::spawn({
        let world = world.clone();
        async move { world.get(HELLO).await.status() }
    });
    until("it runs", || instance.script.calls() == 1).await;
    world.shutdown.request();
    let refused = tokio::time::timeout(PATIENCE, async {
        while tokio::net::TcpStream::connect(world.invoke).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    refused.await.expect("new connections are refused");
    assert!(!run.is_finished());
    instance.script.release();
    assert_eq!(running.await.unwrap(), 200);
    tokio::time::timeout(PATIENCE, run)
        .await
        .expect("it ends")
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_a_drain_it_is_not_ready_serves_on_and_gives_up_kept_connections() {
    let mut world = World::new(|c| c.limits.drain_delay = PATIENCE * 10).await;
    let (_, instance) = world.warm(|_| ()).await;
    let run = world.run.take().unwrap();
    assert!(world.gateway.health().is_ready());
    let stream = tokio::net::TcpStream::connect(world.invoke).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut client, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = || {
        http::Request::get(HELLO)
            .header("host", "x")
            .body(http_body_util::Empty::<bytes::Bytes>::new())
            .unwrap()
    };
    let response = client.send_request(request()).await.unwrap();
    assert!(!response.headers().contains_key("connection"));
    drop(response);
    world.shutdown.request();
    until("it is not ready", || !world.gateway.health().is_ready()).await;
    client.ready().await.unwrap();
    let response = client.send_request(request()).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["connection"], "close");
    drop(response);
    let closed = tokio::time::timeout(PATIENCE, connection).await;
    closed.expect("the connection is closed").unwrap().unwrap();
    // New ones are served all the same.
    assert_eq!(world.get(HELLO).await.status(), 200);
    assert_eq!(instance.script.calls(), 3);
    world.gateway.stop_now();
    tokio::time::timeout(PATIENCE, run)
        .await
        .expect("it ends")
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_grace_of_a_drain_is_bounded() {
    let mut world = World::new(|c| c.limits.drain_grace = Duration::from_millis(100)).await;
    let (_, instance) = world.warm(|_| ()).await;
    let run = world.run.take().unwrap();
    instance.script.then(Act::Wait);
    let request = tokio::spawn({
        let address = world.invoke;
        async move {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            let head = format!("GET {HELLO} HTTP/1.1\r\nhost: x\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            // Cut or reset, as the kernel pleases.
            let _ = stream.read_to_end(&mut answer).await;
            answer
        }
    });
    until("it runs", || instance.script.calls() == 1).await;
    world.shutdown.request();
    tokio::time::timeout(PATIENCE, run)
        .await
        .expect("it ends")
        .unwrap();
    assert!(request.await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_configuration_is_refused_before_anything_is_opened() {
    let error = Config::new(vec![]).bind().await.unwrap_err();
    assert!(error.to_string().contains("controller"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_listener_has_the_facades_and_none_of_the_functions() {
    let world = World::new(|_| ()).await;
    let (_, instance) = world.warm(|_| ()).await;
    let ask = |path: &str| {
        http::Request::get(path)
            .body(http_body_util::Full::default())
            .unwrap()
    };
    let response = world.ask_api(ask(HELLO)).await;
    assert_eq!(response.status(), 404);
    assert!(response.headers().contains_key("x-request-id"));
    let response = world.ask_api(ask("/cloud/v1/faas/namespaces/1/1")).await;
    assert_eq!(response.status(), 401, "a management call without a token");
    assert_eq!(instance.script.calls(), 0);
}
