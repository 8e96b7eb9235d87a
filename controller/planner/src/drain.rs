//! Whether a node can be done without.

use std::collections::BTreeMap;

use coracle_model::NodeId;

use crate::{
    input::{NodeInput, RevisionInput},
    place::suits,
};

/// Whether `node` is the only one left on which an instance of this revision could ever be: it
/// suits, and of the others none that takes instances does. What runs there now is not looked at: a
/// full node is room once something ends, and a drain waits for that.
pub fn is_last_home(
    nodes: &BTreeMap<NodeId, NodeInput>,
    node: NodeId,
    revision: &RevisionInput,
) -> bool {
    let here = nodes.get(&node).is_some_and(|node| suits(node, revision));
    here && !nodes.iter().any(|(id, other)| {
        *id != node && other.alive && other.heard && other.schedulable && suits(other, revision)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{node, node_id, revision};

    fn last(change: impl FnOnce(&mut NodeInput)) -> bool {
        let mut other = node("b");
        change(&mut other);
        let nodes = [(node_id(1), node("a")), (node_id(2), other)].into();
        is_last_home(&nodes, node_id(1), &revision(1, 1))
    }

    #[test]
    fn another_home_is_alive_open_and_large_enough_though_it_may_be_full() {
        assert!(!last(|_| {}));
        assert!(!last(|other| other.used_memory_mib = other.memory_mib));
        assert!(last(|other| other.alive = false));
        assert!(last(|other| other.heard = false));
        assert!(last(|other| other.schedulable = false));
        assert!(last(|other| other.memory_mib = 127));
        assert!(last(|other| other.cpu_millis = 249));
        let mut picky = revision(1, 1);
        picky.rules.required =
            coracle_model::Labels::new([("disk".to_owned(), "ssd".to_owned())].into()).unwrap();
        let mut here = node("a");
        here.labels.insert("disk".to_owned(), "ssd".to_owned());
        let nodes = [(node_id(1), here), (node_id(2), node("b"))].into();
        assert!(is_last_home(&nodes, node_id(1), &picky));
    }

    #[test]
    fn a_node_that_could_not_hold_it_either_is_no_home() {
        let mut small = node("a");
        small.memory_mib = 64;
        let nodes = [(node_id(1), small)].into();
        assert!(!is_last_home(&nodes, node_id(1), &revision(1, 1)));
    }
}
