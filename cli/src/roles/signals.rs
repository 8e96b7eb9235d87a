//! SIGTERM and SIGINT: the first drains, the second stops at once.

use coracle_base::Shutdown;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{admin::Admin, error::CliError};

#[derive(Debug)]
pub(super) struct Signals {
    term: Signal,
    interrupt: Signal,
    stopping: Shutdown,
}

/// Installed before anything is announced, so that no signal is missed.
pub(super) fn watch() -> Result<Signals, CliError> {
    let install =
        |kind| signal(kind).map_err(|error| CliError::failed("cannot watch signals", error));
    Ok(Signals {
        term: install(SignalKind::terminate())?,
        interrupt: install(SignalKind::interrupt())?,
        stopping: Shutdown::new(),
    })
}

impl Signals {
    /// A server that drains is not ready: whoever balances load is to send nothing new to it.
    pub(super) fn show(&self, admin: &mut Admin) {
        let stopping = self.stopping.clone();
        admin.check("process", move || {
            if stopping.is_requested() {
                Err("it is stopping and takes nothing new".into())
            } else {
                Ok(())
            }
        });
    }

    /// Requests the shutdown at the first signal and ends the process at the second.
    pub(super) fn drive(mut self, shutdown: Shutdown) {
        tokio::spawn(async move {
            self.next().await;
            super::notify::stopping();
            tracing::info!("stopping; a second signal stops at once");
            self.stopping.request();
            shutdown.request();
            self.next().await;
            tracing::warn!("stopped at once by a second signal");
            std::process::exit(130);
        });
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
