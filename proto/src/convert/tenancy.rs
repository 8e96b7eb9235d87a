//! Projects and namespaces.

use coracle_model::{Namespace, Project, Timestamp};

use super::{ConvertError, Wire, required};
use crate::v1;

impl From<Project> for v1::Project {
    fn from(value: Project) -> Self {
        Self {
            id: value.id.to_wire(),
            name: value.name.into(),
            created_at: value.created_at.0,
        }
    }
}

impl TryFrom<v1::Project> for Project {
    type Error = ConvertError;
    fn try_from(value: v1::Project) -> Result<Self, ConvertError> {
        Ok(Self {
            id: Wire::from_wire("id", value.id)?,
            name: Wire::from_wire("name", value.name)?,
            created_at: Timestamp(value.created_at),
        })
    }
}

impl From<Namespace> for v1::Namespace {
    fn from(value: Namespace) -> Self {
        Self {
            id: value.id.to_wire(),
            project: value.project.to_wire(),
            name: value.name.into(),
            description: value.description,
            env: Some(value.env.into()),
            created_at: value.created_at.0,
        }
    }
}

impl TryFrom<v1::Namespace> for Namespace {
    type Error = ConvertError;
    fn try_from(value: v1::Namespace) -> Result<Self, ConvertError> {
        Ok(Self {
            id: Wire::from_wire("id", value.id)?,
            project: Wire::from_wire("project", value.project)?,
            name: Wire::from_wire("name", value.name)?,
            description: value.description,
            env: required("env", value.env)?,
            created_at: Timestamp(value.created_at),
        })
    }
}
