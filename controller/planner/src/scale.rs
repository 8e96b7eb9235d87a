//! The autoscaler: how many instances of the serving revision there should be.
//!
//! Knative's algorithm over concurrency: the stable window's average rules; when the panic window
//! asks for a multiple of what is ready, the larger answer rules and nothing is taken away until a
//! whole stable window has passed without such a burst. Bursts of parked requests do not wait for
//! it: the leader starts instances for them at once and enters the same panic state.

use coracle_model::{ScaleBounds, Timestamp};

use crate::{config::ScalingConfig, demand::Demand};

/// What the autoscaler remembers of a function from one decision to the next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScaleMemory {
    /// The last answer.
    pub wanted: u32,
    /// When the burst was last seen, while its effect lasts.
    pub panic_since: Option<Timestamp>,
    /// The most that was asked for since it began.
    pub peak: u32,
}

impl ScaleMemory {
    /// There are `instances` for a reason that the windows do not show yet: they were started for
    /// parked requests, or adopted from a leader before. They stay for a stable window.
    pub fn hold(&mut self, now: Timestamp, instances: u32) {
        self.panic_since = self.panic_since.max(Some(now));
        self.peak = self.peak.max(instances);
        self.wanted = self.wanted.max(instances);
    }
}

#[derive(Debug)]
pub struct ScaleInput<'a> {
    pub now: Timestamp,
    pub config: &'a ScalingConfig,
    pub bounds: ScaleBounds,
    pub concurrency: u32,
    /// Instances of the serving revision that are ready; and those too that are starting.
    pub ready: u32,
    pub live: u32,
    pub demand: &'a Demand,
}

/// One change of mind, with its inputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub from: u32,
    pub to: u32,
    /// "3 → 5: 8.7 in flight, target 2, panic window".
    pub reason: String,
}

/// Updates the memory; its `wanted` is the answer. A decision comes back only when it changed.
pub fn decide(input: &ScaleInput<'_>, memory: &mut ScaleMemory) -> Option<Decision> {
    let ScaleInput {
        now,
        config,
        bounds,
        demand,
        ..
    } = *input;
    let target = config.target_millis(input.concurrency);
    let stable = demand.average_millis(config, now, config.stable_window_ms);
    let burst = demand.average_millis(config, now, config.panic_window_ms);
    let for_stable = ceil_div(stable, target);
    let for_burst = ceil_div(burst, target);
    let (in_flight, queued) = demand.current(config, now);

    let threshold = u64::from(config.panic_threshold_percent) * u64::from(input.ready.max(1));
    if u64::from(for_burst) * 100 >= threshold && for_burst > input.live {
        memory.panic_since = Some(now);
        memory.peak = memory.peak.max(for_burst);
    }
    // While it lasts, every growth of it counts as seeing it again.
    if memory.panic_since.is_some() && for_burst > memory.peak {
        memory.panic_since = Some(now);
        memory.peak = for_burst;
    }
    let is_burst = memory
        .panic_since
        .is_some_and(|at| now.since(at) < config.stable_window_ms);
    if !is_burst {
        memory.panic_since = None;
        memory.peak = 0;
    }

    let idle = demand.last_active().map(|at| now.since(at));
    let at_rest = in_flight == 0 && queued == 0 && idle.is_none_or(|idle| idle >= config.idle_ms);
    // Nothing runs and nothing asks: that there was load a while ago is no reason to start.
    let is_empty = input.live == 0 && in_flight == 0 && queued == 0;
    let (raw, why) = if at_rest || is_empty {
        memory.panic_since = None;
        memory.peak = 0;
        match idle {
            Some(idle) => (0, format!("idle for {} s", tenths(idle))),
            None => (0, "no request yet".to_owned()),
        }
    } else if is_burst {
        let raw = memory.peak.max(for_burst).max(for_stable);
        (raw, because(burst, target, "panic window"))
    } else {
        // An instance is not taken from under a request that the average has already forgotten.
        let running = in_flight.div_ceil(input.concurrency.max(1));
        let raw = for_stable.max(running);
        if raw == 0 && input.live > 0 {
            (
                1,
                format!("kept until idle for {} s", tenths(config.idle_ms)),
            )
        } else {
            (raw, because(stable, target, "stable window"))
        }
    };
    let to = raw.clamp(bounds.min(), bounds.max());
    let from = std::mem::replace(&mut memory.wanted, to);
    let why = if to > raw {
        format!("minimum {}, {why}", bounds.min())
    } else if to < raw {
        format!("maximum {}, {why}", bounds.max())
    } else {
        why
    };
    (from != to).then(|| Decision {
        from,
        to,
        reason: format!("{from} → {to}: {why}"),
    })
}

fn because(average: u64, target: u64, window: &str) -> String {
    format!(
        "{} in flight, target {}, {window}",
        tenths(average),
        tenths(target)
    )
}

/// Thousandths with one digit after the point, and none where it is zero.
fn tenths(millis: u64) -> String {
    match (millis / 1_000, millis % 1_000 / 100) {
        (whole, 0) => whole.to_string(),
        (whole, tenth) => format!("{whole}.{tenth}"),
    }
}

fn ceil_div(value: u64, by: u64) -> u32 {
    u32::try_from(value.div_ceil(by.max(1))).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demand::{DemandSample, GatewayId};

    const GATEWAY: GatewayId = GatewayId([7; 16]);

    struct Scene {
        config: ScalingConfig,
        demand: Demand,
        memory: ScaleMemory,
        bounds: ScaleBounds,
        concurrency: u32,
        now: u64,
        said: Vec<String>,
    }

    impl Scene {
        fn new(min: u32, max: u32, concurrency: u32) -> Self {
            Self {
                config: ScalingConfig::default(),
                demand: Demand::default(),
                memory: ScaleMemory::default(),
                bounds: ScaleBounds::new(min, max).unwrap(),
                concurrency,
                now: 1_000_000,
                said: Vec::new(),
            }
        }

        /// Seconds of this load, with as many instances as were wanted the second before.
        fn load(&mut self, seconds: u64, mean_millis: u64) -> u32 {
            for _ in 0..seconds {
                self.now += 1_000;
                let in_flight = u32::try_from(mean_millis / 1_000).unwrap();
                let sample = DemandSample {
                    in_flight,
                    mean_millis,
                    ..DemandSample::default()
                };
                self.demand
                    .record(&self.config, Timestamp(self.now), GATEWAY, sample);
                self.step();
            }
            self.memory.wanted
        }

        fn step(&mut self) {
            let live = self.memory.wanted;
            let input = ScaleInput {
                now: Timestamp(self.now),
                config: &self.config,
                bounds: self.bounds,
                concurrency: self.concurrency,
                ready: live,
                live,
                demand: &self.demand,
            };
            let mut memory = self.memory.clone();
            self.said
                .extend(decide(&input, &mut memory).map(|d| d.reason));
            self.memory = memory;
        }
    }

    #[test]
    fn a_steady_load_gets_what_the_target_says() {
        for (concurrency, mean, wanted) in [
            (1, 1_000, 1),
            (1, 4_000, 4),
            (10, 7_000, 1),
            (10, 14_500, 3),
            (2, 8_700, 7),
        ] {
            let mut scene = Scene::new(0, 50, concurrency);
            scene.memory.wanted = 1;
            assert_eq!(
                scene.load(130, mean),
                wanted,
                "{concurrency} {mean}: {:?}",
                scene.said
            );
        }
    }

    #[test]
    fn a_burst_is_met_at_once_and_kept_for_a_stable_window() {
        let mut scene = Scene::new(1, 20, 1);
        scene.load(100, 1_000);
        scene.load(6, 8_000);
        assert_eq!(scene.memory.wanted, 8, "{:?}", scene.said);
        assert!(
            scene
                .said
                .iter()
                .any(|s| s.ends_with("in flight, target 1, panic window"))
        );
        scene.load(50, 0);
        assert_eq!(
            scene.memory.wanted, 8,
            "within the window: {:?}",
            scene.said
        );
        scene.load(70, 0);
        assert_eq!(scene.memory.wanted, 1);
    }

    #[test]
    fn zero_is_reached_after_the_idle_time_and_not_before() {
        let mut scene = Scene::new(0, 5, 1);
        scene.memory.hold(Timestamp(scene.now), 1);
        scene.load(3, 500);
        assert_eq!(scene.load(1, 0), 1);
        scene.now += 58_000;
        scene.step();
        assert_eq!(scene.memory.wanted, 1);
        scene.now += 3_000;
        scene.demand.touch(Timestamp(scene.now - 60_000));
        scene.step();
        assert_eq!(scene.memory.wanted, 0, "{:?}", scene.said);
        assert_eq!(
            scene.said.last().map(String::as_str),
            Some("1 → 0: idle for 60 s")
        );
    }

    #[test]
    fn bounds_rule_over_everything_and_say_so() {
        let mut scene = Scene::new(2, 3, 1);
        scene.step();
        assert_eq!(scene.said, ["0 → 2: minimum 2, no request yet"]);
        scene.load(30, 9_000);
        assert_eq!(scene.memory.wanted, 3);
        assert!(
            scene.said.last().unwrap().contains("maximum 3"),
            "{:?}",
            scene.said
        );
    }

    #[test]
    fn what_runs_is_not_taken_away_by_an_average() {
        let mut scene = Scene::new(0, 10, 1);
        scene.memory.wanted = 6;
        scene.now += 1_000;
        let sample = DemandSample {
            in_flight: 6,
            mean_millis: 1_000,
            ..DemandSample::default()
        };
        scene
            .demand
            .record(&scene.config, Timestamp(scene.now), GATEWAY, sample);
        scene.step();
        assert_eq!(scene.memory.wanted, 6);
    }

    #[test]
    fn the_reason_shows_the_inputs() {
        assert_eq!(
            because(8_740, 2_000, "panic window"),
            "8.7 in flight, target 2, panic window"
        );
    }
}
