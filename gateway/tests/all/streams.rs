use std::{convert::Infallible, sync::atomic::Ordering::SeqCst, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::Request;
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{Act, PATIENCE, World, code, until};

const HELLO: &str = "/fn/default/ns/hello";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_four_megabytes_go_both_ways_at_once() {
    let world = World::new(|c| c.limits.body_max = 64 << 20).await;
    let (_, instance) = world.warm(|_| ()).await;
    instance.script.then(Act::Echo);
    let stream = TcpStream::connect(world.invoke).await.unwrap();
    let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let pieces = (0..384u32).map(|n| {
        let byte = n.to_le_bytes()[0];
        Ok::<_, Infallible>(Frame::data(Bytes::from(vec![byte; 64 << 10])))
    });
    let body = StreamBody::new(stream::iter(pieces));
    let request = Request::post(HELLO).header("host", "x").body(body).unwrap();
    let exchange = async {
        let mut body = client.send_request(request).await.unwrap().into_body();
        let (mut total, mut sum) = (0usize, 0u64);
        while let Some(frame) = body.frame().await {
            let data = frame.unwrap().into_data().unwrap();
            total += data.len();
            sum += data.iter().map(|b| u64::from(*b)).sum::<u64>();
        }
        (total, sum)
    };
    let (total, sum) = tokio::time::timeout(PATIENCE, exchange)
        .await
        .expect("no lock-up");
    assert_eq!(total, 24 << 20);
    assert_eq!(
        sum,
        (0..384u64).map(|n| (n % 256) * (64 << 10)).sum::<u64>()
    );
    assert_eq!(world.get(HELLO).await.status(), 200, "the slot came back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_may_begin_before_the_request_has_ended() {
    let world = World::new(|_| ()).await;
    let (_, instance) = world.warm(|_| ()).await;
    instance.script.then(Act::Echo);
    let stream = TcpStream::connect(world.invoke).await.unwrap();
    let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let (send, receive) = tokio::sync::mpsc::channel::<Bytes>(1);
    let body = tokio_stream::wrappers::ReceiverStream::new(receive)
        .map(|data| Ok::<_, Infallible>(Frame::data(data)));
    let request = Request::post(HELLO)
        .header("host", "x")
        .body(StreamBody::new(body))
        .unwrap();
    let dialogue = async {
        let mut body = client.send_request(request).await.unwrap().into_body();
        for word in ["one", "two", "three"] {
            send.send(Bytes::from(word)).await.unwrap();
            let heard = body.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(heard, word);
        }
        drop(send);
        assert!(body.frame().await.is_none());
    };
    tokio::time::timeout(PATIENCE, dialogue)
        .await
        .expect("each word is echoed at once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_answer_is_never_completed() {
    let world = World::new(|_| ()).await;
    let (_, instance) = world.warm(|_| ()).await;
    instance.script.then(Act::Cut);
    let mut client = TcpStream::connect(world.invoke).await.unwrap();
    client
        .write_all(b"GET /fn/default/ns/hello HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"half\r\n") {
        let read = client.read_buf(&mut answer);
        assert_ne!(
            tokio::time::timeout(PATIENCE, read).await.unwrap().unwrap(),
            0
        );
    }
    instance.script.release();
    client.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("half\r\n"),
        "{answer}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_held_to_its_own_length() {
    let world = World::new(|_| ()).await;
    let (_, instance) = world.warm(|_| ()).await;
    instance
        .script
        .then(Act::Answer(200, "content-length\x0012", vec![]));
    let head = Request::head(HELLO).body(Full::default()).unwrap();
    let response = world.send(head).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-length"], "12");
    instance.script.then(Act::Answer(204, "", vec![]));
    let response = world.get(HELLO).await;
    assert_eq!(
        (response.status().as_u16(), response.body().len()),
        (204, 0)
    );
    instance.script.then(Act::Answer(304, "etag\0a", vec![]));
    assert_eq!(world.get(HELLO).await.status(), 304);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_is_cancelled_and_its_slot_stays_taken_until_the_end() {
    let world = World::new(|_| ()).await;
    let (_, instance) = world.warm(|_| ()).await;
    instance.script.then(Act::Hang);
    let mut client = TcpStream::connect(world.invoke).await.unwrap();
    client
        .write_all(b"GET /fn/default/ns/hello HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    until("it runs", || instance.script.calls() == 1).await;
    drop(client);
    until("it hears of it", || {
        instance.script.cancelled.load(SeqCst) == 1
    })
    .await;
    let mut next = Box::pin(world.get(HELLO));
    let early = tokio::time::timeout(Duration::from_millis(150), &mut next).await;
    assert!(early.is_err(), "the slot is still taken");
    assert_eq!(instance.script.calls(), 1);
    instance.script.release();
    assert_eq!(next.await.status(), 200);
    assert!(world.plane.kills.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_runs_past_its_deadline_is_killed_and_then_answered() {
    let world = World::new(|_| ()).await;
    let (_, instance) = world.warm(|route| route.timeout_secs = 1).await;
    instance.script.then(Act::Wait);
    let response = world.get(HELLO).await;
    assert_eq!(
        (response.status().as_u16(), code(&response)),
        (504, "timeout")
    );
    let killed = world.plane.kills.lock().unwrap().clone();
    assert_eq!(killed, [crate::support::id_bytes(instance.id)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_more_requests_in_it_an_instance_finishes_the_others_first() {
    let world = std::sync::Arc::new(World::new(|_| ()).await);
    let (_, instance) = world
        .warm(|route| {
            route.timeout_secs = 2;
            route.concurrency = 2;
        })
        .await;
    instance.script.then(Act::Wait);
    let late = tokio::spawn({
        let world = world.clone();
        async move { world.get(HELLO).await }
    });
    until("one runs", || instance.script.calls() == 1).await;
    // Nothing is waited for: the two deadlines have to lie apart.
    tokio::time::sleep(Duration::from_millis(500)).await;
    instance.script.then(Act::Wait);
    let other = tokio::spawn({
        let world = world.clone();
        async move { world.get(HELLO).await }
    });
    until("both run", || instance.script.calls() == 2).await;
    let late = late.await.unwrap();
    assert_eq!(code(&late), "timeout");
    assert!(
        world.plane.kills.lock().unwrap().is_empty(),
        "the other one still runs"
    );
    instance.script.release();
    instance.script.release();
    let _ = other.await.unwrap();
    until("it is killed once nothing else runs", || {
        world.plane.kills.lock().unwrap().len() == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelined_requests_are_answered_in_order() {
    let world = World::new(|_| ()).await;
    let (_, instance) = world.warm(|_| ()).await;
    for word in ["first", "second", "third"] {
        instance
            .script
            .then(Act::Answer(200, "", word.as_bytes().to_vec()));
    }
    let mut client = TcpStream::connect(world.invoke).await.unwrap();
    let one = "GET /fn/default/ns/hello HTTP/1.1\r\nhost: x\r\n\r\n";
    let last = "GET /fn/default/ns/hello HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    client
        .write_all(format!("{one}{one}{last}").as_bytes())
        .await
        .unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    let at = |word: &str| {
        answer
            .find(word)
            .unwrap_or_else(|| panic!("{word}: {answer}"))
    };
    assert!(at("first") < at("second") && at("second") < at("third"));
}
