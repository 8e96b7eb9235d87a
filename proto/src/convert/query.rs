//! What a management client reads.

use coracle_model::{
    Timestamp,
    query::{Decision, ExitRecord, FunctionRuntimeView, FunctionView, InstanceView},
};

use super::{ConvertError, Wire, each, optional, required};
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

impl From<FunctionRuntimeView> for v1::DescribeFunctionResponse {
    fn from(value: FunctionRuntimeView) -> Self {
        Self {
            instances: value.instances.into_iter().map(Into::into).collect(),
            decisions: value.decisions.into_iter().map(Into::into).collect(),
            exits: value.exits.into_iter().map(Into::into).collect(),
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
        })
    }
}
