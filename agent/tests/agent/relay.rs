//! The data port as gateways on other machines use it.

use coracle_base::Address;
use coracle_driver::fake::{Gate, Script};
use coracle_identity::Component;
use coracle_model::{ExitReason, InstanceId, MemberId, NodeId};
use coracle_proto::{
    relay::{self, Answer},
    v1::{
        self, await_instance_response::Outcome, instance_state::Kind,
        node_service_client::NodeServiceClient,
    },
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    ca::Ca,
    controller::{Controller, Session, stamp, within},
    instances::upsert,
    node::{NodeUnderTest, Running, assignment, id, tar_of, wanted},
};

fn anywhere() -> Address {
    Address::Tcp("127.0.0.1:0".into())
}

/// An agent on a TCP port that follows, with one instance that is wanted.
async fn started(node: &NodeUnderTest) -> (Controller, Session, Running) {
    started_on(node, anywhere()).await
}

async fn started_on(node: &NodeUnderTest, listen: Address) -> (Controller, Session, Running) {
    let mut controller = Controller::start().await;
    let controllers = [controller.address.clone()];
    let agent = node.start_on(listen, &controllers).await;
    let (mut session, _) = controller.session().await;
    session.snapshot(stamp(1, 1), assignment(vec![])).await;
    let code = controller.put(&tar_of("1"));
    session.delta(upsert(wanted(1, code))).await;
    (controller, session, agent)
}

async fn knock(agent: &Running, preamble: &[u8]) -> TcpStream {
    let address = agent.agent.address().trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(preamble).await.unwrap();
    stream
}

async fn ask(agent: &Running, instance: InstanceId) -> (TcpStream, Answer) {
    let mut stream = knock(agent, &relay::preamble(instance)).await;
    let byte = within("an answer", stream.read_u8()).await.unwrap();
    (stream, Answer::from_byte(byte))
}

fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_le_bytes().to_vec();
    bytes.extend([kind, flags, 0, 0]);
    bytes.extend(payload);
    bytes
}

/// Invokes with a body and reads the whole answer, which is the same body.
async fn invoke(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), body: &[u8]) {
    let mut bytes = frame(1, 0, b"\0\0\0\0r\0POST\0/");
    bytes.extend(frame(2, 1, body));
    stream.write_all(&bytes).await.unwrap();
    let mut answer = Vec::new();
    loop {
        let mut header = [0; 8];
        within("a frame", stream.read_exact(&mut header))
            .await
            .unwrap();
        let length = u32::from_le_bytes(header[..4].try_into().unwrap());
        let mut payload = vec![0; length as usize];
        within("a payload", stream.read_exact(&mut payload))
            .await
            .unwrap();
        match header[4] {
            0x81 => assert_eq!(payload[..2], 200_u16.to_le_bytes()),
            0x82 => answer.extend(payload),
            kind => panic!("frame {kind:#x}"),
        }
        if header[5] & 1 != 0 {
            assert_eq!(answer, body);
            return;
        }
    }
}

async fn ends(mut stream: TcpStream) {
    let mut rest = Vec::new();
    // Ended or reset, as the kernel pleases.
    let _ = within("the end", stream.read_to_end(&mut rest)).await;
    assert!(rest.is_empty(), "{rest:?}");
}

#[tokio::test]
async fn one_port_has_the_service_and_the_instances() {
    let node = NodeUnderTest::new();
    let (_controller, session, agent) = started(&node).await;
    let outcome = agent.await_instance(id(1)).await;
    assert!(matches!(outcome, Ok(Outcome::Ready(_))), "{outcome:?}");
    let (mut stream, answer) = ask(&agent, id(1)).await;
    assert_eq!(answer, Answer::Open);
    for body in [b"small".to_vec(), vec![7; 60_000]] {
        invoke(&mut stream, &body).await;
    }
    let (stranger, answer) = ask(&agent, id(2)).await;
    assert_eq!(answer, Answer::Unknown);
    ends(stranger).await;
    let mut other_version = relay::preamble(id(1));
    other_version[7] = b'2';
    ends(knock(&agent, &other_version).await).await;
    drop(session);
    agent.stop().await;
}

#[tokio::test]
async fn a_connection_waits_for_the_end_of_a_start() {
    let node = NodeUnderTest::new();
    let gate = Gate::closed();
    let script = Script {
        gate: Some(gate.clone()),
        ..Script::default()
    };
    node.driver.script(&"hello".parse().unwrap(), script);
    let (_controller, mut session, agent) = started(&node).await;
    session.state(id(1), Kind::Starting).await;
    let mut stream = knock(&agent, &relay::preamble(id(1))).await;
    // Another one gives up meanwhile, which nobody minds.
    drop(knock(&agent, &relay::preamble(id(1))).await);
    gate.open();
    let byte = within("an answer", stream.read_u8()).await.unwrap();
    assert_eq!(Answer::from_byte(byte), Answer::Open);
    invoke(&mut stream, b"x").await;
    agent.stop().await;
}

#[tokio::test]
async fn idle_connections_end_with_their_instance_and_it_is_unknown_then() {
    let node = NodeUnderTest::new();
    let (_controller, mut session, agent) = started(&node).await;
    agent.await_instance(id(1)).await.unwrap();
    let (idle, answer) = ask(&agent, id(1)).await;
    assert_eq!(answer, Answer::Open);
    assert!(node.driver.crash(id(1), ExitReason::Exited { code: 1 }));
    ends(idle).await;
    session.state(id(1), Kind::Exited).await;
    let (_, answer) = ask(&agent, id(1)).await;
    assert_eq!(answer, Answer::Unknown);
    agent.stop().await;
}

#[tokio::test]
async fn an_agent_that_ends_cuts_what_it_relays_and_the_next_one_finds_the_instance() {
    let node = NodeUnderTest::new();
    let (mut controller, _session, agent) = started(&node).await;
    agent.await_instance(id(1)).await.unwrap();
    let (relayed, answer) = ask(&agent, id(1)).await;
    assert_eq!(answer, Answer::Open);
    agent.stop().await;
    ends(relayed).await;
    assert_eq!(node.driver.running(), [id(1)]);

    // Asked before it has looked at what runs, it answers when it has.
    node.driver.fail_adoption(Some("not yet"));
    let controllers = [controller.address.clone()];
    let agent = node.start_on(anywhere(), &controllers).await;
    let mut stream = knock(&agent, &relay::preamble(id(1))).await;
    node.driver.fail_adoption(None);
    let byte = within("an answer", stream.read_u8()).await.unwrap();
    assert_eq!(Answer::from_byte(byte), Answer::Open);
    invoke(&mut stream, b"x").await;
    controller.session().await;
    agent.stop().await;
}

#[tokio::test]
async fn over_tls_only_gateways_and_controllers_reach_the_service_and_the_instances() {
    let (node, ca) = (NodeUnderTest::new(), Ca::new());
    let uuid = uuid::Uuid::from_u128(77);
    let own = ca.tls(Some(Component::Agent(NodeId(uuid))));
    let listen = Address::Tls("127.0.0.1:0".into(), own);
    let (_controller, session, agent) = started_on(&node, listen).await;
    let at = agent.agent.address().to_owned();
    assert!(at.starts_with("https://127.0.0.1:"), "{at}");
    let cases = [
        (Some(Component::Gateway(uuid)), true),
        (Some(Component::Controller(MemberId(1))), true),
        (
            Some(Component::Agent(NodeId(uuid::Uuid::from_u128(78)))),
            false,
        ),
        (None, false),
    ];
    for (peer, allowed) in cases {
        let tls = ca.tls(peer);
        let channel = Address::told(&at, Some(&tls)).unwrap().channel();
        let instance = coracle_proto::Wire::to_wire(&id(1));
        let request = v1::AwaitInstanceRequest { instance };
        let asked = NodeServiceClient::new(channel)
            .await_instance(request)
            .await;
        assert_eq!(asked.is_ok(), allowed, "{peer:?}: {asked:?}");

        let tls = tls.with_alpn(&[relay::ALPN]);
        let mut stream = Address::told(&at, Some(&tls))
            .unwrap()
            .connect()
            .await
            .unwrap();
        // It may be closed before this arrives.
        let _ = stream.write_all(&relay::preamble(id(1))).await;
        let answer = within("an answer", stream.read_u8()).await.ok();
        assert_eq!(answer.is_some(), allowed, "{peer:?}: {answer:?}");
        if allowed {
            for body in [b"x".to_vec(), vec![7; 60_000]] {
                invoke(&mut stream, &body).await;
            }
        }
    }
    drop(session);
    agent.stop().await;
}
