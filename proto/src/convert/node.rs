//! Nodes, their resources, and the stamps of orders to them.

use coracle_model::{
    RuntimeName, Stamp, Timestamp,
    node::{Node, Resources},
};

use super::{ConvertError, Wire, required};
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
