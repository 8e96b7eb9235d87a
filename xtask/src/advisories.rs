//! Locked versions against a committed list of advisories.

use serde::Deserialize;

use crate::metadata::Metadata;

#[derive(Debug, Deserialize)]
struct List {
    advisory: Vec<Advisory>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Advisory {
    id: String,
    package: String,
    /// The first version without the fault; every version has it when absent.
    patched: Option<String>,
    /// Looked at and lived with, for the reason beside it in the list.
    accepted: bool,
}

pub(crate) fn check(metadata: &Metadata) -> Result<(), String> {
    let list: List = toml::from_str(include_str!("../advisories.toml"))
        .map_err(|error| format!("advisories.toml: {error}"))?;
    let mut wrong = Vec::new();
    for advisory in &list.advisory {
        let affected = metadata.packages.iter().find(|package| {
            package.name == advisory.package
                && advisory
                    .patched
                    .as_ref()
                    .is_none_or(|patched| numbers(&package.version) < numbers(patched))
        });
        match affected {
            Some(package) if !advisory.accepted => {
                wrong.push(format!(
                    "{}: {} {}",
                    advisory.id, package.name, package.version
                ));
            }
            // An exception that nothing needs would hide the next one.
            None if advisory.accepted => {
                wrong.push(format!(
                    "{}: accepted, but nothing has it any more",
                    advisory.id
                ));
            }
            _ => {}
        }
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(wrong.join("\n"))
    }
}

/// A version's numbers; what comes behind a `-` or `+` does not matter here.
fn numbers(version: &str) -> Vec<u64> {
    let release = version.split(['-', '+']).next().unwrap_or_default();
    release
        .split('.')
        .map(|n| n.parse().unwrap_or_default())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::numbers;

    #[test]
    fn versions_compare_by_number() {
        assert!(numbers("0.4.9") < numbers("0.4.16"));
        assert!(numbers("2.28.0") < numbers("3.7.2"));
        assert_eq!(numbers("1.2.3-rc.1"), [1, 2, 3]);
    }
}
