//! The loop that brings here what the state names and this member lacks: it was down or slow while
//! it was stored, is new, or found its copy damaged.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use coracle_base::{Backoff, Shutdown};
use coracle_model::{Digest, FunctionId};
use tokio::time::Instant;

use super::logs;
use crate::{
    artifacts::ArtifactError,
    core::{Core, chain},
    machine::Changes,
    metrics,
};

/// While something is missing that no controller gave.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MOST: Duration = Duration::from_secs(60);

/// On every member. Looks at everything at the start and now and then, and at what changed when it
/// changes.
pub(crate) async fn run(core: Arc<Core>, shutdown: Shutdown) {
    let copies = &core.copies;
    let mut touched = core.touched.subscribe();
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MOST);
    let mut look_at_all = Instant::now();
    loop {
        tokio::select! {
            changed = touched.changed() => if changed.is_err() { return },
            () = tokio::time::sleep_until(look_at_all) => {}
            () = copies.artifacts.damaged() => look_at_all = Instant::now(),
            () = shutdown.requested() => return,
        }
        // What changed until here is in the view that is looked at.
        let changes = take(&core);
        let all = changes.all || look_at_all <= Instant::now();
        let functions = (!all).then(|| changes.functions.into_iter().collect());
        let whole = tokio::select! {
            whole = turn(&core, functions) => whole,
            () = shutdown.requested() => return,
        };
        if !whole {
            look_at_all = Instant::now() + backoff.wait();
        } else if all {
            backoff.reset();
            look_at_all = Instant::now() + core.config.gc_interval;
        }
    }
}

/// Of these functions, or of everything. Whether all is here now.
async fn turn(core: &Core, functions: Option<Vec<FunctionId>>) -> bool {
    let missing = match &functions {
        _ if core.copies.artifacts.is_shared() => Ok(BTreeSet::new()),
        Some(functions) => of(core, functions).await,
        None => of_all(core).await,
    };
    let whole = match missing {
        Ok(missing) => bring(core, missing).await,
        Err(error) => {
            tracing::warn!(error = %chain(&error), "cannot tell which artifacts are here");
            false
        }
    };
    logs::copy(core, functions).await && whole
}

async fn of_all(core: &Core) -> Result<BTreeSet<Digest>, ArtifactError> {
    let mut missing = core.view().referenced_artifacts();
    for stored in core.copies.artifacts.list().await? {
        missing.remove(&stored.digest);
    }
    Ok(missing)
}

async fn of(core: &Core, functions: &[FunctionId]) -> Result<BTreeSet<Digest>, ArtifactError> {
    let view = core.view();
    let named = functions.iter().flat_map(|id| view.artifacts_of(*id));
    let mut missing = BTreeSet::new();
    for digest in named.collect::<BTreeSet<_>>() {
        if !core.copies.artifacts.contains(digest).await? {
            missing.insert(digest);
        }
    }
    Ok(missing)
}

fn take(core: &Core) -> Changes {
    let mut taken = Changes::default();
    core.touched.send_if_modified(|changes| {
        taken = std::mem::take(changes);
        false
    });
    taken
}

/// Whether all of it is here now.
async fn bring(core: &Core, missing: BTreeSet<Digest>) -> bool {
    let mut whole = true;
    for digest in missing {
        match core.copies.fetch(digest).await {
            Ok(()) => metrics::artifact_repaired(),
            // Named no more, or not stored by anybody yet whose write is on its way.
            Err(_) if !core.view().referenced_artifacts().contains(&digest) => {}
            Err(error) => {
                whole = false;
                tracing::warn!(error = %chain(&error), "an artifact is missing here");
            }
        }
    }
    whole
}
