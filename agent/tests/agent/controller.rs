//! A controller that does what the test says: sessions are handed to it one by one.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use coracle_base::{Address, MemoryBus, Shutdown};
use coracle_model::{Digest, InstanceId, Stamp};
use coracle_proto::{
    Wire,
    v1::{
        self, AgentMessage, ControllerMessage, agent_message,
        agents_server::{Agents, AgentsServer},
        controller_message,
        management_server::{Management, ManagementServer},
    },
};
use futures_util::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("waited for {what}"))
}

type Store = Arc<Mutex<BTreeMap<Digest, Vec<u8>>>>;

pub(crate) struct Controller {
    pub(crate) address: Address,
    pub(crate) artifacts: Store,
    sessions: mpsc::Receiver<Session>,
    shutdown: Shutdown,
}

impl Controller {
    pub(crate) async fn start() -> Self {
        Self::start_with(Store::default()).await
    }

    pub(crate) async fn start_with(artifacts: Store) -> Self {
        let address = Address::Memory(MemoryBus::new());
        let (sender, sessions) = mpsc::channel(8);
        let shutdown = Shutdown::new();
        let incoming = address.listen().await.unwrap();
        let ending = shutdown.clone();
        let service = Service(sender);
        let artifacts_service = Artifacts(Arc::clone(&artifacts));
        shutdown.spawn("controller", async move {
            let server = tonic::transport::Server::builder()
                .add_service(AgentsServer::new(service))
                .add_service(ManagementServer::new(artifacts_service))
                .serve_with_incoming(incoming);
            tokio::select! {
                served = server => served.unwrap(),
                () = ending.requested() => {}
            }
        });
        Self {
            address,
            artifacts,
            sessions,
            shutdown,
        }
    }

    /// The next session, with its hello.
    pub(crate) async fn session(&mut self) -> (Session, v1::Report) {
        let mut session = within("a session", self.sessions.recv())
            .await
            .expect("serving");
        match session.next().await {
            agent_message::Body::Hello(hello) => (session, hello),
            other => panic!("the first message is {other:?}"),
        }
    }

    pub(crate) fn put(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        self.artifacts
            .lock()
            .unwrap()
            .insert(digest, bytes.to_vec());
        digest
    }

    pub(crate) fn stop(&self) {
        self.shutdown.request();
    }
}

pub(crate) struct Session {
    inbound: Streaming<AgentMessage>,
    outbound: mpsc::Sender<Result<ControllerMessage, Status>>,
    stamp: Stamp,
}

pub(crate) fn stamp(term: u64, sequence: u64) -> Stamp {
    Stamp {
        incarnation: 1,
        term,
        sequence,
    }
}

impl Session {
    pub(crate) async fn next(&mut self) -> agent_message::Body {
        let message = within("a message", self.inbound.message()).await;
        message
            .expect("the stream is whole")
            .expect("the session goes on")
            .body
            .expect("a body")
    }

    /// True when the agent ends it.
    pub(crate) async fn ended(&mut self) -> bool {
        within("the session's end", async {
            while let Ok(Some(_)) = self.inbound.message().await {}
            true
        })
        .await
    }

    async fn send(&self, body: controller_message::Body) {
        let message = ControllerMessage {
            body: Some(body),
            ..ControllerMessage::default()
        };
        // A session that the agent gave up takes nothing more, which the test sees elsewhere.
        let _ = self.outbound.send(Ok(message)).await;
    }

    pub(crate) async fn snapshot(&mut self, stamp: Stamp, mut assignment: v1::Assignment) {
        self.stamp = stamp;
        assignment.stamp = Some(stamp.into());
        self.send(controller_message::Body::Snapshot(assignment))
            .await;
    }

    /// The next delta.
    pub(crate) async fn delta(&mut self, delta: v1::AssignmentDelta) {
        let stamp = Stamp {
            sequence: self.stamp.sequence + 1,
            ..self.stamp
        };
        self.delta_stamped(stamp, delta).await;
    }

    pub(crate) async fn delta_stamped(&mut self, stamp: Stamp, mut delta: v1::AssignmentDelta) {
        self.stamp = stamp;
        delta.stamp = Some(stamp.into());
        self.send(controller_message::Body::Delta(delta)).await;
    }

    pub(crate) async fn acknowledge(&self, number: u64) {
        self.send(controller_message::Body::Ack(v1::ReportAck { number }))
            .await;
    }

    /// Reads and acknowledges reports until one is as wanted.
    pub(crate) async fn report(
        &mut self,
        what: &str,
        wanted: impl Fn(&v1::Report) -> bool,
    ) -> v1::Report {
        loop {
            let report = self.report_unacknowledged().await;
            self.acknowledge(report.number).await;
            if wanted(&report) {
                return report;
            }
            tracing::debug!(?report, what, "not yet");
        }
    }

    pub(crate) async fn report_unacknowledged(&mut self) -> v1::Report {
        loop {
            if let agent_message::Body::Report(report) = self.next().await {
                return report;
            }
        }
    }

    /// Reads and acknowledges reports until the instance is in the state.
    pub(crate) async fn state(
        &mut self,
        id: InstanceId,
        kind: v1::instance_state::Kind,
    ) -> v1::ObservedInstance {
        let what = format!("{id} in {kind:?}");
        let at = |report: &v1::Report| state_of(report, id) == Some(kind);
        let report = self.report(&what, at).await;
        report
            .instances
            .into_iter()
            .find(|instance| instance.id == id.to_wire())
            .unwrap()
    }
}

pub(crate) fn state_of(report: &v1::Report, id: InstanceId) -> Option<v1::instance_state::Kind> {
    let instance = report
        .instances
        .iter()
        .find(|instance| instance.id == id.to_wire())?;
    Some(instance.state.as_ref().unwrap().kind())
}

struct Service(mpsc::Sender<Session>);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Agents for Service {
    type SessionStream = Answers<ControllerMessage>;

    async fn session(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (outbound, messages) = mpsc::channel(16);
        let session = Session {
            inbound: request.into_inner(),
            outbound,
            stamp: Stamp::default(),
        };
        self.0
            .send(session)
            .await
            .map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}

struct Artifacts(Store);

macro_rules! refused {
    ($($method:ident: $request:ident => $response:ident;)*) => {
        #[tonic::async_trait]
        impl Management for Artifacts {
            type GetArtifactStream = Answers<v1::ArtifactChunk>;
            type BuildLogStream = Answers<v1::BuildLogChunk>;

            async fn build_log(
                &self,
                _: Request<v1::BuildLogRequest>,
            ) -> Result<Response<Self::BuildLogStream>, Status> {
                Err(Status::unimplemented("not in this fake"))
            }

            async fn get_artifact(
                &self,
                request: Request<v1::GetArtifactRequest>,
            ) -> Result<Response<Self::GetArtifactStream>, Status> {
                let digest = Digest::from_wire("digest", request.into_inner().digest)?;
                let bytes = self.0.lock().unwrap().get(&digest).cloned();
                let bytes = bytes.ok_or_else(|| Status::not_found("no such artifact"))?;
                let chunks: Vec<_> = bytes
                    .chunks(1000)
                    .map(|chunk| Ok(v1::ArtifactChunk { data: chunk.to_vec().into() }))
                    .collect();
                Ok(Response::new(Box::pin(tokio_stream::iter(chunks))))
            }

            async fn put_artifact(
                &self,
                request: Request<Streaming<v1::ArtifactChunk>>,
            ) -> Result<Response<v1::PutArtifactResponse>, Status> {
                let mut chunks = request.into_inner();
                let mut bytes = Vec::new();
                while let Some(chunk) = chunks.message().await? {
                    bytes.extend_from_slice(&chunk.data);
                }
                let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
                self.0.lock().unwrap().insert(digest, bytes);
                Ok(Response::new(v1::PutArtifactResponse { digest: digest.to_wire(), size }))
            }

            $(async fn $method(
                &self,
                _: Request<v1::$request>,
            ) -> Result<Response<v1::$response>, Status> {
                Err(Status::unimplemented("not in this fake"))
            })*
        }
    };
}

refused! {
    write: WriteRequest => WriteResponse;
    get_token: GetTokenRequest => GetTokenResponse;
    list_tokens: ListTokensRequest => ListTokensResponse;
    list_projects: ListProjectsRequest => ListProjectsResponse;
    list_namespaces: ListNamespacesRequest => ListNamespacesResponse;
    get_function: GetFunctionRequest => GetFunctionResponse;
    list_functions: ListFunctionsRequest => ListFunctionsResponse;
    list_revisions: ListRevisionsRequest => ListRevisionsResponse;
    describe_function: DescribeFunctionRequest => DescribeFunctionResponse;
    list_keys: ListKeysRequest => ListKeysResponse;
    list_tasks: ListTasksRequest => ListTasksResponse;
    list_nodes: ListNodesRequest => ListNodesResponse;
    change_node: ChangeNodeRequest => WriteResponse;
    status: StatusRequest => StatusResponse;
}
