//! A write load whose history can be checked: registers that one writer each counts up, read by
//! others all the while.
//!
//! The registers are the descriptions of API keys. Since each has one writer, the history is
//! linearizable only if every read lies between the last value acknowledged, or seen by any reader,
//! before the read began and the last value sent before it ended. A write whose outcome stayed
//! unknown may take effect at any later time, so its value is let pass whenever it is read.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use http::Method;
use serde_json::json;
use tokio::{
    sync::Mutex,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use crate::client::Client;

const PATIENCE: Duration = Duration::from_secs(10);

/// One register's bounds.
#[derive(Debug, Default)]
struct Bounds {
    /// The highest value that was acknowledged.
    acknowledged: AtomicU64,
    /// The highest value that may have been written.
    sent: AtomicU64,
    /// The highest value that any read has returned.
    seen: AtomicU64,
    unknown: std::sync::Mutex<BTreeSet<u64>>,
}

impl Bounds {
    fn unknown(&self) -> std::sync::MutexGuard<'_, BTreeSet<u64>> {
        self.unknown
            .lock()
            .expect("never poisoned: no panic while held")
    }
}

/// What the load did and saw.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    pub acknowledged: u64,
    pub unknown: u64,
    /// Refused for sure: nobody led, say.
    pub refused: BTreeMap<String, u64>,
    pub reads: u64,
    /// Each a sentence; empty when all is well.
    pub violations: Vec<String>,
    /// Between two acknowledged writes of the whole load.
    pub longest_gap: Duration,
}

#[derive(Debug)]
pub struct Registers {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<()>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    client: Client,
    /// Addresses of the native API, one a gateway.
    gateways: Vec<String>,
    bounds: Vec<Bounds>,
    tally: Mutex<Tally>,
    began: Instant,
    /// Microseconds since `began` of the last acknowledged write.
    last: AtomicU64,
}

impl Registers {
    /// Makes the registers, then starts a writer a register, at `rate` writes a second over all,
    /// and a quarter as many readers.
    pub async fn start(client: Client, gateways: Vec<String>, writers: usize, rate: u32) -> Self {
        let shared = Arc::new(Shared {
            client,
            gateways,
            bounds: (0..writers).map(|_| Bounds::default()).collect(),
            tally: Mutex::default(),
            began: Instant::now(),
            last: AtomicU64::new(0),
        });
        for number in 0..writers {
            let url = format!("{}/api/v1/projects/default/keys", shared.gateways[0]);
            let body = json!({"name": format!("register-{number}"), "description": "0"});
            let _made = shared.client.json(Method::POST, &url, &body).await.ok();
        }
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        let pace = Duration::from_secs(1) * u32::try_from(writers).expect("few writers") / rate;
        for number in 0..writers {
            tasks.spawn(write(shared.clone(), stop.clone(), number, pace));
        }
        for number in 0..writers.div_ceil(4) {
            tasks.spawn(read(shared.clone(), stop.clone(), number, pace * 2));
        }
        Self {
            stop,
            tasks,
            shared,
        }
    }

    /// Writes acknowledged so far.
    pub async fn acknowledged(&self) -> u64 {
        self.shared.tally.lock().await.acknowledged
    }

    /// Ends the load, reads every register once more, and says what was seen.
    pub async fn stop(mut self) -> Tally {
        self.stop.store(true, SeqCst);
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("the load does not panic");
        }
        for number in 0..self.shared.bounds.len() {
            let deadline = Instant::now() + Duration::from_secs(30);
            while !read_once(&self.shared, number, number).await {
                assert!(
                    Instant::now() < deadline,
                    "register {number} cannot be read after the load ended"
                );
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        let tally = self.shared.tally.lock().await;
        tally.clone()
    }
}

async fn write(shared: Arc<Shared>, stop: Arc<AtomicBool>, number: usize, pace: Duration) {
    let mut ticks = interval(pace);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut value = 0;
    while !stop.load(SeqCst) {
        ticks.tick().await;
        value += 1;
        let bounds = &shared.bounds[number];
        bounds.sent.store(value, SeqCst);
        // Another gateway each time, so that no writer hides behind one gateway's connection.
        let turn = usize::try_from(value).expect("a small number") + number;
        let url = url(&shared, turn, number);
        let body = json!({"description": value.to_string()});
        let sent = shared.client.try_send(
            Method::PATCH,
            &url,
            &[("content-type", "application/json")],
            body.to_string(),
        );
        let outcome = timeout(PATIENCE, sent).await;
        let mut tally = shared.tally.lock().await;
        let unknown = || {
            bounds.unknown().insert(value);
            1
        };
        match outcome {
            Ok(Ok(answer)) if answer.status.is_success() => {
                bounds.acknowledged.store(value, SeqCst);
                tally.acknowledged += 1;
                let at = u64::try_from(shared.began.elapsed().as_micros()).expect("a short test");
                let before = shared.last.swap(at, SeqCst);
                if before > 0 {
                    let gap = Duration::from_micros(at.saturating_sub(before));
                    tally.longest_gap = tally.longest_gap.max(gap);
                }
            }
            Ok(Ok(answer)) => {
                let code = answer.json()["code"].as_str().unwrap_or("?").to_owned();
                if code.contains("unknown") {
                    tally.unknown += unknown();
                } else {
                    *tally
                        .refused
                        .entry(format!("{} {code}", answer.status))
                        .or_default() += 1;
                }
            }
            // No answer at all: it may have happened.
            Ok(Err(_)) | Err(_) => tally.unknown += unknown(),
        }
    }
}

async fn read(shared: Arc<Shared>, stop: Arc<AtomicBool>, reader: usize, pace: Duration) {
    let mut ticks = interval(pace);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut turn = reader;
    while !stop.load(SeqCst) {
        ticks.tick().await;
        turn += 1;
        read_once(&shared, turn, turn * 7 % shared.bounds.len()).await;
    }
}

/// False when no answer came.
async fn read_once(shared: &Shared, turn: usize, number: usize) -> bool {
    let bounds = &shared.bounds[number];
    let least = bounds
        .acknowledged
        .load(SeqCst)
        .max(bounds.seen.load(SeqCst));
    let url = url(shared, turn, number);
    let answer = timeout(
        PATIENCE,
        shared
            .client
            .try_send(Method::GET, &url, &[], String::new()),
    );
    let Ok(Ok(answer)) = answer.await else {
        return false;
    };
    if !answer.status.is_success() {
        return false;
    }
    let most = bounds.sent.load(SeqCst);
    let text = answer.json()["description"]
        .as_str()
        .unwrap_or("")
        .to_owned();
    let mut tally = shared.tally.lock().await;
    tally.reads += 1;
    match text.parse::<u64>() {
        Ok(value) if (least..=most).contains(&value) => {
            bounds.seen.fetch_max(value, SeqCst);
        }
        Ok(value) if bounds.unknown().contains(&value) => {}
        _ => tally.violations.push(format!(
            "register {number} read as {text:?}, not between {least} and {most}"
        )),
    }
    true
}

fn url(shared: &Shared, turn: usize, number: usize) -> String {
    let gateway = &shared.gateways[turn % shared.gateways.len()];
    format!("{gateway}/api/v1/projects/default/keys/register-{number}")
}
