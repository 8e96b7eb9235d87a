//! Commands: what the log holds.
//!
//! A persisted format. Variants and fields are only ever added, limits only ever widened, and the
//! bytes of every released version are decoded in a test (`golden/`).

use std::collections::BTreeMap;

use coracle_model::{
    BuildOutput, Labels, MemberId, NodeId, NodeName, Operation, RevisionId, SecretHash, Timestamp,
    TokenId, WriteId, cluster::Admission, limits,
};
use coracle_proto::{ConvertError, Wire, required, v1};
use prost::Message as _;

/// One entry of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Made by whoever asks for the write; each is applied at most once.
    pub write_id: WriteId,
    /// Stamped by the proposer: apply reads no clock.
    pub at: Timestamp,
    pub body: Body,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// What a client asked for.
    Operation(Operation),
    /// From here on: steps of the leader's loops. One that no longer fits the revision's stage
    /// changes nothing and is not an error, since a leader may learn late that it repeats itself.
    BeginBuild {
        revision: RevisionId,
    },
    FinishBuild {
        revision: RevisionId,
        output: BuildOutput,
    },
    FailBuild {
        revision: RevisionId,
        reason: String,
    },
    /// The revision proved itself and serves from now on.
    Promote {
        revision: RevisionId,
    },
    FailDeploy {
        revision: RevisionId,
        reason: String,
    },
    /// After restoring a snapshot or recovering a cluster. Only ever raises it.
    SetIncarnation {
        incarnation: u64,
    },
    /// From here on: who belongs to the cluster. Proposed by controllers only.
    InitCluster {
        first: Admission,
        ca_certificate: Vec<u8>,
        ca_key: Vec<u8>,
    },
    RedeemJoinToken {
        id: TokenId,
        hash: SecretHash,
        admission: Admission,
    },
    RemoveMember {
        member: MemberId,
    },
    RotateClusterKey {
        generation: u64,
        ca_key: Vec<u8>,
        wrapped: BTreeMap<MemberId, Vec<u8>>,
    },
    /// From here on: nodes. Proposed by the leader only, which knows what is connected and what
    /// runs; what it looked at first is in `leader/nodes.rs` of the controller.
    RegisterNode(RegisterNode),
    /// Opening a node again ends its draining too.
    CordonNode {
        node: NodeId,
        cordoned: bool,
    },
    DrainNode {
        node: NodeId,
        deadline: Option<Timestamp>,
        force: bool,
    },
    RemoveNode {
        node: NodeId,
    },
}

/// An agent said hello with something that is not recorded yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegisterNode {
    pub id: NodeId,
    pub name: NodeName,
    pub labels: Labels,
    /// The node that had the name and is gone: a machine that was installed anew.
    pub replaces: Option<NodeId>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// Refused before it is proposed; nothing was written.
    #[error(
        "the change is too large to be replicated: {size} bytes, at most {} are allowed (shorten \
         environment variables, annotations or lists)",
        limits::ENTRY_MAX_BYTES
    )]
    TooLarge { size: usize },
}

/// An entry that this version cannot apply. The replica must stop: skipping it would let it differ
/// from the others.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("a log entry is not a command")]
    Malformed(#[source] prost::DecodeError),
    /// Written by a newer version.
    #[error("a log entry holds a command, or a field of one, that this version does not know")]
    UnknownCommand,
    #[error("a log entry holds a command with an invalid field")]
    Field(#[source] ConvertError),
}

impl Command {
    /// The bytes for the log, at most [`limits::ENTRY_MAX_BYTES`].
    pub fn encode(self) -> Result<Vec<u8>, EncodeError> {
        let message = v1::Command::from(self);
        let size = message.encoded_len();
        if size > limits::ENTRY_MAX_BYTES {
            return Err(EncodeError::TooLarge { size });
        }
        Ok(message.encode_to_vec())
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let message = v1::Command::decode(bytes).map_err(DecodeError::Malformed)?;
        // Decoding skips fields that it does not know, silently. All our encoders write the same
        // canonical form, so whatever does not come out again was not understood.
        if message.encode_to_vec() != bytes || message.body.is_none() {
            return Err(DecodeError::UnknownCommand);
        }
        message.try_into().map_err(DecodeError::Field)
    }
}

impl From<Command> for v1::Command {
    fn from(value: Command) -> Self {
        use v1::command::Body as Wired;
        let body = match value.body {
            Body::Operation(operation) => Wired::Operation(operation.into()),
            Body::BeginBuild { revision } => Wired::BeginBuild(v1::BeginBuild {
                revision: Some(revision.into()),
            }),
            Body::FinishBuild { revision, output } => Wired::FinishBuild(v1::FinishBuild {
                revision: Some(revision.into()),
                output: Some(output.into()),
            }),
            Body::FailBuild { revision, reason } => Wired::FailBuild(v1::FailBuild {
                revision: Some(revision.into()),
                reason,
            }),
            Body::Promote { revision } => Wired::Promote(v1::Promote {
                revision: Some(revision.into()),
            }),
            Body::FailDeploy { revision, reason } => Wired::FailDeploy(v1::FailDeploy {
                revision: Some(revision.into()),
                reason,
            }),
            Body::SetIncarnation { incarnation } => {
                Wired::SetIncarnation(v1::SetIncarnation { incarnation })
            }
            Body::InitCluster {
                first,
                ca_certificate,
                ca_key,
            } => Wired::InitCluster(v1::InitCluster {
                first: Some(first.into()),
                ca_certificate: ca_certificate.into(),
                ca_key: ca_key.into(),
            }),
            Body::RedeemJoinToken {
                id,
                hash,
                admission,
            } => Wired::RedeemJoinToken(v1::RedeemJoinToken {
                id: id.to_wire(),
                hash: hash.to_wire(),
                admission: Some(admission.into()),
            }),
            Body::RemoveMember { member } => Wired::RemoveMember(v1::RemoveMember {
                member: member.to_wire(),
            }),
            Body::RotateClusterKey {
                generation,
                ca_key,
                wrapped,
            } => Wired::RotateClusterKey(v1::RotateClusterKey {
                generation,
                ca_key: ca_key.into(),
                wrapped: wrapped
                    .into_iter()
                    .map(|(id, key)| (id.0, key.into()))
                    .collect(),
            }),
            Body::RegisterNode(register) => Wired::RegisterNode(v1::RegisterNode {
                id: register.id.to_wire(),
                name: register.name.into(),
                labels: register.labels.into(),
                replaces: register.replaces.to_wire(),
            }),
            Body::CordonNode { node, cordoned } => Wired::CordonNode(v1::CordonNode {
                node: node.to_wire(),
                cordoned,
            }),
            Body::DrainNode {
                node,
                deadline,
                force,
            } => Wired::DrainNode(v1::DrainNode {
                node: node.to_wire(),
                deadline: deadline.map(Timestamp::millis),
                force,
            }),
            Body::RemoveNode { node } => Wired::RemoveNode(v1::RemoveNode {
                node: node.to_wire(),
            }),
        };
        Self {
            write_id: value.write_id.to_wire(),
            at: value.at.0,
            body: Some(body),
        }
    }
}

impl TryFrom<v1::Command> for Command {
    type Error = ConvertError;
    fn try_from(value: v1::Command) -> Result<Self, ConvertError> {
        use v1::command::Body as Wired;
        let body = match value.body.ok_or_else(|| ConvertError::missing("body"))? {
            Wired::Operation(m) => Body::Operation(
                m.try_into()
                    .map_err(|error: ConvertError| error.inside("operation"))?,
            ),
            Wired::BeginBuild(m) => Body::BeginBuild {
                revision: required("begin_build.revision", m.revision)?,
            },
            Wired::FinishBuild(m) => Body::FinishBuild {
                revision: required("finish_build.revision", m.revision)?,
                output: required("finish_build.output", m.output)?,
            },
            Wired::FailBuild(m) => Body::FailBuild {
                revision: required("fail_build.revision", m.revision)?,
                reason: m.reason,
            },
            Wired::Promote(m) => Body::Promote {
                revision: required("promote.revision", m.revision)?,
            },
            Wired::FailDeploy(m) => Body::FailDeploy {
                revision: required("fail_deploy.revision", m.revision)?,
                reason: m.reason,
            },
            Wired::SetIncarnation(m) => Body::SetIncarnation {
                incarnation: m.incarnation,
            },
            Wired::InitCluster(m) => Body::InitCluster {
                first: required("init_cluster.first", m.first)?,
                ca_certificate: m.ca_certificate.into(),
                ca_key: m.ca_key.into(),
            },
            Wired::RedeemJoinToken(m) => Body::RedeemJoinToken {
                id: Wire::from_wire("redeem_join_token.id", m.id)?,
                hash: Wire::from_wire("redeem_join_token.hash", m.hash)?,
                admission: required("redeem_join_token.admission", m.admission)?,
            },
            Wired::RemoveMember(m) => Body::RemoveMember {
                member: Wire::from_wire("remove_member.member", m.member)?,
            },
            Wired::RotateClusterKey(m) => Body::RotateClusterKey {
                generation: m.generation,
                ca_key: m.ca_key.into(),
                wrapped: m
                    .wrapped
                    .into_iter()
                    .map(|(id, key)| {
                        let id = Wire::from_wire("rotate_cluster_key.wrapped", id)?;
                        Ok((id, key.into()))
                    })
                    .collect::<Result<_, ConvertError>>()?,
            },
            Wired::RegisterNode(m) => Body::RegisterNode(RegisterNode {
                id: Wire::from_wire("register_node.id", m.id)?,
                name: Wire::from_wire("register_node.name", m.name)?,
                labels: Wire::from_wire("register_node.labels", m.labels)?,
                replaces: Wire::from_wire("register_node.replaces", m.replaces)?,
            }),
            Wired::CordonNode(m) => Body::CordonNode {
                node: Wire::from_wire("cordon_node.node", m.node)?,
                cordoned: m.cordoned,
            },
            Wired::DrainNode(m) => Body::DrainNode {
                node: Wire::from_wire("drain_node.node", m.node)?,
                deadline: m.deadline.map(Timestamp),
                force: m.force,
            },
            Wired::RemoveNode(m) => Body::RemoveNode {
                node: Wire::from_wire("remove_node.node", m.node)?,
            },
        };
        Ok(Self {
            write_id: Wire::from_wire("write_id", value.write_id)?,
            at: Timestamp(value.at),
            body,
        })
    }
}
