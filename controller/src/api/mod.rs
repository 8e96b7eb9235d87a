//! The gRPC services, one file each: parse, propose or read, answer.

pub(crate) mod agents;
mod artifacts;
pub(crate) mod cluster;
pub(crate) mod copies;
pub(crate) mod join;
pub(crate) mod management;
pub(crate) mod routing;

use std::pin::Pin;

use coracle_model::{Invalid, Refusal};
use coracle_replica::{ProposeError, ReadError};
use futures_util::Stream;
use tonic::Status;

use crate::{
    core::{Core, WriteError, chain},
    forward::Failed,
};

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Core {
    /// For what only a leader's memory can answer.
    fn require_leader(&self) -> Result<(), Status> {
        if self.memory().leads() {
            return Ok(());
        }
        Err(self.not_leader())
    }
}

/// A reader may ask again, here or elsewhere.
fn read_failed(error: ReadError) -> Status {
    Status::unavailable(error.to_string())
}

/// A refusal is an answer; what else can happen to a write is not.
fn write_failed(error: WriteError) -> Result<Refusal, Failed> {
    let too_large = |text: String| Ok(Refusal::Invalid(Invalid::new("settings", text)));
    match error {
        WriteError::Refused(refusal) => Ok(refusal),
        WriteError::TooLarge(error) => too_large(error.to_string()),
        full @ WriteError::StorageFull { .. } => {
            Err(Failed::Final(Status::resource_exhausted(full.to_string())))
        }
        WriteError::Propose(error @ ProposeError::TooLarge { .. }) => too_large(error.to_string()),
        // What may have been applied is repeated under the same id.
        WriteError::Propose(error) => Err(error.into()),
    }
}

/// Something on our side failed: the chain for our log, less for the caller.
fn internal(context: &str, error: &dyn std::error::Error) -> Status {
    tracing::error!(error = %chain(error), "{context}");
    Status::internal(format!("{context}: {error}"))
}

#[cfg(test)]
mod tests {
    use coracle_replica::Doubt;
    use tonic::Code;

    use super::*;

    #[test]
    fn outcomes_keep_their_meaning() {
        let refusal = Refusal::NotFound("function a".into());
        assert_eq!(
            write_failed(WriteError::Refused(refusal.clone())).unwrap(),
            refusal
        );
        let failed = |error| write_failed(WriteError::Propose(error)).unwrap_err();
        let doubt = failed(ProposeError::Unknown(Doubt::Deadline));
        assert!(matches!(doubt, Failed::Unknown(status) if status.code() == Code::Aborted));
        let busy = failed(ProposeError::Busy);
        assert!(matches!(busy, Failed::Final(status) if status.code() == Code::Unavailable));
        let other = failed(ProposeError::NotLeader { leader: Some(3) });
        assert!(matches!(other, Failed::Elsewhere));
        assert_eq!(read_failed(ReadError::Deadline).code(), Code::Unavailable);
    }
}
