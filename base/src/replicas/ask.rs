//! One question, put to as many servers as it takes.

use std::{collections::HashMap, future::Future, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::{Code, Status, transport::Channel};

use super::{Replicas, Server};
use crate::Backoff;

/// How a question is put.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// A server that has not answered by then is still waited for, and the next one asked beside
    /// it.
    pub hedge: Duration,
    /// One that has not answered by then is taken for gone, and asked again.
    pub attempt: Duration,
    /// Pauses before a server that refused or failed is asked again.
    pub again_first: Duration,
    pub again_most: Duration,
}

impl Pace {
    /// For what only the leader does and is waited for: it is found soon after it leads.
    pub const URGENT: Self = Self {
        hedge: Duration::from_millis(100),
        attempt: Duration::from_secs(5),
        again_first: Duration::from_millis(10),
        again_most: Duration::from_millis(80),
    };
    /// For what only the leader does.
    pub const STEADY: Self = Self {
        hedge: Duration::from_millis(250),
        attempt: Duration::from_secs(10),
        again_first: Duration::from_millis(20),
        again_most: Duration::from_millis(500),
    };
    /// For what any server does, one after the other. A leader that is paused, with its connections
    /// open, holds up what was asked of it for this long.
    pub const PATIENT: Self = Self {
        hedge: Duration::from_millis(1_500),
        attempt: Duration::from_secs(5),
        again_first: Duration::from_millis(20),
        again_most: Duration::from_millis(500),
    };
}

/// Whether the same question may be put to another server, given that it may be put twice.
pub(super) fn is_transient(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable
            | Code::Aborted
            | Code::DeadlineExceeded
            | Code::Cancelled
            | Code::Unknown
    )
}

struct Turn {
    due: Instant,
    pause: Backoff,
    asking: bool,
    asked: bool,
}

impl Replicas {
    /// Asks until some server answers, with a result or with an error that another one would give
    /// too, or until the deadline, which gives the last error. The question must be safe to put to
    /// several servers, at the same time and again. `doubt` hears of every failed attempt.
    pub async fn ask<T, F>(
        &self,
        pace: Pace,
        deadline: Instant,
        call: impl Fn(Channel) -> F,
        mut doubt: impl FnMut(&Status),
    ) -> Result<(Server, T), Status>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let began = Instant::now();
        let mut turns: HashMap<Arc<str>, Turn> = HashMap::new();
        let mut asked = FuturesUnordered::new();
        let mut last = None;
        loop {
            let now = Instant::now();
            let mut next = deadline;
            // Anew each time: the list may have changed.
            for (turn, server) in (0..).zip(self.each()) {
                let turn = turns
                    .entry(Arc::clone(&server.address))
                    .or_insert_with(|| Turn {
                        due: began + pace.hedge * turn,
                        pause: Backoff::new(pace.again_first, pace.again_most),
                        asking: false,
                        asked: false,
                    });
                if turn.asking {
                    continue;
                }
                if turn.due > now {
                    next = next.min(turn.due);
                    continue;
                }
                (turn.asking, turn.asked) = (true, true);
                let answer = timeout_at((now + pace.attempt).min(deadline), call(server.channel()));
                asked.push(async move {
                    let late = |_| Status::deadline_exceeded("no answer in time");
                    (server, answer.await.map_err(late).and_then(|answer| answer))
                });
            }
            let (server, status) = tokio::select! {
                Some((server, answer)) = asked.next(), if !asked.is_empty() => match answer {
                    Ok(answer) => return Ok((server, answer)),
                    Err(status) if is_transient(&status) => (server, status),
                    Err(status) => return Err(status),
                },
                () = sleep_until(next) => {
                    if next < deadline {
                        continue;
                    }
                    return Err(last.unwrap_or_else(|| {
                        Status::deadline_exceeded("no controller answered in time")
                    }));
                }
            };
            doubt(&status);
            let now = Instant::now();
            if let Some(turn) = turns.get_mut(&server.address) {
                turn.asking = false;
                turn.due = now + turn.pause.wait();
            }
            // Whoever was named is asked next, and all who were not asked yet where nobody was.
            match self.hinted(&status) {
                Some(leader) if leader != server => {
                    let turn = turns.entry(leader.address).or_insert_with(|| Turn {
                        due: now,
                        pause: Backoff::new(pace.again_first, pace.again_most),
                        asking: false,
                        asked: false,
                    });
                    if !turn.asked {
                        turn.due = now;
                    }
                }
                _ => {
                    let mut waiting: Vec<_> = turns.values_mut().filter(|t| !t.asked).collect();
                    waiting.sort_by_key(|turn| turn.due);
                    if let Some(turn) = waiting.first_mut() {
                        turn.due = now;
                    }
                }
            }
            last = Some(status);
        }
    }
}
