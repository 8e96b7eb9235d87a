//! Between gateways and the leader. The hot path of a cold start is [`Routing::activate`]: it
//! decides in memory, under one lock, and the order is on its way to the agent before the answer is.

use std::{collections::BTreeSet, sync::Arc};

use coracle_identity::Peer;
use coracle_model::{ActivationId, FunctionId, InstanceId};
use coracle_planner::{DemandSample, GatewayId};
use coracle_proto::{ConvertError, Wire as _, v1};
use futures_util::stream;
use tokio::time::Instant;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::Streamed;
use crate::{
    core::{Core, fresh_instance},
    feed::Subscription,
    leader::{activate::Activation, desk::NotLeading},
    metrics,
};

/// More instances than a function can have are not told apart.
const BUSY_MOST: usize = 256;

pub(crate) struct Routing {
    pub(crate) core: Arc<Core>,
}

#[tonic::async_trait]
impl v1::routing_server::Routing for Routing {
    type RoutesStream = Streamed<v1::RouteUpdate>;

    async fn routes(
        &self,
        _: Request<v1::RoutesRequest>,
    ) -> Result<Response<Self::RoutesStream>, Status> {
        let mut turns = self.core.routes.turns();
        let subscription = loop {
            if let Some(subscription) = self.core.routes.subscribe() {
                break subscription;
            }
            // A leader that still listens to its agents has routes in a moment; the gateway serves
            // from its last ones until then.
            self.core.require_leader()?;
            if turns.changed().await.is_err() {
                return Err(self.core.not_leader());
            }
        };
        let updates = stream::unfold(subscription, |mut subscription: Subscription| async {
            let update = subscription.next().await?;
            Some((Ok(v1::RouteUpdate::clone(&update)), subscription))
        });
        Ok(Response::new(Box::pin(updates)))
    }

    async fn activate(
        &self,
        request: Request<v1::ActivateRequest>,
    ) -> Result<Response<v1::ActivateResponse>, Status> {
        let started = Instant::now();
        let peer = Peer::of(&request);
        let request = request.into_inner();
        let activation = Activation {
            id: ActivationId::from_wire("activation", request.activation)?,
            gateway: gateway(peer, request.gateway)?,
            function: FunctionId::from_wire("function", request.function)?,
            parked: request.parked,
        };
        let (answer, instances) = self
            .core
            .desk
            .activate(self.core.now(), activation, &mut fresh_instance)
            .map_err(|NotLeading| self.core.not_leader())?;
        let refusal = answer.refusal;
        metrics::activated(
            started.elapsed(),
            refusal.is_some(),
            u64::from(answer.started),
        );
        // Its routes, and room on full nodes: after the answer.
        self.core.wake();
        Ok(Response::new(v1::ActivateResponse {
            instances,
            retry_after_millis: refusal.as_ref().map_or(0, |refusal| refusal.retry_after_ms),
            refusal: refusal.map(|refusal| refusal.reason).unwrap_or_default(),
        }))
    }

    async fn report_demand(
        &self,
        request: Request<v1::DemandReport>,
    ) -> Result<Response<v1::DemandAck>, Status> {
        let peer = Peer::of(&request);
        let report = request.into_inner();
        let gateway = gateway(peer, report.gateway)?;
        let mut samples = Vec::with_capacity(report.functions.len());
        for demand in report.functions {
            let id = FunctionId::from_wire("function", demand.function)?;
            let sample = DemandSample {
                in_flight: demand.in_flight,
                queued: demand.queued,
                arrivals: demand.arrivals,
                mean_millis: demand.mean_concurrency_millis,
                busy: busy(demand.busy)?,
            };
            samples.push((id, sample));
        }
        self.core
            .demand(self.core.now(), gateway, samples)
            .map_err(|NotLeading| self.core.not_leader())?;
        Ok(Response::new(v1::DemandAck {}))
    }
}

/// A gateway speaks for itself; a controller hands on what one said to it.
/// What drains finishes what it runs in any case; that busy ones come last saves their warmth.
pub(crate) fn busy(ids: Vec<bytes::Bytes>) -> Result<BTreeSet<InstanceId>, ConvertError> {
    let ids = ids.into_iter().take(BUSY_MOST);
    ids.map(|id| InstanceId::from_wire("busy", id)).collect()
}

fn gateway(peer: Peer, bytes: bytes::Bytes) -> Result<GatewayId, Status> {
    let id =
        Uuid::from_slice(&bytes).map_err(|_| ConvertError::new("gateway", "must be 16 bytes"))?;
    if !peer.is_gateway(id) && peer.member().is_none() {
        return Err(Status::permission_denied(format!(
            "this gateway's certificate is not that of gateway {id}"
        )));
    }
    Ok(GatewayId(id.into_bytes()))
}
