//! Function keys (for invocations) and tokens (for management). Only hashes are kept.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;

use crate::{FunctionName, KeyId, KeyName, NamespaceName, ProjectId, Timestamp, TokenId};

/// SHA-256 of a secret that holds at least 128 random bits, so that no salt or slow hash is needed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SecretHash(pub [u8; 32]);

impl SecretHash {
    pub fn of(secret: &str) -> Self {
        Self(Sha256::digest(secret.as_bytes()).into())
    }

    /// Compares in constant time.
    pub fn matches(&self, secret: &str) -> bool {
        self.0.ct_eq(&Self::of(secret).0).into()
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHash(..)")
    }
}

/// A function by name, within a project.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FunctionRef {
    pub namespace: NamespaceName,
    pub name: FunctionName,
}

impl fmt::Display for FunctionRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Lets its holder invoke the functions it is bound to, while it lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionKey {
    pub id: KeyId,
    pub project: ProjectId,
    pub name: KeyName,
    pub description: String,
    pub hash: SecretHash,
    /// The one relation between keys and functions; a function's `keys` is this, read backwards.
    pub functions: Vec<FunctionRef>,
    pub expires_at: Option<Timestamp>,
    pub created_at: Timestamp,
}

impl FunctionKey {
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.expires_at.is_none_or(|at| now < at)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenRole {
    /// Everything, in every project.
    Admin,
    /// Everything inside one project.
    Project(ProjectId),
}

/// Lets its holder manage the server. Presented as `<id>$<secret>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    pub id: TokenId,
    pub description: String,
    pub hash: SecretHash,
    pub role: TokenRole,
    pub expires_at: Option<Timestamp>,
    pub created_at: Timestamp,
}

impl Token {
    pub fn allows(&self, project: ProjectId) -> bool {
        match self.role {
            TokenRole::Admin => true,
            TokenRole::Project(own) => own == project,
        }
    }
}
