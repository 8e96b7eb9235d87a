//! Which node an instance goes to: the feasible ones first, then the best of them.

use std::{collections::BTreeMap, fmt};

use coracle_model::{FunctionId, NodeId, Spread};

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
    /// The same for each that is in the node's zone: losing a zone should not either, where there is
    /// a choice between nodes that are alike otherwise.
    pub(super) const ZONE_NEIGHBOUR: i64 = 60;
    /// Instead of the above, where the function asks to be spread: more than a missing image costs.
    pub(super) const SPREAD: i64 = 50_000;
    /// For each preferred label that a node has: more than a stem, less than an image.
    pub(super) const PREFERRED: i64 = 2_000;
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
    /// Without the labels that the function requires.
    pub mismatched: usize,
    /// Those, as "disk=ssd, zone=a".
    pub required: String,
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
             new instances, ",
            self.memory_mib, self.cpu_millis, self.nodes, self.full, self.cordoned,
        )?;
        if self.mismatched > 0 {
            write!(f, "{} without {}, ", self.mismatched, self.required)?;
        }
        write!(
            f,
            "{} gone; {} MiB free at most)",
            self.gone, self.most_free_mib
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
        mismatched: 0,
        required: String::new(),
        memory_mib: revision.memory_mib,
        cpu_millis: revision.cpu_millis,
        most_free_mib: 0,
    };
    let zones = zones(nodes, revision.id.function);
    let mut best: Option<(i64, NodeId, &NodeInput)> = None;
    let mut feasible = 0;
    for (id, node) in nodes {
        if !node.alive || !node.reachable {
            none.gone += 1;
            continue;
        }
        if !revision.rules.required.all_in(&node.labels) {
            none.mismatched += 1;
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
            let score = score(node, revision, beside(&zones, node));
            if best.is_none_or(|(most, ..)| score > most) {
                best = Some((score, *id, node));
            }
        }
    }
    match best {
        Some((_, id, node)) => Ok(Placement {
            node: id,
            reason: reason(node, revision, beside(&zones, node), feasible, &none),
        }),
        None => {
            let required = revision.rules.required.iter();
            let pairs: Vec<_> = required
                .map(|(key, value)| format!("{key}={value}"))
                .collect();
            none.required = pairs.join(", ");
            Err(none)
        }
    }
}

/// Whether it could hold one if it were empty.
pub(crate) fn suits(node: &NodeInput, revision: &RevisionInput) -> bool {
    revision.rules.required.all_in(&node.labels)
        && node.memory_mib >= u64::from(revision.memory_mib)
        && node.cpu_millis >= u64::from(revision.cpu_millis)
}

/// Instances of the function in each zone. Nothing where no node names one.
fn zones(nodes: &BTreeMap<NodeId, NodeInput>, function: FunctionId) -> BTreeMap<&str, u32> {
    let mut zones = BTreeMap::new();
    for node in nodes.values().filter(|node| node.alive) {
        if let Some(zone) = node.zone() {
            let here = node.functions.get(&function).copied().unwrap_or(0);
            *zones.entry(zone).or_insert(0) += here;
        }
    }
    zones
}

/// How many of the function are in the node's zone.
fn beside(zones: &BTreeMap<&str, u32>, node: &NodeInput) -> u32 {
    let here = node.zone().and_then(|zone| zones.get(zone));
    here.copied().unwrap_or(0)
}

fn score(node: &NodeInput, revision: &RevisionInput, in_zone: u32) -> i64 {
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
    let preferred = revision.rules.preferred.count_in(&node.labels);
    score += i64::try_from(preferred).unwrap_or(0) * weight::PREFERRED;
    let (of_node, of_zone) = match revision.rules.spread {
        Spread::Auto => (weight::NEIGHBOUR, weight::ZONE_NEIGHBOUR),
        Spread::Node => (weight::SPREAD, weight::ZONE_NEIGHBOUR),
        // Nodes within the zone come after it, and still before everything else.
        Spread::Zone => (weight::SPREAD, weight::SPREAD * 50),
    };
    score - i64::from(neighbours(node, revision)) * of_node - i64::from(in_zone) * of_zone
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

fn reason(
    node: &NodeInput,
    revision: &RevisionInput,
    in_zone: u32,
    feasible: usize,
    none: &NoRoom,
) -> String {
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
    let mut spread = match neighbours(node, revision) {
        0 => String::new(),
        n => format!(", beside {n} of its function"),
    };
    if let Some(zone) = node.zone() {
        spread.push_str(&format!(", zone {zone} with {in_zone} of it"));
    }
    match revision.rules.preferred.count_in(&node.labels) {
        0 => {}
        n => spread.push_str(&format!(", {n} preferred label(s)")),
    }
    let mut others = format!("best of {feasible}");
    for (count, word) in [
        (none.full, "full"),
        (none.mismatched, "without its labels"),
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

    fn in_zone(name: &str, zone: &str) -> NodeInput {
        let mut node = node(name);
        node.labels.insert("zone".to_owned(), zone.to_owned());
        node
    }

    fn labels(key: &str, value: &str) -> coracle_model::Labels {
        coracle_model::Labels::new([(key.to_owned(), value.to_owned())].into()).unwrap()
    }

    #[test]
    fn required_labels_are_required_and_counted_where_they_lack() {
        let mut wanted = revision(1, 1);
        wanted.rules.required = labels("zone", "b");
        let mut nodes: BTreeMap<_, _> = [
            (node_id(1), in_zone("a", "a")),
            (node_id(2), in_zone("b", "b")),
        ]
        .into();
        let placed = place(&mut nodes, &wanted).unwrap();
        assert_eq!(placed.node, node_id(2));
        assert_eq!(
            placed.reason,
            "b: image there, 1024 MiB free, zone b with 0 of it; best of 1, 1 without its labels"
        );
        nodes.get_mut(&node_id(2)).unwrap().schedulable = false;
        let none = place(&mut nodes, &wanted).unwrap_err();
        assert_eq!((none.mismatched, none.cordoned), (1, 1));
        assert!(
            none.to_string()
                .contains("1 closed to new instances, 1 without zone=b,"),
            "{none}"
        );
    }

    #[test]
    fn preferred_labels_win_over_a_stem_and_not_over_an_image() {
        let mut wanted = revision(1, 1);
        wanted.rules.preferred = labels("zone", "a");
        let prefers = |bare: bool| {
            let mut near = in_zone("a", "a");
            if bare {
                near.images.clear();
            }
            let mut stem = in_zone("b", "b");
            stem.stems.insert("python3.11".parse().unwrap(), 1);
            let mut nodes: BTreeMap<_, _> = [(node_id(1), near), (node_id(2), stem)].into();
            place(&mut nodes, &wanted).unwrap().node
        };
        assert_eq!(prefers(false), node_id(1));
        assert_eq!(prefers(true), node_id(2));
    }

    /// Two nodes in zone a, one in zone b: where each of four instances goes.
    fn spread(spread: Spread, change: impl FnOnce(&mut BTreeMap<NodeId, NodeInput>)) -> Vec<u128> {
        let mut nodes: BTreeMap<_, _> = [
            (node_id(1), in_zone("a1", "a")),
            (node_id(2), in_zone("a2", "a")),
            (node_id(3), in_zone("b1", "b")),
        ]
        .into();
        change(&mut nodes);
        let mut wanted = revision(1, 1);
        wanted.rules.spread = spread;
        let placed = (0..4).map(|_| place(&mut nodes, &wanted).unwrap().node.0.as_u128());
        placed.collect()
    }

    #[test]
    fn instances_are_spread_over_zones_and_nodes() {
        assert_eq!(spread(Spread::Auto, |_| {}), [1, 3, 2, 3]);
        assert_eq!(spread(Spread::Zone, |_| {}), [1, 3, 2, 3]);
        let mut by_node = spread(Spread::Node, |_| {});
        by_node.truncate(3);
        by_node.sort_unstable();
        assert_eq!(by_node, [1, 2, 3]);
    }

    #[test]
    fn a_spread_that_is_asked_for_costs_slow_starts() {
        let bare = |nodes: &mut BTreeMap<NodeId, NodeInput>| {
            nodes.get_mut(&node_id(3)).unwrap().images.clear();
        };
        assert_eq!(spread(Spread::Auto, bare), [1, 2, 1, 2]);
        assert_eq!(spread(Spread::Zone, bare), [1, 3, 2, 3]);
        assert_eq!(spread(Spread::Node, bare)[..3], [1, 2, 3]);
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
