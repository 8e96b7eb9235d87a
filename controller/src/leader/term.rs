//! Beginning and ending terms: the memory, the feed and the incarnation follow the replica.

use std::{sync::Arc, time::Duration};

use coracle_base::Shutdown;
use coracle_model::Timestamp;
use coracle_state::{Body, View};

use super::{desk::Desk, memory::Leadership};
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
    if let Some(body) = first_write(&core.view())
        && !core.step(body).await
    {
        return false;
    }
    take_over(core, term, core.now());
    true
}

/// What has to be replicated before a term can begin.
pub(crate) fn first_write(view: &View) -> Option<Body> {
    (view.incarnation() == 0).then_some(Body::SetIncarnation { incarnation: 1 })
}

/// The term's work begins: with asking the agents.
pub(crate) fn take_over(desk: &Desk, term: u64, now: Timestamp) {
    let mut memory = desk.memory();
    let view = desk.view();
    let incarnation = view.incarnation();
    memory.begin(
        incarnation,
        term,
        Leadership::Collecting {
            since: now,
            heard: None,
        },
    );
    memory.expect_nodes(now, &view);
    let functions = view.functions().count();
    tracing::info!(term, incarnation, functions, "leading; waiting for agents");
    // Of an earlier term. The new one's begins once the agents were heard.
    desk.routes.end();
    drop(memory);
    metrics::leading(true);
    desk.plan_wake.notify_one();
    desk.build_wake.notify_one();
}

pub(crate) fn end(desk: &Desk) {
    let mut memory = desk.memory();
    if memory.leads() {
        tracing::info!(term = memory.term, "no longer leading");
    }
    let (incarnation, term) = (memory.incarnation, memory.term);
    memory.begin(incarnation, term, Leadership::Following);
    desk.routes.end();
    metrics::leading(false);
}
