//! Steady load: requests at a fixed rate, whether or not earlier ones have ended.

use std::{collections::BTreeMap, time::Duration};

use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{MissedTickBehavior, interval},
};

use crate::client::Client;

/// What came back, by status (or by the text of the failure), and the distinct bodies.
#[derive(Debug, Clone, Default)]
pub struct Report {
    pub outcomes: BTreeMap<String, u64>,
    pub bodies: BTreeMap<String, u64>,
}

impl Report {
    pub fn total(&self) -> u64 {
        self.outcomes.values().sum()
    }

    /// Everything that was not 200.
    pub fn failures(&self) -> BTreeMap<String, u64> {
        self.outcomes
            .clone()
            .into_iter()
            .filter(|(outcome, _)| outcome != "200 OK")
            .collect()
    }
}

/// How often a balancer asks whether a server takes new requests.
const READINESS_POLL: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub struct Load {
    stop: watch::Sender<bool>,
    sent: watch::Receiver<usize>,
    task: JoinHandle<Report>,
}

/// One server of several that answer the same.
#[derive(Debug, Clone)]
pub struct Target {
    pub url: String,
    /// Answers 200 while it takes new requests.
    pub readiness: String,
}

impl Load {
    /// Starts GETs of `url`, one every `1/rate` seconds.
    pub fn start(url: String, rate: u32) -> Self {
        Self::run(rate, move |_| Some(url.clone()))
    }

    /// Spreads the requests over the servers that say they are ready, as whatever stands in front
    /// of them would. While none is, a request counts as failed.
    pub fn balanced(targets: Vec<Target>, rate: u32) -> Self {
        let ready: Vec<_> = targets
            .iter()
            .map(|target| {
                (
                    target.url.clone(),
                    watch_readiness(target.readiness.clone()),
                )
            })
            .collect();
        Self::run(rate, move |turn| {
            let open: Vec<_> = ready.iter().filter(|(_, open)| *open.borrow()).collect();
            let (url, _) = open.get(turn.checked_rem(open.len())?)?;
            Some(url.clone())
        })
    }

    fn run(rate: u32, choose: impl Fn(usize) -> Option<String> + Send + 'static) -> Self {
        let (stop, mut stopped) = watch::channel(false);
        let (count, sent) = watch::channel(0);
        let task = tokio::spawn(async move {
            let client = Client::new(None);
            let mut ticks = interval(Duration::from_secs(1) / rate);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let mut running = JoinSet::new();
            let mut report = Report::default();
            for turn in 0.. {
                tokio::select! {
                    _ = ticks.tick() => {
                        count.send_replace(turn + 1);
                        let (client, url) = (client.clone(), choose(turn));
                        running.spawn(async move {
                            let url = url.ok_or("no server was ready")?;
                            client.try_send(http::Method::GET, &url, &[], "").await
                        });
                    }
                    Some(done) = running.join_next() => note(&mut report, done.expect("no panic")),
                    _ = stopped.changed() => break,
                }
            }
            while let Some(done) = running.join_next().await {
                note(&mut report, done.expect("no panic"));
            }
            report
        });
        Self { stop, sent, task }
    }

    /// Requests sent so far.
    pub fn sent(&self) -> usize {
        *self.sent.borrow()
    }

    /// Waits until this many requests have been sent.
    pub async fn has_sent(&self, count: usize) {
        let mut sent = self.sent.clone();
        let enough = sent.wait_for(|sent| *sent >= count).await;
        enough.expect("the load runs until it is stopped");
    }

    /// Waits for the requests that are under way.
    pub async fn stop(self) -> Report {
        let _ = self.stop.send(true);
        self.task.await.expect("the load does not panic")
    }
}

/// Ends with its last receiver.
fn watch_readiness(url: String) -> watch::Receiver<bool> {
    let (sender, receiver) = watch::channel(true);
    tokio::spawn(async move {
        let client = Client::new(None);
        let mut ticks = interval(READINESS_POLL);
        while !sender.is_closed() {
            ticks.tick().await;
            let answer = client.try_send(http::Method::GET, &url, &[], "").await;
            sender.send_replace(answer.is_ok_and(|answer| answer.status.is_success()));
        }
    });
    receiver
}

fn note(report: &mut Report, outcome: Result<crate::Answer, String>) {
    match outcome {
        Ok(answer) => {
            let body = answer.text();
            *report.bodies.entry(body.clone()).or_default() += 1;
            let label = if answer.status.is_success() {
                answer.status.to_string()
            } else {
                format!("{} {body}", answer.status)
            };
            *report.outcomes.entry(label).or_default() += 1;
        }
        Err(error) => *report.outcomes.entry(error).or_default() += 1,
    }
}
