//! Process plumbing without domain words: addresses, clocks, tasks, shutdown, logging.

#![forbid(unsafe_code)]

pub mod address;
pub mod backoff;
pub mod clock;
pub mod shutdown;
pub mod telemetry;

pub use address::{Address, Incoming, MemoryBus};
pub use backoff::Backoff;
pub use clock::{Clock, ManualClock, SystemClock};
pub use shutdown::Shutdown;
