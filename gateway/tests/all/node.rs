//! A fake agent's data port: gRPC, and relayed connections, on one TCP listener.

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use coracle_base::{Address, Conn, Incoming, Tls};
use coracle_proto::{
    relay::{self, Answer, FIRST_BYTE, PREAMBLE_BYTES},
    v1::{self, node_service_server::NodeServiceServer},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::UnixStream,
    runtime::Runtime,
    sync::mpsc,
};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use uuid::Uuid;

use crate::support::{Fake, Instance, PATIENCE, Plane, World, id_bytes};

#[derive(Default)]
struct Sockets {
    known: Mutex<HashMap<Uuid, PathBuf>>,
    refuse: Mutex<Option<Answer>>,
    asked: AtomicUsize,
}

pub(crate) struct Node {
    pub(crate) id: Uuid,
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    tls: Option<Tls>,
    sockets: Arc<Sockets>,
    plane: Arc<Plane>,
    /// All of its tasks and connections: they end with it, as with a process.
    runtime: Option<Runtime>,
}

impl Node {
    /// One that the routes name from the next update on.
    pub(crate) fn new(world: &World, name: &'static str) -> Self {
        Self::shown(world, name, Uuid::new_v4(), None)
    }

    /// One that speaks TLS and shows what it is given.
    pub(crate) fn shown(world: &World, name: &'static str, id: Uuid, tls: Option<Tls>) -> Self {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let mut node = Self {
            id,
            name,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            tls,
            sockets: Arc::default(),
            plane: world.plane.clone(),
            runtime: None,
        };
        node.start();
        let named = v1::NodeAddress {
            node: id_bytes(node.id),
            address: format!("{scheme}://{}", node.address),
            name: name.into(),
            silent: false,
        };
        world.plane.nodes.lock().unwrap().push(named);
        node
    }

    /// On the address that it had before.
    pub(crate) fn start(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let at = self.address.to_string();
        let address = match &self.tls {
            Some(tls) => Address::Tls(at, tls.with_alpn(&[b"h2", relay::ALPN])),
            None => Address::Tcp(at),
        };
        // Listening takes the runtime that serves, and blocking on it another thread.
        let handle = runtime.handle().clone();
        let listen = move || handle.block_on(address.listen()).unwrap();
        let incoming = std::thread::spawn(listen).join().unwrap();
        self.address = incoming.local_addr().unwrap();
        runtime.spawn(serve(incoming, self.sockets.clone(), self.plane.clone()));
        self.runtime = Some(runtime);
    }

    /// As SIGKILL would.
    pub(crate) fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Returns when every socket is closed; not allowed on a thread that runs tasks.
            let end = move || runtime.shutdown_timeout(PATIENCE);
            std::thread::spawn(end).join().unwrap();
        }
    }

    /// A new instance on it.
    pub(crate) fn instance(&self, world: &World) -> Instance {
        let mut instance = world.instance();
        instance.node = self.id;
        let mut known = self.sockets.known.lock().unwrap();
        known.insert(instance.id, instance.path.clone());
        instance
    }

    /// Answers every further preamble so.
    pub(crate) fn refuse(&self, answer: Answer) {
        *self.sockets.refuse.lock().unwrap() = Some(answer);
    }

    /// Preambles it has read.
    pub(crate) fn asked(&self) -> usize {
        self.sockets.asked.load(SeqCst)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn serve(mut incoming: Incoming, sockets: Arc<Sockets>, plane: Arc<Plane>) {
    let (to_service, connections) = mpsc::channel(16);
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(NodeServiceServer::new(Fake(plane)))
            .serve_with_incoming(ReceiverStream::new(connections)),
    );
    while let Some(conn) = incoming.next().await {
        let (sockets, to_service) = (sockets.clone(), to_service.clone());
        let conn = conn.unwrap();
        tokio::spawn(async move {
            let relayed = match conn.protocol() {
                Some(protocol) => protocol == relay::ALPN,
                None => matches!(conn.peek().await, Ok(Some(FIRST_BYTE))),
            };
            if relayed {
                relay(conn, &sockets).await
            } else {
                let conn: std::io::Result<_> = Ok(conn);
                to_service.send(conn).await.ok()
            }
        });
    }
}

async fn relay(mut stream: Conn, sockets: &Sockets) -> Option<()> {
    let mut preamble = [0; PREAMBLE_BYTES];
    stream.read_exact(&mut preamble).await.ok()?;
    let id = relay::parse(&preamble).expect("a preamble");
    sockets.asked.fetch_add(1, SeqCst);
    let refusal = *sockets.refuse.lock().unwrap();
    let path = sockets.known.lock().unwrap().get(&id.0).cloned();
    let instance = match (refusal, path) {
        (Some(refusal), _) => Err(refusal),
        (None, Some(path)) => UnixStream::connect(path).await.map_err(|_| Answer::Ending),
        (None, None) => Err(Answer::Unknown),
    };
    let answer = instance.as_ref().err().copied().unwrap_or(Answer::Open);
    stream.write_all(&[answer.to_byte()]).await.ok()?;
    stream.flush().await.ok()?;
    copy_bidirectional(&mut stream, &mut instance.ok()?)
        .await
        .ok()
        .map(drop)
}
