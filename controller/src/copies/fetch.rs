//! Bringing an artifact here from a controller that has it.

use std::time::Duration;

use coracle_model::Digest;
use coracle_proto::{
    Wire as _,
    v1::{self, management_client::ManagementClient},
};
use tokio::time::timeout;
use tonic::{Code, Status};

use super::Copies;
use crate::artifacts::{ArtifactError, Reader, Upload};

/// A controller that sends nothing for this long is left for the next one.
const IDLE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error(transparent)]
    Here(#[from] ArtifactError),
    #[error("no controller has artifact {0}")]
    Nowhere(Digest),
    /// Somebody who did not answer may have it.
    #[error("artifact {digest} could not be fetched: {reason}")]
    Unavailable { digest: Digest, reason: String },
}

impl Copies {
    /// The artifact, fetched first if it is not here.
    pub(crate) async fn read(&self, digest: Digest, from: u64) -> Result<Reader, FetchError> {
        match self.artifacts.read_from(digest, from).await {
            Err(ArtifactError::Missing(_)) if !self.artifacts.is_shared() => {}
            other => return Ok(other?),
        }
        self.fetch(digest).await?;
        Ok(self.artifacts.read_from(digest, from).await?)
    }

    /// Stored here when it returns well; leased as an upload is.
    pub(crate) async fn fetch(&self, digest: Digest) -> Result<(), FetchError> {
        let permit = self.fetches.acquire().await;
        let _permit = permit.expect("never closed");
        if self.artifacts.hold(digest).await? {
            return Ok(());
        }
        let mut reason = None;
        let mut upload = self.artifacts.upload().await?;
        for id in self.fellows.others() {
            match self.fetch_from(id, digest, &mut upload).await? {
                Ok(()) if upload.digest() == digest => {
                    upload.finish().await?;
                    tracing::info!(%digest, from = id, "artifact fetched");
                    return Ok(());
                }
                Ok(()) => {
                    // Whose bytes were wrong cannot be told when several gave some: begin anew.
                    reason = Some(format!("member {id} sent other bytes"));
                    upload = self.artifacts.upload().await?;
                }
                Err(status) if status.code() == Code::NotFound => {}
                Err(status) => reason = Some(format!("member {id}: {}", status.message())),
            }
        }
        Err(match reason {
            Some(reason) => FetchError::Unavailable { digest, reason },
            None => FetchError::Nowhere(digest),
        })
    }

    /// Goes on where `upload` stands. Only trouble on this side is an error.
    async fn fetch_from(
        &self,
        id: u64,
        digest: Digest,
        upload: &mut Upload,
    ) -> Result<Result<(), Status>, ArtifactError> {
        let Some(channel) = self.fellows.dial(id) else {
            return Ok(Err(Status::unavailable("its address is not known")));
        };
        let request = v1::GetArtifactRequest {
            digest: digest.to_wire(),
            from: upload.bytes(),
            only_here: true,
        };
        let mut client = ManagementClient::new(channel);
        let silent = |_| Status::deadline_exceeded("it sends nothing");
        let answer = timeout(IDLE, client.get_artifact(request)).await;
        let mut pieces = match answer.map_err(silent).and_then(|answer| answer) {
            Ok(answer) => answer.into_inner(),
            Err(status) => return Ok(Err(status)),
        };
        loop {
            let piece = timeout(IDLE, pieces.message()).await;
            match piece.map_err(silent).and_then(|piece| piece) {
                Ok(Some(piece)) => upload.write(piece.data).await?,
                Ok(None) => return Ok(Ok(())),
                Err(status) => return Ok(Err(status)),
            }
        }
    }
}
