//! Who belongs to a cluster: roles of components, members of the Raft group, tokens to join with,
//! and the secrets that are kept sealed.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Invalid, SecretHash, Timestamp, TokenId};

/// What a process does in the cluster, and what its certificate says it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ComponentRole {
    Controller,
    Agent,
    Gateway,
}

impl ComponentRole {
    pub const ALL: [Self; 3] = [Self::Controller, Self::Agent, Self::Gateway];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Controller => "controller",
            Self::Agent => "agent",
            Self::Gateway => "gateway",
        }
    }
}

impl fmt::Display for ComponentRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ComponentRole {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        let found = Self::ALL.into_iter().find(|role| role.as_str() == s);
        found.ok_or_else(|| Invalid::new("role", "must be controller, agent or gateway"))
    }
}

/// A controller's number in the Raft group. Counts up from 1 and is never given out again: a member
/// that forgot its votes and came back under its number could elect two leaders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MemberId(pub u64);

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A controller that belongs to the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub id: MemberId,
    pub name: String,
    /// Where the others reach it: `host:port`.
    pub address: String,
    /// X25519; what is sealed to it, only this controller opens.
    pub wrapping_key: [u8; 32],
    pub joined_at: Timestamp,
}

/// Lets machines join in one role, until it expires or is used up. Presented as `<id>$<secret>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    pub id: TokenId,
    pub hash: SecretHash,
    pub role: ComponentRole,
    pub expires_at: Timestamp,
    pub uses_left: u32,
    pub created_at: Timestamp,
}

/// The cluster's own secrets, none of them in the clear.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterSecrets {
    /// DER; no secret.
    pub ca_certificate: Vec<u8>,
    /// The CA's private key, encrypted with the cluster key of this generation.
    pub ca_key: Vec<u8>,
    /// Counts the cluster keys up from 1.
    pub generation: u64,
    /// The cluster key, sealed to each member.
    pub wrapped: BTreeMap<MemberId, Vec<u8>>,
}

/// What is asked for with a join token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Admission {
    Controller {
        name: String,
        address: String,
        wrapping_key: [u8; 32],
        /// The cluster key of `generation`, sealed to it.
        wrapped: Vec<u8>,
        generation: u64,
        /// The member that it takes the place of: a machine that was installed anew.
        replaces: Option<MemberId>,
    },
    Agent,
    Gateway,
}

impl Admission {
    pub fn role(&self) -> ComponentRole {
        match self {
            Self::Controller { .. } => ComponentRole::Controller,
            Self::Agent => ComponentRole::Agent,
            Self::Gateway => ComponentRole::Gateway,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_have_one_spelling() {
        for role in ComponentRole::ALL {
            assert_eq!(role.to_string().parse::<ComponentRole>().unwrap(), role);
        }
        assert!("Agent".parse::<ComponentRole>().is_err());
    }
}
