//! Functions and their immutable revisions.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    Concurrency, Digest, Env, FunctionId, FunctionName, Memory, MilliCpu, NamespaceId,
    PlacementRules, ProjectId, RevisionId, RuntimeName, ScaleBounds, Timeout, Timestamp,
    error::Invalid, limits,
};

/// A function: a name and the settings that can change without a new revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Function {
    pub id: FunctionId,
    pub project: ProjectId,
    pub namespace: NamespaceId,
    pub name: FunctionName,
    pub description: String,
    /// What a cloud only stores and echoes, under names of its own (`gcore/...`).
    pub annotations: BTreeMap<String, String>,
    /// Invocations must present a live key that is bound to this function.
    pub key_required: bool,
    /// No instances, and the endpoint refuses.
    pub disabled: bool,
    pub scale: ScaleBounds,
    pub placement: PlacementRules,
    /// The newest revision, whatever its stage.
    pub latest: RevisionId,
    /// The revision that answers requests; `None` until the first one runs.
    pub serving: Option<RevisionId>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl Function {
    /// Whether it may have instances at all: what it has is kept, and calls are refused.
    pub fn may_run(&self) -> bool {
        !self.disabled && self.scale.max() > 0
    }
}

/// How the shim calls the user's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Convention {
    /// `handler(event, context)` as Kubeless and Gcore have it, or with fewer arguments.
    Kubeless,
    /// `handle(event, context)` as Scaleway has it.
    Scaleway,
    /// `main_handler(event, context)` as Tencent SCF has it.
    Scf,
    /// `handler(request)`, answering with a body or with status, headers and body.
    Http,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handler {
    /// `function`, or `module.function`.
    pub entry: String,
    pub convention: Convention,
}

impl Handler {
    pub fn new(entry: impl Into<String>, convention: Convention) -> Result<Self, Invalid> {
        let entry = entry.into();
        let chars = entry.chars().count();
        if chars == 0 || chars > limits::HANDLER_MAX_CHARS {
            return Err(Invalid::new(
                "handler",
                format_args!(
                    "must be 1 to {} characters, has {chars}",
                    limits::HANDLER_MAX_CHARS
                ),
            ));
        }
        let ok = |c: char| c.is_alphanumeric() || matches!(c, '_' | '$' | '.' | '/' | '-' | ':');
        if !entry.chars().all(ok) {
            return Err(Invalid::new(
                "handler",
                "must be a function name, or a module, a dot and a function name",
            ));
        }
        Ok(Self { entry, convention })
    }
}

/// Where the code comes from. Text today; archives, git and images get variants of their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Source {
    /// UTF-8 text of one file, kept as an artifact (a Raft entry is at most 64 KiB).
    Inline { code: Digest },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// Outward only.
    Egress,
    /// Loopback only.
    None,
}

/// What a client chose for a revision; the whole of it takes a new revision to change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevisionSettings {
    /// As installed.
    pub runtime: RuntimeName,
    /// As the client wrote it, to be echoed.
    pub runtime_requested: String,
    pub handler: Handler,
    pub source: Source,
    /// The language's dependency file (requirements.txt, package.json) as an artifact.
    pub dependencies: Option<Digest>,
    pub env: Env,
    pub memory: Memory,
    pub cpu: MilliCpu,
    pub timeout: Timeout,
    pub init_timeout: Timeout,
    pub concurrency: Concurrency,
    pub network: Network,
}

/// What a build leaves behind; all digests name artifacts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildOutput {
    pub code: Digest,
    pub dependencies: Option<Digest>,
    /// One sentence: what was done, or which runtime stood in for the one asked for.
    pub message: String,
}

/// Where a revision stands. Only forward: a failed revision stays failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "stage")]
pub enum Stage {
    Received,
    Building,
    /// Built; the first instance has to prove that it starts.
    Deploying,
    /// Proved. It serves, or served before a newer one did.
    Running,
    BuildFailed {
        reason: String,
    },
    DeployFailed {
        reason: String,
    },
    /// Superseded before it was proved.
    Abandoned,
}

impl Stage {
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Received | Self::Building | Self::Deploying)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    pub id: RevisionId,
    pub settings: RevisionSettings,
    /// The namespace's variables when the revision was made, with the function's own on top:
    /// what its instances get.
    pub instance_env: Env,
    pub stage: Stage,
    /// Present from `Deploying` on.
    pub build: Option<BuildOutput>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}
