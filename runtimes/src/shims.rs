//! Puts the shims and our init where containers find them.

use std::{
    fs, io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use crate::Catalog;

/// Where a container sees the directory that [`write_shims`] filled, bound read-only.
pub const SHIM_MOUNT: &str = "/usr/lib/coracle";

/// The directory may be half filled with old and new files, each of them whole.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}", path.display())]
pub struct ShimError {
    pub path: PathBuf,
    #[source]
    pub source: io::Error,
}

/// Writes `init` and every runtime's `<name>/<shim>` below `dir`, readable by all, each by rename:
/// a container that starts meanwhile sees the old file or the new one. Running containers keep what
/// they have open.
pub fn write_shims(catalog: &Catalog, dir: &Path, init: &[u8]) -> Result<(), ShimError> {
    make_dir(dir)?;
    write(&dir.join("init"), init, 0o755)?;
    for (runtime, shim) in catalog.shims() {
        let place = dir.join(runtime.name.as_str());
        make_dir(&place)?;
        write(&place.join(&runtime.shim.file), shim, 0o644)?;
    }
    Ok(())
}

fn make_dir(dir: &Path) -> Result<(), ShimError> {
    fs::create_dir_all(dir)
        .and_then(|()| fs::set_permissions(dir, fs::Permissions::from_mode(0o755)))
        .map_err(|source| ShimError {
            path: dir.to_owned(),
            source,
        })
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), ShimError> {
    // Unchanged files stay as they are, so that their page cache stays shared.
    if fs::read(path).is_ok_and(|old| old == bytes)
        && fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o7777 == mode)
    {
        return Ok(());
    }
    let new = path.with_extension("new");
    let written = || {
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&new)?;
        io::Write::write_all(&mut file, bytes)?;
        // The mode given to open is cut by the umask.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    written().map_err(|source| ShimError {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shim_lies_where_its_command_looks_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("lib");
        let catalog = Catalog::builtin();
        write_shims(&catalog, &place, b"init 1").unwrap();
        write_shims(&catalog, &place, b"init 2").unwrap();
        assert_eq!(fs::read(place.join("init")).unwrap(), b"init 2");
        for runtime in catalog.runtimes() {
            let argv = runtime.shim.argv.last().unwrap();
            let inside = argv
                .strip_prefix(SHIM_MOUNT)
                .unwrap()
                .trim_start_matches('/');
            let mode = fs::metadata(place.join(inside))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o644, "{argv}");
        }
        let mode = fs::metadata(place.join("init"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o755);
    }
}
