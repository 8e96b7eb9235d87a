//! Joining a cluster, and staying in it: the machine's side of `Join`.

use std::{collections::BTreeMap, io, path::PathBuf, sync::Arc, time::Duration};

use coracle_base::{Address, Backoff, Clock, Shutdown, Tls, Trust};
use coracle_model::{ComponentRole, Timestamp};
use coracle_proto::{
    Wire as _,
    v1::{self, join_client::JoinClient},
};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::{Code, Request, Status};
use uuid::Uuid;

use crate::{
    CaHash, ControllerPart, Enrolment, Issued, KeyPair, Name, Private, StoreError, WrappingKey,
};

const CONTROLLERS: &[ComponentRole] = &[ComponentRole::Controller];
const ATTEMPT: Duration = Duration::from_secs(10);
/// A renewal that failed is tried again after this long, with ten days left.
const RETRY_FIRST: Duration = Duration::from_secs(60);
const RETRY_MOST: Duration = Duration::from_secs(60 * 60);

/// What `--join`, `--token` and `--ca-hash` say.
#[derive(Debug, Clone)]
pub struct Invitation {
    /// Of controllers: `host:port`.
    pub controllers: Vec<String>,
    pub token: String,
    pub ca_hash: CaHash,
}

/// As what a machine wants to join.
#[derive(Debug, Clone)]
pub struct Candidate {
    pub role: ComponentRole,
    pub name: String,
    /// The node's or the gateway's; a controller is given a number.
    pub id: Uuid,
    /// Where the data directory belongs to a cluster already.
    pub cluster_id: Option<String>,
    /// A controller's: where it will listen, and where the others reach it.
    pub addresses: Option<(String, String)>,
}

#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Trying again changes nothing; one sentence.
    #[error("{0}")]
    Refused(String),
    #[error("no controller answers: {0}")]
    NoAnswer(String),
    #[error("cannot set up an identity: {0}")]
    Setup(String),
}

enum Attempt {
    Final(String),
    Again(String),
}

/// Asks the controllers, one after the other, until one lets this machine in, one refuses, or
/// `patience` is over. Nothing is written: [`Enrolment::save`] is the caller's.
pub async fn join(
    invitation: &Invitation,
    candidate: &Candidate,
    clock: Arc<dyn Clock>,
    patience: Duration,
) -> Result<Enrolment, JoinError> {
    let setup = |error: &dyn std::error::Error| JoinError::Setup(error.to_string());
    let key = KeyPair::generate().map_err(|e| setup(&e))?;
    let wrapping_key = WrappingKey::generate();
    let trust = Trust::Hash(invitation.ca_hash.0);
    let tls = Tls::new(trust, None, Arc::clone(&clock)).map_err(|e| setup(&e))?;
    let mut request = v1::EnrolRequest {
        // Under one id however often it is sent: a token's use is not spent twice.
        enrolment: bytes(Uuid::new_v4()),
        token: invitation.token.clone(),
        role: candidate.role.to_wire(),
        name: candidate.name.clone(),
        id: bytes(candidate.id),
        public_key: key.public().into(),
        now: 0,
        cluster_id: candidate.cluster_id.clone().unwrap_or_default(),
        address: String::new(),
        wrapping_key: bytes::Bytes::new(),
    };
    if let Some((_, advertise)) = &candidate.addresses {
        request.address.clone_from(advertise);
        request.wrapping_key = bytes::Bytes::copy_from_slice(&wrapping_key.public());
    }
    let deadline = Instant::now() + patience;
    let mut pause = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    let mut last = String::from("none was named");
    loop {
        for to in &invitation.controllers {
            request.now = clock.now_millis();
            match timeout_at(deadline, enrol(to, &tls, request.clone())).await {
                Ok(Ok(answer)) => {
                    let part =
                        candidate
                            .addresses
                            .clone()
                            .map(|(listen, advertise)| ControllerPart {
                                name: candidate.name.clone(),
                                listen,
                                advertise,
                                wrapping_key,
                                peers: peers(&answer.controllers),
                            });
                    return accepted(invitation, &key, answer, part);
                }
                Ok(Err(Attempt::Final(sentence))) => return Err(JoinError::Refused(sentence)),
                Ok(Err(Attempt::Again(error))) => {
                    tracing::info!(controller = to, error, "not let in yet");
                    last = format!("{to}: {error}");
                }
                Err(_) => last = format!("{to}: no answer in time"),
            }
        }
        let wait = pause.wait();
        if Instant::now() + wait >= deadline {
            return Err(JoinError::NoAnswer(last));
        }
        tokio::time::sleep(wait).await;
    }
}

async fn enrol(
    to: &str,
    tls: &Tls,
    request: v1::EnrolRequest,
) -> Result<v1::EnrolResponse, Attempt> {
    let address = Address::Tls(to.to_owned(), tls.clone());
    // Apart from the call, since what is wrong with a certificate would drown in its error.
    if let Err(error) = address.connect().await {
        return Err(match error.kind() {
            io::ErrorKind::Other | io::ErrorKind::InvalidData => Attempt::Final(error.to_string()),
            _ => Attempt::Again(error.to_string()),
        });
    }
    let mut client = JoinClient::new(address.channel());
    match timeout(ATTEMPT, client.enrol(Request::new(request))).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(judged(&status)),
        Err(_) => Err(Attempt::Again("no answer in time".to_owned())),
    }
}

fn judged(status: &Status) -> Attempt {
    let text = status.message().to_owned();
    match status.code() {
        Code::FailedPrecondition
        | Code::InvalidArgument
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::Unimplemented
        | Code::Internal => Attempt::Final(text),
        _ => Attempt::Again(text),
    }
}

fn accepted(
    invitation: &Invitation,
    key: &KeyPair,
    answer: v1::EnrolResponse,
    controller: Option<ControllerPart>,
) -> Result<Enrolment, JoinError> {
    let wrong = |what: &str| JoinError::Refused(format!("the controller's answer {what}"));
    if CaHash::of(&answer.ca_certificate) != invitation.ca_hash {
        return Err(wrong("holds another CA than the one that was given"));
    }
    let issued = answer.certificate.map(issued);
    let issued = issued.ok_or_else(|| wrong("holds no certificate"))?;
    let names = coracle_base::tls::names_of(&issued.certificate)
        .map_err(|_| wrong("holds no usable certificate"))?;
    let name = Name::among(&names).map_err(|_| wrong("holds a certificate without a name"))?;
    if name.cluster != answer.cluster_id {
        return Err(wrong("contradicts itself"));
    }
    Ok(Enrolment {
        name,
        ca_certificate: answer.ca_certificate.into(),
        issued,
        private_key: Private(key.private()),
        controllers: answer.controllers.into_iter().map(|c| c.address).collect(),
        controller,
    })
}

fn issued(certificate: v1::Certificate) -> Issued {
    Issued {
        certificate: certificate.certificate.into(),
        not_before: Timestamp(certificate.not_before),
        not_after: Timestamp(certificate.not_after),
    }
}

fn peers(controllers: &[v1::ControllerAddress]) -> BTreeMap<u64, String> {
    let known = controllers.iter();
    known.map(|c| (c.member, c.address.clone())).collect()
}

fn bytes(id: Uuid) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(id.as_bytes())
}

/// Replaces a component's certificate before it expires, in its data directory and in what its
/// connections show.
#[derive(Debug)]
pub struct Renewal {
    pub data: PathBuf,
    pub enrolment: Enrolment,
    pub tls: Tls,
    pub clock: Arc<dyn Clock>,
}

#[derive(Debug, thiserror::Error)]
enum RenewError {
    #[error("no controller signed it: {0}")]
    NotSigned(String),
    #[error("a key was not made: {0}")]
    Key(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Renewal {
    /// Runs until the shutdown.
    pub async fn run(mut self, shutdown: Shutdown) {
        let mut retry = Backoff::new(RETRY_FIRST, RETRY_MOST);
        let mut wait = Duration::ZERO;
        loop {
            tokio::select! {
                () = shutdown.requested() => return,
                () = tokio::time::sleep(wait) => {}
            }
            let due = self
                .enrolment
                .renew_at()
                .since(Timestamp(self.clock.now_millis()));
            if due > 0 {
                // Asked again now and then, since the clock may be set.
                wait = Duration::from_millis(due).min(RETRY_MOST);
                continue;
            }
            match self.once().await {
                Ok(()) => {
                    retry.reset();
                    wait = Duration::ZERO;
                }
                Err(error) => {
                    let expires = self.enrolment.issued.not_after;
                    tracing::warn!(%error, %expires, "the certificate was not renewed");
                    wait = retry.wait();
                }
            }
        }
    }

    /// Durable before it is shown: a restart must not fall back to a key that is gone.
    async fn once(&mut self) -> Result<(), RenewError> {
        let key = KeyPair::generate().map_err(|error| RenewError::Key(error.to_string()))?;
        let request = v1::RenewRequest {
            public_key: key.public().into(),
        };
        let cluster = &self.enrolment.name.cluster;
        let tls = self.tls.expecting(Name::check(cluster, CONTROLLERS));
        let mut last = String::from("none is known");
        for to in &self.enrolment.controllers {
            let channel = Address::Tls(to.clone(), tls.clone()).channel();
            let mut client = JoinClient::new(channel);
            let answer = match timeout(ATTEMPT, client.renew(request.clone())).await {
                Ok(Ok(answer)) => answer.into_inner(),
                Ok(Err(status)) => {
                    last = format!("{to}: {}", status.message());
                    continue;
                }
                Err(_) => {
                    last = format!("{to}: no answer in time");
                    continue;
                }
            };
            let Some(certificate) = answer.certificate else {
                last = format!("{to}: it sent none");
                continue;
            };
            if let Some(part) = &mut self.enrolment.controller {
                part.peers = peers(&answer.controllers);
            }
            let controllers: Vec<_> = answer.controllers.into_iter().map(|c| c.address).collect();
            if !controllers.is_empty() {
                self.enrolment.controllers = controllers;
            }
            self.enrolment.renewed(&key, issued(certificate));
            self.enrolment.save(&self.data)?;
            if let Err(error) = self.tls.replace(self.enrolment.credentials()) {
                return Err(RenewError::Key(error.to_string()));
            }
            tracing::info!(until = %self.enrolment.issued.not_after, "the certificate was renewed");
            return Ok(());
        }
        Err(RenewError::NotSigned(last))
    }
}
