//! The runtimes that Coracle brings along: which there are, what each needs, and their shims.
//!
//! All of it is data in `runtimes/<name>/runtime.toml`, embedded at compile time: adding a runtime
//! is a folder with that file and a shim (see CONTRACT.md), and one line in [`catalog`]. This crate
//! builds no images and runs nothing; its only I/O is [`write_shims`].

#![forbid(unsafe_code)]

pub mod catalog;
pub mod resolve;
pub mod shims;
pub mod spec;

pub use catalog::{Catalog, CatalogError};
pub use resolve::{Resolved, Strictness, UnknownRuntime};
pub use shims::{SHIM_MOUNT, ShimError, write_shims};
pub use spec::{Installer, NpmFile, NpmPackage, Runtime, StandsInFor, Version};
