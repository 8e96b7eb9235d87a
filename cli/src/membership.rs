//! A data directory's place in a cluster: joining one, and what its connections show from then on.

use std::{path::Path, sync::Arc, time::Duration};

use coracle_base::{Address, Clock, Shutdown, SystemClock, Tls, Told};
use coracle_controller::PeerTable;
use coracle_identity::{
    Candidate, Component, Enrolment, Invitation, JoinError, Name, Renewal, WrappingKey, join,
};
use coracle_model::ComponentRole::{self, Agent, Controller, Gateway};
use uuid::Uuid;

use crate::{
    data::{DataDir, Identity, Locked, write_durably},
    error::CliError,
    settings::Settings,
};

const CONTROLLERS: &[ComponentRole] = &[Controller];
/// A controller hands on what a gateway asked it.
const GATEWAYS: &[ComponentRole] = &[Gateway, Controller];
const CONTROLLERS_FILE: &str = "controllers.json";
const JOIN_PATIENCE: Duration = Duration::from_secs(60);

/// What a data directory is to the process that opened it.
#[derive(Debug)]
pub(crate) enum Opened {
    Member(DataDir, Box<Membership>),
    /// It belongs to no cluster of several machines.
    Alone(Locked),
}

#[derive(Debug)]
pub(crate) struct Membership {
    pub(crate) enrolment: Enrolment,
    /// For any component of the cluster, in either direction.
    tls: Tls,
}

/// Opens the data directory for a role, and joins a cluster first if that was asked for and has not
/// been done: a restart needs no `--join`, and does not mind one.
pub(crate) async fn open(settings: &Settings, role: ComponentRole) -> Result<Opened, CliError> {
    let locked = Locked::take(&settings.data)?;
    let found = Enrolment::load(&settings.data);
    let found = found.map_err(|error| CliError::failed("identity", error))?;
    let enrolment = match (found, &settings.join) {
        (Some(enrolment), asked) => {
            is_the_one(&settings.data, &enrolment, role, asked.as_ref())?;
            enrolment
        }
        (None, Some(invitation)) => enrol(settings, &locked, role, invitation).await?,
        (None, None) => return Ok(Opened::Alone(locked)),
    };
    let data = locked.keep(|| Identity {
        cluster_id: enrolment.name.cluster.clone(),
        node_id: id_of(&enrolment.name.component).unwrap_or_else(Uuid::new_v4),
    })?;
    if data.identity().cluster_id != enrolment.name.cluster {
        return Err(CliError::Failed(format!(
            "{} contradicts itself: it is of cluster {} and has a certificate of cluster {}",
            data.path().display(),
            data.identity().cluster_id,
            enrolment.name.cluster
        )));
    }
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let tls = enrolment.tls(clock, &ComponentRole::ALL);
    let tls = tls.map_err(|error| CliError::failed("identity", error))?;
    let membership = Membership { enrolment, tls };
    Ok(Opened::Member(data, Box::new(membership)))
}

/// Whether an enrolled directory is what the command line takes it for.
fn is_the_one(
    data: &Path,
    enrolment: &Enrolment,
    role: ComponentRole,
    asked: Option<&Invitation>,
) -> Result<(), CliError> {
    let is = enrolment.name.component.role();
    if is != role {
        return Err(CliError::Usage(format!(
            "{} has joined cluster {} as {is}; choose another --data for the {role}",
            data.display(),
            enrolment.name.cluster
        )));
    }
    if asked.is_some_and(|asked| asked.ca_hash != enrolment.ca_hash()) {
        return Err(CliError::Usage(format!(
            "{} has joined cluster {}, whose CA has the hash {} and not the one given; choose \
             another --data",
            data.display(),
            enrolment.name.cluster,
            enrolment.ca_hash()
        )));
    }
    Ok(())
}

fn id_of(component: &Component) -> Option<Uuid> {
    match component {
        Component::Controller(_) => None,
        Component::Agent(node) => Some(node.0),
        Component::Gateway(id) => Some(*id),
    }
}

async fn enrol(
    settings: &Settings,
    locked: &Locked,
    role: ComponentRole,
    invitation: &Invitation,
) -> Result<Enrolment, CliError> {
    let known = locked.known()?;
    let candidate = Candidate {
        role,
        name: settings.node_name.clone(),
        id: known
            .as_ref()
            .map_or_else(Uuid::new_v4, |known| known.node_id),
        cluster_id: known.map(|known| known.cluster_id),
        addresses: match role {
            Controller => Some(addresses(settings)?),
            Agent | Gateway => None,
        },
    };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let joined = join(invitation, &candidate, clock, JOIN_PATIENCE).await;
    let enrolment = joined.map_err(|error| match error {
        JoinError::Refused(_) => CliError::Unauthorized(error.to_string()),
        JoinError::NoAnswer(_) => CliError::Unreachable(error.to_string()),
        JoinError::Setup(_) => CliError::Failed(error.to_string()),
    })?;
    let saved = enrolment.save(&settings.data);
    saved.map_err(|error| CliError::failed("identity", error))?;
    tracing::info!(name = %enrolment.name, "joined the cluster");
    Ok(enrolment)
}

/// Where a controller listens, and what it tells others to dial.
pub(crate) fn addresses(settings: &Settings) -> Result<(String, String), CliError> {
    let listen = match &settings.listen {
        Some(Address::Tcp(listen)) => listen.clone(),
        _ => {
            return Err(CliError::Usage(
                "listen: a controller of a cluster needs --listen host:port".to_owned(),
            ));
        }
    };
    let advertise = settings.advertise.clone().unwrap_or_else(|| listen.clone());
    let host = advertise.rsplit_once(':').map_or("", |(host, _)| host);
    if ["0.0.0.0", "[::]", "*", ""].contains(&host) {
        return Err(CliError::Usage(format!(
            "advertise: the others cannot reach {advertise}; say where with --advertise host:port"
        )));
    }
    Ok((listen, advertise))
}

impl Membership {
    /// For dialling controllers.
    pub(crate) fn to_controllers(&self) -> Tls {
        let check = Name::check(&self.enrolment.name.cluster, CONTROLLERS);
        self.tls.expecting(check)
    }

    /// For what gateways dial.
    pub(crate) fn to_gateways(&self) -> Tls {
        let check = Name::check(&self.enrolment.name.cluster, GATEWAYS);
        self.tls.expecting(check)
    }

    /// For listening, and for dialling whoever is checked by other means.
    pub(crate) fn tls(&self) -> Tls {
        self.tls.clone()
    }

    /// Those given, or those that it heard of when it joined.
    pub(crate) fn controllers(&self, given: &[Address]) -> Vec<Address> {
        let tls = self.to_controllers();
        if given.is_empty() {
            let known = self.enrolment.controllers.iter();
            return known
                .map(|at| Address::Tls(at.clone(), tls.clone()))
                .collect();
        }
        given.iter().map(|at| at.clone().secured(&tls)).collect()
    }

    /// Where controllers say that they are; kept in the data directory for the next start.
    pub(crate) fn told(&self, data: &Path) -> Told {
        let (tls, file) = (self.to_controllers(), data.join(CONTROLLERS_FILE));
        let addresses = match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(file = %file.display(), %error, "the known controllers are unreadable");
                Vec::new()
            }),
            Err(_) => Vec::new(),
        };
        let keep = move |addresses: &[String]| {
            let (file, addresses) = (file.clone(), addresses.to_vec());
            // Without it the next start knows those of the configuration.
            drop(tokio::task::spawn_blocking(move || {
                let bytes = serde_json::to_vec(&addresses).unwrap_or_default();
                if let Err(error) = write_durably(&file, &bytes, 0o644) {
                    tracing::warn!(file = %file.display(), %error, "controllers were not kept");
                }
            }));
        };
        Told {
            addresses,
            resolve: Arc::new(move |text| Address::told(text, Some(&tls))),
            keep: Arc::new(keep),
        }
    }

    /// A controller's number, what it opens the cluster's secrets with, and where the others were
    /// when it last heard of them.
    pub(crate) fn as_controller(
        &self,
    ) -> Result<(u64, coracle_controller::Identity, PeerTable), CliError> {
        let part = self.enrolment.controller.as_ref();
        let (Component::Controller(member), Some(part)) = (self.enrolment.name.component, part)
        else {
            return Err(CliError::Failed(
                "identity.json is not that of a controller".to_owned(),
            ));
        };
        let tls = self.to_controllers();
        let others = part.peers.iter().filter(|(id, _)| **id != member.0);
        let peers = others.map(|(id, at)| (*id, Address::Tls(at.clone(), tls.clone())));
        let peers = PeerTable::new(peers.collect());
        let secret = part.wrapping_key.secret();
        let identity = coracle_controller::Identity {
            wrapping_key: Arc::new(WrappingKey::from_secret(secret)),
            tls,
        };
        Ok((member.0, identity, peers))
    }

    /// Renews the certificate in time, until the shutdown.
    pub(crate) fn keep(self, data: &DataDir, shutdown: &Shutdown) {
        let renewal = Renewal {
            data: data.path().to_owned(),
            enrolment: self.enrolment,
            tls: self.tls,
            clock: Arc::new(SystemClock),
        };
        shutdown.spawn("certificate", renewal.run(shutdown.clone()));
    }
}

/// Without certificates only what is on this machine can be trusted.
pub(crate) fn only_here<'a>(
    setting: &str,
    addresses: impl IntoIterator<Item = &'a Address>,
) -> Result<(), CliError> {
    match addresses.into_iter().find(|address| !address.is_local()) {
        None => Ok(()),
        Some(address) => Err(CliError::Usage(format!(
            "{setting}: {address} is beyond this machine, and components of several machines speak \
             mutual TLS only: join a cluster with --join, --token and --ca-hash (`coracle node \
             token` prints them)"
        ))),
    }
}
