//! The one internal function model: what is stored, scheduled and run.
//!
//! Values here are parsed once and valid by construction. Nothing in this crate does I/O, reads a
//! clock or draws a random number: ids and times come in from outside. Provider words stay in the
//! facades; a field exists here only when the runtime acts on it.

#![forbid(unsafe_code)]

pub mod artifact;
pub mod cluster;
pub mod env;
pub mod error;
pub mod function;
pub mod ids;
pub mod instance;
pub mod key;
pub mod labels;
pub mod limits;
pub mod name;
pub mod namespace;
pub mod node;
pub mod operation;
pub mod quantity;
pub mod query;
pub mod task;
pub mod time;

pub use artifact::Digest;
pub use cluster::{ComponentRole, JoinToken, Member, MemberId};
pub use env::Env;
pub use error::{Invalid, Refusal};
pub use function::{
    BuildOutput, Convention, Function, Handler, Network, Revision, RevisionSettings, Source, Stage,
};
pub use ids::{
    ActivationId, BuildId, FunctionId, InstanceId, KeyId, NamespaceId, NodeId, ProjectId,
    RequestId, RevisionId, TaskId, TokenId, WriteId,
};
pub use instance::{ExitReason, InstanceSpec, InstanceState, Stamp};
pub use key::{FunctionKey, FunctionRef, SecretHash, Token, TokenRole};
pub use labels::{Labels, PlacementRules, Spread};
pub use name::{FunctionName, KeyName, NamespaceName, NodeName, ProjectName, RuntimeName};
pub use namespace::{Namespace, Project};
pub use operation::Operation;
pub use quantity::{Concurrency, Memory, MilliCpu, ScaleBounds, Timeout};
pub use query::{LogLine, LogLineRef, LogStream};
pub use task::{Task, TaskState};
pub use time::Timestamp;
