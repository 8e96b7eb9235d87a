//! The route table: what the feed said last, kept while no controller answers.
//!
//! Functions are objects that outlive updates; a change of a function's instances or settings
//! changes the object, and only new, gone or renamed functions make a new name index. So the
//! traffic of a scaling cluster costs nothing that grows with the number of functions.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use arc_swap::ArcSwap;
use coracle_model::{FunctionId, FunctionRef, NodeId, ProjectId, Stamp};
use coracle_proto::v1;
use tokio::time::Instant;

use crate::{
    function::Function,
    nodes::Nodes,
    respond::{Code, Error},
    wire,
};

/// How requests find functions. Immutable; each thread caches the newest.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// By `project/namespace/function`, which is how a path spells it.
    pub(crate) paths: HashMap<Box<str>, Arc<Function>>,
    /// By `function-namespace`, in the default project. `None`: two functions would share the
    /// host, since names may hold hyphens, and neither gets it.
    pub(crate) hosts: HashMap<Box<str>, Option<Arc<Function>>>,
}

/// The next update does not follow the last one: a snapshot is needed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Gap {
    #[error("the update has no stamp")]
    NoStamp,
    #[error("the feed does not begin with a snapshot")]
    NoSnapshot,
    #[error("update {got} does not follow {last}")]
    Missed { last: Stamp, got: Stamp },
    /// From a leader that has been replaced.
    #[error("update {got} is older than {last}")]
    Stale { last: Stamp, got: Stamp },
}

#[derive(Debug, Default)]
struct State {
    stamp: Option<Stamp>,
    functions: HashMap<FunctionId, Arc<Function>>,
    /// Nodes that have not reported to the leader yet.
    silent: HashSet<NodeId>,
    /// The stream that is being followed has shown its snapshot.
    following: bool,
}

#[derive(Debug)]
pub(crate) struct Table {
    names: Arc<ArcSwap<Names>>,
    state: Mutex<State>,
    threads: usize,
    with_hosts: bool,
    total_waiting: Arc<AtomicUsize>,
}

impl Table {
    pub(crate) fn new(threads: usize, with_hosts: bool) -> Self {
        Self {
            names: Arc::default(),
            state: Mutex::default(),
            threads,
            with_hosts,
            total_waiting: Arc::default(),
        }
    }

    /// For a thread's cache.
    pub(crate) fn names(&self) -> Arc<ArcSwap<Names>> {
        self.names.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("never poisoned: no panic while held")
    }

    pub(crate) fn functions(&self) -> Vec<Arc<Function>> {
        self.lock().functions.values().cloned().collect()
    }

    pub(crate) fn find(&self, project: ProjectId, function: &FunctionRef) -> Option<Arc<Function>> {
        self.lock()
            .functions
            .values()
            .find(|f| {
                f.project_id == project.0
                    && f.name == function.name.as_str()
                    && f.namespace == function.namespace.as_str()
            })
            .cloned()
    }

    /// The newest stamp seen; `None` before the first snapshot.
    pub(crate) fn stamp(&self) -> Option<Stamp> {
        self.lock().stamp
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().functions.len()
    }

    /// Nothing is known, which is not the same as there being nothing.
    pub(crate) fn is_empty_for_want_of_a_feed(&self) -> bool {
        self.stamp().is_none()
    }

    pub(crate) fn waiting(&self) -> usize {
        self.total_waiting.load(Relaxed)
    }

    /// A new stream begins: its first update has to be a snapshot.
    pub(crate) fn restart(&self) {
        self.lock().following = false;
    }

    /// Takes over one update. On an error nothing has changed.
    pub(crate) fn apply(
        &self,
        update: &v1::RouteUpdate,
        nodes: &Nodes,
        now: Instant,
    ) -> Result<(), Gap> {
        let stamp = update.stamp.ok_or(Gap::NoStamp)?;
        let stamp = Stamp {
            incarnation: stamp.incarnation,
            term: stamp.term,
            sequence: stamp.sequence,
        };
        let mut state = self.lock();
        check(&state, update.snapshot, stamp)?;
        state.stamp = Some(stamp);
        state.following |= update.snapshot;

        let mut silent = HashSet::new();
        for node in &update.nodes {
            if let Some(id) = wire::uuid(&node.node).map(NodeId) {
                // A leader that has not heard it does not know its address either.
                if node.silent {
                    silent.insert(id);
                } else {
                    nodes.learn(id, &node.name, &node.address);
                }
            }
        }
        let settled: HashSet<_> = state.silent.difference(&silent).copied().collect();
        state.silent = silent;
        let mut gone = Vec::new();
        if update.snapshot {
            let named: HashSet<_> = update
                .upsert
                .iter()
                .filter_map(|r| wire::uuid(&r.function))
                .collect();
            gone.extend(
                state
                    .functions
                    .keys()
                    .filter(|id| !named.contains(&id.0))
                    .copied(),
            );
            let alive: HashSet<_> = update
                .nodes
                .iter()
                .filter_map(|n| wire::uuid(&n.node))
                .collect();
            nodes.keep_only(|node| alive.contains(&node.0));
        }
        gone.extend(
            update
                .remove
                .iter()
                .filter_map(|id| wire::uuid(id))
                .map(FunctionId),
        );

        let mut renamed = false;
        for id in gone {
            if let Some(function) = state.functions.remove(&id) {
                function.removed(&Error::new(Code::NotFound, "the function was deleted"));
                renamed = true;
            }
        }
        for route in &update.upsert {
            let Some(id) = wire::uuid(&route.function).map(FunctionId) else {
                continue;
            };
            let known = state
                .functions
                .get(&id)
                .filter(|f| f.is_named(route))
                .cloned();
            let function = known.unwrap_or_else(|| {
                renamed = true;
                let waiting = self.total_waiting.clone();
                let function = Arc::new(Function::new(id, route, self.threads, waiting, now));
                state.functions.insert(id, function.clone());
                function
            });
            function.update(route, &state.silent, now);
        }
        if !settled.is_empty() {
            for function in state.functions.values() {
                function.settle(&settled);
            }
        }
        if renamed {
            self.names.store(Arc::new(index(&state, self.with_hosts)));
        }
        Ok(())
    }
}

fn check(state: &State, snapshot: bool, stamp: Stamp) -> Result<(), Gap> {
    let Some(last) = state.stamp else {
        return if snapshot {
            Ok(())
        } else {
            Err(Gap::NoSnapshot)
        };
    };
    let generation = |s: Stamp| (s.incarnation, s.term);
    if generation(stamp) < generation(last) {
        return Err(Gap::Stale { last, got: stamp });
    }
    if snapshot {
        return Ok(());
    }
    if !state.following {
        return Err(Gap::NoSnapshot);
    }
    if generation(stamp) != generation(last) || stamp.sequence != last.sequence + 1 {
        return Err(Gap::Missed { last, got: stamp });
    }
    Ok(())
}

fn index(state: &State, with_hosts: bool) -> Names {
    let mut names = Names::default();
    for function in state.functions.values() {
        let (project, namespace, name) = (&function.project, &function.namespace, &function.name);
        let path = format!("{project}/{namespace}/{name}").into_boxed_str();
        names.paths.insert(path, function.clone());
        if with_hosts && function.project_id == ProjectId::DEFAULT.0 {
            let host = format!("{name}-{namespace}").into_boxed_str();
            names
                .hosts
                .entry(host)
                .and_modify(|claimed| *claimed = None)
                .or_insert_with(|| Some(function.clone()));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn route(id: Uuid, name: &str, namespace: &str) -> v1::Route {
        v1::Route {
            function: wire::bytes(id),
            project_id: 1,
            project: "default".into(),
            namespace: namespace.into(),
            name: name.into(),
            ..v1::Route::default()
        }
    }

    fn update(term: u64, sequence: u64, snapshot: bool, upsert: Vec<v1::Route>) -> v1::RouteUpdate {
        v1::RouteUpdate {
            stamp: Some(v1::Stamp {
                incarnation: 1,
                term,
                sequence,
            }),
            snapshot,
            upsert,
            ..v1::RouteUpdate::default()
        }
    }

    fn has(table: &Table, path: &str) -> bool {
        table.names().load().paths.contains_key(path)
    }

    #[tokio::test]
    async fn updates_are_taken_only_in_order() {
        let (table, nodes) = (Table::new(1, false), Nodes::default());
        let apply = |update| table.apply(&update, &nodes, Instant::now());
        let id = Uuid::new_v4();
        assert_eq!(apply(update(1, 1, false, vec![])), Err(Gap::NoSnapshot));
        apply(update(1, 5, true, vec![route(id, "a", "ns")])).unwrap();
        apply(update(1, 6, false, vec![route(Uuid::new_v4(), "b", "ns")])).unwrap();
        assert!(has(&table, "default/ns/a") && has(&table, "default/ns/b"));
        assert!(matches!(
            apply(update(1, 8, false, vec![])),
            Err(Gap::Missed { .. })
        ));
        assert!(matches!(
            apply(update(2, 7, false, vec![])),
            Err(Gap::Missed { .. })
        ));
        assert!(has(&table, "default/ns/a"), "the last good table stays");
        apply(update(2, 1, true, vec![route(id, "a", "ns")])).unwrap();
        assert!(has(&table, "default/ns/a") && !has(&table, "default/ns/b"));
        assert!(matches!(
            apply(update(1, 9, true, vec![])),
            Err(Gap::Stale { .. })
        ));
        table.restart();
        assert_eq!(apply(update(2, 2, false, vec![])), Err(Gap::NoSnapshot));
    }

    #[tokio::test]
    async fn a_function_keeps_its_counts_across_updates_and_an_ambiguous_host_serves_nobody() {
        let (table, nodes) = (Table::new(1, true), Nodes::default());
        let (one, two) = (Uuid::new_v4(), Uuid::new_v4());
        table
            .apply(
                &update(1, 1, true, vec![route(one, "a-b", "c")]),
                &nodes,
                Instant::now(),
            )
            .unwrap();
        let before = table.names().load().paths["default/c/a-b"].clone();
        assert!(table.names().load().hosts["a-b-c"].is_some());
        let both = vec![route(one, "a-b", "c"), route(two, "a", "b-c")];
        table
            .apply(&update(1, 2, false, both), &nodes, Instant::now())
            .unwrap();
        assert!(Arc::ptr_eq(
            &before,
            &table.names().load().paths["default/c/a-b"]
        ));
        assert!(table.names().load().hosts["a-b-c"].is_none());
    }
}
