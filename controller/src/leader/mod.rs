//! What runs only while this controller leads.
//!
//! Each loop is woken by events and by a timer, looks at all there is, and does what is missing;
//! nothing is retried inside, the next turn is the retry.

pub(crate) mod activate;
pub(crate) mod builds;
pub(crate) mod desk;
mod members;
pub(crate) mod memory;
#[cfg(test)]
mod node_tests;
pub(crate) mod nodes;
pub(crate) mod operate;
mod orders;
pub(crate) mod plan;
pub(crate) mod reports;
pub(crate) mod routes;
mod spec;
pub(crate) mod term;
#[cfg(test)]
mod tests;
mod webhook;

use std::sync::Arc;

use coracle_base::Shutdown;

use crate::core::Core;

/// Runs until shutdown.
pub(crate) fn spawn(core: &Arc<Core>, shutdown: &Shutdown) {
    shutdown.spawn(
        "leader: term",
        term::run(Arc::clone(core), shutdown.clone()),
    );
    shutdown.spawn(
        "leader: routes",
        routes::run(Arc::clone(core), shutdown.clone()),
    );
    shutdown.spawn(
        "leader: plan",
        plan::run(Arc::clone(core), shutdown.clone()),
    );
    shutdown.spawn(
        "leader: builds",
        builds::run(Arc::clone(core), shutdown.clone()),
    );
    shutdown.spawn(
        "leader: members",
        members::run(Arc::clone(core), shutdown.clone()),
    );
    if let Some(hook) = core.config.webhook.clone() {
        shutdown.spawn(
            "leader: webhook",
            webhook::run(Arc::clone(core), hook, shutdown.clone()),
        );
    }
}
