//! The real images and builds: `coracle_builder` behind the agent's seams.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use coracle_builder::{BuildRequest, Builder, ImageStore, Route};
use coracle_model::{RuntimeName, Timestamp};
use coracle_runtimes::Catalog;
use tokio::sync::mpsc;

use crate::{
    build::{BuildFailure, BuildInput, Built, BuiltTar, SourceBuilder},
    images::{Image, ImageError, RuntimeImages},
};

/// How long an image stays at least that a newer one took the place of: for what other processes
/// of this machine have begun with it, which nothing here sees.
const FORMER_KEPT: Duration = Duration::from_secs(600);

/// The images of a data directory, with those that are ready known in memory.
#[derive(Debug)]
pub struct NodeImages {
    store: ImageStore,
    route: Route,
    catalog: Catalog,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    ready: BTreeMap<RuntimeName, Image>,
    /// Ready once, and perhaps still held.
    former: Vec<Image>,
}

impl Known {
    /// The same hold for the same image, however often it is found.
    fn set(&mut self, runtime: &RuntimeName, rootfs: &Path) -> Image {
        if let Some(image) = self.ready.get(runtime)
            && image.rootfs() == rootfs
        {
            return image.clone();
        }
        let again = self.former.iter().position(|i| i.rootfs() == rootfs);
        let image = match again {
            Some(at) => self.former.swap_remove(at),
            None => Image::new(rootfs.to_owned()),
        };
        self.former
            .extend(self.ready.insert(runtime.clone(), image.clone()));
        image
    }

    fn unset(&mut self, runtime: &RuntimeName) {
        self.former.extend(self.ready.remove(runtime));
    }

    fn holds(&self, rootfs: &Path) -> bool {
        let same = |image: &&Image| image.rootfs() == rootfs;
        self.ready.values().any(|image| same(&image))
            || self.former.iter().find(same).is_some_and(Image::is_held)
    }
}

impl NodeImages {
    /// Looks at the disk once.
    pub fn new(store: ImageStore, route: Route, catalog: Catalog) -> Self {
        let images = Self {
            store,
            route,
            catalog,
            known: Mutex::default(),
        };
        images.refresh();
        images
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known
            .lock()
            .expect("never poisoned: no panic while held")
    }
}

#[async_trait]
impl RuntimeImages for NodeImages {
    fn present(&self, runtime: &RuntimeName) -> Option<Image> {
        self.known().ready.get(runtime).cloned()
    }

    fn all(&self) -> Vec<RuntimeName> {
        self.known().ready.keys().cloned().collect()
    }

    fn refresh(&self) {
        for runtime in self.catalog.runtimes() {
            match self.store.find(runtime, self.route) {
                Ok(Some(image)) => drop(self.known().set(&runtime.name, &image.rootfs)),
                Ok(None) => self.known().unset(&runtime.name),
                // What was known stays: a full table of files says nothing about the image.
                Err(error) => {
                    tracing::warn!(runtime = %runtime.name, %error, "cannot look for an image");
                }
            }
        }
    }

    fn collect(&self, now: Timestamp, release: &dyn Fn(&Path) -> bool) -> usize {
        let superseded = match self.store.superseded(now, FORMER_KEPT) {
            Ok(superseded) => superseded,
            Err(error) => {
                tracing::warn!(%error, "cannot look for superseded images");
                return 0;
            }
        };
        let mut removed = 0;
        for rootfs in superseded {
            if self.known().holds(&rootfs) || !release(&rootfs) {
                continue;
            }
            match self.store.remove(&rootfs) {
                Ok(true) => {
                    tracing::info!(image = %rootfs.display(), "a superseded image is removed");
                    self.known().former.retain(|i| i.rootfs() != rootfs);
                    removed += 1;
                }
                // It is the current one again, or another process is at it.
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(image = %rootfs.display(), %error, "cannot remove an image");
                }
            }
        }
        removed
    }

    async fn ensure(
        &self,
        runtime: &RuntimeName,
        log: mpsc::Sender<Vec<u8>>,
    ) -> Result<Image, ImageError> {
        let failed = |source| ImageError {
            runtime: runtime.clone(),
            source,
        };
        let known = self.catalog.get(runtime);
        let known =
            known.ok_or_else(|| failed("this version of Coracle does not know it".into()))?;
        let image = self.store.ensure(known, self.route, &log).await;
        let rootfs = image.map_err(|error| failed(error.into()))?.rootfs;
        Ok(self.known().set(runtime, &rootfs))
    }
}

#[async_trait]
impl SourceBuilder for Builder {
    async fn build(
        &self,
        input: BuildInput,
        log: mpsc::Sender<Vec<u8>>,
    ) -> Result<Built, BuildFailure> {
        let text = |what: &str, bytes: Vec<u8>| {
            String::from_utf8(bytes)
                .map_err(|_| BuildFailure::Function(format!("the {what} is not UTF-8 text")))
        };
        let code = text("code", input.code)?;
        let dependencies = input
            .dependencies
            .map(|bytes| text("dependency list", bytes))
            .transpose()?;
        let (revision, settings) = (input.revision, input.settings);
        let request = BuildRequest {
            revision,
            settings,
            code,
            dependencies,
        };
        let built = Builder::build(self, request, log).await.map_err(|error| {
            let sentence = error.sentence();
            if error.is_platform() {
                BuildFailure::Platform(sentence)
            } else {
                BuildFailure::Function(sentence)
            }
        })?;
        Ok(Built {
            code: BuiltTar {
                digest: built.code,
                path: built.code_tar,
            },
            dependencies: built
                .dependencies
                .map(|(path, digest)| BuiltTar { digest, path }),
            message: built.message,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_held_while_it_is_ready_or_somebody_works_with_it() {
        let runtime: RuntimeName = "python3.11".parse().unwrap();
        let (old, new) = (Path::new("/images/old"), Path::new("/images/new"));
        let mut known = Known::default();
        let used = known.set(&runtime, old);
        assert!(known.holds(old) && !known.holds(new));
        drop(known.set(&runtime, new));
        assert!(known.holds(new) && known.holds(old), "a launch has it");
        drop(used);
        assert!(!known.holds(old));

        // Found again under the same name, it is the same image: who holds it counts.
        let used = known.set(&runtime, new);
        drop(known.set(&runtime, old));
        drop(known.set(&runtime, new));
        drop(known.set(&runtime, old));
        assert!(known.holds(new));
        drop(used);
        assert!(!known.holds(new) && known.holds(old));
        known.unset(&runtime);
        assert!(!known.holds(old));
    }
}
