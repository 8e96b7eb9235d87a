//! One small number per container; its user ids and its address follow from it.
//!
//! Each container has a range of user ids of its own: the kernel accounts pipe memory (and more) to
//! the host's id, so that with a shared range one function could starve the others.

use std::{
    net::Ipv4Addr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// A Linux bridge takes 1,024 ports, and a /22 has 1,022 addresses.
pub(crate) const SLOTS: u16 = 1000;
/// The range of every build job; instances start at 1.
pub(crate) const BUILD_SLOT: u16 = 0;
/// Ids mapped into one container.
pub(crate) const WIDTH: u32 = 1 << 16;
/// The user that shims and functions run as inside.
pub(crate) const USER: u32 = 1000;

/// Ranges of clusters lie above what distributions and `useradd` hand out, and below 2^31, since
/// programs exist that read ids as signed.
const FIRST_BLOCK: u32 = 1 << 28;
const BLOCK: u32 = WIDTH * 1024;
const BLOCKS: u32 = ((1 << 31) - FIRST_BLOCK) / BLOCK;

/// Where the ids of a slot begin on the host.
pub(crate) fn uid_base(cluster: u32, slot: u16) -> u32 {
    FIRST_BLOCK + (cluster % BLOCKS) * BLOCK + u32::from(slot) * WIDTH
}

/// The address of a slot; the subnet's first address is the bridge's.
pub(crate) fn address(subnet: Ipv4Addr, slot: u16) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(subnet) + 2 + u32::from(slot))
}

#[derive(Debug, Clone)]
pub(crate) struct Slots(Arc<Mutex<Table>>);

#[derive(Debug)]
struct Table {
    used: Vec<bool>,
    /// The search goes on behind the last one taken, so that a number rests before its next use:
    /// the kernel removes a network namespace some time after its last process.
    next: u16,
}

/// Held for as long as the container exists; dropping it frees the number.
#[derive(Debug)]
pub(crate) struct Slot {
    number: u16,
    table: Arc<Mutex<Table>>,
}

impl Slot {
    pub(crate) fn number(&self) -> u16 {
        self.number
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        lock(&self.table).used[usize::from(self.number)] = false;
    }
}

#[derive(Debug, thiserror::Error)]
#[error("all {SLOTS} container slots of this node are in use")]
pub(crate) struct NoSlot;

impl Slots {
    pub(crate) fn new() -> Self {
        let mut used = vec![false; usize::from(SLOTS)];
        used[usize::from(BUILD_SLOT)] = true;
        Self(Arc::new(Mutex::new(Table {
            used,
            next: BUILD_SLOT + 1,
        })))
    }

    pub(crate) fn take(&self) -> Result<Slot, NoSlot> {
        let mut table = lock(&self.0);
        let number = (0..SLOTS)
            .map(|step| (table.next + step) % SLOTS)
            .find(|number| !table.used[usize::from(*number)])
            .ok_or(NoSlot)?;
        table.used[usize::from(number)] = true;
        table.next = (number + 1) % SLOTS;
        drop(table);
        Ok(Slot {
            number,
            table: Arc::clone(&self.0),
        })
    }

    /// A number that a container found at start already has; `None` if it is not free.
    pub(crate) fn claim(&self, number: u16) -> Option<Slot> {
        let mut table = lock(&self.0);
        let used = table.used.get_mut(usize::from(number))?;
        if std::mem::replace(used, true) {
            return None;
        }
        drop(table);
        Some(Slot {
            number,
            table: Arc::clone(&self.0),
        })
    }
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_held_once_and_rests_before_its_next_use() {
        let slots = Slots::new();
        let first = slots.take().expect("free");
        assert_eq!(first.number(), 1);
        drop(first);
        assert_eq!(slots.take().expect("free").number(), 2);
        let kept = slots.claim(7).expect("free");
        assert!(slots.claim(7).is_none() && slots.claim(BUILD_SLOT).is_none());
        assert!(slots.claim(SLOTS).is_none());
        let all: Vec<_> = std::iter::from_fn(|| slots.take().ok()).collect();
        assert_eq!(all.len(), usize::from(SLOTS) - 2);
        assert!(all.iter().all(|slot| slot.number() != kept.number()));
    }

    #[test]
    fn ranges_do_not_overlap_and_stay_positive() {
        assert_eq!(uid_base(5, 3) + WIDTH, uid_base(5, 4));
        assert!(uid_base(5, SLOTS) < uid_base(6, 0));
        assert!(uid_base(BLOCKS - 1, SLOTS - 1) + WIDTH <= 1 << 31);
        let subnet = Ipv4Addr::new(100, 64, 4, 0);
        assert_eq!(address(subnet, 1), Ipv4Addr::new(100, 64, 4, 3));
        assert_eq!(address(subnet, SLOTS - 1), Ipv4Addr::new(100, 64, 7, 233));
    }
}
