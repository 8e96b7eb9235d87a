//! Talking to whichever controller answers.

use std::{future::Future, time::Duration};

use coracle_base::replicas::{Pace, Replicas, Server};
use coracle_proto::v1::{self, management_client::ManagementClient, routing_client::RoutingClient};
use tokio::time::{Instant, timeout_at};
use tonic::{Status, transport::Channel};

/// gRPC refuses messages above 4 MiB unless told otherwise; a route snapshot of a large cluster and
/// a list of all functions are larger.
const MESSAGE_MAX: usize = 64 << 20;
/// Demand is reported again in a second.
const REPORT: Duration = Duration::from_secs(1);

/// The controllers, of which the one that led last is asked first.
#[derive(Debug)]
pub(crate) struct Controllers {
    replicas: Replicas,
}

impl Controllers {
    pub(crate) fn new(replicas: Replicas) -> Self {
        Self { replicas }
    }

    pub(crate) fn replicas(&self) -> &Replicas {
        &self.replicas
    }

    /// Asks any of them, one after the other, until one answers or `deadline` passes; the last error
    /// is returned then. Everything here is a read or carries an id under which it happens at most
    /// once.
    pub(crate) async fn ask<T, F>(
        &self,
        deadline: Instant,
        call: impl Fn(Channel) -> F,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let answer = self.replicas.ask(Pace::PATIENT, deadline, call, |_| ());
        answer.await.map(|(_, answer)| answer)
    }

    pub(crate) fn management(channel: Channel) -> ManagementClient<Channel> {
        ManagementClient::new(channel).max_decoding_message_size(MESSAGE_MAX)
    }

    fn routing(channel: Channel) -> RoutingClient<Channel> {
        RoutingClient::new(channel).max_decoding_message_size(MESSAGE_MAX)
    }

    /// Until the leader answers, under the same id; `doubt` hears of every attempt that failed.
    pub(crate) async fn activate(
        &self,
        request: &v1::ActivateRequest,
        deadline: Instant,
        doubt: impl FnMut(&Status),
    ) -> Result<v1::ActivateResponse, Status> {
        let call = |channel| {
            let request = request.clone();
            async move { Self::routing(channel).activate(request).await }
        };
        let answer = self.replicas.ask(Pace::URGENT, deadline, call, doubt);
        let (leader, answer) = answer.await?;
        self.replicas.leads(&leader);
        Ok(answer.into_inner())
    }

    /// Once, to whoever led last: the feed and the activations find out who leads now.
    pub(crate) async fn report_demand(&self, report: v1::DemandReport) -> Result<(), Status> {
        let mut client = Self::routing(self.replicas.first().channel());
        let answer = client.report_demand(report);
        match timeout_at(Instant::now() + REPORT, answer).await {
            Ok(answer) => answer.map(drop),
            Err(_) => Err(Status::deadline_exceeded(
                "the controller did not answer in time",
            )),
        }
    }

    /// Opens a route feed of the leader; the first update of it is a snapshot.
    pub(crate) async fn routes(
        &self,
        gateway: uuid::Uuid,
        deadline: Instant,
    ) -> Result<(Server, tonic::Streaming<v1::RouteUpdate>), Status> {
        let call = |channel| async move {
            let request = v1::RoutesRequest {
                gateway: crate::wire::bytes(gateway),
            };
            Self::routing(channel).routes(request).await
        };
        let opened = self.replicas.ask(Pace::STEADY, deadline, call, |_| ());
        let (leader, stream) = opened.await?;
        self.replicas.leads(&leader);
        Ok((leader, stream.into_inner()))
    }
}
