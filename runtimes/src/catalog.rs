//! The runtimes of one server.

use coracle_model::RuntimeName;

use crate::spec::Runtime;

/// A runtime and the bytes of its shim.
#[derive(Debug, Clone)]
struct Entry {
    runtime: Runtime,
    shim: &'static [u8],
}

/// All runtimes, by name.
#[derive(Debug, Clone)]
pub struct Catalog {
    entries: Vec<Entry>,
}

/// A `runtime.toml` that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("runtime description {file}")]
pub struct CatalogError {
    pub file: String,
    #[source]
    pub source: Box<toml::de::Error>,
}

macro_rules! builtin {
    ($($name:literal: $shim:literal;)*) => {
        [$((
            $name,
            include_str!(concat!("../", $name, "/runtime.toml")),
            include_bytes!(concat!("../", $name, "/", $shim)).as_slice(),
        )),*]
    };
}

impl Catalog {
    /// The runtimes in this folder.
    pub fn builtin() -> Self {
        let files = builtin! {
            "nodejs20": "shim.js";
            "python3.11": "shim.py";
        };
        let entries = files
            .into_iter()
            .map(|(name, text, shim)| {
                let runtime = parse(name, text).expect("the embedded descriptions are tested");
                Entry { runtime, shim }
            })
            .collect();
        Self { entries }
    }

    /// In order of their names.
    pub fn runtimes(&self) -> impl Iterator<Item = &Runtime> {
        self.entries.iter().map(|entry| &entry.runtime)
    }

    /// A runtime by the exact name that it is installed under.
    pub fn get(&self, name: &RuntimeName) -> Option<&Runtime> {
        self.runtimes().find(|runtime| runtime.name == *name)
    }

    pub(crate) fn shims(&self) -> impl Iterator<Item = (&Runtime, &'static [u8])> {
        self.entries
            .iter()
            .map(|entry| (&entry.runtime, entry.shim))
    }
}

fn parse(name: &str, text: &str) -> Result<Runtime, CatalogError> {
    toml::from_str(text).map_err(|error| CatalogError {
        file: format!("{name}/runtime.toml"),
        source: Box::new(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Installer;

    #[test]
    fn every_embedded_description_is_complete() {
        let catalog = Catalog::builtin();
        let names: Vec<_> = catalog.runtimes().map(|r| r.name.to_string()).collect();
        assert_eq!(names, ["nodejs20", "python3.11"]);
        for runtime in catalog.runtimes() {
            let place = format!("/usr/lib/coracle/{}/{}", runtime.name, runtime.shim.file);
            assert_eq!(runtime.shim.argv.last(), Some(&place));
            assert!(
                runtime
                    .source
                    .file
                    .ends_with(&format!(".{}", runtime.source.extension))
            );
            assert!(
                runtime
                    .aliases
                    .iter()
                    .all(|alias| *alias == alias.to_lowercase())
            );
            assert_eq!(
                runtime.build.npm.is_some(),
                runtime.build.installer == Installer::Npm
            );
            assert!(runtime.image.npm.iter().all(|file| file.to.is_absolute()));
        }
    }

    #[test]
    fn unknown_keys_are_refused_with_the_file() {
        let error = parse("x", "name = \"x\"\nshoe_size = 43").expect_err("an unknown key");
        assert_eq!(error.to_string(), "runtime description x/runtime.toml");
    }
}
