//! The node's one listener for gateways: the node service, and relayed connections to instances.
//!
//! Over TLS the protocol that was agreed on tells the two apart, over plain TCP the first byte. In
//! memory and on a machine's own sockets there is only the service: whoever is that near connects
//! to instances without us.

use std::{io, sync::Arc, time::Duration};

use coracle_base::{Address, Conn, Incoming, Shutdown};
use coracle_identity::{Guard, Peer};
use coracle_model::ComponentRole;
use coracle_proto::{relay, v1::node_service_server::NodeServiceServer};
use futures_util::StreamExt as _;
use tokio::{
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;

use crate::{instances::chain, node_service::Service, relay::Relay};

/// Connections that have not said yet what they are; further ones wait in the kernel's backlog.
const UNSORTED: usize = 1_024;
const SORT_WITHIN: Duration = Duration::from_secs(10);
/// Connections on their way to the service.
const HANDOVER: usize = 16;
/// After a failed accept (no file descriptors left, usually) before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const PING_EVERY: Duration = Duration::from_secs(10);
const PONG_WITHIN: Duration = Duration::from_secs(5);

const H2: &[u8] = b"h2";

/// The address with both protocols on it.
pub(crate) fn both(listen: Address) -> Address {
    match listen {
        Address::Tls(at, tls) => Address::Tls(at, tls.with_alpn(&[H2, relay::ALPN])),
        plain => plain,
    }
}

/// Serves until the shutdown, which cuts what is relayed.
pub(crate) async fn serve(
    incoming: Incoming,
    service: Service,
    relay: Arc<Relay>,
    shutdown: Shutdown,
) {
    let (to_service, connections) = mpsc::channel(HANDOVER);
    let server = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PONG_WITHIN))
        .layer(Guard::new())
        .add_service(NodeServiceServer::new(service))
        .serve_with_incoming_shutdown(ReceiverStream::new(connections), shutdown.requested());
    let accepting = accept(incoming, to_service, relay, shutdown.clone());
    let (served, ()) = tokio::join!(server, accepting);
    if let Err(error) = served {
        tracing::error!(error = chain(&error), "the node service ended");
    }
}

async fn accept(
    mut incoming: Incoming,
    to_service: mpsc::Sender<io::Result<Conn>>,
    relay: Arc<Relay>,
    shutdown: Shutdown,
) {
    let unsorted = Arc::new(Semaphore::new(UNSORTED));
    loop {
        let next = async {
            let permit = Arc::clone(&unsorted).acquire_owned().await;
            (permit, incoming.next().await)
        };
        let (permit, accepted) = tokio::select! {
            (permit, Some(accepted)) = next => (permit, accepted),
            () = shutdown.requested() => return,
            else => return,
        };
        let conn = match accepted {
            Ok(conn) => conn,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (to_service, relay, ending) =
            (to_service.clone(), Arc::clone(&relay), shutdown.clone());
        shutdown.spawn("data connection", async move {
            let sorted = tokio::select! {
                sorted = timeout(SORT_WITHIN, is_relayed(&conn)) => sorted,
                () = ending.requested() => return,
            };
            drop(permit);
            match sorted {
                Ok(Ok(true)) => tokio::select! {
                    () = relay.serve(conn) => {}
                    () = ending.requested() => {}
                },
                // The service has its own opinion of what is not HTTP/2. It is gone only with us.
                Ok(Ok(false)) => drop(to_service.send(Ok(conn)).await),
                Ok(Err(error)) => tracing::info!(%error, "a connection was not taken"),
                Err(_) => {}
            }
        });
    }
}

/// Errors: it is for gateways only, and controllers; whoever is on this machine may.
async fn is_relayed(conn: &Conn) -> io::Result<bool> {
    let relayed = match conn.protocol() {
        Some(protocol) => protocol == relay::ALPN,
        None => conn.peek().await? == Some(relay::FIRST_BYTE),
    };
    let allowed = match Peer::at(&conn.remote()) {
        Peer::Local => true,
        Peer::Component(peer) => {
            matches!(
                peer.role(),
                ComponentRole::Gateway | ComponentRole::Controller
            )
        }
        Peer::Anonymous => false,
    };
    // The service says by itself who may call it.
    if relayed && !allowed {
        return Err(io::Error::other("only gateways may reach instances"));
    }
    Ok(relayed)
}
