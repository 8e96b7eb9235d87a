//! Process plumbing without domain words: addresses, clocks, tasks, shutdown, logging.

#![forbid(unsafe_code)]

pub mod address;
pub mod backoff;
pub mod clock;
pub mod replicas;
pub mod shutdown;
pub mod telemetry;
pub mod tls;

pub use address::{Address, Conn, Incoming, MemoryBus, Remote};
pub use backoff::Backoff;
pub use clock::{Clock, ManualClock, SystemClock};
pub use replicas::{Replicas, Told};
pub use shutdown::{Shutdown, ShutdownGuard};
pub use tls::{Credentials, Tls, TlsError, TlsPeer, Trust};
