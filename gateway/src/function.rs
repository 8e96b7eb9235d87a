//! One function as the gateway sees it: its route, its instances, its queue and its counters.
//!
//! The object lives as long as the function does; route updates change what is inside it. The
//! queue's rules are in `admission.rs`.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use coracle_model::{FunctionId, InstanceId, NodeId, SecretHash, Timestamp};
use coracle_proto::v1;
use tokio::{sync::Notify, time::Instant};

use crate::{
    admission::Queue,
    demand::{Demand, Totals},
    instance::Instance,
    metrics::FunctionMetrics,
    respond::Error,
    wire,
};

/// An instance that only its node told us of is kept this long before the feed has to name it.
const UNLISTED_KEPT: Duration = Duration::from_secs(10);

/// What the feed says about a function, without its instances.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) disabled: bool,
    /// Its maximum is no instance.
    pub(crate) no_instances: bool,
    pub(crate) key_required: bool,
    pub(crate) keys: Vec<Key>,
    /// The serving revision's number.
    pub(crate) revision: Option<u32>,
    pub(crate) timeout: Duration,
    pub(crate) init_timeout: Duration,
    pub(crate) concurrency: u32,
    pub(crate) failing: Option<Failing>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) hash: SecretHash,
    pub(crate) expires_at: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failing {
    pub(crate) reason: String,
    pub(crate) retry_at: Timestamp,
}

impl Route {
    pub(crate) fn from_wire(route: &v1::Route) -> Self {
        let keys = route.keys.iter().filter_map(|key| {
            Some(Key {
                hash: SecretHash(key.hash.as_ref().try_into().ok()?),
                expires_at: key.expires_at.map(Timestamp),
            })
        });
        let failing = (!route.failing.is_empty()).then(|| Failing {
            reason: route.failing.clone(),
            retry_at: Timestamp(route.retry_at),
        });
        Self {
            disabled: route.disabled,
            no_instances: route.scale.as_ref().is_some_and(|scale| scale.max == 0),
            key_required: route.key_required,
            keys: keys.collect(),
            revision: route.revision.as_ref().map(|r| r.number),
            timeout: Duration::from_secs(u64::from(route.timeout_secs.max(1))),
            init_timeout: Duration::from_secs(u64::from(route.init_timeout_secs.max(1))),
            concurrency: route.concurrency.max(1),
            failing,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) id: FunctionId,
    pub(crate) project: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) project_id: u32,
    route: ArcSwap<Route>,
    /// The serving revision's number; 0 for none.
    serving: AtomicU32,
    pub(crate) live: ArcSwap<Vec<Arc<Instance>>>,
    pub(crate) queue: Mutex<Queue>,
    /// Length of the queue, readable without its lock.
    pub(crate) waiting: AtomicUsize,
    /// Parked requests of all functions.
    pub(crate) total_waiting: Arc<AtomicUsize>,
    /// An activation loop runs for it.
    pub(crate) activating: AtomicBool,
    /// Instances that some task waits for on their nodes, and how long the leader took to order
    /// each.
    pub(crate) awaited: Mutex<HashMap<InstanceId, Duration>>,
    /// Instances that ended for this gateway before the feed had heard of it, and when.
    forgotten: Mutex<HashMap<InstanceId, Instant>>,
    /// Why the last activation did not lead to an instance, for those whose time runs out.
    pub(crate) trouble: Mutex<Option<Error>>,
    /// Wakes the activation loop.
    pub(crate) changed: Notify,
    pub(crate) demand: Demand,
    reported: Mutex<Totals>,
    pub(crate) metrics: OnceLock<FunctionMetrics>,
}

impl Function {
    pub(crate) fn new(
        id: FunctionId,
        route: &v1::Route,
        threads: usize,
        total_waiting: Arc<AtomicUsize>,
        now: Instant,
    ) -> Self {
        Self {
            id,
            project: route.project.clone(),
            namespace: route.namespace.clone(),
            name: route.name.clone(),
            project_id: route.project_id,
            route: ArcSwap::from_pointee(Route::default()),
            serving: AtomicU32::new(0),
            live: ArcSwap::default(),
            queue: Mutex::default(),
            waiting: AtomicUsize::new(0),
            total_waiting,
            activating: AtomicBool::new(false),
            awaited: Mutex::default(),
            forgotten: Mutex::default(),
            trouble: Mutex::default(),
            changed: Notify::new(),
            demand: Demand::new(threads, now),
            reported: Mutex::default(),
            metrics: OnceLock::new(),
        }
    }

    /// The slot of one of two instances.
    #[cfg(test)]
    pub(crate) fn two_instances_one_taken(self: &Arc<Self>) -> crate::admission::Slot {
        for n in 1..=2 {
            let (id, node) = (uuid::Uuid::from_u128(n), NodeId(uuid::Uuid::nil()));
            let (id, now) = (InstanceId(id), Instant::now());
            self.learned(Instance::new(id, node, 0, 1, "/x".into(), false, now));
        }
        self.try_take().expect("both are free")
    }

    #[cfg(test)]
    pub(crate) fn for_test(path: &str, threads: usize) -> Self {
        let mut parts = path.split('/').map(str::to_owned);
        let mut next = || parts.next().expect("project/namespace/name");
        let route = v1::Route {
            project: next(),
            namespace: next(),
            name: next(),
            project_id: 1,
            ..v1::Route::default()
        };
        let id = FunctionId(uuid::Uuid::new_v4());
        Self::new(id, &route, threads, Arc::default(), Instant::now())
    }

    pub(crate) fn route(&self) -> arc_swap::Guard<Arc<Route>> {
        self.route.load()
    }

    /// Whether the names that requests find it by are still these.
    pub(crate) fn is_named(&self, route: &v1::Route) -> bool {
        self.project == route.project
            && self.namespace == route.namespace
            && self.name == route.name
            && self.project_id == route.project_id
    }

    /// Takes over what the feed says, keeping the counts of instances that stay. Those on `silent`
    /// nodes stay too: the feed does not know of them.
    pub(crate) fn update(
        self: &Arc<Self>,
        wire: &v1::Route,
        silent: &HashSet<NodeId>,
        now: Instant,
    ) {
        let route = Route::from_wire(wire);
        let concurrency = route.concurrency;
        self.serving.store(route.revision.unwrap_or(0), SeqCst);
        self.route.store(Arc::new(route));
        let mut forgotten = self.lock_forgotten();
        forgotten.retain(|id, at| {
            now.saturating_duration_since(*at) < UNLISTED_KEPT
                || wire.instances.iter().any(|i| i.id == id.0.as_bytes()[..])
        });
        self.edit_live(|live| {
            let mut next = Vec::with_capacity(wire.instances.len());
            for listed in &wire.instances {
                let (Some(id), Some(node)) = (wire::uuid(&listed.id), wire::uuid(&listed.node))
                else {
                    continue;
                };
                let known = live.iter().find(|i| i.id.0 == id).cloned();
                let instance = match known {
                    Some(instance) if !instance.is_gone() => instance,
                    Some(_) => continue,
                    None if forgotten.contains_key(&InstanceId(id)) => continue,
                    None if listed.ready && !listed.socket.is_empty() => Arc::new(Instance::new(
                        InstanceId(id),
                        NodeId(node),
                        listed.revision.as_ref().map_or(0, |r| r.number),
                        concurrency,
                        listed.socket.clone().into(),
                        true,
                        now,
                    )),
                    None => continue,
                };
                instance.set_listed();
                instance.set_draining(listed.draining);
                next.push(instance);
            }
            for instance in live {
                let kept = next.iter().any(|i| i.id == instance.id);
                let young = now.saturating_duration_since(instance.learned_at) < UNLISTED_KEPT;
                if kept {
                    continue;
                }
                if silent.contains(&instance.node) && !instance.is_gone() {
                    instance.set_unconfirmed();
                    next.push(instance.clone());
                } else if !instance.is_listed() && young && !instance.is_gone() {
                    next.push(instance.clone());
                } else {
                    instance.set_gone();
                }
            }
            next
        });
    }

    /// These nodes have reported, or are given up: what the feed has not named of them is gone.
    pub(crate) fn settle(self: &Arc<Self>, settled: &HashSet<NodeId>) {
        let over = |i: &Arc<Instance>| i.is_unconfirmed() && settled.contains(&i.node);
        if self.live.load().iter().any(over) {
            self.edit_live(|live| {
                let (gone, rest): (Vec<_>, Vec<_>) = live.iter().cloned().partition(over);
                gone.iter().for_each(|instance| instance.set_gone());
                rest
            });
        }
    }

    /// A node says that an instance answers, before the feed does or again after it failed.
    pub(crate) fn learned(self: &Arc<Self>, instance: Instance) {
        if self.lock_forgotten().contains_key(&instance.id) {
            return;
        }
        self.edit_live(|live| match live.iter().find(|i| i.id == instance.id) {
            Some(known) => {
                known.answered();
                if let Some(birth) = instance.birth() {
                    known.set_birth(*birth);
                }
                live.to_vec()
            }
            None => live.iter().cloned().chain([Arc::new(instance)]).collect(),
        });
    }

    /// It was killed, or its node says that it ended. The feed may name it for a while yet.
    pub(crate) fn forget(self: &Arc<Self>, id: InstanceId) {
        self.lock_forgotten().insert(id, Instant::now());
        self.edit_live(|live| {
            live.iter()
                .filter(|i| i.id == id)
                .for_each(|i| i.set_gone());
            live.iter().filter(|i| i.id != id).cloned().collect()
        });
    }

    fn lock_forgotten(&self) -> MutexGuard<'_, HashMap<InstanceId, Instant>> {
        self.forgotten
            .lock()
            .expect("never poisoned: no panic while held")
    }

    /// Nothing leads here any more.
    pub(crate) fn removed(self: &Arc<Self>, why: &Error) {
        self.serving.store(0, SeqCst);
        self.edit_live(|live| {
            live.iter().for_each(|i| i.set_gone());
            Vec::new()
        });
        self.fail_parked(why);
    }

    /// Edits exclude each other by the queue's lock, which also orders them before the dispatch of
    /// any request that parked meanwhile.
    fn edit_live(self: &Arc<Self>, edit: impl FnOnce(&[Arc<Instance>]) -> Vec<Arc<Instance>>) {
        {
            let _queue = self.lock_queue();
            let next = edit(&self.live.load());
            self.live.store(Arc::new(next));
        }
        self.dispatch();
        self.changed.notify_one();
    }

    pub(crate) fn serves(&self, instance: &Instance) -> bool {
        instance.revision == self.serving.load(SeqCst)
    }

    /// Whether some instance takes requests, now or as soon as one of its own has ended.
    pub(crate) fn is_warm(&self) -> bool {
        self.live
            .load()
            .iter()
            .any(|i| self.serves(i) && i.is_live())
    }

    /// How long the leader took to order an instance that is still being waited for.
    pub(crate) fn ordered_in(&self, instance: InstanceId) -> Option<Duration> {
        let awaited = self.awaited.lock();
        let awaited = awaited.expect("never poisoned: no panic while held");
        awaited.get(&instance).copied()
    }

    /// Instances that have a request of this gateway inside.
    pub(crate) fn busy(&self) -> impl Iterator<Item = InstanceId> {
        let live = self.live.load();
        let busy: Vec<_> = live.iter().filter(|i| i.is_busy()).map(|i| i.id).collect();
        busy.into_iter()
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(SeqCst)
    }

    pub(crate) fn reported_before(&self) -> Totals {
        *self.reported.lock().expect("never poisoned: a plain copy")
    }

    pub(crate) fn set_reported(&self, totals: Totals) {
        *self.reported.lock().expect("never poisoned: a plain copy") = totals;
    }

    pub(crate) fn set_trouble(&self, trouble: Option<Error>) {
        *self.trouble.lock().expect("never poisoned: a plain move") = trouble;
    }

    pub(crate) fn trouble(&self) -> Option<Error> {
        self.trouble
            .lock()
            .expect("never poisoned: a plain copy")
            .clone()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::instance::Birth;

    #[tokio::test]
    async fn what_the_node_says_of_a_start_is_kept_when_the_feed_was_faster() {
        let function = Arc::new(Function::for_test("p/n/f", 1));
        let (id, node) = (Uuid::new_v4(), Uuid::new_v4());
        let listed = v1::RouteInstance {
            id: wire::bytes(id),
            node: wire::bytes(node),
            ready: true,
            socket: "/x".into(),
            ..v1::RouteInstance::default()
        };
        let route = v1::Route {
            instances: vec![listed],
            ..v1::Route::default()
        };
        function.update(&route, &HashSet::new(), Instant::now());
        let born = || function.live.load()[0].birth().copied();
        assert_eq!(born(), None);
        for init in [2, 3] {
            let (id, node) = (InstanceId(id), NodeId(node));
            let told = Instance::new(id, node, 0, 1, "/x".into(), false, Instant::now());
            told.set_birth(Birth {
                init: Duration::from_millis(init),
                ..Birth::default()
            });
            function.learned(told);
        }
        assert_eq!(function.live.load().len(), 1);
        assert_eq!(
            born().unwrap().init,
            Duration::from_millis(2),
            "the first word counts"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_killed_does_not_come_back_with_a_feed_that_has_not_heard_of_it() {
        let function = Arc::new(Function::for_test("p/n/f", 1));
        let killed = Uuid::new_v4();
        let listed = |ids: &[Uuid]| v1::Route {
            instances: ids
                .iter()
                .map(|id| v1::RouteInstance {
                    id: wire::bytes(*id),
                    node: wire::bytes(Uuid::new_v4()),
                    ready: true,
                    socket: "/x".into(),
                    ..v1::RouteInstance::default()
                })
                .collect(),
            ..v1::Route::default()
        };
        function.update(&listed(&[killed]), &HashSet::new(), Instant::now());
        function.forget(InstanceId(killed));
        tokio::time::advance(UNLISTED_KEPT * 2).await;
        function.update(&listed(&[killed]), &HashSet::new(), Instant::now());
        assert!(function.live.load().is_empty());
        // Once the feed knows, nothing is kept of it.
        function.update(&listed(&[]), &HashSet::new(), Instant::now());
        assert!(function.lock_forgotten().is_empty());
    }

    #[tokio::test]
    async fn what_a_silent_node_has_stays_until_the_node_has_spoken() {
        let function = Arc::new(Function::for_test("p/n/f", 1));
        let (silent, heard) = (NodeId(Uuid::new_v4()), NodeId(Uuid::new_v4()));
        let listed = |node: NodeId| v1::RouteInstance {
            id: wire::bytes(node.0),
            node: wire::bytes(node.0),
            ready: true,
            socket: "/x".into(),
            ..v1::RouteInstance::default()
        };
        let routes = |instances| v1::Route {
            instances,
            ..v1::Route::default()
        };
        let update = |instances, silent: &[NodeId]| {
            let silent = silent.iter().copied().collect();
            function.update(&routes(instances), &silent, Instant::now());
        };
        let ids = || {
            function
                .live
                .load()
                .iter()
                .map(|i| i.id.0)
                .collect::<Vec<_>>()
        };
        update(vec![listed(silent), listed(heard)], &[]);
        // A new leader that has heard one of the two, and nothing from it.
        update(vec![], &[silent]);
        assert_eq!(ids(), [silent.0]);
        update(vec![], &[silent]);
        function.settle(&[heard].into());
        assert_eq!(ids(), [silent.0]);
        function.settle(&[silent].into());
        assert!(ids().is_empty());
        // One that it then has reported is as any other.
        update(vec![listed(silent)], &[]);
        update(vec![], &[silent]);
        update(vec![listed(silent)], &[]);
        function.settle(&[silent].into());
        assert_eq!(ids(), [silent.0]);
    }
}
