//! Waiting longer after each failure of a revision.
//!
//! | what ended | first wait | then | at most |
//! |---|---|---|---|
//! | it never answered (load error, init timeout, exit, out of memory, container) | 1 s | doubles | 5 min |
//! | it had answered, less than 10 s | 1 s | doubles | 4 s |
//! | a request ran past its timeout, twice and more in a row | 1 s | doubles | 4 s |
//! | it had been well for 10 s, or a first timeout | none | | |
//!
//! What a *caller* can bring about is bounded by 4 s: requests that crash an instance, or hang in
//! it, slow down its replacements, and must not take the function from everybody else for minutes.
//! Instances that run are never touched by a wait.

use coracle_model::{ExitReason, Timestamp};

use crate::config::BackoffConfig;

/// The failures of one revision in a row, and when it may start again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failures {
    /// In a row; a healthy life in between starts over. Without the hangs.
    pub count: u32,
    /// Instances in a row that were killed for a request that ran past its timeout.
    pub hangs: u32,
    /// How many of them were the platform's own fault (the container could not be made).
    pub platform: u32,
    pub last_at: Timestamp,
    pub retry_at: Timestamp,
    /// Of the last one.
    pub reason: String,
}

impl Failures {
    /// The state after one more exit. `well_ms`: how long the instance had been ready before that
    /// which ended it began; 0 when it never was. Exits that are nobody's fault leave the state as
    /// it is.
    pub fn after(
        before: Option<&Self>,
        config: &BackoffConfig,
        now: Timestamp,
        reason: &ExitReason,
        well_ms: u64,
    ) -> Option<Self> {
        let hang = *reason == ExitReason::TimedOut;
        if !hang && !reason.is_failure() {
            return before.cloned();
        }
        let fresh = Self {
            count: 0,
            hangs: 0,
            platform: 0,
            last_at: now,
            retry_at: now,
            reason: reason.to_string(),
        };
        if well_ms >= config.healthy_after_ms {
            return Some(fresh);
        }
        let before = before.filter(|b| now.since(b.last_at) < config.most_ms * 2);
        if hang {
            return Some(Self::after_hang(before, config, fresh));
        }
        let platform = u32::from(matches!(reason, ExitReason::LaunchFailed { .. }));
        let failed = before.map_or(0, |b| b.count);
        Some(Self {
            count: failed.saturating_add(1),
            hangs: before.map_or(0, |b| b.hangs),
            platform: before.map_or(0, |b| b.platform).saturating_add(platform),
            last_at: now,
            // Several instances that fail together are one failure for the waiting time: it counts
            // from the last of them, and only a retry after the wait doubles it.
            retry_at: match before {
                Some(b) if b.count > 0 && now < b.retry_at => b.retry_at,
                _ if well_ms > 0 => {
                    now.plus_millis(wait_ms(config, failed).min(config.answered_most_ms))
                }
                _ => now.plus_millis(wait_ms(config, failed)),
            },
            reason: reason.to_string(),
        })
    }

    /// One slow request is no reason to wait: only those after it, each time that a replacement
    /// hung as well.
    fn after_hang(before: Option<&Self>, config: &BackoffConfig, hung: Self) -> Self {
        let now = hung.last_at;
        let Some(before) = before else {
            return Self { hangs: 1, ..hung };
        };
        let together = before.hangs > 0 && now.since(before.last_at) < config.together_ms;
        if together || before.is_waiting(now) {
            // Counted from the first of them, or a steady trickle would never be a second time.
            return Self {
                reason: hung.reason,
                ..before.clone()
            };
        }
        let wait = match before.hangs {
            0 => 0,
            before => wait_ms(config, before - 1).min(config.answered_most_ms),
        };
        Self {
            hangs: before.hangs.saturating_add(1),
            retry_at: now.plus_millis(wait),
            last_at: now,
            reason: hung.reason,
            ..before.clone()
        }
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
        for reason in [ExitReason::Stopped, ExitReason::Lost] {
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

    /// Each replacement hangs again as soon as it may start.
    #[test]
    fn hang_after_hang_waits_longer_and_never_for_minutes() {
        let config = BackoffConfig::default();
        let mut state: Option<Failures> = None;
        let mut now = Timestamp(1_000_000);
        let mut waits = Vec::new();
        for _ in 0..6 {
            state = Failures::after(state.as_ref(), &config, now, &ExitReason::TimedOut, 0);
            let retry_at = state.as_ref().map(|s| s.retry_at).expect("hung");
            waits.push(retry_at.since(now) / 1_000);
            // It starts, takes a request at once, and is killed after its timeout of 3 s.
            now = retry_at.plus_millis(3_000);
        }
        assert_eq!(waits, [0, 1, 2, 4, 4, 4]);
        let state = state.expect("hung");
        assert_eq!((state.hangs, state.count, state.of_function()), (6, 0, 0));

        // One that worked for ten seconds before such a request came ends the row.
        let well = Failures::after(Some(&state), &config, now, &ExitReason::TimedOut, 10_000);
        let well = well.expect("kept");
        assert_eq!((well.hangs, well.is_waiting(now)), (0, false));
    }

    #[test]
    fn a_burst_of_hangs_counts_once_and_a_trickle_counts_on() {
        let config = BackoffConfig::default();
        let start = Timestamp(1_000_000);
        let mut state = None;
        let mut hang = |at: u64| {
            let now = start.plus_millis(at);
            state = Failures::after(state.as_ref(), &config, now, &ExitReason::TimedOut, 0);
            let now_is = state.clone().expect("hung");
            (now_is.hangs, now_is.retry_at.since(start))
        };
        // Five instances of one burst, in the same moment.
        for at in [0, 5, 10, 20, 30] {
            assert_eq!(hang(at), (1, 0), "at {at}");
        }
        // Others go on being killed, less than a second apart.
        assert_eq!(hang(900), (1, 0));
        assert_eq!(hang(1_500), (2, 2_500));
        assert_eq!(hang(2_400), (2, 2_500), "while it waits");
        assert_eq!(hang(2_600), (3, 4_600));
    }

    #[test]
    fn a_hang_between_crashes_forgets_neither() {
        let config = BackoffConfig::default();
        let at = |n: u64| Timestamp(1_000_000 + n * 10_000);
        let crash = Failures::after(None, &config, at(0), &EXITED, 0);
        let hang = Failures::after(crash.as_ref(), &config, at(1), &ExitReason::TimedOut, 50);
        let again = Failures::after(hang.as_ref(), &config, at(2), &EXITED, 0).expect("failed");
        assert_eq!((again.count, again.hangs), (2, 1));
        assert_eq!(again.retry_at.since(at(2)), 2_000);
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
