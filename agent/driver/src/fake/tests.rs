#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::time::Duration;

use coracle_model::{
    Concurrency, Convention, Digest, Env, FunctionId, Handler, InstanceSpec, Memory, MilliCpu,
    Network, RevisionId, Timeout,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};
use uuid::Uuid;

use super::*;

fn order(n: u128) -> LaunchOrder {
    LaunchOrder {
        spec: InstanceSpec {
            id: InstanceId(Uuid::from_u128(n)),
            revision: RevisionId {
                function: FunctionId(Uuid::from_u128(7)),
                number: 1,
            },
            project: "default".parse().unwrap(),
            namespace: "ns".parse().unwrap(),
            function: "hello".parse().unwrap(),
            runtime: "python3.11".parse().unwrap(),
            handler: Handler::new("main", Convention::Http).unwrap(),
            env: Env::default(),
            memory: Memory::from_mib(64).unwrap(),
            cpu: MilliCpu::new(100).unwrap(),
            concurrency: Concurrency::ONE,
            network: Network::None,
            timeout: Timeout::from_secs(5).unwrap(),
            init_timeout: Timeout::from_secs(5).unwrap(),
            code: Digest([1; 32]),
            dependencies: None,
        },
        rootfs: "/".into(),
        code: "/".into(),
        dependencies: None,
    }
}

fn invoke(body: &[u8]) -> Vec<u8> {
    let head = b"\0\0\0\0request\0POST\0/x";
    let mut bytes = Vec::new();
    for (kind, flags, payload) in [(0x01, 0, head.as_slice()), (0x02, 1, body)] {
        bytes.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        bytes.extend_from_slice(&[kind, flags, 0, 0]);
        bytes.extend_from_slice(payload);
    }
    bytes
}

async fn frame(stream: &mut UnixStream) -> io::Result<(u8, u8, Vec<u8>)> {
    let length = stream.read_u32_le().await?;
    let (kind, flags) = (stream.read_u8().await?, stream.read_u8().await?);
    stream.read_u16_le().await?;
    let mut payload = vec![0; length as usize];
    stream.read_exact(&mut payload).await?;
    Ok((kind, flags, payload))
}

#[tokio::test]
async fn an_instance_echoes_and_survives_its_orderer() {
    let dir = tempfile::tempdir().unwrap();
    let driver = FakeDriver::new(dir.path());
    let launched = driver.launch(order(1)).await.unwrap();
    let mut stream = UnixStream::connect(&launched.socket).await.unwrap();
    stream.write_all(&invoke(b"ping")).await.unwrap();
    assert_eq!(frame(&mut stream).await.unwrap().0, 0x81);
    assert_eq!(
        frame(&mut stream).await.unwrap(),
        (0x82, 1, b"ping".to_vec())
    );
    assert_eq!(driver.adopt().await.unwrap().len(), 1);
    let mut exits = driver.exits();
    driver
        .stop(order(1).spec.id, Stop::Gracefully(Duration::from_secs(60)))
        .await
        .unwrap();
    assert_eq!(exits.recv().await.unwrap().reason, ExitReason::Stopped);
    assert!(driver.running().is_empty());
}

#[tokio::test]
async fn a_scripted_end_comes_instead_of_the_answer() {
    let dir = tempfile::tempdir().unwrap();
    let driver = FakeDriver::new(dir.path());
    let script = Script {
        end_at: Some((2, ExitReason::OutOfMemory { limit_mib: 0 })),
        ..Script::default()
    };
    driver.script(&"hello".parse().unwrap(), script);
    let mut exits = driver.exits();
    let launched = driver.launch(order(1)).await.unwrap();
    let mut stream = UnixStream::connect(&launched.socket).await.unwrap();
    stream.write_all(&invoke(b"1")).await.unwrap();
    assert_eq!(frame(&mut stream).await.unwrap().0, 0x81);
    assert_eq!(frame(&mut stream).await.unwrap().2, b"1");
    stream.write_all(&invoke(b"2")).await.unwrap();
    assert!(frame(&mut stream).await.is_err(), "the connection is cut");
    assert_eq!(
        exits.recv().await.unwrap().reason,
        ExitReason::OutOfMemory { limit_mib: 64 }
    );
}

#[tokio::test]
async fn a_second_request_finds_it_busy_and_the_slot_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let driver = FakeDriver::new(dir.path());
    let launched = driver.launch(order(1)).await.unwrap();
    let mut first = UnixStream::connect(&launched.socket).await.unwrap();
    let whole = invoke(b"1");
    // Without the body's end the first invocation keeps its slot.
    let (head, rest) = whole.split_at(whole.len() - 9);
    // HOLD: the acceptance tells that the slot is taken.
    let mut head = head.to_vec();
    head[5] = 2;
    first.write_all(&head).await.unwrap();
    assert_eq!(frame(&mut first).await.unwrap().0, 0x85);
    let mut second = UnixStream::connect(&launched.socket).await.unwrap();
    second.write_all(&invoke(b"2")).await.unwrap();
    assert_eq!(frame(&mut second).await.unwrap().0, 0x83);
    first.write_all(rest).await.unwrap();
    assert_eq!(frame(&mut first).await.unwrap().0, 0x81);
    assert_eq!(frame(&mut first).await.unwrap().2, b"1");
    first.write_all(&invoke(b"3")).await.unwrap();
    assert_eq!(frame(&mut first).await.unwrap().0, 0x81);
}
