//! The loop that collects what nothing names any more.

use std::sync::Arc;

use coracle_base::Shutdown;

use crate::{
    artifacts::ArtifactError,
    core::{Core, chain},
    metrics,
};

/// On every member: each removes its own files. What is shared is removed by the leader alone.
pub(crate) async fn run(core: Arc<Core>, shutdown: Shutdown) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(core.config.gc_interval) => {}
            () = shutdown.requested() => return,
        }
        let collecting = async {
            if !core.copies.artifacts.is_shared() || core.memory().leads() {
                match artifacts(&core).await {
                    Ok(0) => {}
                    Ok(removed) => tracing::info!(removed, "artifacts collected"),
                    Err(error) => tracing::warn!(error = %chain(&error), "artifacts not collected"),
                }
            }
            build_logs(&core).await;
        };
        tokio::select! {
            () = collecting => {}
            () = shutdown.requested() => return,
        }
    }
}

/// An artifact goes when no revision names it and its last upload is long ago: the upload comes
/// before the write that names it, and the leader renews the lease on a majority before it proposes
/// that write. Tasks need no collection: the state machine keeps a bounded number of ended ones by
/// itself.
async fn artifacts(core: &Core) -> Result<u64, ArtifactError> {
    let grace = u64::try_from(core.config.artifact_grace.as_millis()).unwrap_or(u64::MAX);
    // Listed before the view is read: what was named in between is in the view.
    let stored = core.copies.artifacts.list().await?;
    // A member that was cut off would take what others named meanwhile for nobody's.
    let view = match core.fresh_view().await {
        Ok(view) => view,
        Err(error) => {
            tracing::debug!(%error, "no collection without a fresh view");
            return Ok(0);
        }
    };
    let named = view.referenced_artifacts();
    let removed = core
        .copies
        .artifacts
        .collect(stored, grace, |digest| named.contains(digest))
        .await?;
    metrics::artifacts_removed(removed);
    Ok(removed)
}

/// Each log is held against the view as it is when the log is found: one that was begun meanwhile
/// is of a revision that an older view does not have.
async fn build_logs(core: &Core) {
    let published = core.publications();
    let kept = core
        .build_logs
        .retain(move |revision| published.borrow().view.revision(revision).is_some())
        .await;
    if let Err(error) = kept {
        tracing::warn!(error = %chain(&error), "build logs not collected");
    }
}
