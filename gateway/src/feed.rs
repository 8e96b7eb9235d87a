//! Follows the route feed of whoever leads. Without a controller the table stays as it was last.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use coracle_base::{Backoff, Shutdown, replicas::Server};
use tokio::time::Instant;

use crate::{routes::Gap, shared::Shared};

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A look for the leader goes on for this long before it is begun anew.
const OPEN: Duration = Duration::from_secs(60);

/// Runs until the gateway stops. `connected` tells whether a feed is being followed.
pub(crate) async fn follow(shared: Arc<Shared>, connected: Arc<AtomicBool>, shutdown: Shutdown) {
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    loop {
        tokio::select! {
            () = shutdown.requested() => return,
            () = once(&shared, &connected, &mut backoff) => {}
        }
        connected.store(false, Relaxed);
        shared.metrics.feed_connected.set(0.0);
        tokio::select! {
            () = shutdown.requested() => return,
            () = tokio::time::sleep(backoff.wait()) => {}
        }
    }
}

async fn once(shared: &Shared, connected: &AtomicBool, backoff: &mut Backoff) {
    let replicas = shared.controllers.replicas();
    // From before the feed is opened: whoever is found to lead meanwhile is not missed.
    let mut leading = replicas.leader();
    let deadline = Instant::now() + OPEN;
    let opened = shared
        .controllers
        .routes(shared.config.gateway_id, deadline);
    let (leader, mut stream) = match opened.await {
        Ok(opened) => opened,
        Err(status) => {
            tracing::debug!(%status, "no controller offers a route feed");
            return;
        }
    };
    shared.table.restart();
    loop {
        let message = tokio::select! {
            message = stream.message() => message,
            Ok(moved) = leading.wait_for(|now| now.as_ref() != Some(&leader)) => {
                tracing::info!(to = moved.as_ref().map(Server::address), "another controller leads");
                return;
            }
        };
        match message {
            Ok(Some(update)) => {
                replicas.learn(&update.controllers);
                if let Err(gap) = shared.table.apply(&update, &shared.nodes, Instant::now()) {
                    tracing::info!(%gap, "asking for a new snapshot of the routes");
                    if matches!(gap, Gap::Stale { .. }) {
                        replicas.avoid(&leader);
                    }
                    return;
                }
                shared.metrics.functions.set(f64::from(
                    u32::try_from(shared.table.len()).unwrap_or(u32::MAX),
                ));
                if !connected.swap(true, Relaxed) {
                    backoff.reset();
                    shared.metrics.feed_connected.set(1.0);
                    tracing::info!(functions = shared.table.len(), "following the route feed");
                }
            }
            Ok(None) => {
                tracing::info!("the controller ended the route feed");
                return;
            }
            Err(status) => {
                tracing::info!(%status, "the route feed broke; serving from the last routes");
                return;
            }
        }
    }
}
