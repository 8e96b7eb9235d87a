//! Pinned archives from the npm registry.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Stdio,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use coracle_runtimes::NpmPackage;
use sha2::{Digest as _, Sha512};

/// Longest archive accepted, in bytes; the largest pinned one has 50 MB.
const MOST: u64 = 256 << 20;

#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    #[error("cannot download {url}: {said}")]
    Failed { url: String, said: String },
    #[error("{url} is not the file that was pinned: its integrity is {found}, not {pinned}")]
    Integrity {
        url: String,
        found: String,
        pinned: String,
    },
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Fetches through `curl`, which knows the site's proxies and certificates, and keeps what it
/// verified.
#[derive(Debug, Clone)]
pub struct Downloads {
    dir: PathBuf,
    registry: String,
}

impl Downloads {
    /// `registry`: the base address, for example `https://registry.npmjs.org`.
    pub fn new(dir: PathBuf, registry: impl Into<String>) -> Self {
        Self {
            dir,
            registry: registry.into(),
        }
    }

    /// The archive as a file, checked against its pin also when it was there already.
    pub async fn archive(&self, package: &NpmPackage) -> Result<PathBuf, DownloadError> {
        let path = self
            .dir
            .join(format!("{}-{}.tgz", package.package, package.version));
        let url = url_of(&self.registry, package);
        let io = |action| {
            let path = path.clone();
            move |source| DownloadError::Io {
                action,
                path,
                source,
            }
        };
        if path.exists() {
            if integrity_of(&path).map_err(io("read"))? == package.integrity {
                return Ok(path);
            }
            fs::remove_file(&path).map_err(io("remove"))?;
        }
        fs::create_dir_all(&self.dir).map_err(io("create the directory of"))?;
        let new = path.with_extension(format!("{}.part", std::process::id()));
        let fetched = self.fetch(&url, &new).await.and_then(|()| {
            let found = integrity_of(&new).map_err(io("read"))?;
            if found != package.integrity {
                let pinned = package.integrity.clone();
                return Err(DownloadError::Integrity {
                    url: url.clone(),
                    found,
                    pinned,
                });
            }
            fs::rename(&new, &path).map_err(io("rename"))
        });
        if fetched.is_err() {
            // Absent when curl wrote nothing.
            let _ = fs::remove_file(&new);
        }
        fetched.map(|()| path)
    }

    async fn fetch(&self, url: &str, to: &Path) -> Result<(), DownloadError> {
        let failed = |said: String| DownloadError::Failed {
            url: url.to_owned(),
            said,
        };
        let output = tokio::process::Command::new("curl")
            .args([
                "--fail",
                "--silent",
                "--show-error",
                "--location",
                "--retry",
                "3",
            ])
            .args([
                "--connect-timeout",
                "20",
                "--max-time",
                "600",
                "--proto",
                "=https,http",
            ])
            .args(["--max-filesize", &MOST.to_string(), "--output"])
            .arg(to)
            .arg("--")
            .arg(url)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .map_err(|error| failed(format!("curl does not start: {error}")))?;
        if !output.status.success() {
            return Err(failed(
                String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            ));
        }
        Ok(())
    }
}

fn url_of(registry: &str, package: &NpmPackage) -> String {
    let NpmPackage {
        package, version, ..
    } = package;
    let file = package.rsplit('/').next().unwrap_or(package);
    format!(
        "{}/{package}/-/{file}-{version}.tgz",
        registry.trim_end_matches('/')
    )
}

/// The registry that the site configured, from the variables that npm itself reads.
pub fn registry_of(env: &std::collections::BTreeMap<String, String>) -> String {
    ["NPM_CONFIG_REGISTRY", "npm_config_registry"]
        .iter()
        .find_map(|name| env.get(*name).filter(|value| !value.is_empty()))
        .cloned()
        .unwrap_or_else(|| "https://registry.npmjs.org".to_owned())
}

fn integrity_of(path: &Path) -> io::Result<String> {
    let mut hash = Sha512::new();
    io::copy(&mut fs::File::open(path)?, &mut hash)?;
    Ok(format!("sha512-{}", STANDARD.encode(hash.finalize())))
}

/// Copies one file out of a package's archive. `from` is inside the package's own directory.
pub fn extract_file(archive: &Path, from: &Path, to: &Path) -> io::Result<()> {
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(fs::File::open(archive)?));
    for entry in tar.entries()? {
        let mut entry = entry?;
        if inside_package(&entry.path()?).as_deref() == Some(from) {
            let mut file = fs::File::create(to)?;
            io::copy(&mut entry, &mut file)?;
            return file.sync_all();
        }
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        format!("no {} in it", from.display()),
    ))
}

/// Unpacks a whole package below `to`, without the directory that npm puts around it. The archive
/// was verified against its pin, so it is trusted as much as this program.
pub fn extract_all(archive: &Path, to: &Path) -> io::Result<()> {
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(fs::File::open(archive)?));
    for entry in tar.entries()? {
        let mut entry = entry?;
        let Some(name) = inside_package(&entry.path()?) else {
            continue;
        };
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let path = to.join(&name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        io::copy(&mut entry, &mut fs::File::create(&path)?)?;
    }
    Ok(())
}

fn inside_package(path: &Path) -> Option<PathBuf> {
    let mut parts = path.components();
    parts.next()?;
    let rest = parts.as_path();
    let plain = rest
        .components()
        .all(|part| matches!(part, std::path::Component::Normal(_)));
    (plain && !rest.as_os_str().is_empty()).then(|| rest.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(integrity: &str) -> NpmPackage {
        NpmPackage {
            package: "tool".to_owned(),
            version: "1.0.0".to_owned(),
            integrity: integrity.to_owned(),
        }
    }

    #[test]
    fn addresses_follow_the_registry() {
        assert_eq!(
            url_of("https://mirror/npm/", &package("")),
            "https://mirror/npm/tool/-/tool-1.0.0.tgz"
        );
        let env = [("npm_config_registry".to_owned(), "http://r".to_owned())].into();
        assert_eq!(registry_of(&env), "http://r");
    }

    #[tokio::test]
    async fn a_kept_file_that_is_not_the_pinned_one_is_fetched_again() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("tool-1.0.0.tgz");
        fs::write(&path, "content").unwrap();
        let downloads = Downloads::new(temp.path().to_owned(), "http://127.0.0.1:1");
        let pinned = integrity_of(&path).unwrap();
        assert_eq!(downloads.archive(&package(&pinned)).await.unwrap(), path);
        let error = downloads
            .archive(&package("sha512-other"))
            .await
            .unwrap_err();
        assert!(matches!(error, DownloadError::Failed { .. }), "{error}");
        assert!(!path.exists());
    }
}
