//! What can be read: an immutable picture of the state at one point of the log.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
};

use coracle_model::{
    Digest, Function, FunctionId, FunctionKey, FunctionName, FunctionRef, JoinToken, KeyId,
    KeyName, Member, MemberId, Namespace, NamespaceId, NamespaceName, NodeId, NodeName, Project,
    ProjectId, ProjectName, Revision, RevisionId, Task, TaskId, Timestamp, Token, TokenId,
    cluster::ClusterSecrets, node::NodeRecord, query::FunctionView,
};

use crate::{artifacts, table::Table};

/// Lookups by id and by name; lists are sorted by name unless they say otherwise. Nothing in here
/// knows instances: the counts of a [`FunctionView`] are the caller's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    pub(crate) incarnation: u64,
    /// Numbers of deleted projects are not given out again.
    pub(crate) last_project: u32,
    pub(crate) projects: Table<ProjectId, Project>,
    pub(crate) namespaces: Table<NamespaceId, Namespace>,
    pub(crate) functions: Table<FunctionId, FunctionRecord>,
    pub(crate) keys: Table<KeyId, FunctionKey>,
    pub(crate) tokens: Table<TokenId, Token>,
    pub(crate) tasks: Table<TaskId, Task>,
    pub(crate) join_tokens: Table<TokenId, JoinToken>,
    pub(crate) members: Table<MemberId, Member>,
    pub(crate) last_member: u64,
    pub(crate) secrets: Option<Arc<ClusterSecrets>>,
    pub(crate) nodes: Table<NodeId, NodeRecord>,
    /// Ids that may not join again, with when they were removed.
    pub(crate) removed_nodes: Table<NodeId, Timestamp>,
    // Below: derived from the above, not in snapshots.
    pub(crate) namespace_names: Table<(ProjectId, NamespaceName), NamespaceId>,
    pub(crate) function_names: Table<(NamespaceId, FunctionName), FunctionId>,
    pub(crate) key_names: Table<(ProjectId, KeyName), KeyId>,
    pub(crate) node_names: Table<NodeName, NodeId>,
    /// `FunctionKey::functions` read backwards. Functions without keys have no entry.
    pub(crate) bindings: Table<FunctionId, BTreeSet<KeyName>>,
}

/// A function with the revisions of it that are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FunctionRecord {
    pub function: Function,
    /// By number. Holds `function.latest` and `function.serving`, always.
    pub(crate) revisions: BTreeMap<u32, Arc<Revision>>,
}

impl FunctionRecord {
    /// The newest revision, whatever its stage.
    pub fn latest(&self) -> &Arc<Revision> {
        self.revisions
            .get(&self.function.latest.number)
            .expect("latest is never dropped")
    }

    /// The revision that answers requests, if one does yet.
    pub fn serving(&self) -> Option<&Arc<Revision>> {
        let serving = self.function.serving?;
        Some(
            self.revisions
                .get(&serving.number)
                .expect("serving is never dropped"),
        )
    }

    pub fn revision(&self, number: u32) -> Option<&Arc<Revision>> {
        self.revisions.get(&number)
    }

    /// Oldest first.
    pub fn revisions(&self) -> impl DoubleEndedIterator<Item = &Arc<Revision>> {
        self.revisions.values()
    }
}

impl View {
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    pub fn project(&self, id: ProjectId) -> Option<&Project> {
        self.projects.get(&id)
    }

    pub fn project_named(&self, name: &ProjectName) -> Option<&Project> {
        self.projects.values().find(|project| project.name == *name)
    }

    pub fn projects(&self) -> Vec<&Project> {
        let mut projects: Vec<_> = self.projects.values().collect();
        projects.sort_by(|a, b| a.name.cmp(&b.name));
        projects
    }

    pub fn namespace(&self, id: NamespaceId) -> Option<&Namespace> {
        self.namespaces.get(&id)
    }

    pub fn namespace_named(&self, project: ProjectId, name: &NamespaceName) -> Option<&Namespace> {
        let id = self.namespace_names.get(&(project, name.clone()))?;
        self.namespaces.get(id)
    }

    pub fn namespaces(&self, project: ProjectId) -> impl Iterator<Item = &Namespace> {
        let first: NamespaceName = "a".parse().expect("a valid name, and the smallest");
        self.namespace_names
            .range((Bound::Included((project, first)), Bound::Unbounded))
            .take_while(move |((of, _), _)| *of == project)
            .filter_map(|(_, id)| self.namespaces.get(id))
    }

    pub fn function(&self, id: FunctionId) -> Option<&FunctionRecord> {
        self.functions.get(&id)
    }

    pub fn function_named(
        &self,
        project: ProjectId,
        function: &FunctionRef,
    ) -> Option<&FunctionRecord> {
        let namespace = self.namespace_named(project, &function.namespace)?;
        let id = self
            .function_names
            .get(&(namespace.id, function.name.clone()))?;
        self.functions.get(id)
    }

    /// Every function of every project, by id.
    pub fn functions(&self) -> impl Iterator<Item = &FunctionRecord> {
        self.functions.values()
    }

    /// By name.
    pub fn functions_in(&self, namespace: NamespaceId) -> impl Iterator<Item = &FunctionRecord> {
        self.function_ids_in(namespace)
            .filter_map(|id| self.functions.get(&id))
    }

    /// By namespace, then by name.
    pub fn functions_of(&self, project: ProjectId) -> impl Iterator<Item = &FunctionRecord> {
        self.namespaces(project)
            .flat_map(|namespace| self.functions_in(namespace.id))
    }

    pub(crate) fn function_ids_in(
        &self,
        namespace: NamespaceId,
    ) -> impl Iterator<Item = FunctionId> {
        let first: FunctionName = "a".parse().expect("a valid name, and the smallest");
        self.function_names
            .range((Bound::Included((namespace, first)), Bound::Unbounded))
            .take_while(move |((of, _), _)| *of == namespace)
            .map(|(_, id)| *id)
    }

    /// How clients name a function.
    pub fn function_ref(&self, function: &Function) -> FunctionRef {
        let namespace = self
            .namespaces
            .get(&function.namespace)
            .expect("holds the function");
        FunctionRef {
            namespace: namespace.name.clone(),
            name: function.name.clone(),
        }
    }

    /// A function with all that belongs to it. `wanted` and `ready` count its instances, which only
    /// the leader knows.
    pub fn function_view(&self, record: &FunctionRecord, wanted: u32, ready: u32) -> FunctionView {
        let function = &record.function;
        let namespace = self
            .namespaces
            .get(&function.namespace)
            .expect("holds the function");
        let project = self
            .projects
            .get(&function.project)
            .expect("holds the namespace");
        FunctionView {
            function: function.clone(),
            namespace: namespace.name.clone(),
            project: project.name.clone(),
            latest: record.latest().as_ref().clone(),
            serving: record.serving().map(|revision| revision.as_ref().clone()),
            keys: self.key_names_of(function.id).cloned().collect(),
            wanted,
            ready,
        }
    }

    pub fn revision(&self, id: RevisionId) -> Option<&Arc<Revision>> {
        self.functions.get(&id.function)?.revision(id.number)
    }

    /// Revisions that are on their way: to be built, building, or to prove themselves. At most one
    /// a function. By function id.
    pub fn unsettled(&self) -> impl Iterator<Item = &Arc<Revision>> {
        self.functions
            .values()
            .map(FunctionRecord::latest)
            .filter(|r| !r.stage.is_final())
    }

    pub fn key(&self, id: KeyId) -> Option<&FunctionKey> {
        self.keys.get(&id)
    }

    pub fn key_named(&self, project: ProjectId, name: &KeyName) -> Option<&FunctionKey> {
        self.keys.get(self.key_names.get(&(project, name.clone()))?)
    }

    pub fn keys(&self, project: ProjectId) -> impl Iterator<Item = &FunctionKey> {
        let first: KeyName = "a".parse().expect("a valid name, and the smallest");
        self.key_names
            .range((Bound::Included((project, first)), Bound::Unbounded))
            .take_while(move |((of, _), _)| *of == project)
            .filter_map(|(_, id)| self.keys.get(id))
    }

    pub fn key_names_of(&self, function: FunctionId) -> impl Iterator<Item = &KeyName> {
        self.bindings.get(&function).into_iter().flatten()
    }

    /// The keys bound to a function, expired ones too.
    pub fn keys_of(&self, function: &Function) -> impl Iterator<Item = &FunctionKey> {
        let project = function.project;
        self.key_names_of(function.id)
            .filter_map(move |name| self.key_named(project, name))
    }

    pub fn token(&self, id: TokenId) -> Option<&Token> {
        self.tokens.get(&id)
    }

    /// By id.
    pub fn tokens(&self) -> impl Iterator<Item = &Token> {
        self.tokens.values()
    }

    pub fn task(&self, id: TaskId) -> Option<&Task> {
        self.tasks.get(&id)
    }

    /// Of one project or of all, newest first.
    pub fn tasks(&self, project: Option<ProjectId>) -> Vec<&Task> {
        let of = |task: &&Task| project.is_none_or(|project| task.project == project);
        let mut tasks: Vec<_> = self.tasks.values().filter(of).collect();
        tasks.sort_by_key(|task| Reverse((task.created_at, task.id)));
        tasks
    }

    pub fn join_token(&self, id: TokenId) -> Option<&JoinToken> {
        self.join_tokens.get(&id)
    }

    /// By id.
    pub fn join_tokens(&self) -> impl Iterator<Item = &JoinToken> {
        self.join_tokens.values()
    }

    pub fn member(&self, id: MemberId) -> Option<&Member> {
        self.members.get(&id)
    }

    /// The controllers of the cluster by number; none for a server by itself.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// The newest number that was given out.
    pub fn last_member(&self) -> u64 {
        self.last_member
    }

    /// Absent for a server by itself.
    pub fn secrets(&self) -> Option<&ClusterSecrets> {
        self.secrets.as_deref()
    }

    pub fn node(&self, id: NodeId) -> Option<&NodeRecord> {
        self.nodes.get(&id)
    }

    pub fn node_named(&self, name: &NodeName) -> Option<&NodeRecord> {
        self.nodes.get(self.node_names.get(name)?)
    }

    /// By id.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeRecord> {
        self.nodes.values()
    }

    /// Whether it was removed, or replaced by another node of its name: it may not come back.
    pub fn is_removed(&self, id: NodeId) -> bool {
        self.removed_nodes.contains(&id)
    }

    /// What the revisions of one function name; nothing when there is no such function.
    pub fn artifacts_of(&self, function: FunctionId) -> impl Iterator<Item = Digest> {
        let revisions = self.functions.get(&function).into_iter();
        revisions
            .flat_map(FunctionRecord::revisions)
            .flat_map(|revision| artifacts::of_revision(revision))
    }

    /// Every artifact that a revision names. Walks all revisions: for collections, not for requests
    /// (see [`State::references`](crate::State::references)).
    pub fn referenced_artifacts(&self) -> BTreeSet<Digest> {
        let revisions = self.functions.values().flat_map(FunctionRecord::revisions);
        revisions
            .flat_map(|revision| artifacts::of_revision(revision))
            .collect()
    }
}
