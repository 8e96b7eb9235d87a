//! Where an instance's output goes.

use std::fmt::Debug;

use coracle_model::{FunctionId, LogLineRef};

/// Takes lines as they appear. Must not block: a slow disk may cost lines, never an instance.
pub trait LogSink: Debug + Send + Sync + 'static {
    fn line(&self, function: FunctionId, line: LogLineRef<'_>);
}
