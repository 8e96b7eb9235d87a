//! Writes to a store for as long as it is let, and says what was acknowledged; later checks that
//! all of it is there. For `tests/faults`, which take the disk away in between.
//!
//!     store_faults write log|artifacts DIR FROM   prints each number once it is durable
//!     store_faults check log|artifacts DIR COUNT  fails unless 0..COUNT are there and whole
//!
//! `write` begins at FROM and ends with status 3 when the log's replica ended, as a controller
//! would. A failed upload is said (`failed N: why`) and tried again.

use std::{
    io::Write as _,
    path::Path,
    process::ExitCode,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use coracle_base::SystemClock;
use coracle_controller::artifacts::{Artifacts, FileStore};
use coracle_model::Digest;
use coracle_replica::{
    Command, Config, Machine, MachineError, NoPeers, ProposeError, Replica, SledLog,
};
use tokio::time::Instant;

type Failure = Box<dyn std::error::Error>;

/// Of artifacts; what a build's result has at least.
const ARTIFACT: usize = 1024 * 1024;
const WITHIN: Duration = Duration::from_secs(30);
const AGAIN: Duration = Duration::from_millis(20);

#[tokio::main]
async fn main() -> Result<ExitCode, Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [what, store, dir, number] = arguments.as_slice() else {
        return Err("write|check log|artifacts DIR NUMBER".into());
    };
    let (dir, number) = (Path::new(dir), number.parse::<u64>()?);
    match (what.as_str(), store.as_str()) {
        ("write", "log") => write_log(dir, number).await,
        ("write", "artifacts") => write_artifacts(dir, number).await,
        ("check", "log") => check_log(dir, number).await,
        ("check", "artifacts") => check_artifacts(dir, number).await,
        _ => Err("write|check log|artifacts DIR NUMBER".into()),
    }
}

fn acknowledged(number: u64) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{number}")?;
    out.flush()?;
    Ok(())
}

/// The numbers that were applied, in order.
#[derive(Default, Clone)]
struct Numbers(Arc<Mutex<Vec<u64>>>);

impl Numbers {
    fn all(&self) -> std::sync::MutexGuard<'_, Vec<u64>> {
        self.0.lock().expect("never poisoned: no panic while held")
    }
}

impl Machine for Numbers {
    type Response = ();

    fn apply(&mut self, command: Command<'_>) -> Result<(), MachineError> {
        let (number, filler) = command.bytes.split_at(8);
        let number = u64::from_be_bytes(number.try_into()?);
        if filler != self::filler(number) {
            return Err(format!("command {number} is not what was written").into());
        }
        self.all().push(number);
        Ok(())
    }

    fn batch_applied(&mut self, _: u64) {}

    fn snapshot(&self) -> Vec<u8> {
        self.all().iter().flat_map(|n| n.to_be_bytes()).collect()
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), MachineError> {
        let numbers = snapshot.chunks_exact(8).map(|number| {
            let number = number.try_into().expect("eight bytes");
            u64::from_be_bytes(number)
        });
        *self.all() = numbers.collect();
        Ok(())
    }
}

/// From nothing to most of what an entry may have.
fn filler(number: u64) -> Vec<u8> {
    let size = number.wrapping_mul(2_654_435_761) % 50_000;
    vec![number.to_be_bytes()[7]; usize::try_from(size).expect("small")]
}

async fn open_log(dir: &Path) -> Result<(Replica<()>, Numbers), Failure> {
    let numbers = Numbers::default();
    let mut config = Config::alone(1);
    // So that snapshots and compaction are under way at any time.
    config.snapshots.every_entries = 40;
    config.snapshots.keep_entries = 10;
    let log = SledLog::open(&dir.join("log"), 1)?;
    let machine = numbers.clone();
    let observer = Box::new(|_: coracle_replica::Applied<'_, ()>| {});
    let replica = Replica::start(config, log, machine, Box::new(NoPeers), observer).await?;
    Ok((replica, numbers))
}

async fn write_log(dir: &Path, from: u64) -> Result<ExitCode, Failure> {
    let (replica, _) = open_log(dir).await?;
    let mut number = from;
    loop {
        let command = [&number.to_be_bytes()[..], &filler(number)].concat();
        match replica.propose(command, Instant::now() + WITHIN).await {
            Ok(_) => acknowledged(number)?,
            Err(ProposeError::NotLeader { .. }) => {
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            Err(error) => {
                println!("failed {number}: {error}: {:?}", replica.ended().await);
                return Ok(ExitCode::from(3));
            }
        }
        number += 1;
    }
}

async fn check_log(dir: &Path, count: u64) -> Result<ExitCode, Failure> {
    let (replica, numbers) = open_log(dir).await?;
    let mut status = replica.status();
    status.wait_for(|status| status.leading().is_some()).await?;
    let found = numbers.all().clone();
    // What was not acknowledged may be there; a repetition after that counts once.
    let missing = (0..count).filter(|number| !found.contains(number)).count();
    replica.shutdown().await;
    println!("{missing} of {count} lost, {} there", found.len());
    Ok(ExitCode::from(u8::from(missing > 0)))
}

fn artifact(number: u64) -> Bytes {
    let mut bytes = vec![number.to_be_bytes()[7]; ARTIFACT];
    for (block, chunk) in (0_u64..).zip(bytes.chunks_mut(4096)) {
        chunk[..8].copy_from_slice(&number.to_be_bytes());
        chunk[8..16].copy_from_slice(&block.to_be_bytes());
    }
    bytes.into()
}

fn open_artifacts(dir: &Path) -> Result<Artifacts, Failure> {
    let store = FileStore::open(dir.join("artifacts"))?;
    let limit = 2 * ARTIFACT as u64;
    Ok(Artifacts::new(
        Box::new(store),
        limit,
        Arc::new(SystemClock),
    ))
}

async fn write_artifacts(dir: &Path, from: u64) -> Result<ExitCode, Failure> {
    let artifacts = open_artifacts(dir)?;
    let mut number = from;
    loop {
        let upload = async {
            let mut upload = artifacts.upload().await?;
            let mut bytes = artifact(number);
            while !bytes.is_empty() {
                upload.write(bytes.split_to(ARTIFACT / 4)).await?;
            }
            upload.finish().await
        };
        match upload.await {
            Ok(_) => {
                acknowledged(number)?;
                number += 1;
            }
            Err(error) => {
                let source = std::error::Error::source(&error);
                println!("failed {number}: {error}: {source:?}");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

async fn check_artifacts(dir: &Path, count: u64) -> Result<ExitCode, Failure> {
    let artifacts = open_artifacts(dir)?;
    let mut missing = 0;
    for number in 0..count {
        let digest = Digest::of(&artifact(number));
        let whole = async {
            let mut reader = artifacts.read(digest).await?;
            while reader.next().await?.is_some() {}
            Ok::<_, Failure>(())
        };
        if let Err(error) = whole.await {
            println!("{number}: {error}");
            missing += 1;
        }
    }
    // Also those that were never acknowledged are whole, or not there.
    let listed = artifacts.list().await?;
    for stored in &listed {
        let mut reader = artifacts.read(stored.digest).await?;
        while reader.next().await?.is_some() {}
    }
    println!("{missing} of {count} lost, {} there", listed.len());
    Ok(ExitCode::from(u8::from(missing > 0)))
}
