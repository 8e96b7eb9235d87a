//! A controller that knows one function with one instance and never changes its mind, so that the
//! gateway can be measured without the rest.

use std::{path::Path, pin::Pin};

use coracle_base::Address;
use coracle_proto::v1::{
    ActivateRequest, ActivateResponse, DemandAck, DemandReport, RevisionId, Route, RouteInstance,
    RouteUpdate, RoutesRequest, ScaleBounds, Stamp,
    routing_server::{Routing, RoutingServer},
};
use futures_util::{Stream, StreamExt, stream};
use tonic::{Request, Response, Status, transport::Server};

#[derive(Debug)]
struct OneRoute(Route);

#[tonic::async_trait]
impl Routing for OneRoute {
    type RoutesStream = Pin<Box<dyn Stream<Item = Result<RouteUpdate, Status>> + Send>>;

    async fn routes(
        &self,
        _: Request<RoutesRequest>,
    ) -> Result<Response<Self::RoutesStream>, Status> {
        let update = RouteUpdate {
            stamp: Some(Stamp {
                incarnation: 1,
                term: 1,
                sequence: 1,
            }),
            snapshot: true,
            upsert: vec![self.0.clone()],
            ..RouteUpdate::default()
        };
        Ok(Response::new(
            stream::iter([Ok(update)]).chain(stream::pending()).boxed(),
        ))
    }

    async fn activate(
        &self,
        _: Request<ActivateRequest>,
    ) -> Result<Response<ActivateResponse>, Status> {
        Err(Status::unavailable("the one instance is always there"))
    }

    async fn report_demand(&self, _: Request<DemandReport>) -> Result<Response<DemandAck>, Status> {
        Ok(Response::new(DemandAck {}))
    }
}

/// Serves `/fn/default/default/bench` with an instance at `socket`, forever.
pub(crate) async fn serve(listen: &Path, socket: &Path) -> Result<(), String> {
    let function = uuid::Uuid::from_u128(1).as_bytes().to_vec();
    let revision = RevisionId {
        function: function.clone().into(),
        number: 1,
    };
    let instance = RouteInstance {
        id: uuid::Uuid::from_u128(2).as_bytes().to_vec().into(),
        node: uuid::Uuid::from_u128(3).as_bytes().to_vec().into(),
        revision: Some(revision.clone()),
        ready: true,
        socket: socket.display().to_string(),
        draining: false,
    };
    let route = Route {
        function: function.into(),
        project_id: 1,
        project: "default".to_owned(),
        namespace: "default".to_owned(),
        name: "bench".to_owned(),
        revision: Some(revision),
        timeout_secs: 30,
        init_timeout_secs: 30,
        concurrency: 1000,
        scale: Some(ScaleBounds { min: 1, max: 1 }),
        instances: vec![instance],
        ..Route::default()
    };
    let incoming = Address::Unix(listen.to_owned())
        .listen()
        .await
        .map_err(|e| e.to_string())?;
    Server::builder()
        .add_service(RoutingServer::new(OneRoute(route)))
        .serve_with_incoming(incoming)
        .await
        .map_err(|error| error.to_string())
}
