//! A member's disk: loses what was not synced when power goes, and may lose power at any write.

use coracle_replica::{
    LogStore, MemLog,
    log::{Durability, Error, Snapshot, State, Write},
    testing::Entry,
};

use crate::options::Planted;

#[derive(Debug)]
pub(crate) struct Disk {
    log: MemLog,
    planted: Option<Planted>,
    /// The writing calls that still succeed; `None`: all.
    pub(crate) lives: Option<u64>,
}

impl Disk {
    pub(crate) fn new(log: MemLog, planted: Option<Planted>) -> Self {
        Self {
            log,
            planted,
            lives: None,
        }
    }

    pub(crate) fn unsynced(&self) -> usize {
        self.log.unsynced()
    }

    pub(crate) fn into_log(self) -> MemLog {
        self.log
    }

    /// What the planted bugs put off.
    pub(crate) fn sync_late(&mut self) {
        if self.planted.is_some() && self.log.unsynced() > 0 {
            self.log.sync().expect("memory does not fail");
        }
    }

    fn spend(&mut self) -> Result<(), Error> {
        match &mut self.lives {
            None => return Ok(()),
            Some(0) => {}
            Some(lives) => {
                *lives -= 1;
                return Ok(());
            }
        }
        Err(Error::Sync(std::io::Error::other("power is gone")))
    }

    fn durability(&self, write: &Write, asked: Durability) -> Durability {
        let votes = write.entries.is_empty() && write.hard.is_some();
        let put_off = match self.planted {
            Some(Planted::VotesBeforeSync) => votes,
            Some(Planted::AcknowledgementsBeforeSync) => !write.entries.is_empty(),
            _ => false,
        };
        if put_off { Durability::Buffered } else { asked }
    }
}

impl LogStore for Disk {
    fn state(&self) -> &State {
        self.log.state()
    }

    fn last_index(&self) -> u64 {
        self.log.last_index()
    }

    fn term(&self, index: u64) -> Option<u64> {
        self.log.term(index)
    }

    fn entries(&self, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Entry>, Error> {
        self.log.entries(low, high, max_bytes)
    }

    fn write(&mut self, write: Write, durability: Durability) -> Result<(), Error> {
        self.spend()?;
        let durability = self.durability(&write, durability);
        self.log.write(write, durability)
    }

    fn sync(&mut self) -> Result<(), Error> {
        self.spend()?;
        self.log.sync()
    }

    fn save_snapshot(&mut self, snapshot: Snapshot<'_>) -> Result<(), Error> {
        self.spend()?;
        self.log.save_snapshot(snapshot)
    }

    fn install_snapshot(&mut self, snapshot: Snapshot<'_>, write: Write) -> Result<(), Error> {
        self.spend()?;
        self.log.install_snapshot(snapshot, write)
    }

    fn load_snapshot(&self) -> Result<Option<Vec<u8>>, Error> {
        self.log.load_snapshot()
    }

    fn compact(&mut self, index: u64, limit: u64) -> Result<bool, Error> {
        self.spend()?;
        self.log.compact(index, limit)
    }
}
