//! What a command prints.

use std::{process::ExitCode, time::Duration};

/// Rows of faults with what was seen, and a count of those that broke a promise.
#[derive(Debug)]
pub(crate) struct Table {
    command: String,
    faults: u32,
    failed: u32,
}

impl Table {
    pub(crate) fn new(command: &str) -> Self {
        Self {
            command: command.to_owned(),
            faults: 0,
            failed: 0,
        }
    }

    /// One fault: what was seen, and what of it must not be (empty: nothing).
    pub(crate) fn fault(&mut self, seen: &str, wrong: &[String]) {
        self.faults += 1;
        self.failed += u32::from(!wrong.is_empty());
        let verdict = if wrong.is_empty() { "held" } else { "BROKEN" };
        println!("{} {:>3}  {verdict:<6}  {seen}", self.command, self.faults);
        for sentence in wrong {
            println!("      {sentence}");
        }
    }

    /// A figure over all faults.
    pub(crate) fn spread(&self, what: &str, mut values: Vec<Duration>) {
        if values.is_empty() {
            return;
        }
        values.sort_unstable();
        let at = |percent: usize| values[(values.len() - 1) * percent / 100].as_millis();
        println!(
            "{}: {what}: n {}, min {} ms, p50 {} ms, p99 {} ms, max {} ms",
            self.command,
            values.len(),
            at(0),
            at(50),
            at(99),
            at(100)
        );
    }

    pub(crate) fn note(&self, text: &str) {
        println!("{}: {text}", self.command);
    }

    pub(crate) fn finish(self) -> ExitCode {
        println!("{} faults, {} failed", self.faults, self.failed);
        if self.failed == 0 && self.faults > 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

/// A number from a seed and a counter: the same ones in every run.
pub(crate) fn drawn(seed: u64, count: u64, below: u64) -> u64 {
    let mut x = seed
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(count.wrapping_mul(0xbf58_476d_1ce4_e5b9));
    x = (x ^ (x >> 30)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x ^ (x >> 31)) % below
}
