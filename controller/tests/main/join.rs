//! Machines that join a cluster over real TLS, and what each kind of peer may call there.

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use coracle_base::{Address, Clock, ManualClock, Shutdown, SystemClock, Tls, Trust};
use coracle_controller::{Controller, Founder, Identity};
use coracle_identity::{
    CaHash, Candidate, Component, ControllerPart, Enrolment, Invitation, JoinError, KeyPair, Name,
    Private, Renewal, WrappingKey, join,
};
use coracle_model::{
    ComponentRole, MemberId, Operation, SecretHash, Timestamp, TokenId, operation::CreateJoinToken,
};
use coracle_proto::v1::{
    self, cluster_client::ClusterClient, join_client::JoinClient,
    management_client::ManagementClient,
};
use tokio::task::JoinHandle;
use tonic::{Code, transport::Channel};
use uuid::Uuid;

use crate::fixture::{self, PATIENCE, fresh_write};

const CLUSTER: &str = "0badcafe";

/// The first controller of a cluster, as `cluster init` and `controller` make it.
struct Cluster {
    controller: Controller,
    enrolment: Enrolment,
    address: String,
    shutdown: Shutdown,
    running: JoinHandle<()>,
    local: Channel,
    _dir: tempfile::TempDir,
}

impl Cluster {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (key, wrapping_key) = (KeyPair::generate().unwrap(), WrappingKey::generate());
        let founded = {
            let alone = fixture::Server::start(dir.path()).await;
            let founder = Founder {
                name: "c1".into(),
                address: "127.0.0.1:1".into(),
                wrapping_key: wrapping_key.public(),
                public_key: key.public(),
            };
            let founded = alone.controller.found_cluster(founder, PATIENCE).await;
            alone.stop().await;
            founded.unwrap()
        };
        let enrolment = Enrolment {
            name: Name {
                cluster: CLUSTER.into(),
                component: Component::Controller(MemberId(1)),
            },
            ca_certificate: founded.ca_certificate,
            issued: founded.issued,
            private_key: Private(key.private()),
            controllers: Vec::new(),
            controller: Some(ControllerPart {
                name: "c1".into(),
                listen: "127.0.0.1:0".into(),
                advertise: "127.0.0.1:1".into(),
                wrapping_key,
                peers: Default::default(),
            }),
        };
        let tls = enrolment
            .tls(Arc::new(SystemClock), &ComponentRole::ALL)
            .unwrap();
        let bus = coracle_base::MemoryBus::new();
        let mut config = fixture::config(dir.path(), &bus);
        config
            .listen
            .push(Address::Tls("127.0.0.1:0".into(), tls.clone()));
        let secret = enrolment.controller.as_ref().unwrap().wrapping_key.secret();
        config.identity = Some(Identity {
            wrapping_key: Arc::new(WrappingKey::from_secret(secret)),
            tls,
        });
        let controller = config.build().await.unwrap();
        let address = controller.local_addrs()[1].unwrap().to_string();
        let shutdown = Shutdown::new();
        let running = tokio::spawn({
            let (controller, shutdown) = (controller.clone(), shutdown.clone());
            async move { controller.run(shutdown).await.unwrap() }
        });
        let cluster = Self {
            controller,
            enrolment,
            address,
            shutdown,
            running,
            local: Address::Memory(bus).channel(),
            _dir: dir,
        };
        fixture::wait("it to lead", || async {
            let status = cluster.controller.status();
            if status.leading {
                Ok(())
            } else {
                Err(format!("{status:?}"))
            }
        })
        .await;
        cluster
    }

    async fn stop(self) {
        self.shutdown.request();
        tokio::time::timeout(PATIENCE, self.running)
            .await
            .unwrap()
            .unwrap();
    }

    /// A token as an administrator makes one; its text.
    async fn token(&self, role: ComponentRole, ttl: u64, uses: u32) -> (TokenId, String) {
        let id = TokenId(Uuid::new_v4());
        let create = CreateJoinToken {
            id,
            hash: SecretHash::of("secret"),
            role,
            expires_at: Timestamp(SystemClock.now_millis()).plus_millis(ttl),
            uses,
        };
        self.write(Operation::CreateJoinToken(create)).await;
        (id, format!("{id}$secret"))
    }

    async fn write(&self, operation: Operation) {
        use coracle_proto::Wire as _;
        let request = v1::WriteRequest {
            write_id: fresh_write().to_wire(),
            operation: Some(operation.into()),
        };
        let mut client = ManagementClient::new(self.local.clone());
        let answer = client.write(request).await.unwrap().into_inner();
        assert_eq!(answer.refusal, None);
    }

    async fn uses_left(&self, id: TokenId) -> u32 {
        let mut client = ClusterClient::new(self.local.clone());
        let request = v1::ListJoinTokensRequest {};
        let tokens = client.list_join_tokens(request).await.unwrap().into_inner();
        let found = tokens.tokens.iter().find(|t| *t.id == *id.0.as_bytes());
        found.unwrap().uses_left
    }

    fn invitation(&self, token: &str) -> Invitation {
        Invitation {
            controllers: vec![self.address.clone()],
            token: token.to_owned(),
            ca_hash: self.enrolment.ca_hash(),
        }
    }

    async fn join(&self, role: ComponentRole, token: &str) -> Result<Enrolment, JoinError> {
        let invitation = self.invitation(token);
        join(
            &invitation,
            &candidate(role),
            Arc::new(SystemClock),
            PATIENCE,
        )
        .await
    }

    async fn refused(&self, role: ComponentRole, token: &str) -> String {
        match self.join(role, token).await {
            Err(JoinError::Refused(sentence)) => sentence,
            other => panic!("{other:?}"),
        }
    }

    /// A channel that shows the certificate of this enrolment, or none.
    fn channel(&self, enrolment: Option<&Enrolment>) -> Channel {
        let tls = match enrolment {
            Some(enrolment) => enrolment.tls(Arc::new(SystemClock), &ComponentRole::ALL),
            None => {
                let trust = Trust::Authority(self.enrolment.ca_certificate.clone());
                Tls::new(trust, None, Arc::new(SystemClock))
            }
        };
        Address::Tls(self.address.clone(), tls.unwrap()).channel()
    }
}

fn candidate(role: ComponentRole) -> Candidate {
    Candidate {
        role,
        name: format!("a-{role}"),
        id: Uuid::new_v4(),
        cluster_id: None,
        addresses: (role == ComponentRole::Controller)
            .then(|| ("127.0.0.1:0".into(), "127.0.0.1:2".into())),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_joins_with_a_token_of_its_own_and_renews_its_certificate() {
    let cluster = Cluster::start().await;
    for role in ComponentRole::ALL {
        let (id, token) = cluster.token(role, 60_000, 2).await;
        let enrolment = cluster.join(role, &token).await.unwrap();
        assert_eq!(enrolment.name.cluster, CLUSTER);
        assert_eq!(enrolment.name.component.role(), role);
        assert_eq!(cluster.uses_left(id).await, 1);
        let mut client = JoinClient::new(cluster.channel(Some(&enrolment)));
        let key = KeyPair::generate().unwrap();
        let request = v1::RenewRequest {
            public_key: key.public().into(),
        };
        let renewed = client.renew(request).await.unwrap().into_inner();
        let names = renewed.certificate.unwrap().certificate;
        let names = coracle_base::tls::names_of(&names).unwrap();
        assert_eq!(names, [enrolment.name.to_string()]);
    }
    let mut client = ClusterClient::new(cluster.local.clone());
    let view = client.get_cluster(v1::GetClusterRequest {}).await.unwrap();
    let ids: Vec<u64> = view.into_inner().members.iter().map(|m| m.id).collect();
    assert_eq!(ids, [1, 2]);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_in_time_on_disk_and_on_connections() {
    let cluster = Cluster::start().await;
    let (_, token) = cluster.token(ComponentRole::Agent, 60_000, 1).await;
    let mut enrolment = cluster.join(ComponentRole::Agent, &token).await.unwrap();
    enrolment.controllers = vec!["127.0.0.1:1".into(), cluster.address.clone()];
    let dir = tempfile::tempdir().unwrap();
    enrolment.save(dir.path()).unwrap();
    let (name, first) = (enrolment.name.clone(), enrolment.issued.certificate.clone());
    let clock = Arc::new(ManualClock::at(enrolment.renew_at().0 - 1));
    let tls = enrolment
        .tls(Arc::new(SystemClock), &ComponentRole::ALL)
        .unwrap();
    let renewal = Renewal {
        data: dir.path().to_owned(),
        enrolment,
        tls: tls.clone(),
        clock: Arc::<ManualClock>::clone(&clock),
    };
    let shutdown = Shutdown::new();
    shutdown.spawn("renewal", renewal.run(shutdown.clone()));
    let kept = || Enrolment::load(dir.path()).unwrap().unwrap();
    assert_eq!(kept().issued.certificate, first);
    clock.advance(2);
    let renewed = fixture::wait("the certificate to be renewed", || async {
        let kept = kept();
        let is_new = kept.issued.certificate != first;
        is_new.then_some(kept).ok_or("it is the first".to_owned())
    })
    .await;
    shutdown.request();
    assert!(shutdown.finished(PATIENCE).await);
    assert_eq!(renewed.name, name);
    // What was told of the controllers came along.
    assert_eq!(renewed.controllers, ["127.0.0.1:1"]);
    let mut client = ManagementClient::new(Address::Tls(cluster.address.clone(), tls).channel());
    client.status(v1::StatusRequest {}).await.unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_joining_is_one_sentence_and_changes_nothing() {
    let cluster = Cluster::start().await;
    use ComponentRole::{Agent, Controller, Gateway};
    let (id, token) = cluster.token(Agent, 60_000, 1).await;
    let says = |found: String, expected: &str| {
        assert!(found.contains(expected), "{found}");
        assert!(!found.contains('\n'), "{found}");
    };
    says(
        cluster.refused(Agent, &format!("{id}$guess")).await,
        "is not known",
    );
    says(cluster.refused(Agent, "nonsense").await, "not of the form");
    says(
        cluster.refused(Gateway, &token).await,
        "lets in agents and not gateways",
    );
    let (revoked, text) = cluster.token(Agent, 60_000, 1).await;
    cluster
        .write(Operation::RevokeJoinToken { id: revoked })
        .await;
    says(cluster.refused(Agent, &text).await, "was revoked");
    let made = SystemClock.now_millis();
    let (_, soon) = cluster.token(Agent, 2_000, 1).await;
    fixture::wait("the token to expire", || async {
        let age = SystemClock.now_millis() - made;
        (age > 3_000).then_some(()).ok_or(format!("{age} ms"))
    })
    .await;
    says(cluster.refused(Agent, &soon).await, "expired at");

    let mut other = cluster.invitation(&token);
    other.ca_hash = CaHash([7; 32]);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let error = join(&other, &candidate(Agent), clock, PATIENCE).await;
    let Err(JoinError::Refused(error)) = error else {
        panic!("{error:?}");
    };
    says(error, "not the one that was given");

    let elsewhere = Candidate {
        cluster_id: Some("ffffffff".into()),
        ..candidate(Agent)
    };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let error = join(&cluster.invitation(&token), &elsewhere, clock, PATIENCE).await;
    says(
        error.unwrap_err().to_string(),
        "belongs to cluster ffffffff",
    );

    let hour = 60 * 60 * 1_000;
    for (now, expected) in [
        (SystemClock.now_millis() + hour, "60 minutes ahead of"),
        // Before the controller's certificate was made: it does not get as far as asking.
        (
            SystemClock.now_millis() - hour,
            "check the clocks of both machines",
        ),
    ] {
        let clock = Arc::new(ManualClock::at(now));
        let invitation = cluster.invitation(&token);
        let error = join(&invitation, &candidate(Agent), clock, PATIENCE).await;
        says(error.unwrap_err().to_string(), expected);
    }

    let (controllers, text) = cluster.token(Controller, 60_000, 5).await;
    cluster.join(Controller, &text).await.unwrap();
    says(
        cluster.refused(Controller, &text).await,
        "a controller of the name a-controller is connected (member 2)",
    );
    let namesake = Candidate {
        name: "another".into(),
        ..candidate(Controller)
    };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let error = join(&cluster.invitation(&text), &namesake, clock, PATIENCE).await;
    says(
        error.unwrap_err().to_string(),
        "has the address 127.0.0.1:2",
    );
    assert_eq!(cluster.uses_left(controllers).await, 4);

    // Nothing of this cost a use.
    assert_eq!(cluster.uses_left(id).await, 1);
    cluster.join(Agent, &token).await.unwrap();
    says(cluster.refused(Agent, &token).await, "as often as it may");
    cluster.stop().await;
}

#[tokio::test]
async fn where_nobody_answers_the_error_says_who_was_asked() {
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = nobody.local_addr().unwrap().to_string();
    drop(nobody);
    let invitation = Invitation {
        controllers: vec![address.clone()],
        token: "t".into(),
        ca_hash: CaHash([0; 32]),
    };
    let candidate = candidate(ComponentRole::Agent);
    let patience = Duration::from_millis(300);
    let error = join(&invitation, &candidate, Arc::new(SystemClock), patience).await;
    let error = error.unwrap_err();
    assert!(matches!(error, JoinError::NoAnswer(_)), "{error}");
    assert!(error.to_string().contains(&address), "{error}");
}

/// Bytes as they are: a method is called without its messages.
#[derive(Debug, Default)]
struct Raw;

impl tonic::codec::Codec for Raw {
    type Encode = ();
    type Decode = ();
    type Encoder = Raw;
    type Decoder = Raw;
    fn encoder(&mut self) -> Raw {
        Raw
    }
    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl tonic::codec::Encoder for Raw {
    type Item = ();
    type Error = tonic::Status;
    fn encode(&mut self, (): (), _: &mut tonic::codec::EncodeBuf<'_>) -> Result<(), Self::Error> {
        Ok(())
    }
}

impl tonic::codec::Decoder for Raw {
    type Item = ();
    type Error = tonic::Status;
    fn decode(
        &mut self,
        bytes: &mut tonic::codec::DecodeBuf<'_>,
    ) -> Result<Option<()>, Self::Error> {
        use bytes::Buf as _;
        bytes.advance(bytes.remaining());
        Ok(Some(()))
    }
}

/// Whether the call got past the guard. An empty message is wrong for most methods, and for some it
/// is the start of a stream: any answer but a refusal will do.
async fn gets_through(channel: &Channel, path: &str) -> bool {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let uri = path.parse().unwrap();
    let mut request = tonic::Request::new(());
    request.set_timeout(Duration::from_secs(2));
    let call = client.server_streaming(request, uri, Raw);
    match tokio::time::timeout(Duration::from_millis(300), call).await {
        // It waits for more to come.
        Err(_) | Ok(Ok(_)) => true,
        Ok(Err(status)) => !matches!(
            status.code(),
            Code::PermissionDenied | Code::Unauthenticated
        ),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_refuses_every_wrong_peer() {
    let cluster = Cluster::start().await;
    let mut enrolments = Vec::new();
    for role in ComponentRole::ALL {
        let (_, token) = cluster.token(role, 60_000, 1).await;
        enrolments.push(cluster.join(role, &token).await.unwrap());
    }
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let peers = enrolments.iter().map(Some).chain([None]);
    for enrolment in peers {
        let channel = cluster.channel(enrolment);
        let peer = enrolment.map_or(coracle_identity::Peer::Anonymous, |enrolment| {
            coracle_identity::Peer::Component(enrolment.name.component)
        });
        for (service, method) in coracle_proto::methods() {
            let path = format!("/{service}/{method}");
            if coracle_identity::access::check(&peer, &path).is_ok() {
                continue;
            }
            assert!(
                !gets_through(&channel, &path).await,
                "{peer:?} called {path}"
            );
            asked.fetch_add(1, SeqCst);
        }
    }
    assert!(asked.load(SeqCst) > 50, "{asked:?}");
    // The other way round, so that the above does not hold because nothing ever gets through.
    let [controller, agent, gateway] = &enrolments[..] else {
        panic!("three roles");
    };
    for (enrolment, path) in [
        (Some(gateway), "/coracle.v1.Management/ListProjects"),
        (Some(controller), "/coracle.v1.Management/ListProjects"),
        (Some(agent), "/coracle.v1.Management/Status"),
        (Some(agent), "/coracle.v1.Agents/Session"),
        (None, "/coracle.v1.Join/Enrol"),
    ] {
        let channel = cluster.channel(enrolment);
        assert!(gets_through(&channel, path).await, "{path}");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_and_a_gateway_speak_for_themselves_only() {
    let cluster = Cluster::start().await;
    let (_, token) = cluster.token(ComponentRole::Gateway, 60_000, 1).await;
    let gateway = cluster.join(ComponentRole::Gateway, &token).await.unwrap();
    let Component::Gateway(id) = gateway.name.component else {
        panic!("a gateway");
    };
    let mut client = v1::routing_client::RoutingClient::new(cluster.channel(Some(&gateway)));
    let report = |id: Uuid| v1::DemandReport {
        gateway: bytes::Bytes::copy_from_slice(id.as_bytes()),
        functions: Vec::new(),
    };
    client.report_demand(report(id)).await.unwrap();
    let status = client
        .report_demand(report(Uuid::new_v4()))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);

    let (_, token) = cluster.token(ComponentRole::Agent, 60_000, 1).await;
    let agent = cluster.join(ComponentRole::Agent, &token).await.unwrap();
    let mut client = v1::agents_client::AgentsClient::new(cluster.channel(Some(&agent)));
    let node = coracle_model::node::Node {
        id: coracle_model::NodeId(Uuid::new_v4()),
        name: "another".into(),
        version: "0".into(),
        labels: Default::default(),
        allocatable: Default::default(),
        address: "unix:/x".into(),
        stems: Default::default(),
        images: Vec::new(),
        reported_at: Timestamp(0),
        schedulable: true,
    };
    let hello = v1::AgentMessage {
        body: Some(v1::agent_message::Body::Hello(v1::Report {
            node: Some(node.into()),
            ..v1::Report::default()
        })),
    };
    let status = client
        .session(tokio_stream::iter([hello]))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(
        status.message().contains("certificate is not that of"),
        "{status}"
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_key_is_changed_and_still_signs() {
    let cluster = Cluster::start().await;
    let mut client = ClusterClient::new(cluster.local.clone());
    for generation in 2..4 {
        let request = v1::RotateClusterKeyRequest {
            write_id: bytes::Bytes::copy_from_slice(Uuid::new_v4().as_bytes()),
        };
        let answer = client.rotate_cluster_key(request.clone()).await.unwrap();
        assert_eq!(answer.into_inner().generation, generation);
        // The same again is the same.
        let again = client
            .rotate_cluster_key(request)
            .await
            .unwrap()
            .into_inner();
        assert_eq!((again.generation, again.refusal), (generation, None));
    }
    let (_, token) = cluster.token(ComponentRole::Controller, 60_000, 1).await;
    let second = cluster
        .join(ComponentRole::Controller, &token)
        .await
        .unwrap();
    assert_eq!(second.name.component, Component::Controller(MemberId(2)));
    let request = v1::RemoveMemberRequest { member: 2 };
    let answer = client.remove_member(request).await.unwrap().into_inner();
    assert_eq!(answer.refusal, None);
    let view = client.get_cluster(v1::GetClusterRequest {}).await.unwrap();
    assert_eq!(view.into_inner().key_generation, 4);
    // Its certificate lives on and is of no use.
    let mut theirs = JoinClient::new(cluster.channel(Some(&second)));
    let request = v1::RenewRequest {
        public_key: KeyPair::generate().unwrap().public().into(),
    };
    let status = theirs.renew(request).await.unwrap_err();
    assert!(status.message().contains("was removed"), "{status}");
    let request = v1::RemoveMemberRequest { member: 1 };
    let refusal = client
        .remove_member(request)
        .await
        .unwrap()
        .into_inner()
        .refusal;
    assert!(refusal.unwrap().message.contains("last controller"));
    cluster.stop().await;
}
