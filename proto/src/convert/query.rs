//! What a management client reads.

use coracle_model::{
    Timestamp,
    node::{NodeChange, NodeState},
    query::{
        Decision, ExitRecord, FunctionRuntimeView, FunctionView, InstanceView, NodeInstance,
        NodeView,
    },
};

use super::{ConvertError, Wire, each, enumeration, optional, required, unspecified};
use crate::v1;

impl From<FunctionView> for v1::FunctionView {
    fn from(value: FunctionView) -> Self {
        Self {
            function: Some(value.function.into()),
            namespace: value.namespace.into(),
            project: value.project.into(),
            latest: Some(value.latest.into()),
            serving: value.serving.map(Into::into),
            keys: value.keys.to_wire(),
            wanted: value.wanted,
            ready: value.ready,
        }
    }
}

impl TryFrom<v1::FunctionView> for FunctionView {
    type Error = ConvertError;
    fn try_from(value: v1::FunctionView) -> Result<Self, ConvertError> {
        Ok(Self {
            function: required("function", value.function)?,
            namespace: Wire::from_wire("namespace", value.namespace)?,
            project: Wire::from_wire("project", value.project)?,
            latest: required("latest", value.latest)?,
            serving: optional("serving", value.serving)?,
            keys: Wire::from_wire("keys", value.keys)?,
            wanted: value.wanted,
            ready: value.ready,
        })
    }
}

impl From<InstanceView> for v1::InstanceView {
    fn from(value: InstanceView) -> Self {
        Self {
            id: value.id.to_wire(),
            revision: Some(value.revision.into()),
            node: value.node.to_wire(),
            state: Some(value.state.into()),
            since: value.since.0,
            placement: value.placement,
        }
    }
}

impl TryFrom<v1::InstanceView> for InstanceView {
    type Error = ConvertError;
    fn try_from(value: v1::InstanceView) -> Result<Self, ConvertError> {
        Ok(Self {
            id: Wire::from_wire("id", value.id)?,
            revision: required("revision", value.revision)?,
            node: Wire::from_wire("node", value.node)?,
            state: required("state", value.state)?,
            since: Timestamp(value.since),
            placement: value.placement,
        })
    }
}

impl From<Decision> for v1::Decision {
    fn from(value: Decision) -> Self {
        Self {
            at: value.at.0,
            from: value.from,
            to: value.to,
            reason: value.reason,
        }
    }
}

impl TryFrom<v1::Decision> for Decision {
    type Error = ConvertError;
    fn try_from(value: v1::Decision) -> Result<Self, ConvertError> {
        if value.reason.is_empty() {
            return Err(ConvertError::missing("reason"));
        }
        Ok(Self {
            at: Timestamp(value.at),
            from: value.from,
            to: value.to,
            reason: value.reason,
        })
    }
}

impl From<ExitRecord> for v1::ExitRecord {
    fn from(value: ExitRecord) -> Self {
        Self {
            at: value.at.0,
            instance: value.instance.to_wire(),
            revision: Some(value.revision.into()),
            reason: Some(value.reason.into()),
            retry_at: value.retry_at.map(Timestamp::millis),
        }
    }
}

impl TryFrom<v1::ExitRecord> for ExitRecord {
    type Error = ConvertError;
    fn try_from(value: v1::ExitRecord) -> Result<Self, ConvertError> {
        Ok(Self {
            at: Timestamp(value.at),
            instance: Wire::from_wire("instance", value.instance)?,
            revision: required("revision", value.revision)?,
            reason: required("reason", value.reason)?,
            retry_at: value.retry_at.map(Timestamp),
        })
    }
}

impl From<NodeInstance> for v1::NodeInstance {
    fn from(value: NodeInstance) -> Self {
        Self {
            instance: Some(value.instance.into()),
            project: value.project,
            namespace: value.namespace,
            function: value.function,
        }
    }
}

impl TryFrom<v1::NodeInstance> for NodeInstance {
    type Error = ConvertError;
    fn try_from(value: v1::NodeInstance) -> Result<Self, ConvertError> {
        Ok(Self {
            instance: required("instance", value.instance)?,
            project: value.project,
            namespace: value.namespace,
            function: value.function,
        })
    }
}

impl From<NodeView> for v1::NodeView {
    fn from(value: NodeView) -> Self {
        Self {
            alive: value.state != NodeState::Lost,
            node: Some(value.node.into()),
            used: Some(value.used.into()),
            instances: value.instances,
            state: v1::node_view::State::from(value.state).into(),
            cordoned: value.cordoned,
            draining: value.draining.map(Into::into),
            running: value.running,
            builds: value.builds,
            heard_at: value.heard_at.map(Timestamp::millis),
            joined_at: value.joined_at.map(Timestamp::millis),
            waiting: value.waiting,
            placed: value.placed.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<v1::NodeView> for NodeView {
    type Error = ConvertError;
    fn try_from(value: v1::NodeView) -> Result<Self, ConvertError> {
        Ok(Self {
            node: required("node", value.node)?,
            state: enumeration::<v1::node_view::State, _>("state", value.state)?,
            cordoned: value.cordoned,
            draining: optional("draining", value.draining)?,
            used: required("used", value.used)?,
            instances: value.instances,
            running: value.running,
            builds: value.builds,
            heard_at: value.heard_at.map(Timestamp),
            joined_at: value.joined_at.map(Timestamp),
            waiting: value.waiting,
            placed: each("placed", value.placed)?,
        })
    }
}

impl From<NodeState> for v1::node_view::State {
    fn from(value: NodeState) -> Self {
        match value {
            NodeState::Ready => Self::Ready,
            NodeState::Cordoned => Self::Cordoned,
            NodeState::Draining => Self::Draining,
            NodeState::Drained => Self::Drained,
            NodeState::Silent => Self::Silent,
            NodeState::Lost => Self::Lost,
        }
    }
}

impl TryFrom<v1::node_view::State> for NodeState {
    type Error = ConvertError;
    fn try_from(value: v1::node_view::State) -> Result<Self, ConvertError> {
        use v1::node_view::State as Wired;
        Ok(match value {
            Wired::Unspecified => return Err(unspecified()),
            Wired::Ready => Self::Ready,
            Wired::Cordoned => Self::Cordoned,
            Wired::Draining => Self::Draining,
            Wired::Drained => Self::Drained,
            Wired::Silent => Self::Silent,
            Wired::Lost => Self::Lost,
        })
    }
}

impl From<NodeChange> for v1::change_node_request::Change {
    fn from(value: NodeChange) -> Self {
        use v1::change_node_request::{Drain, Nothing, Remove};
        match value {
            NodeChange::Cordon => Self::Cordon(Nothing {}),
            NodeChange::Uncordon => Self::Uncordon(Nothing {}),
            NodeChange::Drain { deadline, force } => Self::Drain(Drain {
                deadline: deadline.map(Timestamp::millis),
                force,
            }),
            NodeChange::Remove { force } => Self::Remove(Remove { force }),
        }
    }
}

impl TryFrom<v1::change_node_request::Change> for NodeChange {
    type Error = ConvertError;
    /// Never fails today.
    fn try_from(value: v1::change_node_request::Change) -> Result<Self, ConvertError> {
        use v1::change_node_request::Change;
        Ok(match value {
            Change::Cordon(_) => Self::Cordon,
            Change::Uncordon(_) => Self::Uncordon,
            Change::Drain(drain) => Self::Drain {
                deadline: drain.deadline.map(Timestamp),
                force: drain.force,
            },
            Change::Remove(remove) => Self::Remove {
                force: remove.force,
            },
        })
    }
}

impl From<FunctionRuntimeView> for v1::DescribeFunctionResponse {
    fn from(value: FunctionRuntimeView) -> Self {
        Self {
            instances: value.instances.into_iter().map(Into::into).collect(),
            decisions: value.decisions.into_iter().map(Into::into).collect(),
            exits: value.exits.into_iter().map(Into::into).collect(),
            shortage: value.shortage,
        }
    }
}

impl TryFrom<v1::DescribeFunctionResponse> for FunctionRuntimeView {
    type Error = ConvertError;
    fn try_from(value: v1::DescribeFunctionResponse) -> Result<Self, ConvertError> {
        Ok(Self {
            instances: each("instances", value.instances)?,
            decisions: each("decisions", value.decisions)?,
            exits: each("exits", value.exits)?,
            shortage: value.shortage,
        })
    }
}
