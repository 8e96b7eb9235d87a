//! Management APIs: the native one and the clouds', each a translation onto [`port::ControlPlane`].
#![forbid(unsafe_code)]

pub mod port;
