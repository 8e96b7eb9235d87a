//! The persisted formats: bytes that a released version wrote are read for ever.
//!
//! `golden/v1` holds one command of each kind and a snapshot. A file that is not there yet is
//! written and the test fails once, so that it gets committed; one that is there never changes.

use std::{collections::BTreeSet, fs, io, path::PathBuf};

use coracle_model::{
    ComponentRole, FunctionId, Labels, MemberId, NodeId, Operation, PlacementRules, ProjectId,
    RevisionId, SecretHash, Spread, Timestamp, TokenId, TokenRole, WriteId,
    cluster::Admission,
    operation::{
        CreateFunction, CreateNamespace, CreateToken, SettingsPatch, UpdateFunction, UpdateKey,
        UpdateNamespace,
    },
};
use coracle_state::{Body, Command, RegisterNode, State};
use uuid::Uuid;

use crate::cluster;
use crate::fixture::{
    P, change, create_function, create_key, create_namespace, delete, env, function_ref, output,
    settings, task_id, update, update_key, update_namespace,
};

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden/v1")
}

/// The recorded bytes; `bytes` themselves, noted in `new`, where there are none yet.
fn recorded(name: &str, bytes: &[u8], new: &mut Vec<String>) -> Vec<u8> {
    let path = directory().join(name);
    match fs::read(&path) {
        Ok(recorded) => recorded,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::write(&path, bytes).unwrap();
            new.push(name.to_owned());
            bytes.to_owned()
        }
        Err(error) => panic!("{}: {error}", path.display()),
    }
}

/// The file of a command. Has no default, so that a new kind does not compile without one.
fn name(body: &Body) -> &'static str {
    match body {
        Body::Operation(operation) => match operation {
            Operation::CreateProject { .. } => "create_project.bin",
            Operation::DeleteProject { .. } => "delete_project.bin",
            Operation::CreateNamespace(_) => "create_namespace.bin",
            Operation::UpdateNamespace(_) => "update_namespace.bin",
            Operation::DeleteNamespace { .. } => "delete_namespace.bin",
            Operation::CreateFunction(_) => "create_function.bin",
            Operation::UpdateFunction(_) => "update_function.bin",
            Operation::DeleteFunction { .. } => "delete_function.bin",
            Operation::CreateKey(_) => "create_key.bin",
            Operation::UpdateKey(_) => "update_key.bin",
            Operation::DeleteKey { .. } => "delete_key.bin",
            Operation::CreateToken(_) => "create_token.bin",
            Operation::DeleteToken { .. } => "delete_token.bin",
            Operation::AcknowledgeTask { .. } => "acknowledge_task.bin",
            Operation::CreateJoinToken(_) => "create_join_token.bin",
            Operation::RevokeJoinToken { .. } => "revoke_join_token.bin",
        },
        Body::BeginBuild { .. } => "begin_build.bin",
        Body::FinishBuild { .. } => "finish_build.bin",
        Body::FailBuild { .. } => "fail_build.bin",
        Body::Promote { .. } => "promote.bin",
        Body::FailDeploy { .. } => "fail_deploy.bin",
        Body::SetIncarnation { .. } => "set_incarnation.bin",
        Body::InitCluster { .. } => "init_cluster.bin",
        Body::RedeemJoinToken { .. } => "redeem_join_token.bin",
        Body::RemoveMember { .. } => "remove_member.bin",
        Body::RotateClusterKey { .. } => "rotate_cluster_key.bin",
        Body::RegisterNode(_) => "register_node.bin",
        Body::CordonNode { .. } => "cordon_node.bin",
        Body::DrainNode { .. } => "drain_node.bin",
        Body::RemoveNode { .. } => "remove_node.bin",
    }
}

/// What came after release 0.1.0, by subject: each has a snapshot of its own, of the state that the
/// release's commands and then these give.
fn later() -> Vec<(&'static str, Vec<Body>)> {
    vec![
        ("snapshot_nodes.bin", nodes()),
        ("snapshot_placement.bin", placement()),
        ("snapshot_cluster.bin", of_cluster()),
    ]
}

fn of_cluster() -> Vec<Body> {
    use cluster::{controller, create, init, redeem, rotate};
    let token = |n, role, uses| Body::Operation(create(n, role, 90_000, uses));
    vec![
        init(),
        token(1, ComponentRole::Controller, 3),
        token(2, ComponentRole::Agent, 1),
        token(3, ComponentRole::Gateway, 100),
        redeem(1, controller(2, 1)),
        redeem(1, controller(3, 1)),
        redeem(2, Admission::Agent),
        redeem(3, Admission::Gateway),
        Body::RemoveMember {
            member: MemberId(2),
        },
        rotate(2, &[1, 3]),
        Body::Operation(Operation::RevokeJoinToken {
            id: TokenId(Uuid::from_u128(3)),
        }),
    ]
}

/// Rules of where instances go: in a create, and in an update that takes them away again.
fn placement() -> Vec<Body> {
    let labels =
        |key: &str, value: &str| Labels::new([(key.to_owned(), value.to_owned())].into()).unwrap();
    let rules = |spread| PlacementRules {
        required: labels("disk", "ssd"),
        preferred: labels("zone", "a"),
        spread,
    };
    let create = |n, name: &str, spread| CreateFunction {
        placement: rules(spread),
        ..create_function(n, name)
    };
    vec![
        Body::Operation(Operation::CreateFunction(Box::new(create(
            60,
            "a",
            Spread::Zone,
        )))),
        Body::Operation(Operation::CreateFunction(Box::new(create(
            61,
            "b",
            Spread::Node,
        )))),
        Body::Operation(change(UpdateFunction {
            placement: Some(PlacementRules::default()),
            ..update("b")
        })),
        Body::Operation(change(UpdateFunction {
            placement: Some(rules(Spread::Auto)),
            ..update("hello")
        })),
    ]
}

fn nodes() -> Vec<Body> {
    let node = |n| NodeId(Uuid::from_u128(n));
    let zone = [("zone".to_owned(), "a".to_owned())];
    let register = |n, name: &str, replaces| {
        Body::RegisterNode(RegisterNode {
            id: node(n),
            name: name.parse().unwrap(),
            labels: Labels::new(zone.clone().into()).unwrap(),
            replaces,
        })
    };
    vec![
        register(3, "three", Some(node(9))),
        register(1, "one", None),
        register(2, "two.example.com", None),
        Body::DrainNode {
            node: node(1),
            deadline: Some(Timestamp(9_000)),
            force: true,
        },
        Body::CordonNode {
            node: node(2),
            cordoned: true,
        },
        Body::RemoveNode { node: node(3) },
    ]
}

fn numbered(from: u64, bodies: Vec<Body>) -> Vec<Command> {
    (from..)
        .zip(bodies)
        .map(|(n, body)| Command {
            write_id: WriteId(Uuid::from_u128(u128::from(n))),
            at: Timestamp(n),
            body,
        })
        .collect()
}

/// Those of release 0.1.0, in an order in which all of them are applied with success.
fn commands() -> Vec<Command> {
    let function = FunctionId(Uuid::from_u128(10));
    let first = RevisionId {
        function,
        number: 1,
    };
    let second = RevisionId { number: 2, ..first };
    let third = RevisionId { number: 3, ..first };
    let team = ProjectId(2);
    let token = |n, role| CreateToken {
        id: TokenId(Uuid::from_u128(n)),
        description: "for the pipeline".into(),
        hash: SecretHash::of("secret"),
        role,
        expires_at: Some(Timestamp(9_000)),
    };
    let patch = SettingsPatch {
        dependencies: Some(Some(output("requirements").code)),
        env: Some(env(&[("B", "2")])),
        timeout: Some(settings("x").timeout),
        ..SettingsPatch::default()
    };
    let another = SettingsPatch {
        dependencies: Some(None),
        ..SettingsPatch::default()
    };
    let operations: Vec<Body> = [
        Operation::CreateProject {
            name: "team".parse().unwrap(),
        },
        Operation::CreateNamespace(CreateNamespace {
            env: env(&[("A", "1")]),
            task: Some(task_id(1)),
            ..create_namespace(1, "a")
        }),
        Operation::CreateNamespace(create_namespace(2, "b")),
        Operation::CreateKey(create_key(1, "ci", &[])),
        Operation::CreateFunction(Box::new(CreateFunction {
            annotations: [("gcore/flavor".to_owned(), "64m-64MB".to_owned())].into(),
            keys: vec!["ci".parse().unwrap()],
            ..create_function(10, "hello")
        })),
        Operation::CreateFunction(Box::new(create_function(11, "b/other"))),
        Operation::UpdateKey(UpdateKey {
            functions: Some(vec![function_ref("hello"), function_ref("b/other")]),
            expires_at: Some(Some(Timestamp(9_000))),
            ..update_key("ci")
        }),
    ]
    .into_iter()
    .map(Body::Operation)
    .collect();
    let mut bodies = operations;
    bodies.extend([
        Body::BeginBuild { revision: first },
        Body::FinishBuild {
            revision: first,
            output: output("hello"),
        },
        Body::Promote { revision: first },
        Body::Operation(change(UpdateFunction {
            description: Some("says hello".into()),
            scale_max: Some(5),
            settings: patch,
            task: Some(task_id(20)),
            ..update("hello")
        })),
        Body::FailBuild {
            revision: second,
            reason: "no such package".into(),
        },
        Body::Operation(change(UpdateFunction {
            settings: another,
            ..update("hello")
        })),
        Body::FinishBuild {
            revision: third,
            output: output("third"),
        },
        Body::FailDeploy {
            revision: third,
            reason: "it exits".into(),
        },
        Body::Operation(delete("b/other", Some(21))),
        Body::Operation(Operation::UpdateNamespace(UpdateNamespace {
            env: Some(env(&[("A", "2")])),
            ..update_namespace("a")
        })),
        Body::Operation(Operation::AcknowledgeTask {
            project: P,
            id: task_id(20),
        }),
        Body::Operation(Operation::CreateToken(token(1, TokenRole::Admin))),
        Body::Operation(Operation::CreateToken(token(2, TokenRole::Project(P)))),
        Body::Operation(Operation::DeleteToken {
            id: TokenId(Uuid::from_u128(2)),
        }),
        Body::Operation(Operation::CreateKey(create_key(2, "ops", &["hello"]))),
        Body::Operation(Operation::DeleteKey {
            project: P,
            name: "ops".parse().unwrap(),
        }),
        Body::Operation(Operation::DeleteNamespace {
            project: P,
            name: "b".parse().unwrap(),
            task: Some(task_id(22)),
        }),
        Body::Operation(Operation::DeleteProject { project: team }),
        Body::SetIncarnation { incarnation: 3 },
    ]);
    numbered(1, bodies)
}

#[test]
fn recorded_commands_are_read_and_still_written_so() {
    let (mut seen, mut new) = (BTreeSet::new(), Vec::new());
    let later = later()
        .into_iter()
        .flat_map(|(_, bodies)| numbered(1_000, bodies));
    for command in commands().into_iter().chain(later) {
        let name = name(&command.body);
        if !seen.insert(name.to_owned()) {
            continue;
        }
        let bytes = command.clone().encode().unwrap();
        let recorded = recorded(name, &bytes, &mut new);
        assert_eq!(Command::decode(&recorded).unwrap(), command, "{name}");
        assert_eq!(bytes, recorded, "{name}");
    }
    assert!(
        new.is_empty(),
        "commit the new files and run again: {new:?}"
    );
    // Every file is read by the above, and every kind but the snapshot has one.
    let files = fs::read_dir(directory()).unwrap();
    let files: BTreeSet<_> = files
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    seen.insert("snapshot.bin".to_owned());
    seen.extend(self::later().into_iter().map(|(name, _)| name.to_owned()));
    assert_eq!(files, seen);
    assert_eq!(seen.len(), 21 + 6 + 7);
}

#[test]
fn the_recorded_snapshot_is_read_and_is_what_the_commands_give() {
    let mut state = State::new();
    for command in commands() {
        let name = name(&command.body);
        assert_eq!(state.apply(command).outcome, Ok(()), "{name}");
    }
    let mut new = Vec::new();
    let recorded = recorded("snapshot.bin", &state.encode(), &mut new);
    assert!(new.is_empty(), "commit the new file and run again: {new:?}");
    assert_eq!(State::decode(&recorded).unwrap(), state);
    assert_eq!(state.encode(), recorded);
}

#[test]
fn later_snapshots_are_read_and_are_what_their_commands_give() {
    for (file, bodies) in later() {
        let mut state = State::new();
        for command in commands().into_iter().chain(numbered(1_000, bodies)) {
            let name = name(&command.body);
            assert_eq!(state.apply(command).outcome, Ok(()), "{name}");
        }
        let mut new = Vec::new();
        let recorded = recorded(file, &state.encode(), &mut new);
        assert!(new.is_empty(), "commit the new file and run again: {new:?}");
        assert_eq!(State::decode(&recorded).unwrap(), state, "{file}");
        assert_eq!(state.encode(), recorded, "{file}");
    }
}
