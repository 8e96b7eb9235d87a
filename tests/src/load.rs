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

#[derive(Debug)]
pub struct Load {
    stop: watch::Sender<bool>,
    task: JoinHandle<Report>,
}

impl Load {
    /// Starts GETs of `url`, one every `1/rate` seconds.
    pub fn start(url: String, rate: u32) -> Self {
        let (stop, mut stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            let client = Client::new(None);
            let mut ticks = interval(Duration::from_secs(1) / rate);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let mut running = JoinSet::new();
            let mut report = Report::default();
            loop {
                tokio::select! {
                    _ = ticks.tick() => {
                        let (client, url) = (client.clone(), url.clone());
                        running.spawn(async move {
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
        Self { stop, task }
    }

    /// Waits for the requests that are under way.
    pub async fn stop(self) -> Report {
        let _ = self.stop.send(true);
        self.task.await.expect("the load does not panic")
    }
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
