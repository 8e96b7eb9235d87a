use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::Request;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper_util::rt::TokioIo;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::support::{World, code, until};

const HELLO: &str = "/fn/default/ns/hello";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_too_large_is_refused_by_its_word_or_where_it_passes_the_limit() {
    let world = World::new(|c| c.limits.body_max = 100_000).await;
    let (_, instance) = world.warm(|_| ()).await;
    let announced =
        format!("POST {HELLO} HTTP/1.1\r\nhost: x\r\ncontent-length: 104857600\r\n\r\n");
    let answer = world.raw(announced.as_bytes()).await;
    assert!(
        answer.starts_with("HTTP/1.1 413") && answer.contains("payload_too_large"),
        "{answer}"
    );
    assert_eq!(instance.script.calls(), 0);

    let stream = TcpStream::connect(world.invoke).await.unwrap();
    let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    // One byte too many, and then nothing more: no unread byte may turn the close into a reset.
    let pieces =
        [60_000, 40_001].map(|n| Ok::<_, Infallible>(Frame::data(Bytes::from(vec![0; n]))));
    let body = StreamBody::new(stream::iter(pieces).chain(stream::pending()));
    let request = Request::post(HELLO).header("host", "x").body(body).unwrap();
    let response = client.send_request(request).await.unwrap();
    assert_eq!(response.status(), 413);
    let _ = response.into_body().collect().await;
    until("the instance heard of it", || instance.script.calls() == 1).await;
    assert!(
        world
            .post(HELLO, vec![1; 90_000])
            .await
            .status()
            .is_success()
    );
    assert_eq!(instance.script.last().body.len(), 90_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_heads_end_in_a_4xx_or_a_closed_connection() {
    let world = World::new(|c| c.limits.head_timeout = Duration::from_millis(300)).await;
    let (_, instance) = world.warm(|_| ()).await;
    let many: String = (0..10_000).map(|n| format!("h{n}: v\r\n")).collect();
    let big = format!("x: {}\r\n", "a".repeat(100_000));
    let line = format!("POST {HELLO} HTTP/1.1\r\nhost: x\r\n");
    let cases = [
        "\x16\x03\x01\x02\x00".to_owned(),
        "GET\r\n\r\n".to_owned(),
        format!("{line}{many}\r\n"),
        format!("{line}{big}\r\n"),
        format!("{line}content-length: 1\r\ncontent-length: 2\r\n\r\nxx"),
        format!("{line}content-length: -1\r\n\r\n"),
        format!("{line}transfer-encoding: gzip\r\n\r\n"),
        format!("POST {HELLO} HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!("{line}host: y\r\n\r\n"),
        format!("{line}bad header: 1\r\n\r\n"),
        format!("{line}transfer-encoding: chunked\r\n\r\nzz\r\n"),
        // Slow: never finished.
        line.clone(),
    ];
    for case in cases {
        let answer = world.raw(case.as_bytes()).await;
        let shown = &case[..case.len().min(120)];
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
            "{shown:?}: {answer}"
        );
        if !answer.is_empty() {
            let lower = answer.to_ascii_lowercase();
            for header in ["x-coracle-error: ", "x-request-id: "] {
                assert!(lower.contains(header), "{shown:?} lacks {header}: {answer}");
            }
        }
    }
    assert_eq!(instance.script.calls(), 0);
    assert_eq!(world.get(HELLO).await.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_length_beside_chunks_closes_the_connection_after_the_one_request() {
    let world = World::new(|_| ()).await;
    let (_, instance) = world.warm(|_| ()).await;
    let smuggled = format!(
        "POST {HELLO} HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n\
         0\r\n\r\nGET {HELLO}/smuggled HTTP/1.1\r\nhost: x\r\n\r\n"
    );
    let answer = world.raw(smuggled.as_bytes()).await;
    assert!(answer.matches("HTTP/1.1").count() <= 1, "{answer}");
    assert!(instance.script.calls() <= 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_stops_arriving_holds_no_slot() {
    let world = World::new(|c| c.limits.body_idle_timeout = Duration::from_millis(200)).await;
    let (_, instance) = world.warm(|_| ()).await;
    let partial = format!("POST {HELLO} HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc");
    let mut slow = TcpStream::connect(world.invoke).await.unwrap();
    slow.write_all(partial.as_bytes()).await.unwrap();
    assert_eq!(
        world.get(HELLO).await.status(),
        200,
        "another request is not held up"
    );
    let answer = world.raw(partial.as_bytes()).await;
    assert!(
        answer.starts_with("HTTP/1.1 408") && answer.contains("request_timeout"),
        "{answer}"
    );
    assert_eq!(instance.script.calls(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connect_is_refused() {
    let world = World::new(|_| ()).await;
    let answer = world
        .raw(b"CONNECT example.com:443 HTTP/1.1\r\nhost: x\r\n\r\n")
        .await;
    assert!(answer.starts_with("HTTP/1.1 501"), "{answer}");
    let response = world.get("/fn/none/none/none").await;
    assert_eq!(code(&response), "not_found");
}
