use coracle_model::{
    Env, Operation, Refusal, Timestamp, WriteId, limits, operation::CreateNamespace,
};
use coracle_proto::v1;
use coracle_state::{
    Body, Command, DecodeError, EncodeError, FORMAT, SnapshotError, State, WRITES_KEPT_MILLIS,
};
use prost::Message as _;
use uuid::Uuid;

use crate::fixture::{Fixture, create_namespace};

fn command(write: u128, at: u64, name: &str) -> Command {
    let body = Body::Operation(Operation::CreateProject {
        name: name.parse().unwrap(),
    });
    Command {
        write_id: WriteId(Uuid::from_u128(write)),
        at: Timestamp(at),
        body,
    }
}

#[test]
fn a_repeated_write_answers_the_same_and_changes_nothing() {
    let mut state = State::new();
    assert_eq!(state.apply(command(1, 5, "team")).outcome, Ok(()));
    let refused = state.apply(command(2, 6, "team")).outcome;
    assert_eq!(refused, Err(Refusal::AlreadyExists("project team".into())));
    let before = state.clone();
    for (write, expected) in [(1, Ok(())), (2, refused)] {
        let again = state.apply(command(write, 99, "team"));
        assert_eq!((again.outcome, again.effects), (expected, vec![]));
    }
    // Also on a replica that started from a snapshot.
    let mut restored = State::decode(&state.encode()).unwrap();
    assert_eq!(restored.apply(command(1, 100, "team")).outcome, Ok(()));
    assert!(state == before && restored == before);
}

#[test]
fn outcomes_are_forgotten_with_time() {
    let mut state = State::new();
    state.apply(command(1, 5, "team"));
    // A second at a time: more than that from one write to the next is taken for a clock that
    // jumped.
    let seconds = WRITES_KEPT_MILLIS / 1_000;
    for second in 1..=seconds + 1 {
        let id = 100 + u128::from(second);
        state.apply(command(id, 5 + second * 1_000, "other"));
    }
    let at = 5 + (seconds + 1) * 1_000;
    let forgotten = state.apply(command(1, at, "team")).outcome;
    assert_eq!(
        forgotten,
        Err(Refusal::AlreadyExists("project team".into()))
    );
}

fn letter(n: u32) -> char {
    char::from(b'a' + u8::try_from(n).unwrap())
}

#[test]
fn entries_are_bounded() {
    // Short variables weigh most: each costs a few bytes beside its name.
    let name = |n: u32| {
        [n / 676, n / 26 % 26, n % 26]
            .map(letter)
            .into_iter()
            .collect()
    };
    let vars = (0..10_000).map(|n| (name(n), String::new())).collect();
    let env = Env::new(vars).unwrap();
    let body = Body::Operation(Operation::CreateNamespace(CreateNamespace {
        env,
        ..create_namespace(1, "a")
    }));
    let command = Command {
        write_id: WriteId(Uuid::nil()),
        at: Timestamp(0),
        body,
    };
    let Err(EncodeError::TooLarge { size }) = command.encode() else {
        panic!("not refused")
    };
    assert!(size > limits::ENTRY_MAX_BYTES);
}

#[test]
fn what_this_version_does_not_know_stops_it() {
    let good = command(1, 5, "team").encode().unwrap();
    assert_eq!(Command::decode(&good).unwrap(), command(1, 5, "team"));
    // Field 60 of a later version, holding a number: as a body, and beside a body we know.
    let later = [0xe0, 0x03, 0x01];
    let wire = v1::Command {
        body: None,
        ..v1::Command::decode(good.as_slice()).unwrap()
    };
    let unknown_body = [&wire.encode_to_vec(), later.as_slice()].concat();
    let unknown_field = [&good, later.as_slice()].concat();
    for bytes in [wire.encode_to_vec(), unknown_body, unknown_field] {
        assert!(matches!(
            Command::decode(&bytes),
            Err(DecodeError::UnknownCommand)
        ));
    }
    assert!(matches!(
        Command::decode(&[0xff]),
        Err(DecodeError::Malformed(_))
    ));
    let empty = v1::command::Body::Operation(v1::Operation { kind: None });
    let empty = v1::Command {
        body: Some(empty),
        ..wire
    };
    let Err(DecodeError::Field(error)) = Command::decode(&empty.encode_to_vec()) else {
        panic!("not refused")
    };
    assert_eq!(error.field, "operation.kind");
}

#[test]
fn snapshots_that_do_not_fit_are_refused() {
    let mut f = Fixture::new();
    let id = f.create(10, "hello");
    f.run(id);
    let good = v1::Snapshot::decode(f.state.encode().as_slice()).unwrap();
    let refused = |change: &dyn Fn(&mut v1::Snapshot)| {
        let mut snapshot = good.clone();
        change(&mut snapshot);
        State::decode(&snapshot.encode_to_vec()).expect_err("refused")
    };
    let later = refused(&|s| s.format = FORMAT + 1);
    assert!(matches!(later, SnapshotError::Format { found } if found == FORMAT + 1));
    let inconsistent: [&dyn Fn(&mut v1::Snapshot); 6] = [
        &|s| s.revisions.clear(),
        &|s| s.functions.clear(),
        &|s| s.namespaces.clear(),
        &|s| s.projects.clear(),
        &|s| s.functions[0].serving = Some(7),
        &|s| s.applied_writes.push(s.applied_writes[0].clone()),
    ];
    for change in inconsistent {
        assert!(matches!(refused(change), SnapshotError::Inconsistent(_)));
    }
    let SnapshotError::Field(error) = refused(&|s| s.functions[0].name.clear()) else {
        panic!("not a field")
    };
    assert_eq!(error.field, "functions[0].name");
    assert!(matches!(
        State::decode(&[0xff]),
        Err(SnapshotError::Malformed(_))
    ));
}
