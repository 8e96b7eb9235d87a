//! Telling systemd how it goes, where it asks to be told (`Type=notify`, `WatchdogSec=`).
//!
//! Started means that the process listens and works on the rest; whether it can serve is what
//! `/readyz` says. A controller that waits for its majority after a power cut has started: a start
//! limit that killed it would keep the majority from ever coming together.

use coracle_base::Shutdown;
use sd_notify::NotifyState;

/// Says that the process has started, and from then on that it is alive. The beat comes from the
/// runtime that does the work, so one that hangs misses it and is started again.
pub(super) fn started(rest: &Shutdown) {
    tell(&[NotifyState::Ready]);
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return;
    };
    let stop = rest.clone();
    rest.spawn("watchdog", async move {
        let mut beats = tokio::time::interval(limit / 3);
        loop {
            tokio::select! {
                () = stop.requested() => return,
                _ = beats.tick() => tell(&[NotifyState::Watchdog]),
            }
        }
    });
}

/// Says that the end was asked for: what follows is no failure.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(state: &[NotifyState<'_>]) {
    // Without a socket to tell, this does nothing. One that does not take it is systemd's trouble.
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd did not take a notification");
    }
}
