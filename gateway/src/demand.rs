//! How busy each function is: counted per thread, reported to the leader each second and soon
//! after a request was parked.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use coracle_base::Shutdown;
use coracle_model::FunctionId;
use coracle_proto::v1;
use tokio::time::Instant;

use crate::{function::Function, shared::Shared};

const EVERY: Duration = Duration::from_secs(1);
/// From a request that was parked to the report of it. Not at once: the activation says the same
/// first, and the start it leads to should not share the processors with a report that adds
/// nothing. A burst becomes one report.
const AFTER_PARKING: Duration = Duration::from_millis(20);

/// Requests of one function inside the gateway (parked or in an instance) on one thread.
#[derive(Debug)]
struct Shard {
    inside: u32,
    arrivals: u64,
    /// Integral of `inside` over time, in request-microseconds, up to `at`.
    area: u64,
    at: Instant,
}

impl Shard {
    fn advance(&mut self, now: Instant) {
        let micros = now.saturating_duration_since(self.at).as_micros();
        let micros = u64::try_from(micros).unwrap_or(u64::MAX);
        self.area = self
            .area
            .saturating_add(micros.saturating_mul(u64::from(self.inside)));
        self.at = self.at.max(now);
    }
}

/// One shard a thread, so that the lock of a shard is only ever contended by the report: an
/// uncontended lock costs two atomic operations, which is what the counters would cost without it.
#[derive(Debug)]
pub(crate) struct Demand(Box<[Mutex<Shard>]>);

/// What a function was asked for since counting began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) inside: u32,
    pub(crate) arrivals: u64,
    pub(crate) area: u64,
}

impl Demand {
    pub(crate) fn new(threads: usize, now: Instant) -> Self {
        let shard = || {
            Mutex::new(Shard {
                inside: 0,
                arrivals: 0,
                area: 0,
                at: now,
            })
        };
        Self((0..threads).map(|_| shard()).collect())
    }

    fn with<R>(&self, thread: usize, change: impl FnOnce(&mut Shard) -> R) -> R {
        change(
            &mut self.0[thread]
                .lock()
                .expect("never poisoned: arithmetic only"),
        )
    }

    pub(crate) fn totals(&self, now: Instant) -> Totals {
        let mut totals = Totals::default();
        for thread in 0..self.0.len() {
            self.with(thread, |shard| {
                shard.advance(now);
                totals.inside += shard.inside;
                totals.arrivals += shard.arrivals;
                totals.area += shard.area;
            });
        }
        totals
    }
}

/// A request is inside the gateway while this lives.
#[derive(Debug)]
pub(crate) struct Presence {
    function: Arc<Function>,
    thread: usize,
}

impl Presence {
    pub(crate) fn new(function: Arc<Function>, thread: usize, now: Instant) -> Self {
        function.demand.with(thread, |shard| {
            shard.advance(now);
            shard.inside += 1;
            shard.arrivals += 1;
        });
        Self { function, thread }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.function.demand.with(self.thread, |shard| {
            shard.advance(Instant::now());
            shard.inside -= 1;
        });
    }
}

/// What has been reported of each function that is not idle.
#[derive(Debug, Default)]
struct Reported(HashMap<FunctionId, (Totals, Instant)>);

impl Reported {
    /// The report since the last one that arrived. Functions that stayed idle are left out; one
    /// that has just become idle is in it once more, with zeros.
    fn next(
        &self,
        functions: impl Iterator<Item = Arc<Function>>,
        began: Instant,
        now: Instant,
    ) -> (
        Vec<v1::FunctionDemand>,
        HashMap<FunctionId, (Totals, Instant)>,
    ) {
        let mut report = Vec::new();
        let mut after = HashMap::new();
        for function in functions {
            let totals = function.demand.totals(now);
            let before = self.0.get(&function.id).copied();
            let (last, since) = before.unwrap_or((function.reported_before(), began));
            let arrivals = totals.arrivals - last.arrivals.min(totals.arrivals);
            let idle = totals.inside == 0 && arrivals == 0 && totals.area == last.area;
            if idle && before.is_none() {
                continue;
            }
            let queued = u32::try_from(function.waiting())
                .unwrap_or(u32::MAX)
                .min(totals.inside);
            let span = now.saturating_duration_since(since).as_micros().max(1);
            let mean = u128::from(totals.area - last.area.min(totals.area)) * 1000 / span;
            report.push(v1::FunctionDemand {
                function: crate::wire::bytes(function.id.0),
                in_flight: totals.inside - queued,
                queued,
                arrivals,
                mean_concurrency_millis: u64::try_from(mean).unwrap_or(u64::MAX),
                // Read from the counts that the slots keep anyway: a request pays nothing for it.
                busy: function.busy().map(|id| crate::wire::bytes(id.0)).collect(),
            });
            function.set_reported(totals);
            if !idle {
                after.insert(function.id, (totals, now));
            }
        }
        (report, after)
    }
}

/// Runs until the gateway stops.
pub(crate) async fn report(shared: Arc<Shared>, shutdown: Shutdown) {
    let mut reported = Reported::default();
    let mut last = Instant::now();
    loop {
        tokio::select! {
            () = shutdown.requested() => return,
            () = tokio::time::sleep_until(last + EVERY) => {}
            () = shared.parked.notified() => tokio::time::sleep(AFTER_PARKING).await,
        }
        let now = Instant::now();
        let (functions, after) = reported.next(shared.table.functions().into_iter(), last, now);
        let sum = |of: fn(&v1::FunctionDemand) -> u32| {
            f64::from(functions.iter().map(of).fold(0, u32::saturating_add))
        };
        shared.metrics.in_flight.set(sum(|f| f.in_flight));
        shared.metrics.queued.set(sum(|f| f.queued));
        let began = std::mem::replace(&mut last, now);
        if functions.is_empty() {
            reported.0 = after;
            continue;
        }
        let report = v1::DemandReport {
            gateway: crate::wire::bytes(shared.config.gateway_id),
            functions,
        };
        match shared.controllers.report_demand(report).await {
            Ok(()) => reported.0 = after,
            // Counts go on from the last report that arrived; the mean then spans the gap.
            Err(error) => {
                tracing::debug!(%error, ?began, "demand could not be reported");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_mean_is_weighted_by_time_and_idle_functions_are_reported_once_more() {
        let began = Instant::now();
        let function = Arc::new(Function::for_test("p/n/f", 2));
        let one = Presence::new(function.clone(), 0, Instant::now());
        let two = Presence::new(function.clone(), 1, Instant::now());
        tokio::time::advance(Duration::from_millis(500)).await;
        drop(two);
        tokio::time::advance(Duration::from_millis(500)).await;
        let mut reported = Reported::default();
        let now = Instant::now();
        let (report, after) = reported.next([function.clone()].into_iter(), began, now);
        assert_eq!(report[0].mean_concurrency_millis, 1500);
        assert_eq!(
            (report[0].arrivals, report[0].in_flight, report[0].queued),
            (2, 1, 0)
        );
        reported.0 = after;

        // One of two instances has a request inside.
        let slots = function.two_instances_one_taken();
        let now_busy = reported
            .next([function.clone()].into_iter(), now, Instant::now())
            .0;
        let taken = crate::wire::bytes(slots.instance.id.0);
        assert_eq!(now_busy[0].busy, [taken]);
        drop(slots);

        drop(one);
        tokio::time::advance(Duration::from_secs(1)).await;
        let (report, after) = reported.next([function.clone()].into_iter(), now, Instant::now());
        assert_eq!(
            (report[0].mean_concurrency_millis, report[0].in_flight),
            (0, 0)
        );
        reported.0 = after;
        let (report, _) = reported.next([function].into_iter(), now, Instant::now());
        assert!(report.is_empty());
    }
}
