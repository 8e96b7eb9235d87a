//! Hostile input on the listeners: a 4xx or a closed connection, never a panic, never unbounded
//! memory. (Field by field limits are tested in the facades' own suites.)

use std::time::Duration;

use coracle_tests::Server;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// Sends bytes and returns the head of whatever comes back before the connection closes.
async fn raw(address: &str, bytes: &[u8]) -> String {
    let host = address.trim_start_matches("http://");
    let mut stream = TcpStream::connect(host).await.expect("connect");
    // The server may close before everything is written: that is an answer too.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(Ok(n)) = timeout(Duration::from_secs(15), stream.read(&mut buffer)).await {
        answer.extend_from_slice(&buffer[..n]);
        if n == 0 || answer.windows(4).any(|end| end == b"\r\n\r\n") {
            break;
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn hostile_http_is_refused_on_both_listeners_and_the_server_goes_on() {
    let server = Server::start().await;
    server
        .deploy("good", "def main():\n    return 'x'\n", json!({}))
        .await;
    let many = format!(
        "GET /fn/default/default/good HTTP/1.1\r\nhost: x\r\n{}\r\n",
        (0..10_000)
            .map(|n| format!("h{n}: v\r\n"))
            .collect::<String>()
    );
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("ten thousand headers", many.into_bytes()),
        ("no HTTP", b"\x16\x03\x01 hello\r\n\r\n".to_vec()),
        ("two lengths", b"POST /fn/default/default/good HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab".to_vec()),
        ("bad chunk size", b"POST /fn/default/default/good HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n".to_vec()),
        ("100 MB body", b"POST /fn/default/default/good HTTP/1.1\r\nhost: x\r\ncontent-length: 104857600\r\n\r\n".to_vec()),
        ("very long line", [b"GET /".to_vec(), vec![b'a'; 1 << 20], b" HTTP/1.1\r\n\r\n".to_vec()].concat()),
    ];
    for listener in ["invoke", "api"] {
        for (what, bytes) in &cases {
            let line = raw(&server.address(listener), bytes).await;
            let fine = line.is_empty() || line.starts_with("HTTP/1.1 4");
            assert!(fine, "{what} on {listener}: {line}");
            // Whoever answered: it says that it was not the function, and under which id.
            for header in ["x-coracle-error:", "x-request-id:"] {
                let marked = line.is_empty() || line.to_ascii_lowercase().contains(header);
                assert!(marked, "{what} on {listener} lacks {header} {line}");
            }
        }
    }
    // A body that ends early, and JSON that is none.
    let address = server.address("api");
    let line = raw(
        &address,
        b"POST /api/v1/projects HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{\"a\"",
    );
    let truncated = timeout(Duration::from_secs(20), line)
        .await
        .unwrap_or_default();
    assert!(
        truncated.is_empty() || truncated.starts_with("HTTP/1.1 4"),
        "{truncated}"
    );
    assert_eq!(server.call("good").await.ok().text(), "x");
}

#[tokio::test]
async fn a_large_body_is_refused_without_being_kept() {
    let server = Server::start().await;
    let code = "def main(event=None, context=None):\n    return 'x'\n";
    server.deploy("sink", code, json!({})).await;
    let memory = |server: &Server| -> u64 {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", server.gateway_pid()));
        let pages = statm
            .expect("statm")
            .split(' ')
            .nth(1)
            .and_then(|p| p.parse::<u64>().ok());
        pages.expect("resident pages") * 4096
    };
    server.call("sink").await.ok();
    let before = memory(&server);
    for _ in 0..5 {
        let url = server.url("sink");
        // Refused from its length alone, or cut while it is sent.
        let sent = server
            .public
            .try_send(http::Method::POST, &url, &[], vec![0; 100 << 20])
            .await;
        if let Ok(answer) = sent {
            assert_eq!(answer.status, 413, "{}", answer.text());
        }
    }
    let grown = memory(&server).saturating_sub(before);
    assert!(
        grown < 64 << 20,
        "{grown} bytes more after 500 MB of refused bodies"
    );
    assert_eq!(server.call("sink").await.ok().text(), "x");
}

/// Nothing but the data directory is left of a start that could not be.
#[tokio::test]
async fn an_address_that_is_taken_leaves_no_container_runtime_behind() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let dir = tempfile::tempdir().expect("tempdir");
    let data = dir.path().join("data");
    let binary = std::env::var_os("CORACLE_TEST_BINARY").expect("tests/run.sh sets it");
    let ended = std::process::Command::new(binary)
        .args([
            "up",
            "--invoke",
            &address,
            "--api=127.0.0.1:0",
            "--admin=127.0.0.1:0",
        ])
        .arg("--data")
        .arg(&data)
        .output()
        .expect("started");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains(&address) && said.contains("in use"), "{said}");
    assert!(data.exists() && !data.join("containerd").exists(), "{said}");
}
