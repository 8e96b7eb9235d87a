//! Sizes and bounds with their units in the type.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{error::Invalid, limits};

/// A memory limit in whole MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Memory(u32);

impl Memory {
    pub fn from_mib(mib: u32) -> Result<Self, Invalid> {
        if !(limits::MEMORY_MIN_MIB..=limits::MEMORY_MAX_MIB).contains(&mib) {
            return Err(Invalid::new(
                "memory",
                format_args!(
                    "must be {} to {} MiB, is {mib}",
                    limits::MEMORY_MIN_MIB,
                    limits::MEMORY_MAX_MIB
                ),
            ));
        }
        Ok(Self(mib))
    }

    pub fn mib(self) -> u32 {
        self.0
    }

    pub fn bytes(self) -> u64 {
        u64::from(self.0) << 20
    }
}

/// A share of processors in thousandths of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct MilliCpu(u32);

impl MilliCpu {
    pub fn new(millis: u32) -> Result<Self, Invalid> {
        if !(limits::CPU_MIN_MILLIS..=limits::CPU_MAX_MILLIS).contains(&millis) {
            return Err(Invalid::new(
                "cpu",
                format_args!(
                    "must be {} to {} thousandths of a core, is {millis}",
                    limits::CPU_MIN_MILLIS,
                    limits::CPU_MAX_MILLIS
                ),
            ));
        }
        Ok(Self(millis))
    }

    pub fn get(self) -> u32 {
        self.0
    }
}

/// A bound on one request, or on one cold start, in whole seconds; never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Timeout(u32);

impl Timeout {
    pub fn from_secs(secs: u32) -> Result<Self, Invalid> {
        if !(1..=limits::TIMEOUT_MAX_SECS).contains(&secs) {
            return Err(Invalid::new(
                "timeout",
                format_args!(
                    "must be 1 to {} seconds, is {secs}",
                    limits::TIMEOUT_MAX_SECS
                ),
            ));
        }
        Ok(Self(secs))
    }

    pub fn secs(self) -> u32 {
        self.0
    }

    pub fn duration(self) -> Duration {
        Duration::from_secs(u64::from(self.0))
    }
}

/// Most requests at once in one instance; never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Concurrency(u32);

impl Concurrency {
    pub const ONE: Self = Self(1);

    pub fn new(value: u32) -> Result<Self, Invalid> {
        if !(1..=limits::CONCURRENCY_MAX).contains(&value) {
            return Err(Invalid::new(
                "concurrency",
                format_args!("must be 1 to {}, is {value}", limits::CONCURRENCY_MAX),
            ));
        }
        Ok(Self(value))
    }

    pub fn get(self) -> u32 {
        self.0
    }
}

macro_rules! serde_u32 {
    ($($name:ident: $parse:expr;)*) => {$(
        impl TryFrom<u32> for $name {
            type Error = Invalid;
            fn try_from(value: u32) -> Result<Self, Invalid> { $parse(value) }
        }
        impl From<$name> for u32 {
            fn from(value: $name) -> u32 { value.0 }
        }
    )*};
}

serde_u32! {
    Memory: Memory::from_mib;
    MilliCpu: MilliCpu::new;
    Timeout: Timeout::from_secs;
    Concurrency: Concurrency::new;
}

/// Floor and cap of a function's instances; the floor is at most the cap, by construction. A cap of
/// zero is a function that may not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "RawScaleBounds", into = "RawScaleBounds")]
pub struct ScaleBounds {
    min: u32,
    max: u32,
}

#[derive(Serialize, Deserialize)]
struct RawScaleBounds {
    min: u32,
    max: u32,
}

impl ScaleBounds {
    pub fn new(min: u32, max: u32) -> Result<Self, Invalid> {
        let limit = limits::INSTANCES_MAX;
        if min > limit {
            return Err(Invalid::new(
                "scale.min",
                format_args!("must be 0 to {limit}, is {min}"),
            ));
        }
        if max > limit {
            return Err(Invalid::new(
                "scale.max",
                format_args!("must be 0 to {limit}, is {max}"),
            ));
        }
        if min > max {
            return Err(Invalid::new(
                "scale.min",
                format_args!("must not exceed scale.max: {min} > {max}"),
            ));
        }
        Ok(Self { min, max })
    }

    pub fn min(self) -> u32 {
        self.min
    }

    pub fn max(self) -> u32 {
        self.max
    }
}

impl TryFrom<RawScaleBounds> for ScaleBounds {
    type Error = Invalid;
    fn try_from(raw: RawScaleBounds) -> Result<Self, Invalid> {
        Self::new(raw.min, raw.max)
    }
}

impl From<ScaleBounds> for RawScaleBounds {
    fn from(value: ScaleBounds) -> Self {
        Self {
            min: value.min,
            max: value.max,
        }
    }
}

impl fmt::Display for ScaleBounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.min, self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_name_the_field_that_broke() {
        for (min, max) in [(0, 0), (0, 50), (50, 50)] {
            let shown = ScaleBounds::new(min, max).map(|b| b.to_string());
            assert_eq!(shown, Ok(format!("{min}..{max}")));
        }
        for (min, max, field) in [
            (51, 50, "scale.min"),
            (1, 0, "scale.min"),
            (0, 51, "scale.max"),
            (3, 2, "scale.min"),
        ] {
            let error = ScaleBounds::new(min, max).expect_err("out of bounds");
            assert_eq!(error.field, field, "{min}..{max}");
        }
    }

    #[test]
    fn zero_is_no_timeout_and_no_memory() {
        assert!(Timeout::from_secs(0).is_err());
        assert!(Timeout::from_secs(901).is_err());
        assert!(Memory::from_mib(0).is_err());
        assert!(MilliCpu::new(9).is_err());
        assert!(Concurrency::new(0).is_err());
    }
}
