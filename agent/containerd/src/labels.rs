//! What a container is, written on its record in containerd, so that the next process can tell.

use std::collections::HashMap;

use coracle_model::{InstanceId, Memory, MilliCpu, RevisionId, RuntimeName, Timestamp};

const SLOT: &str = "coracle.slot";
const KIND: &str = "coracle.kind";
const INSTANCE: &str = "coracle.instance";
const REVISION: &str = "coracle.revision";
const RUNTIME: &str = "coracle.runtime";
const MEMORY: &str = "coracle.memory-mib";
const CPU: &str = "coracle.cpu-millis";
const CONCURRENCY: &str = "coracle.concurrency";
const STARTED: &str = "coracle.started";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Role {
    Stem,
    Build,
    Instance(Identity),
}

/// Enough to adopt an instance without asking anybody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) id: InstanceId,
    pub(crate) revision: RevisionId,
    pub(crate) runtime: RuntimeName,
    pub(crate) memory: Memory,
    pub(crate) cpu: MilliCpu,
    pub(crate) concurrency: u32,
    pub(crate) started_at: Timestamp,
}

/// A container's id: unique on the machine, and short, since it is part of a socket's path.
pub(crate) fn new_id() -> String {
    let mut id = uuid::Uuid::new_v4().simple().to_string();
    id.truncate(12);
    id
}

/// Whether a name could be [`new_id`]'s.
pub(crate) fn is_id(name: &str) -> bool {
    name.len() == 12
        && name
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

pub(crate) fn encode(role: &Role, slot: u16) -> HashMap<String, String> {
    let kind = match role {
        Role::Stem => "stem",
        Role::Build => "build",
        Role::Instance(_) => "instance",
    };
    let mut labels = vec![(KIND, kind.to_owned()), (SLOT, slot.to_string())];
    if let Role::Instance(identity) = role {
        labels.extend([
            (INSTANCE, identity.id.to_string()),
            (REVISION, identity.revision.to_string()),
            (RUNTIME, identity.runtime.to_string()),
            (MEMORY, identity.memory.mib().to_string()),
            (CPU, identity.cpu.get().to_string()),
            (CONCURRENCY, identity.concurrency.to_string()),
            (STARTED, identity.started_at.millis().to_string()),
        ]);
    }
    labels
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// The instance and slot of a record; `None` for everything that cannot be adopted.
pub(crate) fn decode(labels: &HashMap<String, String>) -> Option<(Identity, u16)> {
    let get = |name: &str| labels.get(name).map(String::as_str);
    if get(KIND) != Some("instance") {
        return None;
    }
    let identity = Identity {
        id: get(INSTANCE)?.parse().ok()?,
        revision: get(REVISION)?.parse().ok()?,
        runtime: get(RUNTIME)?.parse().ok()?,
        memory: Memory::from_mib(get(MEMORY)?.parse().ok()?).ok()?,
        cpu: MilliCpu::new(get(CPU)?.parse().ok()?).ok()?,
        concurrency: get(CONCURRENCY)?.parse().ok()?,
        started_at: Timestamp(get(STARTED)?.parse().ok()?),
    };
    Some((identity, get(SLOT)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_survives_and_nothing_else_is_taken_for_one() {
        let identity = Identity {
            id: uuid::Uuid::from_u128(1).into(),
            revision: RevisionId {
                function: uuid::Uuid::from_u128(2).into(),
                number: 3,
            },
            runtime: "python3.11".parse().expect("a name"),
            memory: Memory::from_mib(128).expect("in bounds"),
            cpu: MilliCpu::new(250).expect("in bounds"),
            concurrency: 4,
            started_at: Timestamp(1_700_000_000_000),
        };
        let labels = encode(&Role::Instance(identity.clone()), 9);
        assert_eq!(decode(&labels), Some((identity, 9)));
        assert_eq!(decode(&encode(&Role::Stem, 9)), None);
        let mut broken = labels;
        broken.insert(MEMORY.to_owned(), "much".to_owned());
        assert_eq!(decode(&broken), None);
    }

    #[test]
    fn ids_fit_containerds_rule() {
        let id = new_id();
        assert!(is_id(&id), "{id}");
        assert!(id.bytes().all(|b| b.is_ascii_alphanumeric()));
        assert!(!is_id("agent.sock") && !is_id("resolv.conf0"));
    }
}
