//! The gRPC services, one file each: parse, propose or read, answer.

pub(crate) mod agents;
mod artifacts;
pub(crate) mod cluster;
pub(crate) mod join;
pub(crate) mod management;
pub(crate) mod routing;

use std::pin::Pin;

use coracle_model::{Invalid, Refusal};
use coracle_replica::{ProposeError, ReadError};
use futures_util::Stream;
use tonic::{Status, metadata::MetadataValue};

use crate::core::{Core, WriteError, chain};

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Who leads, on the status with which a follower refuses.
const LEADER_KEY: &str = "coracle-leader";

fn not_leader(leader: Option<u64>) -> Status {
    let mut status = Status::unavailable("this controller does not lead");
    if let Some(leader) = leader {
        status
            .metadata_mut()
            .insert(LEADER_KEY, MetadataValue::from(leader));
    }
    status
}

impl Core {
    /// For what only a leader's memory can answer.
    fn require_leader(&self) -> Result<(), Status> {
        if self.memory().leads() {
            return Ok(());
        }
        Err(not_leader(self.replica.status().borrow().leader))
    }
}

/// A reader may ask again, here or elsewhere.
fn read_failed(error: ReadError) -> Status {
    Status::unavailable(error.to_string())
}

/// A refusal is an answer; what else can happen to a write is a status.
fn write_failed(error: WriteError) -> Result<Refusal, Status> {
    let too_large = |text: String| Ok(Refusal::Invalid(Invalid::new("settings", text)));
    match error {
        WriteError::Refused(refusal) => Ok(refusal),
        WriteError::TooLarge(error) => too_large(error.to_string()),
        WriteError::Propose(error) => match error {
            ProposeError::TooLarge { .. } => too_large(error.to_string()),
            ProposeError::NotLeader { leader } => Err(not_leader(leader)),
            // It may have been applied: the caller repeats it under the same id.
            ProposeError::Unknown(_) => Err(Status::aborted(error.to_string())),
            ProposeError::Busy | ProposeError::Stopped => {
                Err(Status::unavailable(error.to_string()))
            }
            ProposeError::Empty => Err(Status::internal(error.to_string())),
        },
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
        let code = |error| write_failed(WriteError::Propose(error)).unwrap_err().code();
        assert_eq!(code(ProposeError::Unknown(Doubt::Deadline)), Code::Aborted);
        assert_eq!(code(ProposeError::Busy), Code::Unavailable);
        let status = write_failed(ProposeError::NotLeader { leader: Some(3) }.into()).unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(
            status.metadata().get(LEADER_KEY).unwrap().to_str().unwrap(),
            "3"
        );
        let status = write_failed(ProposeError::NotLeader { leader: None }.into()).unwrap_err();
        assert!(status.metadata().get(LEADER_KEY).is_none());
        assert_eq!(read_failed(ReadError::Deadline).code(), Code::Unavailable);
    }
}
