//! Every name that a cluster leaves on a machine, in one place.
//!
//! All of them carry the cluster's id, so that two servers on one machine, or Docker beside them,
//! never touch each other's things.

use std::{fmt, path::PathBuf, str::FromStr};

use coracle_model::Invalid;

/// Eight lower-case hexadecimal characters.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ClusterId(String);

impl ClusterId {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id as a number, to spread clusters over address and user id ranges.
    pub(crate) fn number(&self) -> u32 {
        u32::from_str_radix(&self.0, 16).expect("the characters were checked")
    }

    /// containerd's namespace.
    pub(crate) fn namespace(&self) -> String {
        format!("coracle-{self}")
    }

    /// At most 15 characters, as for every interface.
    pub(crate) fn bridge(&self) -> String {
        format!("cor{self}")
    }

    /// The host's end of the container's cable. 15 characters: the whole cluster id, and six of
    /// the container's.
    pub(crate) fn veth(&self, container: &str) -> String {
        format!("v{self}{}", container.get(..6).unwrap_or(container))
    }

    /// Below the root of each cgroup hierarchy.
    pub(crate) fn cgroup_parent(&self) -> String {
        format!("/coracle-{self}")
    }

    /// At most 28 characters, as for every chain.
    pub(crate) fn chain(&self, purpose: &str) -> String {
        format!("CORACLE-{self}-{purpose}")
    }

    /// Holds the mount points of image roots. Not in the data directory, because a container's
    /// mapped root must be able to walk there, and a data directory may lie below one that only
    /// root can enter (such as `/root`).
    pub(crate) fn machine_dir(&self) -> PathBuf {
        PathBuf::from(format!("/run/coracle-{self}"))
    }
}

impl FromStr for ClusterId {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if s.len() != 8 || !s.bytes().all(hex) {
            return Err(Invalid::new(
                "cluster_id",
                "must be 8 characters of 0-9 and a-f",
            ));
        }
        Ok(Self(s.to_owned()))
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cluster:{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_the_kernels_limits() {
        let id: ClusterId = "0123abcd".parse().expect("eight hexadecimal characters");
        assert!(id.bridge().len() <= 15);
        assert_eq!(id.veth("fedcba987654"), "v0123abcdfedcba");
        assert!(id.veth("fedcba987654").len() <= 15);
        assert!(id.chain("FWD").len() <= 28);
        for bad in ["", "0123abc", "0123ABCD", "0123abcg", "0123abcde"] {
            assert!(bad.parse::<ClusterId>().is_err(), "{bad}");
        }
    }
}
