//! The real images and builds: `coracle_builder` behind the agent's seams.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Mutex, MutexGuard},
};

use async_trait::async_trait;
use coracle_builder::{BuildRequest, Builder, ImageStore, Route};
use coracle_model::RuntimeName;
use coracle_runtimes::Catalog;
use tokio::sync::mpsc;

use crate::{
    build::{BuildFailure, BuildInput, Built, BuiltTar, SourceBuilder},
    images::{ImageError, RuntimeImages},
};

/// The images of a data directory, with those that are ready known in memory.
#[derive(Debug)]
pub struct NodeImages {
    store: ImageStore,
    route: Route,
    catalog: Catalog,
    ready: Mutex<BTreeMap<RuntimeName, PathBuf>>,
}

impl NodeImages {
    /// Looks at the disk once.
    pub fn new(store: ImageStore, route: Route, catalog: Catalog) -> Self {
        let images = Self {
            store,
            route,
            catalog,
            ready: Mutex::default(),
        };
        images.refresh();
        images
    }

    fn ready(&self) -> MutexGuard<'_, BTreeMap<RuntimeName, PathBuf>> {
        self.ready
            .lock()
            .expect("never poisoned: no panic while held")
    }
}

#[async_trait]
impl RuntimeImages for NodeImages {
    fn present(&self, runtime: &RuntimeName) -> Option<PathBuf> {
        self.ready().get(runtime).cloned()
    }

    fn all(&self) -> Vec<RuntimeName> {
        self.ready().keys().cloned().collect()
    }

    fn refresh(&self) {
        for runtime in self.catalog.runtimes() {
            match self.store.find(runtime, self.route) {
                Ok(Some(image)) => {
                    self.ready().insert(runtime.name.clone(), image.rootfs);
                }
                Ok(None) => {
                    self.ready().remove(&runtime.name);
                }
                // What was known stays: a full table of files says nothing about the image.
                Err(error) => {
                    tracing::warn!(runtime = %runtime.name, %error, "cannot look for an image");
                }
            }
        }
    }

    async fn ensure(
        &self,
        runtime: &RuntimeName,
        log: mpsc::Sender<Vec<u8>>,
    ) -> Result<PathBuf, ImageError> {
        let failed = |source| ImageError {
            runtime: runtime.clone(),
            source,
        };
        let known = self.catalog.get(runtime);
        let known =
            known.ok_or_else(|| failed("this version of Coracle does not know it".into()))?;
        let image = self.store.ensure(known, self.route, &log).await;
        let rootfs = image.map_err(|error| failed(error.into()))?.rootfs;
        self.ready().insert(runtime.clone(), rootfs.clone());
        Ok(rootfs)
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
