//! Talking to whichever controller answers.

use std::{
    future::Future,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use coracle_base::Address;
use coracle_proto::v1::{self, management_client::ManagementClient, routing_client::RoutingClient};
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Status, transport::Channel};

/// One attempt; a controller that takes longer is treated as gone.
const ATTEMPT: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// gRPC refuses messages above 4 MiB unless told otherwise; a route snapshot of a large cluster and
/// a list of all functions are larger.
const MESSAGE_MAX: usize = 64 << 20;

/// Connections to all controllers, of which one at a time is asked: the last that answered.
#[derive(Debug)]
pub(crate) struct Controllers {
    channels: Vec<Channel>,
    current: AtomicUsize,
}

/// Whether the same question may be put to another controller. Everything here is a read or
/// carries an id under which it happens at most once.
pub(crate) fn is_transient(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable
            | Code::Aborted
            | Code::DeadlineExceeded
            | Code::Cancelled
            | Code::Unknown
    )
}

impl Controllers {
    /// Has to be called inside a runtime: the connections' tasks live on it.
    pub(crate) fn new(addresses: &[Address]) -> Self {
        let channels = addresses.iter().map(Address::channel).collect();
        Self {
            channels,
            current: AtomicUsize::new(0),
        }
    }

    fn channel(&self) -> (usize, Channel) {
        let at = self.current.load(Relaxed) % self.channels.len();
        (at, self.channels[at].clone())
    }

    /// Goes on to the next one, unless somebody else did.
    fn give_up_on(&self, at: usize) {
        let next = (at + 1) % self.channels.len();
        // Losing this race means that another caller has moved on already.
        let _ = self.current.compare_exchange(at, next, Relaxed, Relaxed);
    }

    /// Asks until one answers or `deadline` passes; the last error is returned then.
    pub(crate) async fn ask<T, F>(
        &self,
        deadline: Instant,
        mut call: impl FnMut(Channel) -> F,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let mut pause = FIRST_PAUSE;
        loop {
            let (at, channel) = self.channel();
            let attempt = deadline.min(Instant::now() + ATTEMPT);
            let status = match timeout_at(attempt, call(channel)).await {
                Ok(Err(status)) if is_transient(&status) => status,
                Ok(done) => return done,
                Err(_) => Status::deadline_exceeded("the controller did not answer in time"),
            };
            self.give_up_on(at);
            if Instant::now() + pause >= deadline {
                return Err(status);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    pub(crate) fn management(channel: Channel) -> ManagementClient<Channel> {
        ManagementClient::new(channel).max_decoding_message_size(MESSAGE_MAX)
    }

    fn routing(channel: Channel) -> RoutingClient<Channel> {
        RoutingClient::new(channel).max_decoding_message_size(MESSAGE_MAX)
    }

    /// One attempt, so that the caller can see how long its requests have waited in between.
    pub(crate) async fn activate(
        &self,
        request: v1::ActivateRequest,
    ) -> Result<v1::ActivateResponse, Status> {
        let (at, channel) = self.channel();
        let mut client = Self::routing(channel);
        match timeout_at(Instant::now() + ATTEMPT, client.activate(request)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => {
                if is_transient(&status) {
                    self.give_up_on(at);
                }
                Err(status)
            }
            Err(_) => {
                self.give_up_on(at);
                Err(Status::deadline_exceeded(
                    "the controller did not answer in time",
                ))
            }
        }
    }

    pub(crate) async fn report_demand(&self, report: v1::DemandReport) -> Result<(), Status> {
        let (at, channel) = self.channel();
        let mut client = Self::routing(channel);
        let answer = client.report_demand(report);
        match timeout_at(Instant::now() + Duration::from_secs(1), answer).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) => {
                if is_transient(&status) {
                    self.give_up_on(at);
                }
                Err(status)
            }
            Err(_) => Err(Status::deadline_exceeded(
                "the controller did not answer in time",
            )),
        }
    }

    /// Opens a route feed; the first update of it is a snapshot.
    pub(crate) async fn routes(
        &self,
        gateway: uuid::Uuid,
    ) -> Result<tonic::Streaming<v1::RouteUpdate>, Status> {
        let (at, channel) = self.channel();
        let mut client = Self::routing(channel);
        let request = v1::RoutesRequest {
            gateway: crate::wire::bytes(gateway),
        };
        let opened = timeout_at(Instant::now() + ATTEMPT, client.routes(request)).await;
        let result = match opened {
            Ok(result) => result,
            Err(_) => Err(Status::deadline_exceeded(
                "the controller did not answer in time",
            )),
        };
        if result.is_err() {
            self.give_up_on(at);
        }
        Ok(result?.into_inner())
    }
}
