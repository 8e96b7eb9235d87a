//! Who belongs to the cluster: join tokens, controllers, and the secrets that they share.

use std::{collections::BTreeMap, sync::Arc};

use coracle_model::{
    ComponentRole, Invalid, JoinToken, Member, MemberId, Refusal, SecretHash, TokenId,
    cluster::{Admission, ClusterSecrets},
    limits,
    operation::CreateJoinToken,
};

use super::Change;
use crate::Effect;

impl Change<'_> {
    pub(super) fn create_join_token(&mut self, create: CreateJoinToken) -> Result<(), Refusal> {
        let CreateJoinToken {
            id,
            hash,
            role,
            expires_at,
            uses,
        } = create;
        let view = &mut self.state.view;
        if view.secrets.is_none() {
            return Err(standalone());
        }
        if !(1..=limits::JOIN_TOKEN_USES_MAX).contains(&uses) {
            let reason = format_args!("must be 1 to {}", limits::JOIN_TOKEN_USES_MAX);
            return Err(Invalid::new("uses", reason).into());
        }
        if expires_at <= self.at {
            return Err(Invalid::new("expires_at", "must be in the future").into());
        }
        if view.join_tokens.contains(&id) {
            return Err(Refusal::AlreadyExists(format!("join token {id}")));
        }
        // Those that let nobody in any more are shown until room is needed, since whoever asks why a
        // machine was refused looks for them.
        let over = |token: &JoinToken| token.uses_left == 0 || token.expires_at <= self.at;
        let over: Vec<_> = view.join_tokens.values().filter(|t| over(t)).collect();
        let over: Vec<_> = over.into_iter().map(|token| token.id).collect();
        if view.join_tokens.len() - over.len() >= limits::JOIN_TOKENS_MAX {
            return Err(Refusal::Quota(format!(
                "there are {} join tokens; revoke some",
                limits::JOIN_TOKENS_MAX
            )));
        }
        if view.join_tokens.len() >= limits::JOIN_TOKENS_MAX {
            for id in over {
                view.join_tokens.remove(&id);
            }
        }
        let token = JoinToken {
            id,
            hash,
            role,
            expires_at,
            uses_left: uses,
            created_at: self.at,
        };
        view.join_tokens.insert(id, token);
        self.emit(Effect::JoinTokenChanged(id));
        Ok(())
    }

    pub(super) fn revoke_join_token(&mut self, id: TokenId) -> Result<(), Refusal> {
        let gone = self.state.view.join_tokens.remove(&id);
        gone.ok_or_else(|| Refusal::NotFound(format!("join token {id}")))?;
        self.emit(Effect::JoinTokenChanged(id));
        Ok(())
    }

    /// Makes a cluster of what was a server by itself; its one controller is member 1.
    pub(super) fn init_cluster(
        &mut self,
        first: Admission,
        ca_certificate: Vec<u8>,
        ca_key: Vec<u8>,
    ) -> Result<(), Refusal> {
        if self.state.view.secrets.is_some() {
            return Err(Refusal::AlreadyExists("the cluster".to_owned()));
        }
        let Admission::Controller { .. } = first else {
            return Err(Invalid::new("first", "must be a controller").into());
        };
        self.state.view.secrets = Some(Arc::new(ClusterSecrets {
            ca_certificate,
            ca_key,
            generation: 1,
            wrapped: BTreeMap::new(),
        }));
        let admitted = self.admit(first);
        if admitted.is_err() {
            self.state.view.secrets = None;
        }
        admitted
    }

    /// One command, so that two machines cannot use the same last use.
    pub(super) fn redeem_join_token(
        &mut self,
        id: TokenId,
        hash: SecretHash,
        admission: Admission,
    ) -> Result<(), Refusal> {
        let role = admission.role();
        let token = self.state.view.join_tokens.get(&id);
        // Unknown and wrong answer the same: ids are no secret, and say nothing.
        let Some(token) = token.filter(|token| token.hash == hash) else {
            return Err(Refusal::Conflict(
                "the join token is not known: it is wrong, or was revoked; make another with \
                 `coracle node token`"
                    .to_owned(),
            ));
        };
        if token.expires_at <= self.at {
            return Err(Refusal::Conflict(format!(
                "the join token expired at {}; make another with `coracle node token`",
                token.expires_at
            )));
        }
        if token.role != role {
            return Err(Refusal::Conflict(format!(
                "the join token lets in {} and not {}",
                plural(token.role),
                plural(role)
            )));
        }
        if token.uses_left == 0 {
            return Err(Refusal::Conflict(
                "the join token has been used as often as it may; make another with `coracle node \
                 token`"
                    .to_owned(),
            ));
        }
        self.admit(admission)?;
        if let Some(token) = self.state.view.join_tokens.get_mut(&id) {
            token.uses_left -= 1;
        }
        self.emit(Effect::JoinTokenChanged(id));
        Ok(())
    }

    /// Agents and gateways have records elsewhere, or none; a controller gets the next number.
    fn admit(&mut self, admission: Admission) -> Result<(), Refusal> {
        let Admission::Controller {
            name,
            address,
            wrapping_key,
            wrapped,
            generation,
            replaces,
        } = admission
        else {
            return Ok(());
        };
        let view = &mut self.state.view;
        let Some(secrets) = view.secrets.as_deref() else {
            return Err(standalone());
        };
        for (field, text) in [("name", &name), ("address", &address)] {
            if text.len() > limits::ADDRESS_MAX {
                let reason = format_args!("must be at most {} bytes", limits::ADDRESS_MAX);
                return Err(Invalid::new(field, reason).into());
            }
        }
        if secrets.generation != generation {
            return Err(Refusal::Conflict(
                "the cluster key was changed meanwhile; try again".to_owned(),
            ));
        }
        // One that is gone already needs no place to be taken.
        let replaces = replaces.filter(|id| view.members.contains(id));
        let holds = |member: &&Member| member.address == address && Some(member.id) != replaces;
        if let Some(member) = view.members.values().find(holds) {
            return Err(Refusal::Conflict(format!(
                "controller {} (member {}) has the address {address}; remove it first if it is gone",
                member.name, member.id
            )));
        }
        if view
            .members
            .values()
            .any(|m| m.wrapping_key == wrapping_key)
        {
            return Err(Refusal::AlreadyExists(
                "a controller with this key".to_owned(),
            ));
        }
        if view.members.len() - usize::from(replaces.is_some()) >= limits::MEMBERS_MAX {
            return Err(Refusal::Quota(format!(
                "a cluster has at most {} controllers; remove one first",
                limits::MEMBERS_MAX
            )));
        }
        let id = MemberId(view.last_member + 1);
        let mut secrets = secrets.clone();
        secrets.wrapped.insert(id, wrapped);
        if let Some(old) = replaces {
            secrets.wrapped.remove(&old);
            view.members.remove(&old);
        }
        view.secrets = Some(Arc::new(secrets));
        view.last_member = id.0;
        let member = Member {
            id,
            name,
            address,
            wrapping_key,
            joined_at: self.at,
        };
        view.members.insert(id, member);
        self.emit(Effect::ClusterChanged);
        Ok(())
    }

    /// Its number stays unused, and the cluster key is not sealed to it any more; what it knew stays
    /// known to it until the key is rotated.
    pub(super) fn remove_member(&mut self, id: MemberId) -> Result<(), Refusal> {
        let view = &mut self.state.view;
        if !view.members.contains(&id) {
            return Err(Refusal::NotFound(format!("member {id}")));
        }
        if view.members.len() == 1 {
            return Err(Refusal::Conflict(
                "this is the last controller of the cluster".to_owned(),
            ));
        }
        view.members.remove(&id);
        if let Some(secrets) = view.secrets.as_deref() {
            let mut secrets = secrets.clone();
            secrets.wrapped.remove(&id);
            view.secrets = Some(Arc::new(secrets));
        }
        self.emit(Effect::ClusterChanged);
        Ok(())
    }

    pub(super) fn rotate_cluster_key(
        &mut self,
        generation: u64,
        ca_key: Vec<u8>,
        wrapped: BTreeMap<MemberId, Vec<u8>>,
    ) -> Result<(), Refusal> {
        let view = &mut self.state.view;
        let Some(secrets) = view.secrets.as_deref() else {
            return Err(standalone());
        };
        // Whoever made the key looked at an older state: it would lock a member out.
        if generation != secrets.generation + 1 || !view.members.keys().eq(wrapped.keys()) {
            return Err(Refusal::Conflict(
                "the cluster's members or its key changed meanwhile; try again".to_owned(),
            ));
        }
        view.secrets = Some(Arc::new(ClusterSecrets {
            ca_certificate: secrets.ca_certificate.clone(),
            ca_key,
            generation,
            wrapped,
        }));
        self.emit(Effect::ClusterChanged);
        Ok(())
    }
}

fn standalone() -> Refusal {
    Refusal::Conflict(
        "this server stands by itself; make a cluster of it with `coracle cluster init --from`"
            .to_owned(),
    )
}

fn plural(role: ComponentRole) -> &'static str {
    match role {
        ComponentRole::Controller => "controllers",
        ComponentRole::Agent => "agents",
        ComponentRole::Gateway => "gateways",
    }
}
