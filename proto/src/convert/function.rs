//! Functions and revisions.

use coracle_model::{
    Function, FunctionId, PlacementRules, Revision, RevisionId, Spread, Stage, Timestamp,
};

use super::{ConvertError, Wire, optional, required, settings::instance_env};
use crate::v1;

impl From<RevisionId> for v1::RevisionId {
    fn from(value: RevisionId) -> Self {
        Self {
            function: value.function.to_wire(),
            number: value.number,
        }
    }
}

impl TryFrom<v1::RevisionId> for RevisionId {
    type Error = ConvertError;
    fn try_from(value: v1::RevisionId) -> Result<Self, ConvertError> {
        let function = Wire::from_wire("function", value.function)?;
        revision("number", function, value.number)
    }
}

/// Numbers count up from 1, so a zero is a field that was not set.
fn revision(field: &str, function: FunctionId, number: u32) -> Result<RevisionId, ConvertError> {
    if number == 0 {
        return Err(ConvertError::missing(field));
    }
    Ok(RevisionId { function, number })
}

impl From<Function> for v1::Function {
    /// `latest` and `serving` travel as numbers: they are always revisions of this function.
    fn from(value: Function) -> Self {
        Self {
            id: value.id.to_wire(),
            project: value.project.to_wire(),
            namespace: value.namespace.to_wire(),
            name: value.name.into(),
            description: value.description,
            annotations: value.annotations,
            key_required: value.key_required,
            disabled: value.disabled,
            scale: Some(value.scale.into()),
            latest: value.latest.number,
            serving: value.serving.map(|revision| revision.number),
            created_at: value.created_at.0,
            updated_at: value.updated_at.0,
            placement: unless_default(value.placement),
        }
    }
}

impl TryFrom<v1::Function> for Function {
    type Error = ConvertError;
    fn try_from(value: v1::Function) -> Result<Self, ConvertError> {
        let id = Wire::from_wire("id", value.id)?;
        Ok(Self {
            id,
            project: Wire::from_wire("project", value.project)?,
            namespace: Wire::from_wire("namespace", value.namespace)?,
            name: Wire::from_wire("name", value.name)?,
            description: value.description,
            annotations: value.annotations,
            key_required: value.key_required,
            disabled: value.disabled,
            scale: required("scale", value.scale)?,
            placement: optional("placement", value.placement)?.unwrap_or_default(),
            latest: revision("latest", id, value.latest)?,
            serving: value
                .serving
                .map(|n| revision("serving", id, n))
                .transpose()?,
            created_at: Timestamp(value.created_at),
            updated_at: Timestamp(value.updated_at),
        })
    }
}

/// Absent where nothing is asked for, as it was before there were rules.
pub(super) fn unless_default(rules: PlacementRules) -> Option<v1::Placement> {
    (!rules.is_default()).then(|| rules.into())
}

impl From<PlacementRules> for v1::Placement {
    fn from(value: PlacementRules) -> Self {
        use v1::placement::Spread as Wired;
        let spread = match value.spread {
            Spread::Auto => Wired::Auto,
            Spread::Node => Wired::Node,
            Spread::Zone => Wired::Zone,
        };
        Self {
            required: value.required.into(),
            preferred: value.preferred.into(),
            spread: spread.into(),
        }
    }
}

impl TryFrom<v1::Placement> for PlacementRules {
    type Error = ConvertError;
    fn try_from(value: v1::Placement) -> Result<Self, ConvertError> {
        use v1::placement::Spread as Wired;
        let spread = Wired::try_from(value.spread).map_err(|_| {
            ConvertError::new("spread", format_args!("unknown value {}", value.spread))
        })?;
        Ok(Self {
            required: Wire::from_wire("required", value.required)?,
            preferred: Wire::from_wire("preferred", value.preferred)?,
            spread: match spread {
                Wired::Auto => Spread::Auto,
                Wired::Node => Spread::Node,
                Wired::Zone => Spread::Zone,
            },
        })
    }
}

impl From<Stage> for v1::Stage {
    fn from(value: Stage) -> Self {
        use v1::stage::Kind;
        let (kind, reason) = match value {
            Stage::Received => (Kind::Received, String::new()),
            Stage::Building => (Kind::Building, String::new()),
            Stage::Deploying => (Kind::Deploying, String::new()),
            Stage::Running => (Kind::Running, String::new()),
            Stage::BuildFailed { reason } => (Kind::BuildFailed, reason),
            Stage::DeployFailed { reason } => (Kind::DeployFailed, reason),
            Stage::Abandoned => (Kind::Abandoned, String::new()),
        };
        Self {
            kind: kind.into(),
            reason,
        }
    }
}

impl TryFrom<v1::Stage> for Stage {
    type Error = ConvertError;
    fn try_from(value: v1::Stage) -> Result<Self, ConvertError> {
        use v1::stage::Kind;
        let unknown = || ConvertError::new("kind", format_args!("unknown value {}", value.kind));
        Ok(match Kind::try_from(value.kind).map_err(|_| unknown())? {
            Kind::Unspecified => return Err(ConvertError::missing("kind")),
            Kind::Received => Self::Received,
            Kind::Building => Self::Building,
            Kind::Deploying => Self::Deploying,
            Kind::Running => Self::Running,
            Kind::BuildFailed => Self::BuildFailed {
                reason: value.reason,
            },
            Kind::DeployFailed => Self::DeployFailed {
                reason: value.reason,
            },
            Kind::Abandoned => Self::Abandoned,
        })
    }
}

impl From<Revision> for v1::Revision {
    fn from(value: Revision) -> Self {
        Self {
            id: Some(value.id.into()),
            settings: Some(value.settings.into()),
            instance_env: Some(value.instance_env.into()),
            stage: Some(value.stage.into()),
            build: value.build.map(Into::into),
            created_at: value.created_at.0,
            updated_at: value.updated_at.0,
        }
    }
}

impl TryFrom<v1::Revision> for Revision {
    type Error = ConvertError;
    fn try_from(value: v1::Revision) -> Result<Self, ConvertError> {
        Ok(Self {
            id: required("id", value.id)?,
            settings: required("settings", value.settings)?,
            instance_env: instance_env("instance_env", value.instance_env)?,
            stage: required("stage", value.stage)?,
            build: optional("build", value.build)?,
            created_at: Timestamp(value.created_at),
            updated_at: Timestamp(value.updated_at),
        })
    }
}
