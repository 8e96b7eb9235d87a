//! The few frames of `runtimes/CONTRACT.md` that a driver speaks: it claims a shim and sees that
//! it lives. Invocations are the gateway's.

use std::io;

use coracle_model::InstanceSpec;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use crate::spec;

const CLAIM: u8 = 0x10;
const PING: u8 = 0x11;
const READY: u8 = 0x90;
const FAILED: u8 = 0x91;
const PONG: u8 = 0x92;
const PAYLOAD_MAX: u32 = 1 << 20;
/// Lines of a traceback that are kept in a reason; the whole of it is in the logs.
const TRACE_LINES: usize = 8;

/// What a shim answered to a claim.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Claimed {
    Ready,
    /// The code could not be loaded, in the words of its language.
    Failed(String),
}

/// Asks for a sign of life.
pub(crate) async fn ping(stream: &mut UnixStream) -> io::Result<()> {
    stream.write_all(&frame(PING, b"")).await?;
    match read(stream).await? {
        (PONG, _) => Ok(()),
        (kind, _) => Err(unexpected(kind)),
    }
}

/// Gives a shim its function and waits until its code is loaded.
pub(crate) async fn claim(stream: &mut UnixStream, message: &[u8]) -> io::Result<Claimed> {
    stream.write_all(&frame(CLAIM, message)).await?;
    match read(stream).await? {
        (READY, _) => Ok(Claimed::Ready),
        (FAILED, payload) => Ok(Claimed::Failed(failure(&payload))),
        (kind, _) => Err(unexpected(kind)),
    }
}

/// The payload of a claim.
pub(crate) fn claim_message(spec: &InstanceSpec, dependencies: bool) -> Vec<u8> {
    let env: serde_json::Map<String, Value> = spec
        .env
        .iter()
        .map(|(name, value)| (name.to_owned(), value.into()))
        .collect();
    let message = json!({
        "function": {
            "project": spec.project.as_str(),
            "namespace": spec.namespace.as_str(),
            "name": spec.function.as_str(),
            "id": spec.revision.function.to_string(),
            "revision": spec.revision.number,
        },
        "instance": spec.id.to_string(),
        "runtime": spec.runtime.as_str(),
        "code": spec::CODE,
        "deps": dependencies.then_some(spec::DEPENDENCIES),
        "entry": spec.handler.entry,
        "convention": spec.handler.convention,
        "env": env,
        "memory_mib": spec.memory.mib(),
        "cpu_millis": spec.cpu.get(),
        "timeout_secs": spec.timeout.secs(),
        "concurrency": spec.concurrency.get(),
    });
    message.to_string().into_bytes()
}

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a claim is bounded by the model's limits");
    let mut bytes = Vec::with_capacity(8 + payload.len());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&[kind, 0, 0, 0]);
    bytes.extend_from_slice(payload);
    bytes
}

async fn read(stream: &mut UnixStream) -> io::Result<(u8, Vec<u8>)> {
    let mut header = [0; 8];
    stream.read_exact(&mut header).await?;
    let [a, b, c, d, kind, ..] = header;
    let length = u32::from_le_bytes([a, b, c, d]);
    if length > PAYLOAD_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a frame is longer than 1 MiB",
        ));
    }
    let mut payload = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
    stream.read_exact(&mut payload).await?;
    Ok((kind, payload))
}

fn unexpected(kind: u8) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("unexpected frame {kind:#04x}"),
    )
}

/// One text of `{"type", "message", "trace"}`, whatever of it is there.
fn failure(payload: &[u8]) -> String {
    let value: Value = serde_json::from_slice(payload).unwrap_or_default();
    let text = |key: &str| value[key].as_str().unwrap_or_default();
    let mut said = match (text("type"), text("message")) {
        ("", "") => "the shim gave no reason".to_owned(),
        ("", message) => message.to_owned(),
        (kind, "") => kind.to_owned(),
        (kind, message) => format!("{kind}: {message}"),
    };
    let trace = value["trace"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    for line in trace
        .iter()
        .rev()
        .take(TRACE_LINES)
        .rev()
        .filter_map(Value::as_str)
    {
        said.push('\n');
        said.push_str(line.trim_end());
    }
    said
}

#[cfg(test)]
mod tests {
    use coracle_model::{
        Concurrency, Convention, Digest, Env, Handler, Memory, MilliCpu, Network, RevisionId,
        Timeout,
    };

    use super::*;

    #[test]
    fn a_claim_says_everything_that_the_contract_names() {
        let seconds = |n| Timeout::from_secs(n).expect("in bounds");
        let spec = InstanceSpec {
            id: uuid::Uuid::from_u128(1).into(),
            revision: RevisionId {
                function: uuid::Uuid::from_u128(2).into(),
                number: 3,
            },
            project: "default".parse().expect("a name"),
            namespace: "ns".parse().expect("a name"),
            function: "hello".parse().expect("a name"),
            runtime: "python3.11".parse().expect("a name"),
            handler: Handler::new("main", Convention::Kubeless).expect("a handler"),
            env: Env::new([("KEY".to_owned(), "value".to_owned())].into()).expect("small"),
            memory: Memory::from_mib(128).expect("in bounds"),
            cpu: MilliCpu::new(2500).expect("in bounds"),
            concurrency: Concurrency::ONE,
            network: Network::Egress,
            timeout: seconds(60),
            init_timeout: seconds(5),
            code: Digest::of(b"code"),
            dependencies: None,
        };
        let message: Value = serde_json::from_slice(&claim_message(&spec, true)).expect("JSON");
        let expected = json!({
            "function": {"project": "default", "namespace": "ns", "name": "hello",
                "id": spec.revision.function.to_string(), "revision": 3},
            "instance": spec.id.to_string(), "runtime": "python3.11",
            "code": "/fn/code", "deps": "/fn/deps",
            "entry": "main", "convention": "kubeless",
            "env": {"KEY": "value"},
            "memory_mib": 128, "cpu_millis": 2500, "timeout_secs": 60, "concurrency": 1,
        });
        assert_eq!(message, expected);
    }

    #[tokio::test]
    async fn a_claim_is_one_frame_and_a_failure_is_told_in_words() {
        let (mut ours, mut theirs) = UnixStream::pair().expect("a pair");
        let shim = tokio::spawn(async move {
            let (kind, payload) = read(&mut theirs).await.expect("a frame");
            let answer = br#"{"type":"ImportError","message":"no module x","trace":["a\n","b"]}"#;
            theirs
                .write_all(&frame(FAILED, answer))
                .await
                .expect("written");
            (kind, payload)
        });
        let claimed = claim(&mut ours, b"{}").await.expect("an answer");
        assert_eq!(
            claimed,
            Claimed::Failed("ImportError: no module x\na\nb".to_owned())
        );
        assert_eq!(shim.await.expect("no panic"), (CLAIM, b"{}".to_vec()));
    }

    #[tokio::test]
    async fn nonsense_is_an_error_and_not_memory() {
        let (mut ours, mut theirs) = UnixStream::pair().expect("a pair");
        theirs.write_all(&[255; 8]).await.expect("written");
        assert!(ping(&mut ours).await.is_err());
    }
}
