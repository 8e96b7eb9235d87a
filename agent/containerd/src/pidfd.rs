//! Waiting for the end of processes that are not our children.

use std::{os::fd::OwnedFd, sync::Arc, time::Duration};

use rustix::process::Signal;
use tokio::io::{Interest, unix::AsyncFd};

/// Waits until the process has ended.
pub(crate) async fn ended(pidfd: &Arc<OwnedFd>) {
    // SAFETY: the descriptor is open and stays the same one for as long as the reference that is
    // handed over is held: an `OwnedFd` behind an `Arc` cannot be replaced.
    let watched = unsafe { AsyncFd::register_with_interest(Arc::clone(pidfd), Interest::READABLE) };
    let readable = match &watched {
        Ok(fd) => fd.readable().await.map(drop),
        Err(error) => Err(std::io::Error::other(error.to_string())),
    };
    if let Err(error) = readable {
        // The runtime cannot watch it, for want of memory or because it is shutting down. Asking
        // now and then comes to the right end as well.
        tracing::error!(%error, "cannot watch a process");
        while rustix::process::pidfd_send_signal(pidfd, Signal::CONT).is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
