//! What a revision is made of.

use coracle_model::{
    BuildOutput, Convention, Env, Handler, Invalid, Network, RevisionSettings, ScaleBounds, Source,
};

use super::{ConvertError, Wire, enumeration, parsed, required, unspecified};
use crate::v1;

impl From<Env> for v1::Env {
    fn from(value: Env) -> Self {
        Self { vars: value.into() }
    }
}

impl TryFrom<v1::Env> for Env {
    type Error = ConvertError;
    fn try_from(value: v1::Env) -> Result<Self, ConvertError> {
        Self::new(value.vars).map_err(variable)
    }
}

/// What instances get: the namespace's variables under the function's, so up to twice as large as
/// what a client may choose for either.
pub(super) fn instance_env(field: &str, value: Option<v1::Env>) -> Result<Env, ConvertError> {
    let value = value.ok_or_else(|| ConvertError::missing(field))?;
    Env::from_overlay(value.vars).map_err(|invalid| variable(invalid).inside(field))
}

fn variable(invalid: Invalid) -> ConvertError {
    let field = match invalid.field.strip_prefix("env.") {
        Some(name) => format!("vars.{name}"),
        None => "vars".to_owned(),
    };
    ConvertError::new(field, invalid.reason)
}

impl From<ScaleBounds> for v1::ScaleBounds {
    fn from(value: ScaleBounds) -> Self {
        Self {
            min: value.min(),
            max: value.max(),
        }
    }
}

impl TryFrom<v1::ScaleBounds> for ScaleBounds {
    type Error = ConvertError;
    fn try_from(value: v1::ScaleBounds) -> Result<Self, ConvertError> {
        Self::new(value.min, value.max).map_err(|invalid| {
            let field = if invalid.field == "scale.max" {
                "max"
            } else {
                "min"
            };
            ConvertError::new(field, invalid.reason)
        })
    }
}

impl From<Convention> for v1::Convention {
    fn from(value: Convention) -> Self {
        match value {
            Convention::Kubeless => Self::Kubeless,
            Convention::Scaleway => Self::Scaleway,
            Convention::Scf => Self::Scf,
            Convention::Http => Self::Http,
        }
    }
}

impl TryFrom<v1::Convention> for Convention {
    type Error = ConvertError;
    fn try_from(value: v1::Convention) -> Result<Self, ConvertError> {
        Ok(match value {
            v1::Convention::Unspecified => return Err(unspecified()),
            v1::Convention::Kubeless => Self::Kubeless,
            v1::Convention::Scaleway => Self::Scaleway,
            v1::Convention::Scf => Self::Scf,
            v1::Convention::Http => Self::Http,
        })
    }
}

impl From<Network> for v1::Network {
    fn from(value: Network) -> Self {
        match value {
            Network::Egress => Self::Egress,
            Network::None => Self::None,
        }
    }
}

impl TryFrom<v1::Network> for Network {
    type Error = ConvertError;
    fn try_from(value: v1::Network) -> Result<Self, ConvertError> {
        Ok(match value {
            v1::Network::Unspecified => return Err(unspecified()),
            v1::Network::Egress => Self::Egress,
            v1::Network::None => Self::None,
        })
    }
}

impl From<Handler> for v1::Handler {
    fn from(value: Handler) -> Self {
        Self {
            entry: value.entry,
            convention: v1::Convention::from(value.convention).into(),
        }
    }
}

impl TryFrom<v1::Handler> for Handler {
    type Error = ConvertError;
    fn try_from(value: v1::Handler) -> Result<Self, ConvertError> {
        let convention = enumeration::<v1::Convention, _>("convention", value.convention)?;
        parsed("entry", Self::new(value.entry, convention))
    }
}

impl From<Source> for v1::Source {
    fn from(value: Source) -> Self {
        let kind = match value {
            Source::Inline { code } => v1::source::Kind::Inline(v1::source::Inline {
                code: code.to_wire(),
            }),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<v1::Source> for Source {
    type Error = ConvertError;
    fn try_from(value: v1::Source) -> Result<Self, ConvertError> {
        match value.kind.ok_or_else(|| ConvertError::missing("kind"))? {
            v1::source::Kind::Inline(inline) => Ok(Self::Inline {
                code: Wire::from_wire("inline.code", inline.code)?,
            }),
        }
    }
}

impl From<RevisionSettings> for v1::RevisionSettings {
    fn from(value: RevisionSettings) -> Self {
        Self {
            runtime: value.runtime.into(),
            runtime_requested: value.runtime_requested,
            handler: Some(value.handler.into()),
            source: Some(value.source.into()),
            dependencies: value.dependencies.to_wire(),
            env: Some(value.env.into()),
            memory_mib: value.memory.to_wire(),
            cpu_millis: value.cpu.to_wire(),
            timeout_secs: value.timeout.to_wire(),
            init_timeout_secs: value.init_timeout.to_wire(),
            concurrency: value.concurrency.to_wire(),
            network: v1::Network::from(value.network).into(),
        }
    }
}

impl TryFrom<v1::RevisionSettings> for RevisionSettings {
    type Error = ConvertError;
    fn try_from(value: v1::RevisionSettings) -> Result<Self, ConvertError> {
        Ok(Self {
            runtime: Wire::from_wire("runtime", value.runtime)?,
            runtime_requested: value.runtime_requested,
            handler: required("handler", value.handler)?,
            source: required("source", value.source)?,
            dependencies: Wire::from_wire("dependencies", value.dependencies)?,
            env: required("env", value.env)?,
            memory: Wire::from_wire("memory_mib", value.memory_mib)?,
            cpu: Wire::from_wire("cpu_millis", value.cpu_millis)?,
            timeout: Wire::from_wire("timeout_secs", value.timeout_secs)?,
            init_timeout: Wire::from_wire("init_timeout_secs", value.init_timeout_secs)?,
            concurrency: Wire::from_wire("concurrency", value.concurrency)?,
            network: enumeration::<v1::Network, _>("network", value.network)?,
        })
    }
}

impl From<BuildOutput> for v1::BuildOutput {
    fn from(value: BuildOutput) -> Self {
        Self {
            code: value.code.to_wire(),
            dependencies: value.dependencies.to_wire(),
            message: value.message,
        }
    }
}

impl TryFrom<v1::BuildOutput> for BuildOutput {
    type Error = ConvertError;
    fn try_from(value: v1::BuildOutput) -> Result<Self, ConvertError> {
        Ok(Self {
            code: Wire::from_wire("code", value.code)?,
            dependencies: Wire::from_wire("dependencies", value.dependencies)?,
            message: value.message,
        })
    }
}
