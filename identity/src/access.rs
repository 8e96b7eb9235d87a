//! What each kind of peer may call. The one list: services register nothing, and a method that is
//! not listed here is refused. A test compares it with the contracts.

use coracle_model::ComponentRole::{self, Agent, Controller, Gateway};

use crate::Peer;

/// Whom a service, or one method of it, is for. Whoever is on the same machine may call everything.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// `coracle.v1.<service>`.
    pub service: &'static str,
    /// All of the service when absent.
    pub method: Option<&'static str>,
    pub roles: &'static [ComponentRole],
    /// Also for those that are nobody yet.
    pub anonymous: bool,
}

const ANYONE: &[ComponentRole] = &[Controller, Agent, Gateway];
/// Gateways ask, and a controller that does not lead hands on what it was asked.
const ASKING: &[ComponentRole] = &[Gateway, Controller];

/// A method's own row wins over its service's.
pub const RULES: &[Rule] = &[
    // Checked in the session too: an agent speaks for its own node only.
    rule("coracle.v1.Agents", None, &[Agent]),
    rule("coracle.v1.Management", None, ASKING),
    // Agents fetch what they run and store what they built.
    rule("coracle.v1.Management", Some("GetArtifact"), ANYONE),
    rule("coracle.v1.Management", Some("PutArtifact"), ANYONE),
    rule("coracle.v1.Management", Some("Status"), ANYONE),
    rule("coracle.v1.Cluster", None, ASKING),
    rule("coracle.v1.Routing", None, ASKING),
    // Checked there too: a member speaks for itself only.
    rule("coracle.v1.Peers", None, &[Controller]),
    rule("coracle.v1.ArtifactPeers", None, &[Controller]),
    // Served by agents.
    rule("coracle.v1.NodeService", None, ASKING),
    // A token is what is asked for there.
    Rule {
        anonymous: true,
        ..rule("coracle.v1.Join", Some("Enrol"), ANYONE)
    },
    rule("coracle.v1.Join", Some("Renew"), ANYONE),
];

const fn rule(
    service: &'static str,
    method: Option<&'static str>,
    roles: &'static [ComponentRole],
) -> Rule {
    Rule {
        service,
        method,
        roles,
        anonymous: false,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("a certificate of this cluster is needed: join it first")]
    Anonymous,
    #[error("this is not for a component of the role {0}")]
    Role(ComponentRole),
    #[error("there is no such method")]
    NoSuchMethod,
}

/// Whether `peer` may call the method at `path` (`/coracle.v1.Service/Method`).
pub fn check(peer: &Peer, path: &str) -> Result<(), Denied> {
    if *peer == Peer::Local {
        return Ok(());
    }
    let rule = find(path).ok_or(Denied::NoSuchMethod)?;
    match peer {
        Peer::Local => Ok(()),
        Peer::Anonymous if rule.anonymous => Ok(()),
        Peer::Anonymous => Err(Denied::Anonymous),
        Peer::Component(component) if rule.roles.contains(&component.role()) => Ok(()),
        Peer::Component(component) => Err(Denied::Role(component.role())),
    }
}

/// The row that decides about this path.
pub fn find(path: &str) -> Option<&'static Rule> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    let of_service = || RULES.iter().filter(|rule| rule.service == service);
    of_service()
        .find(|rule| rule.method == Some(method))
        .or_else(|| of_service().find(|rule| rule.method.is_none()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use coracle_model::{MemberId, NodeId};
    use uuid::Uuid;

    use super::*;
    use crate::Component;

    /// Every method of every service, against every kind of peer: nothing is open that is not said
    /// to be, here once more by hand.
    #[test]
    fn every_method_is_listed_and_refuses_all_others() {
        let uuid = Uuid::from_u128(1);
        let peers = [
            Peer::Component(Component::Controller(MemberId(1))),
            Peer::Component(Component::Agent(NodeId(uuid))),
            Peer::Component(Component::Gateway(uuid)),
            Peer::Anonymous,
        ];
        let mut methods = 0;
        for (service, method) in coracle_proto::methods() {
            let path = format!("/{service}/{method}");
            let short = service.rsplit('.').next().unwrap_or_default();
            // Controller, agent, gateway, anonymous.
            let expected = match (short, method.as_str()) {
                ("Agents", _) => [false, true, false, false],
                ("ArtifactPeers" | "Peers", _) => [true, false, false, false],
                ("Join", "Enrol") => [true; 4],
                ("Join", "Renew") | ("Management", "GetArtifact" | "PutArtifact" | "Status") => {
                    [true, true, true, false]
                }
                ("Management" | "Cluster" | "Routing" | "NodeService", _) => {
                    [true, false, true, false]
                }
                _ => panic!("{path}: whom is it for? Add it to access.rs, and here"),
            };
            let found = peers.map(|peer| check(&peer, &path).is_ok());
            assert_eq!(found, expected, "{path}");
            assert!(check(&Peer::Local, &path).is_ok());
            methods += 1;
        }
        assert!(methods > 20, "only {methods} methods were found");
        for peer in peers {
            for path in ["/coracle.v1.Nothing/At", "", "/", "/coracle.v1.Management"] {
                assert_eq!(check(&peer, path), Err(Denied::NoSuchMethod), "{path}");
            }
        }
    }

    #[test]
    fn no_row_is_about_what_is_not_there() {
        let known: BTreeSet<_> = coracle_proto::methods().collect();
        let mut rows = BTreeSet::new();
        for rule in RULES {
            let there = known.iter().any(|(service, method)| {
                service == rule.service && rule.method.is_none_or(|of| of == method)
            });
            assert!(there, "{rule:?}");
            assert!(rows.insert((rule.service, rule.method)), "twice: {rule:?}");
        }
    }
}
