use coracle_model::{
    FunctionId, Memory, Refusal, ScaleBounds, TaskState,
    operation::{CreateFunction, SettingsPatch, UpdateFunction, UpdateNamespace},
};
use coracle_model::{Operation, limits};
use coracle_state::Effect;
use uuid::Uuid;

use crate::fixture::{
    Fixture, P, change, code, create_function, delete, env, function_ref, task_id, update,
    update_namespace,
};

fn create(create: CreateFunction) -> Operation {
    Operation::CreateFunction(Box::new(create))
}

fn field(refusal: &Refusal) -> &str {
    match refusal {
        Refusal::Invalid(invalid) => &invalid.field,
        other => panic!("expected an invalid field, got: {other}"),
    }
}

#[test]
fn a_created_function_waits_for_its_build() {
    let mut f = Fixture::new();
    let effects = f.done(create(create_function(10, "hello")));
    let id = FunctionId(Uuid::from_u128(10));
    let first = f.latest(id).id;
    assert_eq!(first.number, 1);
    assert_eq!(
        effects,
        [
            Effect::FunctionChanged(id),
            Effect::RevisionReceived(first),
            Effect::TaskChanged(task_id(10)),
        ]
    );
    assert_eq!(f.task(10), TaskState::Running);
    assert_eq!(
        f.state.unsettled().map(|r| r.id).collect::<Vec<_>>(),
        [first]
    );
    let view = f.state.function_view(f.record(id), 3, 2);
    assert_eq!(
        (view.namespace.as_str(), view.project.as_str()),
        ("a", "default")
    );
    assert_eq!((view.serving, view.wanted, view.ready), (None, 3, 2));
}

#[test]
fn names_and_ids_are_taken_once() {
    let mut f = Fixture::new();
    f.create(10, "hello");
    let taken = "function hello in namespace a".to_owned();
    let other = f.refused(create(CreateFunction {
        task: None,
        ..create_function(11, "hello")
    }));
    assert_eq!(other, Refusal::AlreadyExists(taken));
    let same_id = CreateFunction {
        task: None,
        ..create_function(10, "other")
    };
    assert!(matches!(
        f.refused(create(same_id)),
        Refusal::AlreadyExists(_)
    ));
    let same_task = CreateFunction {
        task: Some(task_id(10)),
        ..create_function(12, "third")
    };
    assert!(matches!(
        f.refused(create(same_task)),
        Refusal::AlreadyExists(_)
    ));
    // The same name elsewhere is another function.
    f.create(13, "b/hello");
}

#[test]
fn what_a_function_refers_to_must_exist() {
    let mut f = Fixture::new();
    let nowhere = create(create_function(10, "nowhere/hello"));
    assert_eq!(
        f.refused(nowhere),
        Refusal::NotFound("namespace nowhere".into())
    );
    let project = coracle_model::ProjectId(9);
    let no_project = create(CreateFunction {
        project,
        ..create_function(10, "hello")
    });
    assert_eq!(f.refused(no_project), Refusal::NotFound("project 9".into()));
    let keys = vec!["ci".parse().unwrap()];
    let no_key = create(CreateFunction {
        keys,
        ..create_function(10, "hello")
    });
    assert_eq!(field(&f.refused(no_key)), "keys");
    assert!(matches!(
        f.refused(change(update("hello"))),
        Refusal::NotFound(_)
    ));
    assert!(matches!(
        f.refused(delete("hello", None)),
        Refusal::NotFound(_)
    ));
}

#[test]
fn texts_are_bounded() {
    let mut f = Fixture::new();
    let long = "x".repeat(limits::DESCRIPTION_MAX_CHARS + 1);
    let large = [(
        "a/b".to_owned(),
        "x".repeat(limits::ANNOTATIONS_TOTAL_MAX_BYTES),
    )];
    let description = CreateFunction {
        description: long.clone(),
        ..create_function(10, "hello")
    };
    assert_eq!(field(&f.refused(create(description))), "description");
    let annotations = CreateFunction {
        annotations: large.clone().into(),
        ..create_function(10, "hello")
    };
    assert_eq!(field(&f.refused(create(annotations))), "annotations");
    f.create(10, "hello");
    let description = UpdateFunction {
        description: Some(long),
        ..update("hello")
    };
    assert_eq!(field(&f.refused(change(description))), "description");
    let annotations = UpdateFunction {
        annotations: Some(large.into()),
        ..update("hello")
    };
    assert_eq!(field(&f.refused(change(annotations))), "annotations");
}

#[test]
fn an_update_merges_and_makes_a_revision_only_for_settings() {
    let mut f = Fixture::new();
    let id = f.create(10, "hello");
    f.run(id);
    let described = UpdateFunction {
        description: Some("says hello".into()),
        key_required: Some(true),
        task: Some(task_id(20)),
        ..update("hello")
    };
    let effects = f.done(change(described));
    assert_eq!(
        effects,
        [
            Effect::FunctionChanged(id),
            Effect::TaskChanged(task_id(20))
        ]
    );
    assert_eq!(f.task(20), TaskState::Finished);
    let function = f.record(id).function.clone();
    assert_eq!(function.latest.number, 1);
    assert!(function.key_required && function.description == "says hello");
    assert_eq!(function.updated_at, f.now());

    let memory = Memory::from_mib(256).unwrap();
    f.update(
        "hello",
        SettingsPatch {
            memory: Some(memory),
            ..SettingsPatch::default()
        },
        21,
    );
    let latest = f.latest(id);
    assert_eq!((latest.id.number, latest.settings.memory), (2, memory));
    assert_eq!(
        latest.settings.source,
        f.record(id).serving().unwrap().settings.source
    );
    assert_eq!(f.task(21), TaskState::Running);
}

#[test]
fn an_update_that_changes_nothing_is_finished_at_once() {
    let mut f = Fixture::new();
    let id = f.create(10, "hello");
    let before = f.record(id).clone();
    let same = UpdateFunction {
        scale_min: Some(0),
        disabled: Some(false),
        settings: code("hello"),
        task: Some(task_id(20)),
        ..update("hello")
    };
    assert_eq!(f.done(change(same)), [Effect::TaskChanged(task_id(20))]);
    assert_eq!(*f.record(id), before);
    assert_eq!(
        (f.task(10), f.task(20)),
        (TaskState::Running, TaskState::Finished)
    );
}

#[test]
fn one_bound_of_the_scale_is_checked_with_the_other() {
    let mut f = Fixture::new();
    let id = f.create(10, "hello");
    f.done(change(UpdateFunction {
        scale_max: Some(3),
        ..update("hello")
    }));
    f.done(change(UpdateFunction {
        scale_min: Some(2),
        ..update("hello")
    }));
    assert_eq!(f.record(id).function.scale, ScaleBounds::new(2, 3).unwrap());
    for (scale_min, scale_max, expected) in [
        (Some(4), None, "scale.min"),
        (None, Some(1), "scale.min"),
        (None, Some(51), "scale.max"),
    ] {
        let wrong = UpdateFunction {
            scale_min,
            scale_max,
            ..update("hello")
        };
        assert_eq!(field(&f.refused(change(wrong))), expected);
    }
}

#[test]
fn a_changed_namespace_gives_its_functions_new_revisions() {
    let mut f = Fixture::new();
    let (plain, own, elsewhere) = (
        f.create(10, "plain"),
        f.create(11, "own"),
        f.create(12, "b/x"),
    );
    let patch = SettingsPatch {
        env: Some(env(&[("A", "fn")])),
        ..SettingsPatch::default()
    };
    f.update("own", patch, 20);
    for id in [plain, own, elsewhere] {
        f.run(id);
    }
    let update = UpdateNamespace {
        env: Some(env(&[("A", "ns")])),
        task: Some(task_id(21)),
        ..update_namespace("a")
    };
    let effects = f.done(Operation::UpdateNamespace(update));
    let latest = f.latest(plain);
    assert_eq!(
        (latest.id.number, &latest.instance_env),
        (2, &env(&[("A", "ns")]))
    );
    assert!(effects.contains(&Effect::RevisionReceived(latest.id)));
    assert_eq!(latest.settings, f.record(plain).serving().unwrap().settings);
    // It sets the variable itself, so nothing changes for it.
    assert_eq!(f.latest(own).id.number, 2);
    assert_eq!(f.latest(elsewhere).id.number, 1);
    assert_eq!(f.task(21), TaskState::Finished);
    // Later revisions have both.
    let patch = SettingsPatch {
        env: Some(env(&[("B", "fn")])),
        ..SettingsPatch::default()
    };
    f.update("plain", patch, 22);
    assert_eq!(
        f.latest(plain).instance_env,
        env(&[("A", "ns"), ("B", "fn")])
    );
}

#[test]
fn a_deleted_function_is_gone_with_its_names_and_artifacts() {
    let mut f = Fixture::new();
    let id = f.create(10, "hello");
    let code = f.state.referenced_artifacts();
    assert_eq!(code.len(), 1);
    let effects = f.done(delete("hello", Some(20)));
    assert_eq!(f.task(20), TaskState::Finished);
    assert_eq!(
        f.task(10),
        TaskState::Error("the function was deleted".into())
    );
    assert!(f.state.function(id).is_none());
    assert!(f.state.function_named(P, &function_ref("hello")).is_none());
    for digest in code {
        assert!(effects.contains(&Effect::ArtifactUnreferenced(digest)));
        assert!(!f.state.references(&digest));
    }
    f.create(11, "hello");
}

#[test]
fn lists_are_sorted_by_name() {
    let mut f = Fixture::new();
    for (n, name) in [
        (14, "a/zeta"),
        (13, "b/beta"),
        (12, "a/alpha"),
        (11, "b/alpha"),
    ] {
        f.create(n, name);
    }
    let list: Vec<_> = f
        .state
        .functions_of(P)
        .map(|r| f.state.function_ref(&r.function).to_string())
        .collect();
    assert_eq!(list, ["a/alpha", "a/zeta", "b/alpha", "b/beta"]);
    let b = f
        .state
        .namespace_named(P, &"b".parse().unwrap())
        .unwrap()
        .id;
    assert_eq!(f.state.functions_in(b).count(), 2);
    assert_eq!(f.state.functions().count(), 4);
}
