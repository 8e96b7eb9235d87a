//! Images from what the host's own package manager installed.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs, io,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Component, Path, PathBuf},
    process::Stdio,
};

use coracle_runtimes::Runtime;
use tokio::process::Command;

use super::{ImageError, Progress};

/// Needed by maintainer scripts only, which do not run.
const NOT_AT_RUN_TIME: [&str; 6] = [
    "debconf",
    "debconf-2.0",
    "debianutils",
    "dpkg",
    "perl-base",
    "tar",
];
const NOT_TAKEN: [&str; 5] = [
    "/usr/share/doc",
    "/usr/share/info",
    "/usr/share/lintian",
    "/usr/share/locale",
    "/usr/share/man",
];
/// Top-level directories that are links into `/usr` in the image, whatever they are on the host.
const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];

pub(super) async fn install(
    runtime: &Runtime,
    rootfs: &Path,
    say: &Progress<'_>,
) -> Result<(), ImageError> {
    let installed = query(&[
        "--show",
        "--showformat=${db:Status-Abbrev}\t${Package}\t${Provides}\t${Pre-Depends}, ${Depends}\n",
    ])
    .await?;
    let packages =
        closure(&parse(&installed), &runtime.image.host_packages).map_err(|missing| {
            ImageError::Unsupported(format!(
                "the host has no package {missing}, which {} needs in this route",
                runtime.name
            ))
        })?;
    say.line(format!("copying {} packages of this host", packages.len()))
        .await;
    let mut listing = vec!["--listfiles"];
    listing.extend(packages.iter().map(String::as_str));
    let files = query(&listing).await?;
    let rootfs = rootfs.to_owned();
    tokio::task::spawn_blocking(move || copy(&files, &rootfs))
        .await
        .map_err(io::Error::other)
        .and_then(|done| done)
        .map_err(ImageError::io("copy the host's packages"))
}

async fn query(args: &[&str]) -> Result<String, ImageError> {
    let program = "dpkg-query".to_owned();
    let output = Command::new(&program)
        .args(args)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|source| ImageError::Start {
            program: program.clone(),
            source,
        })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(ImageError::Command {
            program,
            status: output.status.to_string(),
            said,
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Installed packages with their alternatives: each dependency is a list of names, one of which is
/// enough. Virtual names lead to a package that provides them.
#[derive(Debug, Default)]
struct Installed {
    depends: BTreeMap<String, Vec<Vec<String>>>,
    provided_by: BTreeMap<String, String>,
}

fn parse(text: &str) -> Installed {
    // `libc6:any (>= 2.36)` -> `libc6`
    let name = |field: &str| {
        let field = field.trim();
        field
            .split([' ', ':', '('])
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    let mut found = Installed::default();
    for line in text.lines() {
        let mut fields = line.split('\t');
        let (Some(status), Some(package), Some(provides), Some(depends)) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        if !status.starts_with("ii") {
            continue;
        }
        for provided in provides
            .split(',')
            .map(name)
            .filter(|name| !name.is_empty())
        {
            found.provided_by.insert(provided, package.to_owned());
        }
        let depends = depends
            .split(',')
            .map(|one| {
                one.split('|')
                    .map(name)
                    .filter(|name| !name.is_empty())
                    .collect()
            })
            .filter(|one: &Vec<String>| !one.is_empty())
            .collect();
        found.depends.insert(package.to_owned(), depends);
    }
    found
}

/// The packages and what they need, or the name of the first that is not installed.
fn closure(installed: &Installed, wanted: &[String]) -> Result<BTreeSet<String>, String> {
    let real = |name: &String| {
        if installed.depends.contains_key(name) {
            Some(name.clone())
        } else {
            installed.provided_by.get(name).cloned()
        }
    };
    let mut found = BTreeSet::new();
    let mut queue = VecDeque::new();
    for name in wanted {
        queue.push_back(real(name).ok_or_else(|| name.clone())?);
    }
    while let Some(package) = queue.pop_front() {
        if !found.insert(package.clone()) {
            continue;
        }
        for alternatives in installed.depends.get(&package).into_iter().flatten() {
            if alternatives
                .iter()
                .any(|name| NOT_AT_RUN_TIME.contains(&name.as_str()))
            {
                continue;
            }
            // A broken installation may lack a dependency; the interpreter then says so itself.
            queue.extend(alternatives.iter().find_map(real));
        }
    }
    Ok(found)
}

fn copy(listing: &str, rootfs: &Path) -> io::Result<()> {
    fs::create_dir_all(rootfs.join("usr"))?;
    fs::set_permissions(rootfs, fs::Permissions::from_mode(0o755))?;
    for name in MERGED {
        fs::create_dir_all(rootfs.join("usr").join(name))?;
        symlink(Path::new("usr").join(name), rootfs.join(name))?;
    }
    fs::create_dir_all(rootfs.join("etc"))?;
    for line in listing.lines() {
        let source = Path::new(line);
        // Other lines tell of diversions.
        if !source.is_absolute() || NOT_TAKEN.iter().any(|dir| source.starts_with(dir)) {
            continue;
        }
        let Some(name) = merged(source) else { continue };
        let target = rootfs.join(&name);
        let meta = match fs::symlink_metadata(source) {
            // Removed by the administrator, or left out when it was installed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            meta => meta?,
        };
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        if meta.is_dir() {
            fs::create_dir_all(&target)?;
        } else if fs::symlink_metadata(&target).is_ok() {
            // Listed under both `/lib` and `/usr/lib`.
        } else if meta.is_symlink() {
            symlink(fs::read_link(source)?, &target)?;
        } else if meta.is_file() {
            fs::copy(source, &target)?;
        }
    }
    Ok(())
}

/// The path in the image, relative to its root: without this the result is broken on hosts whose
/// package lists still say `/lib` where the files are below `/usr`.
fn merged(path: &Path) -> Option<PathBuf> {
    let mut parts = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name),
        _ => None,
    });
    let first = parts.next()?;
    let mut name = PathBuf::new();
    if MERGED.iter().any(|dir| first == *dir) {
        name.push("usr");
    }
    name.push(first);
    name.extend(parts);
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "ii \tpython3.11\t\tdpkg (>= 1), libc6 (>= 2.36), mime-support | media-types\n\
        ii \tmedia-types\t\t, \nii \tlibc6\tlibc6-2.36\tlibgcc-s1 | nothing\nii \tgcc-base\tlibgcc-s1 (= 1)\t, \n\
        rc \tremoved\t\t, \n";

    #[test]
    fn dependencies_are_followed_through_alternatives_and_virtual_names() {
        let found = closure(&parse(LIST), &["python3.11".to_owned()]).unwrap();
        let found: Vec<_> = found.iter().map(String::as_str).collect();
        assert_eq!(found, ["gcc-base", "libc6", "media-types", "python3.11"]);
    }

    #[test]
    fn a_package_that_is_not_installed_is_named() {
        assert_eq!(
            closure(&parse(LIST), &["removed".to_owned()]),
            Err("removed".to_owned())
        );
    }

    #[test]
    fn top_level_directories_go_below_usr() {
        let path = |p| merged(Path::new(p)).unwrap().display().to_string();
        assert_eq!(
            path("/lib/x86_64-linux-gnu/libc.so.6"),
            "usr/lib/x86_64-linux-gnu/libc.so.6"
        );
        assert_eq!(path("/usr/bin/python3.11"), "usr/bin/python3.11");
        assert_eq!(
            path("/etc/python3.11/sitecustomize.py"),
            "etc/python3.11/sitecustomize.py"
        );
        assert_eq!(merged(Path::new("/")), None);
    }
}
