//! From source text and a dependency list to artifacts, and the runtime images both are made for.
//!
//! [`plan`] decides everything about a build as a value; [`exec`] carries it out in a sandbox that
//! the agent provides. [`archive`] is the one place where the archives are packed and unpacked.
//! Nothing here talks to the controller, and no user code runs outside the sandbox.

#![forbid(unsafe_code)]

pub mod archive;
mod build;
pub mod cache;
mod disk;
pub mod download;
mod exec;
pub mod failure;
pub mod image;
pub mod plan;

pub use archive::{UnpackError, UnpackLimits, unpack};
pub use build::{BuildError, BuildRequest, Builder, Built, Config, Limits};
pub use image::{ImageError, ImagePath, ImageStore, Route};
