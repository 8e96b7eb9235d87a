//! A group of one.

use std::{
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use coracle_replica::{
    Applied, COMMAND_BYTES_MAX, Command, Config, ConfigError, Doubt, Ended, Fatal, LogStore,
    Machine, MachineError, MemLog, NoPeers, ProposeError, ReadError, Replica, Role, SledLog,
    SnapshotPolicy, StartError,
};
use tokio::time::Instant;

use crate::tape::{Tape, UNKNOWN, alone, soon};

fn command(number: usize) -> Vec<u8> {
    number.to_be_bytes().to_vec()
}

/// An election timeout here would be most of a minute.
fn slow_clock() -> Config {
    Config {
        tick: Duration::from_secs(2),
        ..Config::alone(1)
    }
}

#[tokio::test]
async fn leads_without_waiting_for_an_election_timeout() {
    let (replica, _) = alone(slow_clock(), MemLog::new(1)).await.unwrap();
    let status = replica.status().borrow().clone();
    assert_eq!(
        (status.role, status.leader, status.term),
        (Role::Leader, Some(1), 2)
    );
    assert_eq!(status.leading(), Some(2));
}

#[tokio::test]
async fn answers_after_the_view_shows_the_write() {
    let (replica, view) = alone(Config::alone(1), MemLog::new(1)).await.unwrap();
    for number in 0..50 {
        let outcome = replica.propose(command(number), soon()).await.unwrap();
        assert_eq!(outcome.response, number + 1);
        assert_eq!(view.lock().unwrap().last().unwrap(), &command(number));
        let index = replica.read_index(soon()).await.unwrap();
        assert!(index >= outcome.index);
    }
}

#[tokio::test]
async fn many_writers_are_each_answered_with_their_own_response() {
    let (replica, view) = alone(Config::alone(1), MemLog::new(1)).await.unwrap();
    let writers = (0..500).map(|number| {
        let replica = replica.clone();
        tokio::spawn(async move { (number, replica.propose(command(number), soon()).await) })
    });
    for writer in writers.collect::<Vec<_>>() {
        let (number, outcome) = writer.await.unwrap();
        let place = outcome.unwrap().response;
        assert_eq!(view.lock().unwrap()[place - 1], command(number));
    }
}

#[tokio::test]
async fn a_restart_keeps_everything_and_rises_a_term() {
    let directory = tempfile::tempdir().unwrap();
    let policy = SnapshotPolicy {
        every_entries: 64,
        every_bytes: 1 << 20,
        keep_entries: 10,
    };
    let config = Config {
        snapshots: policy,
        ..Config::alone(7)
    };
    let mut written = 0;
    for round in 1..=4 {
        let log = SledLog::open(directory.path(), 7).unwrap();
        if round > 2 {
            assert!(log.state().snapshot.is_some());
            assert!(log.state().compacted_index > 0);
        }
        let (replica, view) = alone(config.clone(), log).await.unwrap();
        assert_eq!(replica.status().borrow().term, round + 1);
        assert_eq!(
            *view.lock().unwrap(),
            (0..written).map(command).collect::<Vec<_>>()
        );
        for _ in 0..100 {
            replica.propose(command(written), soon()).await.unwrap();
            written += 1;
        }
        assert!(matches!(replica.shutdown().await, Ended::Shutdown));
    }
}

#[tokio::test]
async fn the_observer_sees_all_in_order_and_who_led() {
    let directory = tempfile::tempdir().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    for round in 0..2 {
        let (tape, _) = Tape::new();
        let log = SledLog::open(directory.path(), 1).unwrap();
        let note = seen.clone();
        let observer = Box::new(move |applied: Applied<'_, usize>| {
            note.lock()
                .unwrap()
                .push((*applied.response, applied.leading));
        });
        let replica = Replica::start(Config::alone(1), log, tape, Box::new(NoPeers), observer)
            .await
            .unwrap();
        for number in 0..3 {
            while replica.propose(command(number), soon()).await
                == Err(ProposeError::NotLeader { leader: None })
            {
                tokio::task::yield_now().await;
            }
        }
        replica.shutdown().await;
        let seen = std::mem::take(&mut *seen.lock().unwrap());
        let first = round * 3 + 1;
        assert_eq!(seen, [(first, true), (first + 1, true), (first + 2, true)]);
    }
}

#[tokio::test]
async fn refuses_what_it_could_not_store() {
    let (replica, view) = alone(Config::alone(1), MemLog::new(1)).await.unwrap();
    let bytes = COMMAND_BYTES_MAX + 1;
    let refused = replica.propose(vec![1; bytes], soon()).await;
    assert_eq!(
        refused,
        Err(ProposeError::TooLarge {
            bytes,
            limit: COMMAND_BYTES_MAX
        })
    );
    assert_eq!(
        replica.propose(Vec::new(), soon()).await,
        Err(ProposeError::Empty)
    );
    assert!(view.lock().unwrap().is_empty());
    replica
        .propose(vec![1; COMMAND_BYTES_MAX], soon())
        .await
        .unwrap();
    assert_eq!(view.lock().unwrap().len(), 1);
}

/// Applies a command only once it is let.
struct Gate(mpsc::Receiver<()>);

impl Machine for Gate {
    type Response = ();

    fn apply(&mut self, _: Command<'_>) -> Result<(), MachineError> {
        Ok(self.0.recv()?)
    }

    fn batch_applied(&mut self, _: u64) {}

    fn snapshot(&self) -> Vec<u8> {
        Vec::new()
    }

    fn restore(&mut self, _: &[u8]) -> Result<(), MachineError> {
        Ok(())
    }
}

#[tokio::test]
async fn a_passed_deadline_leaves_the_outcome_unknown() {
    let (open, gate) = mpsc::channel();
    let (seen, mut applied) = tokio::sync::mpsc::channel(8);
    let observer = Box::new(move |entry: Applied<'_, ()>| {
        seen.try_send(entry.index).unwrap();
    });
    let transport = Box::new(NoPeers);
    let replica = Replica::start(
        Config::alone(1),
        MemLog::new(1),
        Gate(gate),
        transport,
        observer,
    )
    .await
    .unwrap();
    let mut status = replica.status();
    status
        .wait_for(|status| status.leading().is_some())
        .await
        .unwrap();
    let shortly = || Instant::now() + Duration::from_millis(100);
    let unknown = replica.propose(command(0), shortly()).await;
    assert_eq!(unknown, Err(ProposeError::Unknown(Doubt::Deadline)));
    assert_eq!(
        replica.read_index(shortly()).await,
        Err(ReadError::Deadline)
    );
    assert!(applied.try_recv().is_err());
    // Unknown was the right word: it happens after all.
    open.send(()).unwrap();
    let index = tokio::time::timeout_at(soon(), applied.recv())
        .await
        .unwrap();
    assert_eq!(index, Some(3));
}

#[tokio::test]
async fn an_unknown_command_stops_it_at_every_start() {
    let directory = tempfile::tempdir().unwrap();
    let (replica, view) = alone(
        Config::alone(1),
        SledLog::open(directory.path(), 1).unwrap(),
    )
    .await
    .unwrap();
    replica.propose(command(0), soon()).await.unwrap();
    let lost = replica.propose(UNKNOWN.to_vec(), soon()).await;
    assert_eq!(lost, Err(ProposeError::Unknown(Doubt::Stopped)));
    let Ended::Failed(cause) = replica.ended().await else {
        panic!("it should have failed")
    };
    assert!(matches!(*cause, Fatal::Apply { .. }), "{cause:?}");
    assert_eq!(
        replica.propose(command(1), soon()).await,
        Err(ProposeError::Stopped)
    );
    assert_eq!(replica.read_index(soon()).await, Err(ReadError::Stopped));
    assert_eq!(
        view.lock().unwrap().len(),
        1,
        "nothing was skipped or added"
    );

    // Whether the command counts as committed at once or when it leads again, it stops there.
    let log = SledLog::open(directory.path(), 1).unwrap();
    let (tape, view) = Tape::new();
    let observer = Box::new(|_: Applied<'_, usize>| {});
    let start = Replica::start(Config::alone(1), log, tape, Box::new(NoPeers), observer).await;
    let cause = match start {
        Err(StartError::Recover(cause)) => Arc::new(cause),
        Err(other) => panic!("{other:?}"),
        Ok(replica) => match replica.ended().await {
            Ended::Failed(cause) => cause,
            other => panic!("{other:?}"),
        },
    };
    assert!(matches!(*cause, Fatal::Apply { .. }), "{cause:?}");
    assert_eq!(view.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn wrong_settings_are_refused() {
    let (tape, _) = Tape::new();
    let observer = Box::new(|_: Applied<'_, usize>| {});
    let start = Replica::start(
        Config::alone(0),
        MemLog::new(0),
        tape,
        Box::new(NoPeers),
        observer,
    )
    .await;
    assert!(matches!(
        start,
        Err(StartError::Config(ConfigError::ZeroId))
    ));
}

#[tokio::test]
async fn dropping_every_handle_ends_it_in_good_order() {
    let directory = tempfile::tempdir().unwrap();
    let log = SledLog::open(directory.path(), 1).unwrap();
    let (replica, view) = alone(Config::alone(1), log).await.unwrap();
    replica.propose(command(0), soon()).await.unwrap();
    let mut status = replica.status();
    drop((replica, view));
    let closed = async { while status.changed().await.is_ok() {} };
    tokio::time::timeout_at(soon(), closed).await.unwrap();
    // The store closes just after; its lock is what tells.
    let reopened = async {
        loop {
            match SledLog::open(directory.path(), 1) {
                Ok(log) => return log,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    let log = tokio::time::timeout_at(soon(), reopened).await.unwrap();
    assert_eq!(log.state().applied, log.last_index());
}
