//! Fake controllers of which one leads, each in a runtime of its own so that it can be killed.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, atomic::Ordering::SeqCst},
};

use coracle_base::{Address, Conn};
use coracle_proto::v1::{self, routing_server as routing};
use tokio::runtime::Runtime;
use tokio_stream::{StreamExt, wrappers::TcpListenerStream};
use tonic::{Request, Response, Status};

use crate::support::{Fake, PATIENCE, Plane};

/// Who leads, and everything that was asked of anybody.
#[derive(Default)]
pub(crate) struct Group {
    pub(crate) leader: Mutex<Option<usize>>,
    addresses: Mutex<Vec<SocketAddr>>,
    /// Followers say who leads, when they know.
    pub(crate) hints: bool,
    /// Who was asked, and for which activation; refused ones included.
    pub(crate) asked: Mutex<Vec<(usize, bytes::Bytes)>>,
}

pub(crate) struct Controller {
    pub(crate) address: SocketAddr,
    pub(crate) plane: Arc<Plane>,
    runtime: Option<Runtime>,
}

impl Controller {
    pub(crate) fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Returns when every socket is closed; not allowed on a thread that runs tasks.
            let end = move || runtime.shutdown_timeout(PATIENCE);
            std::thread::spawn(end).join().unwrap();
        }
    }

    pub(crate) fn dial(&self) -> Address {
        Address::Tcp(self.address.to_string())
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Group {
    /// `count` of them; nobody leads yet.
    pub(crate) fn start(count: usize, hints: bool) -> (Arc<Self>, Vec<Controller>) {
        let group = Arc::new(Self {
            hints,
            ..Self::default()
        });
        let controllers = (0..count).map(|number| group.member(number));
        let controllers = controllers.collect();
        (group, controllers)
    }

    pub(crate) fn member(self: &Arc<Self>, number: usize) -> Controller {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        self.addresses.lock().unwrap().push(address);
        let plane = Arc::new(Plane::default());
        let member = Member {
            group: self.clone(),
            number,
            fake: Fake(plane.clone()),
        };
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let incoming = TcpListenerStream::new(listener).map(|c| c.map(Conn::Tcp));
            tonic::transport::Server::builder()
                .add_service(routing::RoutingServer::new(member))
                .serve_with_incoming(incoming)
                .await
        });
        Controller {
            address,
            plane,
            runtime: Some(runtime),
        }
    }

    /// It leads from now on, in a term of its own.
    pub(crate) fn elect(&self, leader: usize, controller: &Controller, term: u64) {
        controller.plane.term.store(term, SeqCst);
        *self.leader.lock().unwrap() = Some(leader);
    }

    pub(crate) fn depose(&self) {
        *self.leader.lock().unwrap() = None;
    }
}

struct Member {
    group: Arc<Group>,
    number: usize,
    fake: Fake,
}

impl Member {
    fn lead(&self) -> Result<(), Status> {
        let leader = *self.group.leader.lock().unwrap();
        if leader == Some(self.number) {
            return Ok(());
        }
        let mut status = Status::unavailable("this controller does not lead");
        if let Some(leader) = leader.filter(|_| self.group.hints) {
            let address = self.group.addresses.lock().unwrap()[leader];
            let address = format!("http://{address}").parse().unwrap();
            status
                .metadata_mut()
                .insert("coracle-leader-address", address);
        }
        Err(status)
    }
}

#[tonic::async_trait]
impl routing::Routing for Member {
    type RoutesStream = <Fake as routing::Routing>::RoutesStream;

    async fn routes(
        &self,
        request: Request<v1::RoutesRequest>,
    ) -> Result<Response<Self::RoutesStream>, Status> {
        self.lead()?;
        self.fake.routes(request).await
    }

    async fn activate(
        &self,
        request: Request<v1::ActivateRequest>,
    ) -> Result<Response<v1::ActivateResponse>, Status> {
        let id = request.get_ref().activation.clone();
        self.group.asked.lock().unwrap().push((self.number, id));
        self.lead()?;
        self.fake.activate(request).await
    }

    async fn report_demand(
        &self,
        request: Request<v1::DemandReport>,
    ) -> Result<Response<v1::DemandAck>, Status> {
        self.lead()?;
        self.fake.report_demand(request).await
    }
}
