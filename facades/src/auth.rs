//! Who calls, and what that token may do. Every route of every API decides here and nowhere else.

use coracle_model::{Project, ProjectId, Timestamp, Token, TokenId, TokenRole};
use http::{HeaderMap, header};

use crate::{api::Api, codes::Code, failure::Failure};

/// The word in front of the token in `Authorization`, compared without regard to case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    Bearer,
    ApiKey,
}

impl Scheme {
    fn word(self) -> &'static str {
        match self {
            Self::Bearer => "Bearer",
            Self::ApiKey => "APIKey",
        }
    }
}

/// A caller whose token was found, matched and alive.
#[derive(Debug, Clone)]
pub(crate) struct Principal {
    token: Token,
}

/// What a route asks for beyond a live token.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Right {
    Admin,
    Project(ProjectId),
}

impl Principal {
    /// The one decision.
    pub(crate) fn require(&self, right: Right) -> Result<(), Failure> {
        let allowed = match right {
            Right::Admin => self.token.role == TokenRole::Admin,
            Right::Project(project) => self.token.allows(project),
        };
        if allowed { Ok(()) } else { Err(forbidden()) }
    }

    pub(crate) fn may(&self, right: Right) -> bool {
        self.require(right).is_ok()
    }

    /// A project that was looked up, or found missing. A token bound to one project learns nothing
    /// about others: theirs and those that do not exist answer the same.
    pub(crate) fn enter(
        &self,
        found: Option<Project>,
        shown: impl std::fmt::Display,
    ) -> Result<Project, Failure> {
        match found {
            Some(project) => self.require(Right::Project(project.id)).map(|()| project),
            None => {
                self.require(Right::Admin)?;
                Err(Failure::not_found(format_args!("project {shown}")))
            }
        }
    }
}

fn forbidden() -> Failure {
    Failure::new(Code::Forbidden, "The token does not allow this.")
}

/// Unknown ids, wrong secrets and expired tokens are told apart by nobody but the log's reader.
fn unauthenticated(scheme: Scheme) -> Failure {
    let word = scheme.word();
    Failure::new(
        Code::Unauthenticated,
        format!("A valid token is needed: Authorization: {word} <id>$<secret>"),
    )
}

pub(crate) async fn authenticate(
    api: &Api,
    headers: &HeaderMap,
    scheme: Scheme,
) -> Result<Principal, Failure> {
    let refused = || unauthenticated(scheme);
    let (id, secret) = credential(headers, scheme).ok_or_else(refused)?;
    let token = api.port.token(id).await?.ok_or_else(refused)?;
    if !is_good(&token, secret, api.env.now()) {
        return Err(refused());
    }
    Ok(Principal { token })
}

/// The comparison of hashes takes the same time wherever they differ.
fn is_good(token: &Token, secret: &str, now: Timestamp) -> bool {
    token.hash.matches(secret) && token.expires_at.is_none_or(|at| now < at)
}

fn credential(headers: &HeaderMap, scheme: Scheme) -> Option<(TokenId, &str)> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next()?.to_str().ok()?;
    if values.next().is_some() {
        return None;
    }
    let (word, rest) = value.split_once(' ')?;
    if !word.eq_ignore_ascii_case(scheme.word()) {
        return None;
    }
    let (id, secret) = rest.trim_matches(' ').split_once('$')?;
    (!secret.is_empty()).then_some((id.parse().ok()?, secret))
}

#[cfg(test)]
mod tests {
    use coracle_model::SecretHash;
    use http::HeaderValue;
    use uuid::Uuid;

    use super::*;

    fn parse(value: &str, scheme: Scheme) -> Option<String> {
        let mut headers = HeaderMap::new();
        headers.insert(
            header::AUTHORIZATION,
            HeaderValue::from_str(value).expect("a valid value"),
        );
        credential(&headers, scheme).map(|(id, secret)| format!("{id}:{secret}"))
    }

    #[test]
    fn credentials() {
        let id = Uuid::from_u128(7);
        let good = Some(format!("{id}:abc"));
        assert_eq!(parse(&format!("apikey {id}$abc"), Scheme::ApiKey), good);
        assert_eq!(parse(&format!("APIKey {id}$abc"), Scheme::ApiKey), good);
        assert_eq!(parse(&format!("bearer {id}$abc"), Scheme::Bearer), good);
        for bad in [
            format!("Bearer {id}$abc"),
            format!("apikey {id}"),
            format!("apikey {id}$"),
            format!("apikey{id}$abc"),
            "apikey 1234$abcdef".to_owned(),
            "apikey".to_owned(),
            String::new(),
            "$".to_owned(),
        ] {
            assert_eq!(parse(&bad, Scheme::ApiKey), None, "{bad}");
        }
    }

    fn token(role: TokenRole) -> Token {
        Token {
            id: TokenId(Uuid::nil()),
            description: String::new(),
            hash: SecretHash::of("s"),
            role,
            expires_at: Some(Timestamp(10)),
            created_at: Timestamp(0),
        }
    }

    #[test]
    fn a_token_ends_at_its_expiry() {
        let token = token(TokenRole::Admin);
        assert!(is_good(&token, "s", Timestamp(9)));
        assert!(!is_good(&token, "s", Timestamp(10)));
        assert!(!is_good(&token, "t", Timestamp(9)));
    }

    #[test]
    fn another_project_and_a_missing_one_look_the_same() {
        let bound = Principal {
            token: token(TokenRole::Project(ProjectId(2))),
        };
        let project = |id| {
            Some(Project {
                id: ProjectId(id),
                name: "p".parse().expect("a valid name"),
                created_at: Timestamp(0),
            })
        };
        assert!(bound.enter(project(2), "p").is_ok());
        assert_eq!(
            bound.enter(project(1), "p").expect_err("foreign"),
            forbidden()
        );
        assert_eq!(bound.enter(None, "p").expect_err("missing"), forbidden());
        let admin = Principal {
            token: token(TokenRole::Admin),
        };
        assert!(admin.enter(project(1), "p").is_ok());
        assert_eq!(
            admin.enter(None, "p").expect_err("missing").code,
            Code::NotFound
        );
    }
}
