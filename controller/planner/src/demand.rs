//! What the gateways said about one function's load, over time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use coracle_model::{InstanceId, Timestamp};

use crate::config::ScalingConfig;

/// A report covers at most this long before it: a gateway may leave a quiet function out, and the
/// first report after a silence must not be spread over all of it.
const REPORT_SPAN_MS: u64 = 2_000;
/// More gateways than this are not told apart; the stalest gives way.
const GATEWAYS_MOST: usize = 256;

/// One gateway, for the time of its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GatewayId(pub [u8; 16]);

/// One gateway's word about one function.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DemandSample {
    /// Requests inside instances now, and parked now.
    pub in_flight: u32,
    pub queued: u32,
    /// Since this gateway's last report.
    pub arrivals: u64,
    /// Time-weighted mean of both since the last report, in thousandths.
    pub mean_millis: u64,
    /// Instances that run a request of this gateway now.
    pub busy: BTreeSet<InstanceId>,
}

#[derive(Debug, Clone)]
struct Latest {
    /// Of its last report, if it made one, and of its last word of any kind.
    reported: Option<Timestamp>,
    seen: Timestamp,
    in_flight: u32,
    queued: u32,
    busy: BTreeSet<InstanceId>,
}

/// Concurrency as an area under its curve, kept in buckets as long as the stable window. Bounded:
/// by the number of buckets in a window, and of gateways.
#[derive(Debug, Clone, Default)]
pub struct Demand {
    /// Start of each bucket with its area in thousandths × milliseconds, oldest first.
    buckets: VecDeque<(u64, u64)>,
    gateways: BTreeMap<GatewayId, Latest>,
    first_at: Option<Timestamp>,
    last_active: Option<Timestamp>,
}

impl Demand {
    pub fn record(
        &mut self,
        config: &ScalingConfig,
        now: Timestamp,
        gateway: GatewayId,
        sample: DemandSample,
    ) {
        let before = self.gateways.get(&gateway).and_then(|g| g.reported);
        let oldest = Timestamp(
            now.0
                .saturating_sub(REPORT_SPAN_MS.min(config.stable_window_ms)),
        );
        let from = before.unwrap_or(Timestamp(now.0.saturating_sub(config.bucket_ms())));
        self.add_area(config, from.max(oldest), now, sample.mean_millis);
        // The mean shows a request that came before this report's span and ended inside it.
        let idle = sample.arrivals == 0
            && sample.in_flight == 0
            && sample.queued == 0
            && sample.mean_millis == 0;
        if !idle {
            self.last_active = self.last_active.max(Some(now));
        }
        let latest = Latest {
            reported: Some(now),
            seen: now,
            in_flight: sample.in_flight,
            queued: sample.queued,
            busy: sample.busy,
        };
        self.gateways.insert(gateway, latest);
        if self.gateways.len() > GATEWAYS_MOST {
            let stalest = self
                .gateways
                .iter()
                .min_by_key(|(_, latest)| latest.seen)
                .map(|(id, _)| *id);
            if let Some(id) = stalest {
                self.gateways.remove(&id);
            }
        }
    }

    /// A gateway parked requests; its report may still be on its way.
    pub fn parked(&mut self, now: Timestamp, gateway: GatewayId, queued: u32) {
        let latest = self.gateways.entry(gateway).or_insert(Latest {
            reported: None,
            seen: now,
            in_flight: 0,
            queued: 0,
            busy: BTreeSet::new(),
        });
        latest.seen = now;
        latest.queued = queued;
        self.touch(now);
    }

    /// Counts as used now: without it a function whose instances were just adopted, or that just
    /// proved its first one, would look idle since ever.
    pub fn touch(&mut self, now: Timestamp) {
        self.last_active = self.last_active.max(Some(now));
    }

    pub fn last_active(&self) -> Option<Timestamp> {
        self.last_active
    }

    /// Requests inside instances, and parked, by the gateways that spoke lately.
    pub fn current(&self, config: &ScalingConfig, now: Timestamp) -> (u32, u32) {
        self.fresh(config, now)
            .fold((0, 0), |(running, parked), latest| {
                (
                    running.saturating_add(latest.in_flight),
                    parked.saturating_add(latest.queued),
                )
            })
    }

    pub fn is_busy(&self, config: &ScalingConfig, now: Timestamp, instance: InstanceId) -> bool {
        self.fresh(config, now)
            .any(|latest| latest.busy.contains(&instance))
    }

    /// Mean concurrency over the window before `now`, in thousandths; over the time since the
    /// first report where that is shorter, so that a new function is not averaged with nothing.
    pub fn average_millis(&self, config: &ScalingConfig, now: Timestamp, window_ms: u64) -> u64 {
        let Some(first) = self.first_at else { return 0 };
        let start = now.0.saturating_sub(window_ms).max(first.0);
        let span = (now.0.saturating_sub(start)).max(config.bucket_ms());
        let width = config.bucket_ms();
        let area: u128 = self
            .buckets
            .iter()
            .map(|&(at, area)| {
                let inside = (at + width).saturating_sub(start.max(at)).min(width);
                u128::from(area) * u128::from(inside) / u128::from(width)
            })
            .sum();
        u64::try_from(area / u128::from(span)).unwrap_or(u64::MAX)
    }

    fn fresh(&self, config: &ScalingConfig, now: Timestamp) -> impl Iterator<Item = &Latest> {
        let stale = config.demand_stale_ms;
        self.gateways
            .values()
            .filter(move |latest| now.since(latest.seen) < stale)
    }

    fn add_area(&mut self, config: &ScalingConfig, from: Timestamp, to: Timestamp, mean: u64) {
        let width = config.bucket_ms();
        self.first_at.get_or_insert(from);
        let keep_from = to.0.saturating_sub(config.stable_window_ms + width);
        while self.buckets.front().is_some_and(|&(at, _)| at < keep_from) {
            self.buckets.pop_front();
        }
        let mut at = from.0;
        while at < to.0 {
            let start = at - at % width;
            let end = (start + width).min(to.0);
            self.add_to_bucket(start, mean.saturating_mul(end - at));
            at = end;
        }
    }

    fn add_to_bucket(&mut self, start: u64, area: u64) {
        // Reports of several gateways overlap by a few buckets at most, so this looks from the end.
        let index = self.buckets.iter().rposition(|&(at, _)| at <= start);
        match index {
            Some(i) if self.buckets.get(i).is_some_and(|&(at, _)| at == start) => {
                if let Some(bucket) = self.buckets.get_mut(i) {
                    bucket.1 = bucket.1.saturating_add(area);
                }
            }
            Some(i) => self.buckets.insert(i + 1, (start, area)),
            None => self.buckets.push_front((start, area)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATEWAY: GatewayId = GatewayId([1; 16]);

    fn sample(in_flight: u32, mean_millis: u64) -> DemandSample {
        DemandSample {
            in_flight,
            mean_millis,
            ..DemandSample::default()
        }
    }

    #[test]
    fn a_steady_load_averages_to_itself_over_both_windows() {
        let config = ScalingConfig::default();
        let mut demand = Demand::default();
        for second in 1..=120 {
            demand.record(
                &config,
                Timestamp(second * 1_000),
                GATEWAY,
                sample(4, 4_000),
            );
        }
        let now = Timestamp(120_000);
        assert_eq!(
            demand.average_millis(&config, now, config.stable_window_ms),
            4_000
        );
        assert_eq!(
            demand.average_millis(&config, now, config.panic_window_ms),
            4_000
        );
        assert!(demand.buckets.len() <= 62, "{}", demand.buckets.len());
    }

    #[test]
    fn two_gateways_add_up() {
        let config = ScalingConfig::default();
        let mut demand = Demand::default();
        for second in 1..=60 {
            for id in [1, 2] {
                let at = Timestamp(second * 1_000 + u64::from(id) * 300);
                demand.record(&config, at, GatewayId([id; 16]), sample(1, 1_500));
            }
        }
        let average = demand.average_millis(&config, Timestamp(60_600), config.panic_window_ms);
        assert!((2_900..=3_000).contains(&average), "{average}");
        assert_eq!(demand.current(&config, Timestamp(60_600)), (2, 0));
    }

    #[test]
    fn a_new_function_is_averaged_over_the_time_it_was_seen() {
        let config = ScalingConfig::default();
        let mut demand = Demand::default();
        demand.record(&config, Timestamp(100_000), GATEWAY, sample(3, 3_000));
        let now = Timestamp(100_000);
        assert_eq!(
            demand.average_millis(&config, now, config.stable_window_ms),
            3_000
        );
    }

    #[test]
    fn a_silent_gateway_no_longer_counts_and_the_past_fades() {
        let config = ScalingConfig::default();
        let mut demand = Demand::default();
        demand.record(&config, Timestamp(10_000), GATEWAY, sample(3, 3_000));
        assert_eq!(demand.current(&config, Timestamp(16_000)), (0, 0));
        assert_eq!(demand.average_millis(&config, Timestamp(90_000), 60_000), 0);
    }

    #[test]
    fn a_gateway_that_says_nonsense_makes_a_large_number_and_no_panic() {
        let config = ScalingConfig::default();
        let mut demand = Demand::default();
        for second in 1..=3 {
            let at = Timestamp(second * 1_000);
            demand.record(&config, at, GATEWAY, sample(u32::MAX, u64::MAX));
        }
        let now = Timestamp(3_000);
        let average = demand.average_millis(&config, now, config.stable_window_ms);
        assert!(average > u64::from(u32::MAX), "{average}");
    }

    #[test]
    fn a_long_silence_is_not_filled_with_the_next_report() {
        let config = ScalingConfig::default();
        let mut demand = Demand::default();
        demand.record(&config, Timestamp(1_000), GATEWAY, sample(0, 0));
        demand.record(&config, Timestamp(61_000), GATEWAY, sample(6, 6_000));
        // Two seconds of six within a window of sixty.
        assert_eq!(
            demand.average_millis(&config, Timestamp(61_000), 60_000),
            200
        );
    }
}
