//! Faults of controllers: nothing acknowledged is lost, no read is stale, warm calls notice nothing.

use std::time::Duration;

use coracle_tests::{Cluster, Registers, eventually, load::Load, registers::Tally};
use rustix::process::Signal;
use serde_json::json;
use tokio::time::Instant;

use crate::{
    Options,
    table::{Table, drawn},
};

const WRITERS: usize = 64;
const WRITES_PER_SECOND: u32 = 1_000;
/// Between two faults, so that each meets a settled cluster.
const SETTLE_WRITES: u64 = 500;
const RECOVER: Duration = Duration::from_secs(30);

struct Scene {
    cluster: Cluster,
    registers: Registers,
    warm: Load,
}

impl Scene {
    async fn start() -> Self {
        let cluster = Cluster::start(3, 1, 2).await;
        cluster
            .deploy("g1", "warm", json!({"scale": {"min": 1, "max": 10}}))
            .await;
        cluster
            .ready_instances("g1", "warm", 1, Duration::from_secs(20))
            .await;
        let _first = cluster.call("g1", "warm").await.ok();
        let gateways = ["g1", "g2"].map(|g| cluster.url(g, 8081)).into();
        let registers =
            Registers::start(cluster.admin.clone(), gateways, WRITERS, WRITES_PER_SECOND).await;
        let warm = Load::start(cluster.invoke("g1", "warm"), 100);
        Self {
            cluster,
            registers,
            warm,
        }
    }

    /// Waits until this many more writes have been acknowledged; how long the first one took.
    async fn more_writes(&self, count: u64) -> Duration {
        let from = self.registers.acknowledged().await;
        let began = Instant::now();
        let _first = eventually(
            "a write is acknowledged",
            RECOVER,
            || self.registers.acknowledged(),
            |now| *now > from,
        )
        .await;
        let first = began.elapsed();
        let _more = eventually(
            "writes go on",
            RECOVER,
            || self.registers.acknowledged(),
            |now| *now >= from + count,
        )
        .await;
        first
    }

    async fn finish(self, table: &Table) -> (Tally, Vec<String>) {
        let tally = self.registers.stop().await;
        let warm = self.warm.stop().await;
        let mut wrong = tally.violations.clone();
        let failed = warm.failures();
        if !failed.is_empty() {
            wrong.push(format!("warm calls failed: {failed:?}"));
        }
        table.note(&format!(
            "writes acknowledged {}, unknown {}, refused {:?}; reads {}; longest gap between \
             acknowledged writes {} ms; warm calls {}, failed {}",
            tally.acknowledged,
            tally.unknown,
            tally.refused,
            tally.reads,
            tally.longest_gap.as_millis(),
            warm.total(),
            failed.values().sum::<u64>(),
        ));
        (tally, wrong)
    }
}

pub(crate) async fn leader_kill(options: Options, table: &mut Table) {
    let mut scene = Scene::start().await;
    let mut gaps = Vec::new();
    for _ in 0..options.runs {
        let _settled = scene.more_writes(SETTLE_WRITES).await;
        let leader = scene.cluster.leader().await;
        scene.cluster.kill(&leader);
        let gap = scene.more_writes(SETTLE_WRITES).await;
        gaps.push(gap);
        scene.cluster.restart(&leader).await;
        table.fault(
            &format!(
                "{leader} killed; first acknowledged write after {} ms",
                gap.as_millis()
            ),
            &[],
        );
    }
    table.spread("from the kill to the first acknowledged write", gaps);
    let (_, wrong) = scene.finish(table).await;
    table.fault("the whole history", &wrong);
}

pub(crate) async fn all_kill(options: Options, table: &mut Table) {
    let mut scene = Scene::start().await;
    let mut gaps = Vec::new();
    for _ in 0..options.runs {
        let _settled = scene.more_writes(SETTLE_WRITES).await;
        for name in ["c1", "c2", "c3"] {
            scene.cluster.kill(name);
        }
        let began = Instant::now();
        for name in ["c1", "c2", "c3"] {
            scene.cluster.spawn(name, &[]);
        }
        let _first = scene.more_writes(1).await;
        gaps.push(began.elapsed());
        table.fault(
            &format!(
                "writes again {} ms after the restart",
                began.elapsed().as_millis()
            ),
            &[],
        );
        for name in ["c1", "c2", "c3"] {
            scene.cluster.ready(name).await;
        }
    }
    table.spread("from the restart to the first acknowledged write", gaps);
    let (_, wrong) = scene.finish(table).await;
    table.fault("the whole history", &wrong);
}

pub(crate) async fn leader_pause(options: Options, table: &mut Table) {
    let scene = Scene::start().await;
    let mut gaps = Vec::new();
    for run in 0..options.runs {
        let _settled = scene.more_writes(SETTLE_WRITES).await;
        let leader = scene.cluster.leader().await;
        let pause = Duration::from_secs(1 + drawn(options.seed, u64::from(run), 10));
        scene.cluster.signal(&leader, Signal::STOP);
        let began = Instant::now();
        let gap = scene.more_writes(1).await;
        gaps.push(gap);
        // The pause is the fault: its length is not waited for, it is what is done.
        tokio::time::sleep_until(began + pause).await;
        scene.cluster.signal(&leader, Signal::CONT);
        table.fault(
            &format!(
                "{leader} stopped for {} s; first acknowledged write after {} ms",
                pause.as_secs(),
                gap.as_millis()
            ),
            &[],
        );
    }
    table.spread("from the stop to the first acknowledged write", gaps);
    let (_, wrong) = scene.finish(table).await;
    table.fault("the whole history", &wrong);
}
