//! Follows the route feed. Without a controller the table stays as it was last.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use coracle_base::{Backoff, Shutdown};
use tokio::time::Instant;

use crate::shared::Shared;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

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
    let mut stream = match shared.controllers.routes(shared.config.gateway_id).await {
        Ok(stream) => stream,
        Err(status) => {
            tracing::debug!(%status, "no controller offers a route feed");
            return;
        }
    };
    shared.table.restart();
    loop {
        match stream.message().await {
            Ok(Some(update)) => {
                if let Err(gap) = shared.table.apply(&update, &shared.nodes, Instant::now()) {
                    tracing::info!(%gap, "asking for a new snapshot of the routes");
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
