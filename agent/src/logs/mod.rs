//! Functions' output: bounded files that survive the instances, read back and followed.
//!
//! Lines come in through a bounded queue and are written by one thread, so that a slow disk costs
//! lines and never an instance; what is lost is counted and said in the log itself. Each function
//! has two files, the older one replaced when the newer one is full; over all functions a total
//! bound holds, and the function that has been silent longest loses its lines first.

mod files;
mod queue;
mod read;
mod store;
#[cfg(test)]
mod tests;

pub use read::{Filter, Follow, LogError};
pub use store::LogStore;

/// Bounds of [`LogStore`].
#[derive(Debug, Clone)]
pub struct LogLimits {
    /// Of one of a function's two files.
    pub file_bytes: u64,
    /// Of all files together.
    pub total_bytes: u64,
    /// Of one message; the rest of a longer one is cut off, marked by an ellipsis.
    pub message_bytes: usize,
    /// Lines that wait for the disk, of all functions together. One function gets a quarter.
    pub queue_bytes: usize,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self {
            file_bytes: 8 << 20,
            total_bytes: 1 << 30,
            message_bytes: 16 << 10,
            queue_bytes: 8 << 20,
        }
    }
}
