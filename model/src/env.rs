//! Environment variables of a function or namespace.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{error::Invalid, limits};

/// Sorted by name, so that the same variables always give the same bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    try_from = "BTreeMap<String, String>",
    into = "BTreeMap<String, String>"
)]
pub struct Env(BTreeMap<String, String>);

impl Env {
    /// What a client chose for a function or a namespace.
    pub fn new(vars: BTreeMap<String, String>) -> Result<Self, Invalid> {
        Self::bounded(vars, limits::ENV_TOTAL_MAX_BYTES)
    }

    /// The result of [`Env::overlaid`], read back: two halves that were each bounded, so the total
    /// may be twice as large.
    pub fn from_overlay(vars: BTreeMap<String, String>) -> Result<Self, Invalid> {
        Self::bounded(vars, 2 * limits::ENV_TOTAL_MAX_BYTES)
    }

    fn bounded(vars: BTreeMap<String, String>, total_max: usize) -> Result<Self, Invalid> {
        let mut total = 0;
        for (key, value) in &vars {
            check_key(key)?;
            let chars = value.chars().count();
            if chars > limits::ENV_VALUE_MAX_CHARS || value.contains('\0') {
                return Err(Invalid::new(
                    format!("env.{key}"),
                    format_args!(
                        "value must be at most {} characters without NUL, has {chars}",
                        limits::ENV_VALUE_MAX_CHARS
                    ),
                ));
            }
            total += key.len() + value.len();
        }
        if total > total_max {
            return Err(Invalid::new(
                "env",
                format_args!(
                    "all names and values together must be at most {total_max} bytes, are {total}"
                ),
            ));
        }
        Ok(Self(vars))
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// These variables with `over` laid on top. Not bounded by the total again: both halves were.
    #[must_use]
    pub fn overlaid(&self, over: &Self) -> Self {
        let mut vars = self.0.clone();
        vars.extend(over.0.iter().map(|(k, v)| (k.clone(), v.clone())));
        Self(vars)
    }
}

fn check_key(key: &str) -> Result<(), Invalid> {
    let shown: String = key.chars().take(40).collect();
    let chars = key.chars().count();
    if chars == 0 || chars > limits::ENV_KEY_MAX_CHARS {
        return Err(Invalid::new(
            format!("env.{shown}"),
            format_args!(
                "name must be 1 to {} characters, has {chars}",
                limits::ENV_KEY_MAX_CHARS
            ),
        ));
    }
    let starts = key
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    if !starts || !key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Err(Invalid::new(
            format!("env.{shown}"),
            "name must match [a-zA-Z_][a-zA-Z0-9_]*",
        ));
    }
    Ok(())
}

impl TryFrom<BTreeMap<String, String>> for Env {
    type Error = Invalid;
    fn try_from(vars: BTreeMap<String, String>) -> Result<Self, Invalid> {
        Self::new(vars)
    }
}

impl From<Env> for BTreeMap<String, String> {
    fn from(value: Env) -> Self {
        value.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(key: &str, value: &str) -> Result<Env, Invalid> {
        Env::new([(key.to_owned(), value.to_owned())].into())
    }

    #[test]
    fn names_and_values_are_bounded() {
        assert!(env("A_1", &"x".repeat(255)).is_ok());
        assert!(env(&"A".repeat(255), "").is_ok());
        for (key, value) in [
            ("", ""),
            ("1A", ""),
            ("A-B", ""),
            ("A", &*"x".repeat(256)),
            (&*"A".repeat(256), ""),
        ] {
            assert!(env(key, value).is_err(), "{key}={value}");
        }
    }

    #[test]
    fn the_function_wins_over_its_namespace() {
        let both = env("A", "ns").unwrap().overlaid(&env("A", "fn").unwrap());
        assert_eq!(both.iter().collect::<Vec<_>>(), [("A", "fn")]);
    }
}
