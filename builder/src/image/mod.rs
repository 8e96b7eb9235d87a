//! Runtime images: unpacked directories, named by what is in them.

mod collect;
mod command;
mod host;
mod recipe;
mod tree;

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use coracle_model::Digest;
use coracle_runtimes::Runtime;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::download::{self, DownloadError, Downloads};

/// Where an image's files come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// Debian's packages from its mirror, whatever the host is.
    Recipe,
    /// The same packages as the host has them installed: fast and without a network (but for what a
    /// runtime takes from npm), and different from host to host. For tests.
    HostPackages,
}

/// A finished image. Never modified; instances hold it by path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagePath {
    pub rootfs: PathBuf,
    /// Of the tree: names, modes, link targets and contents.
    pub digest: Digest,
}

#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("{0}")]
    Unsupported(String),
    /// A tool of the host failed; the last lines of what it said.
    #[error("{program} failed ({status}): {said}")]
    Command {
        program: String,
        status: String,
        said: String,
    },
    #[error("{program} does not start; is it installed?")]
    Start {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("a file of the image could not be fetched")]
    Download(#[from] DownloadError),
    #[error("cannot {action}")]
    Io {
        action: String,
        #[source]
        source: io::Error,
    },
}

impl ImageError {
    fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }
}

/// Where packages come from in [`Route::Recipe`].
#[derive(Debug, Clone)]
pub struct Mirror {
    pub debian: String,
    pub security: String,
    /// Debian's own keys; also on Ubuntu, whose keys sign other things.
    pub keyring: PathBuf,
}

impl Default for Mirror {
    fn default() -> Self {
        Self {
            debian: "http://deb.debian.org/debian".to_owned(),
            security: "http://deb.debian.org/debian-security".to_owned(),
            keyring: "/usr/share/keyrings/debian-archive-keyring.gpg".into(),
        }
    }
}

/// Images below one directory: `<runtime>/<digest>/rootfs`. Several processes may share it.
#[derive(Debug, Clone)]
pub struct ImageStore {
    root: PathBuf,
    mirror: Mirror,
    downloads: Downloads,
}

/// `<runtime>/current.json`: which image is in use, and what it was made from.
#[derive(Debug, Serialize, Deserialize)]
struct Current {
    digest: Digest,
    recipe: Digest,
}

impl ImageStore {
    /// `env`: the host's variables, for the address of the npm registry.
    pub fn open(
        root: impl Into<PathBuf>,
        mirror: Mirror,
        env: &BTreeMap<String, String>,
    ) -> io::Result<Self> {
        let root = root.into();
        fs::create_dir_all(&root)?;
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755))?;
        // Paths of images end up in container specifications.
        let root = root.canonicalize()?;
        let downloads = Downloads::new(root.join("downloads"), download::registry_of(env));
        Ok(Self {
            root,
            mirror,
            downloads,
        })
    }

    /// The image of the runtime, if it was made by this version of its description.
    pub fn find(&self, runtime: &Runtime, route: Route) -> io::Result<Option<ImagePath>> {
        let dir = self.root.join(runtime.name.as_str());
        let bytes = match fs::read(dir.join("current.json")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes?,
        };
        // Only an interrupted machine leaves half a file; the image is then made again.
        let Ok(current) = serde_json::from_slice::<Current>(&bytes) else {
            return Ok(None);
        };
        let rootfs = dir.join(current.digest.to_string()).join("rootfs");
        let usable = current.recipe == recipe_of(runtime, route) && rootfs.is_dir();
        Ok(usable.then_some(ImagePath {
            rootfs,
            digest: current.digest,
        }))
    }

    /// Finds the image or makes it, saying on `progress` what happens. Waits while another process
    /// makes the same one.
    pub async fn ensure(
        &self,
        runtime: &Runtime,
        route: Route,
        progress: &mpsc::Sender<Vec<u8>>,
    ) -> Result<ImagePath, ImageError> {
        let read = || ImageError::io(format!("look for the image of {}", runtime.name));
        if let Some(found) = self.find(runtime, route).map_err(read())? {
            return Ok(found);
        }
        let dir = self.root.join(runtime.name.as_str());
        let prepare = || ImageError::io(format!("prepare {}", dir.display()));
        fs::create_dir_all(&dir).map_err(prepare())?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).map_err(prepare())?;
        let say = Progress(progress);
        let _lock = lock(&dir, &say).await?;
        if let Some(found) = self.find(runtime, route).map_err(read())? {
            return Ok(found);
        }
        say.line(format!(
            "image {}: making it, once on this machine",
            runtime.name
        ))
        .await;
        let new = dir.join("new");
        clear(&dir, &new).map_err(prepare())?;
        let rootfs = new.join("rootfs");
        fs::create_dir(&new)
            .and_then(|()| fs::set_permissions(&new, fs::Permissions::from_mode(0o755)))
            .map_err(prepare())?;
        let made = self.make(runtime, route, &rootfs, &say).await;
        let placed = match made {
            Ok(()) => self.place(runtime, route, &dir, &new).await,
            Err(error) => Err(error),
        };
        if placed.is_err() {
            // What remains is cleared by the next attempt.
            let _ = fs::remove_dir_all(&new);
        }
        let image = placed?;
        warn_if_hidden(&image.rootfs, &say).await;
        say.line(format!(
            "image {}: ready, sha256:{}",
            runtime.name, image.digest
        ))
        .await;
        Ok(image)
    }

    async fn make(
        &self,
        runtime: &Runtime,
        route: Route,
        rootfs: &Path,
        say: &Progress<'_>,
    ) -> Result<(), ImageError> {
        match route {
            Route::Recipe => recipe::install(&self.mirror, runtime, rootfs, say).await?,
            Route::HostPackages => host::install(runtime, rootfs, say).await?,
        }
        for file in &runtime.image.npm {
            if file.arch == std::env::consts::ARCH {
                say.line(format!("fetching {} {}", file.package, file.version))
                    .await;
                let archive = self.downloads.archive(&file.archive()).await?;
                let to = rootfs.join(file.to.strip_prefix("/").unwrap_or(&file.to));
                let from = file.from.clone();
                let copied = tokio::task::spawn_blocking(move || {
                    download::extract_file(&archive, &from, &to)?;
                    fs::set_permissions(&to, fs::Permissions::from_mode(0o755))
                });
                copied
                    .await
                    .map_err(io::Error::other)
                    .and_then(|done| done)
                    .map_err(ImageError::io(format!(
                        "put {} in place",
                        file.to.display()
                    )))?;
            }
        }
        recipe::finish(runtime, rootfs, say).await
    }

    /// Names the image by its contents, and makes it the current one.
    async fn place(
        &self,
        runtime: &Runtime,
        route: Route,
        dir: &Path,
        new: &Path,
    ) -> Result<ImagePath, ImageError> {
        let (dir, new) = (dir.to_owned(), new.to_owned());
        let recipe = recipe_of(runtime, route);
        let place = move || {
            let digest = tree::digest(&new.join("rootfs"))?;
            let image = dir.join(digest.to_string());
            // The same contents may be in use under this name: those stay.
            if image.exists() {
                fs::remove_dir_all(&new)?;
            } else {
                // Before the name says that it is whole.
                rustix::fs::syncfs(fs::File::open(&new)?)?;
                fs::rename(&new, &image)?;
            }
            let current = serde_json::to_vec(&Current { digest, recipe })?;
            let temporary = dir.join("current.new");
            fs::write(&temporary, current)?;
            fs::File::open(&temporary)?.sync_all()?;
            fs::rename(&temporary, dir.join("current.json"))?;
            fs::File::open(&dir)?.sync_all()?;
            Ok(ImagePath {
                rootfs: image.join("rootfs"),
                digest,
            })
        };
        tokio::task::spawn_blocking(place)
            .await
            .map_err(io::Error::other)
            .and_then(|done| done)
            .map_err(ImageError::io(format!(
                "put the image of {} in place",
                runtime.name
            )))
    }
}

/// Of everything that decides what a new image would hold, but for what the mirror has today.
fn recipe_of(runtime: &Runtime, route: Route) -> Digest {
    let mut text = format!(
        "{route:?} {:?} {:?} {}",
        runtime.image, runtime.build.installer, runtime.version
    );
    text.extend(recipe::SCRIPTS);
    Digest::of(text.as_bytes())
}

/// Lines about what is being done.
struct Progress<'a>(&'a mpsc::Sender<Vec<u8>>);

impl Progress<'_> {
    async fn line(&self, line: impl AsRef<str>) {
        // A receiver that has gone does not stop the work: others wait for the image too.
        let _ = self
            .0
            .send(format!("{}\n", line.as_ref()).into_bytes())
            .await;
    }
}

/// Held until dropped; the kernel gives it up when the process ends.
async fn lock(dir: &Path, say: &Progress<'_>) -> Result<fs::File, ImageError> {
    use rustix::fs::{FlockOperation, flock};
    let fail = || ImageError::io(format!("lock {}", dir.display()));
    let file = lock_file(dir).map_err(fail())?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => return Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {}
        Err(error) => return Err(fail()(error.into())),
    }
    say.line("another process is making this image; waiting for it")
        .await;
    let waiting = tokio::task::spawn_blocking(move || {
        flock(&file, FlockOperation::LockExclusive).map(|()| file)
    });
    waiting
        .await
        .map_err(io::Error::other)
        .and_then(|done| Ok(done?))
        .map_err(fail())
}

fn lock_file(dir: &Path) -> io::Result<fs::File> {
    fs::File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(dir.join("lock"))
}

/// Removes what an interrupted attempt left. `new` is only there while nobody holds the lock.
fn clear(dir: &Path, new: &Path) -> io::Result<()> {
    debug_assert!(new.starts_with(dir));
    match fs::remove_dir_all(new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Instances run with ids of their own, and must be able to walk down to the image.
async fn warn_if_hidden(rootfs: &Path, say: &Progress<'_>) {
    for above in rootfs.ancestors() {
        let closed = fs::metadata(above).is_ok_and(|m| m.permissions().mode() & 0o001 == 0);
        if closed {
            let line = format!(
                "{} is not searchable by others: instances will not start",
                above.display()
            );
            tracing::warn!("{line}");
            say.line(line).await;
        }
    }
}

/// Everything below (and) `dir` readable by all: directories 0755, files as executable as before.
pub(crate) fn make_readable(dir: &Path) -> io::Result<()> {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            make_readable(&entry.path())?;
        } else if kind.is_file() {
            let mode = entry.metadata()?.permissions().mode();
            let mode = if mode & 0o111 == 0 { 0o644 } else { 0o755 };
            fs::set_permissions(entry.path(), fs::Permissions::from_mode(mode))?;
        }
    }
    Ok(())
}

#[cfg(test)]
impl ImageStore {
    /// An empty image that counts as made; its root.
    pub(crate) fn plant(&self, runtime: &Runtime, route: Route) -> PathBuf {
        let recipe = recipe_of(runtime, route);
        let digest = Digest::of(recipe.to_string().as_bytes());
        let dir = self.root.join(runtime.name.as_str());
        let rootfs = dir.join(digest.to_string()).join("rootfs");
        fs::create_dir_all(&rootfs).unwrap();
        let current = Current { digest, recipe };
        fs::write(
            dir.join("current.json"),
            serde_json::to_vec(&current).unwrap(),
        )
        .unwrap();
        rootfs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coracle_runtimes::Catalog;

    #[test]
    fn an_image_of_another_recipe_is_not_found() {
        let temp = tempfile::tempdir().unwrap();
        let store = ImageStore::open(temp.path(), Mirror::default(), &BTreeMap::new()).unwrap();
        let catalog = Catalog::builtin();
        let mut runtime = catalog.get(&"python3.11".parse().unwrap()).unwrap().clone();
        assert_eq!(store.find(&runtime, Route::Recipe).unwrap(), None);
        let digest = Digest([1; 32]);
        let dir = temp.path().join("python3.11");
        fs::create_dir_all(dir.join(digest.to_string()).join("rootfs")).unwrap();
        let current = Current {
            digest,
            recipe: recipe_of(&runtime, Route::Recipe),
        };
        fs::write(
            dir.join("current.json"),
            serde_json::to_vec(&current).unwrap(),
        )
        .unwrap();
        let found = store
            .find(&runtime, Route::Recipe)
            .unwrap()
            .map(|image| image.digest);
        assert_eq!(found, Some(digest));
        assert_eq!(store.find(&runtime, Route::HostPackages).unwrap(), None);
        runtime.image.packages.push("another".to_owned());
        assert_eq!(store.find(&runtime, Route::Recipe).unwrap(), None);
        fs::write(dir.join("current.json"), "{").unwrap();
        assert_eq!(store.find(&runtime, Route::Recipe).unwrap(), None);
    }
}
