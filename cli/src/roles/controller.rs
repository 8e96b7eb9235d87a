//! The controller's part of a server.

use std::{sync::Arc, time::Duration};

use coracle_base::{Address, Clock, Shutdown, SystemClock};
use coracle_controller::{Config, Controller, Webhook};
use coracle_model::{Timestamp, Token};

use crate::{
    admin::Admin, data::DataDir, error::CliError, membership::Membership, settings::Settings,
};

/// One voter leads within milliseconds; a slow disk may take its time to sync.
/// The member that a cluster is made with.
const FOUNDER: u64 = 1;
const BOOTSTRAP_LIMIT: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Role {
    controller: Arc<Controller>,
    /// Of a server by itself: the administrator's, and its text if it was made just now.
    token: Option<(Token, Option<String>)>,
}

/// Where a controller of a cluster listens: for the other machines, and on a socket for gateways and
/// agents of this one.
pub(super) fn listeners(
    settings: &Settings,
    data: &DataDir,
    membership: &Membership,
) -> Result<Vec<Address>, CliError> {
    let part = membership.enrolment.controller.as_ref();
    let kept = part.map(|part| Address::Tcp(part.listen.clone()));
    let run = data.folder("run", 0o711)?;
    let socket = Address::Unix(run.join("controller.sock"));
    let mut listen = vec![socket];
    match (&settings.listen, kept) {
        (Some(Address::Unix(path)), kept) => {
            listen.push(Address::Unix(path.clone()));
            listen.extend(kept);
        }
        (Some(given), _) => listen.push(given.clone()),
        (None, kept) => listen.extend(kept),
    }
    let tls = membership.tls();
    Ok(listen.into_iter().map(|at| at.secured(&tls)).collect())
}

/// What any controller of this data directory is built from.
pub(crate) fn config(
    settings: &Settings,
    data: &DataDir,
    listen: Vec<Address>,
) -> Result<Config, CliError> {
    // The log holds functions' variables, and the artifacts their code.
    let folder = data.folder("controller", 0o700)?;
    let mut config = Config::standalone(folder, data.identity().cluster_id.clone(), listen);
    config.artifact_store = settings.artifact_store.clone();
    let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let scaling = &mut config.planner.scaling;
    scaling.idle_ms = millis(settings.idle_after);
    scaling.stable_window_ms = millis(settings.stable_window);
    scaling.panic_window_ms = millis(settings.panic_window);
    config.planner.stems.per_runtime = settings.stems;
    config.leader.node_grace = settings.node_grace;
    config.leader.webhook = settings.capacity_webhook.clone().map(|url| {
        let mut hook = Webhook::new(url);
        hook.capacity.short_after_ms = millis(settings.capacity_short_after);
        hook.capacity.idle_after_ms = millis(settings.capacity_idle_after);
        hook
    });
    Ok(config)
}

pub(super) async fn build(
    settings: &Settings,
    data: &DataDir,
    listen: Vec<Address>,
    membership: Option<&Membership>,
    admin: &mut Admin,
) -> Result<Role, CliError> {
    let mut config = config(settings, data, listen)?;
    let token = match membership {
        None => Some(data.admin_token(Timestamp(SystemClock.now_millis()))?),
        Some(membership) => {
            let (member, identity, peers) = membership.as_controller()?;
            // The founder's group was made with it; all others wait until the leader adds them.
            if member != FOUNDER {
                config.voters = Vec::new();
            }
            (config.member, config.identity, config.peers) = (member, Some(identity), peers);
            None
        }
    };
    let controller = config
        .build()
        .await
        .map_err(|error| CliError::failed("controller", error))?;
    let controller = Arc::new(controller);
    let seen = controller.clone();
    admin.check("controller", move || ready(&seen));
    Ok(Role { controller, token })
}

fn ready(controller: &Controller) -> Result<(), String> {
    let status = controller.status();
    if status.is_ready() {
        Ok(())
    } else {
        Err(format!("no leader yet: {status:?}"))
    }
}

impl Role {
    pub(super) fn spawn(&self, shutdown: &Shutdown) {
        let (controller, stop) = (self.controller.clone(), shutdown.clone());
        shutdown.spawn("controller", async move {
            if let Err(error) = controller.run(stop.clone()).await {
                tracing::error!(error = crate::error::chain(&error), "the controller ended");
                stop.request();
            }
        });
    }

    /// Makes sure that the default namespace and the token of the token file exist; the token's text
    /// if the file was made just now. A token that was deleted does not come back while its file is
    /// there.
    pub(super) async fn bootstrap(&self) -> Result<Option<String>, CliError> {
        let failed = |error| CliError::failed("controller", error);
        let Some((token, fresh)) = &self.token else {
            return Ok(None);
        };
        let made = self
            .controller
            .bootstrap(token.clone(), BOOTSTRAP_LIMIT)
            .await
            .map_err(failed)?;
        if !made && fresh.is_some() {
            // The file was lost, and whoever holds the directory holds the cluster.
            tracing::warn!("the admin token's file was missing; another token was made");
            let added = self.controller.add_token(token.clone()).await;
            added.map_err(failed)?;
        }
        Ok(fresh.clone())
    }
}
