//! Images and builds for tests, and for suites of real processes that use the fake driver.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use coracle_builder::archive;
use coracle_driver::fake::Gate;
use coracle_model::{RuntimeName, Timestamp, limits};
use tokio::sync::mpsc;

use crate::{
    build::{BuildFailure, BuildInput, Built, BuiltTar, SourceBuilder},
    images::{Image, ImageError, RuntimeImages},
};

/// Every runtime has an image, made by asking for it: one folder stands for all of them.
#[derive(Debug)]
pub struct FakeImages {
    image: Image,
    made: Mutex<BTreeSet<RuntimeName>>,
}

impl FakeImages {
    pub fn new(rootfs: impl Into<PathBuf>) -> Self {
        Self {
            image: Image::new(rootfs.into()),
            made: Mutex::default(),
        }
    }

    fn made(&self) -> MutexGuard<'_, BTreeSet<RuntimeName>> {
        self.made
            .lock()
            .expect("never poisoned: no panic while held")
    }
}

#[async_trait]
impl RuntimeImages for FakeImages {
    fn present(&self, runtime: &RuntimeName) -> Option<Image> {
        self.made().contains(runtime).then(|| self.image.clone())
    }

    fn all(&self) -> Vec<RuntimeName> {
        self.made().iter().cloned().collect()
    }

    fn refresh(&self) {}

    fn collect(&self, _: Timestamp, _: &dyn Fn(&Path) -> bool) -> usize {
        0
    }

    async fn ensure(
        &self,
        runtime: &RuntimeName,
        log: mpsc::Sender<Vec<u8>>,
    ) -> Result<Image, ImageError> {
        if self.made().insert(runtime.clone()) {
            // A closed log changes nothing.
            let _ = log
                .send(format!("image {runtime}: made\n").into_bytes())
                .await;
        }
        Ok(self.image.clone())
    }
}

/// Packs the text into an archive without running anything. Its first line may say how the build
/// ends: `fail: SENTENCE`, or `fault: SENTENCE` for the platform's fault.
#[derive(Debug)]
pub struct FakeBuilder {
    folder: PathBuf,
    builds: AtomicU64,
    gate: Mutex<Option<Gate>>,
}

impl FakeBuilder {
    /// Works in this folder, which must exist.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            builds: AtomicU64::new(0),
            gate: Mutex::default(),
        }
    }

    /// Builds from now on do not end before the gate opens.
    pub fn hold(&self, gate: Gate) {
        *self
            .gate
            .lock()
            .expect("never poisoned: no panic while held") = Some(gate);
    }

    /// Builds ever begun.
    pub fn builds(&self) -> u64 {
        self.builds.load(Ordering::SeqCst)
    }

    fn pack(&self, name: &str, number: u64, text: &[u8]) -> std::io::Result<BuiltTar> {
        let folder = self.folder.join(format!("{number}-{name}"));
        let path = folder.with_extension("tar");
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(name), text)?;
        let packed = archive::pack(&folder, &path, limits::ARTIFACT_MAX_BYTES)?;
        std::fs::remove_dir_all(&folder)?;
        let (packed, _) = packed.map_err(|_| std::io::Error::other("larger than an artifact"))?;
        Ok(BuiltTar {
            digest: packed.digest,
            path,
        })
    }
}

#[async_trait]
impl SourceBuilder for FakeBuilder {
    async fn build(
        &self,
        input: BuildInput,
        log: mpsc::Sender<Vec<u8>>,
    ) -> Result<Built, BuildFailure> {
        let number = self.builds.fetch_add(1, Ordering::SeqCst) + 1;
        // A closed log changes nothing.
        let _ = log
            .send(format!("build {number} of {}\n", input.revision).into_bytes())
            .await;
        let gate = self
            .gate
            .lock()
            .expect("never poisoned: no panic while held")
            .clone();
        if let Some(gate) = gate {
            gate.passed().await;
        }
        let text = String::from_utf8_lossy(&input.code).into_owned();
        let first = text.lines().next().unwrap_or_default();
        if let Some(sentence) = first.strip_prefix("fail: ") {
            return Err(BuildFailure::Function(sentence.to_owned()));
        }
        if let Some(sentence) = first.strip_prefix("fault: ") {
            return Err(BuildFailure::Platform(sentence.to_owned()));
        }
        let failed = |error: std::io::Error| BuildFailure::Platform(error.to_string());
        let code = self.pack("code", number, &input.code).map_err(failed)?;
        let dependencies = input.dependencies.as_deref();
        let dependencies = dependencies
            .map(|list| self.pack("dependencies", number, list))
            .transpose()
            .map_err(failed)?;
        Ok(Built {
            code,
            dependencies,
            message: "packed without a container".to_owned(),
        })
    }
}
