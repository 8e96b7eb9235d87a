//! Refuses calls before a service sees them.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use coracle_base::Remote;
use futures_util::future::Either;
use http::{Request, Response};
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use crate::{Component, Peer, access};

const PEERS: &str = "/coracle.v1.Peers/";

type Belongs = Arc<dyn Fn(&Component) -> bool + Send + Sync>;

/// A layer over all services of a listener: [`access`] decides by the method and by who is at the
/// other end of the connection.
#[derive(Clone)]
pub struct Guard {
    belongs: Belongs,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Guard")
    }
}

impl Guard {
    /// Whoever holds a certificate of the cluster that has not expired belongs to it.
    pub fn new() -> Self {
        Self::with(|_| true)
    }

    /// `belongs` says whether a component was not removed since its certificate was made.
    pub fn with(belongs: impl Fn(&Component) -> bool + Send + Sync + 'static) -> Self {
        Self {
            belongs: Arc::new(belongs),
        }
    }

    fn check<B>(&self, request: &Request<B>) -> Result<(), Status> {
        let peer = request.extensions().get::<Remote>();
        let peer = peer.map_or(Peer::Anonymous, Peer::at);
        if let Err(denied) = access::check(&peer, request.uri().path()) {
            return Err(match denied {
                access::Denied::Anonymous => Status::unauthenticated(denied.to_string()),
                access::Denied::Role(_) => Status::permission_denied(denied.to_string()),
                access::Denied::NoSuchMethod => Status::unimplemented(denied.to_string()),
            });
        }
        match peer {
            // It tells a controller that was removed so itself, in a way that it can believe.
            _ if request.uri().path().starts_with(PEERS) => Ok(()),
            Peer::Component(component) if !(self.belongs)(&component) => {
                Err(Status::permission_denied(format!(
                    "this {} was removed from the cluster: join again",
                    component.role()
                )))
            }
            _ => Ok(()),
        }
    }
}

impl Default for Guard {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded {
            guard: self.clone(),
            inner,
        }
    }
}

#[derive(Debug, Clone)]
pub struct Guarded<S> {
    guard: Guard,
    inner: S,
}

impl<S, B> Service<Request<B>> for Guarded<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<std::future::Ready<Result<Response<Body>, S::Error>>, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        match self.guard.check(&request) {
            Ok(()) => Either::Right(self.inner.call(request)),
            Err(status) => {
                tracing::info!(path = request.uri().path(), %status, "a call was refused");
                Either::Left(std::future::ready(Ok(status.into_http())))
            }
        }
    }
}
