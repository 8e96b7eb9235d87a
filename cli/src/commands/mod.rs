//! One file per command group.

pub(crate) mod cluster;
pub(crate) mod down;
pub(crate) mod function;
pub(crate) mod key;
pub(crate) mod namespace;
pub(crate) mod node;
pub(crate) mod runtime;
pub(crate) mod version;

use std::collections::BTreeMap;

use crate::{api::escape, error::CliError};

/// `NAME` or `NAMESPACE/NAME`; the part before the slash wins over `--namespace`.
fn function_path(namespace: &str, name: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap_or((namespace, name));
    format!(
        "namespaces/{}/functions/{}",
        escape(namespace),
        escape(name)
    )
}

fn parse_env(pairs: &[String]) -> Result<BTreeMap<String, String>, CliError> {
    parse_pairs("--env", pairs)
}

fn parse_pairs(flag: &str, pairs: &[String]) -> Result<BTreeMap<String, String>, CliError> {
    pairs
        .iter()
        .map(|pair| match pair.split_once('=') {
            Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
            None => Err(CliError::Usage(format!(
                "{flag} {pair:?} is not of the form KEY=VALUE"
            ))),
        })
        .collect()
}
