//! Names, parsed once. A name that exists is valid.

use std::{fmt, ops::Deref, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{error::Invalid, limits};

fn check_label(field: &'static str, s: &str) -> Result<(), Invalid> {
    let len = s.len();
    if len == 0 || len > limits::NAME_MAX {
        return Err(Invalid::new(
            field,
            format_args!("must be 1 to {} characters, is {len}", limits::NAME_MAX),
        ));
    }
    let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let bytes = s.as_bytes();
    let edges = bytes.first().is_some_and(u8::is_ascii_lowercase) && bytes.last() != Some(&b'-');
    if !edges || !bytes.iter().all(|b| ok(*b)) {
        return Err(Invalid::new(
            field,
            "must start with a lower-case letter, hold only a-z, 0-9 and '-', and not end with '-'",
        ));
    }
    Ok(())
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident = $field:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str { &self.0 }
        }
        impl TryFrom<String> for $name {
            type Error = Invalid;
            fn try_from(s: String) -> Result<Self, Invalid> {
                check_label($field, &s)?;
                Ok(Self(s))
            }
        }
        impl FromStr for $name {
            type Err = Invalid;
            fn from_str(s: &str) -> Result<Self, Invalid> { s.to_owned().try_into() }
        }
        impl From<$name> for String {
            fn from(value: $name) -> String { value.0 }
        }
        impl Deref for $name {
            type Target = str;
            fn deref(&self) -> &str { &self.0 }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { fmt::Debug::fmt(&self.0, f) }
        }
    )*};
}

names! {
    ProjectName = "project";
    NamespaceName = "namespace";
    FunctionName = "name";
    KeyName = "key";
}

/// A runtime as it is installed, for example `python3.11` or `nodejs20`. Which ones exist is data
/// (`runtimes/*/runtime.toml`), so only the shape is checked here.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RuntimeName(String);

impl RuntimeName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for RuntimeName {
    type Error = Invalid;
    fn try_from(s: String) -> Result<Self, Invalid> {
        let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        if s.is_empty() || s.len() > limits::NAME_MAX || !s.bytes().all(ok) {
            return Err(Invalid::new(
                "runtime",
                format_args!(
                    "must be 1 to {} characters of a-z, 0-9, '.', '-' and '_'",
                    limits::NAME_MAX
                ),
            ));
        }
        Ok(Self(s))
    }
}

impl FromStr for RuntimeName {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        s.to_owned().try_into()
    }
}

impl From<RuntimeName> for String {
    fn from(value: RuntimeName) -> String {
        value.0
    }
}

impl fmt::Display for RuntimeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RuntimeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// What people call a node: most often its host name, so letters may be upper-case and dots are
/// allowed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

impl NodeName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for NodeName {
    type Error = Invalid;
    fn try_from(s: String) -> Result<Self, Invalid> {
        let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        if s.is_empty() || s.len() > limits::NODE_NAME_MAX || !s.bytes().all(ok) {
            return Err(Invalid::new(
                "node",
                format_args!(
                    "must be 1 to {} characters of a-z, A-Z, 0-9, '.', '-' and '_'",
                    limits::NODE_NAME_MAX
                ),
            ));
        }
        Ok(Self(s))
    }
}

impl FromStr for NodeName {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        s.to_owned().try_into()
    }
}

impl From<NodeName> for String {
    fn from(value: NodeName) -> String {
        value.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_lower_case_dns_labels() {
        for good in ["a", "ab", "a-b", "hello-2", &"a".repeat(63)] {
            assert!(good.parse::<FunctionName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "-a",
            "a-",
            "A",
            "1a",
            "a_b",
            "a.b",
            "ä",
            &"a".repeat(64),
        ] {
            let error = bad.parse::<FunctionName>().expect_err(bad);
            assert_eq!(error.field, "name");
        }
    }
}
