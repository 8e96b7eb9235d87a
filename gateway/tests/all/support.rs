//! A gateway between a fake controller, a fake node and fake instances, all in this process.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use coracle_base::{Address, MemoryBus, Shutdown};
use coracle_gateway::{Config, Handle};
use coracle_proto::v1::{
    self, await_instance_response::Outcome, node_service_server as node, routing_server as routing,
};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixListener, UnixStream},
    sync::{Notify, mpsc},
    task::JoinHandle,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use uuid::Uuid;

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn id_bytes(id: Uuid) -> Bytes {
    Bytes::copy_from_slice(id.as_bytes())
}

/// Waits until `probe` is true; the label says what for when it never is.
pub(crate) async fn until(label: &str, mut probe: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !probe() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    assert!(waited.await.is_ok(), "waited in vain until {label}");
}

type OnActivate =
    dyn Fn(&v1::ActivateRequest) -> Result<v1::ActivateResponse, Status> + Send + Sync;

#[derive(Default)]
pub(crate) struct Plane {
    /// In the stamps of its routes; 0 counts as 1.
    pub(crate) term: AtomicU64,
    /// What its routes say of where controllers are.
    pub(crate) controllers: Mutex<Vec<String>>,
    pub(crate) routes: Mutex<(u64, Vec<v1::Route>)>,
    /// Beside [`NODE`], which is here.
    pub(crate) nodes: Mutex<Vec<v1::NodeAddress>>,
    feeds: Mutex<Vec<mpsc::Sender<Result<v1::RouteUpdate, Status>>>>,
    on_activate: Mutex<Option<Arc<OnActivate>>>,
    pub(crate) activations: Mutex<Vec<v1::ActivateRequest>>,
    pub(crate) demand: Mutex<Vec<v1::DemandReport>>,
    outcomes: Mutex<HashMap<Bytes, Outcome>>,
    changed: Notify,
    pub(crate) kills: Mutex<Vec<Bytes>>,
    pub(crate) awaits: AtomicUsize,
}

#[derive(Clone)]
pub(crate) struct Fake(pub(crate) Arc<Plane>);

/// How long a request with slots of its own runs.
const WORK: Duration = Duration::from_millis(2);

pub(crate) const NODE: Uuid = Uuid::from_u128(7);

impl Plane {
    fn update(&self, sequence: u64, snapshot: bool, upsert: Vec<v1::Route>) -> v1::RouteUpdate {
        v1::RouteUpdate {
            stamp: Some(v1::Stamp {
                incarnation: 1,
                term: self.term.load(SeqCst).max(1),
                sequence,
            }),
            snapshot,
            upsert,
            remove: vec![],
            nodes: self.nodes(),
            controllers: self.controllers.lock().unwrap().clone(),
        }
    }

    fn nodes(&self) -> Vec<v1::NodeAddress> {
        let here = v1::NodeAddress {
            node: id_bytes(NODE),
            address: "memory:".into(),
            name: "here".into(),
            silent: false,
        };
        let mut nodes = self.nodes.lock().unwrap().clone();
        nodes.push(here);
        nodes
    }

    pub(crate) async fn publish(&self, route: v1::Route) {
        let update = {
            let mut routes = self.routes.lock().unwrap();
            routes.0 += 1;
            routes.1.retain(|r| r.function != route.function);
            routes.1.push(route.clone());
            self.update(routes.0, false, vec![route])
        };
        let feeds = self.feeds.lock().unwrap().clone();
        for feed in feeds {
            let _ = feed.send(Ok(update.clone())).await;
        }
    }

    pub(crate) fn drop_feeds(&self) {
        self.feeds.lock().unwrap().clear();
    }

    pub(crate) fn on_activate(
        &self,
        answer: impl Fn(&v1::ActivateRequest) -> Result<v1::ActivateResponse, Status>
        + Send
        + Sync
        + 'static,
    ) {
        *self.on_activate.lock().unwrap() = Some(Arc::new(answer));
    }

    /// What the node says about an instance from now on.
    pub(crate) fn settle(&self, instance: Uuid, outcome: Outcome) {
        self.outcomes
            .lock()
            .unwrap()
            .insert(id_bytes(instance), outcome);
        self.changed.notify_waiters();
    }

    pub(crate) fn ready(&self, instance: &Instance) {
        self.settle(
            instance.id,
            Outcome::Ready(v1::InstanceReady {
                socket: instance.path.to_str().unwrap().into(),
                from: "stem".into(),
                start_micros: 1_000,
                init_micros: 2_000,
            }),
        );
    }
}

#[tonic::async_trait]
impl routing::Routing for Fake {
    type RoutesStream = ReceiverStream<Result<v1::RouteUpdate, Status>>;

    async fn routes(
        &self,
        _: tonic::Request<v1::RoutesRequest>,
    ) -> Result<tonic::Response<Self::RoutesStream>, Status> {
        let (sender, receiver) = mpsc::channel(64);
        let snapshot = {
            let routes = self.0.routes.lock().unwrap();
            self.0.update(routes.0, true, routes.1.clone())
        };
        sender.send(Ok(snapshot)).await.unwrap();
        self.0.feeds.lock().unwrap().push(sender);
        Ok(tonic::Response::new(ReceiverStream::new(receiver)))
    }

    async fn activate(
        &self,
        request: tonic::Request<v1::ActivateRequest>,
    ) -> Result<tonic::Response<v1::ActivateResponse>, Status> {
        let request = request.into_inner();
        self.0.activations.lock().unwrap().push(request.clone());
        let answer = self.0.on_activate.lock().unwrap().clone();
        match answer {
            Some(answer) => answer(&request).map(tonic::Response::new),
            None => Ok(tonic::Response::new(v1::ActivateResponse::default())),
        }
    }

    async fn report_demand(
        &self,
        request: tonic::Request<v1::DemandReport>,
    ) -> Result<tonic::Response<v1::DemandAck>, Status> {
        self.0.demand.lock().unwrap().push(request.into_inner());
        Ok(tonic::Response::new(v1::DemandAck {}))
    }
}

#[tonic::async_trait]
impl node::NodeService for Fake {
    type LogsStream = ReceiverStream<Result<v1::LogBatch, Status>>;

    async fn await_instance(
        &self,
        request: tonic::Request<v1::AwaitInstanceRequest>,
    ) -> Result<tonic::Response<v1::AwaitInstanceResponse>, Status> {
        let instance = request.into_inner().instance;
        self.0.awaits.fetch_add(1, SeqCst);
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let known = self.0.outcomes.lock().unwrap().get(&instance).cloned();
            if let Some(outcome) = known {
                let answer = v1::AwaitInstanceResponse {
                    outcome: Some(outcome),
                };
                return Ok(tonic::Response::new(answer));
            }
            changed.await;
        }
    }

    async fn kill_instance(
        &self,
        request: tonic::Request<v1::KillInstanceRequest>,
    ) -> Result<tonic::Response<v1::KillInstanceResponse>, Status> {
        self.0
            .kills
            .lock()
            .unwrap()
            .push(request.into_inner().instance);
        Ok(tonic::Response::new(v1::KillInstanceResponse {}))
    }

    async fn logs(
        &self,
        _: tonic::Request<v1::LogsRequest>,
    ) -> Result<tonic::Response<Self::LogsStream>, Status> {
        Err(Status::unimplemented("not part of these tests"))
    }
}

/// A request as an instance saw it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) millis: u32,
    pub(crate) id: String,
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Vec<&str> {
        self.headers
            .iter()
            .filter(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
            .collect()
    }
}

/// What the next invocation does.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    /// Status, NUL-separated header fields, body.
    Answer(u16, &'static str, Vec<u8>),
    Busy,
    Fault,
    /// Answers with the body as it comes, piece by piece.
    Echo,
    /// Nothing, until CANCEL or the end of the stream.
    Hang,
    /// Nothing, until told to by `release`; then 200.
    Wait,
    /// Dies without an answer.
    Die,
    /// A head and one piece of body; dies when told to by `release`.
    Cut,
    Garbage,
}

#[derive(Default)]
pub(crate) struct Script {
    acts: Mutex<VecDeque<Act>>,
    pub(crate) seen: Mutex<Vec<Seen>>,
    pub(crate) connections: AtomicUsize,
    pub(crate) cancelled: AtomicUsize,
    pub(crate) running: AtomicUsize,
    pub(crate) most_running: AtomicUsize,
    /// Beyond so many at once it is busy of its own accord, and each takes [`WORK`]; 0 for as the
    /// acts say.
    pub(crate) slots: AtomicUsize,
    pub(crate) refused: AtomicUsize,
    wanted: AtomicBool,
    release: Notify,
}

impl Script {
    pub(crate) fn then(&self, act: Act) {
        self.acts.lock().unwrap().push_back(act);
    }

    pub(crate) fn release(&self) {
        self.release.notify_one();
    }

    pub(crate) fn calls(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    pub(crate) fn last(&self) -> Seen {
        self.seen
            .lock()
            .unwrap()
            .last()
            .expect("it was called")
            .clone()
    }
}

pub(crate) struct Instance {
    pub(crate) id: Uuid,
    /// Where the routes say that it is.
    pub(crate) node: Uuid,
    pub(crate) path: PathBuf,
    pub(crate) script: Arc<Script>,
    listener: Option<JoinHandle<()>>,
}

impl Instance {
    pub(crate) fn stop(&mut self) {
        if let Some(listener) = self.listener.take() {
            listener.abort();
        }
        std::fs::remove_file(&self.path).unwrap();
    }
}

fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_le_bytes().to_vec();
    bytes.extend([kind, flags, 0, 0]);
    bytes.extend(payload);
    bytes
}

fn head(status: u16, fields: &str) -> Vec<u8> {
    let mut payload = status.to_le_bytes().to_vec();
    payload.extend(fields.as_bytes());
    payload
}

async fn read_frame(stream: &mut (impl AsyncReadExt + Unpin)) -> Option<(u8, u8, Vec<u8>)> {
    let mut header = [0; 8];
    stream.read_exact(&mut header).await.ok()?;
    let length = u32::from_le_bytes(header[..4].try_into().unwrap());
    let mut payload = vec![0; length as usize];
    stream.read_exact(&mut payload).await.ok()?;
    Some((header[4], header[5], payload))
}

async fn converse(mut stream: UnixStream, script: Arc<Script>) -> Option<()> {
    loop {
        let (kind, flags, payload) = read_frame(&mut stream).await?;
        if kind != 1 {
            continue;
        }
        let act = script.acts.lock().unwrap().pop_front();
        let act = act.unwrap_or(Act::Answer(200, "content-type\0text/plain", b"ok".to_vec()));
        let millis = u32::from_le_bytes(payload[..4].try_into().unwrap());
        let text: Vec<_> = payload[4..]
            .split(|b| *b == 0)
            .map(|f| String::from_utf8_lossy(f).into())
            .collect();
        let text: Vec<String> = text;
        let mut seen = Seen {
            millis,
            id: text[0].clone(),
            method: text[1].clone(),
            target: text[2].clone(),
            headers: text[3..]
                .chunks(2)
                .map(|c| (c[0].clone(), c[1].clone()))
                .collect(),
            body: vec![],
        };
        let (ends, hold) = (flags & 1 != 0, flags & 2 != 0);
        let now = script.running.fetch_add(1, SeqCst) + 1;
        let slots = script.slots.load(SeqCst);
        if matches!(act, Act::Busy) || (slots > 0 && now > slots) {
            script.running.fetch_sub(1, SeqCst);
            script.refused.fetch_add(1, SeqCst);
            script.wanted.store(true, SeqCst);
            stream.write_all(&frame(0x83, 0, &[])).await.ok()?;
            if !ends && !hold {
                while read_frame(&mut stream).await?.1 & 1 == 0 {}
            }
            continue;
        }
        script.most_running.fetch_max(now, SeqCst);
        if hold {
            stream.write_all(&frame(0x85, 0, &[])).await.ok()?;
        }
        let going = if matches!(act, Act::Echo) {
            echo(&mut stream, &script, seen).await
        } else {
            let mut whole = ends;
            while !whole {
                let (kind, flags, piece) = read_frame(&mut stream).await?;
                if kind == 3 {
                    script.cancelled.fetch_add(1, SeqCst);
                    break;
                }
                seen.body.extend(piece);
                whole = flags & 1 != 0;
            }
            script.seen.lock().unwrap().push(seen);
            if slots > 0 {
                tokio::time::sleep(WORK).await;
            }
            act_out(&mut stream, &script, act).await
        };
        going?;
    }
}

async fn act_out(stream: &mut UnixStream, script: &Script, act: Act) -> Option<()> {
    let bytes = match act {
        Act::Answer(status, fields, body) if body.is_empty() => {
            frame(0x81, 1, &head(status, fields))
        }
        Act::Answer(status, fields, body) => {
            let mut bytes = frame(0x81, 0, &head(status, fields));
            let wanted = script.wanted.swap(false, SeqCst);
            bytes.extend(frame(0x82, 1 | (u8::from(wanted) << 2), &body));
            bytes
        }
        Act::Fault => frame(
            0x84,
            0,
            br#"{"kind":"exception","type":"KeyError","message":"'x'","trace":["secret.py"]}"#,
        ),
        Act::Hang => {
            if read_frame(stream).await.is_some_and(|f| f.0 == 3) {
                script.cancelled.fetch_add(1, SeqCst);
            }
            script.release.notified().await;
            frame(0x81, 1, &head(200, ""))
        }
        Act::Wait => {
            script.release.notified().await;
            frame(0x81, 1, &head(200, ""))
        }
        Act::Die => {
            script.running.fetch_sub(1, SeqCst);
            return None;
        }
        Act::Cut => {
            let mut bytes = frame(0x81, 0, &head(200, ""));
            bytes.extend(frame(0x82, 0, b"half"));
            stream.write_all(&bytes).await.ok()?;
            script.release.notified().await;
            script.running.fetch_sub(1, SeqCst);
            return None;
        }
        Act::Garbage => vec![0xff; 64],
        Act::Busy | Act::Echo => unreachable!("handled before"),
    };
    // As a shim does: the slot is free before the caller can know it.
    script.running.fetch_sub(1, SeqCst);
    stream.write_all(&bytes).await.ok()
}

async fn echo(stream: &mut UnixStream, script: &Script, seen: Seen) -> Option<()> {
    script.seen.lock().unwrap().push(seen);
    let (mut read, mut write) = stream.split();
    write
        .write_all(&frame(0x81, 0, &head(200, "")))
        .await
        .ok()?;
    loop {
        let (_, flags, piece) = read_frame(&mut read).await?;
        write
            .write_all(&frame(0x82, flags & 1, &piece))
            .await
            .ok()?;
        if flags & 1 != 0 {
            script.running.fetch_sub(1, SeqCst);
            return Some(());
        }
    }
}

pub(crate) struct World {
    pub(crate) plane: Arc<Plane>,
    pub(crate) gateway: Handle,
    pub(crate) invoke: SocketAddr,
    pub(crate) api: SocketAddr,
    pub(crate) shutdown: Shutdown,
    pub(crate) run: Option<JoinHandle<()>>,
    dir: tempfile::TempDir,
}

impl World {
    pub(crate) async fn new(change: impl FnOnce(&mut Config)) -> Self {
        let plane = Arc::new(Plane::default());
        let controller = MemoryBus::new();
        let routes = routing::RoutingServer::new(Fake(plane.clone()));
        let incoming = Address::Memory(controller.clone()).listen().await.unwrap();
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(routes)
                .serve_with_incoming(incoming),
        );
        Self::with_controllers(plane, vec![Address::Memory(controller)], change).await
    }

    /// The plane is that of the nodes, and of the controllers where they have no other.
    pub(crate) async fn with_controllers(
        plane: Arc<Plane>,
        controllers: Vec<Address>,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let agent = MemoryBus::new();
        let nodes = node::NodeServiceServer::new(Fake(plane.clone()));
        let incoming = Address::Memory(agent.clone()).listen().await.unwrap();
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(nodes)
                .serve_with_incoming(incoming),
        );
        let mut config = Config::new(controllers);
        config.local_node = Some(Address::Memory(agent));
        config.threads = 2;
        change(&mut config);
        let gateway = config.bind().await.unwrap();
        let (invoke, api) = (gateway.invoke_address(), gateway.api_address());
        let handle = gateway.handle();
        let shutdown = Shutdown::new();
        let run = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { gateway.run(shutdown).await.unwrap() }
        });
        until("the routes have arrived", || {
            handle.health().controller_connected
        })
        .await;
        Self {
            plane,
            gateway: handle,
            invoke,
            api,
            shutdown,
            run: Some(run),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn instance(&self) -> Instance {
        let id = Uuid::new_v4();
        let path = self.dir.path().join(format!("{}.sock", id.simple()));
        let listener = UnixListener::bind(&path).unwrap();
        let script = Arc::new(Script::default());
        let accept = {
            let script = script.clone();
            async move {
                let mut conversations = tokio::task::JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    script.connections.fetch_add(1, SeqCst);
                    conversations.spawn(converse(stream, script.clone()));
                }
            }
        };
        Instance {
            id,
            node: NODE,
            path,
            script,
            listener: Some(tokio::spawn(accept)),
        }
    }

    pub(crate) fn route(&self, function: Uuid, instances: &[&Instance]) -> v1::Route {
        v1::Route {
            function: id_bytes(function),
            project_id: 1,
            project: "default".into(),
            namespace: "ns".into(),
            name: "hello".into(),
            revision: Some(v1::RevisionId {
                function: id_bytes(function),
                number: 1,
            }),
            timeout_secs: 10,
            init_timeout_secs: 10,
            concurrency: 1,
            instances: instances.iter().map(|i| self.listed(function, i)).collect(),
            ..v1::Route::default()
        }
    }

    pub(crate) fn listed(&self, function: Uuid, instance: &Instance) -> v1::RouteInstance {
        v1::RouteInstance {
            id: id_bytes(instance.id),
            node: id_bytes(instance.node),
            revision: Some(v1::RevisionId {
                function: id_bytes(function),
                number: 1,
            }),
            ready: true,
            socket: instance.path.to_str().unwrap().into(),
            draining: false,
        }
    }

    /// Publishes a route and waits until the gateway has it.
    pub(crate) async fn publish(&self, route: v1::Route) {
        self.plane.publish(route).await;
        let sequence = self.plane.routes.lock().unwrap().0;
        until("the gateway has the route", || {
            self.gateway
                .health()
                .routes
                .is_some_and(|s| s.sequence >= sequence)
        })
        .await;
    }

    /// A warm function at `/fn/default/ns/hello` with one instance.
    pub(crate) async fn warm(&self, change: impl FnOnce(&mut v1::Route)) -> (Uuid, Instance) {
        let function = Uuid::new_v4();
        let instance = self.instance();
        let mut route = self.route(function, &[&instance]);
        change(&mut route);
        self.publish(route).await;
        (function, instance)
    }

    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Response<Bytes> {
        tokio::time::timeout(PATIENCE, send(self.invoke, request))
            .await
            .expect("an answer")
    }

    pub(crate) async fn ask_api(&self, request: Request<Full<Bytes>>) -> Response<Bytes> {
        tokio::time::timeout(PATIENCE, send(self.api, request))
            .await
            .expect("an answer")
    }

    pub(crate) async fn get(&self, path: &str) -> Response<Bytes> {
        self.send(Request::get(path).body(Full::default()).unwrap())
            .await
    }

    pub(crate) async fn post(&self, path: &str, body: impl Into<Bytes>) -> Response<Bytes> {
        self.send(Request::post(path).body(Full::new(body.into())).unwrap())
            .await
    }

    /// Everything that comes back for these bytes, until the connection closes.
    pub(crate) async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.invoke).await.unwrap();
        // The gateway may answer and close before it has read everything.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        let _ = tokio::time::timeout(PATIENCE, read)
            .await
            .expect("the connection is closed");
        String::from_utf8_lossy(&answer).into()
    }
}

async fn send(address: SocketAddr, request: Request<Full<Bytes>>) -> Response<Bytes> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let mut request = request;
    request
        .headers_mut()
        .entry("host")
        .or_insert(http::HeaderValue::from_static("x"));
    let response = client.send_request(request).await.unwrap();
    let (parts, body) = response.into_parts();
    Response::from_parts(parts, body.collect().await.unwrap().to_bytes())
}

pub(crate) fn code(response: &Response<Bytes>) -> &str {
    response
        .headers()
        .get("x-coracle-error")
        .map_or("", |v| v.to_str().unwrap())
}
