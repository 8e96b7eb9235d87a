//! Which node an instance goes to: the feasible ones first, then the best of them.

use std::{collections::BTreeMap, fmt};

use coracle_model::NodeId;

use crate::input::{NodeInput, RevisionInput};

/// What each advantage weighs. The order of magnitude is the cost that it saves: a stem about
/// 100 ms, an image that has to be made tens of seconds, artifacts to fetch about 10 ms.
mod weight {
    pub(super) const IMAGE: i64 = 10_000;
    pub(super) const STEM: i64 = 1_000;
    pub(super) const ARTIFACTS: i64 = 100;
    /// For an empty node; a full one gets nothing.
    pub(super) const FREE_MEMORY: i64 = 100;
    /// Taken off for each instance of the function that is there already. More than artifacts and
    /// memory together can give: losing a node should not lose a function.
    pub(super) const NEIGHBOUR: i64 = 250;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    pub node: NodeId,
    /// "node-1: idle stem, artifacts there, 3120 MiB free; best of 2 (1 full)".
    pub reason: String,
}

/// Why nothing is feasible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoRoom {
    pub nodes: usize,
    pub gone: usize,
    pub cordoned: usize,
    pub full: usize,
    pub memory_mib: u32,
    pub cpu_millis: u32,
    /// The most that any live node has left.
    pub most_free_mib: u64,
}

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == self.gone {
            return f.write_str("no node is connected");
        }
        write!(
            f,
            "no node has room for {} MiB and {} thousandths of a core (of {}: {} full, {} closed to \
             new instances, {} gone; {} MiB free at most)",
            self.memory_mib,
            self.cpu_millis,
            self.nodes,
            self.full,
            self.cordoned,
            self.gone,
            self.most_free_mib
        )
    }
}

/// Chooses the node for one instance of `revision` and books it there.
pub fn place(
    nodes: &mut BTreeMap<NodeId, NodeInput>,
    revision: &RevisionInput,
) -> Result<Placement, NoRoom> {
    let placement = choose(nodes, revision)?;
    if let Some(node) = nodes.get_mut(&placement.node) {
        node.take(revision);
    }
    Ok(placement)
}

/// Chooses the node for one instance of `revision`. Ties go to the smallest node id.
pub fn choose(
    nodes: &BTreeMap<NodeId, NodeInput>,
    revision: &RevisionInput,
) -> Result<Placement, NoRoom> {
    let mut none = NoRoom {
        nodes: nodes.len(),
        gone: 0,
        cordoned: 0,
        full: 0,
        memory_mib: revision.memory_mib,
        cpu_millis: revision.cpu_millis,
        most_free_mib: 0,
    };
    let mut best: Option<(i64, NodeId, &NodeInput)> = None;
    let mut feasible = 0;
    for (id, node) in nodes {
        if !node.alive || !node.reachable {
            none.gone += 1;
            continue;
        }
        none.most_free_mib = none.most_free_mib.max(node.free_memory_mib());
        if !node.schedulable {
            none.cordoned += 1;
        } else if node.free_memory_mib() < u64::from(revision.memory_mib)
            || node.free_cpu_millis() < u64::from(revision.cpu_millis)
        {
            none.full += 1;
        } else {
            feasible += 1;
            let score = score(node, revision);
            if best.is_none_or(|(most, ..)| score > most) {
                best = Some((score, *id, node));
            }
        }
    }
    match best {
        Some((_, id, node)) => Ok(Placement {
            node: id,
            reason: reason(node, revision, feasible, &none),
        }),
        None => Err(none),
    }
}

/// Whether it could hold one if it were empty.
pub(crate) fn suits(node: &NodeInput, revision: &RevisionInput) -> bool {
    node.memory_mib >= u64::from(revision.memory_mib)
        && node.cpu_millis >= u64::from(revision.cpu_millis)
}

fn score(node: &NodeInput, revision: &RevisionInput) -> i64 {
    let mut score = 0;
    if node.images.contains(&revision.runtime) {
        score += weight::IMAGE;
    }
    if stems(node, revision) > 0 {
        score += weight::STEM;
    }
    if node.recent.contains(&revision.id) {
        score += weight::ARTIFACTS;
    }
    let free = node
        .free_memory_mib()
        .saturating_mul(weight::FREE_MEMORY.unsigned_abs());
    score += i64::try_from(free / node.memory_mib.max(1)).unwrap_or(weight::FREE_MEMORY);
    score - i64::from(neighbours(node, revision)) * weight::NEIGHBOUR
}

fn stems(node: &NodeInput, revision: &RevisionInput) -> u32 {
    node.stems.get(&revision.runtime).copied().unwrap_or(0)
}

fn neighbours(node: &NodeInput, revision: &RevisionInput) -> u32 {
    node.functions
        .get(&revision.id.function)
        .copied()
        .unwrap_or(0)
}

fn reason(node: &NodeInput, revision: &RevisionInput, feasible: usize, none: &NoRoom) -> String {
    let start = if stems(node, revision) > 0 {
        "idle stem"
    } else if node.images.contains(&revision.runtime) {
        "image there"
    } else {
        "image to be made"
    };
    let artifacts = if node.recent.contains(&revision.id) {
        ", artifacts there"
    } else {
        ""
    };
    let spread = match neighbours(node, revision) {
        0 => String::new(),
        n => format!(", beside {n} of its function"),
    };
    let mut others = format!("best of {feasible}");
    for (count, word) in [
        (none.full, "full"),
        (none.cordoned, "closed"),
        (none.gone, "gone"),
    ] {
        if count > 0 {
            others.push_str(&format!(", {count} {word}"));
        }
    }
    let free = node.free_memory_mib();
    format!(
        "{}: {start}{artifacts}, {free} MiB free{spread}; {others}",
        node.name
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{node, node_id, revision};

    fn choose(nodes: [NodeInput; 2]) -> Result<(u128, String), NoRoom> {
        let [a, b] = nodes;
        let mut nodes: BTreeMap<_, _> = [(node_id(1), a), (node_id(2), b)].into();
        place(&mut nodes, &revision(1, 1)).map(|p| (p.node.0.as_u128(), p.reason))
    }

    #[test]
    fn a_stem_wins_over_artifacts_and_memory() {
        let mut stem = node("b");
        stem.stems.insert("python3.11".parse().unwrap(), 1);
        stem.used_memory_mib = 512;
        let mut near = node("a");
        near.recent.insert(revision(1, 1).id);
        let (chosen, reason) = choose([near, stem]).unwrap();
        assert_eq!(chosen, 2);
        assert_eq!(reason, "b: idle stem, 512 MiB free; best of 2");
    }

    #[test]
    fn an_image_wins_over_a_spread() {
        let mut bare = node("a");
        bare.images.clear();
        let mut beside = node("b");
        beside.functions.insert(revision(1, 1).id.function, 2);
        let (chosen, reason) = choose([bare, beside]).unwrap();
        assert_eq!((chosen, reason.contains("beside 2")), (2, true), "{reason}");
    }

    #[test]
    fn equals_are_spread_and_then_go_to_the_smaller_id() {
        assert_eq!(choose([node("a"), node("b")]).unwrap().0, 1);
        let mut beside = node("a");
        beside.functions.insert(revision(1, 1).id.function, 1);
        assert_eq!(choose([beside, node("b")]).unwrap().0, 2);
    }

    #[test]
    fn full_closed_and_gone_nodes_are_refused_by_name() {
        let mut full = node("a");
        full.used_memory_mib = full.memory_mib - 100;
        let mut gone = node("b");
        gone.alive = false;
        let none = choose([full.clone(), gone.clone()]).expect_err("no room");
        assert_eq!((none.full, none.gone, none.most_free_mib), (1, 1, 100));
        assert!(none.to_string().contains("128 MiB"), "{none}");
        full.alive = false;
        let none = choose([full, gone]).expect_err("no room");
        assert_eq!(none.to_string(), "no node is connected");
        let mut closed = node("a");
        closed.schedulable = false;
        assert_eq!(
            choose([closed, node("b")]).unwrap().1,
            "b: image there, 1024 MiB free; best of 1, 1 closed"
        );
    }

    #[test]
    fn booking_counts_for_the_next_one() {
        let mut nodes: BTreeMap<_, _> = [(node_id(1), node("a"))].into();
        let fits = (0..20)
            .take_while(|_| place(&mut nodes, &revision(1, 1)).is_ok())
            .count();
        assert_eq!(fits, 8);
    }
}
