//! What one thread of the invocation listener has to itself.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
};

use arc_swap::{ArcSwap, Cache};
use bytes::BytesMut;
use uuid::Uuid;

use crate::{idle::Connections, routes::Names, shared::Shared, upstream::Pool};

/// A buffer that grew beyond this is not kept.
const SCRATCH_KEPT: usize = 64 * 1024;

#[derive(Debug)]
pub(crate) struct Local {
    pub(crate) shared: Arc<Shared>,
    pub(crate) thread: usize,
    names: RefCell<Cache<Arc<ArcSwap<Names>>, Arc<Names>>>,
    pub(crate) pool: RefCell<Pool>,
    ids: RefCell<Ids>,
    scratch: RefCell<BytesMut>,
    pub(crate) connections: Rc<Connections>,
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
            scratch: RefCell::default(),
            connections: Rc::default(),
            closing: Cell::new(false),
        })
    }

    /// The newest index of names; a check of one atomic when it has not changed.
    pub(crate) fn names(&self) -> Arc<Names> {
        self.names.borrow_mut().load().clone()
    }

    pub(crate) fn fresh_id(&self) -> Rc<str> {
        let (high, low) = self.ids.borrow_mut().next();
        let mut text = [0; 32];
        put_hex(&mut text[..16], high);
        put_hex(&mut text[16..], low);
        std::str::from_utf8(&text)
            .expect("hexadecimal digits are ASCII")
            .into()
    }

    /// An empty buffer; given back with `keep`, it saves the next request an allocation.
    pub(crate) fn scratch(&self) -> BytesMut {
        self.scratch.take()
    }

    pub(crate) fn keep(&self, mut scratch: BytesMut) {
        if scratch.capacity() <= SCRATCH_KEPT {
            scratch.clear();
            self.scratch.replace(scratch);
        }
    }

    /// A W3C trace context that begins here, sampled.
    pub(crate) fn fresh_trace(&self) -> Trace {
        let (high, low) = self.ids.borrow_mut().next();
        let (parent, _) = self.ids.borrow_mut().next();
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-01";
        // All-zero ids are invalid, so one bit is always set.
        put_hex(&mut text[3..19], high);
        put_hex(&mut text[19..35], low | 1);
        put_hex(&mut text[36..52], parent | 1);
        text
    }
}

/// The text of a `traceparent` header.
pub(crate) type Trace = [u8; 55];

/// By hand, because it happens three times a request and formatting machinery costs as much as
/// finding the function.
fn put_hex(out: &mut [u8], number: u64) {
    for (byte, pair) in number.to_be_bytes().iter().zip(out.chunks_exact_mut(2)) {
        pair[0] = b"0123456789abcdef"[usize::from(byte >> 4)];
        pair[1] = b"0123456789abcdef"[usize::from(byte & 15)];
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
        let mut text = [0; 16];
        put_hex(&mut text, 0x0123_4567_89ab_cdef);
        assert_eq!(&text, b"0123456789abcdef");
        let trace = http::HeaderValue::from_bytes(&local.fresh_trace()).unwrap();
        let map =
            http::HeaderMap::from_iter([(http::HeaderName::from_static("traceparent"), trace)]);
        assert!(crate::headers::has_trace(&map));
    }
}
