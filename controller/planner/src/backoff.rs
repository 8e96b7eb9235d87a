//! Waiting longer after each failure of a revision.

use coracle_model::{ExitReason, Timestamp};

use crate::config::BackoffConfig;

/// The failures of one revision in a row, and when it may start again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failures {
    /// In a row; a healthy life in between starts over.
    pub count: u32,
    /// How many of them were the platform's own fault (the container could not be made).
    pub platform: u32,
    pub last_at: Timestamp,
    pub retry_at: Timestamp,
    /// Of the last one.
    pub reason: String,
}

impl Failures {
    /// The state after one more exit. `answered_ms`: how long the instance had been ready; 0 when
    /// it never was. Exits that are nobody's fault leave the state as it is.
    pub fn after(
        before: Option<&Self>,
        config: &BackoffConfig,
        now: Timestamp,
        reason: &ExitReason,
        answered_ms: u64,
    ) -> Option<Self> {
        if !reason.is_failure() {
            return before.cloned();
        }
        let platform = u32::from(matches!(reason, ExitReason::LaunchFailed { .. }));
        if answered_ms >= config.healthy_after_ms {
            return Some(Self {
                count: 0,
                platform: 0,
                last_at: now,
                retry_at: now,
                reason: reason.to_string(),
            });
        }
        let before = before.filter(|b| now.since(b.last_at) < config.most_ms * 2);
        let failed = before.map_or(0, |b| b.count);
        Some(Self {
            count: failed.saturating_add(1),
            platform: before.map_or(0, |b| b.platform).saturating_add(platform),
            last_at: now,
            // Several instances that fail together are one failure for the waiting time: it counts
            // from the last of them, and only a retry after the wait doubles it.
            retry_at: match before {
                Some(b) if b.count > 0 && now < b.retry_at => b.retry_at,
                _ if answered_ms > 0 => {
                    now.plus_millis(wait_ms(config, failed).min(config.answered_most_ms))
                }
                _ => now.plus_millis(wait_ms(config, failed)),
            },
            reason: reason.to_string(),
        })
    }

    pub fn is_waiting(&self, now: Timestamp) -> bool {
        now < self.retry_at
    }

    /// Failures where the code or its limits are at fault.
    pub fn of_function(&self) -> u32 {
        self.count.saturating_sub(self.platform)
    }
}

fn wait_ms(config: &BackoffConfig, failed: u32) -> u64 {
    config
        .first_ms
        .saturating_mul(1 << failed.min(32))
        .min(config.most_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXITED: ExitReason = ExitReason::Exited { code: 1 };

    #[test]
    fn the_wait_doubles_from_one_second_to_five_minutes() {
        let config = BackoffConfig::default();
        let mut state: Option<Failures> = None;
        let mut now = Timestamp(1_000_000);
        let mut waits = Vec::new();
        for _ in 0..11 {
            state = Failures::after(state.as_ref(), &config, now, &EXITED, 0);
            let retry_at = state.as_ref().map(|s| s.retry_at).expect("failed");
            waits.push(retry_at.since(now) / 1_000);
            now = retry_at;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
    }

    #[test]
    fn code_that_starts_is_never_kept_away_for_long() {
        let config = BackoffConfig::default();
        let mut state: Option<Failures> = None;
        let mut now = Timestamp(1_000_000);
        let mut waits = Vec::new();
        for _ in 0..5 {
            state = Failures::after(state.as_ref(), &config, now, &EXITED, 20);
            let retry_at = state.as_ref().map(|s| s.retry_at).expect("failed");
            waits.push(retry_at.since(now) / 1_000);
            now = retry_at;
        }
        assert_eq!(waits, [1, 2, 4, 4, 4]);
    }

    #[test]
    fn a_healthy_life_starts_over_and_stops_do_not_count() {
        let config = BackoffConfig::default();
        let now = Timestamp(1_000_000);
        let failed = Failures::after(None, &config, now, &EXITED, 0);
        for reason in [ExitReason::Stopped, ExitReason::TimedOut, ExitReason::Lost] {
            assert_eq!(
                Failures::after(failed.as_ref(), &config, now, &reason, 0),
                failed
            );
        }
        let healthy = Failures::after(failed.as_ref(), &config, now, &EXITED, 10_000);
        assert!(!healthy.as_ref().expect("kept").is_waiting(now));
        let again = Failures::after(healthy.as_ref(), &config, now, &EXITED, 0).expect("failed");
        assert_eq!(again.retry_at.since(now), 1_000);
    }

    #[test]
    fn three_that_fail_together_wait_once() {
        let config = BackoffConfig::default();
        let now = Timestamp(1_000_000);
        let mut state = None;
        for _ in 0..3 {
            state = Failures::after(state.as_ref(), &config, now, &EXITED, 0);
        }
        let state = state.expect("failed");
        assert_eq!((state.count, state.retry_at.since(now)), (3, 1_000));
    }

    #[test]
    fn launch_failures_are_told_from_the_functions_own() {
        let config = BackoffConfig::default();
        let launch = ExitReason::LaunchFailed {
            message: "no".into(),
        };
        let one = Failures::after(None, &config, Timestamp(1), &launch, 0);
        let two = Failures::after(one.as_ref(), &config, Timestamp(2), &EXITED, 0).expect("failed");
        assert_eq!((two.count, two.platform, two.of_function()), (2, 1, 1));
    }
}
