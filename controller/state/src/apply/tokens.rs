//! Management tokens.

use coracle_model::{Refusal, Timestamp, Token, TokenId, TokenRole, operation::CreateToken};

use super::{Change, checks};
use crate::Effect;

impl Change<'_> {
    pub(super) fn create_token(&mut self, create: CreateToken) -> Result<(), Refusal> {
        let CreateToken {
            id,
            description,
            hash,
            role,
            expires_at,
        } = create;
        if let TokenRole::Project(project) = role {
            self.project(project)?;
        }
        checks::description(&description)?;
        if self.state.view.tokens.contains(&id) {
            return Err(Refusal::AlreadyExists(format!("token {id}")));
        }
        let token = Token {
            id,
            description,
            hash,
            role,
            expires_at,
            created_at: self.at,
        };
        self.state.view.tokens.insert(id, token);
        self.emit(Effect::TokenChanged(id));
        Ok(())
    }

    pub(super) fn delete_token(&mut self, id: TokenId) -> Result<(), Refusal> {
        let tokens = &self.state.view.tokens;
        let token = tokens
            .get(&id)
            .ok_or_else(|| Refusal::NotFound(format!("token {id}")))?;
        let another = tokens
            .values()
            .any(|other| other.id != id && opens(other, self.at));
        if opens(token, self.at) && !another {
            return Err(Refusal::Conflict(
                "this is the last administrator's token, and without one nobody could make \
                 another: create its successor first"
                    .to_owned(),
            ));
        }
        self.state.view.tokens.remove(&id);
        self.emit(Effect::TokenChanged(id));
        Ok(())
    }
}

/// Whether its holder can make tokens at this time.
fn opens(token: &Token, now: Timestamp) -> bool {
    token.role == TokenRole::Admin && token.expires_at.is_none_or(|at| now < at)
}
