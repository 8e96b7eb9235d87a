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
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use serde::Deserialize;
use tokio::{net::TcpListener, sync::Semaphore};

use crate::error::CliError;

/// Scrapers and probes, with room to spare.
const CONNECTIONS: usize = 64;
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
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
            let connections = GracefulShutdown::new();
            tokio::select! {
                () = accept(listener, router, HEAD_TIMEOUT, &connections) => {}
                () = stop.requested() => {}
            }
            // A scrape that has begun is answered; heads that never end are not waited for.
            let _ = tokio::time::timeout(HEAD_TIMEOUT, connections.shutdown()).await;
        });
        Ok(bound)
    }
}

/// Bounded in connections, and in the time and size of heads: it is an ordinary listener where it
/// is opened beyond loopback.
async fn accept(
    listener: TcpListener,
    router: Router,
    head_timeout: Duration,
    connections: &GracefulShutdown,
) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "an admin connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(head_timeout)
            .serve_connection(
                TokioIo::new(stream),
                TowerToHyperService::new(router.clone()),
            );
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::trace!(%error, "an admin connection ended early");
            }
            drop(permit);
        });
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

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;

    #[tokio::test]
    async fn a_head_that_never_ends_is_cut_and_others_are_answered_meanwhile() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/livez", get(|| async { "ok\n" }));
        let serving = tokio::spawn(async move {
            let head_timeout = Duration::from_millis(300);
            accept(listener, router, head_timeout, &GracefulShutdown::new()).await;
        });
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n")
            .await
            .unwrap();
        let mut quick = TcpStream::connect(address).await.unwrap();
        let request = b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        quick.write_all(request).await.unwrap();
        let mut answer = String::new();
        quick.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok\n"),
            "{answer}"
        );
        let mut rest = Vec::new();
        slow.read_to_end(&mut rest).await.unwrap();
        assert!(
            rest.is_empty() || rest.starts_with(b"HTTP/1.1 4"),
            "{rest:?}"
        );
        serving.abort();
    }
}
