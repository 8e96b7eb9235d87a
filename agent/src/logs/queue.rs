//! Lines on their way to the disk, bounded by bytes for each function and in all.

use std::{
    collections::BTreeMap,
    sync::{Condvar, Mutex, MutexGuard},
};

use coracle_model::{FunctionId, LogLine};

/// What one line costs beyond its text.
const LINE_BYTES: usize = 128;

/// The lines of one function that wait.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) lines: Vec<LogLine>,
    bytes: usize,
    /// Lines that found no room.
    pub(super) dropped: u64,
}

#[derive(Debug, Default)]
struct State {
    batches: BTreeMap<FunctionId, Batch>,
    bytes: usize,
    /// Pushes ever, dropped ones included.
    pushed: u64,
    closed: bool,
}

#[derive(Debug)]
pub(super) struct Queue {
    most: usize,
    state: Mutex<State>,
    filled: Condvar,
}

/// Everything that waited at one moment.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) batches: BTreeMap<FunctionId, Batch>,
    /// [`Queue::pushed`] at that moment.
    pub(super) pushed: u64,
}

impl Queue {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            state: Mutex::default(),
            filled: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("never poisoned: no panic while held")
    }

    /// Never waits for the disk.
    pub(super) fn push(&self, function: FunctionId, line: LogLine) {
        let bytes = line.message.len() + line.request.as_ref().map_or(0, String::len) + LINE_BYTES;
        let mut state = self.state();
        let room = state.bytes + bytes <= self.most;
        let batch = state.batches.entry(function).or_default();
        if room && batch.bytes + bytes <= self.most / 4 {
            batch.bytes += bytes;
            batch.lines.push(line);
            state.bytes += bytes;
        } else {
            batch.dropped += 1;
        }
        state.pushed += 1;
        drop(state);
        self.filled.notify_one();
    }

    pub(super) fn pushed(&self) -> u64 {
        self.state().pushed
    }

    /// Waits until there is something. `None` when it was closed and is empty.
    pub(super) fn take(&self) -> Option<Taken> {
        let waiting = self.filled.wait_while(self.state(), |state| {
            state.batches.is_empty() && !state.closed
        });
        let mut state = waiting.expect("never poisoned: no panic while held");
        if state.batches.is_empty() {
            return None;
        }
        state.bytes = 0;
        let batches = std::mem::take(&mut state.batches);
        Some(Taken {
            batches,
            pushed: state.pushed,
        })
    }

    pub(super) fn close(&self) {
        self.state().closed = true;
        self.filled.notify_all();
    }
}
