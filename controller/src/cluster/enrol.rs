//! Letting a machine in. Decided by the leader, which knows who is connected.

use coracle_identity::{Component, Issued};
use coracle_model::{
    ComponentRole, MemberId, NodeId, NodeName, Refusal, SecretHash, TokenId, WriteId,
    cluster::Admission,
};
use coracle_state::{Body, View};
use tokio::time::Instant;
use uuid::Uuid;

use super::ClusterError;
use crate::core::{Core, WriteError, chain, fresh_write};

/// Certificates count from a few minutes ago, and tokens and sessions lean on clocks too.
const SKEW_MAX_MS: u64 = 4 * 60 * 1_000;

/// How long a controller that was let in may take to start.
const SETTLING_MS: u64 = 10_000;

/// What a machine that asks to be let in says of itself.
#[derive(Debug, Clone)]
pub(crate) struct Applicant {
    pub(crate) enrolment: WriteId,
    pub(crate) token: String,
    pub(crate) name: String,
    pub(crate) now: u64,
    /// Of its data directory; empty for a new one.
    pub(crate) cluster_id: String,
    pub(crate) public_key: Vec<u8>,
    pub(crate) wish: Wish,
}

#[derive(Debug, Clone)]
pub(crate) enum Wish {
    Controller {
        address: String,
        wrapping_key: [u8; 32],
    },
    Agent(NodeId),
    Gateway(Uuid),
}

impl Wish {
    pub(crate) fn role(&self) -> ComponentRole {
        match self {
            Self::Controller { .. } => ComponentRole::Controller,
            Self::Agent(_) => ComponentRole::Agent,
            Self::Gateway(_) => ComponentRole::Gateway,
        }
    }
}

/// Each is one sentence for whoever sits at the machine.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnrolError {
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
}

impl From<WriteError> for EnrolError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Refused(refusal) => refused(refusal),
            other => Self::Cluster(other.into()),
        }
    }
}

fn refused(why: impl std::fmt::Display) -> EnrolError {
    EnrolError::Refused(why.to_string())
}

#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) component: Component,
    pub(crate) issued: Issued,
}

impl Core {
    pub(crate) async fn enrol(&self, applicant: Applicant) -> Result<Admitted, EnrolError> {
        let view = self.view();
        self.check(&view, &applicant)?;
        let (id, secret) = applicant
            .token
            .split_once('$')
            .ok_or_else(malformed_token)?;
        let id: TokenId = id.parse().map_err(|_| malformed_token())?;
        let secrets = Self::secrets(&view)?;
        let replaces = match &applicant.wish {
            Wish::Controller { .. } => self.place_of(&view, &applicant.name).await?,
            Wish::Agent(_) | Wish::Gateway(_) => None,
        };
        let admission = match &applicant.wish {
            Wish::Controller {
                address,
                wrapping_key,
            } => Admission::Controller {
                name: applicant.name.clone(),
                address: address.clone(),
                wrapping_key: *wrapping_key,
                wrapped: self.cluster_key(secrets)?.wrap(wrapping_key),
                generation: secrets.generation,
                replaces,
            },
            Wish::Agent(_) => Admission::Agent,
            Wish::Gateway(_) => Admission::Gateway,
        };
        let body = Body::RedeemJoinToken {
            id,
            hash: SecretHash::of(secret),
            admission,
        };
        self.write(applicant.enrolment, body).await?;
        let view = self.view();
        let component = match applicant.wish {
            Wish::Controller { wrapping_key, .. } => {
                Component::Controller(number_of(&view, wrapping_key)?)
            }
            Wish::Agent(id) => Component::Agent(id),
            Wish::Gateway(id) => Component::Gateway(id),
        };
        if replaces.is_some() {
            // The machine's old disk held the key; that is no reason to keep the new one out.
            if let Err(error) = self.rotate_key(fresh_write()).await {
                tracing::error!(
                    error = chain(&error),
                    "the cluster key was not changed; use `coracle cluster rotate-key`"
                );
            }
        }
        let issued = self.sign(&view, component, &applicant.public_key)?;
        Ok(Admitted { component, issued })
    }

    /// The member of this name, which the applicant is after it was installed anew, unless that one
    /// is there.
    async fn place_of(&self, view: &View, name: &str) -> Result<Option<MemberId>, EnrolError> {
        let Some(old) = view.members().find(|member| member.name == name) else {
            return Ok(None);
        };
        let deadline = Instant::now() + self.config.write_deadline;
        let group = self.replica.members(deadline).await;
        let group = group.map_err(|error| refused(format_args!("{error}; try again")))?;
        let mut members = group.voters.iter().chain(&group.learners);
        // The leader may not have met one that was let in just now.
        let is_there = old.id == self.me()
            || self.now().since(old.joined_at) < SETTLING_MS
            || members.any(|member| {
                member.id == old.id.0 && member.progress.is_none_or(|progress| progress.active)
            });
        if is_there {
            return Err(refused(format_args!(
                "a controller of the name {name} is connected (member {}); stop it, or give this \
                 one another --node-name",
                old.id
            )));
        }
        Ok(Some(old.id))
    }

    /// What can be said before the token is used.
    fn check(&self, view: &View, applicant: &Applicant) -> Result<(), EnrolError> {
        let (ours, theirs) = (self.now().0, applicant.now);
        if ours.abs_diff(theirs) > SKEW_MAX_MS {
            return Err(refused(format_args!(
                "this machine's clock is {} minutes {} the controller's; set it and join again",
                (ours.abs_diff(theirs) + 30_000) / 60_000,
                if theirs < ours { "behind" } else { "ahead of" }
            )));
        }
        let given = &applicant.cluster_id;
        if !given.is_empty() && *given != self.cluster_id {
            return Err(refused(format_args!(
                "the data directory belongs to cluster {given}, and this is cluster {}; choose \
                 another --data",
                self.cluster_id
            )));
        }
        match &applicant.wish {
            Wish::Agent(id) => self.check_node(view, *id, &applicant.name),
            Wish::Controller { address, .. } => {
                let host = address
                    .rsplit_once(':')
                    .filter(|(host, _)| !host.is_empty());
                let port = host.and_then(|(_, port)| port.parse::<u16>().ok());
                if port.is_none_or(|port| port == 0) {
                    return Err(refused(format_args!(
                        "--advertise {address:?} is not of the form host:port"
                    )));
                }
                Ok(())
            }
            Wish::Gateway(_) => Ok(()),
        }
    }

    /// A machine that was installed anew takes the place of the old one of its name, unless that one
    /// is there.
    fn check_node(&self, view: &View, id: NodeId, name: &str) -> Result<(), EnrolError> {
        if let Err(error) = name.parse::<NodeName>() {
            return Err(refused(format_args!(
                "--node-name {name:?}: {}",
                error.reason
            )));
        }
        if view.is_removed(id) {
            return Err(refused(format_args!(
                "node {id} was removed from the cluster; to join again the machine needs an empty \
                 data directory"
            )));
        }
        let memory = self.memory();
        let mut connected = memory
            .nodes
            .iter()
            .filter(|(_, node)| node.session.is_some());
        match connected.find(|(other, node)| **other == id || node.node.name == name) {
            Some((other, _)) if *other == id => Err(refused(format_args!(
                "node {id} is connected; a second one with its identity is not let in"
            ))),
            Some((other, _)) => Err(refused(format_args!(
                "a node of the name {name} is connected ({other}); stop it, or give this one \
                 another --node-name"
            ))),
            None => Ok(()),
        }
    }
}

fn malformed_token() -> EnrolError {
    refused("the join token is not of the form <id>$<secret>")
}

/// The number that the state gave to whoever holds this key.
fn number_of(view: &View, wrapping_key: [u8; 32]) -> Result<MemberId, EnrolError> {
    let mut members = view.members();
    let found = members.find(|member| member.wrapping_key == wrapping_key);
    // Let in and removed again between the two.
    let gone = || Refusal::NotFound("the member".to_owned());
    Ok(found.ok_or_else(|| refused(gone()))?.id)
}
