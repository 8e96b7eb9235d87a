//! Runtime images on this node.

use std::{
    fmt::Debug,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use coracle_model::{RuntimeName, Timestamp};
use tokio::sync::mpsc;

/// Why an image cannot be had, in one sentence, with its causes behind it.
#[derive(Debug, thiserror::Error)]
#[error("cannot get the image of runtime {runtime}")]
pub struct ImageError {
    pub runtime: RuntimeName,
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// An image; kept from removal while this or a clone of it lives. What runs in a container needs no
/// hold: the kernel knows of it.
#[derive(Debug, Clone)]
pub struct Image {
    rootfs: PathBuf,
    held: Arc<()>,
}

impl Image {
    pub fn new(rootfs: PathBuf) -> Self {
        Self {
            rootfs,
            held: Arc::default(),
        }
    }

    pub fn rootfs(&self) -> &Path {
        &self.rootfs
    }

    /// Whether there is a clone of it.
    pub(crate) fn is_held(&self) -> bool {
        Arc::strong_count(&self.held) > 1
    }
}

impl PartialEq for Image {
    fn eq(&self, other: &Self) -> bool {
        self.rootfs == other.rootfs
    }
}

impl Eq for Image {}

/// Where an agent finds the unpacked images of runtimes.
#[async_trait]
pub trait RuntimeImages: Debug + Send + Sync + 'static {
    /// The image if it is on the node. Called on the way to every launch: no I/O.
    fn present(&self, runtime: &RuntimeName) -> Option<Image>;

    /// Every runtime whose image is on the node, sorted.
    fn all(&self) -> Vec<RuntimeName>;

    /// Looks at the disk again: images may be made by other processes. Blocks on the disk.
    fn refresh(&self);

    /// Removes images that newer ones took the place of a while ago, that nobody holds, and of
    /// which `release` says that no container uses them; how many. Blocks on the disk.
    fn collect(&self, now: Timestamp, release: &dyn Fn(&Path) -> bool) -> usize;

    /// The image; builds it first if it is not on the node, and says in `log` what it does. Callers of one runtime share the work. A closed `log` changes nothing.
    async fn ensure(
        &self,
        runtime: &RuntimeName,
        log: mpsc::Sender<Vec<u8>>,
    ) -> Result<Image, ImageError>;
}
