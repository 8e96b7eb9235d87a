//! Who has what: asked before a write, a promotion or a removal relies on it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use coracle_model::Digest;
use coracle_proto::{Wire as _, v1};
use coracle_state::View;
use tokio::{
    task::JoinSet,
    time::{Instant, timeout_at},
};
use tonic::{Request, Status};

use super::{Copies, fellows::majority};

/// A first answer comes from memory and disk; whoever takes longer is taken for silent.
const ASK: Duration = Duration::from_secs(3);
/// The same about everything that is named.
const ASK_ALL: Duration = Duration::from_secs(10);
/// For a member that was told to bring what it lacks; its own repair goes on after that.
const FETCH_ALL: Duration = Duration::from_secs(60);
/// Digests in one question; a message may have 4 MiB.
const BATCH: usize = 20_000;

/// Whether a write may name these artifacts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Held {
    /// Each is on a majority, and nobody of it collects it for a grace period.
    Yes,
    /// No controller that answered has it, and a majority answered.
    Nowhere(Digest),
    /// Somebody has it, or may have it, and a majority does not.
    TooFew {
        digest: Digest,
        have: usize,
        needed: usize,
    },
}

/// Why a change of the group has to wait.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Lacking {
    #[error("member {member} does not answer about its artifacts: {reason}")]
    Silent { member: u64, reason: String },
    #[error("member {member} lacks {lacks} of {of} artifacts; it fetches them now")]
    Learner {
        member: u64,
        lacks: usize,
        of: usize,
    },
    #[error(
        "removing member {member} would leave {left} of {of} artifacts below a majority (such as \
         {example}); the others fetch them now"
    )]
    Removal {
        member: u64,
        left: usize,
        of: usize,
        example: Digest,
    },
}

#[derive(Debug, Clone, Copy)]
struct Question {
    hold: bool,
    fetch: bool,
    deadline: Instant,
}

impl Copies {
    /// For the leader, before it proposes a write that names these. Holders too few to be a majority
    /// are made more where that is possible before the deadline.
    pub(crate) async fn held(&self, digests: &[Digest], deadline: Instant) -> Held {
        let mut digests: Vec<Digest> = digests.to_vec();
        digests.sort();
        digests.dedup();
        if digests.is_empty() {
            return Held::Yes;
        }
        let voters = self.counted();
        let now = Instant::now();
        let half = deadline.saturating_duration_since(now) / 2;
        let first = Question {
            hold: true,
            fetch: false,
            deadline: now + half.min(ASK),
        };
        match self.ask_for(&digests, &voters, first).await {
            Held::TooFew { .. } => {
                let second = Question {
                    fetch: true,
                    deadline,
                    ..first
                };
                self.ask_for(&digests, &voters, second).await
            }
            other => other,
        }
    }

    /// For the leader, before it promotes a learner: whether it has everything that is named.
    pub(crate) async fn holds_all(&self, member: u64, view: &View) -> Result<(), Lacking> {
        if self.artifacts.is_shared() {
            return Ok(());
        }
        let named: Vec<Digest> = view.referenced_artifacts().into_iter().collect();
        let question = Question {
            hold: false,
            fetch: false,
            deadline: Instant::now() + ASK_ALL,
        };
        let missing = self.ask(member, &named, question).await;
        let missing = missing.map_err(|status| Lacking::Silent {
            member,
            reason: status.message().to_owned(),
        })?;
        if missing.is_empty() {
            return Ok(());
        }
        self.have_fetched([member], &missing);
        Err(Lacking::Learner {
            member,
            lacks: missing.len(),
            of: named.len(),
        })
    }

    /// For the leader, before it removes a member: whether everything that is named stays on a
    /// majority of those that remain.
    pub(crate) async fn spares(&self, member: u64, view: &View) -> Result<(), Lacking> {
        let mut remaining = self.fellows.voters();
        if self.artifacts.is_shared() || !remaining.remove(&member) || remaining.is_empty() {
            // A learner's copies count for nothing; that the last one stays is raft's concern.
            return Ok(());
        }
        let named: Vec<Digest> = view.referenced_artifacts().into_iter().collect();
        let question = Question {
            hold: false,
            fetch: false,
            deadline: Instant::now() + ASK_ALL,
        };
        let needed = majority(&remaining);
        let answers = self.ask_all(&named, &remaining, question).await;
        let below = below(&named, &answers, needed);
        match below.first() {
            None => Ok(()),
            Some((example, _)) => {
                let lacking: Vec<Digest> = below.iter().map(|(digest, _)| *digest).collect();
                self.have_fetched(remaining, &lacking);
                Err(Lacking::Removal {
                    member,
                    left: below.len(),
                    of: named.len(),
                    example: *example,
                })
            }
        }
    }

    /// Tells members to bring what they lack, without waiting for it.
    fn have_fetched(&self, members: impl IntoIterator<Item = u64>, digests: &[Digest]) {
        for id in members {
            let (own, digests) = (self.clone(), digests.to_vec());
            let question = Question {
                hold: true,
                fetch: true,
                deadline: Instant::now() + FETCH_ALL,
            };
            tokio::spawn(async move { own.ask(id, &digests, question).await });
        }
    }

    /// Which of these are not here, for a member that asks.
    pub(crate) async fn missing(
        &self,
        digests: Vec<Digest>,
        hold: bool,
        fetch: bool,
    ) -> Result<Vec<Digest>, crate::artifacts::ArtifactError> {
        let mut missing = Vec::new();
        for digest in digests {
            let here = if hold {
                self.artifacts.hold(digest).await?
            } else {
                self.artifacts.contains(digest).await?
            };
            let here = here || (fetch && self.fetch(digest).await.is_ok());
            if !here {
                missing.push(digest);
            }
        }
        Ok(missing)
    }

    fn counted(&self) -> BTreeSet<u64> {
        if self.artifacts.is_shared() {
            [self.fellows.me()].into()
        } else {
            self.fellows.voters()
        }
    }

    async fn ask_for(
        &self,
        digests: &[Digest],
        voters: &BTreeSet<u64>,
        question: Question,
    ) -> Held {
        let needed = majority(voters);
        let answers = self.ask_all(digests, voters, question).await;
        let below = below(digests, &answers, needed);
        let certain = answers.len() >= needed;
        match below.iter().find(|(_, have)| certain && *have == 0) {
            Some((digest, _)) => Held::Nowhere(*digest),
            None => below
                .first()
                .map_or(Held::Yes, |(digest, have)| Held::TooFew {
                    digest: *digest,
                    have: *have,
                    needed,
                }),
        }
    }

    /// What each lacks; who did not answer is not in it. Ends once a majority has everything.
    async fn ask_all(
        &self,
        digests: &[Digest],
        members: &BTreeSet<u64>,
        question: Question,
    ) -> BTreeMap<u64, BTreeSet<Digest>> {
        let needed = majority(members);
        let mut asking = JoinSet::new();
        for id in members.iter().copied() {
            let (own, digests) = (self.clone(), digests.to_vec());
            asking.spawn(async move { (id, own.ask(id, &digests, question).await) });
        }
        let mut answers = BTreeMap::new();
        while let Some(answer) = asking.join_next().await {
            match answer {
                Ok((id, Ok(missing))) => {
                    answers.insert(id, missing.into_iter().collect());
                }
                Ok((id, Err(status))) => {
                    tracing::debug!(member = id, %status, "no answer about artifacts");
                }
                Err(crashed) => tracing::error!(%crashed, "a question about artifacts"),
            }
            if answers
                .values()
                .filter(|missing: &&BTreeSet<Digest>| missing.is_empty())
                .count()
                >= needed
            {
                break;
            }
        }
        answers
    }

    async fn ask(
        &self,
        member: u64,
        digests: &[Digest],
        question: Question,
    ) -> Result<Vec<Digest>, Status> {
        let Question {
            hold,
            fetch,
            deadline,
        } = question;
        let late = |_| Status::deadline_exceeded("it did not answer in time");
        if member == self.fellows.me() {
            let here = self.missing(digests.to_vec(), hold, fetch);
            let here = timeout_at(deadline, here).await.map_err(late)?;
            return here.map_err(|error| Status::unavailable(error.to_string()));
        }
        let client = self.fellows.asking(member);
        let mut client = client.ok_or_else(|| Status::unavailable("its address is not known"))?;
        let mut missing = Vec::new();
        for batch in digests.chunks(BATCH) {
            let mut request = Request::new(v1::HaveArtifactsRequest {
                digests: batch.iter().map(Digest::to_wire).collect(),
                hold,
                fetch,
            });
            request.set_timeout(deadline.saturating_duration_since(Instant::now()));
            let answer = timeout_at(deadline, client.have(request)).await;
            for digest in answer.map_err(late)??.into_inner().missing {
                missing.push(Digest::from_wire("missing", digest)?);
            }
        }
        Ok(missing)
    }
}

/// Those that fewer than `needed` have, and how many do.
fn below(
    digests: &[Digest],
    answers: &BTreeMap<u64, BTreeSet<Digest>>,
    needed: usize,
) -> Vec<(Digest, usize)> {
    let counted = digests.iter().map(|digest| {
        let have = answers.values().filter(|missing| !missing.contains(digest));
        (*digest, have.count())
    });
    counted.filter(|(_, have)| *have < needed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_counted_and_silence_is_no_copy() {
        let [a, b] = [b"a", b"b"].map(|bytes| Digest::of(bytes));
        let answers = BTreeMap::from([(1, BTreeSet::new()), (2, BTreeSet::from([b]))]);
        assert_eq!(below(&[a, b], &answers, 2), [(b, 1)]);
        assert_eq!(below(&[a, b], &answers, 3), [(a, 2), (b, 1)]);
        assert_eq!(below(&[a, b], &answers, 1), []);
        assert_eq!(below(&[a], &BTreeMap::new(), 1), [(a, 0)]);
    }
}
