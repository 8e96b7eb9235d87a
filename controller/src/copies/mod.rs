//! Artifacts of the whole cluster: each is on a majority of the voters before anybody hears that it
//! is stored, and comes to all of them in time.
//!
//! `spread` copies an upload while it arrives, `holders` asks who has what before a write or a change
//! of the group relies on it, `fetch` and `repair` bring what is missing, `collect` removes what
//! nothing names. A controller alone is a majority of one and goes the same ways. Where the store is
//! shared nothing is copied: what one has stored all have.

mod collect;
mod fellows;
mod fetch;
mod holders;
mod logs;
mod repair;
mod spread;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use tokio::sync::Semaphore;

pub(crate) use self::{
    collect::run as collect, fellows::Fellows, fetch::FetchError, holders::Held,
    repair::run as repair, spread::SpreadError,
};
use crate::artifacts::Artifacts;

/// Artifacts fetched from others at once.
const FETCHES: usize = 2;

/// The artifacts here, and those of the others.
#[derive(Debug, Clone)]
pub(crate) struct Copies {
    pub(crate) artifacts: Artifacts,
    fellows: Arc<Fellows>,
    fetches: Arc<Semaphore>,
}

impl Copies {
    pub(crate) fn new(artifacts: Artifacts, fellows: Fellows) -> Self {
        Self {
            artifacts,
            fellows: Arc::new(fellows),
            fetches: Arc::new(Semaphore::new(FETCHES)),
        }
    }
}
