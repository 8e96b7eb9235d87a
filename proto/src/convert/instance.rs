//! Instances: what is ordered, how they stand, why they ended.

use coracle_model::{ExitReason, InstanceSpec, InstanceState};

use super::{ConvertError, Wire, enumeration, required, settings::instance_env};
use crate::v1;

impl From<InstanceSpec> for v1::InstanceSpec {
    fn from(value: InstanceSpec) -> Self {
        Self {
            id: value.id.to_wire(),
            revision: Some(value.revision.into()),
            project: value.project.into(),
            namespace: value.namespace.into(),
            function: value.function.into(),
            runtime: value.runtime.into(),
            handler: Some(value.handler.into()),
            env: Some(value.env.into()),
            memory_mib: value.memory.to_wire(),
            cpu_millis: value.cpu.to_wire(),
            concurrency: value.concurrency.to_wire(),
            network: v1::Network::from(value.network).into(),
            timeout_secs: value.timeout.to_wire(),
            init_timeout_secs: value.init_timeout.to_wire(),
            code: value.code.to_wire(),
            dependencies: value.dependencies.to_wire(),
        }
    }
}

impl TryFrom<v1::InstanceSpec> for InstanceSpec {
    type Error = ConvertError;
    fn try_from(value: v1::InstanceSpec) -> Result<Self, ConvertError> {
        Ok(Self {
            id: Wire::from_wire("id", value.id)?,
            revision: required("revision", value.revision)?,
            project: Wire::from_wire("project", value.project)?,
            namespace: Wire::from_wire("namespace", value.namespace)?,
            function: Wire::from_wire("function", value.function)?,
            runtime: Wire::from_wire("runtime", value.runtime)?,
            handler: required("handler", value.handler)?,
            env: instance_env("env", value.env)?,
            memory: Wire::from_wire("memory_mib", value.memory_mib)?,
            cpu: Wire::from_wire("cpu_millis", value.cpu_millis)?,
            concurrency: Wire::from_wire("concurrency", value.concurrency)?,
            network: enumeration::<v1::Network, _>("network", value.network)?,
            timeout: Wire::from_wire("timeout_secs", value.timeout_secs)?,
            init_timeout: Wire::from_wire("init_timeout_secs", value.init_timeout_secs)?,
            code: Wire::from_wire("code", value.code)?,
            dependencies: Wire::from_wire("dependencies", value.dependencies)?,
        })
    }
}

impl From<ExitReason> for v1::ExitReason {
    fn from(value: ExitReason) -> Self {
        use v1::exit_reason as wire;
        use wire::{Empty, Kind};
        let kind = match value {
            ExitReason::Stopped => Kind::Stopped(Empty {}),
            ExitReason::TimedOut => Kind::TimedOut(Empty {}),
            ExitReason::OutOfMemory { limit_mib } => {
                Kind::OutOfMemory(wire::OutOfMemory { limit_mib })
            }
            ExitReason::Exited { code } => Kind::Exited(wire::Exited { code }),
            ExitReason::Signaled { signal } => Kind::Signaled(wire::Signaled { signal }),
            ExitReason::InitFailed { message } => Kind::InitFailed(wire::Message { message }),
            ExitReason::InitTimedOut { seconds } => {
                Kind::InitTimedOut(wire::InitTimedOut { seconds })
            }
            ExitReason::LaunchFailed { message } => Kind::LaunchFailed(wire::Message { message }),
            ExitReason::Lost => Kind::Lost(Empty {}),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<v1::ExitReason> for ExitReason {
    type Error = ConvertError;
    fn try_from(value: v1::ExitReason) -> Result<Self, ConvertError> {
        use v1::exit_reason::Kind;
        Ok(
            match value.kind.ok_or_else(|| ConvertError::missing("kind"))? {
                Kind::Stopped(_) => Self::Stopped,
                Kind::TimedOut(_) => Self::TimedOut,
                Kind::OutOfMemory(m) => Self::OutOfMemory {
                    limit_mib: m.limit_mib,
                },
                Kind::Exited(m) => Self::Exited { code: m.code },
                Kind::Signaled(m) => Self::Signaled { signal: m.signal },
                Kind::InitFailed(m) => Self::InitFailed { message: m.message },
                Kind::InitTimedOut(m) => Self::InitTimedOut { seconds: m.seconds },
                Kind::LaunchFailed(m) => Self::LaunchFailed { message: m.message },
                Kind::Lost(_) => Self::Lost,
            },
        )
    }
}

impl From<InstanceState> for v1::InstanceState {
    fn from(value: InstanceState) -> Self {
        use v1::instance_state::Kind;
        let (kind, exit) = match value {
            InstanceState::Starting => (Kind::Starting, None),
            InstanceState::Ready => (Kind::Ready, None),
            InstanceState::Draining => (Kind::Draining, None),
            InstanceState::Exited(reason) => (Kind::Exited, Some(reason.into())),
        };
        Self {
            kind: kind.into(),
            exit,
        }
    }
}

impl TryFrom<v1::InstanceState> for InstanceState {
    type Error = ConvertError;
    fn try_from(value: v1::InstanceState) -> Result<Self, ConvertError> {
        use v1::instance_state::Kind;
        let unknown = |_| ConvertError::new("kind", format_args!("unknown value {}", value.kind));
        Ok(match Kind::try_from(value.kind).map_err(unknown)? {
            Kind::Unspecified => return Err(ConvertError::missing("kind")),
            Kind::Starting => Self::Starting,
            Kind::Ready => Self::Ready,
            Kind::Draining => Self::Draining,
            Kind::Exited => Self::Exited(required("exit", value.exit)?),
        })
    }
}
