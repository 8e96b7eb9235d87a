//! Unpacks what a build made.

use std::{fs::File, path::Path};

/// Unpacks a tar into an existing folder.
pub(crate) fn unpack(
    tar: &Path,
    folder: &Path,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut archive = tar::Archive::new(File::open(tar)?);
    archive.set_preserve_permissions(true);
    archive.unpack(folder)?;
    Ok(())
}
