//! The gateway's part of a server.

use std::{net::SocketAddr, pin::pin, time::Duration};

use coracle_base::{Address, Shutdown};
use coracle_gateway::{Config, Gateway, Handle};
use coracle_model::NodeId;

use super::signals::Signals;
use crate::{
    admin::Admin,
    data::{DataDir, ServerFile},
    error::CliError,
    membership::Membership,
    settings::Settings,
};

#[derive(Debug)]
pub(super) struct Role(Gateway);

pub(super) async fn bind(
    settings: &Settings,
    data: &DataDir,
    controllers: Vec<Address>,
    membership: Option<&Membership>,
    unready: Duration,
    admin: &mut Admin,
) -> Result<Role, CliError> {
    let mut config = Config::new(controllers);
    if let Some(membership) = membership {
        // Its certificate says so too, and it speaks for itself only.
        config.gateway_id = data.identity().node_id;
        config.tls = Some(membership.tls());
        config.told = membership.told(data.path());
    }
    config.local_node_id = Some(NodeId(data.identity().node_id));
    config.invoke = settings.invoke;
    config.api = settings.api;
    config.threads = settings.gateway_threads;
    config.public_url = settings.public_url.clone();
    config.base_domain = settings.base_domain.clone();
    config.version = env!("CARGO_PKG_VERSION").to_owned();
    config.limits.body_max = settings.max_body;
    config.limits.queue_per_function = settings.max_queue;
    config.limits.drain_delay = unready;
    config.limits.drain_grace = settings.grace;
    let gateway = config
        .bind()
        .await
        .map_err(|error| CliError::failed("gateway", error))?;
    let handle = gateway.handle();
    admin.check("gateway", move || ready(&handle));
    Ok(Role(gateway))
}

fn ready(handle: &Handle) -> Result<(), String> {
    let health = handle.health();
    if health.is_ready() {
        Ok(())
    } else {
        Err("no routes have arrived from a controller".into())
    }
}

impl Role {
    pub(super) fn server_file(&self, admin: SocketAddr) -> ServerFile {
        ServerFile {
            api: format!("http://{}", self.0.api_address()),
            invoke: self.0.public_url(),
            admin: format!("http://{admin}"),
            pid: std::process::id(),
        }
    }

    /// Serves until a signal, or until the rest of the server ends by itself, then drains.
    pub(super) async fn run(self, signals: Signals, rest: &Shutdown) -> Result<(), CliError> {
        let shutdown = Shutdown::new();
        signals.drive(shutdown.clone());
        let mut serving = pin!(self.0.run(shutdown.clone()));
        let failed = |error| CliError::failed("gateway", error);
        tokio::select! {
            served = &mut serving => served.map_err(failed),
            () = rest.requested() => {
                shutdown.request();
                serving.await.map_err(failed)?;
                Err(super::ended_by_itself())
            }
        }
    }
}
