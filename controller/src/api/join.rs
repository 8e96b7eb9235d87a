//! Machines that join the cluster, and components that renew their certificates.

use std::sync::Arc;

use coracle_base::Address;
use coracle_identity::{Component, Issued, Peer};
use coracle_model::{ComponentRole, MemberId, NodeId, WriteId};
use coracle_proto::{
    ConvertError, Wire as _,
    v1::{self, join_client::JoinClient},
};
use coracle_state::View;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::{internal, write_failed};
use crate::{
    cluster::{Applicant, ClusterError, EnrolError, Wish},
    core::Core,
};

/// On what a controller hands on: it is not handed on again.
const FORWARDED: &str = "coracle-forwarded";

pub(crate) struct Join {
    pub(crate) core: Arc<Core>,
}

#[tonic::async_trait]
impl v1::join_server::Join for Join {
    async fn enrol(
        &self,
        request: Request<v1::EnrolRequest>,
    ) -> Result<Response<v1::EnrolResponse>, Status> {
        if !self.core.memory().leads() {
            return self.forward(request).await;
        }
        let applicant = applicant(request.into_inner())?;
        let (name, role) = (applicant.name.clone(), applicant.wish.role());
        let admitted = self.core.enrol(applicant).await.map_err(|error| {
            tracing::warn!(name, %role, %error, "a machine was not let in");
            enrol_failed(error)
        })?;
        tracing::info!(name, component = ?admitted.component, "a machine was let in");
        let view = self.core.view();
        let secrets = view.secrets().ok_or_else(standalone)?;
        let member = match admitted.component {
            Component::Controller(id) => id.0,
            Component::Agent(_) | Component::Gateway(_) => 0,
        };
        Ok(Response::new(v1::EnrolResponse {
            cluster_id: self.core.cluster_id.clone(),
            ca_certificate: secrets.ca_certificate.clone().into(),
            certificate: Some(certificate(admitted.issued)),
            controllers: controllers(&view),
            member,
        }))
    }

    async fn renew(
        &self,
        request: Request<v1::RenewRequest>,
    ) -> Result<Response<v1::RenewResponse>, Status> {
        let Peer::Component(component) = Peer::of(&request) else {
            return Err(Status::failed_precondition(
                "only a component with a certificate can renew it",
            ));
        };
        let view = self.core.view();
        let key = request.into_inner().public_key;
        let issued = self.core.sign(&view, component, &key);
        let issued = issued.map_err(|error| cluster_failed(&error))?;
        tracing::info!(?component, "a certificate was renewed");
        Ok(Response::new(v1::RenewResponse {
            certificate: Some(certificate(issued)),
            controllers: controllers(&view),
        }))
    }
}

impl Join {
    /// To the leader, once, where it is known.
    async fn forward(
        &self,
        mut request: Request<v1::EnrolRequest>,
    ) -> Result<Response<v1::EnrolResponse>, Status> {
        let leader = self.core.replica.status().borrow().leader;
        let view = self.core.view();
        let member = leader.and_then(|id| view.member(MemberId(id)));
        let (Some(member), Some(identity)) = (member, &self.core.identity) else {
            return Err(self.core.not_leader());
        };
        if request.metadata().contains_key(FORWARDED) || Some(self.core.replica.id()) == leader {
            return Err(self.core.not_leader());
        }
        let to = Address::Tls(member.address.clone(), identity.tls.clone());
        let message = std::mem::take(request.get_mut());
        let mut request = Request::new(message);
        let once = tonic::metadata::MetadataValue::from_static("1");
        request.metadata_mut().insert(FORWARDED, once);
        JoinClient::new(to.channel()).enrol(request).await
    }
}

fn certificate(issued: Issued) -> v1::Certificate {
    v1::Certificate {
        certificate: issued.certificate.into(),
        not_before: issued.not_before.0,
        not_after: issued.not_after.0,
    }
}

pub(crate) fn controllers(view: &View) -> Vec<v1::ControllerAddress> {
    let address = |member: &coracle_model::Member| v1::ControllerAddress {
        member: member.id.0,
        address: member.address.clone(),
    };
    view.members().map(address).collect()
}

fn applicant(m: v1::EnrolRequest) -> Result<Applicant, ConvertError> {
    let uuid = |bytes: bytes::Bytes| {
        Uuid::from_slice(&bytes).map_err(|_| ConvertError::new("id", "must be 16 bytes"))
    };
    let wish = match ComponentRole::from_wire("role", m.role)? {
        ComponentRole::Controller => Wish::Controller {
            address: m.address,
            wrapping_key: m
                .wrapping_key
                .as_ref()
                .try_into()
                .map_err(|_| ConvertError::new("wrapping_key", "must be 32 bytes"))?,
        },
        ComponentRole::Agent => Wish::Agent(NodeId(uuid(m.id)?)),
        ComponentRole::Gateway => Wish::Gateway(uuid(m.id)?),
    };
    Ok(Applicant {
        enrolment: WriteId::from_wire("enrolment", m.enrolment)?,
        token: m.token,
        name: m.name,
        now: m.now,
        cluster_id: m.cluster_id,
        public_key: m.public_key.into(),
        wish,
    })
}

fn standalone() -> Status {
    Status::failed_precondition(ClusterError::Standalone.to_string())
}

fn enrol_failed(error: EnrolError) -> Status {
    match error {
        EnrolError::Refused(sentence) => Status::failed_precondition(sentence),
        EnrolError::Cluster(ClusterError::Write(error)) => match write_failed(error) {
            Ok(refusal) => Status::failed_precondition(refusal.to_string()),
            Err(failed) => failed.into(),
        },
        EnrolError::Cluster(error) => cluster_failed(&error),
    }
}

fn cluster_failed(error: &ClusterError) -> Status {
    match error {
        ClusterError::Standalone => standalone(),
        ClusterError::Authority(coracle_identity::AuthorityError::PublicKey) => {
            Status::invalid_argument(error.to_string())
        }
        _ => internal("the cluster's keys cannot be used here", error),
    }
}
