//! This controller's part in its cluster: the secrets that it opens, and the certificates that it
//! signs. A server by itself has none of it.

mod enrol;

use std::{collections::BTreeMap, sync::Arc};

use coracle_base::{Address, Shutdown, Tls};
use coracle_identity::{
    Authority, AuthorityError, ClusterKey, Component, Issued, KeyError, WrappingKey,
};
use coracle_model::{
    MemberId, Refusal, WriteId,
    cluster::{Admission, ClusterSecrets},
};
use coracle_state::{Body, View};

pub(crate) use enrol::{Applicant, EnrolError, Wish};

use crate::core::{Core, WriteError, fresh_write};

/// Tells the transport where the controllers are, as the books say.
pub(crate) async fn follow_books(core: Arc<Core>, shutdown: Shutdown) {
    let Some(identity) = core.identity.clone() else {
        return;
    };
    let mut published = core.published.clone();
    let mut known = BTreeMap::new();
    loop {
        let view = Arc::clone(&published.borrow_and_update().view);
        let others = view.members().filter(|member| member.id != core.me());
        let others: BTreeMap<u64, String> = others
            .map(|member| (member.id.0, member.address.clone()))
            .collect();
        // One that waits to be added has no books yet, and goes by what it was told when it joined.
        if view.members().next().is_some() && others != known {
            let address = |at: &String| Address::Tls(at.clone(), identity.tls.clone());
            let peers = others.iter().map(|(id, at)| (*id, address(at)));
            core.me.table.set(peers.collect());
            known = others;
        }
        tokio::select! {
            () = shutdown.requested() => return,
            changed = published.changed() => if changed.is_err() { return },
        }
    }
}

/// What the CA's key is sealed for: nothing else opens as it.
const CA_KEY: &str = "ca-key";

/// What a controller of a cluster is given beside its log.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Opens this controller's copy of the cluster key.
    pub wrapping_key: Arc<WrappingKey>,
    /// For reaching the other controllers.
    pub tls: Tls,
}

#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    #[error(
        "this server stands by itself; make a cluster of it with `coracle cluster init --from`"
    )]
    Standalone,
    #[error("no copy of the cluster key is sealed to this controller (member {0})")]
    NoCopy(MemberId),
    #[error("the cluster's secrets do not open")]
    Key(#[from] KeyError),
    #[error("a certificate was not signed")]
    Authority(#[from] AuthorityError),
    #[error("the cluster's state was not changed")]
    Write(#[from] WriteError),
}

/// The certificate of a cluster's first controller.
#[derive(Debug)]
pub struct Founded {
    pub ca_certificate: Vec<u8>,
    pub issued: Issued,
}

/// Who founds a cluster.
#[derive(Debug)]
pub struct Founder {
    pub name: String,
    /// Where the others will reach it.
    pub address: String,
    pub wrapping_key: [u8; 32],
    /// For its certificate.
    pub public_key: Vec<u8>,
}

impl Core {
    fn me(&self) -> MemberId {
        MemberId(self.replica.id())
    }

    fn secrets(view: &View) -> Result<&ClusterSecrets, ClusterError> {
        view.secrets().ok_or(ClusterError::Standalone)
    }

    fn cluster_key(&self, secrets: &ClusterSecrets) -> Result<ClusterKey, ClusterError> {
        let identity = self.identity.as_ref().ok_or(ClusterError::Standalone)?;
        let wrapped = secrets.wrapped.get(&self.me());
        let wrapped = wrapped.ok_or(ClusterError::NoCopy(self.me()))?;
        Ok(identity.wrapping_key.unwrap(wrapped)?)
    }

    /// The CA with its private key, opened for as long as the value lives.
    fn authority(&self, secrets: &ClusterSecrets) -> Result<Authority, ClusterError> {
        let key = self.cluster_key(secrets)?.open(CA_KEY, &secrets.ca_key)?;
        let certificate = secrets.ca_certificate.clone();
        Ok(Authority::open(&self.cluster_id, certificate, &key)?)
    }

    /// Any controller can sign: each opens the CA's key with its own copy of the cluster key.
    pub(crate) fn sign(
        &self,
        view: &View,
        component: Component,
        public_key: &[u8],
    ) -> Result<Issued, ClusterError> {
        let authority = self.authority(Self::secrets(view)?)?;
        Ok(authority.issue(component, public_key, self.now())?)
    }

    /// Whether a component that holds a certificate was not removed since.
    pub(crate) fn belongs(&self, component: &Component) -> bool {
        let view = self.view();
        match component {
            // A member that was just added is known to the leader before it is known here.
            Component::Controller(id) => view.member(*id).is_some() || id.0 > view.last_member(),
            Component::Agent(id) => !view.is_removed(*id),
            Component::Gateway(_) => true,
        }
    }

    /// Makes the CA and the cluster key, seals both, and signs the first certificate.
    pub(crate) async fn found(&self, founder: Founder) -> Result<Founded, ClusterError> {
        let authority = Authority::create(&self.cluster_id, self.now())?;
        let key = ClusterKey::generate();
        let body = Body::InitCluster {
            first: Admission::Controller {
                name: founder.name,
                address: founder.address,
                wrapping_key: founder.wrapping_key,
                wrapped: key.wrap(&founder.wrapping_key),
                generation: 1,
                replaces: None,
            },
            ca_certificate: authority.certificate().to_vec(),
            ca_key: key.seal(CA_KEY, &authority.private_key()),
        };
        self.write(fresh_write(), body).await?;
        let component = Component::Controller(self.me());
        let issued = authority.issue(component, &founder.public_key, self.now())?;
        Ok(Founded {
            ca_certificate: authority.certificate().to_vec(),
            issued,
        })
    }

    /// A new cluster key: the secrets are encrypted anew, and it is sealed to the members that there
    /// are. Returns its generation.
    pub(crate) async fn rotate_key(&self, mut id: WriteId) -> Result<u64, ClusterError> {
        loop {
            let view = self.view();
            let secrets = Self::secrets(&view)?;
            let ca_key = self.cluster_key(secrets)?.open(CA_KEY, &secrets.ca_key)?;
            let (key, generation) = (ClusterKey::generate(), secrets.generation + 1);
            let body = Body::RotateClusterKey {
                generation,
                ca_key: key.seal(CA_KEY, &ca_key),
                wrapped: view
                    .members()
                    .map(|member| (member.id, key.wrap(&member.wrapping_key)))
                    .collect(),
            };
            match self.write(id, body).await {
                // By what is there, since this may have been the repetition of an earlier call.
                Ok(()) => return Ok(Self::secrets(&self.view())?.generation),
                // The members changed meanwhile: look again, unless the same write came before.
                Err(WriteError::Refused(Refusal::Conflict(_)))
                    if self.view().secrets() != Some(secrets) =>
                {
                    id = fresh_write();
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}
