//! The stream to the leader: desired state down, observed state up.
//!
//! One session at a time. A gap, a refused stamp or a broken stream ends it and the next one
//! starts from a snapshot. While there is none, what runs goes on running.

use std::{sync::Arc, time::Duration};

use coracle_base::{Backoff, Shutdown, replicas::Pace};
use coracle_model::Stamp;
use coracle_proto::{
    ConvertError,
    v1::{self, agent_message, agents_client::AgentsClient, controller_message},
};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval_at, sleep_until},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};

use crate::{
    agent::Shared,
    instances::chain,
    ledger::{Ledger, LedgerError},
    metrics,
    orders::{self, Refused},
};

/// A snapshot holds the environment of every instance, up to 32 KiB each.
const MESSAGE_BYTES: usize = 64 << 20;
/// The number of a session's first report.
const HELLO: u64 = 1;
/// Messages on their way to the network.
const OUTGOING: usize = 16;
/// A further report goes out before the last one is acknowledged only after this: so reports
/// follow each other at the leader's pace, and changes in between share one.
const REPORT_PACE: Duration = Duration::from_millis(100);

/// The tuning of sessions.
#[derive(Debug, Clone)]
pub struct SessionLimits {
    /// A report is sent at least this often.
    pub report_every: Duration,
    /// A look for the leader goes on for this long before it counts as failed.
    pub connect_within: Duration,
    /// A leader that says nothing for this long, not even an acknowledgement, is given up.
    pub silent_after: Duration,
    /// Between sessions: the first wait, doubling up to the last.
    pub retry_first: Duration,
    pub retry_most: Duration,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self {
            report_every: Duration::from_secs(5),
            connect_within: Duration::from_secs(5),
            silent_after: Duration::from_secs(20),
            retry_first: Duration::from_millis(50),
            retry_most: Duration::from_secs(3),
        }
    }
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("the agent is ending")]
    Shutdown,
    #[error("the leader was silent for too long")]
    Silent,
    #[error("the controller ended the session")]
    Closed,
    #[error("the session broke")]
    Broken(#[source] Box<Status>),
    #[error(transparent)]
    Refused(Refused),
    #[error("cannot record the leader's term")]
    Ledger(#[source] LedgerError),
}

/// Follows whoever leads until the shutdown.
pub(crate) async fn run(shared: &Arc<Shared>, ledger: Ledger, shutdown: &Shutdown) {
    let mut follower = Follower {
        shared,
        ledger: Some(ledger),
        shutdown,
    };
    let limits = &shared.limits.session;
    let mut backoff = Backoff::new(limits.retry_first, limits.retry_most);
    loop {
        let mut followed = false;
        let ended = follower.session(&mut followed).await;
        if matches!(ended, Ended::Shutdown) {
            return;
        }
        shared.health.set_session(Err(chain(&ended)));
        if followed {
            backoff.reset();
            tracing::info!(reason = chain(&ended), "session ended");
        } else {
            tracing::debug!(reason = chain(&ended), "no session");
        }
        let wait = spread(backoff.wait(), shared.reporter.facts.id.0.as_u128());
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = shutdown.requested() => return,
        }
    }
}

/// Between three quarters and five quarters of a wait, the same for one node each time: a crowd
/// of agents that lost one leader does not come back at one moment.
fn spread(wait: Duration, node: u128) -> Duration {
    let share = u32::try_from(node % 512).expect("less than 512");
    wait * (768 + share) / 1024
}

struct Follower<'a> {
    shared: &'a Arc<Shared>,
    /// Away only while a thread writes it.
    ledger: Option<Ledger>,
    shutdown: &'a Shutdown,
}

/// The sending half, and what it has told.
struct Upward {
    sender: mpsc::Sender<v1::AgentMessage>,
    /// Of the newest report.
    number: u64,
    /// When the newest report left, until it is acknowledged.
    unacknowledged: Option<Instant>,
    /// Something changed since the newest report.
    dirty: bool,
    /// There may be something to say about builds.
    builds: bool,
}

impl Follower<'_> {
    fn ledger(&mut self) -> &mut Ledger {
        self.ledger
            .as_mut()
            .expect("only away inside accept_snapshot")
    }

    /// With whichever controller leads. All of them are asked while none does.
    async fn session(&mut self, followed: &mut bool) -> Ended {
        let shared = Arc::clone(self.shared);
        shared.instances.new_session();
        shared.builds.tell_again();
        let accepted = self.ledger().fence().accepted();
        let open = |channel: Channel| {
            let (sender, outgoing) = mpsc::channel(OUTGOING);
            let hello = shared.reporter.report(HELLO, accepted);
            let hello = agent_message::Body::Hello(hello);
            // A fresh channel has room.
            let _ = sender.try_send(v1::AgentMessage { body: Some(hello) });
            let mut client = AgentsClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
            async move {
                let inbound = client.session(ReceiverStream::new(outgoing)).await?;
                Ok((sender, inbound.into_inner()))
            }
        };
        let deadline = Instant::now() + shared.limits.session.connect_within;
        let replicas = shared.controllers.replicas();
        let opening = replicas.ask(Pace::STEADY, deadline, open, |_| ());
        let opened = tokio::select! {
            opened = opening => opened,
            () = self.shutdown.requested() => return Ended::Shutdown,
        };
        let (leader, (sender, inbound)) = match opened {
            Ok(opened) => opened,
            Err(status) => return Ended::Broken(Box::new(status)),
        };
        metrics::session_opened();
        let mut upward = Upward {
            sender,
            number: HELLO,
            unacknowledged: Some(Instant::now()),
            dirty: false,
            builds: true,
        };
        let ended = self.converse(inbound, &mut upward, followed).await;
        if *followed {
            replicas.leads(&leader);
        }
        if matches!(ended, Ended::Refused(Refused::Stale { .. }) | Ended::Silent) {
            replicas.avoid(&leader);
        }
        ended
    }

    async fn converse(
        &mut self,
        mut inbound: Streaming<v1::ControllerMessage>,
        upward: &mut Upward,
        followed: &mut bool,
    ) -> Ended {
        let shared = Arc::clone(self.shared);
        let limits = &shared.limits.session;
        let every = limits.report_every;
        let mut tick = interval_at(Instant::now() + every, every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        let sender = upward.sender.clone();
        loop {
            let paced = upward.unacknowledged.map(|sent| sent + REPORT_PACE);
            if upward.dirty && paced.is_none_or(|at| at <= Instant::now()) {
                self.report(upward, agent_message::Body::Report);
            }
            let paced = paced
                .filter(|_| upward.dirty)
                .unwrap_or(heard + limits.silent_after);
            tokio::select! {
                // Orders first: a cold start waits for them.
                biased;
                message = inbound.message() => {
                    heard = Instant::now();
                    let message = match message {
                        Ok(Some(message)) => message,
                        Ok(None) => return Ended::Closed,
                        Err(status) => return Ended::Broken(Box::new(status)),
                    };
                    if let Err(ended) = self.handle(message, upward, followed).await {
                        return ended;
                    }
                }
                () = self.shutdown.requested() => return Ended::Shutdown,
                () = shared.instances.change() => upward.dirty = true,
                () = shared.builds.change() => upward.builds = true,
                permit = sender.reserve(), if upward.builds => {
                    let Ok(permit) = permit else { return Ended::Closed };
                    match shared.builds.message() {
                        Some(body) => permit.send(v1::AgentMessage { body: Some(body) }),
                        None => upward.builds = false,
                    }
                }
                _ = tick.tick() => {
                    upward.dirty = true;
                    shared.builds.tell_again();
                }
                () = sleep_until(paced) => {
                    if heard.elapsed() >= limits.silent_after {
                        return Ended::Silent;
                    }
                }
            }
        }
    }

    /// Sends a complete report, or leaves it for later when the stream is full.
    fn report(
        &mut self,
        upward: &mut Upward,
        kind: impl FnOnce(v1::Report) -> agent_message::Body,
    ) {
        let accepted = self.ledger().fence().accepted();
        if let Ok(permit) = upward.sender.try_reserve() {
            upward.number += 1;
            let body = kind(self.shared.reporter.report(upward.number, accepted));
            permit.send(v1::AgentMessage { body: Some(body) });
            upward.dirty = false;
        }
        upward.unacknowledged = Some(Instant::now());
    }

    async fn handle(
        &mut self,
        message: v1::ControllerMessage,
        upward: &mut Upward,
        followed: &mut bool,
    ) -> Result<(), Ended> {
        self.shared
            .controllers
            .replicas()
            .learn(&message.controllers);
        let body = match message.body {
            None if !message.controllers.is_empty() => return Ok(()),
            body => body.ok_or_else(|| ConvertError::missing("body")),
        };
        match body.map_err(Refused::Malformed)? {
            controller_message::Body::Snapshot(snapshot) => {
                let (stamp, desired) = orders::snapshot(self.ledger().fence(), snapshot)?;
                self.accept_snapshot(stamp).await?;
                self.shared.replace(desired, self.shutdown);
                self.shared.health.set_session(Ok(()));
                *followed = true;
                // Tells the leader which stamp is accepted.
                upward.dirty = true;
            }
            controller_message::Body::Delta(delta) => {
                let stamp = orders::delta(self.ledger().fence(), *followed, &delta)?;
                self.shared
                    .change(delta, self.shutdown)
                    .map_err(Refused::Malformed)?;
                self.ledger().accept_delta(stamp);
            }
            controller_message::Body::Ack(ack) => {
                self.shared.instances.acknowledged(ack.number);
                if ack.number >= upward.number {
                    upward.unacknowledged = None;
                }
                if *followed && self.shared.instances.counts().exited > 0 {
                    self.shared.reconcile(self.shutdown);
                }
            }
        }
        Ok(())
    }

    /// On another thread, since a new term is written to the disk.
    async fn accept_snapshot(&mut self, stamp: Stamp) -> Result<(), Ended> {
        let mut ledger = self
            .ledger
            .take()
            .expect("only away inside accept_snapshot");
        let writing = tokio::task::spawn_blocking(move || {
            let result = ledger.accept_snapshot(stamp);
            (ledger, result)
        });
        let (ledger, result) = writing.await.expect("writing the ledger does not panic");
        self.ledger = Some(ledger);
        result.map_err(Ended::Ledger)
    }
}

impl From<Refused> for Ended {
    fn from(refused: Refused) -> Self {
        match &refused {
            Refused::Stale { .. } => metrics::order_refused("stale"),
            Refused::Gap { .. } => metrics::order_refused("gap"),
            Refused::Malformed(_) => {}
        }
        Self::Refused(refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_spread_around_what_was_asked() {
        let second = Duration::from_secs(1);
        assert_eq!(spread(second, 0), second * 3 / 4);
        let most = spread(second, 511);
        assert!(most > second && most < second * 5 / 4, "{most:?}");
    }
}
