//! How many revisions name each artifact. Derived from the revisions, so not in snapshots.

use std::collections::BTreeMap;

use coracle_model::{BuildOutput, Digest, Revision, RevisionSettings, Source};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Artifacts(BTreeMap<Digest, u64>);

impl Artifacts {
    pub(crate) fn add(&mut self, digests: impl IntoIterator<Item = Digest>) {
        for digest in digests {
            *self.0.entry(digest).or_default() += 1;
        }
    }

    /// Returns those that nothing names any more.
    pub(crate) fn remove(&mut self, digests: impl IntoIterator<Item = Digest>) -> Vec<Digest> {
        let mut gone = Vec::new();
        for digest in digests {
            let count = self
                .0
                .get_mut(&digest)
                .expect("counted when its revision was made");
            *count -= 1;
            if *count == 0 {
                self.0.remove(&digest);
                gone.push(digest);
            }
        }
        gone
    }

    pub(crate) fn contains(&self, digest: &Digest) -> bool {
        self.0.contains_key(digest)
    }
}

/// Every artifact that a revision names; one that it names twice comes twice.
pub(crate) fn of_revision(revision: &Revision) -> impl Iterator<Item = Digest> {
    of_settings(&revision.settings).chain(revision.build.iter().flat_map(of_build))
}

pub(crate) fn of_settings(settings: &RevisionSettings) -> impl Iterator<Item = Digest> + use<> {
    let Source::Inline { code } = settings.source;
    [Some(code), settings.dependencies].into_iter().flatten()
}

pub(crate) fn of_build(build: &BuildOutput) -> impl Iterator<Item = Digest> + use<> {
    [Some(build.code), build.dependencies].into_iter().flatten()
}
