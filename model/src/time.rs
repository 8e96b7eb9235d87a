//! Time as a plain value.

use std::fmt;

use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::error::Invalid;

/// Milliseconds since the Unix epoch. Stamped by whoever proposes, never read inside apply.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    pub fn millis(self) -> u64 {
        self.0
    }

    /// Milliseconds from `earlier` to this; zero when the clock went backwards.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    #[must_use]
    pub fn plus_millis(self, millis: u64) -> Self {
        Self(self.0.saturating_add(millis))
    }

    /// `2023-08-22T11:21:00Z`, or with milliseconds where there are some. Always a literal `Z`,
    /// which some clients insist on.
    pub fn rfc3339(self) -> String {
        let nanos = i128::from(self.0) * 1_000_000;
        OffsetDateTime::from_unix_timestamp_nanos(nanos)
            .ok()
            .and_then(|t| t.format(&Rfc3339).ok())
            .unwrap_or_else(|| "9999-12-31T23:59:59Z".to_owned())
    }

    pub fn parse_rfc3339(field: &str, s: &str) -> Result<Self, Invalid> {
        let bad = || Invalid::new(field, "must be a time such as 2026-11-22T10:00:00Z");
        let t = OffsetDateTime::parse(s, &Rfc3339).map_err(|_| bad())?;
        u64::try_from(t.unix_timestamp_nanos() / 1_000_000)
            .map(Self)
            .map_err(|_| bad())
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rfc3339())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_with_a_literal_z() {
        let t = Timestamp::parse_rfc3339("t", "2023-08-22T11:21:00Z").unwrap();
        assert_eq!(t.rfc3339(), "2023-08-22T11:21:00Z");
        assert_eq!(t.plus_millis(5).rfc3339(), "2023-08-22T11:21:00.005Z");
        assert!(Timestamp::parse_rfc3339("t", "yesterday").is_err());
    }
}
