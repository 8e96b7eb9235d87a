//! Artifacts for the other controllers.

use std::time::Duration;

use coracle_model::Digest;
use coracle_proto::{
    ConvertError, Wire as _,
    v1::{self, store_artifact_frame::Body},
};
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming};

use super::artifacts::failed;
use crate::copies::Copies;

/// An upload that says nothing for this long is given up.
const IDLE: Duration = Duration::from_secs(30);

pub(crate) struct ArtifactPeers {
    pub(crate) copies: Copies,
}

#[tonic::async_trait]
impl v1::artifact_peers_server::ArtifactPeers for ArtifactPeers {
    async fn store(
        &self,
        request: Request<Streaming<v1::StoreArtifactFrame>>,
    ) -> Result<Response<v1::StoreArtifactResponse>, Status> {
        let mut frames = request.into_inner();
        let upload = self.copies.artifacts.upload().await;
        let mut upload = upload.map_err(failed)?;
        let end = loop {
            let frame = timeout(IDLE, frames.message()).await;
            let frame = frame.map_err(|_| Status::deadline_exceeded("the upload stopped"))??;
            match frame.and_then(|frame| frame.body) {
                Some(Body::Data(data)) => upload.write(data).await.map_err(failed)?,
                Some(Body::End(end)) => break end,
                None => return Err(Status::cancelled("the upload broke off")),
            }
        };
        let digest = Digest::from_wire("end.digest", end.digest)?;
        if (upload.digest(), upload.bytes()) != (digest, end.size) {
            return Err(Status::data_loss("the bytes are not what was announced"));
        }
        let (digest, size) = upload.finish().await.map_err(failed)?;
        Ok(Response::new(v1::StoreArtifactResponse {
            digest: digest.to_wire(),
            size,
        }))
    }

    async fn have(
        &self,
        request: Request<v1::HaveArtifactsRequest>,
    ) -> Result<Response<v1::HaveArtifactsResponse>, Status> {
        let v1::HaveArtifactsRequest {
            digests,
            hold,
            fetch,
        } = request.into_inner();
        let digests = digests
            .into_iter()
            .map(|digest| Digest::from_wire("digests", digest))
            .collect::<Result<Vec<_>, ConvertError>>()?;
        let missing = self.copies.missing(digests, hold, fetch).await;
        let missing = missing.map_err(failed)?;
        Ok(Response::new(v1::HaveArtifactsResponse {
            missing: missing.iter().map(Digest::to_wire).collect(),
        }))
    }
}
