//! Telling every loop of a component to end, and waiting until it has.

use std::{future::Future, time::Duration};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Owned by whoever runs a component; clones are handed to its loops. Nothing here is global, so
/// five components live and end apart from each other in one process.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    token: CancellationToken,
    tracker: TaskTracker,
}

impl Shutdown {
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends when this ends, and may end before. [`Shutdown::finished`] of the parent waits for the
    /// child's tasks too.
    #[must_use]
    pub fn child(&self) -> Self {
        Self {
            token: self.token.child_token(),
            tracker: self.tracker.clone(),
        }
    }

    /// Not ended by this one's request: for what the others need while they end. Whoever makes it
    /// requests it. [`Shutdown::finished`] of this one waits for its tasks too.
    #[must_use]
    pub fn apart(&self) -> Self {
        Self {
            token: CancellationToken::new(),
            tracker: self.tracker.clone(),
        }
    }

    /// Runs a loop that [`Shutdown::finished`] waits for. The loop watches [`Shutdown::requested`].
    pub fn spawn<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tracker.spawn(async move {
            task.await;
            tracing::debug!(task = name, "task ended");
        });
    }

    /// Requests it when dropped.
    pub fn guard(&self) -> ShutdownGuard {
        ShutdownGuard(self.clone())
    }

    pub async fn requested(&self) {
        self.token.cancelled().await;
    }

    pub fn is_requested(&self) -> bool {
        self.token.is_cancelled()
    }

    pub fn request(&self) {
        self.token.cancel();
    }

    /// Waits until every spawned task has ended, at most `grace`. False when some had not.
    pub async fn finished(&self, grace: Duration) -> bool {
        self.tracker.close();
        tokio::time::timeout(grace, self.tracker.wait())
            .await
            .is_ok()
    }
}

#[derive(Debug)]
pub struct ShutdownGuard(Shutdown);

impl Drop for ShutdownGuard {
    fn drop(&mut self) {
        self.0.request();
    }
}
