//! When whoever adds and takes away machines is to be told.

use std::collections::{BTreeMap, BTreeSet};

use coracle_model::{NodeId, Timestamp};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CapacityConfig {
    /// Instances have been missing for want of room for this long.
    pub short_after_ms: u64,
    /// A node has run nothing for this long.
    pub idle_after_ms: u64,
    /// What goes on is told again after this.
    pub repeat_ms: u64,
}

impl Default for CapacityConfig {
    fn default() -> Self {
        Self {
            short_after_ms: 30_000,
            idle_after_ms: 600_000,
            repeat_ms: 300_000,
        }
    }
}

/// How things stand at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    pub is_short: bool,
    /// Nodes that would take instances and run nothing.
    pub idle: BTreeSet<NodeId>,
    /// All nodes that would take instances.
    pub open: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    Short {
        since: Timestamp,
    },
    /// These could be taken away; one that takes instances is always left.
    Idle {
        nodes: Vec<NodeId>,
    },
}

/// What is remembered from one look to the next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CapacityWatch {
    short_since: Option<Timestamp>,
    short_told: Option<Timestamp>,
    idle_since: BTreeMap<NodeId, Timestamp>,
    idle_told: Option<(Timestamp, Vec<NodeId>)>,
}

impl CapacityWatch {
    pub fn look(
        &mut self,
        config: &CapacityConfig,
        now: Timestamp,
        standing: &Standing,
    ) -> Vec<Notice> {
        let mut notices = Vec::new();
        let due = |told: Option<Timestamp>| told.is_none_or(|at| now.since(at) >= config.repeat_ms);
        if standing.is_short {
            let since = *self.short_since.get_or_insert(now);
            if now.since(since) >= config.short_after_ms && due(self.short_told) {
                self.short_told = Some(now);
                notices.push(Notice::Short { since });
            }
        } else {
            (self.short_since, self.short_told) = (None, None);
        }
        self.idle_since
            .retain(|node, _| standing.idle.contains(node));
        for node in &standing.idle {
            self.idle_since.entry(*node).or_insert(now);
        }
        let mut nodes: Vec<NodeId> = self
            .idle_since
            .iter()
            .filter(|(_, since)| now.since(**since) >= config.idle_after_ms)
            .map(|(node, _)| *node)
            .collect();
        // While something waits for room nothing is to spare; and somebody has to be there when the
        // next request comes.
        nodes.truncate(standing.open.saturating_sub(1));
        if standing.is_short || nodes.is_empty() {
            self.idle_told = None;
            return notices;
        }
        let told = self.idle_told.as_ref();
        let same = told
            .filter(|(_, before)| *before == nodes)
            .map(|(at, _)| *at);
        if due(same) {
            self.idle_told = Some((now, nodes.clone()));
            notices.push(Notice::Idle { nodes });
        }
        notices
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::node_id;

    const CONFIG: CapacityConfig = CapacityConfig {
        short_after_ms: 30_000,
        idle_after_ms: 600_000,
        repeat_ms: 300_000,
    };

    fn standing(is_short: bool, open: usize, idle: &[u128]) -> Standing {
        Standing {
            is_short,
            idle: idle.iter().map(|n| node_id(*n)).collect(),
            open,
        }
    }

    #[test]
    fn a_shortage_is_told_when_it_lasts_and_again_while_it_goes_on() {
        let mut watch = CapacityWatch::default();
        let mut told = Vec::new();
        for second in 0..700_u64 {
            let now = Timestamp(second * 1_000);
            for notice in watch.look(&CONFIG, now, &standing(true, 2, &[])) {
                assert_eq!(
                    notice,
                    Notice::Short {
                        since: Timestamp(0)
                    }
                );
                told.push(second);
            }
        }
        assert_eq!(told, [30, 330, 630]);
        // One that passes is none, and the next counts from its own beginning.
        assert!(
            watch
                .look(&CONFIG, Timestamp(700_000), &standing(false, 2, &[]))
                .is_empty()
        );
        assert!(
            watch
                .look(&CONFIG, Timestamp(701_000), &standing(true, 2, &[]))
                .is_empty()
        );
        let again = watch.look(&CONFIG, Timestamp(731_000), &standing(true, 2, &[]));
        assert_eq!(
            again,
            [Notice::Short {
                since: Timestamp(701_000)
            }]
        );
    }

    #[test]
    fn idle_nodes_are_told_once_and_one_is_always_left() {
        let mut watch = CapacityWatch::default();
        let mut look = |at: u64, standing: &Standing| watch.look(&CONFIG, Timestamp(at), standing);
        let idle = |nodes: &[u128]| Notice::Idle {
            nodes: nodes.iter().map(|n| node_id(*n)).collect(),
        };
        assert!(look(0, &standing(false, 2, &[1, 2])).is_empty());
        assert_eq!(look(600_000, &standing(false, 2, &[1, 2])), [idle(&[1])]);
        assert!(look(601_000, &standing(false, 2, &[1, 2])).is_empty());
        assert_eq!(
            look(900_000, &standing(false, 2, &[1, 2])),
            [idle(&[1])],
            "again"
        );
        assert_eq!(
            look(901_000, &standing(false, 3, &[1, 2])),
            [idle(&[1, 2])],
            "others"
        );
        // Work begins the time anew, and what is short is not idle.
        assert!(look(902_000, &standing(false, 3, &[])).is_empty());
        assert!(look(903_000, &standing(false, 3, &[1])).is_empty());
        assert!(look(1_503_000, &standing(true, 3, &[1])).is_empty());
        assert_eq!(look(1_504_000, &standing(false, 3, &[1])), [idle(&[1])]);
        assert!(
            look(1_505_000, &standing(false, 1, &[1])).is_empty(),
            "the only one"
        );
    }
}
