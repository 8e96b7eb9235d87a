//! Routes to gateways: a snapshot, then contiguous numbered deltas under one incarnation and term.
//!
//! What is kept is bounded: the latest routes, and a ring of recent deltas. A receiver that falls
//! out of the ring gets a new snapshot in its stream, never a gap.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use coracle_model::{FunctionId, Stamp};
use coracle_proto::{Wire as _, v1};
use tokio::sync::{
    broadcast::{self, error::RecvError},
    watch,
};

/// Deltas that a receiver may lag behind.
const RING: usize = 1_024;

#[derive(Debug)]
struct Latest {
    stamp: Stamp,
    routes: BTreeMap<FunctionId, v1::Route>,
    nodes: Vec<v1::NodeAddress>,
    controllers: Vec<String>,
    /// `None` while this controller does not lead, or has not heard its agents: no streams.
    deltas: Option<broadcast::Sender<Arc<v1::RouteUpdate>>>,
}

#[derive(Debug, Clone)]
pub(crate) struct RouteFeed {
    latest: Arc<Mutex<Latest>>,
    /// Counts beginnings and ends, for those who wait for one.
    turns: watch::Sender<u64>,
}

impl RouteFeed {
    pub(crate) fn new() -> Self {
        let latest = Latest {
            stamp: Stamp::default(),
            routes: BTreeMap::new(),
            nodes: Vec::new(),
            controllers: Vec::new(),
            deltas: None,
        };
        Self {
            latest: Arc::new(Mutex::new(latest)),
            turns: watch::Sender::new(0),
        }
    }

    /// Changes when the feed begins or ends from now on.
    pub(crate) fn turns(&self) -> watch::Receiver<u64> {
        self.turns.subscribe()
    }

    /// A term begins: streams of the one before end, since their stamps may not go on.
    pub(crate) fn begin(
        &self,
        incarnation: u64,
        term: u64,
        routes: BTreeMap<FunctionId, v1::Route>,
        nodes: Vec<v1::NodeAddress>,
        controllers: Vec<String>,
    ) {
        let stamp = Stamp {
            incarnation,
            term,
            sequence: 0,
        };
        let deltas = Some(broadcast::channel(RING).0);
        *self.lock() = Latest {
            stamp,
            routes,
            nodes,
            controllers,
            deltas,
        };
        self.turns.send_modify(|turns| *turns += 1);
    }

    pub(crate) fn end(&self) {
        self.lock().deltas = None;
        self.turns.send_modify(|turns| *turns += 1);
    }

    /// How these functions' routes are now; absent ones are gone. Sends only what differs from
    /// what was sent before.
    pub(crate) fn publish(
        &self,
        changed: impl IntoIterator<Item = (FunctionId, Option<v1::Route>)>,
        nodes: Option<Vec<v1::NodeAddress>>,
        controllers: Vec<String>,
    ) {
        let mut guard = self.lock();
        let latest = &mut *guard;
        let (mut upsert, mut remove) = (Vec::new(), Vec::new());
        for (id, route) in changed {
            match route {
                Some(route) if latest.routes.get(&id) != Some(&route) => {
                    latest.routes.insert(id, route.clone());
                    upsert.push(route);
                }
                Some(_) => {}
                None => {
                    if latest.routes.remove(&id).is_some() {
                        remove.push(id.to_wire());
                    }
                }
            }
        }
        let nodes = nodes.filter(|nodes| *nodes != latest.nodes);
        let controllers = Some(controllers).filter(|all| *all != latest.controllers);
        let unchanged = upsert.is_empty() && remove.is_empty();
        if unchanged && nodes.is_none() && controllers.is_none() {
            return;
        }
        if let Some(controllers) = &controllers {
            latest.controllers.clone_from(controllers);
        }
        if let Some(nodes) = nodes {
            latest.nodes = nodes;
        }
        latest.stamp.sequence += 1;
        let update = v1::RouteUpdate {
            stamp: Some(latest.stamp.into()),
            snapshot: false,
            upsert,
            remove,
            // Always all of them: few, and a delta then never depends on another for addresses.
            nodes: latest.nodes.clone(),
            controllers: controllers.unwrap_or_default(),
        };
        if let Some(deltas) = &latest.deltas {
            // An error only says that nobody listens now.
            let _ = deltas.send(Arc::new(update));
        }
    }

    /// `None` while there is nothing to follow.
    pub(crate) fn subscribe(&self) -> Option<Subscription> {
        let latest = self.lock();
        let deltas = latest.deltas.as_ref()?.subscribe();
        let first = Some(Arc::new(snapshot(&latest)));
        Some(Subscription {
            feed: self.clone(),
            first,
            deltas,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Latest> {
        self.latest
            .lock()
            .expect("never poisoned: no panic while held")
    }
}

fn snapshot(latest: &Latest) -> v1::RouteUpdate {
    v1::RouteUpdate {
        stamp: Some(latest.stamp.into()),
        snapshot: true,
        upsert: latest.routes.values().cloned().collect(),
        remove: Vec::new(),
        nodes: latest.nodes.clone(),
        controllers: latest.controllers.clone(),
    }
}

#[derive(Debug)]
pub(crate) struct Subscription {
    feed: RouteFeed,
    first: Option<Arc<v1::RouteUpdate>>,
    deltas: broadcast::Receiver<Arc<v1::RouteUpdate>>,
}

impl Subscription {
    /// `None` when the term ended.
    pub(crate) async fn next(&mut self) -> Option<Arc<v1::RouteUpdate>> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        match self.deltas.recv().await {
            Ok(update) => Some(update),
            Err(RecvError::Closed) => None,
            Err(RecvError::Lagged(missed)) => {
                tracing::warn!(missed, "a gateway fell behind and gets all routes anew");
                *self = self.feed.subscribe()?;
                self.first.take()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u128) -> FunctionId {
        FunctionId(uuid::Uuid::from_u128(n))
    }

    fn route(n: u128, timeout_secs: u32) -> v1::Route {
        v1::Route {
            function: id(n).to_wire(),
            timeout_secs,
            ..Default::default()
        }
    }

    async fn next(subscription: &mut Subscription) -> (u64, bool, usize, usize) {
        let update = subscription.next().await.unwrap();
        let sequence = update.stamp.unwrap().sequence;
        (
            sequence,
            update.snapshot,
            update.upsert.len(),
            update.remove.len(),
        )
    }

    #[tokio::test]
    async fn a_snapshot_then_contiguous_deltas_of_what_differs() {
        let feed = RouteFeed::new();
        assert!(feed.subscribe().is_none(), "not before it leads");
        feed.begin(1, 2, [(id(1), route(1, 5))].into(), Vec::new(), Vec::new());
        let mut all = feed.subscribe().unwrap();
        feed.publish([(id(1), Some(route(1, 5)))], None, Vec::new());
        feed.publish(
            [(id(2), Some(route(2, 5))), (id(9), None)],
            None,
            Vec::new(),
        );
        feed.publish(
            [(id(1), None), (id(2), Some(route(2, 6)))],
            Some(Vec::new()),
            Vec::new(),
        );
        assert_eq!(next(&mut all).await, (0, true, 1, 0));
        assert_eq!(next(&mut all).await, (1, false, 1, 0));
        assert_eq!(next(&mut all).await, (2, false, 1, 1));
        let mut later = feed.subscribe().unwrap();
        assert_eq!(next(&mut later).await, (2, true, 1, 0));
        feed.end();
        assert!(later.next().await.is_none());
    }

    #[tokio::test]
    async fn where_controllers_are_is_said_at_first_and_when_it_changes() {
        let feed = RouteFeed::new();
        let list = |all: &[&str]| all.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>();
        feed.begin(1, 1, BTreeMap::new(), Vec::new(), list(&["a:1"]));
        let mut updates = feed.subscribe().unwrap();
        feed.publish([], None, list(&["a:1"]));
        feed.publish([(id(1), Some(route(1, 5)))], None, list(&["a:1"]));
        feed.publish([], None, list(&["a:1", "b:1"]));
        let mut said = Vec::new();
        for _ in 0..3 {
            said.push(updates.next().await.unwrap().controllers.clone());
        }
        assert_eq!(said, [list(&["a:1"]), vec![], list(&["a:1", "b:1"])]);
    }

    #[tokio::test]
    async fn who_falls_behind_gets_a_snapshot_and_no_gap() {
        let feed = RouteFeed::new();
        feed.begin(1, 1, BTreeMap::new(), Vec::new(), Vec::new());
        let mut slow = feed.subscribe().unwrap();
        assert_eq!(next(&mut slow).await, (0, true, 0, 0));
        let many = u32::try_from(RING).unwrap() + 10;
        for n in 1..=many {
            feed.publish([(id(1), Some(route(1, n)))], None, Vec::new());
        }
        assert_eq!(next(&mut slow).await, (u64::from(many), true, 1, 0));
        feed.publish([(id(1), None)], None, Vec::new());
        assert_eq!(next(&mut slow).await, (u64::from(many) + 1, false, 0, 1));
    }
}
