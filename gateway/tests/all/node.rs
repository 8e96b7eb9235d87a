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

use coracle_base::Conn;
use coracle_proto::{
    relay::{self, Answer, FIRST_BYTE, PREAMBLE_BYTES},
    v1::{self, node_service_server::NodeServiceServer},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream, UnixStream},
    runtime::Runtime,
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
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
    sockets: Arc<Sockets>,
    plane: Arc<Plane>,
    /// All of its tasks and connections: they end with it, as with a process.
    runtime: Option<Runtime>,
}

impl Node {
    /// One that the routes name from the next update on.
    pub(crate) fn new(world: &World, name: &'static str) -> Self {
        let mut node = Self {
            id: Uuid::new_v4(),
            name,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            sockets: Arc::default(),
            plane: world.plane.clone(),
            runtime: None,
        };
        node.start();
        let named = v1::NodeAddress {
            node: id_bytes(node.id),
            address: format!("http://{}", node.address),
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
        let listener = std::net::TcpListener::bind(self.address).unwrap();
        listener.set_nonblocking(true).unwrap();
        self.address = listener.local_addr().unwrap();
        runtime.spawn(serve(listener, self.sockets.clone(), self.plane.clone()));
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

async fn serve(listener: std::net::TcpListener, sockets: Arc<Sockets>, plane: Arc<Plane>) {
    let listener = TcpListener::from_std(listener).unwrap();
    let (to_service, connections) = mpsc::channel(16);
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(NodeServiceServer::new(Fake(plane)))
            .serve_with_incoming(ReceiverStream::new(connections)),
    );
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (sockets, to_service) = (sockets.clone(), to_service.clone());
        tokio::spawn(async move {
            let mut first = [0];
            if stream.peek(&mut first).await.is_ok_and(|n| n == 1) && first[0] == FIRST_BYTE {
                relay(stream, &sockets).await
            } else {
                let conn: std::io::Result<_> = Ok(Conn::Tcp(stream));
                to_service.send(conn).await.ok()
            }
        });
    }
}

async fn relay(mut stream: TcpStream, sockets: &Sockets) -> Option<()> {
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
    copy_bidirectional(&mut stream, &mut instance.ok()?)
        .await
        .ok()
        .map(drop)
}
