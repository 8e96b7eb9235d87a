//! Runtime images on this node.

use std::{fmt::Debug, path::PathBuf};

use async_trait::async_trait;
use coracle_model::RuntimeName;
use tokio::sync::mpsc;

/// Why an image cannot be had, in one sentence, with its causes behind it.
#[derive(Debug, thiserror::Error)]
#[error("cannot get the image of runtime {runtime}")]
pub struct ImageError {
    pub runtime: RuntimeName,
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Where an agent finds the unpacked images of runtimes.
#[async_trait]
pub trait RuntimeImages: Debug + Send + Sync + 'static {
    /// The image's root folder if it is on the node. Called on the way to every launch: no I/O.
    fn present(&self, runtime: &RuntimeName) -> Option<PathBuf>;

    /// Every runtime whose image is on the node, sorted.
    fn all(&self) -> Vec<RuntimeName>;

    /// Looks at the disk again: images may be made by other processes. Blocks on the disk.
    fn refresh(&self);

    /// The image's root folder; builds the image first if it is not on the node, and says in
    /// `log` what it does. Callers of one runtime share the work. A closed `log` changes nothing.
    async fn ensure(
        &self,
        runtime: &RuntimeName,
        log: mpsc::Sender<Vec<u8>>,
    ) -> Result<PathBuf, ImageError>;
}
