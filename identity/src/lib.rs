//! Who is who in a cluster: certificates, the CA that signs them, the key that seals its secrets,
//! and what each kind of peer may call.
//!
//! Every connection between components of a cluster is mutual TLS. A certificate's subject
//! alternative name is `coracle://<cluster>/<role>/<id>` ([`Name`]); [`Peer::of`] says who sent a
//! request, and [`Guard`] refuses what [`access`] does not allow that peer. A machine gets its first
//! certificate with a join token, over a connection that is pinned to the CA's hash
//! ([`CaHash`]); it renews it over its own identity.

#![forbid(unsafe_code)]

pub mod access;
mod authority;
mod client;
mod guard;
mod hash;
mod keys;
mod name;
mod peer;
mod store;

pub use authority::{Authority, AuthorityError, Issued, KeyPair, LIFETIME};
pub use client::{Candidate, Invitation, JoinError, Renewal, join};
pub use guard::Guard;
pub use hash::CaHash;
pub use keys::{ClusterKey, KeyError, WrappingKey};
pub use name::Name;
pub use peer::{Component, Peer};
pub use store::{ControllerPart, Enrolment, Private, StoreError};
