//! Connections between components, with real handshakes and a clock that is told the time.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::sync::Arc;

use coracle_base::{Address, Clock, Conn, Credentials, Incoming, ManualClock, Remote, Tls, Trust};
use coracle_identity::{Authority, CaHash, Component, KeyPair, LIFETIME, Name, Peer};
use coracle_model::{ComponentRole, MemberId, NodeId, Timestamp};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_stream::StreamExt;
use uuid::Uuid;

/// 2026-01-01.
const NOW: u64 = 1_767_225_600_000;
const HOUR: u64 = 60 * 60 * 1_000;
const CONTROLLERS: &[ComponentRole] = &[ComponentRole::Controller];
const AGENTS: &[ComponentRole] = &[ComponentRole::Agent];

fn life() -> u64 {
    u64::try_from(LIFETIME.as_millis()).unwrap()
}

fn member(id: u64) -> Component {
    Component::Controller(MemberId(id))
}

fn node(id: u128) -> Component {
    Component::Agent(NodeId(Uuid::from_u128(id)))
}

struct Cluster(Authority);

impl Cluster {
    fn new(id: &str) -> Self {
        Self(Authority::create(id, Timestamp(NOW)).unwrap())
    }

    fn credentials(&self, component: Component, at: u64) -> Credentials {
        let key = KeyPair::generate().unwrap();
        let issued = self
            .0
            .issue(component, &key.public(), Timestamp(at))
            .unwrap();
        Credentials {
            chain: vec![issued.certificate, self.0.certificate().to_vec()],
            key: key.private(),
        }
    }

    fn tls(&self, own: Option<Credentials>, clock: &Arc<ManualClock>) -> Tls {
        let trust = Trust::Authority(self.0.certificate().to_vec());
        let clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(clock);
        Tls::new(trust, own, clock).unwrap()
    }
}

fn at(now: u64) -> Arc<ManualClock> {
    Arc::new(ManualClock::at(now))
}

async fn listen(tls: &Tls) -> (Incoming, String) {
    let address = Address::Tls("127.0.0.1:0".into(), tls.clone());
    let incoming = address.listen().await.unwrap();
    let at = incoming.local_addr().unwrap().to_string();
    (incoming, at)
}

/// Takes the next connection while `dialling` goes on.
async fn meet(incoming: &mut Incoming, to: &str, tls: &Tls) -> (Conn, Conn) {
    let address = Address::Tls(to.to_owned(), tls.clone());
    let (dialled, taken) = tokio::join!(address.connect(), incoming.next());
    (dialled.unwrap(), taken.unwrap().unwrap())
}

async fn refused(to: &str, tls: &Tls) -> String {
    let address = Address::Tls(to.to_owned(), tls.clone());
    address.connect().await.unwrap_err().to_string()
}

async fn say(from: &mut Conn, to: &mut Conn) {
    from.write_all(b"hello").await.unwrap();
    from.flush().await.unwrap();
    let mut heard = [0; 5];
    to.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"hello");
}

fn peer(conn: &Conn) -> Peer {
    Peer::at(&conn.remote())
}

#[tokio::test]
async fn each_side_sees_who_the_other_is() {
    let (cluster, clock) = (Cluster::new("0badcafe"), at(NOW));
    let server = cluster.tls(Some(cluster.credentials(member(1), NOW)), &clock);
    let (mut incoming, to) = listen(&server).await;
    let client = cluster.tls(Some(cluster.credentials(node(7), NOW)), &clock);
    let client = client.expecting(Name::check("0badcafe", CONTROLLERS));
    let (mut dialled, mut taken) = meet(&mut incoming, &to, &client).await;
    assert_eq!(peer(&taken), Peer::Component(node(7)));
    assert_eq!(peer(&dialled), Peer::Component(member(1)));
    assert_eq!(taken.protocol(), Some(&b"h2"[..]));
    say(&mut dialled, &mut taken).await;
    say(&mut taken, &mut dialled).await;

    let nobody = cluster.tls(None, &clock);
    let (_dialled, taken) = meet(&mut incoming, &to, &nobody).await;
    assert_eq!(peer(&taken), Peer::Anonymous);
    assert!(matches!(taken.remote(), Remote::Tls(_)));
}

#[tokio::test]
async fn a_server_of_the_wrong_role_or_cluster_is_refused_before_anything_is_sent() {
    let (cluster, clock) = (Cluster::new("0badcafe"), at(NOW));
    let server = cluster.tls(Some(cluster.credentials(node(7), NOW)), &clock);
    let (mut incoming, to) = listen(&server).await;
    let serving = tokio::spawn(async move { while incoming.next().await.is_some() {} });
    let own = || Some(cluster.credentials(node(8), NOW));
    let client = cluster.tls(own(), &clock);
    let error = refused(&to, &client.expecting(Name::check("0badcafe", CONTROLLERS))).await;
    assert!(error.contains("the other side is an agent"), "{error}");
    let error = refused(&to, &client.expecting(Name::check("ffffffff", AGENTS))).await;
    assert!(error.contains("belongs to cluster 0badcafe"), "{error}");
    let other = Cluster::new("0badcafe");
    let error = refused(&to, &other.tls(own(), &clock)).await;
    assert!(error.contains("not of this cluster's CA"), "{error}");
    serving.abort();
}

#[tokio::test]
async fn a_client_of_another_cluster_or_past_its_time_is_not_taken() {
    let (cluster, clock) = (Cluster::new("0badcafe"), at(NOW + life() - HOUR));
    let server = cluster.tls(Some(cluster.credentials(member(1), NOW)), &clock);
    let server = server.expecting(Name::check("0badcafe", &ComponentRole::ALL));
    let (mut incoming, to) = listen(&server).await;
    // The client's own clock stands still, so that only the server can object.
    let old = cluster.tls(Some(cluster.credentials(node(1), NOW - 2 * HOUR)), &at(NOW));
    let other = Cluster::new("ffffffff");
    let foreign = Tls::new(
        Trust::Authority(cluster.0.certificate().to_vec()),
        Some(other.credentials(node(2), NOW)),
        at(NOW),
    )
    .unwrap();
    for wrong in [old, foreign] {
        let address = Address::Tls(to.clone(), wrong);
        // The client is done before the server judges its certificate, and learns of it by reading.
        let judged = async {
            match address.connect().await {
                Ok(mut conn) => conn.read_u8().await.map(|_| ()),
                Err(error) => Err(error),
            }
        };
        tokio::select! {
            heard = judged => assert!(heard.is_err()),
            taken = incoming.next() => panic!("it was taken: {taken:?}"),
        }
    }
    let good = cluster.tls(Some(cluster.credentials(node(3), NOW)), &clock);
    let (_dialled, taken) = meet(&mut incoming, &to, &good).await;
    assert_eq!(peer(&taken), Peer::Component(node(3)));
}

#[tokio::test]
async fn a_clock_that_is_off_is_named_in_the_error() {
    let cluster = Cluster::new("0badcafe");
    let server = cluster.tls(Some(cluster.credentials(member(1), NOW)), &at(NOW));
    let (mut incoming, to) = listen(&server).await;
    let serving = tokio::spawn(async move { while incoming.next().await.is_some() {} });
    let behind = cluster.tls(Some(cluster.credentials(node(1), NOW)), &at(NOW - HOUR));
    let error = refused(&to, &behind).await;
    assert!(
        error.contains("valid from 2025-12-31T23:55:00Z")
            && error.contains("this machine's clock says 2025-12-31T23:00:00Z"),
        "{error}"
    );
    let ahead = cluster.tls(None, &at(NOW + life() + HOUR));
    let error = refused(&to, &ahead).await;
    assert!(
        error.contains("expired at 2026-01-31T00:00:00Z")
            && error.contains("this machine's clock says 2026-01-31T01:00:00Z"),
        "{error}"
    );
    serving.abort();
}

#[tokio::test]
async fn a_renewal_shows_in_new_connections_and_drops_none() {
    let (cluster, clock) = (Cluster::new("0badcafe"), at(NOW));
    let server = cluster.tls(Some(cluster.credentials(member(1), NOW)), &clock);
    let (mut incoming, to) = listen(&server).await;
    let client = cluster.tls(Some(cluster.credentials(node(7), NOW)), &clock);
    let (mut old, mut taken) = meet(&mut incoming, &to, &client).await;
    clock.advance(life() + HOUR);
    // Both sides' certificates have run out: what is new fails, what is old lives.
    let error = refused_while(&mut incoming, &to, &client).await;
    assert!(error.contains("expired at"), "{error}");
    say(&mut old, &mut taken).await;
    server
        .replace(cluster.credentials(member(1), NOW + life()))
        .unwrap();
    client
        .replace(cluster.credentials(node(7), NOW + life()))
        .unwrap();
    let (mut new, mut taken_too) = meet(&mut incoming, &to, &client).await;
    say(&mut new, &mut taken_too).await;
    say(&mut taken, &mut old).await;
}

async fn refused_while(incoming: &mut Incoming, to: &str, tls: &Tls) -> String {
    tokio::select! {
        error = refused(to, tls) => error,
        taken = incoming.next() => panic!("it was taken: {taken:?}"),
    }
}

#[tokio::test]
async fn silent_peers_keep_nobody_waiting() {
    let (cluster, clock) = (Cluster::new("0badcafe"), at(NOW));
    let server = cluster.tls(Some(cluster.credentials(member(1), NOW)), &clock);
    let (mut incoming, to) = listen(&server).await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(tokio::net::TcpStream::connect(&to).await.unwrap());
    }
    let client = cluster.tls(Some(cluster.credentials(node(7), NOW)), &clock);
    let (mut dialled, mut taken) = meet(&mut incoming, &to, &client).await;
    say(&mut dialled, &mut taken).await;
}

#[tokio::test]
async fn a_first_contact_is_pinned_to_the_hash_of_the_ca() {
    let (cluster, clock) = (Cluster::new("0badcafe"), at(NOW));
    let server = cluster.tls(Some(cluster.credentials(member(1), NOW)), &clock);
    let (mut incoming, to) = listen(&server).await;
    let pinned = |hash: CaHash| {
        let clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
        Tls::new(Trust::Hash(hash.0), None, clock).unwrap()
    };
    let right = CaHash::of(cluster.0.certificate());
    let (_dialled, taken) = meet(&mut incoming, &to, &pinned(right)).await;
    assert_eq!(peer(&taken), Peer::Anonymous);
    let other = CaHash::of(Cluster::new("0badcafe").0.certificate());
    let error = refused_while(&mut incoming, &to, &pinned(other)).await;
    assert!(
        error.contains(&format!("the CA there has the hash {right}")),
        "{error}"
    );
    // What only knows a hash cannot serve.
    let address = Address::Tls("127.0.0.1:0".into(), pinned(right));
    assert!(address.listen().await.is_err());
}
