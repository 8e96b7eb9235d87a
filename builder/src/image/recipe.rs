//! Images from Debian bookworm's packages by mmdebstrap.
//!
//! The `extract` variant unpacks and runs no maintainer script: it is the smallest and fastest, and
//! works where packages could not be configured. `finish.sh` supplies what scripts would have made.

use std::path::Path;

use coracle_runtimes::{Installer, Runtime};
use tokio::process::Command;

use super::{ImageError, Mirror, Progress, command};

const SUITE: &str = "bookworm";
/// A merged `/usr`, which plain extraction does not make by itself: it follows these links. On one
/// line, since mmdebstrap looks for a file of this name.
const SETUP: &str = "for dir in bin sbin lib lib64; do \
    mkdir -p \"$1/usr/$dir\" && ln -s \"usr/$dir\" \"$1/$dir\" || exit 1; done";
const FINISH: &str = include_str!("finish.sh");
const PYTHON: &str = include_str!("python.sh");
/// All of them, to tell when an image must be made again.
pub(super) const SCRIPTS: [&str; 3] = [SETUP, FINISH, PYTHON];

const LEFT_OUT: [&str; 5] = ["doc", "info", "lintian", "locale", "man"];

pub(super) async fn install(
    mirror: &Mirror,
    runtime: &Runtime,
    rootfs: &Path,
    say: &Progress<'_>,
) -> Result<(), ImageError> {
    if !mirror.keyring.exists() {
        return Err(ImageError::Unsupported(format!(
            "{} does not exist; install the package debian-archive-keyring",
            mirror.keyring.display()
        )));
    }
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap
        .args(["--mode=root", "--variant=extract", "--format=directory"])
        .arg(format!("--include={}", runtime.image.packages.join(",")))
        .arg(format!("--setup-hook={SETUP}"));
    for name in LEFT_OUT {
        mmdebstrap.arg(format!("--dpkgopt=path-exclude=/usr/share/{name}/*"));
    }
    mmdebstrap.arg(SUITE).arg(rootfs).args(sources(mirror));
    command::run(mmdebstrap, say).await
}

fn sources(mirror: &Mirror) -> [String; 3] {
    let signed = format!("[signed-by={}]", mirror.keyring.display());
    let Mirror {
        debian, security, ..
    } = mirror;
    [
        format!("deb {signed} {debian} {SUITE} main"),
        format!("deb {signed} {debian} {SUITE}-updates main"),
        format!("deb {signed} {security} {SUITE}-security main"),
    ]
}

/// What both routes need once the files are there.
pub(super) async fn finish(
    runtime: &Runtime,
    rootfs: &Path,
    say: &Progress<'_>,
) -> Result<(), ImageError> {
    script(FINISH, rootfs, None, say).await?;
    match runtime.build.installer {
        Installer::Pip => script(PYTHON, rootfs, Some(runtime.version.to_string()), say).await,
        Installer::Npm => Ok(()),
    }
}

async fn script(
    text: &str,
    rootfs: &Path,
    argument: Option<String>,
    say: &Progress<'_>,
) -> Result<(), ImageError> {
    let mut sh = Command::new("sh");
    sh.arg("-c").arg(text).arg("sh").arg(rootfs).args(argument);
    command::run(sh, say).await
}
