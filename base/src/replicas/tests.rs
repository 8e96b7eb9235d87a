use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    time::Duration,
};

use tokio::time::Instant;
use tonic::Code;

use super::*;
use crate::MemoryBus;

const SOON: Duration = Duration::from_secs(60);

fn tcp(at: u16) -> Address {
    Address::Tcp(format!("127.0.0.1:{at}"))
}

fn urls(ports: &[u16]) -> Vec<String> {
    ports.iter().map(|at| tcp(*at).to_string()).collect()
}

fn not_leader(hint: Option<&str>) -> Status {
    let mut status = Status::unavailable("this one does not lead");
    if let Some(address) = hint {
        let address = address.parse().unwrap();
        status.metadata_mut().insert(LEADER_ADDRESS_KEY, address);
    }
    status
}

/// Answers in the order in which servers are asked, which calls cannot tell otherwise: a channel
/// does not say where it leads.
struct Script(AtomicUsize);

impl Script {
    fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    fn turn(&self) -> usize {
        self.0.fetch_add(1, SeqCst)
    }
}

#[tokio::test]
async fn told_addresses_come_first_are_kept_and_leave_the_configured_ones() {
    let kept = Arc::new(Mutex::new(Vec::new()));
    let keep: Keep = {
        let kept = kept.clone();
        Arc::new(move |addresses: &[String]| kept.lock().unwrap().push(addresses.to_vec()))
    };
    let told = Told {
        addresses: urls(&[2]),
        keep,
        ..Told::default()
    };
    let replicas = Replicas::new(&[tcp(1)], told);
    assert_eq!(replicas.addresses(), urls(&[2, 1]));
    assert!(kept.lock().unwrap().is_empty(), "they came from there");
    replicas.learn(&[]);
    replicas.learn(&urls(&[2]));
    assert!(kept.lock().unwrap().is_empty(), "nothing new was said");
    let one = replicas.each()[1].clone();
    replicas.leads(&one);
    let mut news = urls(&[3, 2]);
    news.push("https://a:1".into());
    replicas.learn(&news);
    assert_eq!(
        replicas.addresses(),
        urls(&[2, 3, 1]),
        "what is unusable is left out"
    );
    assert_eq!(replicas.first(), one, "whoever leads stays the first");
    assert_eq!(*kept.lock().unwrap(), [news]);
    replicas.learn(&urls(&[3]));
    assert_eq!(replicas.addresses(), urls(&[3, 1]));
}

#[tokio::test(start_paused = true)]
async fn the_leader_that_is_named_is_asked_next_even_if_nobody_knew_it() {
    let replicas = Replicas::new(&[tcp(1), tcp(2)], Told::default());
    let script = Script::new();
    let call = |_| async {
        match script.turn() {
            0 => Err(not_leader(Some("http://127.0.0.1:9"))),
            _ => Ok(()),
        }
    };
    let began = Instant::now();
    let (server, ()) = replicas
        .ask(Pace::URGENT, began + SOON, call, |_| ())
        .await
        .unwrap();
    assert_eq!(server.address(), "http://127.0.0.1:9");
    assert_eq!(began.elapsed(), Duration::ZERO, "at once");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_silent_holds_up_nobody() {
    let replicas = Replicas::new(&[tcp(1), tcp(2), tcp(3)], Told::default());
    let script = Script::new();
    let call = |_| async {
        match script.turn() {
            0 => std::future::pending().await,
            1 => Err(not_leader(None)),
            _ => Ok(()),
        }
    };
    let began = Instant::now();
    let (server, ()) = replicas
        .ask(Pace::URGENT, began + SOON, call, |_| ())
        .await
        .unwrap();
    assert_eq!(server.address(), "http://127.0.0.1:3");
    assert!(
        began.elapsed() <= Pace::URGENT.hedge * 2,
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_is_found_soon_after_it_leads() {
    for silent in [false, true] {
        let replicas = Replicas::new(&[tcp(1), tcp(2), tcp(3)], Told::default());
        let began = Instant::now();
        let leads_at = began + Duration::from_millis(1_700);
        let script = Script::new();
        let call = |_| async {
            if silent && script.turn() == 0 {
                std::future::pending().await
            }
            match Instant::now() >= leads_at {
                true => Ok(()),
                false => Err(not_leader(None)),
            }
        };
        let mut doubts = 0;
        replicas
            .ask(Pace::URGENT, began + SOON, call, |_| doubts += 1)
            .await
            .unwrap();
        assert!(
            leads_at.elapsed() <= Duration::from_millis(100),
            "{:?}",
            leads_at.elapsed()
        );
        assert!(
            (10..200).contains(&doubts),
            "{doubts} refusals are bearable"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn what_another_one_would_say_too_is_an_answer_and_the_deadline_ends_the_rest() {
    let replicas = Replicas::new(&[tcp(1), tcp(2)], Told::default());
    let deadline = Instant::now() + Duration::from_secs(1);
    let missing = |_| async { Err::<(), _>(Status::not_found("x")) };
    let status = replicas.ask(Pace::PATIENT, deadline, missing, |_| ()).await;
    assert_eq!(status.unwrap_err().code(), Code::NotFound);
    let away = |_| async { Err::<(), _>(not_leader(None)) };
    let status = replicas.ask(Pace::PATIENT, deadline, away, |_| ()).await;
    assert_eq!(status.unwrap_err().message(), "this one does not lead");
    assert_eq!(Instant::now(), deadline);
    let silent = |_| std::future::pending::<Result<(), _>>();
    let deadline = Instant::now() + Duration::from_secs(1);
    let status = replicas.ask(Pace::PATIENT, deadline, silent, |_| ()).await;
    assert_eq!(status.unwrap_err().code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn the_change_of_leader_is_told_once() {
    let bus = Address::Memory(MemoryBus::new());
    let replicas = Replicas::new(&[bus, tcp(2)], Told::default());
    let mut leader = replicas.leader();
    let [first, second] = [0, 1].map(|at| replicas.each()[at].clone());
    replicas.leads(&second);
    assert!(leader.has_changed().unwrap());
    assert_eq!(leader.borrow_and_update().as_ref(), Some(&second));
    replicas.leads(&second);
    assert!(!leader.has_changed().unwrap());
    replicas.avoid(&first);
    assert_eq!(
        replicas.first(),
        second,
        "only whoever is first can be avoided"
    );
    replicas.avoid(&second);
    assert_eq!(replicas.first(), first);
    let by_address: BTreeMap<_, _> = replicas
        .each()
        .iter()
        .map(|server| (server.address().to_owned(), ()))
        .collect();
    assert_eq!(by_address.len(), 2);
}
