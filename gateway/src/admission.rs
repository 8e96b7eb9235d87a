//! Slots of instances, and the requests that wait for one.
//!
//! Warm requests take a slot without a lock: least loaded instance first, one compare-and-swap.
//! The others wait in the function's queue, first come first served, and are handed a slot by
//! whoever frees one, whichever thread that is. A request that parks raises `waiting` before it
//! looks for a slot once more, and whoever frees a slot lowers the count before it reads
//! `waiting`, both sequentially consistent: at least one of the two sees the other.

use std::{
    collections::VecDeque,
    sync::{Arc, MutexGuard, atomic::Ordering::SeqCst},
};

use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

use crate::{
    function::{Function, Route},
    instance::Instance,
    respond::{Code, Error},
    shared::Shared,
};

type Handed = Result<Slot, Error>;

#[derive(Debug, Default)]
pub(crate) struct Queue {
    waiters: VecDeque<(u64, oneshot::Sender<Handed>)>,
    last: u64,
}

/// The right to have one request inside an instance. Given back when dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) function: Arc<Function>,
    pub(crate) instance: Arc<Instance>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.instance.give_back();
        if self.function.waiting.load(SeqCst) > 0 {
            self.function.dispatch();
        }
    }
}

/// A place in the queue; leaving it early (the client went away) frees it.
struct Parked<'a> {
    function: &'a Function,
    id: u64,
    handed: oneshot::Receiver<Handed>,
}

impl Drop for Parked<'_> {
    fn drop(&mut self) {
        let mut queue = self.function.lock_queue();
        if let Some(at) = queue.waiters.iter().position(|(id, _)| *id == self.id) {
            queue.waiters.remove(at);
            self.function.left(1);
        }
    }
}

impl Function {
    pub(crate) fn lock_queue(&self) -> MutexGuard<'_, Queue> {
        self.queue
            .lock()
            .expect("never poisoned: no panic while held")
    }

    fn left(&self, count: usize) {
        self.waiting.fetch_sub(count, SeqCst);
        self.total_waiting.fetch_sub(count, SeqCst);
    }

    pub(crate) fn try_take(self: &Arc<Self>) -> Option<Slot> {
        let live = self.live.load();
        loop {
            let room = |i: &Arc<Instance>| i.room().filter(|_| self.serves(i));
            let (instance, seen) = live
                .iter()
                .filter_map(|i| room(i).map(|seen| (i, seen)))
                .min_by_key(|(_, seen)| *seen)?;
            if instance.take(seen) {
                return Some(Slot {
                    function: self.clone(),
                    instance: instance.clone(),
                });
            }
        }
    }

    /// Hands free slots to those who wait.
    pub(crate) fn dispatch(self: &Arc<Self>) {
        let mut spare = None;
        {
            let mut queue = self.lock_queue();
            while !queue.waiters.is_empty() {
                let Some(slot) = spare.take().or_else(|| self.try_take()) else {
                    break;
                };
                let Some((_, waiter)) = queue.waiters.pop_front() else {
                    break;
                };
                self.left(1);
                // Whoever waited may be gone; its slot goes to the next.
                spare = waiter.send(Ok(slot)).err().and_then(Result::ok);
            }
        }
        // Given back only here: doing so looks at the queue again.
        drop(spare);
    }

    /// Answers everyone who waits with the same error.
    pub(crate) fn fail_parked(&self, error: &Error) {
        let waiters = std::mem::take(&mut self.lock_queue().waiters);
        self.left(waiters.len());
        for (_, waiter) in waiters {
            // Whoever waited may be gone.
            let _ = waiter.send(Err(error.clone()));
        }
    }

    /// `again`: it had a slot already and keeps its place, bounds notwithstanding.
    fn park(&self, shared: &Shared, again: bool) -> Result<Parked<'_>, Error> {
        let limits = &shared.config.limits;
        let (sender, handed) = oneshot::channel();
        let mut queue = self.lock_queue();
        let full = queue.waiters.len() >= limits.queue_per_function;
        if !again && (full || self.total_waiting.load(SeqCst) >= limits.queue_total) {
            return Err(Error::new(
                Code::TooManyRequests,
                if full {
                    format!(
                        "{} requests of this function wait already",
                        queue.waiters.len()
                    )
                } else {
                    "too many requests wait already".to_owned()
                },
            )
            .retry_after(1));
        }
        queue.last += 1;
        let id = queue.last;
        if again {
            queue.waiters.push_front((id, sender));
        } else {
            queue.waiters.push_back((id, sender));
        }
        self.waiting.fetch_add(1, SeqCst);
        self.total_waiting.fetch_add(1, SeqCst);
        Ok(Parked {
            function: self,
            id,
            handed,
        })
    }
}

/// How long a request may wait and run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    pub(crate) arrived: Instant,
    /// The end of a request that found its function warm.
    pub(crate) deadline: Instant,
    /// It found no instance that answers: time spent on the start does not count against its
    /// timeout, up to the init timeout.
    pub(crate) cold: bool,
}

impl Patience {
    pub(crate) fn new(arrived: Instant, route: &Route) -> Self {
        Self {
            arrived,
            deadline: arrived + route.timeout,
            cold: false,
        }
    }

    /// The end of a request that got its slot at `now`.
    pub(crate) fn deadline_from(&self, now: Instant, route: &Route) -> Instant {
        if !self.cold {
            return self.deadline;
        }
        let starting = now
            .saturating_duration_since(self.arrived)
            .min(route.init_timeout);
        self.deadline + starting
    }
}

/// A slot, at once or after waiting in the queue.
///
/// Errors: the queue is full; the time ran out; the start failed.
pub(crate) async fn admit(
    shared: &Arc<Shared>,
    function: &Arc<Function>,
    patience: &mut Patience,
    again: bool,
) -> Result<Slot, Error> {
    if function.waiting.load(SeqCst) == 0
        && let Some(slot) = function.try_take()
    {
        return Ok(slot);
    }
    let route = function.route().clone();
    let warm = function.is_warm();
    if !warm {
        patience.cold = true;
        refuse_failing(shared, &route)?;
    }
    let mut parked = function.park(shared, again)?;
    function.dispatch();
    // A slot may have come free between the look above and parking; then nobody need be woken.
    match parked.handed.try_recv() {
        Ok(handed) => return handed,
        Err(oneshot::error::TryRecvError::Closed) => return Err(lost_place()),
        Err(oneshot::error::TryRecvError::Empty) => {}
    }
    shared.metrics.parked.increment(1);
    shared.parked.notify_one();
    crate::activate::ensure(shared, function);
    function.changed.notify_one();

    if patience.cold {
        // The node's own verdict on a slow start has a moment to arrive first: it has the reason.
        let start_by = patience.arrived + route.init_timeout + shared.start_grace;
        match timeout_at(start_by, &mut parked.handed).await {
            Ok(handed) => return handed.unwrap_or_else(|_| Err(lost_place())),
            Err(_) if !function.is_warm() => {
                return Err(function.trouble().unwrap_or_else(|| {
                    Error::new(
                        Code::InitTimeout,
                        format!(
                            "no instance was ready within {} seconds",
                            route.init_timeout.as_secs()
                        ),
                    )
                    .retry_after(1)
                }));
            }
            Err(_) => {}
        }
    }
    let until = patience.deadline_from(Instant::now(), &route);
    match timeout_at(until, &mut parked.handed).await {
        Ok(handed) => handed.unwrap_or_else(|_| Err(lost_place())),
        Err(_) => Err(Error::new(
            Code::QueueTimeout,
            format!(
                "no instance was free within the function's timeout of {} seconds",
                route.timeout.as_secs()
            ),
        )
        .retry_after(1)),
    }
}

/// While a revision backs off after failed starts, callers hear why at once.
fn refuse_failing(shared: &Shared, route: &Route) -> Result<(), Error> {
    let Some(failing) = &route.failing else {
        return Ok(());
    };
    let left = failing
        .retry_at
        .millis()
        .saturating_sub(shared.config.clock.now_millis());
    if left == 0 {
        return Ok(());
    }
    Err(Error::new(Code::FunctionFailing, failing.reason.clone()).retry_after(left.div_ceil(1000)))
}

fn lost_place() -> Error {
    Error::new(Code::Internal, "the request lost its place in the queue")
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, time::Duration};

    use coracle_model::{InstanceId, NodeId};
    use coracle_proto::v1;
    use uuid::Uuid;

    use super::*;

    fn function(instances: usize, concurrency: u32) -> Arc<Function> {
        let function = Arc::new(Function::for_test("p/n/f", 1));
        let route = v1::Route {
            revision: Some(v1::RevisionId {
                function: bytes::Bytes::new(),
                number: 1,
            }),
            concurrency,
            ..v1::Route::default()
        };
        function.update(&route, &HashSet::new(), Instant::now());
        for _ in 0..instances {
            function.learned(instance(concurrency, 1));
        }
        function
    }

    fn instance(concurrency: u32, revision: u32) -> Instance {
        let (id, node) = (InstanceId(Uuid::new_v4()), NodeId(Uuid::new_v4()));
        Instance::new(
            id,
            node,
            revision,
            concurrency,
            "/x".into(),
            false,
            Instant::now(),
        )
    }

    #[tokio::test]
    async fn the_least_loaded_instance_is_taken_and_none_beyond_its_slots() {
        let function = function(2, 2);
        let slots: Vec<_> = std::iter::from_fn(|| function.try_take()).collect();
        assert_eq!(slots.len(), 4);
        assert_ne!(slots[0].instance.id, slots[1].instance.id);
        drop(slots);
        let slots: Vec<_> = std::iter::from_fn(|| function.try_take()).collect();
        assert_eq!(slots.len(), 4);
    }

    #[tokio::test]
    async fn only_the_serving_revision_is_taken() {
        let function = function(0, 1);
        function.learned(instance(1, 2));
        assert!(function.try_take().is_none() && !function.is_warm());
        function.learned(instance(1, 1));
        assert!(function.try_take().is_some());
    }

    #[tokio::test]
    async fn slots_go_to_whoever_waited_longest_and_skip_those_who_left() {
        let shared = Shared::for_test(|_| ());
        let function = function(1, 1);
        let slot = function.try_take().unwrap();
        let gone = function.park(&shared, false).unwrap();
        let mut first = function.park(&shared, false).unwrap();
        let mut second = function.park(&shared, false).unwrap();
        drop(gone);
        assert_eq!(function.waiting(), 2);
        drop(slot);
        let slot = first.handed.try_recv().unwrap().unwrap();
        assert!(second.handed.try_recv().is_err());
        drop(slot);
        assert!(second.handed.try_recv().is_ok());
        drop((first, second));
        assert_eq!(function.waiting(), 0);
        assert!(
            function.try_take().is_some(),
            "a handed slot that nobody took comes back"
        );
    }

    #[tokio::test]
    async fn bounds_hold_and_a_failure_reaches_everyone() {
        let shared = Shared::for_test(|limits| limits.queue_per_function = 2);
        let function = function(0, 1);
        let mut parked: Vec<_> = (0..2)
            .map(|_| function.park(&shared, false).unwrap())
            .collect();
        let Err(refused) = function.park(&shared, false) else {
            panic!("over the bound")
        };
        assert_eq!(
            (refused.code, refused.retry_after),
            (Code::TooManyRequests, Some(1))
        );
        function.fail_parked(&Error::new(Code::NoCapacity, "full"));
        for waiter in &mut parked {
            assert_eq!(
                waiter.handed.try_recv().unwrap().unwrap_err().code,
                Code::NoCapacity
            );
        }
        drop(parked);
        assert_eq!(
            (function.waiting(), function.total_waiting.load(SeqCst)),
            (0, 0)
        );
    }

    #[tokio::test]
    async fn no_wake_up_is_lost_between_threads() {
        let shared = Shared::for_test(|limits| limits.queue_per_function = 1000);
        let function = function(2, 1);
        let running: Vec<_> = (0..4)
            .map(|_| {
                let (shared, function) = (shared.clone(), function.clone());
                std::thread::spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .enable_all()
                        .build()
                        .unwrap();
                    runtime.block_on(async {
                        for _ in 0..2_000 {
                            let mut parked = match function.try_take() {
                                Some(_) => continue,
                                None => function.park(&shared, false).unwrap(),
                            };
                            function.dispatch();
                            let wait = Duration::from_secs(20);
                            let handed = tokio::time::timeout(wait, &mut parked.handed).await;
                            drop(handed.expect("a wake-up was lost").unwrap().unwrap());
                        }
                    });
                })
            })
            .collect();
        for thread in running {
            thread.join().unwrap();
        }
        assert_eq!(function.waiting(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cold_start_does_not_count_against_the_timeout() {
        let route = Route {
            timeout: Duration::from_secs(2),
            init_timeout: Duration::from_secs(5),
            ..Route::default()
        };
        let arrived = Instant::now();
        let mut patience = Patience::new(arrived, &route);
        let late = arrived + Duration::from_secs(9);
        assert_eq!(
            patience.deadline_from(late, &route),
            arrived + Duration::from_secs(2)
        );
        patience.cold = true;
        assert_eq!(
            patience.deadline_from(late, &route),
            arrived + Duration::from_secs(7)
        );
    }
}
