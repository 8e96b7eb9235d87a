//! What one thread of the invocation listener has to itself.

use std::{
    cell::{Cell, RefCell},
    fmt::Write as _,
    rc::Rc,
    sync::Arc,
};

use arc_swap::{ArcSwap, Cache};
use uuid::Uuid;

use crate::{routes::Names, shared::Shared, upstream::Pool};

#[derive(Debug)]
pub(crate) struct Local {
    pub(crate) shared: Arc<Shared>,
    pub(crate) thread: usize,
    names: RefCell<Cache<Arc<ArcSwap<Names>>, Arc<Names>>>,
    pub(crate) pool: RefCell<Pool>,
    ids: RefCell<Ids>,
    /// The thread's runtime is about to end: nothing may be spawned on it any more.
    pub(crate) closing: Cell<bool>,
}

impl Local {
    pub(crate) fn new(shared: Arc<Shared>, thread: usize) -> Rc<Self> {
        let names = RefCell::new(Cache::new(shared.table.names()));
        Rc::new(Self {
            shared,
            thread,
            names,
            pool: RefCell::default(),
            ids: RefCell::new(Ids::new()),
            closing: Cell::new(false),
        })
    }

    /// The newest index of names; a check of one atomic when it has not changed.
    pub(crate) fn names(&self) -> Arc<Names> {
        self.names.borrow_mut().load().clone()
    }

    pub(crate) fn fresh_id(&self) -> Rc<str> {
        let (high, low) = self.ids.borrow_mut().next();
        let mut text = String::with_capacity(32);
        // Writing to a String cannot fail.
        let _ = write!(text, "{high:016x}{low:016x}");
        text.into()
    }

    /// A W3C trace context that begins here, sampled.
    pub(crate) fn fresh_trace(&self) -> String {
        let (high, low) = self.ids.borrow_mut().next();
        let (parent, _) = self.ids.borrow_mut().next();
        // All-zero ids are invalid, so one bit is always set.
        format!("00-{high:016x}{:016x}-{:016x}-01", low | 1, parent | 1)
    }
}

/// Ids that are distinct, not secret: two splitmix64 sequences, seeded by the kernel.
#[derive(Debug)]
struct Ids(u64, u64);

impl Ids {
    fn new() -> Self {
        let (high, low) = Uuid::new_v4().as_u64_pair();
        let (other, _) = Uuid::new_v4().as_u64_pair();
        Self(high ^ low.rotate_left(32), other)
    }

    fn next(&mut self) -> (u64, u64) {
        (splitmix(&mut self.0), splitmix(&mut self.1))
    }
}

fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn minted_ids_differ_and_minted_traces_are_valid() {
        let local = Local::new(Shared::for_test(|_| ()), 0);
        assert_ne!(local.fresh_id(), local.fresh_id());
        let trace = http::HeaderValue::from_str(&local.fresh_trace()).unwrap();
        let map =
            http::HeaderMap::from_iter([(http::HeaderName::from_static("traceparent"), trace)]);
        assert!(crate::headers::has_trace(&map));
    }
}
