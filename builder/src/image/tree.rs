//! One digest for a directory tree.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::Path,
};

use coracle_model::Digest;
use sha2::{Digest as _, Sha256};

/// Of names, kinds, modes, link targets and contents in the order of names; not of owners and times.
pub(super) fn digest(root: &Path) -> io::Result<Digest> {
    let mut hash = Sha256::new();
    directory(root, &mut hash)?;
    Ok(Digest(hash.finalize().into()))
}

fn directory(dir: &Path, hash: &mut Sha256) -> io::Result<()> {
    let mut names: Vec<OsString> = fs::read_dir(dir)?
        .map(|entry| Ok(entry?.file_name()))
        .collect::<io::Result<_>>()?;
    names.sort();
    for name in names {
        let path = dir.join(&name);
        let meta = fs::symlink_metadata(&path)?;
        field(hash, name.as_bytes());
        hash.update((meta.permissions().mode() & 0o7777).to_le_bytes());
        if meta.is_dir() {
            hash.update(b"d");
            directory(&path, hash)?;
            hash.update(b"e");
        } else if meta.is_symlink() {
            hash.update(b"l");
            field(hash, fs::read_link(&path)?.as_os_str().as_bytes());
        } else if meta.is_file() {
            hash.update(b"f");
            hash.update(meta.len().to_le_bytes());
            io::copy(&mut fs::File::open(&path)?, hash)?;
        } else {
            hash.update(b"o");
        }
    }
    Ok(())
}

fn field(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_names_and_modes_count_and_times_do_not() {
        let made = |name: &str, content: &str, mode: u32| {
            let temp = tempfile::tempdir().unwrap();
            fs::create_dir(temp.path().join("d")).unwrap();
            let path = temp.path().join("d").join(name);
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            digest(temp.path()).unwrap()
        };
        let plain = made("a", "x", 0o644);
        assert_eq!(plain, made("a", "x", 0o644));
        for other in [
            made("b", "x", 0o644),
            made("a", "y", 0o644),
            made("a", "x", 0o755),
        ] {
            assert_ne!(plain, other);
        }
    }
}
