use coracle_driver::Survivor;
use coracle_model::{Memory, MilliCpu, RevisionId};
use uuid::Uuid;

use super::{table::WAITERS_MAX, *};
use crate::reconcile::{Action, reconcile};

fn id(n: u128) -> InstanceId {
    InstanceId(Uuid::from_u128(n))
}

fn running(table: &mut Table, n: u128) {
    let survivor = Survivor {
        id: id(n),
        revision: RevisionId {
            function: FunctionId(Uuid::from_u128(9)),
            number: 1,
        },
        runtime: "python3.11".parse().unwrap(),
        socket: "/s".into(),
        memory: Memory::from_mib(64).unwrap(),
        cpu: MilliCpu::new(100).unwrap(),
        concurrency: 1,
        started_at: Timestamp(1),
    };
    table.adopted(survivor, Hold::Leases(Vec::new()));
}

#[test]
fn those_who_wait_are_bounded_and_those_who_give_up_leave_no_trace() {
    let mut table = Table::default();
    let waiters: Vec<_> = (0..WAITERS_MAX)
        .map(|_| table.wait(id(1)).unwrap())
        .collect();
    assert!(table.wait(id(2)).is_none());
    drop(waiters);
    table.gave_up(id(1));
    assert_eq!(table.counts().waiting, 0);
    assert!(table.wait(id(2)).is_some());
}

#[test]
fn an_end_that_was_asked_for_is_not_the_functions_fault() {
    let mut table = Table::default();
    let killed = ExitReason::Signaled { signal: 9 };
    running(&mut table, 1);
    assert_eq!(
        table.exited(id(1), killed.clone(), Timestamp(2)),
        Some(killed.clone())
    );
    running(&mut table, 2);
    table.stopping(id(2), Duration::ZERO, Timestamp(2));
    assert_eq!(
        table.exited(id(2), killed.clone(), Timestamp(2)),
        Some(ExitReason::Stopped)
    );
    assert_eq!(
        table.exited(id(2), killed.clone(), Timestamp(2)),
        None,
        "once"
    );
    running(&mut table, 3);
    table.draining(id(3), Timestamp(5), Timestamp(2));
    let memory = ExitReason::OutOfMemory { limit_mib: 64 };
    assert_eq!(
        table.exited(id(3), memory.clone(), Timestamp(2)),
        Some(memory)
    );
    assert_eq!(
        table.exited(id(9), killed, Timestamp(2)),
        None,
        "nobody knows it"
    );
}

#[test]
fn only_ends_that_were_in_the_acknowledged_report_are_acknowledged() {
    let mut table = Table::default();
    running(&mut table, 1);
    running(&mut table, 2);
    table.exited(id(1), ExitReason::Lost, Timestamp(2));
    assert_eq!(table.report(1).len(), 2);
    table.exited(id(2), ExitReason::Lost, Timestamp(2));
    assert_eq!(table.report(2).len(), 2);
    table.acknowledged(1);
    let told: Vec<_> = table
        .report(3)
        .into_iter()
        .map(|observed| observed.id)
        .collect();
    assert_eq!(told, [id(2)]);
    table.new_session();
    assert_eq!(
        table.report(1).len(),
        2,
        "whoever leads now is told everything"
    );
}

#[test]
fn remembered_ends_are_bounded_and_the_oldest_go() {
    let mut table = Table::default();
    for n in 1..=5 {
        running(&mut table, n);
        table.exited(
            id(n),
            ExitReason::Lost,
            Timestamp(10 - u64::try_from(n).unwrap()),
        );
    }
    running(&mut table, 6);
    assert_eq!(table.bound_exits(2), 3);
    let left: Vec<_> = table
        .report(1)
        .into_iter()
        .map(|observed| observed.id)
        .collect();
    assert_eq!(left, [id(1), id(2), id(6)]);
    // Whoever asks late still learns the end.
    assert_eq!(
        table.outcome(id(5)),
        Some(Outcome::Failed(ExitReason::Lost))
    );
}

#[test]
fn a_stop_whose_exit_never_comes_is_overdue() {
    let mut table = Table::default();
    running(&mut table, 1);
    table.stopping(id(1), Duration::ZERO, Timestamp(1000));
    let after = Duration::from_secs(5);
    assert_eq!(
        table.overdue(Timestamp(99_000), after),
        [],
        "the driver has not said that it is gone"
    );
    table.stop_done(id(1), Timestamp(2000));
    assert_eq!(table.overdue(Timestamp(6999), after), []);
    assert_eq!(table.overdue(Timestamp(7000), after), [id(1)]);
}

#[test]
fn a_stop_that_failed_is_tried_again() {
    let mut table = Table::default();
    running(&mut table, 1);
    table.stopping(id(1), Duration::ZERO, Timestamp(1));
    let actions = |table: &Table| reconcile(&BTreeMap::new(), &table.seen(), Duration::ZERO);
    assert_eq!(actions(&table), []);
    table.stop_failed(id(1));
    assert_eq!(actions(&table), [Action::Stop(id(1), Duration::ZERO)]);
}
