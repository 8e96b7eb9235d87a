//! What apply asks of the world outside.

use coracle_model::{
    Digest, FunctionId, KeyId, NamespaceId, NodeId, ProjectId, Refusal, RevisionId, TaskId, TokenId,
};

/// What came of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// `Ok` also for a leader's step that came too late to matter.
    pub outcome: Result<(), Refusal>,
    /// Sorted, each once. Empty when the command was refused or had been applied before.
    pub effects: Vec<Effect>,
}

/// Names what changed; how it stands now is read from the [`View`](crate::View), so acting on an
/// effect twice, or late, does no harm. A new leader starts from the view and needs no effects of
/// the past.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    IncarnationRaised(u64),
    /// Made or deleted.
    ProjectChanged(ProjectId),
    /// Made, changed or deleted.
    NamespaceChanged(NamespaceId),
    /// Made or deleted, or its settings, its keys, what serves or the stage of a revision changed:
    /// routes, instances and what `describe` shows may differ.
    FunctionChanged(FunctionId),
    /// A new revision waits to be built.
    RevisionReceived(RevisionId),
    KeyChanged(KeyId),
    TokenChanged(TokenId),
    /// Made, or reached another state.
    TaskChanged(TaskId),
    /// No revision names these bytes any more. An upload that is not committed yet may still lease
    /// them.
    ArtifactUnreferenced(Digest),
    /// Joined, changed, closed, opened, draining or removed.
    NodeChanged(NodeId),
    /// Made, used or revoked.
    JoinTokenChanged(TokenId),
    /// A controller joined or was removed, or the cluster's secrets changed.
    ClusterChanged,
}
