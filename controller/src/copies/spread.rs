//! An upload on its way to this controller's disk and to the other voters at the same time.
//!
//! Pieces go on at the pace of the majority. Who is slower gets a little patience, once per upload,
//! and is then cut; `repair` brings it the artifact later. Memory is bounded by the queues.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use coracle_model::Digest;
use coracle_proto::{
    Wire as _,
    v1::{self, artifact_peers_client::ArtifactPeersClient, store_artifact_frame::Body},
};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::{Instant, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Copies, fellows::majority};
use crate::artifacts::{ArtifactError, Upload};

/// Pieces of one upload on their way to one peer.
const QUEUE: usize = 4;
/// Largest piece on the wire.
const PIECE: usize = 256 * 1024;

/// How long peers may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Waited in all for peers that are slower than the majority.
    pub(super) patience: Duration,
    /// Without progress on a majority, the upload fails.
    pub(super) stall: Duration,
    /// From the last piece to a majority's confirmation.
    pub(super) confirm: Duration,
}

pub(super) const PACE: Pace = Pace {
    patience: Duration::from_secs(2),
    stall: Duration::from_secs(20),
    confirm: Duration::from_secs(60),
};

#[derive(Debug, thiserror::Error)]
pub(crate) enum SpreadError {
    #[error(transparent)]
    Here(#[from] ArtifactError),
    #[error("this controller is in no group yet")]
    NoGroup,
    #[error("not stored: {have} of {voters} controllers have it, {needed} are needed ({reasons})")]
    NoMajority {
        have: usize,
        voters: usize,
        needed: usize,
        reasons: String,
    },
}

/// An upload that is being spread. Dropped before [`Spread::finish`], it leaves nothing.
#[derive(Debug)]
pub(crate) struct Spread {
    here: Upload,
    /// This controller's own copy counts.
    votes: bool,
    voters: usize,
    needed: usize,
    peers: BTreeMap<u64, Branch>,
    answers: JoinSet<(u64, Result<v1::StoreArtifactResponse, Status>)>,
    /// Why peers fell away.
    failed: BTreeMap<u64, String>,
    patience: Duration,
    pace: Pace,
}

#[derive(Debug)]
struct Branch {
    queue: mpsc::Sender<v1::StoreArtifactFrame>,
    task: AbortHandle,
}

impl Copies {
    pub(crate) async fn spread(&self) -> Result<Spread, SpreadError> {
        self.spread_at(PACE).await
    }

    pub(super) async fn spread_at(&self, pace: Pace) -> Result<Spread, SpreadError> {
        let here = self.artifacts.upload().await?;
        let (me, mut voters) = (self.fellows.me(), self.fellows.voters());
        if voters.is_empty() {
            return Err(SpreadError::NoGroup);
        }
        if self.artifacts.is_shared() {
            // The store's own word is enough.
            voters = [me].into();
        }
        let mut spread = Spread {
            here,
            votes: voters.contains(&me),
            voters: voters.len(),
            needed: majority(&voters),
            peers: BTreeMap::new(),
            answers: JoinSet::new(),
            failed: BTreeMap::new(),
            patience: pace.patience,
            pace,
        };
        for id in voters.into_iter().filter(|id| *id != me) {
            match self.fellows.dial(id) {
                Some(channel) => {
                    let (queue, frames) = mpsc::channel(QUEUE);
                    let task = spread.answers.spawn(async move {
                        let frames = ReceiverStream::new(frames);
                        let answer = ArtifactPeersClient::new(channel).store(frames).await;
                        (id, answer.map(tonic::Response::into_inner))
                    });
                    spread.peers.insert(id, Branch { queue, task });
                }
                None => {
                    spread.failed.insert(id, "its address is not known".into());
                }
            }
        }
        Ok(spread)
    }
}

impl Spread {
    pub(crate) async fn write(&mut self, mut data: Bytes) -> Result<(), SpreadError> {
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(PIECE));
            let frame = v1::StoreArtifactFrame {
                body: Some(Body::Data(piece.clone())),
            };
            // Both at once: a peer has its piece while it is written here.
            let (offered, written) = {
                let Self {
                    here, peers, pace, ..
                } = self;
                let own = usize::from(self.votes);
                let needed = self.needed.saturating_sub(own);
                tokio::join!(
                    offer(peers, frame, needed, self.patience, *pace),
                    here.write(piece)
                )
            };
            written?;
            self.took(offered)?;
        }
        Ok(())
    }

    /// Durable on a majority when it returns well. The others go on by themselves.
    pub(crate) async fn finish(mut self) -> Result<(Digest, u64), SpreadError> {
        let (digest, size) = (self.here.digest(), self.here.bytes());
        let end = v1::StoreArtifactEnd {
            digest: digest.to_wire(),
            size,
        };
        let frame = v1::StoreArtifactFrame {
            body: Some(Body::End(end)),
        };
        let needed = self.needed.saturating_sub(usize::from(self.votes));
        let offered = offer(&self.peers, frame, needed, self.patience, self.pace).await;
        self.cut(offered);
        self.is_possible()?;
        let Self {
            here,
            peers,
            mut answers,
            mut failed,
            ..
        } = self;
        // Their queues end here; what is in them still arrives.
        let asked: Vec<u64> = peers.into_keys().collect();
        let mut have = usize::from(self.votes);
        let deadline = Instant::now() + self.pace.confirm;
        let asking = async {
            while have < self.needed {
                let answer = match timeout_at(deadline, answers.join_next()).await {
                    Ok(Some(answer)) => answer,
                    Ok(None) => break,
                    Err(_) => {
                        for id in &asked {
                            let silent = || "it did not answer in time".to_owned();
                            failed.entry(*id).or_insert_with(silent);
                        }
                        break;
                    }
                };
                match answer {
                    Ok((_, Ok(answer))) if answer.digest == digest.to_wire() => have += 1,
                    Ok((id, Ok(_))) => {
                        failed.insert(id, "it stored other bytes".into());
                    }
                    Ok((id, Err(status))) => {
                        failed.insert(id, status.message().to_owned());
                    }
                    // Cut; the reason is known.
                    Err(_) => {}
                }
            }
        };
        let (stored, ()) = tokio::join!(here.finish(), asking);
        stored?;
        if have < self.needed {
            return Err(no_majority(have, self.voters, self.needed, &failed));
        }
        if !answers.is_empty() {
            // Slower ones finish without anybody waiting, or fail and are repaired.
            answers.detach_all();
        }
        Ok((digest, size))
    }

    fn took(&mut self, offered: Offered) -> Result<(), SpreadError> {
        // Whoever ended before the end says why.
        while let Some(answer) = self.answers.try_join_next() {
            if let Ok((id, answer)) = answer {
                let reason = match answer {
                    Ok(_) => "it ended early".to_owned(),
                    Err(status) => status.message().to_owned(),
                };
                tracing::warn!(peer = id, reason, "a peer fell away from an upload");
                self.peers.remove(&id);
                self.failed.insert(id, reason);
            }
        }
        self.cut(offered);
        self.is_possible()
    }

    fn cut(&mut self, offered: Offered) {
        self.patience = offered.patience;
        for id in offered.gone {
            if let Some(branch) = self.peers.remove(&id) {
                branch.task.abort();
                tracing::warn!(peer = id, "cut from an upload: it is too slow");
                self.failed.insert(id, "it was too slow".to_owned());
            }
        }
    }

    fn is_possible(&self) -> Result<(), SpreadError> {
        let left = self.peers.len() + usize::from(self.votes);
        if left < self.needed {
            return Err(no_majority(left, self.voters, self.needed, &self.failed));
        }
        Ok(())
    }
}

fn no_majority(
    have: usize,
    voters: usize,
    needed: usize,
    failed: &BTreeMap<u64, String>,
) -> SpreadError {
    let reasons = failed.iter().map(|(id, why)| format!("member {id}: {why}"));
    SpreadError::NoMajority {
        have,
        voters,
        needed,
        reasons: reasons.collect::<Vec<_>>().join("; "),
    }
}

#[derive(Debug)]
struct Offered {
    gone: Vec<u64>,
    /// What is left of it.
    patience: Duration,
}

/// Gives a frame to every peer's queue: waits for `needed` of them as long as the upload may stall,
/// and for the others as long as there is patience.
async fn offer(
    peers: &BTreeMap<u64, Branch>,
    frame: v1::StoreArtifactFrame,
    needed: usize,
    patience: Duration,
    pace: Pace,
) -> Offered {
    let mut sending: FuturesUnordered<_> = peers
        .iter()
        .map(|(id, branch)| {
            let frame = frame.clone();
            async move { (*id, branch.queue.send(frame).await.is_ok()) }
        })
        .collect();
    let mut waiting: Vec<u64> = peers.keys().copied().collect();
    let (mut gone, mut taken) = (Vec::new(), 0);
    let mut deadline = Instant::now() + pace.stall;
    let mut since = None;
    loop {
        if taken >= needed && since.is_none() {
            since = Some(Instant::now());
            deadline = Instant::now() + patience;
        }
        match timeout_at(deadline, sending.next()).await {
            Ok(Some((id, took))) => {
                waiting.retain(|other| *other != id);
                if took {
                    taken += 1;
                } else {
                    gone.push(id);
                }
            }
            Ok(None) => break,
            Err(_) => break,
        }
    }
    gone.append(&mut waiting);
    let spent = since.map_or(Duration::ZERO, |since| since.elapsed());
    Offered {
        gone,
        patience: patience.saturating_sub(spent),
    }
}
