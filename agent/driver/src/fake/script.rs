//! How a fake instance behaves.

use std::{str::FromStr, time::Duration};

use coracle_model::{Env, ExitReason};
use tokio::sync::watch;

/// The default starts at once, answers at once and never fails.
#[derive(Debug, Clone, Default)]
pub struct Script {
    /// How long loading the code takes.
    pub start: Duration,
    /// Loading does not end before the gate opens.
    pub gate: Option<Gate>,
    /// The launch fails, by the function's fault.
    pub fail: Option<ExitReason>,
    /// The launch fails, by the machine's fault.
    pub fault: Option<String>,
    /// How long an answer takes.
    pub latency: Duration,
    /// Ends with this reason instead of giving its n-th answer, counted from 1.
    pub end_at: Option<(u32, ExitReason)>,
    /// Ignores SIGTERM: graceful stops take their whole grace.
    pub stubborn: bool,
}

impl Script {
    /// With what the environment says on top, for suites that reach a fake only through the API:
    /// `FAKE_START_MS`, `FAKE_INIT_FAIL` (message), `FAKE_LATENCY_MS`, `FAKE_CRASH_AT` and
    /// `FAKE_OOM_AT` (number of the request), `FAKE_STUBBORN` (any value).
    #[must_use]
    pub fn overlaid(mut self, env: &Env) -> Self {
        for (name, value) in env.iter() {
            match name {
                "FAKE_START_MS" => set(&mut self.start, value, Duration::from_millis),
                "FAKE_LATENCY_MS" => set(&mut self.latency, value, Duration::from_millis),
                "FAKE_INIT_FAIL" => {
                    self.fail = Some(ExitReason::InitFailed {
                        message: value.to_owned(),
                    });
                }
                "FAKE_CRASH_AT" => {
                    set(&mut self.end_at, value, |n| {
                        Some((n, ExitReason::Exited { code: 1 }))
                    });
                }
                "FAKE_OOM_AT" => set(&mut self.end_at, value, |n| {
                    Some((n, ExitReason::OutOfMemory { limit_mib: 0 }))
                }),
                "FAKE_STUBBORN" => self.stubborn = true,
                _ => {}
            }
        }
        self
    }

    pub(super) async fn wait_to_start(&self) {
        if let Some(gate) = &self.gate {
            gate.passed().await;
        }
        if !self.start.is_zero() {
            tokio::time::sleep(self.start).await;
        }
    }
}

/// What does not parse leaves the script as it is.
fn set<N: FromStr, T>(field: &mut T, value: &str, make: impl FnOnce(N) -> T) {
    if let Ok(number) = value.parse() {
        *field = make(number);
    }
}

/// Holds what waits at it until it is opened; stays open.
#[derive(Debug, Clone)]
pub struct Gate(watch::Sender<bool>);

impl Gate {
    pub fn closed() -> Self {
        Self(watch::Sender::new(false))
    }

    pub fn open(&self) {
        self.0.send_replace(true);
    }

    /// Returns when it is open.
    pub async fn passed(&self) {
        // Cannot fail: the sender is held here.
        let _ = self.0.subscribe().wait_for(|open| *open).await;
    }
}
