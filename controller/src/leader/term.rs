//! Beginning and ending terms: the memory, the feed and the incarnation follow the replica.

use std::{sync::Arc, time::Duration};

use coracle_base::Shutdown;
use coracle_state::Body;

use super::memory::Leadership;
use crate::{core::Core, metrics};

const RETRY: Duration = Duration::from_millis(200);

pub(crate) async fn run(core: Arc<Core>, shutdown: Shutdown) {
    let mut status = core.replica.status();
    let mut led: Option<u64> = None;
    loop {
        let leading = status.borrow_and_update().leading();
        if leading != led {
            match leading {
                Some(term) => {
                    if !begin(&core, term).await {
                        // Without an incarnation no order can be stamped; try again.
                        tokio::select! {
                            () = tokio::time::sleep(RETRY) => continue,
                            () = shutdown.requested() => break,
                        }
                    }
                }
                None => end(&core),
            }
            led = leading;
        }
        tokio::select! {
            changed = status.changed() => if changed.is_err() { break },
            () = shutdown.requested() => break,
        }
    }
    end(&core);
}

async fn begin(core: &Core, term: u64) -> bool {
    if core.view().incarnation() == 0 && !core.step(Body::SetIncarnation { incarnation: 1 }).await {
        return false;
    }
    let now = core.now();
    let mut memory = core.memory();
    let view = core.view();
    let incarnation = view.incarnation();
    memory.begin(
        incarnation,
        term,
        Leadership::Collecting {
            since: now,
            heard: None,
        },
    );
    let functions = view.functions().count();
    tracing::info!(term, incarnation, functions, "leading; waiting for agents");
    // Of an earlier term. The new one's begins once the agents were heard.
    core.routes.end();
    drop(memory);
    metrics::leading(true);
    core.plan_wake.notify_one();
    core.build_wake.notify_one();
    true
}

fn end(core: &Core) {
    let mut memory = core.memory();
    if memory.leads() {
        tracing::info!(term = memory.term, "no longer leading");
    }
    let (incarnation, term) = (memory.incarnation, memory.term);
    memory.begin(incarnation, term, Leadership::Following);
    core.routes.end();
    metrics::leading(false);
}
