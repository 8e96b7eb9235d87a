//! The network between hosts: what is cut, lost, doubled and late.

use std::collections::BTreeMap;

/// A machine, as far as the network is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Host {
    Controller(u64),
    Agent(u64),
    Gateway(u64),
    Client(u64),
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Controller(id) => write!(f, "m{id}"),
            Self::Agent(id) => write!(f, "a{id}"),
            Self::Gateway(id) => write!(f, "g{id}"),
            Self::Client(id) => write!(f, "c{id}"),
        }
    }
}

/// Which directions are cut. Counted, since two faults may cut the same one.
#[derive(Debug, Default)]
pub(crate) struct Cuts(BTreeMap<(Host, Host), u32>);

impl Cuts {
    pub(crate) fn cut(&mut self, pairs: &[(Host, Host)]) {
        for pair in pairs {
            *self.0.entry(*pair).or_default() += 1;
        }
    }

    pub(crate) fn mend(&mut self, pairs: &[(Host, Host)]) {
        for pair in pairs {
            if let Some(count) = self.0.get_mut(pair) {
                *count -= 1;
                if *count == 0 {
                    self.0.remove(pair);
                }
            }
        }
    }

    pub(crate) fn is_cut(&self, from: Host, to: Host) -> bool {
        self.0.contains_key(&(from, to))
    }
}

/// Both directions between every one of these and every one of those.
pub(crate) fn between(these: &[Host], those: &[Host]) -> Vec<(Host, Host)> {
    let pairs = these
        .iter()
        .flat_map(|a| those.iter().flat_map(move |b| [(*a, *b), (*b, *a)]));
    pairs.filter(|(a, b)| a != b).collect()
}
