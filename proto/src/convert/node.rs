//! Nodes, their resources, and the stamps of orders to them.

use std::collections::BTreeMap;

use coracle_model::{
    Labels, RuntimeName, Stamp, Timestamp,
    node::{Node, NodeDrain, NodeRecord, Resources},
};

use super::{ConvertError, Wire, optional, required};
use crate::v1;

impl From<Stamp> for v1::Stamp {
    fn from(value: Stamp) -> Self {
        Self {
            incarnation: value.incarnation,
            term: value.term,
            sequence: value.sequence,
        }
    }
}

impl TryFrom<v1::Stamp> for Stamp {
    type Error = ConvertError;
    /// Never fails today: every stamp is a stamp, also the zero one of an agent that accepted none.
    fn try_from(value: v1::Stamp) -> Result<Self, ConvertError> {
        Ok(Self {
            incarnation: value.incarnation,
            term: value.term,
            sequence: value.sequence,
        })
    }
}

impl From<Resources> for v1::Resources {
    fn from(value: Resources) -> Self {
        Self {
            memory_mib: value.memory_mib,
            cpu_millis: value.cpu_millis,
        }
    }
}

impl TryFrom<v1::Resources> for Resources {
    type Error = ConvertError;
    /// Never fails today: a node may well have nothing to give.
    fn try_from(value: v1::Resources) -> Result<Self, ConvertError> {
        Ok(Self {
            memory_mib: value.memory_mib,
            cpu_millis: value.cpu_millis,
        })
    }
}

impl From<Node> for v1::Node {
    fn from(value: Node) -> Self {
        Self {
            id: value.id.to_wire(),
            name: value.name,
            version: value.version,
            labels: value.labels,
            allocatable: Some(value.allocatable.into()),
            address: value.address,
            stems: value
                .stems
                .into_iter()
                .map(|(name, count)| (name.into(), count))
                .collect(),
            images: value.images.to_wire(),
            reported_at: value.reported_at.0,
            schedulable: value.schedulable,
        }
    }
}

impl TryFrom<v1::Node> for Node {
    type Error = ConvertError;
    fn try_from(value: v1::Node) -> Result<Self, ConvertError> {
        if value.name.is_empty() {
            return Err(ConvertError::missing("name"));
        }
        let stem = |(name, count)| Ok((RuntimeName::from_wire("stems", name)?, count));
        Ok(Self {
            id: Wire::from_wire("id", value.id)?,
            name: value.name,
            version: value.version,
            labels: value.labels,
            allocatable: required("allocatable", value.allocatable)?,
            address: value.address,
            stems: value
                .stems
                .into_iter()
                .map(stem)
                .collect::<Result<_, ConvertError>>()?,
            images: Wire::from_wire("images", value.images)?,
            reported_at: Timestamp(value.reported_at),
            schedulable: value.schedulable,
        })
    }
}

impl Wire for Labels {
    type Form = BTreeMap<String, String>;

    fn to_wire(&self) -> Self::Form {
        self.clone().into()
    }

    fn from_wire(field: &str, form: Self::Form) -> Result<Self, ConvertError> {
        Self::new(form).map_err(|invalid| {
            let inside = invalid.field.strip_prefix("labels").unwrap_or_default();
            ConvertError::new(format!("{field}{inside}"), invalid.reason)
        })
    }
}

impl From<NodeDrain> for v1::NodeDrain {
    fn from(value: NodeDrain) -> Self {
        Self {
            since: value.since.0,
            deadline: value.deadline.map(Timestamp::millis),
            force: value.force,
        }
    }
}

impl TryFrom<v1::NodeDrain> for NodeDrain {
    type Error = ConvertError;
    /// Never fails today.
    fn try_from(value: v1::NodeDrain) -> Result<Self, ConvertError> {
        Ok(Self {
            since: Timestamp(value.since),
            deadline: value.deadline.map(Timestamp),
            force: value.force,
        })
    }
}

impl From<NodeRecord> for v1::NodeRecord {
    fn from(value: NodeRecord) -> Self {
        Self {
            id: value.id.to_wire(),
            name: value.name.into(),
            labels: value.labels.into(),
            cordoned: value.cordoned,
            draining: value.draining.map(Into::into),
            joined_at: value.joined_at.0,
        }
    }
}

impl TryFrom<v1::NodeRecord> for NodeRecord {
    type Error = ConvertError;
    fn try_from(value: v1::NodeRecord) -> Result<Self, ConvertError> {
        Ok(Self {
            id: Wire::from_wire("id", value.id)?,
            name: Wire::from_wire("name", value.name)?,
            labels: Wire::from_wire("labels", value.labels)?,
            cordoned: value.cordoned,
            draining: optional("draining", value.draining)?,
            joined_at: Timestamp(value.joined_at),
        })
    }
}
