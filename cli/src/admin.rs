//! The admin listener: health and metrics of this process.

use std::{fmt, fmt::Write as _, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use coracle_base::Shutdown;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use serde::Deserialize;
use tokio::net::TcpListener;

use crate::error::CliError;

/// Folds histogram samples; without it they pile up between two scrapes.
const UPKEEP: Duration = Duration::from_secs(5);

/// Says whether a part can do its work now, or in one sentence why not.
pub(crate) type Check = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

#[derive(Clone)]
pub(crate) struct Admin {
    checks: Vec<(&'static str, Check)>,
    metrics: PrometheusHandle,
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.checks.iter().map(|(name, _)| name))
            .finish()
    }
}

impl Admin {
    /// Installs the process's metrics recorder; call once, before the parts are built.
    pub(crate) fn install() -> Result<Self, CliError> {
        let metrics = PrometheusBuilder::new()
            .install_recorder()
            .map_err(|error| CliError::failed("cannot install the metrics recorder", error))?;
        Ok(Self {
            checks: Vec::new(),
            metrics,
        })
    }

    pub(crate) fn check(
        &mut self,
        name: &'static str,
        check: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) {
        self.checks.push((name, Arc::new(check)));
    }

    /// Binds at once, serves until shutdown; returns the bound address.
    pub(crate) async fn serve(
        self,
        address: SocketAddr,
        shutdown: &Shutdown,
    ) -> Result<SocketAddr, CliError> {
        let listener = TcpListener::bind(address).await.map_err(|error| {
            CliError::Failed(format!("admin: cannot listen on {address}: {error}"))
        })?;
        let bound = listener.local_addr().unwrap_or(address);
        let metrics = self.metrics.clone();
        let upkeep = shutdown.clone();
        shutdown.spawn("metrics upkeep", async move {
            let mut ticks = tokio::time::interval(UPKEEP);
            loop {
                tokio::select! {
                    () = upkeep.requested() => return,
                    _ = ticks.tick() => metrics.run_upkeep(),
                }
            }
        });
        let router = Router::new()
            .route("/livez", get(|| async { "ok\n" }))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics_text))
            .with_state(self);
        let stop = shutdown.clone();
        shutdown.spawn("admin listener", async move {
            let served = axum::serve(listener, router)
                .with_graceful_shutdown(async move { stop.requested().await });
            if let Err(error) = served.await {
                tracing::error!(%error, "the admin listener ended");
            }
        });
        Ok(bound)
    }
}

#[derive(Debug, Deserialize)]
struct Readyz {
    verbose: Option<String>,
}

async fn readyz(State(admin): State<Admin>, Query(query): Query<Readyz>) -> Response {
    let results: Vec<_> = admin
        .checks
        .iter()
        .map(|(name, check)| (*name, check()))
        .collect();
    let ready = results.iter().all(|(_, result)| result.is_ok());
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let mut text = String::new();
    if query.verbose.is_some() || !ready {
        for (name, result) in &results {
            let _ = match result {
                Ok(()) => writeln!(text, "[+] {name} ok"),
                Err(reason) => writeln!(text, "[-] {name}: {reason}"),
            };
        }
    }
    text.push_str(if ready { "ready\n" } else { "not ready\n" });
    (status, text).into_response()
}

async fn metrics_text(State(admin): State<Admin>) -> Response {
    (
        [("content-type", "text/plain; version=0.0.4")],
        admin.metrics.render(),
    )
        .into_response()
}
