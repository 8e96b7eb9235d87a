//! Repository chores: `cargo xtask ci`, and its parts `check-layers`, `check-licences` and
//! `check-advisories`.

#![forbid(unsafe_code)]

mod advisories;
mod layers;
mod licences;
mod metadata;

use std::process::{Command, ExitCode};

type Outcome = Result<(), String>;

fn main() -> ExitCode {
    let task = std::env::args().nth(1).unwrap_or_default();
    let outcome = match task.as_str() {
        "check-layers" => metadata::load().and_then(|m| layers::check(&m)),
        "check-licences" => metadata::load().and_then(|m| licences::check(&m)),
        "check-advisories" => metadata::load().and_then(|m| advisories::check(&m)),
        "ci" => ci(),
        _ => Err(
            "usage: cargo xtask ci | check-layers | check-licences | check-advisories".to_owned(),
        ),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask {task}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Everything that needs neither root nor containers; `tests/run.sh` adds the rest.
fn ci() -> Outcome {
    let metadata = metadata::load()?;
    layers::check(&metadata)?;
    licences::check(&metadata)?;
    advisories::check(&metadata)?;
    cargo(&["fmt", "--all", "--", "--check"])?;
    cargo(&[
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ])
}

fn cargo(args: &[&str]) -> Outcome {
    println!("cargo {}", args.join(" "));
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(args)
        .status()
        .map_err(|error| format!("cannot run cargo: {error}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("cargo {} failed", args.join(" ")))
    }
}
