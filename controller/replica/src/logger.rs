//! raft-rs logs through slog; this hands its lines to tracing.

use std::fmt::{self, Write as _};

use slog::{Drain, KV, Key, Level, Never, OwnedKVList, Record, Serializer};
use tracing::enabled;

/// The logger for raft. What raft calls info is detail to an operator (the driver itself reports
/// who leads), so it comes out one level lower.
pub(crate) fn raft_logger() -> slog::Logger {
    slog::Logger::root(ToTracing.fuse(), slog::o!())
}

struct ToTracing;

impl ToTracing {
    fn wanted(level: Level) -> bool {
        match level {
            Level::Critical | Level::Error => enabled!(target: "raft", tracing::Level::ERROR),
            Level::Warning => enabled!(target: "raft", tracing::Level::WARN),
            Level::Info => enabled!(target: "raft", tracing::Level::DEBUG),
            Level::Debug | Level::Trace => enabled!(target: "raft", tracing::Level::TRACE),
        }
    }
}

impl Drain for ToTracing {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), Never> {
        // Raft formats whole messages at debug level, so not unless somebody reads them.
        if !Self::wanted(record.level()) {
            return Ok(());
        }
        let mut fields = Fields(String::new());
        // Writing into a string cannot fail; a value that refuses to be printed is left out.
        let _ = record.kv().serialize(record, &mut fields);
        let _ = values.serialize(record, &mut fields);
        let (message, fields) = (record.msg(), fields.0);
        match record.level() {
            Level::Critical | Level::Error => tracing::error!(target: "raft", %fields, "{message}"),
            Level::Warning => tracing::warn!(target: "raft", %fields, "{message}"),
            Level::Info => tracing::debug!(target: "raft", %fields, "{message}"),
            Level::Debug | Level::Trace => {
                tracing::trace!(target: "raft", %fields, "{message}");
            }
        }
        Ok(())
    }

    fn is_enabled(&self, level: Level) -> bool {
        Self::wanted(level)
    }
}

struct Fields(String);

impl Serializer for Fields {
    fn emit_arguments(&mut self, key: Key, value: &fmt::Arguments<'_>) -> slog::Result {
        let space = if self.0.is_empty() { "" } else { " " };
        write!(self.0, "{space}{key}={value}").map_err(slog::Error::from)
    }
}
