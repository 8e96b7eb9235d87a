//! Distinct types for every kind of id, so that none can be passed for another.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::Invalid;

macro_rules! uuid_id {
    ($($(#[$doc:meta])* $name:ident = $label:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { self.0.fmt(f) }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { write!(f, "{}:{}", $label, self.0) }
        }
        impl FromStr for $name {
            type Err = Invalid;
            fn from_str(s: &str) -> Result<Self, Invalid> {
                Uuid::try_parse(s).map(Self).map_err(|_| Invalid::new($label, "must be a UUID"))
            }
        }
        impl From<Uuid> for $name {
            fn from(value: Uuid) -> Self { Self(value) }
        }
    )*};
}

uuid_id! {
    NamespaceId = "namespace_id";
    FunctionId = "function_id";
    /// One running copy. Made by whoever orders it, so that a repeated order is the same order.
    InstanceId = "instance_id";
    NodeId = "node_id";
    TaskId = "task_id";
    /// A function key (checked by the gateway on invocations).
    KeyId = "key_id";
    /// A management token (checked on the API listener).
    TokenId = "token_id";
    /// Made by the client of a write; the state machine applies each at most once.
    WriteId = "write_id";
    /// Made by the gateway that parked the requests; repeating an activation changes nothing.
    ActivationId = "activation_id";
    RequestId = "request_id";
    /// One attempt at building one revision.
    BuildId = "build_id";
}

/// A tenant. A small integer, since two clouds have integers in their paths; never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProjectId(pub u32);

impl ProjectId {
    /// The project that every server has.
    pub const DEFAULT: Self = Self(1);
}

impl fmt::Display for ProjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A revision is named by its function and a number that counts up from 1, so that the state
/// machine can make one without being handed a fresh id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RevisionId {
    pub function: FunctionId,
    pub number: u32,
}

impl fmt::Display for RevisionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.function, self.number)
    }
}

impl FromStr for RevisionId {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        let bad = || Invalid::new("revision", "must be a function id, a dot and a number");
        let (function, number) = s.rsplit_once('.').ok_or_else(bad)?;
        Ok(Self {
            function: function.parse()?,
            number: number.parse().map_err(|_| bad())?,
        })
    }
}
