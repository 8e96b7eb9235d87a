//! Keys and tokens.

use coracle_model::{FunctionKey, FunctionRef, Timestamp, Token, TokenRole};

use super::{ConvertError, Wire, each, required};
use crate::v1;

impl From<FunctionRef> for v1::FunctionRef {
    fn from(value: FunctionRef) -> Self {
        Self {
            namespace: value.namespace.into(),
            name: value.name.into(),
        }
    }
}

impl TryFrom<v1::FunctionRef> for FunctionRef {
    type Error = ConvertError;
    fn try_from(value: v1::FunctionRef) -> Result<Self, ConvertError> {
        Ok(Self {
            namespace: Wire::from_wire("namespace", value.namespace)?,
            name: Wire::from_wire("name", value.name)?,
        })
    }
}

impl From<FunctionKey> for v1::FunctionKey {
    fn from(value: FunctionKey) -> Self {
        Self {
            id: value.id.to_wire(),
            project: value.project.to_wire(),
            name: value.name.into(),
            description: value.description,
            hash: value.hash.to_wire(),
            functions: value.functions.into_iter().map(Into::into).collect(),
            expires_at: value.expires_at.map(Timestamp::millis),
            created_at: value.created_at.0,
        }
    }
}

impl TryFrom<v1::FunctionKey> for FunctionKey {
    type Error = ConvertError;
    fn try_from(value: v1::FunctionKey) -> Result<Self, ConvertError> {
        Ok(Self {
            id: Wire::from_wire("id", value.id)?,
            project: Wire::from_wire("project", value.project)?,
            name: Wire::from_wire("name", value.name)?,
            description: value.description,
            hash: Wire::from_wire("hash", value.hash)?,
            functions: each("functions", value.functions)?,
            expires_at: value.expires_at.map(Timestamp),
            created_at: Timestamp(value.created_at),
        })
    }
}

impl From<TokenRole> for v1::TokenRole {
    fn from(value: TokenRole) -> Self {
        use v1::token_role::{Admin, Role};
        let role = match value {
            TokenRole::Admin => Role::Admin(Admin {}),
            TokenRole::Project(project) => Role::Project(project.to_wire()),
        };
        Self { role: Some(role) }
    }
}

impl TryFrom<v1::TokenRole> for TokenRole {
    type Error = ConvertError;
    fn try_from(value: v1::TokenRole) -> Result<Self, ConvertError> {
        use v1::token_role::Role;
        match value.role.ok_or_else(|| ConvertError::missing("role"))? {
            Role::Admin(_) => Ok(Self::Admin),
            Role::Project(id) => Ok(Self::Project(Wire::from_wire("project", id)?)),
        }
    }
}

impl From<Token> for v1::Token {
    fn from(value: Token) -> Self {
        Self {
            id: value.id.to_wire(),
            description: value.description,
            hash: value.hash.to_wire(),
            role: Some(value.role.into()),
            expires_at: value.expires_at.map(Timestamp::millis),
            created_at: value.created_at.0,
        }
    }
}

impl TryFrom<v1::Token> for Token {
    type Error = ConvertError;
    fn try_from(value: v1::Token) -> Result<Self, ConvertError> {
        Ok(Self {
            id: Wire::from_wire("id", value.id)?,
            description: value.description,
            hash: Wire::from_wire("hash", value.hash)?,
            role: required("role", value.role)?,
            expires_at: value.expires_at.map(Timestamp),
            created_at: Timestamp(value.created_at),
        })
    }
}
