//! The streaming half of Management: artifacts and build logs.

use std::{sync::Arc, time::Duration};

use coracle_base::Shutdown;
use coracle_model::{Digest, RevisionId, Stage};
use coracle_proto::{Wire as _, v1};
use futures_util::stream;
use tonic::{Status, Streaming};

use super::{Streamed, internal};
use crate::{
    artifacts::ArtifactError,
    copies::{FetchError, SpreadError},
    core::{Core, chain},
};

/// An upload that says nothing for this long is given up.
const UPLOAD_IDLE: Duration = Duration::from_secs(60);

pub(super) async fn put(
    core: &Core,
    mut chunks: Streaming<v1::ArtifactChunk>,
) -> Result<v1::PutArtifactResponse, Status> {
    core.require_space()
        .map_err(|full| Status::resource_exhausted(full.to_string()))?;
    let mut upload = core.copies.spread().await.map_err(not_spread)?;
    loop {
        let chunk = tokio::time::timeout(UPLOAD_IDLE, chunks.message()).await;
        match chunk.map_err(|_| Status::deadline_exceeded("the upload stopped"))?? {
            Some(chunk) => upload.write(chunk.data).await.map_err(not_spread)?,
            None => break,
        }
    }
    let (digest, size) = upload.finish().await.map_err(not_spread)?;
    Ok(v1::PutArtifactResponse {
        digest: digest.to_wire(),
        size,
    })
}

pub(super) async fn get(
    core: &Core,
    request: v1::GetArtifactRequest,
) -> Result<Streamed<v1::ArtifactChunk>, Status> {
    let digest = Digest::from_wire("digest", request.digest)?;
    let reader = if request.only_here {
        let reader = core.copies.artifacts.read_from(digest, request.from).await;
        reader.map_err(failed)?
    } else {
        let reader = core.copies.read(digest, request.from).await;
        reader.map_err(not_fetched)?
    };
    Ok(Box::pin(stream::unfold(Some(reader), |reader| async {
        let mut reader = reader?;
        match reader.next().await {
            Ok(Some(data)) => Some((Ok(v1::ArtifactChunk { data }), Some(reader))),
            Ok(None) => None,
            Err(error) => Some((Err(failed(error)), None)),
        }
    })))
}

fn not_spread(error: SpreadError) -> Status {
    match error {
        SpreadError::Here(error) => failed(error),
        SpreadError::NoGroup | SpreadError::NoMajority { .. } => {
            tracing::warn!(%error, "an upload was refused");
            Status::unavailable(error.to_string())
        }
    }
}

fn not_fetched(error: FetchError) -> Status {
    match error {
        FetchError::Here(error) => failed(error),
        FetchError::Nowhere(_) => Status::not_found(error.to_string()),
        FetchError::Unavailable { .. } => Status::unavailable(error.to_string()),
    }
}

pub(super) fn failed(error: ArtifactError) -> Status {
    match error {
        ArtifactError::TooLarge { .. } => Status::resource_exhausted(error.to_string()),
        ArtifactError::Missing(_) => Status::not_found(error.to_string()),
        ArtifactError::Damaged { .. } => {
            tracing::error!(%error, "a stored artifact is damaged");
            Status::data_loss(error.to_string())
        }
        // Another controller's disk or connection may do.
        ArtifactError::Io { .. } | ArtifactError::Object { .. } => {
            tracing::error!(error = %chain(&error), "artifact");
            Status::unavailable(error.to_string())
        }
    }
}

/// For another controller that copies it.
pub(super) async fn finished_build_log(
    core: &Arc<Core>,
    revision: RevisionId,
) -> Result<Streamed<v1::BuildLogChunk>, Status> {
    let failed = |error| internal("build log", &error);
    if core
        .build_logs
        .is_finished(revision)
        .await
        .map_err(failed)?
    {
        let shutdown = Shutdown::new();
        return Ok(build_log(Arc::clone(core), revision, false, shutdown));
    }
    if core.memory().leads() && core.build_logs.is_growing(revision).await.map_err(failed)? {
        return Err(Status::unavailable("it is not finished yet"));
    }
    Err(Status::not_found("there is no log of this build here"))
}

/// What is there, and, when following, what comes until the build is over.
pub(super) fn build_log(
    core: Arc<Core>,
    revision: RevisionId,
    follow: bool,
    shutdown: Shutdown,
) -> Streamed<v1::BuildLogChunk> {
    let reading = Reading {
        core,
        revision,
        follow,
        offset: 0,
        shutdown,
    };
    Box::pin(stream::unfold(Some(reading), |reading| async {
        let mut reading = reading?;
        match reading.next().await {
            Ok(Some(chunk)) => Some((Ok(chunk), Some(reading))),
            Ok(None) => None,
            Err(error) => Some((Err(internal("build log", &error)), None)),
        }
    }))
}

struct Reading {
    core: Arc<Core>,
    revision: RevisionId,
    follow: bool,
    offset: u64,
    shutdown: Shutdown,
}

impl Reading {
    async fn next(&mut self) -> std::io::Result<Option<v1::BuildLogChunk>> {
        loop {
            // Both are watched from before the file and the stage are looked at, so that nothing
            // that happens in between is missed.
            let mut published = self.core.publications();
            let is_open = self.follow && self.is_building();
            let grown = is_open.then(|| self.core.build_logs.follow(self.revision));
            let data = self
                .core
                .build_logs
                .read(self.revision, self.offset)
                .await?;
            if !data.is_empty() {
                self.offset += data.len() as u64;
                return Ok(Some(v1::BuildLogChunk { data }));
            }
            let Some(mut grown) = grown else {
                return Ok(None);
            };
            tokio::select! {
                // Also when the build ends: the next look at the stage tells.
                changed = grown.changed() => if changed.is_err() {
                    tokio::task::yield_now().await;
                },
                _ = published.changed() => {}
                () = self.shutdown.requested() => return Ok(None),
            }
        }
    }

    fn is_building(&self) -> bool {
        let view = self.core.view();
        let stage = view.revision(self.revision).map(|revision| &revision.stage);
        matches!(stage, Some(Stage::Received | Stage::Building))
    }
}
