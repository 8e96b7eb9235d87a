//! One runtime's description, checked once.

use std::{collections::BTreeMap, fmt, path::PathBuf, str::FromStr};

use coracle_model::{Invalid, Memory, RuntimeName};
use serde::Deserialize;

/// A runtime as its `runtime.toml` describes it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Runtime {
    pub name: RuntimeName,
    /// One word, shared by all runtimes of the language.
    pub language: String,
    pub version: Version,
    /// Names of the language as clouds write it, lower case.
    pub aliases: Vec<String>,
    /// For people: "Python 3.11".
    pub title: String,
    /// Which versions that are not installed this one may serve.
    pub stands_in_for: StandsInFor,
    pub source: SourceFiles,
    pub shim: Shim,
    pub image: Image,
    pub build: Build,
}

/// A promise about compatibility, which differs by language.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StandsInFor {
    /// Older ones with the same first number: Python 2 code never runs on Python 3.
    SameMajor,
    /// Any older one: each Node.js release has a first number of its own and runs what came before.
    AnyOlder,
}

/// What a build writes the user's text to.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceFiles {
    /// Where the code goes when the handler names no module.
    pub file: String,
    /// Without the dot; a handler `a.b` puts the code into `a.<extension>`.
    pub extension: String,
    /// The language's own list of dependencies.
    pub dependencies: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shim {
    /// Beside `runtime.toml`.
    pub file: String,
    /// In the container. Our init runs it as its child.
    pub argv: Vec<String>,
    /// The least memory limit that a stem starts under, in MiB.
    pub stem_memory_mib: Memory,
    /// The environment of the shim; a function's own variables are added on top by its claim.
    pub env: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// Debian packages whose closure makes the image.
    pub packages: Vec<String>,
    /// The same taken from what the host has installed.
    pub host_packages: Vec<String>,
    /// Single files out of npm packages, at most one an architecture.
    #[serde(default)]
    pub npm: Vec<NpmFile>,
}

/// One file of an npm package, put into the image.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NpmFile {
    /// As `std::env::consts::ARCH` says it.
    pub arch: String,
    pub package: String,
    pub version: String,
    /// Subresource integrity of the package's archive, `sha512-<base64>`.
    pub integrity: String,
    /// Inside the package.
    pub from: PathBuf,
    /// Inside the image, absolute.
    pub to: PathBuf,
}

impl NpmFile {
    pub fn archive(&self) -> NpmPackage {
        NpmPackage {
            package: self.package.clone(),
            version: self.version.clone(),
            integrity: self.integrity.clone(),
        }
    }
}

/// A pinned archive of the npm registry.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NpmPackage {
    pub package: String,
    pub version: String,
    /// Subresource integrity of the package's archive, `sha512-<base64>`.
    pub integrity: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Build {
    pub installer: Installer,
    /// Present when the installer is npm.
    pub npm: Option<NpmPackage>,
}

/// How dependencies are installed. The commands are in the builder, since they depend on more than
/// the runtime (proxies, certificates, where things are mounted).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Installer {
    Pip,
    Npm,
}

/// Numbers separated by dots; a missing number counts as less than any.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct Version(Vec<u32>);

impl Version {
    pub fn numbers(&self) -> &[u32] {
        &self.0
    }

    pub fn major(&self) -> u32 {
        self.0[0]
    }

    /// Whether every number that both have is the same ("3.11" and "3.11.4").
    pub fn covers(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).all(|(a, b)| a == b)
    }

    /// Made of numbers already split; `None` when there are none.
    pub(crate) fn from_numbers(numbers: Vec<u32>) -> Option<Self> {
        (!numbers.is_empty()).then_some(Self(numbers))
    }
}

impl FromStr for Version {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        let numbers: Result<Vec<u32>, _> = s.split('.').map(str::parse).collect();
        numbers
            .ok()
            .and_then(Self::from_numbers)
            .ok_or_else(|| Invalid::new("version", "must be numbers separated by dots"))
    }
}

impl TryFrom<String> for Version {
    type Error = Invalid;
    fn try_from(s: String) -> Result<Self, Invalid> {
        s.parse()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, number) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(".")?;
            }
            write!(f, "{number}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
