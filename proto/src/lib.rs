//! Wire contracts (gRPC and the persisted log) and the only code that converts them.
//!
//! Generated types stay at gRPC edges and in the log; everything else speaks `coracle_model`.

#![forbid(unsafe_code)]

/// The generated code of `proto/coracle/v1`.
#[allow(clippy::all, missing_debug_implementations, unreachable_pub, unused_qualifications, missing_docs)]
pub mod v1 {
    tonic::include_proto!("coracle.v1");
}
