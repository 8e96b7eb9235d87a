//! HTTP in, one instance out.
//!
//! A warm invocation touches this process and one instance: no controller, no disk. `OVERVIEW.md`
//! beside this crate draws the paths.

#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        reason = "a test that cannot go on should say where"
    )
)]

mod access;
mod activate;
mod admission;
mod api;
mod body;
mod config;
mod control_plane;
mod controllers;
mod deadline;
mod demand;
mod feed;
mod frames;
mod function;
mod headers;
mod idle;
mod instance;
mod local;
mod logs;
mod lookup;
pub mod metrics;
mod nodes;
mod proxy;
mod refusal;
mod respond;
mod routes;
mod running;
mod server;
mod shared;
#[doc(hidden)]
pub mod testing;
mod upstream;
mod verdict;
mod wire;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use coracle_base::Shutdown;
use coracle_model::Stamp;
use tokio::net::{TcpListener, TcpSocket};

pub use config::{Config, Limits};
pub use respond::{Code, FUNCTION_ERROR, PLATFORM_ERROR};

use crate::{control_plane::ControllerPort, server::Stop, shared::Shared};

/// Why a gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the configuration is wrong: {}", .0.join("; "))]
    Config(Vec<String>),
    #[error("the {listener} listener cannot be opened on {address}")]
    Bind {
        listener: &'static str,
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("a thread of the gateway cannot be started")]
    Thread(#[source] io::Error),
}

/// Whether the gateway can do its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Health {
    /// The route feed of a controller is being followed. Without it, warm functions go on.
    pub controller_connected: bool,
    /// Routes have arrived at least once.
    pub has_routes: bool,
    /// It was told to stop.
    pub leaving: bool,
    /// How new the routes are.
    pub routes: Option<Stamp>,
    pub functions: usize,
    pub queued: usize,
}

impl Health {
    /// Ready to be sent traffic: invocations can be answered, controllers or not.
    pub fn is_ready(&self) -> bool {
        self.has_routes && !self.leaving
    }
}

/// Looks at a gateway from outside. Cheap to clone; outlives the gateway.
#[derive(Debug, Clone)]
pub struct Handle {
    shared: Arc<Shared>,
    connected: Arc<AtomicBool>,
    stop: Stop,
}

impl Handle {
    pub fn health(&self) -> Health {
        let routes = self.shared.table.stamp();
        Health {
            controller_connected: self.connected.load(Relaxed),
            has_routes: routes.is_some(),
            leaving: self.shared.leaving.load(Relaxed),
            routes,
            functions: self.shared.table.len(),
            queued: self.shared.table.waiting(),
        }
    }

    /// Ends the drain at once: what still runs is cut.
    pub fn stop_now(&self) {
        self.stop.drain.request();
        self.stop.hard.request();
    }
}

/// A gateway whose listeners are open and not yet served.
#[derive(Debug)]
pub struct Gateway {
    handle: Handle,
    invoke: TcpListener,
    api: TcpListener,
    invoke_address: SocketAddr,
    api_address: SocketAddr,
}

impl Config {
    /// Opens the listeners. Has to be called inside the multi-threaded runtime that is to carry
    /// everything but the invocations.
    ///
    /// Errors: a setting is wrong; an address cannot be bound.
    pub async fn bind(self) -> Result<Gateway, StartError> {
        self.check().map_err(StartError::Config)?;
        let (invoke, invoke_address) = listen("invocation", self.invoke)?;
        let (api, api_address) = listen("API", self.api)?;
        let handle = Handle {
            shared: Shared::new(self),
            connected: Arc::default(),
            stop: Stop::default(),
        };
        Ok(Gateway {
            handle,
            invoke,
            api,
            invoke_address,
            api_address,
        })
    }
}

/// A burst beyond the backlog costs each client a second: the kernel drops its SYN. The system's
/// own maximum (4096 on current kernels) bounds it.
const BACKLOG: u32 = 4096;

fn listen(
    listener: &'static str,
    address: SocketAddr,
) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Bind {
        listener,
        address,
        source,
    };
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    };
    let socket = socket.map_err(failed)?;
    socket.set_reuseaddr(true).map_err(failed)?;
    socket.bind(address).map_err(failed)?;
    let bound = socket.listen(BACKLOG).map_err(failed)?;
    let address = bound.local_addr().map_err(failed)?;
    Ok((bound, address))
}

impl Gateway {
    /// Where invocations are answered; names the port that the system chose.
    pub fn invoke_address(&self) -> SocketAddr {
        self.invoke_address
    }

    /// Where the management APIs are.
    pub fn api_address(&self) -> SocketAddr {
        self.api_address
    }

    /// How clients reach the invocation listener.
    pub fn public_url(&self) -> String {
        match &self.handle.shared.config.public_url {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None => format!("http://{}", self.invoke_address),
        }
    }

    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Serves until `shutdown` is requested; then stops being ready, takes nothing new after the
    /// drain's delay, finishes what runs, and cuts what is left after the drain's grace. Returns when everything has ended.
    ///
    /// Errors: a thread cannot be started.
    pub async fn run(self, shutdown: Shutdown) -> Result<(), StartError> {
        let public_url = self.public_url();
        let Handle {
            shared,
            connected,
            stop,
        } = self.handle;
        let background = Shutdown::new();
        background.spawn(
            "route feed",
            feed::follow(shared.clone(), connected, background.clone()),
        );
        background.spawn("demand", demand::report(shared.clone(), background.clone()));

        let (workers, threads) = server::start(&shared, &stop).map_err(StartError::Thread)?;
        let port = ControllerPort::new(shared.clone(), workers.clone());
        let router = api::router(&shared, port, public_url);
        let drain = stop.drain.clone();
        let accept = server::accept(self.invoke, shared.clone(), workers, drain.clone());
        drain.spawn("invocation listener", accept);
        drain.spawn(
            "API listener",
            api::serve(self.api, shared.clone(), router, drain.clone()),
        );

        tokio::select! {
            () = shutdown.requested() => {}
            () = drain.requested() => {}
        }
        shared.leaving.store(true, Relaxed);
        let delay = shared.config.limits.drain_delay;
        tokio::select! {
            () = tokio::time::sleep(delay), if !delay.is_zero() => {}
            () = drain.requested(), if !delay.is_zero() => {}
            else => {}
        }
        tracing::info!(queued = shared.table.waiting(), "the gateway drains");
        drain.request();
        let mut ended = tokio::task::spawn_blocking(move || {
            for thread in threads {
                if thread.join().is_err() {
                    tracing::error!("a thread of the gateway panicked");
                }
            }
        });
        let grace = shared.config.limits.drain_grace;
        if tokio::time::timeout(grace, &mut ended).await.is_err() {
            tracing::warn!("requests still run after the grace period; they are cut");
            stop.hard.request();
            // The threads end as soon as they see the request.
            let _ = ended.await;
        }
        stop.hard.request();
        background.request();
        background.finished(grace).await;
        Ok(())
    }
}
