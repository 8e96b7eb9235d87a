//! Compiles `src/init.rs` into a static program of its own. Cargo cannot do it as a dependency: a
//! binary target would need its own panic strategy, link mode and standard library (none).

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

fn main() {
    let source = Path::new("src/init.rs");
    println!("cargo::rerun-if-changed={}", source.display());
    println!("cargo::rerun-if-changed=build.rs");

    let var = |name: &str| env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    let output = PathBuf::from(var("OUT_DIR")).join("init");
    let mut rustc = Command::new(var("RUSTC"));
    rustc
        .args([
            "--edition=2024",
            "--crate-name=coracle_init_program",
            "--crate-type=bin",
        ])
        .args(["--target", &var("TARGET")])
        .args([
            "-C",
            "target-feature=+crt-static",
            "-C",
            "relocation-model=static",
        ])
        .args([
            "-C",
            "panic=abort",
            "-C",
            "opt-level=s",
            "-C",
            "strip=symbols",
        ])
        .args([
            "-C",
            "link-args=-static -nostdlib -nostartfiles",
            "-D",
            "warnings",
        ])
        .arg("-o")
        .arg(&output)
        .arg(source);
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.args(["-C", &format!("linker={linker}")]);
    }
    let status = rustc
        .status()
        .expect("the compiler that runs this script can be started");
    assert!(
        status.success(),
        "cannot build the static init: a C toolchain is needed as the linker \
         (Debian, Ubuntu: apt install gcc libc6-dev)"
    );
    println!("cargo::rustc-env=CORACLE_INIT={}", output.display());
}
