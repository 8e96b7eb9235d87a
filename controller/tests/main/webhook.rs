//! Whoever adds machines is told.

use std::{sync::Arc, time::Duration};

use coracle_controller::{CapacityConfig, Webhook};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::Mutex,
};

use crate::{agent::Agent, fixture::*};

type Told = Arc<Mutex<Vec<Value>>>;

/// A receiver that refuses the first call and takes those after it.
async fn receiver() -> (http::Uri, Told) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/capacity", listener.local_addr().unwrap());
    let told = Told::default();
    let calls = Arc::clone(&told);
    tokio::spawn(async move {
        let mut refused = false;
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut text = String::new();
            let body = loop {
                let mut bytes = [0; 4096];
                let read = socket.read(&mut bytes).await.unwrap();
                text.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
                let body = text.split_once("\r\n\r\n").map(|(_, body)| body);
                if let Some(Ok(body)) = body.map(serde_json::from_str::<Value>) {
                    break body;
                }
                assert!(read > 0, "{text}");
            };
            assert!(text.starts_with("POST /capacity HTTP/1.1\r\n"), "{text}");
            let status = if refused {
                "204 No Content"
            } else {
                "503 Busy"
            };
            let answer =
                format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            socket.write_all(answer.as_bytes()).await.unwrap();
            if refused {
                calls.lock().await.push(body);
            }
            refused = true;
        }
    });
    (url.parse().unwrap(), told)
}

#[tokio::test]
async fn a_shortage_and_idle_nodes_are_told_and_a_refused_notice_is_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    let (url, told) = receiver().await;
    let server = Server::with(dir.path(), |config| {
        config.leader.webhook = Some(Webhook {
            capacity: CapacityConfig {
                short_after_ms: 100,
                idle_after_ms: 100,
                repeat_ms: 600_000,
            },
            retry_first: Duration::from_millis(10),
            ..Webhook::new(url)
        });
    })
    .await;
    let (one, two) = (Agent::numbered(1), Agent::numbered(2));
    one.script(|script| script.memory_mib = 200);
    let _one = one.connect(&server.channel).await;
    server.create("hello", 2, 2).await;
    let said = |event: &'static str| {
        let told = Arc::clone(&told);
        async move {
            wait(event, || async {
                let told = told.lock().await;
                let found = told.iter().find(|notice| notice["event"] == event);
                found.cloned().ok_or_else(|| format!("{told:?}"))
            })
            .await
        }
    };
    let short = said("capacity_short").await;
    assert_eq!(short["functions"][0]["function"], "hello");
    let reason = short["functions"][0]["reason"].as_str().unwrap();
    assert!(
        reason.starts_with("no node has room for 128 MiB"),
        "{reason}"
    );
    let described = server.describe("hello").await;
    assert_eq!(described.shortage.as_deref(), Some(reason));

    // Room comes, and more than is needed.
    let _two = two.connect(&server.channel).await;
    let three = Agent::numbered(3);
    let _three = three.connect(&server.channel).await;
    server.serving("hello", 1).await;
    let idle = said("capacity_idle").await;
    let nodes = idle["nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), 1, "{idle}");
    let name = nodes[0]["name"].as_str().unwrap();
    assert!(["node-2", "node-3"].contains(&name), "{idle}");
    server.stop().await;
}
