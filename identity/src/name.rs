//! The names in certificates: `coracle://<cluster>/<role>/<id>`.

use std::{fmt, str::FromStr};

use coracle_model::{ComponentRole, Invalid, MemberId, NodeId};
use uuid::Uuid;

use crate::Component;

/// One component of one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// 8 hexadecimal digits.
    pub cluster: String,
    pub component: Component,
}

impl Name {
    /// The one name of ours among those of a certificate.
    pub fn among<'a>(names: impl IntoIterator<Item = &'a String>) -> Result<Self, Invalid> {
        let mut ours = names.into_iter().filter(|name| name.starts_with(SCHEME));
        match (ours.next(), ours.next()) {
            (Some(name), None) => name.parse(),
            _ => Err(malformed()),
        }
    }

    /// For [`coracle_base::Tls::expecting`]: of this cluster, and in one of these roles.
    pub fn check(
        cluster: &str,
        roles: &'static [ComponentRole],
    ) -> impl Fn(&[String]) -> Result<(), String> + Send + Sync + 'static {
        let cluster = cluster.to_owned();
        move |names| {
            let name = Self::among(names).map_err(|_| {
                "the certificate of the other side names no component of a cluster".to_owned()
            })?;
            if name.cluster != cluster {
                return Err(format!(
                    "the other side belongs to cluster {}, and this is cluster {cluster}",
                    name.cluster
                ));
            }
            let role = name.component.role();
            if roles.contains(&role) {
                return Ok(());
            }
            let wanted: Vec<_> = roles.iter().map(|role| role.as_str()).collect();
            Err(format!(
                "the other side is {} {role}, and a certificate of the role {} is needed here",
                article(role),
                wanted.join(" or ")
            ))
        }
    }
}

fn article(role: ComponentRole) -> &'static str {
    match role {
        ComponentRole::Agent => "an",
        ComponentRole::Controller | ComponentRole::Gateway => "a",
    }
}

const SCHEME: &str = "coracle://";

fn malformed() -> Invalid {
    Invalid::new("name", "must be coracle://<cluster>/<role>/<id>")
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cluster, component } = self;
        write!(f, "{SCHEME}{cluster}/{}/", component.role())?;
        match component {
            Component::Controller(member) => member.fmt(f),
            Component::Agent(node) => node.fmt(f),
            Component::Gateway(id) => id.fmt(f),
        }
    }
}

impl FromStr for Name {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        let mut parts = s.strip_prefix(SCHEME).ok_or_else(malformed)?.split('/');
        let (Some(cluster), Some(role), Some(id), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(malformed());
        };
        let uuid = || Uuid::try_parse(id).map_err(|_| malformed());
        let component = match role.parse()? {
            ComponentRole::Controller => match id.parse() {
                Ok(0) | Err(_) => return Err(malformed()),
                Ok(member) => Component::Controller(MemberId(member)),
            },
            ComponentRole::Agent => Component::Agent(NodeId(uuid()?)),
            ComponentRole::Gateway => Component::Gateway(uuid()?),
        };
        let name = Self {
            cluster: cluster.to_owned(),
            component,
        };
        // One spelling each, so that what is compared as text is the same as what is meant.
        if cluster.is_empty() || name.to_string() != s {
            return Err(malformed());
        }
        Ok(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_one_way_and_read_back() {
        let uuid = Uuid::from_u128(7);
        for component in [
            Component::Controller(MemberId(3)),
            Component::Agent(NodeId(uuid)),
            Component::Gateway(uuid),
        ] {
            let name = Name {
                cluster: "0badcafe".into(),
                component,
            };
            assert_eq!(name.to_string().parse::<Name>().unwrap(), name);
        }
        for bad in [
            "coracle://0badcafe/controller/0",
            "coracle://0badcafe/controller/03",
            "coracle://0badcafe/controller/x",
            "coracle://0badcafe/agent/3",
            "coracle:///controller/3",
            "coracle://0badcafe/admin/3",
            "coracle://0badcafe/controller/3/more",
            "https://0badcafe/controller/3",
        ] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_certificate_with_two_names_has_none() {
        let one = "coracle://0badcafe/controller/1".to_owned();
        let two = "coracle://0badcafe/controller/2".to_owned();
        assert!(Name::among([&one]).is_ok());
        assert!(Name::among([&one, &two]).is_err());
        assert!(Name::among([]).is_err());
    }

    #[test]
    fn a_check_says_what_is_wrong_in_one_sentence() {
        const CONTROLLERS: &[ComponentRole] = &[ComponentRole::Controller];
        let check = Name::check("0badcafe", CONTROLLERS);
        let of = |text: &str| check(&[text.to_owned()]);
        assert_eq!(of("coracle://0badcafe/controller/1"), Ok(()));
        let agent = format!("coracle://0badcafe/agent/{}", Uuid::from_u128(1));
        assert_eq!(
            of(&agent).unwrap_err(),
            "the other side is an agent, and a certificate of the role controller is needed here"
        );
        assert_eq!(
            of("coracle://ffffffff/controller/1").unwrap_err(),
            "the other side belongs to cluster ffffffff, and this is cluster 0badcafe"
        );
    }
}
