//! The API listener: the facades' routes behind limits, on the shared runtime.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, body::Body as AxumBody, extract::DefaultBodyLimit};
use bytes::Bytes;
use coracle_base::{Clock, Shutdown};
use coracle_facades::port::{Environment, ServerInfo};
use coracle_model::Timestamp;
use http::Request;
use http_body::{Body, Frame, SizeHint};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use tokio::{
    net::TcpListener,
    sync::Semaphore,
    time::{Instant, Sleep},
};
use tower::ServiceExt;
use uuid::Uuid;

use crate::{
    control_plane::ControllerPort,
    refusal::{self, Answered, Words},
    shared::Shared,
};

const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Followed logs never end by themselves, so the drain does not wait for ever.
const DRAIN: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Outside(Arc<dyn Clock>);

impl Environment for Outside {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.now_millis())
    }

    fn fresh_uuid(&self) -> Uuid {
        Uuid::new_v4()
    }

    fn fresh_secret(&self) -> String {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).expect("the kernel has random bytes once it has booted");
        hex::encode(bytes)
    }
}

pub(crate) fn router(shared: &Arc<Shared>, port: ControllerPort, public_url: String) -> Router {
    let config = &shared.config;
    let info = ServerInfo {
        version: config.version.clone(),
        public_url,
        region: config.region,
    };
    let env = Outside(config.clock.clone());
    let limit = usize::try_from(config.limits.api_body_max).unwrap_or(usize::MAX);
    coracle_facades::router(Arc::new(port), info, Arc::new(env)).layer(DefaultBodyLimit::max(limit))
}

/// Serves until the drain begins, and then for a bounded while what has begun.
pub(crate) async fn serve(
    listener: TcpListener,
    shared: Arc<Shared>,
    router: Router,
    drain: Shutdown,
) {
    let limits = &shared.config.limits;
    let permits = Arc::new(Semaphore::new(limits.connections_max));
    let graceful = GracefulShutdown::new();
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            () = drain.requested() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Failing to set it only costs latency.
        let _ = stream.set_nodelay(true);
        let router = router.clone();
        let idle = limits.body_idle_timeout;
        let (stream, stand) = refusal::Connection::new(stream, Words::Management);
        let service = service_fn(move |request: Request<hyper::body::Incoming>| {
            let router = router.clone();
            let answering = stand.answering();
            async move {
                let request = request.map(|body| AxumBody::new(Patient::new(body, idle)));
                let response = router
                    .oneshot(request)
                    .await
                    .unwrap_or_else(|never| match never {});
                Ok::<_, Infallible>(response.map(|body| Answered::new(body, answering)))
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head_timeout)
            .max_headers(limits.headers_max)
            .max_buf_size(limits.head_max)
            .serve_connection(TokioIo::new(stream), service);
        let connection = graceful.watch(connection);
        shared.metrics.api_connections.increment(1.0);
        let gauge = shared.metrics.api_connections.clone();
        drain.spawn("api connection", async move {
            if let Err(error) = connection.await {
                tracing::trace!(%error, "an API connection ended early");
            }
            gauge.decrement(1.0);
            drop(permit);
        });
    }
    drop(listener);
    // What runs longer than that is cut with the process.
    let _ = tokio::time::timeout(DRAIN, graceful.shutdown()).await;
}

/// A request's body that may pause only so long.
#[derive(Debug)]
struct Patient {
    body: hyper::body::Incoming,
    idle: Duration,
    sleep: Pin<Box<Sleep>>,
}

#[derive(Debug, thiserror::Error)]
enum BodyError {
    #[error("the request's body stopped arriving")]
    Idle,
    #[error("the request's body broke off")]
    Client(#[source] hyper::Error),
}

impl Patient {
    fn new(body: hyper::body::Incoming, idle: Duration) -> Self {
        Self {
            body,
            idle,
            sleep: Box::pin(tokio::time::sleep(idle)),
        }
    }
}

impl Body for Patient {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            this.sleep.as_mut().reset(Instant::now() + this.idle);
            return Poll::Ready(frame.map(|f| f.map_err(BodyError::Client)));
        }
        this.sleep
            .as_mut()
            .poll(cx)
            .map(|()| Some(Err(BodyError::Idle)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
