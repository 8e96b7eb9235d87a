//! Everything a client can change, as one enum: the list of what the system can do.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    ComponentRole, Env, FunctionId, FunctionRef, KeyId, KeyName, NamespaceId, NamespaceName,
    PlacementRules, ProjectId, ProjectName, RevisionSettings, ScaleBounds, SecretHash, TaskId,
    Timestamp, TokenId, TokenRole,
};

/// Fresh ids and digests are made by the proposer; applying draws none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    CreateProject {
        name: ProjectName,
    },
    DeleteProject {
        project: ProjectId,
    },
    CreateNamespace(CreateNamespace),
    UpdateNamespace(UpdateNamespace),
    /// Refused while it holds functions.
    DeleteNamespace {
        project: ProjectId,
        name: NamespaceName,
        task: Option<TaskId>,
    },
    CreateFunction(Box<CreateFunction>),
    UpdateFunction(Box<UpdateFunction>),
    DeleteFunction {
        project: ProjectId,
        function: FunctionRef,
        task: Option<TaskId>,
    },
    CreateKey(CreateKey),
    UpdateKey(UpdateKey),
    DeleteKey {
        project: ProjectId,
        name: KeyName,
    },
    CreateToken(CreateToken),
    DeleteToken {
        id: TokenId,
    },
    AcknowledgeTask {
        project: ProjectId,
        id: TaskId,
    },
    CreateJoinToken(CreateJoinToken),
    RevokeJoinToken {
        id: TokenId,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateNamespace {
    pub id: NamespaceId,
    pub project: ProjectId,
    pub name: NamespaceName,
    pub description: String,
    pub env: Env,
    pub task: Option<TaskId>,
}

/// `None` leaves a field as it is. A changed environment gives every function of the namespace a
/// new revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateNamespace {
    pub project: ProjectId,
    pub name: NamespaceName,
    pub description: Option<String>,
    pub env: Option<Env>,
    pub task: Option<TaskId>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateFunction {
    pub id: FunctionId,
    pub project: ProjectId,
    pub function: FunctionRef,
    pub description: String,
    pub annotations: BTreeMap<String, String>,
    pub key_required: bool,
    pub keys: Vec<KeyName>,
    pub disabled: bool,
    pub scale: ScaleBounds,
    pub placement: PlacementRules,
    pub settings: RevisionSettings,
    pub task: Option<TaskId>,
}

/// `None` leaves a field as it is, so that two clients changing different fields at once both win.
/// A revision is made only when a field of its settings really changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateFunction {
    pub project: ProjectId,
    pub function: FunctionRef,
    pub description: Option<String>,
    pub annotations: Option<BTreeMap<String, String>>,
    pub key_required: Option<bool>,
    pub keys: Option<Vec<KeyName>>,
    pub disabled: Option<bool>,
    /// Floor and cap apart, since some clients send only one; the pair is checked when applied.
    pub scale_min: Option<u32>,
    pub scale_max: Option<u32>,
    /// As a whole.
    pub placement: Option<PlacementRules>,
    pub settings: SettingsPatch,
    pub task: Option<TaskId>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingsPatch {
    pub handler: Option<crate::Handler>,
    pub source: Option<crate::Source>,
    /// `Some(None)` takes the dependencies away.
    pub dependencies: Option<Option<crate::Digest>>,
    pub env: Option<Env>,
    pub memory: Option<crate::Memory>,
    pub cpu: Option<crate::MilliCpu>,
    pub timeout: Option<crate::Timeout>,
    pub init_timeout: Option<crate::Timeout>,
    pub concurrency: Option<crate::Concurrency>,
    pub network: Option<crate::Network>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateKey {
    pub id: KeyId,
    pub project: ProjectId,
    pub name: KeyName,
    pub description: String,
    pub hash: SecretHash,
    pub functions: Vec<FunctionRef>,
    pub expires_at: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateKey {
    pub project: ProjectId,
    pub name: KeyName,
    pub description: Option<String>,
    pub functions: Option<Vec<FunctionRef>>,
    /// `Some(None)` makes the key live for ever.
    pub expires_at: Option<Option<Timestamp>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateToken {
    pub id: TokenId,
    pub description: String,
    pub hash: SecretHash,
    pub role: TokenRole,
    pub expires_at: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateJoinToken {
    pub id: TokenId,
    pub hash: SecretHash,
    pub role: ComponentRole,
    pub expires_at: Timestamp,
    pub uses: u32,
}
