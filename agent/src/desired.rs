//! What the leader wants of this node: a snapshot, then deltas on top of it.

use std::{collections::BTreeMap, sync::Arc};

use coracle_model::{
    BuildId, InstanceId, InstanceSpec, RevisionId, RevisionSettings, RuntimeName, Timestamp,
};
use coracle_proto::{ConvertError, Wire, required, v1};

/// One instance that should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    pub spec: Arc<InstanceSpec>,
    /// It should end: finish what runs, at the latest by this time.
    pub drain: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildOrder {
    pub id: BuildId,
    pub revision: RevisionId,
    pub settings: RevisionSettings,
}

/// The whole of it, as of the newest stamp accepted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    pub instances: BTreeMap<InstanceId, Want>,
    pub builds: BTreeMap<BuildId, Arc<BuildOrder>>,
    /// Idle stems to keep.
    pub stems: BTreeMap<RuntimeName, u32>,
}

impl Desired {
    pub fn from_snapshot(wire: v1::Assignment) -> Result<Self, ConvertError> {
        let mut desired = Self {
            stems: stems(wire.stems)?,
            ..Self::default()
        };
        desired.upsert(wire.instances, wire.builds)?;
        Ok(desired)
    }

    /// On an error nothing is changed: the caller asks for a snapshot.
    pub fn apply(&mut self, wire: v1::AssignmentDelta) -> Result<(), ConvertError> {
        let mut next = Self::default();
        next.upsert(wire.upsert, wire.builds_upsert)?;
        let removed: Vec<InstanceId> = Wire::from_wire("remove", wire.remove)?;
        let cancelled: Vec<BuildId> = Wire::from_wire("builds_remove", wire.builds_remove)?;
        if wire.stems_changed {
            self.stems = stems(wire.stems)?;
        }
        self.instances.extend(next.instances);
        self.builds.extend(next.builds);
        self.instances.retain(|id, _| !removed.contains(id));
        self.builds.retain(|id, _| !cancelled.contains(id));
        Ok(())
    }

    fn upsert(
        &mut self,
        instances: Vec<v1::DesiredInstance>,
        builds: Vec<v1::BuildOrder>,
    ) -> Result<(), ConvertError> {
        for wire in instances {
            let spec: InstanceSpec = required("instances.spec", wire.spec)?;
            let drain = wire.drain.then_some(Timestamp(wire.drain_deadline));
            self.instances.insert(
                spec.id,
                Want {
                    spec: Arc::new(spec),
                    drain,
                },
            );
        }
        for wire in builds {
            let order = BuildOrder {
                id: Wire::from_wire("builds.build", wire.build)?,
                revision: required("builds.revision", wire.revision)?,
                settings: required("builds.settings", wire.settings)?,
            };
            self.builds.insert(order.id, Arc::new(order));
        }
        Ok(())
    }
}

fn stems(wire: BTreeMap<String, u32>) -> Result<BTreeMap<RuntimeName, u32>, ConvertError> {
    wire.into_iter()
        .map(|(name, count)| Ok((Wire::from_wire("stems", name)?, count)))
        .collect()
}
