//! Operating the cluster: controllers, their key, and tokens to join with.

use std::sync::Arc;

use coracle_model::{MemberId, Refusal, WriteId};
use coracle_proto::{Wire as _, v1, v1::member_view::Standing};
use coracle_replica::{ChangeError, Members};
use coracle_state::Body;
use futures_util::stream;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::{Streamed, internal, read_failed, write_failed};
use crate::{
    backup,
    cluster::ClusterError,
    core::{Core, WriteError, fresh_write},
    forward::Failed,
};

/// A message of more than 4 MiB would not be taken.
const SNAPSHOT_PIECE: usize = 1024 * 1024;

pub(crate) struct Cluster {
    pub(crate) core: Arc<Core>,
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl v1::cluster_server::Cluster for Cluster {
    type SaveSnapshotStream = Streamed<v1::SavedSnapshotChunk>;

    async fn save_snapshot(
        &self,
        _: Request<v1::SaveSnapshotRequest>,
    ) -> Answer<Self::SaveSnapshotStream> {
        let saved = backup::save(&self.core, self.deadline()).await;
        let pieces = stream::unfold(saved.map_err(read_failed)?, |mut rest| async move {
            if rest.is_empty() {
                return None;
            }
            let data = rest.split_to(SNAPSHOT_PIECE.min(rest.len()));
            Some((Ok(v1::SavedSnapshotChunk { data }), rest))
        });
        Ok(Response::new(Box::pin(pieces)))
    }

    async fn get_cluster(&self, _: Request<v1::GetClusterRequest>) -> Answer<v1::ClusterView> {
        let core = &self.core;
        let status = core.replica.status().borrow().clone();
        // While somebody leads, the leader knows more; while nobody does, an old answer is the one
        // that an operator needs.
        if status.leader.is_some_and(|leader| leader != status.id) {
            return Err(core.not_leader());
        }
        let members = core.replica.members(self.deadline()).await;
        let members = members.map_err(read_failed)?;
        let view = core.view();
        let secrets = view.secrets();
        let mut ids: Vec<u64> = view.members().map(|member| member.id.0).collect();
        let group = members.voters.iter().chain(&members.learners);
        ids.extend(group.map(|member| member.id));
        ids.sort_unstable();
        ids.dedup();
        let shown = |id: u64| v1::MemberView {
            member: view.member(MemberId(id)).cloned().map(Into::into),
            ..member(&members, id)
        };
        Ok(Response::new(v1::ClusterView {
            cluster_id: core.cluster_id.clone(),
            ca_certificate: secrets
                .map(|secrets| secrets.ca_certificate.clone().into())
                .unwrap_or_default(),
            key_generation: secrets.map_or(0, |secrets| secrets.generation),
            answered_by: status.id,
            leader: status.leader.unwrap_or(0),
            term: status.term,
            applied: status.applied,
            last_index: members.last_index,
            incarnation: view.incarnation(),
            members: ids.into_iter().map(shown).collect(),
        }))
    }

    async fn list_join_tokens(
        &self,
        _: Request<v1::ListJoinTokensRequest>,
    ) -> Answer<v1::ListJoinTokensResponse> {
        let view = self.core.fresh_view().await.map_err(read_failed)?;
        Ok(Response::new(v1::ListJoinTokensResponse {
            tokens: view.join_tokens().cloned().map(Into::into).collect(),
        }))
    }

    async fn transfer_leadership(
        &self,
        request: Request<v1::TransferLeadershipRequest>,
    ) -> Answer<v1::TransferLeadershipResponse> {
        let to = request.into_inner().member;
        self.core.require_leader()?;
        let moved = self.core.replica.transfer(to, self.deadline()).await;
        let (leader, refusal) = match moved {
            Ok(leader) => (leader, None),
            Err(error) => (0, Some(change_failed(error)?.into())),
        };
        Ok(Response::new(v1::TransferLeadershipResponse {
            leader,
            refusal,
        }))
    }

    async fn remove_member(
        &self,
        request: Request<v1::RemoveMemberRequest>,
    ) -> Answer<v1::RemoveMemberResponse> {
        let id = MemberId::from_wire("member", request.into_inner().member)?;
        self.core.require_leader()?;
        let refusal = match self.remove(id).await {
            Ok(()) => None,
            Err(refused) => Some(refused?.into()),
        };
        Ok(Response::new(v1::RemoveMemberResponse { refusal }))
    }

    async fn rotate_cluster_key(
        &self,
        request: Request<v1::RotateClusterKeyRequest>,
    ) -> Answer<v1::RotateClusterKeyResponse> {
        let id = WriteId::from_wire("write_id", request.into_inner().write_id)?;
        self.core.require_leader()?;
        let (generation, refusal) = match self.core.rotate_key(id).await {
            Ok(generation) => (generation, None),
            Err(error) => (0, Some(cluster_failed(error)?.into())),
        };
        Ok(Response::new(v1::RotateClusterKeyResponse {
            generation,
            refusal,
        }))
    }
}

impl Cluster {
    fn deadline(&self) -> Instant {
        Instant::now() + self.core.config.write_deadline
    }

    /// Out of the group before out of the books: what is in the group and in no book is taken out by
    /// the leader's loop, what is in the books and in no group would be added by it.
    async fn remove(&self, id: MemberId) -> Result<(), Result<Refusal, Status>> {
        let core = &self.core;
        let view = core.view();
        if view.member(id).is_none() {
            return Err(Ok(Refusal::NotFound(format!("member {id}"))));
        }
        if view.members().count() == 1 {
            return Err(Ok(Refusal::Conflict(
                "this is the last controller of the cluster".to_owned(),
            )));
        }
        let _pause = core.membership.lock().await;
        let view = core.fresh_view().await;
        let view = view.map_err(|error| Err(read_failed(error)))?;
        if let Err(lacking) = core.copies.spares(id.0, &view).await {
            return Err(Ok(Refusal::Conflict(lacking.to_string())));
        }
        match core.replica.remove(id.0, self.deadline()).await {
            Ok(()) => {}
            Err(ChangeError::Refused(coracle_replica::ChangeRefused::NotAMember { .. })) => {}
            Err(error) => return Err(change_failed(error)),
        }
        let body = Body::RemoveMember { member: id };
        match core.write(fresh_write(), body).await {
            Ok(()) | Err(WriteError::Refused(Refusal::NotFound(_))) => {}
            Err(error) => return Err(write_failed(error).map_err(Into::into)),
        }
        tracing::info!(member = %id, "a controller was removed");
        // It knew the key. That it is not changed now is no reason to call the removal failed.
        match core.rotate_key(fresh_write()).await {
            Ok(generation) => tracing::info!(generation, "the cluster key was changed"),
            Err(error) => {
                tracing::error!(
                    error = crate::core::chain(&error),
                    "the cluster key was not changed after a removal; use `coracle cluster \
                     rotate-key`"
                );
            }
        }
        Ok(())
    }
}

fn member(members: &Members, id: u64) -> v1::MemberView {
    let of = |list: &[coracle_replica::Member]| list.iter().find(|m| m.id == id).copied();
    let (standing, found) = match (of(&members.voters), of(&members.learners)) {
        (Some(voter), _) => (Standing::Voter, Some(voter)),
        (None, Some(learner)) => (Standing::Learner, Some(learner)),
        (None, None) => (Standing::Outside, None),
    };
    let progress = found.and_then(|member| member.progress);
    v1::MemberView {
        id,
        member: None,
        standing: standing.into(),
        progress: progress.map(|progress| v1::MemberProgress {
            matched: progress.matched,
            active: progress.active,
            snapshot: progress.snapshot,
        }),
    }
}

/// A refusal is an answer; what else can happen is a status.
fn change_failed(error: ChangeError) -> Result<Refusal, Status> {
    match error {
        ChangeError::Refused(why) => Ok(Refusal::Conflict(why.to_string())),
        ChangeError::NotLeader { .. } => Err(Failed::Elsewhere.into()),
        ChangeError::Unknown(_) => Err(Status::aborted(error.to_string())),
        ChangeError::Busy | ChangeError::Stopped => Err(Status::unavailable(error.to_string())),
    }
}

fn cluster_failed(error: ClusterError) -> Result<Refusal, Status> {
    match error {
        ClusterError::Standalone => Ok(Refusal::Conflict(error.to_string())),
        ClusterError::Write(error) => write_failed(error).map_err(Into::into),
        error => Err(internal("the cluster's keys cannot be used here", &error)),
    }
}
