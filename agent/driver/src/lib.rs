//! What an agent asks of whatever runs instances and builds, and an in-memory fake of it.

#![forbid(unsafe_code)]

pub mod fake;
pub mod instance;
pub mod logs;
pub mod sandbox;

pub use instance::{
    Exit, InstanceDriver, LaunchError, LaunchOrder, Launched, Origin, StemTarget, Stop, Survivor,
};
pub use logs::LogSink;
pub use sandbox::{BuildJob, BuildSandbox, Mount, SandboxError, SandboxExit};
