//! Changes of keys and tokens.

use coracle_model::{
    Timestamp,
    operation::{CreateKey, CreateToken, UpdateKey},
};

use crate::{
    convert::{ConvertError, Wire, each, required},
    v1,
};

impl From<CreateKey> for v1::CreateKey {
    fn from(value: CreateKey) -> Self {
        Self {
            id: value.id.to_wire(),
            project: value.project.to_wire(),
            name: value.name.into(),
            description: value.description,
            hash: value.hash.to_wire(),
            functions: value.functions.into_iter().map(Into::into).collect(),
            expires_at: value.expires_at.map(Timestamp::millis),
        }
    }
}

impl TryFrom<v1::CreateKey> for CreateKey {
    type Error = ConvertError;
    fn try_from(value: v1::CreateKey) -> Result<Self, ConvertError> {
        Ok(Self {
            id: Wire::from_wire("id", value.id)?,
            project: Wire::from_wire("project", value.project)?,
            name: Wire::from_wire("name", value.name)?,
            description: value.description,
            hash: Wire::from_wire("hash", value.hash)?,
            functions: each("functions", value.functions)?,
            expires_at: value.expires_at.map(Timestamp),
        })
    }
}

impl From<UpdateKey> for v1::UpdateKey {
    fn from(value: UpdateKey) -> Self {
        Self {
            project: value.project.to_wire(),
            name: value.name.into(),
            description: value.description,
            functions: value.functions.map(|functions| v1::FunctionRefs {
                items: functions.into_iter().map(Into::into).collect(),
            }),
            // 0 means "for ever", so an expiry at the epoch itself becomes a millisecond later:
            // as long past, and never the opposite of what was asked.
            expires_at: value
                .expires_at
                .map(|change| change.map_or(0, |at| at.0.max(1))),
        }
    }
}

impl TryFrom<v1::UpdateKey> for UpdateKey {
    type Error = ConvertError;
    fn try_from(value: v1::UpdateKey) -> Result<Self, ConvertError> {
        let functions = value
            .functions
            .map(|refs| each("functions", refs.items))
            .transpose()?;
        Ok(Self {
            project: Wire::from_wire("project", value.project)?,
            name: Wire::from_wire("name", value.name)?,
            description: value.description,
            functions,
            expires_at: value
                .expires_at
                .map(|at| (at != 0).then_some(Timestamp(at))),
        })
    }
}

impl From<CreateToken> for v1::CreateToken {
    fn from(value: CreateToken) -> Self {
        Self {
            id: value.id.to_wire(),
            description: value.description,
            hash: value.hash.to_wire(),
            role: Some(value.role.into()),
            expires_at: value.expires_at.map(Timestamp::millis),
        }
    }
}

impl TryFrom<v1::CreateToken> for CreateToken {
    type Error = ConvertError;
    fn try_from(value: v1::CreateToken) -> Result<Self, ConvertError> {
        Ok(Self {
            id: Wire::from_wire("id", value.id)?,
            description: value.description,
            hash: Wire::from_wire("hash", value.hash)?,
            role: required("role", value.role)?,
            expires_at: value.expires_at.map(Timestamp),
        })
    }
}
