//! The direction of dependency, as ARCHITECTURE.md draws it. A new edge is a decision: it is added
//! here, in the same change, or refused.

use crate::metadata::Metadata;

/// Who may depend on whom (normal and build dependencies; tests may reach further).
const ALLOWED: &[(&str, &[&str])] = &[
    ("coracle-model", &[]),
    ("coracle-base", &[]),
    ("coracle-init", &[]),
    ("coracle-proto", &["coracle-model"]),
    ("coracle-runtimes", &["coracle-model"]),
    ("coracle-state", &["coracle-model", "coracle-proto"]),
    ("coracle-planner", &["coracle-model"]),
    ("coracle-replica", &["coracle-base", "coracle-proto"]),
    (
        "coracle-identity",
        &["coracle-base", "coracle-model", "coracle-proto"],
    ),
    (
        "coracle-controller",
        &[
            "coracle-base",
            "coracle-identity",
            "coracle-model",
            "coracle-planner",
            "coracle-proto",
            "coracle-replica",
            "coracle-state",
        ],
    ),
    ("coracle-driver", &["coracle-model"]),
    (
        "coracle-builder",
        &["coracle-driver", "coracle-model", "coracle-runtimes"],
    ),
    (
        "coracle-containerd",
        &[
            "coracle-base",
            "coracle-driver",
            "coracle-init",
            "coracle-model",
        ],
    ),
    (
        "coracle-agent",
        &[
            "coracle-base",
            "coracle-builder",
            "coracle-containerd",
            "coracle-driver",
            "coracle-identity",
            "coracle-model",
            "coracle-proto",
            "coracle-runtimes",
        ],
    ),
    ("coracle-facades", &["coracle-model", "coracle-runtimes"]),
    (
        "coracle-gateway",
        &[
            "coracle-base",
            "coracle-facades",
            "coracle-identity",
            "coracle-model",
            "coracle-proto",
            "coracle-runtimes",
        ],
    ),
];

/// Pure crates: decisions as functions of values. These must never appear below them.
const PURE: &[&str] = &[
    "coracle-model",
    "coracle-state",
    "coracle-planner",
    "coracle-runtimes",
];
const IMPURE: &[&str] = &[
    "tokio",
    "hyper",
    "axum",
    "sled",
    "raft",
    "containerd-client",
];

/// Foreign vocabularies and their one owner; measurements may name them to be their peer.
const OWNERS: &[(&str, &str)] = &[
    ("raft", "coracle-replica"),
    ("sled", "coracle-replica"),
    ("containerd-client", "coracle-containerd"),
];

pub(crate) fn check(metadata: &Metadata) -> Result<(), String> {
    let mut wrong = Vec::new();
    for package in metadata.members() {
        let allowed = ALLOWED
            .iter()
            .find(|(name, _)| *name == package.name)
            .map(|(_, deps)| deps);
        for dependency in &package.dependencies {
            if dependency.kind.as_deref() == Some("dev") {
                continue;
            }
            let name = dependency.name.as_str();
            if let Some(allowed) = allowed
                && name.starts_with("coracle-")
                && !allowed.contains(&name)
            {
                wrong.push(format!("{} must not depend on {name}", package.name));
            }
            if PURE.contains(&package.name.as_str()) && IMPURE.contains(&name) {
                wrong.push(format!(
                    "{} is pure and must not depend on {name}",
                    package.name
                ));
            }
            if let Some((_, owner)) = OWNERS.iter().find(|(foreign, _)| *foreign == name)
                && *owner != package.name
                && package.name != "coracle-bench"
            {
                wrong.push(format!(
                    "only {owner} may name {name}, not {}",
                    package.name
                ));
            }
        }
    }
    let unlisted = metadata.members().filter(|p| {
        !ALLOWED.iter().any(|(name, _)| *name == p.name)
            && ![
                "coracle",
                "coracle-bench",
                "coracle-sim",
                "coracle-tests",
                "coracle-xtask",
            ]
            .contains(&p.name.as_str())
    });
    wrong.extend(unlisted.map(|p| format!("{} is not in the list of layers", p.name)));
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(wrong.join("\n"))
    }
}
