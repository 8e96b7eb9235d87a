//! Operating a cluster: its controllers, its key, and tokens with which machines join. Administrators
//! only.

use std::sync::Arc;

use axum::{Json, body::Body, extract::State};
use coracle_model::{
    ComponentRole, Digest, JoinToken, MemberId, Operation, SecretHash, TokenId, WriteId,
    operation::CreateJoinToken,
};
use http::StatusCode;

use super::{error::Problem, map, params, scope::Admin, wire};
use crate::{
    api::Api,
    body,
    failure::Failure,
    port::{ClusterView, MemberView, Standing},
};

const TTL_SECS: u64 = 60 * 60;
const TTL_MAX_SECS: u64 = 365 * 24 * 60 * 60;

/// The controllers of the cluster, and how far each has come.
#[utoipa::path(
    get, path = "/cluster", tag = "cluster",
    responses((status = 200, body = wire::Cluster), (status = "4XX", body = Problem))
)]
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    _: Admin,
) -> Result<Json<wire::Cluster>, Failure> {
    Ok(Json(shown(&api.port.cluster().await?)))
}

fn shown(view: &ClusterView) -> wire::Cluster {
    wire::Cluster {
        id: view.cluster_id.clone(),
        ca_hash: ca_hash(view),
        key_generation: view.key_generation,
        answered_by: view.answered_by.0,
        leader: view.leader.map(|id| id.0),
        term: view.term,
        applied: view.applied,
        last_index: view.last_index,
        incarnation: view.incarnation,
        members: view.members.iter().map(|m| member(view, m)).collect(),
    }
}

fn member(cluster: &ClusterView, view: &MemberView) -> wire::Member {
    let member = view.member.as_ref();
    wire::Member {
        id: view.id.0,
        name: member.map(|member| member.name.clone()),
        address: member.map(|member| member.address.clone()),
        joined_at: member.map(|member| member.joined_at.rfc3339()),
        standing: match view.standing {
            Standing::Outside => wire::Standing::Outside,
            Standing::Learner => wire::Standing::Learner,
            Standing::Voter => wire::Standing::Voter,
        },
        leader: cluster.leader == Some(view.id),
        matched: view.progress.map(|progress| progress.matched),
        active: view.progress.map(|progress| progress.active),
        receiving_snapshot: view.progress.map(|progress| progress.snapshot),
    }
}

/// As `--ca-hash` takes it; none for a server by itself.
fn ca_hash(view: &ClusterView) -> Option<String> {
    let der = &view.ca_certificate;
    (!der.is_empty()).then(|| format!("sha256:{}", Digest::of(der)))
}

/// Hands leadership to another controller, and answers when it leads.
#[utoipa::path(
    post, path = "/cluster/transfer", tag = "cluster", request_body = wire::Transfer,
    responses((status = 200, body = wire::Leader), (status = "4XX", body = Problem))
)]
pub(super) async fn transfer(
    State(api): State<Arc<Api>>,
    _: Admin,
    body: Body,
) -> Result<Json<wire::Leader>, Failure> {
    let given: wire::Transfer = body::json(body).await?;
    let to = given.member.map(MemberId);
    let leader = api.port.transfer_leadership(to).await?;
    Ok(Json(wire::Leader { leader: leader.0 }))
}

/// Takes a controller out of the cluster and changes the cluster key. One that leads hands leadership
/// over first.
#[utoipa::path(
    delete, path = "/cluster/members/{member_id}", tag = "cluster", params(params::MemberPath),
    responses((status = 204), (status = "4XX", body = Problem))
)]
pub(super) async fn remove(
    State(api): State<Arc<Api>>,
    admin: Admin,
) -> Result<StatusCode, Failure> {
    let id: u64 = admin.path.named("member_id", "member")?;
    api.port.remove_member(MemberId(id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Makes another cluster key, encrypts the cluster's secrets with it, and seals it to each controller.
#[utoipa::path(
    post, path = "/cluster/rotate-key", tag = "cluster",
    responses((status = 200, body = wire::KeyGeneration), (status = "4XX", body = Problem))
)]
pub(super) async fn rotate_key(
    State(api): State<Arc<Api>>,
    _: Admin,
) -> Result<Json<wire::KeyGeneration>, Failure> {
    let id = WriteId(api.env.fresh_uuid());
    let key_generation = api.port.rotate_cluster_key(id).await?;
    Ok(Json(wire::KeyGeneration { key_generation }))
}

/// Join tokens, those that are over too, newest first.
#[utoipa::path(
    get, path = "/join-tokens", tag = "cluster",
    responses((status = 200, body = wire::List<wire::JoinToken>), (status = "4XX", body = Problem))
)]
pub(super) async fn list_tokens(
    State(api): State<Arc<Api>>,
    _: Admin,
) -> Result<Json<wire::List<wire::JoinToken>>, Failure> {
    let mut tokens = api.port.join_tokens().await?;
    tokens.sort_by_key(|token| std::cmp::Reverse((token.created_at, token.id)));
    let items: Vec<_> = tokens.iter().map(|token| token_view(&api, token)).collect();
    Ok(Json(wire::List {
        count: items.len(),
        items,
    }))
}

fn token_view(api: &Api, token: &JoinToken) -> wire::JoinToken {
    wire::JoinToken {
        id: token.id.to_string(),
        role: role(token.role),
        expires_at: token.expires_at.rfc3339(),
        uses_left: token.uses_left,
        created_at: token.created_at.rfc3339(),
        live: token.uses_left > 0 && api.env.now() < token.expires_at,
        token: None,
        ca_hash: None,
        controllers: None,
    }
}

fn role(role: ComponentRole) -> wire::ComponentRole {
    match role {
        ComponentRole::Controller => wire::ComponentRole::Controller,
        ComponentRole::Agent => wire::ComponentRole::Agent,
        ComponentRole::Gateway => wire::ComponentRole::Gateway,
    }
}

/// Makes a token with which machines join in one role. The secret, and what else a joining machine
/// has to be told, is in this answer only.
#[utoipa::path(
    post, path = "/join-tokens", tag = "cluster", request_body = wire::CreateJoinToken,
    responses((status = 201, body = wire::JoinToken), (status = "4XX", body = Problem))
)]
pub(super) async fn create_token(
    State(api): State<Arc<Api>>,
    _: Admin,
    body: Body,
) -> Result<(StatusCode, Json<wire::JoinToken>), Failure> {
    let given: wire::CreateJoinToken = body::json(body).await?;
    let ttl = given.ttl_seconds.unwrap_or(TTL_SECS);
    if !(1..=TTL_MAX_SECS).contains(&ttl) {
        let reason = format_args!("must be 1 to {TTL_MAX_SECS}");
        return Err(Failure::invalid("ttl_seconds", reason));
    }
    let cluster = api.port.cluster().await?;
    let secret = api.env.fresh_secret();
    let now = api.env.now();
    let create = CreateJoinToken {
        id: TokenId(api.env.fresh_uuid()),
        hash: SecretHash::of(&secret),
        role: match given.role {
            wire::ComponentRole::Controller => ComponentRole::Controller,
            wire::ComponentRole::Agent => ComponentRole::Agent,
            wire::ComponentRole::Gateway => ComponentRole::Gateway,
        },
        expires_at: now.plus_millis(ttl * 1_000),
        uses: given.uses.unwrap_or(1),
    };
    api.write(Operation::CreateJoinToken(create.clone()), map::words)
        .await?;
    let token = JoinToken {
        id: create.id,
        hash: create.hash,
        role: create.role,
        expires_at: create.expires_at,
        uses_left: create.uses,
        created_at: now,
    };
    let members = cluster.members.iter();
    let view = wire::JoinToken {
        token: Some(format!("{}${secret}", token.id)),
        ca_hash: ca_hash(&cluster),
        controllers: Some(
            members
                .filter_map(|view| Some(view.member.as_ref()?.address.clone()))
                .collect(),
        ),
        ..token_view(&api, &token)
    };
    Ok((StatusCode::CREATED, Json(view)))
}

/// Nobody joins with it any more; whoever has joined stays.
#[utoipa::path(
    delete, path = "/join-tokens/{token_id}", tag = "cluster", params(params::TokenPath),
    responses((status = 204), (status = "4XX", body = Problem))
)]
pub(super) async fn revoke_token(
    State(api): State<Arc<Api>>,
    admin: Admin,
) -> Result<StatusCode, Failure> {
    let id = admin.path.named("token_id", "join token")?;
    api.write(Operation::RevokeJoinToken { id }, map::words)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
