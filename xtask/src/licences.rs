//! Every dependency has a permissive licence and comes from crates.io. `cargo deny` checks the same
//! from deny.toml where it is installed; this needs nothing but cargo.

use crate::metadata::Metadata;

const PERMISSIVE: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

pub(crate) fn check(metadata: &Metadata) -> Result<(), String> {
    let mut wrong = Vec::new();
    for package in &metadata.packages {
        if metadata.workspace_members.contains(&package.id) {
            continue;
        }
        match &package.license {
            Some(expression) if is_permissive(expression) => {}
            Some(expression) => wrong.push(format!("{}: licence {expression}", package.name)),
            None => wrong.push(format!("{}: no licence named", package.name)),
        }
        if !package
            .source
            .as_deref()
            .is_some_and(|s| s.starts_with("registry+"))
        {
            wrong.push(format!("{}: not from a registry", package.name));
        }
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(wrong.join("\n"))
    }
}

/// An SPDX expression: every part joined by AND needs one permissive choice among its ORs.
/// Crates still write `/` for OR. Parentheses only group ORs in practice.
fn is_permissive(expression: &str) -> bool {
    expression
        .replace(['(', ')'], "")
        .split(" AND ")
        .all(|part| {
            part.replace('/', " OR ")
                .split(" OR ")
                .any(|choice| PERMISSIVE.contains(&choice.trim()))
        })
}

#[cfg(test)]
mod tests {
    use super::is_permissive;

    #[test]
    fn one_permissive_choice_is_enough_for_each_part() {
        assert!(is_permissive("MIT OR GPL-3.0"));
        assert!(is_permissive("MIT/Apache-2.0"));
        assert!(is_permissive("(MIT OR Apache-2.0) AND Unicode-3.0"));
        assert!(!is_permissive("MPL-2.0"));
        assert!(!is_permissive("MIT AND GPL-3.0"));
    }
}
