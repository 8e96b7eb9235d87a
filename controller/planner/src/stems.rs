//! How many stems each node keeps ready.

use std::collections::{BTreeMap, BTreeSet};

use coracle_model::{NodeId, RuntimeName};

use crate::input::{Input, NodeInput};

/// Per node and runtime that any function uses that may run: the configured count, raised by the starts
/// of the last minute (a burst is met by stems only if they are there before it), lowered to the
/// memory that stems may take. Only where the image is: a stem must never cause an image build.
pub(crate) fn size(
    input: &Input,
    nodes: &BTreeMap<NodeId, NodeInput>,
) -> BTreeMap<NodeId, BTreeMap<RuntimeName, u32>> {
    let config = &input.config.stems;
    let used: BTreeSet<&RuntimeName> = input
        .functions
        .values()
        .filter(|function| function.may_not_run().is_none())
        .flat_map(|f| {
            f.serving
                .iter()
                .chain(f.candidate.iter().map(|c| &c.revision))
        })
        .map(|revision| &revision.runtime)
        .collect();
    let takers = nodes.values().filter(|n| n.alive && n.schedulable).count();
    let share = u32::try_from(takers).unwrap_or(u32::MAX).max(1);
    let mut all = BTreeMap::new();
    for (id, node) in nodes.iter().filter(|(_, n)| n.alive && n.heard) {
        if !node.schedulable {
            // A node that takes nothing new has no use for any, and one that drains is to be empty.
            all.insert(*id, BTreeMap::new());
            continue;
        }
        let budget = node.free_memory_mib() * u64::from(config.memory_percent)
            / 100
            / u64::from(config.memory_mib.max(1));
        let mut budget = u32::try_from(budget).unwrap_or(u32::MAX);
        let mut pools = BTreeMap::new();
        for runtime in used
            .iter()
            .filter(|runtime| node.images.contains(**runtime))
        {
            let recent = input
                .recent_starts
                .get(*runtime)
                .copied()
                .unwrap_or(0)
                .div_ceil(share);
            let wish = if config.per_runtime == 0 {
                0
            } else {
                config.per_runtime.max(recent).min(config.most_per_runtime)
            };
            let count = wish.min(budget);
            budget -= count;
            if count > 0 {
                pools.insert((*runtime).clone(), count);
            }
        }
        all.insert(*id, pools);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{function, node, node_id, revision};

    fn sized(node_input: NodeInput, recent: u32) -> Vec<(String, u32)> {
        let mut input = Input::default();
        let mut used = function(0, 5);
        used.serving = Some(revision(1, 1));
        input.functions.insert(revision(1, 1).id.function, used);
        input
            .recent_starts
            .insert("python3.11".parse().unwrap(), recent);
        let nodes: BTreeMap<_, _> = [(node_id(1), node_input)].into();
        let all = size(&input, &nodes);
        all[&node_id(1)]
            .iter()
            .map(|(r, n)| (r.to_string(), *n))
            .collect()
    }

    #[test]
    fn the_configured_count_raised_by_recent_starts_within_memory() {
        let python = |n| vec![("python3.11".to_owned(), n)];
        assert_eq!(sized(node("a"), 0), python(4));
        // 1024 MiB free, a quarter for stems of 32 MiB.
        assert_eq!(sized(node("a"), 20), python(8));
        let mut large = node("a");
        large.memory_mib = 100_000;
        assert_eq!(sized(large.clone(), 20), python(20));
        assert_eq!(sized(large, 900), python(32));
    }

    #[test]
    fn a_node_that_is_closed_lets_its_stems_go() {
        let mut closed = node("a");
        closed.schedulable = false;
        assert_eq!(sized(closed, 9), []);
    }

    #[test]
    fn none_without_an_image_or_a_user() {
        let mut bare = node("a");
        bare.images.clear();
        assert_eq!(sized(bare, 9), []);
        let nodes: BTreeMap<_, _> = [(node_id(1), node("a"))].into();
        assert!(size(&Input::default(), &nodes)[&node_id(1)].is_empty());
    }
}
