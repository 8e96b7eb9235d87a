//! From the name that a cloud gives a runtime to one that is installed. Pure.

use std::cmp::Reverse;

use crate::{Catalog, Runtime, Version, spec::StandsInFor};

/// What to do about a version that is not installed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Strictness {
    /// The nearest newer version stands in if [`StandsInFor`] allows it, and the message says so.
    #[default]
    NearestNewer,
    /// Only a version that is installed.
    Exact,
}

/// A requested name and the runtime that serves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    pub runtime: Runtime,
    /// One sentence, present when another version stands in for the one asked for.
    pub message: Option<String>,
}

/// No installed runtime can serve the name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownRuntime {
    #[error("runtime {requested:?} is not known; there are {}", .installed.join(", "))]
    Language {
        requested: String,
        installed: Vec<String>,
    },
    /// The language is there, in versions that may not stand in for the one asked for.
    #[error("runtime {requested:?} is not installed; of its language there are {}", .installed.join(", "))]
    Version {
        requested: String,
        installed: Vec<String>,
    },
}

impl UnknownRuntime {
    /// Names that would be accepted.
    pub fn installed(&self) -> &[String] {
        match self {
            Self::Language { installed, .. } | Self::Version { installed, .. } => installed,
        }
    }
}

impl Catalog {
    /// Finds the runtime for a name like `python3.11`, `Python3.10`, `python3.7.12`, `python311`,
    /// `Nodejs16.13` or `node20`; case does not matter. A name without a version means the newest.
    pub fn resolve(
        &self,
        requested: &str,
        strictness: Strictness,
    ) -> Result<Resolved, UnknownRuntime> {
        let wanted = requested.trim().to_lowercase();
        if let Some(runtime) = self.runtimes().find(|r| r.name.as_str() == wanted) {
            return Ok(Resolved {
                runtime: runtime.clone(),
                message: None,
            });
        }
        let candidates: Vec<_> = self
            .runtimes()
            .filter_map(|runtime| Some((runtime, version_of(runtime, &wanted)?)))
            .collect();
        if candidates.is_empty() {
            return Err(UnknownRuntime::Language {
                requested: requested.to_owned(),
                installed: self.runtimes().map(|r| r.name.to_string()).collect(),
            });
        }
        let refuse = || UnknownRuntime::Version {
            requested: requested.to_owned(),
            installed: candidates.iter().map(|(r, _)| r.name.to_string()).collect(),
        };
        if let Some((runtime, _)) = candidates
            .iter()
            .filter(|(runtime, version)| match version {
                Asked::Newest => true,
                Asked::Version(version) => runtime.version.covers(version),
            })
            .max_by_key(|(runtime, _)| &runtime.version)
        {
            return Ok(Resolved {
                runtime: (*runtime).clone(),
                message: None,
            });
        }
        if strictness == Strictness::Exact {
            return Err(refuse());
        }
        let stand_in = candidates
            .iter()
            .filter(|(runtime, asked)| asked.may_be_served_by(runtime))
            .max_by_key(|(runtime, _)| Reverse(&runtime.version))
            .map(|(runtime, _)| (*runtime).clone())
            .ok_or_else(refuse)?;
        let message = format!(
            "runtime {} stands in for {requested}, which is not installed",
            stand_in.name
        );
        Ok(Resolved {
            runtime: stand_in,
            message: Some(message),
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Asked {
    Newest,
    Version(Version),
}

impl Asked {
    fn may_be_served_by(&self, runtime: &Runtime) -> bool {
        let Self::Version(asked) = self else {
            return true;
        };
        let same = runtime.version.major() == asked.major();
        (same || runtime.stands_in_for == StandsInFor::AnyOlder) && runtime.version >= *asked
    }
}

/// What version of the runtime's language `wanted` asks for; `None` when it is another language.
fn version_of(runtime: &Runtime, wanted: &str) -> Option<Asked> {
    let rest = runtime
        .aliases
        .iter()
        .filter_map(|alias| wanted.strip_prefix(alias.as_str()))
        .filter(|rest| !rest.starts_with(|c: char| c.is_alphabetic()))
        .min_by_key(|rest| rest.len())?;
    let digits = rest.trim_start_matches(['-', ' ', '_', ':', 'v']);
    if digits.is_empty() {
        return Some(Asked::Newest);
    }
    let digits = digits.trim_end_matches(".x");
    let numbers: Vec<u32> = digits
        .split(['.', '_', '-'])
        .map(str::parse)
        .collect::<Result<_, _>>()
        .ok()?;
    // `python311` and `python27` leave the dot out.
    let numbers = match (numbers.as_slice(), runtime.version.numbers().len()) {
        ([_], 2..) if digits.len() > 1 => {
            let (major, minor) = digits.split_at(1);
            vec![major.parse().ok()?, minor.parse().ok()?]
        }
        _ => numbers,
    };
    Version::from_numbers(numbers).map(Asked::Version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(requested: &str, strictness: Strictness) -> Result<(String, bool), UnknownRuntime> {
        let resolved = Catalog::builtin().resolve(requested, strictness)?;
        Ok((
            resolved.runtime.name.to_string(),
            resolved.message.is_some(),
        ))
    }

    #[test]
    fn names_of_every_cloud_find_their_runtime() {
        for (requested, name, stood_in) in [
            ("python3.11", "python3.11", false),
            ("Python3.11", "python3.11", false),
            ("python311", "python3.11", false),
            ("python3.11.4", "python3.11", false),
            ("python3", "python3.11", false),
            ("python", "python3.11", false),
            ("python3.7.12", "python3.11", true),
            ("Python3.10", "python3.11", true),
            ("python310", "python3.11", true),
            ("nodejs20", "nodejs20", false),
            ("node20", "nodejs20", false),
            ("Node.js 20", "nodejs20", false),
            ("nodejs20.18.1", "nodejs20", false),
            ("nodejs", "nodejs20", false),
            ("Nodejs16.13", "nodejs20", true),
            ("node18", "nodejs20", true),
        ] {
            let found = resolve(requested, Strictness::NearestNewer);
            assert_eq!(found, Ok((name.to_owned(), stood_in)), "{requested}");
            let strict = resolve(requested, Strictness::Exact);
            assert_eq!(strict.is_err(), stood_in, "{requested}, strict");
        }
    }

    #[test]
    fn a_stand_in_is_named_with_what_was_asked() {
        let resolved = Catalog::builtin()
            .resolve("python3.7.12", Strictness::NearestNewer)
            .unwrap();
        let message = resolved.message.unwrap();
        assert!(
            message.contains("python3.7.12") && message.contains("python3.11"),
            "{message}"
        );
    }

    #[test]
    fn older_and_other_majors_never_stand_in() {
        for requested in [
            "Python2.7",
            "python2.7.18",
            "python27",
            "python3.12",
            "nodejs22",
            "python4",
        ] {
            let error = resolve(requested, Strictness::NearestNewer).expect_err(requested);
            assert!(
                matches!(error, UnknownRuntime::Version { .. }),
                "{requested}: {error}"
            );
            assert_eq!(error.installed().len(), 1, "{requested}");
        }
    }

    #[test]
    fn another_language_is_refused_with_the_list() {
        for requested in [
            "cobol",
            "go1.16.6",
            "pythonista",
            "nodejsx",
            "",
            "python3.x.y",
            "py3k",
        ] {
            let error = resolve(requested, Strictness::NearestNewer).expect_err(requested);
            assert_eq!(error.installed(), ["nodejs20", "python3.11"], "{requested}");
            assert!(
                error.to_string().contains("nodejs20, python3.11"),
                "{error}"
            );
        }
    }
}
