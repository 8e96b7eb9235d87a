//! One build, from a request to archives.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use coracle_driver::{BuildSandbox, SandboxError};
use coracle_model::{Digest, Memory, MilliCpu, RevisionId, RevisionSettings, limits};
use coracle_runtimes::{Catalog, Installer, Runtime, Strictness};
use tokio::sync::mpsc;

use crate::{
    archive::{self, Packed, UnpackLimits},
    cache::DependencyCache,
    disk,
    download::{self, DownloadError, Downloads},
    exec::{Run, Workspace},
    failure,
    image::{ImageError, ImageStore, Route},
    plan::{self, Inputs, Plan},
};

/// What one build may use.
#[derive(Debug, Clone)]
pub struct Limits {
    pub memory: Memory,
    pub cpu: MilliCpu,
    /// For each command.
    pub timeout: Duration,
    /// Of the installed dependencies, and of the code, unpacked.
    pub bytes: u64,
    /// Of the kept dependencies of all functions together.
    pub cache_bytes: u64,
    /// Bytes that builds leave to the rest of the machine: with less on the disk they end, by the
    /// platform's fault. Also catches what no look at a directory sees, such as files that were
    /// removed and are still open.
    pub reserve: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory: Memory::from_mib(1_024).expect("within the model's bounds"),
            cpu: MilliCpu::new(2_000).expect("within the model's bounds"),
            timeout: Duration::from_secs(600),
            bytes: limits::ARTIFACT_MAX_BYTES,
            cache_bytes: 8 << 30,
            reserve: 1 << 30,
        }
    }
}

#[derive(Debug)]
pub struct Config {
    /// Belongs to the builder alone; every directory above it must be searchable by others.
    pub dir: PathBuf,
    pub images: ImageStore,
    /// How an image that is missing is made.
    pub route: Route,
    pub catalog: Catalog,
    pub sandbox: Arc<dyn BuildSandbox>,
    /// The host's variables; see [`plan::PASSED_THROUGH`] for those that builds see.
    pub host_env: BTreeMap<String, String>,
    /// Where Debian's package `python3-pip-whl` puts pip.
    pub wheels: PathBuf,
    pub limits: Limits,
}

#[derive(Debug, Clone)]
pub struct BuildRequest {
    pub revision: RevisionId,
    pub settings: RevisionSettings,
    /// The source text.
    pub code: String,
    /// The text of the language's dependency list.
    pub dependencies: Option<String>,
}

/// The archives belong to the caller, who moves or removes them; the dependencies' one is a hard
/// link to the cached file, so it must not be written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    pub code_tar: PathBuf,
    pub code: Digest,
    pub dependencies: Option<(PathBuf, Digest)>,
    /// One sentence: what was done, or which runtime stood in for the one asked for.
    pub message: String,
}

/// Nothing is left behind but the log that was sent.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The function's code, list or size is at fault; one sentence.
    #[error("{0}")]
    Function(String),
    #[error("the runtime image could not be made")]
    Image(#[from] ImageError),
    #[error("the installer could not be fetched")]
    Installer(#[from] DownloadError),
    #[error("the build container failed")]
    Sandbox(#[from] SandboxError),
    #[error("cannot {action}")]
    Io {
        action: String,
        #[source]
        source: io::Error,
    },
}

impl BuildError {
    pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }

    /// Whether trying the same again may end otherwise.
    pub fn is_platform(&self) -> bool {
        !matches!(self, Self::Function(_))
    }

    /// What the task and the revision show: one sentence, causes included.
    pub fn sentence(&self) -> String {
        let mut sentence = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            sentence.push_str(": ");
            sentence.push_str(&error.to_string());
            cause = error.source();
        }
        sentence
    }
}

/// Builds functions, several at a time if asked to.
#[derive(Debug)]
pub struct Builder {
    config: Config,
    downloads: Downloads,
    cache: DependencyCache,
}

impl Builder {
    /// Clears what an earlier process left half-done.
    pub fn new(config: Config) -> io::Result<Self> {
        let dir = |name: &str| config.dir.join(name);
        for name in ["work", "out", "trash"] {
            disk::remove_tree(&dir(name))?;
        }
        // Builds run with other ids and must be able to get to their own directory. What they made
        // is nobody else's on the machine to read.
        let (open, closed) = (0o711, 0o700);
        for (name, mode) in [
            ("", open),
            ("work", open),
            ("out", closed),
            ("trash", closed),
            ("cache", closed),
        ] {
            fs::create_dir_all(dir(name))?;
            fs::set_permissions(dir(name), fs::Permissions::from_mode(mode))?;
        }
        let cache = DependencyCache::open(config.dir.join("cache"), config.limits.cache_bytes)?;
        let registry = download::registry_of(&config.host_env);
        let downloads = Downloads::new(config.dir.join("downloads"), registry);
        Ok(Self {
            config,
            downloads,
            cache,
        })
    }

    /// Output goes to `log` as it appears; a log that nobody reads does not stop the build.
    pub async fn build(
        &self,
        request: BuildRequest,
        log: mpsc::Sender<Vec<u8>>,
    ) -> Result<Built, BuildError> {
        let config = &self.config;
        let settings = &request.settings;
        let runtime = config.catalog.get(&settings.runtime).ok_or_else(|| {
            BuildError::Function(format!(
                "runtime {} is not installed on this node",
                settings.runtime
            ))
        })?;
        let image = config.images.ensure(runtime, config.route, &log).await?;
        let needs_tool = request
            .dependencies
            .as_ref()
            .is_some_and(|text| !text.trim().is_empty());
        let tool = if needs_tool {
            Some(self.tool(runtime).await?)
        } else {
            None
        };
        let plan = plan::plan(&Inputs {
            runtime,
            handler: &settings.handler,
            code: &request.code,
            dependencies: request.dependencies.as_deref(),
            image: image.digest,
            tool: tool.as_ref().map_or("none", |tool| &tool.file),
            host_env: &config.host_env,
        })
        .map_err(|error| BuildError::Function(error.0))?;

        let work = config.dir.join("work");
        let owner = config.sandbox.owner();
        let trash = config.dir.join("trash");
        let workspace = Workspace::create(&work, &trash, &request.revision, owner)?;
        let run = Run {
            sandbox: config.sandbox.as_ref(),
            rootfs: &image.rootfs,
            workspace: &workspace,
            tool: tool.as_ref().map(|tool| tool.dir.as_path()),
            env: &plan.env,
            limits: &config.limits,
            log: &log,
        };
        let code = self.code(&run, &plan).await?;
        let dependencies = self.dependencies(&run, &plan, runtime).await?;
        let message = message(
            &config.catalog,
            settings,
            &plan,
            &code,
            dependencies.as_ref(),
        );
        run.say(&message).await;
        // Only now, when nothing can fail any more, do the archives leave the workspace.
        let out = config.dir.join("out");
        let take = |from: &Path, digest: Digest| {
            let to = out.join(format!("{}-{digest}.tar", workspace.id()));
            fs::hard_link(from, &to)
                .map_err(BuildError::io("hand over an archive"))
                .map(|()| to)
        };
        let code_tar = take(&code.path, code.packed.digest)?;
        let dependencies = match dependencies {
            Some(found) => Some((take(&found.path, found.packed.digest)?, found.packed.digest)),
            None => None,
        };
        Ok(Built {
            code_tar,
            code: code.packed.digest,
            dependencies,
            message,
        })
    }

    async fn code(&self, run: &Run<'_>, plan: &Plan) -> Result<Archive, BuildError> {
        run.workspace.write(&plan.code)?;
        let done = run.step("check", &plan.check).await?;
        if !done.succeeded() {
            let sentence = done.refusal(failure::of_check);
            return Err(BuildError::Function(sentence));
        }
        self.pack(run, "code", "the code").await
    }

    async fn dependencies(
        &self,
        run: &Run<'_>,
        plan: &Plan,
        runtime: &Runtime,
    ) -> Result<Option<Archive>, BuildError> {
        let Some(install) = &plan.install else {
            return Ok(None);
        };
        let io = || BuildError::io("use the kept dependencies");
        let link = run.workspace.path("cached.tar");
        if let Some((path, packed)) = self.cache.find(install.key).map_err(io())? {
            fs::hard_link(path, &link).map_err(io())?;
            run.say("dependencies: the same list was installed before")
                .await;
            return Ok(Some(Archive {
                path: link,
                packed,
                cached: true,
            }));
        }
        run.workspace.write(&install.files)?;
        let done = run.step("install", &install.install).await?;
        if !done.succeeded() {
            let sentence = done.refusal(|output| failure::of_install(runtime, output));
            return Err(BuildError::Function(sentence));
        }
        if let Some(compile) = &install.compile {
            run.step("compile", compile).await?;
        }
        let archive = self.pack(run, "deps", &runtime.source.dependencies).await?;
        let kept = self
            .cache
            .keep(install.key, &archive.path, archive.packed)
            .map_err(io())?;
        fs::hard_link(kept, &link).map_err(io())?;
        Ok(Some(Archive {
            path: link,
            ..archive
        }))
    }

    async fn pack(&self, run: &Run<'_>, part: &str, what: &str) -> Result<Archive, BuildError> {
        let (dir, most) = (run.workspace.path(part), self.config.limits.bytes);
        let path = run.workspace.path(&format!("{part}.tar"));
        let out = path.clone();
        let entries = UnpackLimits::default().entries;
        let packing = move || {
            // Before what cannot be unpacked again, or not be named by a path, is packed.
            if disk::written(&dir).entries > entries {
                return Ok(None);
            }
            archive::pack(&dir, &out, most).map(Some)
        };
        let packed = tokio::task::spawn_blocking(packing)
            .await
            .map_err(io::Error::other)
            .and_then(|packed| packed)
            .map_err(BuildError::io(format!("pack {what}")))?;
        let packed = packed.ok_or_else(|| {
            BuildError::Function(format!(
                "{what}: more than {entries} files, or nested deeper than a path can be long"
            ))
        })?;
        let (packed, left_out) = packed.map_err(|bytes| {
            let (is, most) = (bytes >> 20, most >> 20);
            BuildError::Function(format!(
                "{what}: more than {is} MiB unpacked; the limit is {most} MiB"
            ))
        })?;
        for name in left_out {
            run.say(&format!("left out {}: it points outside", name.display()))
                .await;
        }
        Ok(Archive {
            path,
            packed,
            cached: false,
        })
    }

    /// The installer on the host.
    async fn tool(&self, runtime: &Runtime) -> Result<Tool, BuildError> {
        match (runtime.build.installer, &runtime.build.npm) {
            (Installer::Pip, _) => pip_wheel(&self.config.wheels),
            (Installer::Npm, None) => Err(BuildError::Function(format!(
                "runtime {} names no npm",
                runtime.name
            ))),
            (Installer::Npm, Some(package)) => {
                let dir = self
                    .config
                    .dir
                    .join(format!("{}-{}", package.package, package.version));
                // The version is in the name, and the name is in the cache's key.
                let file = format!("npm-{}/bin/npm-cli.js", package.version);
                if !dir.exists() {
                    let archive = self.downloads.archive(package).await?;
                    install_npm(archive, &dir, &format!("npm-{}", package.version))
                        .await
                        .map_err(BuildError::io("unpack npm"))?;
                }
                Ok(Tool { dir, file })
            }
        }
    }
}

/// A directory to mount at [`plan::TOOL`], and the installer's path in it.
struct Tool {
    dir: PathBuf,
    file: String,
}

struct Archive {
    path: PathBuf,
    packed: Packed,
    cached: bool,
}

fn pip_wheel(dir: &Path) -> Result<Tool, BuildError> {
    let names = fs::read_dir(dir).and_then(|entries| {
        entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    });
    let names: Vec<String> = match names {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        other => other.map_err(BuildError::io(format!("list {}", dir.display())))?,
    };
    let wheel = |name: &&String| name.starts_with("pip-") && name.ends_with(".whl");
    let file = names
        .iter()
        .filter(wheel)
        .max()
        .cloned()
        .ok_or_else(|| BuildError::Io {
            action: "find pip".to_owned(),
            source: io::Error::new(
                io::ErrorKind::NotFound,
                format!(
                    "{} has no pip wheel; install the package python3-pip-whl",
                    dir.display()
                ),
            ),
        })?;
    Ok(Tool {
        dir: dir.to_owned(),
        file,
    })
}

async fn install_npm(archive: PathBuf, dir: &Path, name: &str) -> io::Result<()> {
    let new = dir.with_extension(format!("{}.new", std::process::id()));
    let (dir, inner) = (dir.to_owned(), new.join(name));
    tokio::task::spawn_blocking(move || {
        if new.exists() {
            fs::remove_dir_all(&new)?;
        }
        fs::create_dir_all(&inner)?;
        download::extract_all(&archive, &inner)?;
        crate::image::make_readable(&new)?;
        match fs::rename(&new, &dir) {
            // Another build was faster.
            Err(_) if dir.exists() => fs::remove_dir_all(&new),
            other => other,
        }
    })
    .await
    .map_err(io::Error::other)?
}

fn message(
    catalog: &Catalog,
    settings: &RevisionSettings,
    plan: &Plan,
    code: &Archive,
    dependencies: Option<&Archive>,
) -> String {
    let stood_in = catalog
        .resolve(&settings.runtime_requested, Strictness::NearestNewer)
        .ok()
        .filter(|resolved| resolved.runtime.name == settings.runtime)
        .and_then(|resolved| resolved.message);
    let runtime = &settings.runtime;
    let mut message = stood_in.unwrap_or_else(|| format!("built for {runtime}"));
    let kib = |bytes: u64| bytes.div_ceil(1024);
    message.push_str(&format!("; code {} KiB", kib(code.packed.bytes)));
    if let (Some(install), Some(found)) = (&plan.install, dependencies) {
        let how = if found.cached {
            "kept from an earlier build"
        } else {
            "installed"
        };
        let named = install.named;
        let plural = if named == 1 {
            "dependency"
        } else {
            "dependencies"
        };
        message.push_str(&format!(
            "; {named} {plural} {how}, {} KiB",
            kib(found.packed.bytes)
        ));
    }
    message
}

#[cfg(test)]
mod tests;
