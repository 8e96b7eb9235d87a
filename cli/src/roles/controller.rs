//! The controller's part of a server.

use std::{sync::Arc, time::Duration};

use coracle_base::{Address, Clock, Shutdown, SystemClock};
use coracle_controller::{Config, Controller};
use coracle_model::{Timestamp, Token};

use crate::{admin::Admin, data::DataDir, error::CliError, settings::Settings};

/// One voter leads within milliseconds; a slow disk may take its time to sync.
const BOOTSTRAP_LIMIT: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Role {
    controller: Arc<Controller>,
    token: Token,
    fresh: Option<String>,
}

pub(super) async fn build(
    settings: &Settings,
    data: &DataDir,
    listen: Vec<Address>,
    admin: &mut Admin,
) -> Result<Role, CliError> {
    let now = Timestamp(SystemClock.now_millis());
    let (token, fresh) = data.admin_token(now)?;
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
    let controller = config
        .build()
        .await
        .map_err(|error| CliError::failed("controller", error))?;
    let controller = Arc::new(controller);
    let seen = controller.clone();
    admin.check("controller", move || ready(&seen));
    Ok(Role {
        controller,
        token,
        fresh,
    })
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
        let made = self
            .controller
            .bootstrap(self.token.clone(), BOOTSTRAP_LIMIT)
            .await
            .map_err(failed)?;
        if !made && self.fresh.is_some() {
            // The file was lost, and whoever holds the directory holds the cluster.
            tracing::warn!("the admin token's file was missing; another token was made");
            let added = self.controller.add_token(self.token.clone()).await;
            added.map_err(failed)?;
        }
        Ok(self.fresh.clone())
    }
}
