//! Who belongs to the cluster.

use bytes::Bytes;
use coracle_model::{
    ComponentRole, JoinToken, Member, MemberId, Timestamp,
    cluster::{Admission, ClusterSecrets},
    operation::CreateJoinToken,
};

use super::{ConvertError, Wire, enumeration, scalar::exactly, unspecified};
use crate::v1;

impl Wire for MemberId {
    type Form = u64;

    fn to_wire(&self) -> u64 {
        self.0
    }

    fn from_wire(field: &str, form: u64) -> Result<Self, ConvertError> {
        match form {
            0 => Err(ConvertError::missing(field)),
            id => Ok(Self(id)),
        }
    }
}

impl From<ComponentRole> for v1::ComponentRole {
    fn from(value: ComponentRole) -> Self {
        match value {
            ComponentRole::Controller => Self::Controller,
            ComponentRole::Agent => Self::Agent,
            ComponentRole::Gateway => Self::Gateway,
        }
    }
}

impl TryFrom<v1::ComponentRole> for ComponentRole {
    type Error = ConvertError;
    fn try_from(value: v1::ComponentRole) -> Result<Self, ConvertError> {
        Ok(match value {
            v1::ComponentRole::Unspecified => return Err(unspecified()),
            v1::ComponentRole::Controller => Self::Controller,
            v1::ComponentRole::Agent => Self::Agent,
            v1::ComponentRole::Gateway => Self::Gateway,
        })
    }
}

impl Wire for ComponentRole {
    type Form = i32;

    fn to_wire(&self) -> i32 {
        v1::ComponentRole::from(*self).into()
    }

    fn from_wire(field: &str, form: i32) -> Result<Self, ConvertError> {
        enumeration::<v1::ComponentRole, _>(field, form)
    }
}

impl From<JoinToken> for v1::JoinToken {
    fn from(value: JoinToken) -> Self {
        Self {
            id: value.id.to_wire(),
            hash: value.hash.to_wire(),
            role: value.role.to_wire(),
            expires_at: value.expires_at.0,
            uses_left: value.uses_left,
            created_at: value.created_at.0,
        }
    }
}

impl TryFrom<v1::JoinToken> for JoinToken {
    type Error = ConvertError;
    fn try_from(value: v1::JoinToken) -> Result<Self, ConvertError> {
        Ok(Self {
            id: Wire::from_wire("id", value.id)?,
            hash: Wire::from_wire("hash", value.hash)?,
            role: Wire::from_wire("role", value.role)?,
            expires_at: Timestamp(value.expires_at),
            uses_left: value.uses_left,
            created_at: Timestamp(value.created_at),
        })
    }
}

impl From<Member> for v1::Member {
    fn from(value: Member) -> Self {
        Self {
            id: value.id.to_wire(),
            name: value.name,
            address: value.address,
            wrapping_key: Bytes::copy_from_slice(&value.wrapping_key),
            joined_at: value.joined_at.0,
        }
    }
}

impl TryFrom<v1::Member> for Member {
    type Error = ConvertError;
    fn try_from(value: v1::Member) -> Result<Self, ConvertError> {
        Ok(Self {
            id: Wire::from_wire("id", value.id)?,
            name: said("name", value.name)?,
            address: said("address", value.address)?,
            wrapping_key: exactly("wrapping_key", &value.wrapping_key)?,
            joined_at: Timestamp(value.joined_at),
        })
    }
}

impl From<ClusterSecrets> for v1::ClusterSecrets {
    fn from(value: ClusterSecrets) -> Self {
        let wrapped = value.wrapped.into_iter();
        Self {
            ca_certificate: value.ca_certificate.into(),
            ca_key: value.ca_key.into(),
            generation: value.generation,
            wrapped: wrapped.map(|(id, key)| (id.0, key.into())).collect(),
        }
    }
}

impl TryFrom<v1::ClusterSecrets> for ClusterSecrets {
    type Error = ConvertError;
    fn try_from(value: v1::ClusterSecrets) -> Result<Self, ConvertError> {
        if value.generation == 0 {
            return Err(ConvertError::missing("generation"));
        }
        let wrapped = value.wrapped.into_iter();
        Ok(Self {
            ca_certificate: given("ca_certificate", value.ca_certificate)?,
            ca_key: given("ca_key", value.ca_key)?,
            generation: value.generation,
            wrapped: wrapped
                .map(|(id, key)| Ok((Wire::from_wire("wrapped", id)?, given("wrapped", key)?)))
                .collect::<Result<_, ConvertError>>()?,
        })
    }
}

impl From<Admission> for v1::Admission {
    fn from(value: Admission) -> Self {
        use v1::admission::{Agent, Controller, Gateway, Role};
        let role = match value {
            Admission::Controller {
                name,
                address,
                wrapping_key,
                wrapped,
                generation,
                replaces,
            } => Role::Controller(Controller {
                name,
                address,
                wrapping_key: Bytes::copy_from_slice(&wrapping_key),
                wrapped: wrapped.into(),
                generation,
                replaces: replaces.to_wire(),
            }),
            Admission::Agent => Role::Agent(Agent {}),
            Admission::Gateway => Role::Gateway(Gateway {}),
        };
        Self { role: Some(role) }
    }
}

impl TryFrom<v1::Admission> for Admission {
    type Error = ConvertError;
    fn try_from(value: v1::Admission) -> Result<Self, ConvertError> {
        use v1::admission::Role;
        Ok(
            match value.role.ok_or_else(|| ConvertError::missing("role"))? {
                Role::Controller(m) => Self::Controller {
                    name: said("controller.name", m.name)?,
                    address: said("controller.address", m.address)?,
                    wrapping_key: exactly("controller.wrapping_key", &m.wrapping_key)?,
                    wrapped: given("controller.wrapped", m.wrapped)?,
                    generation: m.generation,
                    replaces: Wire::from_wire("controller.replaces", m.replaces)?,
                },
                Role::Agent(_) => Self::Agent,
                Role::Gateway(_) => Self::Gateway,
            },
        )
    }
}

impl From<CreateJoinToken> for v1::CreateJoinToken {
    fn from(value: CreateJoinToken) -> Self {
        Self {
            id: value.id.to_wire(),
            hash: value.hash.to_wire(),
            role: value.role.to_wire(),
            expires_at: value.expires_at.0,
            uses: value.uses,
        }
    }
}

impl TryFrom<v1::CreateJoinToken> for CreateJoinToken {
    type Error = ConvertError;
    fn try_from(value: v1::CreateJoinToken) -> Result<Self, ConvertError> {
        Ok(Self {
            id: Wire::from_wire("id", value.id)?,
            hash: Wire::from_wire("hash", value.hash)?,
            role: Wire::from_wire("role", value.role)?,
            expires_at: Timestamp(value.expires_at),
            uses: value.uses,
        })
    }
}

fn said(field: &str, text: String) -> Result<String, ConvertError> {
    if text.is_empty() {
        return Err(ConvertError::missing(field));
    }
    Ok(text)
}

fn given(field: &str, bytes: Bytes) -> Result<Vec<u8>, ConvertError> {
    if bytes.is_empty() {
        return Err(ConvertError::missing(field));
    }
    Ok(bytes.into())
}
