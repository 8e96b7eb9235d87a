//! Artifacts to and from the controllers.

use std::{
    io,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use bytes::Bytes;
use coracle_base::Replicas;
use coracle_model::{Digest, limits};
use coracle_proto::{
    Wire,
    v1::{self, management_client::ManagementClient},
};
use sha2::{Digest as _, Sha256};
use tokio::{
    fs::File,
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, transport::Channel};

use crate::artifacts::ArtifactSource;

const CHUNK: usize = 64 * 1024;
/// Pieces on their way between the network and the disk.
const PIECES: usize = 8;

#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// No controller has it.
    #[error("no controller has artifact {0}")]
    Missing(Digest),
    /// No controller answered; worth trying again.
    #[error("no controller answered")]
    Unavailable(#[source] Box<Status>),
    #[error("the controller's bytes do not have the digest {0}")]
    Corrupt(Digest),
    #[error("the artifact is larger than {} bytes", limits::ARTIFACT_MAX_BYTES)]
    TooLarge,
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("no controller is configured")]
    NoController,
}

impl TransferError {
    /// Whether the same call can succeed later without anybody doing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Corrupt(_))
    }

    /// What to say of several controllers: one that did not answer may have had it.
    fn or_worse(self, next: Self) -> Self {
        match self {
            Self::Unavailable(_) if !next.is_transient() => self,
            _ => next,
        }
    }
}

/// Every controller. Whichever led last is asked first.
#[derive(Debug, Clone)]
pub struct Controllers {
    replicas: Replicas,
}

impl Controllers {
    pub fn new(replicas: Replicas) -> Self {
        Self { replicas }
    }

    pub(crate) fn replicas(&self) -> &Replicas {
        &self.replicas
    }

    /// All of them, the preferred one first.
    pub fn each(&self) -> impl Iterator<Item = Channel> {
        self.replicas
            .each()
            .into_iter()
            .map(|server| server.channel())
    }

    /// A small artifact, such as a function's source, as bytes.
    pub async fn read(&self, digest: Digest, most: usize) -> Result<Vec<u8>, TransferError> {
        let (sender, mut pieces) = mpsc::channel::<Bytes>(PIECES);
        let collecting = async move {
            let mut bytes = Vec::new();
            while let Some(piece) = pieces.recv().await {
                if bytes.len() + piece.len() > most {
                    return Err(TransferError::TooLarge);
                }
                bytes.extend_from_slice(&piece);
            }
            Ok(bytes)
        };
        let (bytes, fetched) = tokio::join!(collecting, self.pieces(digest, sender));
        let bytes = bytes?;
        fetched?;
        Ok(bytes)
    }

    /// Sends the pieces from whichever controller has them; where one breaks off the next goes on.
    /// The digest has been checked when it returns well.
    async fn pieces(&self, digest: Digest, to: mpsc::Sender<Bytes>) -> Result<(), TransferError> {
        let mut last = TransferError::NoController;
        let (mut hash, mut size) = (Sha256::new(), 0_u64);
        for channel in self.each() {
            let request = v1::GetArtifactRequest {
                digest: digest.to_wire(),
                from: size,
                only_here: false,
            };
            let mut answer = match ManagementClient::new(channel).get_artifact(request).await {
                Ok(answer) => answer.into_inner(),
                Err(status) => {
                    last = last.or_worse(failure(digest, status));
                    continue;
                }
            };
            loop {
                match answer.message().await {
                    Ok(Some(chunk)) => {
                        size += chunk.data.len() as u64;
                        if size > limits::ARTIFACT_MAX_BYTES {
                            return Err(TransferError::TooLarge);
                        }
                        hash.update(&chunk.data);
                        if to.send(chunk.data).await.is_err() {
                            // The receiver failed, and its error is the one that is reported.
                            return Ok(());
                        }
                    }
                    Ok(None) if Digest(hash.clone().finalize().into()) == digest => return Ok(()),
                    // Whose bytes were wrong cannot be told when several gave some. A controller
                    // whose own copy is damaged sets it aside, so the same again goes better.
                    Ok(None) => return Err(TransferError::Corrupt(digest)),
                    Err(status) => {
                        last = last.or_worse(failure(digest, status));
                        break;
                    }
                }
            }
        }
        Err(last)
    }

    /// Uploads a file; durable on a majority when it returns.
    pub async fn upload(&self, digest: Digest, file: &Path) -> Result<(), TransferError> {
        let mut last = TransferError::NoController;
        for channel in self.each() {
            let open = |source| TransferError::Io {
                action: "open",
                path: file.into(),
                source,
            };
            let mut from = File::open(file).await.map_err(open)?;
            let (sender, chunks) = mpsc::channel(PIECES);
            let reading = async move {
                loop {
                    let mut data = vec![0; CHUNK];
                    let length = from.read(&mut data).await?;
                    if length == 0 {
                        return Ok::<_, io::Error>(());
                    }
                    data.truncate(length);
                    if sender
                        .send(v1::ArtifactChunk { data: data.into() })
                        .await
                        .is_err()
                    {
                        // The controller answered before the end; its answer says why.
                        return Ok(());
                    }
                }
            };
            let mut client = ManagementClient::new(channel);
            let (read, answer) =
                tokio::join!(reading, client.put_artifact(ReceiverStream::new(chunks)));
            read.map_err(|source| TransferError::Io {
                action: "read",
                path: file.into(),
                source,
            })?;
            match answer {
                Ok(answer) if answer.get_ref().digest == digest.to_wire() => return Ok(()),
                Ok(_) => return Err(TransferError::Corrupt(digest)),
                Err(status) => last = failure(digest, status),
            }
        }
        Err(last)
    }
}

fn failure(digest: Digest, status: Status) -> TransferError {
    match status.code() {
        Code::NotFound => TransferError::Missing(digest),
        Code::ResourceExhausted | Code::OutOfRange => TransferError::TooLarge,
        _ => TransferError::Unavailable(Box::new(status)),
    }
}

#[async_trait]
impl ArtifactSource for Controllers {
    async fn download(&self, digest: Digest, to: &Path) -> Result<(), TransferError> {
        let failed = |action| {
            move |source| TransferError::Io {
                action,
                path: to.to_owned(),
                source,
            }
        };
        let mut file = File::create_new(to).await.map_err(failed("create"))?;
        let (sender, mut pieces) = mpsc::channel::<Bytes>(PIECES);
        let writing = async move {
            while let Some(piece) = pieces.recv().await {
                file.write_all(&piece).await?;
            }
            file.flush().await
        };
        let (written, fetched) = tokio::join!(writing, self.pieces(digest, sender));
        written.map_err(failed("write"))?;
        fetched
    }
}
