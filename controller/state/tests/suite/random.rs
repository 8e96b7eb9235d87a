//! Random commands; after every one of them, everything that must always hold.

use std::collections::{BTreeMap, BTreeSet};

use coracle_model::{
    ComponentRole, FunctionId, KeyName, MemberId, NodeId, Operation, ProjectId, RevisionId,
    SecretHash, TaskId, TaskState, Timestamp, TokenId, TokenRole, WriteId,
    cluster::Admission,
    limits,
    operation::{
        CreateFunction, CreateKey, CreateNamespace, CreateToken, SettingsPatch, UpdateFunction,
        UpdateKey, UpdateNamespace,
    },
};
use coracle_state::{Body, Command, Effect, REVISIONS_KEPT, RegisterNode, State, View};
use proptest::{collection::vec, prelude::*};
use uuid::Uuid;

use crate::cluster;
use crate::fixture::{
    P, code, create_function, create_key, create_namespace, delete, env, function_ref, output,
    task_id, update, update_key, update_namespace,
};

const NAMESPACES: [&str; 2] = ["a", "b"];
const FUNCTIONS: [&str; 3] = ["a/x", "a/y", "b/x"];
const KEYS: [&str; 3] = ["k", "l", "m"];

fn names<T: std::str::FromStr<Err: std::fmt::Debug>>(mask: u8, all: &[&str]) -> Vec<T> {
    let chosen = all.iter().enumerate().filter(|(n, _)| mask & (1 << n) != 0);
    chosen.map(|(_, name)| name.parse().unwrap()).collect()
}

fn function_refs(mask: u8) -> Vec<coracle_model::FunctionRef> {
    let chosen = FUNCTIONS
        .iter()
        .enumerate()
        .filter(|(n, _)| mask & (1 << n) != 0);
    chosen.map(|(_, name)| function_ref(name)).collect()
}

/// Ids come from a small pool too, so that they collide now and then.
fn client() -> impl Strategy<Value = Operation> {
    let namespace = || prop::sample::select(NAMESPACES.as_slice());
    let function = || prop::sample::select(FUNCTIONS.as_slice());
    let key = || prop::sample::select(KEYS.as_slice());
    let id = || 1..40_u128;
    let task = || prop::option::of((1..60_u128).prop_map(task_id));
    let project = || (1..4_u32).prop_map(ProjectId);
    let vars = || prop::sample::select(vec![env(&[]), env(&[("A", "1")]), env(&[("B", "2")])]);
    prop_oneof![
        2 => (id(), namespace(), project(), vars(), task()).prop_map(|(id, name, project, env, task)| {
            let project = if id < 30 { P } else { project };
            Operation::CreateNamespace(CreateNamespace { project, env, task, ..create_namespace(id, name) })
        }),
        1 => (namespace(), prop::option::of(vars()), task()).prop_map(|(name, env, task)| {
            Operation::UpdateNamespace(UpdateNamespace { env, task, ..update_namespace(name) })
        }),
        1 => (namespace(), task()).prop_map(|(name, task)| {
            Operation::DeleteNamespace { project: P, name: name.parse().unwrap(), task }
        }),
        4 => (id(), function(), 0..8_u8, any::<bool>(), task()).prop_map(|(id, name, keys, disabled, task)| {
            let keys = names(keys & 1, &KEYS);
            let create = CreateFunction { keys, disabled, task, ..create_function(id, name) };
            Operation::CreateFunction(Box::new(create))
        }),
        8 => (function(), 0..4_u8, 0..9_u8, 0..8_u8, task()).prop_map(|(name, text, bits, keys, task)| {
            let settings = if bits & 1 == 0 { code(&text.to_string()) } else { SettingsPatch::default() };
            Operation::UpdateFunction(Box::new(UpdateFunction {
                settings,
                keys: (bits & 2 != 0).then(|| names(keys, &KEYS)),
                disabled: (bits & 4 != 0).then_some(text == 0),
                scale_min: (bits == 8).then_some(u32::from(text) * 5),
                task,
                ..update(name)
            }))
        }),
        1 => (function(), task()).prop_map(|(name, task)| match delete(name, None) {
            Operation::DeleteFunction { project, function, .. } => {
                Operation::DeleteFunction { project, function, task }
            }
            other => other,
        }),
        2 => (id(), key(), 0..8_u8).prop_map(|(id, name, functions)| {
            let functions = function_refs(functions & 3);
            Operation::CreateKey(CreateKey { functions, ..create_key(id, name, &[]) })
        }),
        2 => (key(), prop::option::of(0..8_u8), any::<bool>()).prop_map(|(name, functions, expires)| {
            let functions = functions.map(function_refs);
            let expires_at = expires.then_some(Some(Timestamp(50)));
            Operation::UpdateKey(UpdateKey { functions, expires_at, ..update_key(name) })
        }),
        1 => key().prop_map(|name| Operation::DeleteKey { project: P, name: name.parse().unwrap() }),
        1 => prop::sample::select(vec!["p", "q"]).prop_map(|name| {
            Operation::CreateProject { name: name.parse().unwrap() }
        }),
        1 => project().prop_map(|project| Operation::DeleteProject { project }),
        1 => (id(), prop::option::of(project())).prop_map(|(id, project)| {
            Operation::CreateToken(CreateToken {
                id: TokenId(Uuid::from_u128(id)),
                description: String::new(),
                hash: SecretHash::of("secret"),
                role: project.map_or(TokenRole::Admin, TokenRole::Project),
                expires_at: None,
            })
        }),
        1 => id().prop_map(|id| Operation::DeleteToken { id: TokenId(Uuid::from_u128(id)) }),
        1 => (1..60_u128).prop_map(|id| Operation::AcknowledgeTask { project: P, id: task_id(id) }),
    ]
}

/// What is proposed: by a client, or by the leader about one of the functions' revisions.
#[derive(Debug, Clone)]
enum Proposal {
    Client(Operation),
    /// Which function, how far behind its latest, which step.
    Leader(usize, u32, u8),
    Incarnation(u64),
    /// Which node, under which name, instead of which, and what of it.
    Node(u128, u8, u128, u8),
    /// Which step, with which token, controller and generation.
    Cluster(u8, u128, u8, u64),
}

fn proposal() -> impl Strategy<Value = Proposal> {
    prop_oneof![
        6 => client().prop_map(Proposal::Client),
        6 => (0..8_usize, prop_oneof![4 => Just(0), 1 => 1..4_u32], 0..5_u8)
            .prop_map(|(function, behind, step)| Proposal::Leader(function, behind, step)),
        1 => (0..5_u64).prop_map(Proposal::Incarnation),
        2 => (1..7_u128, 0..3_u8, 1..7_u128, 0..8_u8)
            .prop_map(|(id, name, other, what)| Proposal::Node(id, name, other, what)),
        2 => (0..8_u8, 1..4_u128, 1..6_u8, 1..4_u64)
            .prop_map(|(step, token, n, generation)| Proposal::Cluster(step, token, n, generation)),
    ]
}

fn node_body(id: u128, name: u8, other: u128, what: u8) -> Body {
    let node = NodeId(Uuid::from_u128(id));
    match what {
        0..=3 => Body::RegisterNode(RegisterNode {
            id: node,
            name: format!("node-{name}").parse().unwrap(),
            labels: Default::default(),
            replaces: (what == 3).then_some(NodeId(Uuid::from_u128(other))),
        }),
        4 | 5 => Body::CordonNode {
            node,
            cordoned: what == 4,
        },
        6 => Body::DrainNode {
            node,
            deadline: Some(Timestamp(u64::from(name))),
            force: other.is_multiple_of(2),
        },
        _ => Body::RemoveNode { node },
    }
}

fn cluster_body(view: &View, step: u8, token: u128, n: u8, generation: u64) -> Body {
    let role = ComponentRole::ALL[usize::from(n) % 3];
    match step {
        0 => cluster::init(),
        1 | 2 => Body::Operation(cluster::create(
            token,
            role,
            50 + generation * 30,
            u32::from(n) % 3,
        )),
        3 => Body::Operation(Operation::RevokeJoinToken {
            id: TokenId(Uuid::from_u128(token)),
        }),
        4 => cluster::redeem(token, cluster::controller(n, generation)),
        5 => cluster::redeem(token, Admission::Gateway),
        6 => Body::RemoveMember {
            member: MemberId(u64::from(n)),
        },
        _ => {
            let members: Vec<u64> = view.members().map(|member| member.id.0).collect();
            cluster::rotate(generation, &members)
        }
    }
}

fn check_cluster(before: &View, after: &View, effects: &[Effect]) {
    let members: Vec<_> = after.members().map(|member| member.id).collect();
    let wrapped: Option<Vec<_>> = after
        .secrets()
        .map(|secrets| secrets.wrapped.keys().copied().collect());
    assert_eq!(
        members,
        wrapped.unwrap_or_default(),
        "sealed to each member and to nobody else"
    );
    let newest = before.members().map(|member| member.id).max();
    for member in members {
        let is_new = before.member(member).is_none();
        assert!(!is_new || Some(member) > newest, "a number came back");
    }
    let changed = before.secrets() != after.secrets();
    assert!(!changed || effects.contains(&Effect::ClusterChanged));
    for token in before.join_tokens() {
        let now = after.join_token(token.id);
        assert!(now.is_none_or(|now| now.uses_left <= token.uses_left));
        assert!(now == Some(token) || effects.contains(&Effect::JoinTokenChanged(token.id)));
    }
}

fn check_nodes(before: &View, after: &View, effects: &[Effect]) {
    for n in 1..7 {
        let id = NodeId(Uuid::from_u128(n));
        let changed = before.node(id) != after.node(id);
        assert!(!changed || effects.contains(&Effect::NodeChanged(id)));
        assert!(!after.is_removed(id) || after.node(id).is_none());
        assert!(
            !before.is_removed(id) || after.is_removed(id),
            "removed for good"
        );
    }
    for record in after.nodes() {
        assert_eq!(
            after.node_named(&record.name),
            Some(record),
            "each name once"
        );
        assert!(record.cordoned || record.draining.is_none());
    }
}

fn body(view: &View, proposal: Proposal) -> Body {
    let (nth, behind, step) = match proposal {
        Proposal::Client(operation) => return Body::Operation(operation),
        Proposal::Incarnation(incarnation) => return Body::SetIncarnation { incarnation },
        Proposal::Cluster(step, token, n, generation) => {
            return cluster_body(view, step, token, n, generation);
        }
        Proposal::Node(id, name, other, what) => return node_body(id, name, other, what),
        Proposal::Leader(nth, behind, step) => (nth, behind, step),
    };
    let known: Vec<_> = view
        .functions()
        .map(|record| record.function.latest)
        .collect();
    let nobody = RevisionId {
        function: FunctionId(Uuid::nil()),
        number: 1,
    };
    let latest = known
        .get(nth % known.len().max(1))
        .copied()
        .unwrap_or(nobody);
    let revision = RevisionId {
        number: latest.number.saturating_sub(behind).max(1),
        ..latest
    };
    let reason = "it failed".to_owned();
    match step {
        0 => Body::BeginBuild { revision },
        1 => Body::FinishBuild {
            revision,
            output: output(&(revision.number % 3).to_string()),
        },
        2 => Body::FailBuild { revision, reason },
        3 => Body::Promote { revision },
        _ => Body::FailDeploy { revision, reason },
    }
}

fn check_functions(view: &View) {
    let mut listed = 0;
    for record in view.functions() {
        let function = &record.function;
        let namespace = view
            .namespace(function.namespace)
            .expect("its namespace exists");
        assert_eq!(namespace.project, function.project);
        let name = view.function_ref(function);
        assert_eq!(view.function_named(function.project, &name), Some(record));
        assert_eq!(record.latest().id, function.latest);
        assert_eq!(
            record.serving().map(|revision| revision.id),
            function.serving
        );
        let mut count = 0;
        for revision in record.revisions() {
            count += 1;
            assert!(revision.id.number <= function.latest.number);
            assert_eq!(revision.id.function, function.id);
            assert!(revision.stage.is_final() || revision.id == function.latest);
            assert!(revision.build.is_some() || !proved(revision));
        }
        assert!(count <= REVISIONS_KEPT + 2);
        assert!(record.serving().is_none_or(|revision| proved(revision)));
    }
    for project in view.projects() {
        for namespace in view.namespaces(project.id) {
            assert_eq!(namespace.project, project.id);
            listed += view.functions_in(namespace.id).count();
        }
    }
    assert_eq!(listed, view.functions().count(), "each is listed once");
}

fn proved(revision: &coracle_model::Revision) -> bool {
    revision.stage == coracle_model::Stage::Running
}

fn check_keys(view: &View) {
    let mut forward: BTreeMap<FunctionId, BTreeSet<KeyName>> = BTreeMap::new();
    for project in view.projects() {
        for key in view.keys(project.id) {
            assert_eq!(key.project, project.id);
            assert!(
                key.functions.is_sorted_by(|a, b| a < b),
                "sorted, each once"
            );
            for function in &key.functions {
                let record = view
                    .function_named(key.project, function)
                    .expect("it exists");
                forward
                    .entry(record.function.id)
                    .or_default()
                    .insert(key.name.clone());
            }
        }
    }
    for record in view.functions() {
        let id = record.function.id;
        let backward: BTreeSet<_> = view.key_names_of(id).cloned().collect();
        assert_eq!(backward, forward.remove(&id).unwrap_or_default());
        assert_eq!(view.keys_of(&record.function).count(), backward.len());
    }
    for token in view.tokens() {
        if let TokenRole::Project(project) = token.role {
            assert!(view.project(project).is_some());
        }
    }
}

fn check_tasks(view: &View) {
    let mut ended = 0;
    for task in view.tasks(None) {
        assert_eq!(task.state.is_final(), task.finished_at.is_some());
        if task.state.is_final() {
            ended += 1;
            continue;
        }
        assert_eq!(task.state, TaskState::Running);
        let revision = task
            .revision
            .and_then(|id| view.revision(id))
            .expect("something to wait for");
        assert!(!revision.stage.is_final());
    }
    assert!(ended <= limits::TASKS_KEPT);
}

/// The effects name everything that changed, and artifacts are let go of exactly when they are.
fn check_effects(before: &View, after: &State, effects: &[Effect]) {
    let has = |effect| effects.contains(&effect);
    let ids = |view: &View| {
        view.functions()
            .map(|r| r.function.id)
            .collect::<BTreeSet<_>>()
    };
    for id in &ids(before) | &ids(after) {
        let changed = before.function(id) != after.function(id)
            || !before.key_names_of(id).eq(after.key_names_of(id));
        assert!(!changed || has(Effect::FunctionChanged(id)));
        let latest = |view: &View| view.function(id).map(|record| record.latest().id);
        if let Some(new) = latest(after).filter(|new| latest(before) != Some(*new)) {
            assert!(has(Effect::RevisionReceived(new)));
        }
    }
    let ids = |view: &View| {
        view.tasks(None)
            .iter()
            .map(|t| t.id)
            .collect::<BTreeSet<TaskId>>()
    };
    for id in ids(after) {
        assert!(before.task(id) == after.task(id) || has(Effect::TaskChanged(id)));
    }
    let ids = |view: &View| view.tokens().map(|t| t.id).collect::<BTreeSet<_>>();
    for id in &ids(before) | &ids(after) {
        assert!(before.token(id) == after.token(id) || has(Effect::TokenChanged(id)));
    }
    let projects = |view: &View| {
        view.projects()
            .iter()
            .map(|p| p.id)
            .collect::<BTreeSet<_>>()
    };
    for project in &projects(before) | &projects(after) {
        let changed = before.project(project) != after.project(project);
        assert!(!changed || has(Effect::ProjectChanged(project)));
        let ids = |view: &View| {
            view.namespaces(project)
                .map(|n| n.id)
                .collect::<BTreeSet<_>>()
        };
        for id in &ids(before) | &ids(after) {
            let changed = before.namespace(id) != after.namespace(id);
            assert!(!changed || has(Effect::NamespaceChanged(id)));
        }
        let ids = |view: &View| view.keys(project).map(|k| k.id).collect::<BTreeSet<_>>();
        for id in &ids(before) | &ids(after) {
            assert!(before.key(id) == after.key(id) || has(Effect::KeyChanged(id)));
        }
    }
    let (had, have) = (before.referenced_artifacts(), after.referenced_artifacts());
    let gone: BTreeSet<_> = had.difference(&have).copied().collect();
    let said = effects.iter().filter_map(|effect| match effect {
        Effect::ArtifactUnreferenced(digest) => Some(*digest),
        _ => None,
    });
    assert_eq!(said.collect::<BTreeSet<_>>(), gone);
    assert!(have.iter().all(|digest| after.references(digest)));
    assert!(gone.iter().all(|digest| !after.references(digest)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_proposed_the_rules_hold(proposals in vec(proposal(), 1..150)) {
        let (mut one, mut other) = (State::new(), State::new());
        // Without these, most commands would find nothing to work on.
        let setting_up = [
            Operation::CreateNamespace(create_namespace(1, "a")),
            Operation::CreateFunction(Box::new(create_function(1, "a/x"))),
            Operation::CreateKey(create_key(1, "k", &["a/x"])),
        ];
        let setting_up = setting_up.into_iter().map(Proposal::Client);
        for (n, proposal) in (1_u64..).zip(setting_up.chain(proposals)) {
            let before = one.view();
            let body = body(&before, proposal);
            let write_id = WriteId(Uuid::from_u128(u128::from(n)));
            let command = Command { write_id, at: Timestamp(n), body };

            let applied = one.apply(command.clone());
            check_functions(&one);
            check_keys(&one);
            check_tasks(&one);
            check_nodes(&before, &one, &applied.effects);
            check_cluster(&before, &one, &applied.effects);
            check_effects(&before, &one, &applied.effects);
            if applied.outcome.is_err() {
                prop_assert!(before == one.view());
                prop_assert_eq!(&applied.effects, &[]);
            }

            // The other replica reads the command from its log, and was restarted from a snapshot.
            let command = Command::decode(&command.encode().unwrap()).unwrap();
            prop_assert_eq!(&other.apply(command.clone()), &applied);
            prop_assert_eq!(one.hash(), other.hash());
            other = State::decode(&other.encode()).unwrap();
            prop_assert!(one == other);

            let again = other.apply(command);
            prop_assert_eq!(again.outcome, applied.outcome);
            prop_assert_eq!(again.effects, vec![]);
            prop_assert!(one == other);
        }
    }
}
