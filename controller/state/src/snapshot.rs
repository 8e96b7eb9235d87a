//! The whole state as bytes, and back.
//!
//! A persisted format, as the log is. Equal states give equal bytes: lists are sorted by id, and
//! the applied writes are in the order of the log, which decides which of them is forgotten next.

use std::{collections::BTreeMap, sync::Arc};

use coracle_model::{
    Digest, Function, FunctionId, FunctionKey, JoinToken, Member, Namespace, NodeId, Project,
    Refusal, Revision, Task, Timestamp, Token, WriteId, cluster::ClusterSecrets, node::NodeRecord,
};
use coracle_proto::{ConvertError, Wire, v1};
use prost::Message as _;

use crate::{FunctionRecord, State, artifacts::Artifacts, view::View, writes::Writes};

/// The format that this version writes. Raised by whatever an older version must not ignore; this
/// version reads this one only, since it is the first.
pub const FORMAT: u32 = 1;

/// A snapshot that this version cannot start from.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("the bytes are not a snapshot")]
    Malformed(#[source] prost::DecodeError),
    #[error("the snapshot has format {found}, and this version reads format {FORMAT}")]
    Format { found: u32 },
    #[error("the snapshot holds an invalid field")]
    Field(#[source] ConvertError),
    /// Two of its parts contradict each other; the text says which.
    #[error("the snapshot contradicts itself: {0}")]
    Inconsistent(String),
}

impl State {
    pub fn encode(&self) -> Vec<u8> {
        let view = &self.view;
        let records = || view.functions.values();
        let revisions = records().flat_map(FunctionRecord::revisions);
        let snapshot = v1::Snapshot {
            format: FORMAT,
            incarnation: view.incarnation,
            last_project: view.last_project,
            projects: view.projects.values().cloned().map(Into::into).collect(),
            namespaces: view.namespaces.values().cloned().map(Into::into).collect(),
            functions: records()
                .map(|record| record.function.clone().into())
                .collect(),
            revisions: revisions
                .map(|revision| revision.as_ref().clone().into())
                .collect(),
            keys: view.keys.values().cloned().map(Into::into).collect(),
            tokens: view.tokens.values().cloned().map(Into::into).collect(),
            tasks: view.tasks.values().cloned().map(Into::into).collect(),
            applied_writes: self.writes.iter().map(applied_write).collect(),
            join_tokens: view.join_tokens.values().cloned().map(Into::into).collect(),
            members: view.members.values().cloned().map(Into::into).collect(),
            last_member: view.last_member,
            secrets: view.secrets.as_deref().cloned().map(Into::into),
            nodes: view.nodes.values().cloned().map(Into::into).collect(),
            removed_nodes: view.removed_nodes.iter().map(removed_node).collect(),
        };
        snapshot.encode_to_vec()
    }

    /// Builds everything that is derived anew and checks that the parts fit each other.
    pub fn decode(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let snapshot = v1::Snapshot::decode(bytes).map_err(SnapshotError::Malformed)?;
        if snapshot.format != FORMAT {
            return Err(SnapshotError::Format {
                found: snapshot.format,
            });
        }
        let mut view = View {
            incarnation: snapshot.incarnation,
            last_project: snapshot.last_project,
            ..View::default()
        };
        for project in items::<_, Project>("projects", snapshot.projects) {
            let project = project?;
            view.projects.insert(project.id, project);
        }
        for namespace in items::<_, Namespace>("namespaces", snapshot.namespaces) {
            add_namespace(&mut view, namespace?)?;
        }
        let mut artifacts = Artifacts::default();
        let mut revisions: BTreeMap<FunctionId, BTreeMap<u32, Arc<Revision>>> = BTreeMap::new();
        for revision in items::<_, Revision>("revisions", snapshot.revisions) {
            let revision = revision?;
            artifacts.add(crate::artifacts::of_revision(&revision));
            let of_function = revisions.entry(revision.id.function).or_default();
            of_function.insert(revision.id.number, Arc::new(revision));
        }
        for function in items::<_, Function>("functions", snapshot.functions) {
            let function = function?;
            let revisions = revisions.remove(&function.id).unwrap_or_default();
            add_function(
                &mut view,
                FunctionRecord {
                    function,
                    revisions,
                },
            )?;
        }
        if let Some((function, _)) = revisions.first_key_value() {
            return inconsistent(format_args!(
                "revisions of {function}, which does not exist"
            ));
        }
        for key in items::<_, FunctionKey>("keys", snapshot.keys) {
            add_key(&mut view, key?)?;
        }
        for token in items::<_, Token>("tokens", snapshot.tokens) {
            let token = token?;
            view.tokens.insert(token.id, token);
        }
        for task in items::<_, Task>("tasks", snapshot.tasks) {
            let task = task?;
            view.tasks.insert(task.id, task);
        }
        for token in items::<_, JoinToken>("join_tokens", snapshot.join_tokens) {
            let token = token?;
            view.join_tokens.insert(token.id, token);
        }
        view.last_member = snapshot.last_member;
        for member in items::<_, Member>("members", snapshot.members) {
            let member = member?;
            if member.id.0 > view.last_member {
                return inconsistent(format_args!("member {} is above the last one", member.id));
            }
            view.members.insert(member.id, member);
        }
        if let Some(secrets) = snapshot.secrets {
            let secrets = ClusterSecrets::try_from(secrets)
                .map_err(|error| SnapshotError::Field(error.inside("secrets")))?;
            if !view.members.keys().eq(secrets.wrapped.keys()) {
                return inconsistent(format_args!(
                    "the cluster key is not wrapped for each member"
                ));
            }
            view.secrets = Some(Arc::new(secrets));
        }
        for node in items::<_, NodeRecord>("nodes", snapshot.nodes) {
            add_node(&mut view, node?)?;
        }
        for removed in items::<_, Removed>("removed_nodes", snapshot.removed_nodes) {
            let Removed { id, at } = removed?;
            if view.nodes.contains(&id) {
                return inconsistent(format_args!("node {id} is there and was removed"));
            }
            view.removed_nodes.insert(id, at);
        }
        let mut writes = Writes::default();
        for write in items::<_, KeptWrite>("applied_writes", snapshot.applied_writes) {
            let KeptWrite { id, at, refusal } = write?;
            if writes.contains(id) {
                return inconsistent(format_args!("write {id} was applied twice"));
            }
            writes.push(id, at, refusal);
        }
        Ok(Self {
            view,
            writes,
            artifacts,
        })
    }

    /// SHA-256 of [`State::encode`]: equal on replicas that applied the same log.
    pub fn hash(&self) -> Digest {
        Digest::of(&self.encode())
    }
}

fn items<M, T>(field: &str, list: Vec<M>) -> impl Iterator<Item = Result<T, SnapshotError>>
where
    T: TryFrom<M, Error = ConvertError>,
{
    list.into_iter().enumerate().map(move |(index, item)| {
        T::try_from(item)
            .map_err(|error| SnapshotError::Field(error.inside(&format!("{field}[{index}]"))))
    })
}

fn inconsistent<T>(what: std::fmt::Arguments<'_>) -> Result<T, SnapshotError> {
    Err(SnapshotError::Inconsistent(what.to_string()))
}

fn add_namespace(view: &mut View, namespace: Namespace) -> Result<(), SnapshotError> {
    let Namespace { id, project, .. } = namespace;
    if !view.projects.contains(&project) {
        return inconsistent(format_args!(
            "namespace {id} is in project {project}, which is not"
        ));
    }
    view.namespace_names
        .insert((project, namespace.name.clone()), id);
    view.namespaces.insert(id, namespace);
    Ok(())
}

fn add_function(view: &mut View, record: FunctionRecord) -> Result<(), SnapshotError> {
    let Function {
        id,
        project,
        namespace,
        latest,
        serving,
        ..
    } = record.function;
    if view
        .namespaces
        .get(&namespace)
        .is_none_or(|namespace| namespace.project != project)
    {
        return inconsistent(format_args!(
            "function {id} is in namespace {namespace}, which is not"
        ));
    }
    for needed in [Some(latest), serving].into_iter().flatten() {
        if record.revision(needed.number).is_none() {
            return inconsistent(format_args!("revision {needed} is missing"));
        }
    }
    view.function_names
        .insert((namespace, record.function.name.clone()), id);
    view.functions.insert(id, record);
    Ok(())
}

fn add_key(view: &mut View, key: FunctionKey) -> Result<(), SnapshotError> {
    for function in &key.functions {
        let Some(record) = view.function_named(key.project, function) else {
            return inconsistent(format_args!(
                "key {} is bound to {function}, which is not",
                key.id
            ));
        };
        let id = record.function.id;
        let mut names = view.bindings.get(&id).cloned().unwrap_or_default();
        names.insert(key.name.clone());
        view.bindings.insert(id, names);
    }
    view.key_names
        .insert((key.project, key.name.clone()), key.id);
    view.keys.insert(key.id, key);
    Ok(())
}

fn add_node(view: &mut View, node: NodeRecord) -> Result<(), SnapshotError> {
    if view.node_names.contains(&node.name) {
        return inconsistent(format_args!("two nodes have the name {}", node.name));
    }
    view.node_names.insert(node.name.clone(), node.id);
    view.nodes.insert(node.id, node);
    Ok(())
}

struct Removed {
    id: NodeId,
    at: Timestamp,
}

fn removed_node((id, at): (&NodeId, &Timestamp)) -> v1::RemovedNode {
    v1::RemovedNode {
        id: id.to_wire(),
        at: at.0,
    }
}

impl TryFrom<v1::RemovedNode> for Removed {
    type Error = ConvertError;
    fn try_from(value: v1::RemovedNode) -> Result<Self, ConvertError> {
        Ok(Self {
            id: Wire::from_wire("id", value.id)?,
            at: Timestamp(value.at),
        })
    }
}

struct KeptWrite {
    id: WriteId,
    at: Timestamp,
    refusal: Option<Refusal>,
}

fn applied_write((id, at, refusal): (WriteId, Timestamp, Option<&Refusal>)) -> v1::AppliedWrite {
    let refusal = refusal.cloned().map(Into::into);
    v1::AppliedWrite {
        write_id: id.to_wire(),
        at: at.0,
        refusal,
    }
}

impl TryFrom<v1::AppliedWrite> for KeptWrite {
    type Error = ConvertError;
    fn try_from(value: v1::AppliedWrite) -> Result<Self, ConvertError> {
        let refusal = value.refusal.map(Refusal::try_from).transpose();
        Ok(Self {
            id: Wire::from_wire("write_id", value.write_id)?,
            at: Timestamp(value.at),
            refusal: refusal.map_err(|error| error.inside("refusal"))?,
        })
    }
}
