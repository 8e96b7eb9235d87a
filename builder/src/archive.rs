//! Artifacts as files: reproducible tar archives, and taking them apart without trusting them.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Component, Path, PathBuf},
};

use coracle_model::{Digest, limits};
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

/// What an archive may hold.
#[derive(Debug, Clone)]
pub struct UnpackLimits {
    /// Contents of all files together.
    pub bytes: u64,
    pub entries: u64,
}

impl Default for UnpackLimits {
    fn default() -> Self {
        Self {
            bytes: limits::ARTIFACT_MAX_BYTES,
            entries: 200_000,
        }
    }
}

/// Nothing is left at the destination.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the archive is not readable")]
    Format(#[source] io::Error),
    #[error("the archive holds more than {0}")]
    TooLarge(String),
    /// A path outside the destination, a device, a hard link and the like.
    #[error("the archive holds {path:?}, {reason}")]
    Refused { path: String, reason: &'static str },
}

/// A packed archive's address and size in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed {
    pub digest: Digest,
    pub bytes: u64,
}

/// Writes everything below `dir` to `out`: the same files give the same bytes, whoever owns them and
/// whenever they were made. Modes become 0755 or 0644, so that any uid can read and none gains by
/// it. Links that would leave `dir` are left out and returned.
pub fn pack(dir: &Path, out: &Path, most: u64) -> io::Result<Result<(Packed, Vec<PathBuf>), u64>> {
    // The directory itself was writable in a container: a link there would lead into the host.
    if !is_dir(dir) {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    let mut names = Vec::new();
    list(dir, Path::new(""), &mut names)?;
    names.sort();
    let mut left_out = Vec::new();
    let mut total = 0_u64;
    let file = fs::File::create(out)?;
    let mut tar = tar::Builder::new(Hashing::new(io::BufWriter::new(file)));
    for name in names {
        let path = dir.join(&name);
        let meta = fs::symlink_metadata(&path)?;
        let mut header = Header::new_gnu();
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        header.set_mode(0o755);
        if meta.is_dir() {
            header.set_entry_type(EntryType::Directory);
            tar.append_data(&mut header, &name, io::empty())?;
        } else if meta.is_symlink() {
            let target = fs::read_link(&path)?;
            if !stays_inside(&name, &target) {
                left_out.push(name);
                continue;
            }
            header.set_entry_type(EntryType::Symlink);
            header.set_mode(0o777);
            tar.append_link(&mut header, &name, &target)?;
        } else if meta.is_file() {
            total += meta.len();
            if total > most {
                drop(tar);
                fs::remove_file(out)?;
                return Ok(Err(total));
            }
            header.set_entry_type(EntryType::Regular);
            header.set_mode(if meta.permissions().mode() & 0o111 == 0 {
                0o644
            } else {
                0o755
            });
            header.set_size(meta.len());
            tar.append_data(&mut header, &name, fs::File::open(&path)?)?;
        } else {
            left_out.push(name);
        }
    }
    let hashing = tar.into_inner()?;
    let (mut out, packed) = hashing.finish();
    out.flush()?;
    out.get_ref().sync_all()?;
    Ok(Ok((packed, left_out)))
}

fn list(dir: &Path, below: &Path, names: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir.join(below))? {
        let entry = entry?;
        let name = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            list(dir, &name, names)?;
        }
        names.push(name);
    }
    Ok(())
}

/// Whether a link at `name` (relative to the root) points at something below the root.
fn stays_inside(name: &Path, target: &Path) -> bool {
    let Some(parent) = name.parent() else {
        return false;
    };
    let mut depth = parent.components().count();
    for component in target.components() {
        match component {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir if depth > 0 => depth -= 1,
            _ => return false,
        }
    }
    true
}

/// Unpacks an archive into `dir`, which must not exist: it appears whole or not at all. What is
/// there afterwards is readable by all and writable by its owner, the calling process.
pub fn unpack(archive: impl Read, dir: &Path, limits: &UnpackLimits) -> Result<(), UnpackError> {
    let fail = |action| {
        move |source| UnpackError::Io {
            action,
            path: dir.to_owned(),
            source,
        }
    };
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(".unpacking");
    let new = dir.with_file_name(name);
    if new.exists() {
        fs::remove_dir_all(&new).map_err(fail("clear"))?;
    }
    fs::create_dir(&new).map_err(fail("create"))?;
    let done = extract(archive, &new, limits)
        .and_then(|()| set_mode(&new, 0o755))
        .and_then(|()| fs::rename(&new, dir).map_err(fail("rename to")));
    if done.is_err() {
        // What remains after a failed removal is cleared by the next attempt.
        let _ = fs::remove_dir_all(&new);
    }
    done
}

fn extract(archive: impl Read, root: &Path, limits: &UnpackLimits) -> Result<(), UnpackError> {
    let mut archive = tar::Archive::new(archive);
    let mut bytes = 0_u64;
    let mut count = 0_u64;
    for entry in archive.entries().map_err(UnpackError::Format)? {
        let mut entry = entry.map_err(UnpackError::Format)?;
        count += 1;
        if count > limits.entries {
            return Err(UnpackError::TooLarge(format!("{} entries", limits.entries)));
        }
        bytes = bytes.saturating_add(entry.size());
        if bytes > limits.bytes {
            return Err(UnpackError::TooLarge(format!("{} MiB", limits.bytes >> 20)));
        }
        let name = entry.path().map_err(UnpackError::Format)?.into_owned();
        let shown = name.display().to_string();
        let refuse = |reason| UnpackError::Refused {
            path: shown.clone(),
            reason,
        };
        let Some(name) = plain(&name) else {
            return Err(refuse("a path that leaves the archive"));
        };
        if name.as_os_str().is_empty() {
            continue;
        }
        if name.as_os_str().len() > 4_000 || name.iter().any(|part| part.len() > 255) {
            return Err(refuse("a path that is too long"));
        }
        let path = root.join(&name);
        make_parents(root, &name, &shown)?;
        let io_error = |action| {
            let path = path.clone();
            move |source| UnpackError::Io {
                action,
                path,
                source,
            }
        };
        match entry.header().entry_type() {
            EntryType::Directory => match fs::create_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    if !is_dir(&path) {
                        return Err(refuse("twice, as different things"));
                    }
                }
                made => {
                    made.map_err(io_error("create"))?;
                    set_mode(&path, 0o755)?;
                }
            },
            EntryType::Regular | EntryType::Continuous => {
                let executable = entry.header().mode().is_ok_and(|mode| mode & 0o111 != 0);
                // Also refuses to write through a link that the archive brought along.
                let mut file = fs::OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .open(&path)
                    .map_err(io_error("create"))?;
                io::copy(&mut entry, &mut file).map_err(io_error("write"))?;
                set_mode(&path, if executable { 0o755 } else { 0o644 })?;
            }
            EntryType::Symlink => {
                let target = entry
                    .link_name()
                    .map_err(UnpackError::Format)?
                    .unwrap_or_default();
                if !stays_inside(&name, &target) {
                    return Err(refuse("a link that leaves the archive"));
                }
                symlink(&target, &path).map_err(io_error("create"))?;
            }
            EntryType::XGlobalHeader => {}
            _ => return Err(refuse("which is no file, directory or symbolic link")),
        }
    }
    Ok(())
}

/// The path with only plain names in it.
fn plain(path: &Path) -> Option<PathBuf> {
    let mut found = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => found.push(name),
            Component::CurDir => {}
            _ => return None,
        }
    }
    Some(found)
}

/// Every directory above `name`, none of them a link.
fn make_parents(root: &Path, name: &Path, shown: &str) -> Result<(), UnpackError> {
    let mut path = root.to_owned();
    for part in name.parent().unwrap_or(Path::new("")) {
        path.push(part);
        match fs::create_dir(&path) {
            Ok(()) => set_mode(&path, 0o755)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if !is_dir(&path) {
                    let reason = "below something that is no directory";
                    return Err(UnpackError::Refused {
                        path: shown.to_owned(),
                        reason,
                    });
                }
            }
            Err(source) => {
                return Err(UnpackError::Io {
                    action: "create",
                    path,
                    source,
                });
            }
        }
    }
    Ok(())
}

fn is_dir(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir())
}

fn set_mode(path: &Path, mode: u32) -> Result<(), UnpackError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(|source| UnpackError::Io {
        action: "set the mode of",
        path: path.into(),
        source,
    })
}

/// Hashes what passes through to the file.
struct Hashing<W> {
    to: W,
    hash: Sha256,
    bytes: u64,
}

impl<W: Write> Hashing<W> {
    fn new(to: W) -> Self {
        Self {
            to,
            hash: Sha256::new(),
            bytes: 0,
        }
    }

    fn finish(self) -> (W, Packed) {
        let digest = Digest(self.hash.finalize().into());
        (
            self.to,
            Packed {
                digest,
                bytes: self.bytes,
            },
        )
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let count = self.to.write(buf)?;
        self.hash.update(&buf[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(dir: &Path) {
        fs::create_dir_all(dir.join("pkg/deep")).unwrap();
        fs::write(dir.join("pkg/deep/a.txt"), "a").unwrap();
        fs::write(dir.join("main.py"), "x = 1").unwrap();
        fs::set_permissions(dir.join("main.py"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::set_permissions(dir.join("pkg"), fs::Permissions::from_mode(0o700)).unwrap();
        symlink("deep/a.txt", dir.join("pkg/link")).unwrap();
        symlink("/etc/passwd", dir.join("absolute")).unwrap();
        symlink("../../outside", dir.join("pkg/out")).unwrap();
    }

    fn packed(dir: &Path, out: &Path) -> (Packed, Vec<PathBuf>) {
        pack(dir, out, 1 << 20).unwrap().unwrap()
    }

    #[test]
    fn the_same_files_give_the_same_bytes_and_come_back_readable() {
        let temp = tempfile::tempdir().unwrap();
        let (one, two) = (temp.path().join("one"), temp.path().join("two"));
        sample(&one);
        sample(&two);
        let (first, left_out) = packed(&one, &temp.path().join("1.tar"));
        let (second, _) = packed(&two, &temp.path().join("2.tar"));
        assert_eq!(first, second);
        assert_eq!(left_out, [PathBuf::from("absolute"), "pkg/out".into()]);
        let bytes = fs::read(temp.path().join("1.tar")).unwrap();
        assert_eq!(Digest::of(&bytes), first.digest);

        let back = temp.path().join("back");
        unpack(bytes.as_slice(), &back, &UnpackLimits::default()).unwrap();
        assert_eq!(fs::read(back.join("pkg/link")).unwrap(), b"a");
        let mode =
            |path: &str| fs::metadata(back.join(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("main.py"), mode("pkg")), (0o644, 0o755));
    }

    fn crafted(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (kind, name, content) in entries {
            let mut header = Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o4777);
            // The safe setter refuses what these tests are about.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            let data = if *kind == EntryType::Regular {
                content.as_bytes()
            } else {
                header.as_old_mut().linkname[..content.len()].copy_from_slice(content.as_bytes());
                b""
            };
            header.set_size(data.len() as u64);
            header.set_cksum();
            tar.append(&header, data).unwrap();
        }
        tar.into_inner().unwrap()
    }

    #[test]
    fn hostile_archives_leave_nothing_behind() {
        use EntryType::{Char, Link, Regular, Symlink};
        let cases: &[&[(EntryType, &str, &str)]] = &[
            &[(Regular, "../escape", "x")],
            &[(Regular, "/escape", "x")],
            &[(Symlink, "link", "/etc")],
            &[(Symlink, "a/link", "../../b")],
            &[(Symlink, "link", "dir"), (Regular, "link/x", "x")],
            &[(Symlink, "link", "target"), (Regular, "link", "x")],
            &[(Link, "hard", "main.py")],
            &[(Char, "device", "")],
            &[(Regular, "file", "x"), (Regular, "file/below", "x")],
            &[
                (Regular, "1", "x"),
                (Regular, "2", "x"),
                (Regular, "3", "x"),
                (Regular, "4", "x"),
            ],
            &[(Regular, "big", "0123456789")],
        ];
        let limits = UnpackLimits {
            bytes: 9,
            entries: 3,
        };
        for case in cases {
            let temp = tempfile::tempdir().unwrap();
            let dir = temp.path().join("out");
            let result = unpack(crafted(case).as_slice(), &dir, &limits);
            assert!(result.is_err(), "{case:?}");
            assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0, "{case:?}");
        }
    }

    #[test]
    fn privileges_in_an_archive_are_dropped() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("out");
        let archive = crafted(&[(EntryType::Regular, "tool", "x")]);
        unpack(archive.as_slice(), &dir, &UnpackLimits::default()).unwrap();
        assert_eq!(
            fs::metadata(dir.join("tool")).unwrap().permissions().mode() & 0o7777,
            0o755
        );
    }

    #[test]
    fn a_link_in_place_of_the_directory_is_not_followed() {
        let temp = tempfile::tempdir().unwrap();
        symlink("/etc", temp.path().join("deps")).unwrap();
        let error = pack(&temp.path().join("deps"), &temp.path().join("out"), 1 << 20).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotADirectory);
    }

    #[test]
    fn too_much_is_counted_before_it_is_packed() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("dir");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("a"), vec![0; 100]).unwrap();
        let out = temp.path().join("out.tar");
        assert_eq!(pack(&dir, &out, 99).unwrap(), Err(100));
        assert!(!out.exists());
    }
}
