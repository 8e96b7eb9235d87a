//! Wire contracts (gRPC and the persisted log) and the only code that converts them.
//!
//! Generated types stay at gRPC edges and in the log; everything else speaks `coracle_model`.
//! Model to wire is `From`; wire to model is `TryFrom` and refuses what is missing or out of
//! bounds, naming the field. Ids and digests, which are plain bytes on the wire, convert through
//! [`Wire`].

#![forbid(unsafe_code)]

pub mod convert;
pub mod relay;

pub use convert::{ConvertError, Wire, required};

/// The generated code of `proto/coracle/v1`.
#[allow(
    clippy::all,
    missing_debug_implementations,
    unreachable_pub,
    unused_qualifications,
    missing_docs
)]
pub mod v1 {
    tonic::include_proto!("coracle.v1");
}

/// Every method of every service: (`coracle.v1.Service`, `Method`).
pub fn methods() -> impl Iterator<Item = (String, String)> {
    include_str!(concat!(env!("OUT_DIR"), "/methods.txt"))
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(service, method)| (service.to_owned(), method.to_owned()))
}
