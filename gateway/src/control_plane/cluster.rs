//! What operators ask about the cluster.

use coracle_facades::port::{ClusterView, MemberProgress, MemberView, PortError, Standing};
use coracle_model::{JoinToken, MemberId, Refusal, WriteId};
use coracle_proto::{Wire as _, v1, v1::cluster_client::ClusterClient};
use tokio::time::Instant;
use tonic::{Code, Status, transport::Channel};

use super::{ControllerPort, READ, WRITE, all, malformed, read_error};

impl ControllerPort {
    async fn ask_cluster<T, F>(
        &self,
        within: std::time::Duration,
        call: impl Fn(ClusterClient<Channel>) -> F + Send + Sync,
    ) -> Result<T, Status>
    where
        T: Send,
        F: Future<Output = Result<tonic::Response<T>, Status>> + Send,
    {
        let deadline = Instant::now() + within;
        let controllers = &self.shared.controllers;
        let answer = controllers.ask(deadline, |channel| {
            let pending = call(ClusterClient::new(channel));
            async move { pending.await.map(tonic::Response::into_inner) }
        });
        answer.await
    }

    pub(super) async fn get_cluster(&self) -> Result<ClusterView, PortError> {
        let call = |mut client: ClusterClient<Channel>| async move {
            client.get_cluster(v1::GetClusterRequest {}).await
        };
        cluster(self.ask_cluster(READ, call).await.map_err(read_error)?)
    }

    pub(super) async fn list_join_tokens(&self) -> Result<Vec<JoinToken>, PortError> {
        let call = |mut client: ClusterClient<Channel>| async move {
            client.list_join_tokens(v1::ListJoinTokensRequest {}).await
        };
        all(self
            .ask_cluster(READ, call)
            .await
            .map_err(read_error)?
            .tokens)
    }

    pub(super) async fn transfer(&self, to: Option<MemberId>) -> Result<MemberId, PortError> {
        let request = v1::TransferLeadershipRequest {
            member: to.map(|id| id.0),
        };
        let call = |mut client: ClusterClient<Channel>| async move {
            client.transfer_leadership(request).await
        };
        let answer = self.ask_cluster(WRITE, call).await.map_err(write_error)?;
        refused(answer.refusal)?;
        MemberId::from_wire("leader", answer.leader).map_err(malformed)
    }

    /// May be asked again: what is removed stays removed.
    pub(super) async fn remove(&self, id: MemberId) -> Result<(), PortError> {
        let request = v1::RemoveMemberRequest { member: id.0 };
        let call =
            |mut client: ClusterClient<Channel>| async move { client.remove_member(request).await };
        let answer = self.ask_cluster(WRITE, call).await.map_err(write_error)?;
        refused(answer.refusal)
    }

    pub(super) async fn rotate_key(&self, id: WriteId) -> Result<u64, PortError> {
        let request = v1::RotateClusterKeyRequest {
            write_id: id.to_wire(),
        };
        let call = |mut client: ClusterClient<Channel>| {
            let request = request.clone();
            async move { client.rotate_cluster_key(request).await }
        };
        let answer = self.ask_cluster(WRITE, call).await.map_err(write_error)?;
        refused(answer.refusal)?;
        Ok(answer.generation)
    }
}

fn refused(refusal: Option<v1::Refusal>) -> Result<(), PortError> {
    match refusal {
        None => Ok(()),
        Some(refusal) => Err(Refusal::try_from(refusal).map_err(malformed)?.into()),
    }
}

#[allow(
    clippy::needless_pass_by_value,
    reason = "used as a function value in map_err"
)]
fn write_error(status: Status) -> PortError {
    match status.code() {
        Code::Unavailable
        | Code::Aborted
        | Code::DeadlineExceeded
        | Code::Cancelled
        | Code::Unknown => PortError::Unknown(status.message().to_owned()),
        _ => PortError::Internal(status.to_string()),
    }
}

fn cluster(view: v1::ClusterView) -> Result<ClusterView, PortError> {
    Ok(ClusterView {
        cluster_id: view.cluster_id,
        ca_certificate: view.ca_certificate.into(),
        key_generation: view.key_generation,
        answered_by: MemberId(view.answered_by),
        leader: (view.leader != 0).then_some(MemberId(view.leader)),
        term: view.term,
        applied: view.applied,
        last_index: view.last_index,
        incarnation: view.incarnation,
        members: view
            .members
            .into_iter()
            .map(member)
            .collect::<Result<_, _>>()?,
    })
}

fn member(view: v1::MemberView) -> Result<MemberView, PortError> {
    use v1::member_view::Standing as Wired;
    let standing = match view.standing() {
        Wired::Unspecified | Wired::Outside => Standing::Outside,
        Wired::Learner => Standing::Learner,
        Wired::Voter => Standing::Voter,
    };
    let member = view.member.map(TryInto::try_into);
    Ok(MemberView {
        id: MemberId(view.id),
        member: member.transpose().map_err(malformed)?,
        standing,
        progress: view.progress.map(|progress| MemberProgress {
            matched: progress.matched,
            active: progress.active,
            snapshot: progress.snapshot,
        }),
    })
}
