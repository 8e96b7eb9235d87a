//! Projects and namespaces.

use serde::{Deserialize, Serialize};

use crate::{Env, NamespaceId, NamespaceName, ProjectId, ProjectName, Timestamp};

/// A tenant: owns namespaces, keys and tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Project {
    pub id: ProjectId,
    pub name: ProjectName,
    pub created_at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    pub id: NamespaceId,
    pub project: ProjectId,
    pub name: NamespaceName,
    pub description: String,
    /// Laid under each function's own variables.
    pub env: Env,
    pub created_at: Timestamp,
}
