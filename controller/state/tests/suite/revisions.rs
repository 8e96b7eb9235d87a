use coracle_model::{Operation, operation::SettingsPatch};
use coracle_model::{
    RevisionId, Stage, TaskState, limits,
    operation::{CreateFunction, UpdateFunction},
};
use coracle_state::{Body, Effect, REVISIONS_KEPT};

use crate::fixture::{Fixture, change, code, create_function, output, task_id, update};

#[test]
fn received_building_deploying_running() {
    let mut f = Fixture::new();
    let id = f.create(10, "hello");
    let revision = f.latest(id).id;
    assert_eq!(f.stage(revision), Stage::Received);
    assert_eq!(
        f.step(Body::BeginBuild { revision }),
        [Effect::FunctionChanged(id)]
    );
    assert_eq!(f.stage(revision), Stage::Building);
    f.step(Body::FinishBuild {
        revision,
        output: output("x"),
    });
    assert_eq!(f.stage(revision), Stage::Deploying);
    assert_eq!(f.latest(id).build, Some(output("x")));
    assert!(f.state.references(&output("x").code));
    assert_eq!(
        (f.task(10), f.record(id).serving()),
        (TaskState::Running, None)
    );
    let effects = f.step(Body::Promote { revision });
    assert_eq!(
        effects,
        [
            Effect::FunctionChanged(id),
            Effect::TaskChanged(task_id(10))
        ]
    );
    assert_eq!(f.stage(revision), Stage::Running);
    assert_eq!(f.task(10), TaskState::Finished);
    assert_eq!(f.record(id).function.serving, Some(revision));
    assert_eq!(f.state.unsettled().count(), 0);
}

#[test]
fn a_failed_build_or_deploy_leaves_what_serves() {
    let mut f = Fixture::new();
    let id = f.create(10, "hello");
    let first = f.run(id);

    f.update("hello", code("two"), 20);
    let second = f.latest(id).id;
    f.step(Body::FailBuild {
        revision: second,
        reason: "no such package".into(),
    });
    assert_eq!(
        f.stage(second),
        Stage::BuildFailed {
            reason: "no such package".into()
        }
    );
    assert_eq!(f.task(20), TaskState::Error("no such package".into()));

    f.update("hello", code("three"), 21);
    let third = f.latest(id).id;
    f.step(Body::FinishBuild {
        revision: third,
        output: output("three"),
    });
    f.step(Body::FailDeploy {
        revision: third,
        reason: "it exits".into(),
    });
    assert_eq!(
        f.stage(third),
        Stage::DeployFailed {
            reason: "it exits".into()
        }
    );
    assert_eq!(f.task(21), TaskState::Error("it exits".into()));

    let function = &f.record(id).function;
    assert_eq!((function.latest, function.serving), (third, Some(first)));
}

#[test]
fn sending_failed_settings_again_tries_again() {
    let mut f = Fixture::new();
    let id = f.create(10, "hello");
    let revision = f.latest(id).id;
    f.step(Body::FailBuild {
        revision,
        reason: "the index did not answer".into(),
    });
    f.done(change(UpdateFunction {
        scale_min: Some(1),
        ..update("hello")
    }));
    f.update("hello", SettingsPatch::default(), 20);
    assert_eq!(f.latest(id).id, revision, "nothing was sent again");
    f.update("hello", code("hello"), 21);
    assert_eq!(
        (f.latest(id).id.number, f.task(21)),
        (2, TaskState::Running)
    );
}

#[test]
fn a_newer_update_abandons_what_is_on_its_way() {
    let mut f = Fixture::new();
    let id = f.create(10, "hello");
    let first = f.latest(id).id;
    f.step(Body::BeginBuild { revision: first });
    f.update("hello", code("two"), 20);
    let second = f.latest(id).id;
    assert_eq!(f.stage(first), Stage::Abandoned);
    assert_eq!(
        f.task(10),
        TaskState::Error("superseded by a newer update".into())
    );
    assert_eq!((second.number, f.task(20)), (2, TaskState::Running));
    assert_eq!(
        f.state.unsettled().map(|r| r.id).collect::<Vec<_>>(),
        [second]
    );
}

#[test]
fn steps_that_do_not_fit_change_nothing() {
    let mut f = Fixture::new();
    let id = f.create(10, "hello");
    let revision = f.latest(id).id;
    let reason = || "late".to_owned();
    let steps = |revision: RevisionId| {
        [
            Body::BeginBuild { revision },
            Body::FinishBuild {
                revision,
                output: output("late"),
            },
            Body::FailBuild {
                revision,
                reason: reason(),
            },
            Body::Promote { revision },
            Body::FailDeploy {
                revision,
                reason: reason(),
            },
        ]
    };
    let ignored = |f: &mut Fixture, body: Body| {
        let before = f.state.view();
        assert_eq!(f.step(body.clone()), [], "{body:?}");
        assert!(before == f.state.view(), "{body:?}");
    };
    // Not built yet.
    ignored(&mut f, Body::Promote { revision });
    ignored(
        &mut f,
        Body::FailDeploy {
            revision,
            reason: reason(),
        },
    );
    f.step(Body::BeginBuild { revision });
    ignored(&mut f, Body::BeginBuild { revision });
    f.step(Body::FinishBuild {
        revision,
        output: output("x"),
    });
    ignored(
        &mut f,
        Body::FinishBuild {
            revision,
            output: output("y"),
        },
    );
    ignored(
        &mut f,
        Body::FailBuild {
            revision,
            reason: reason(),
        },
    );
    f.step(Body::Promote { revision });
    // Final, of no function, of no revision, superseded.
    f.update("hello", code("two"), 20);
    let unknown = RevisionId {
        number: 9,
        ..revision
    };
    let nobody = RevisionId {
        function: coracle_model::FunctionId(uuid::Uuid::nil()),
        number: 1,
    };
    for stale in [revision, unknown, nobody] {
        for step in steps(stale) {
            ignored(&mut f, step);
        }
    }
}

#[test]
fn old_revisions_go_but_not_the_one_that_serves() {
    let mut f = Fixture::new();
    let id = f.create(10, "hello");
    let serving = f.run(id);
    let first_code = f.latest(id).settings;
    let mut unreferenced = Vec::new();
    let updates = u32::try_from(REVISIONS_KEPT).unwrap() + 5;
    for n in 1..=updates {
        let effects = f.update("hello", code(&n.to_string()), u128::from(100 + n));
        unreferenced.extend(effects.into_iter().filter_map(|effect| match effect {
            Effect::ArtifactUnreferenced(digest) => Some(digest),
            _ => None,
        }));
    }
    let kept: Vec<_> = f.record(id).revisions().map(|r| r.id.number).collect();
    assert_eq!(kept.len(), REVISIONS_KEPT + 2);
    assert_eq!(
        (kept[0], kept[kept.len() - 1]),
        (serving.number, updates + 1)
    );
    let dropped: Vec<_> = (1..=4).map(|n| code_digest(&n.to_string())).collect();
    assert_eq!(unreferenced, dropped);
    assert_eq!(f.record(id).serving().unwrap().settings, first_code);

    // Once a newer one serves, the old one is an old one.
    let effects = {
        let revision = f.latest(id).id;
        f.step(Body::FinishBuild {
            revision,
            output: output("last"),
        });
        f.step(Body::Promote { revision })
    };
    assert!(f.state.revision(serving).is_none());
    assert!(effects.contains(&Effect::ArtifactUnreferenced(code_digest("hello"))));
}

fn code_digest(text: &str) -> coracle_model::Digest {
    coracle_model::Digest::of(text.as_bytes())
}

#[test]
fn reasons_are_kept_short() {
    let mut f = Fixture::new();
    let id = f.create(10, "hello");
    let revision = f.latest(id).id;
    f.step(Body::FailBuild {
        revision,
        reason: "x".repeat(10_000),
    });
    let Stage::BuildFailed { reason } = f.stage(revision) else {
        panic!("not failed")
    };
    assert_eq!(reason.chars().count(), limits::REASON_MAX_CHARS);
    assert_eq!(f.task(10), TaskState::Error(reason));
}

#[test]
fn a_function_of_no_instances_is_not_waited_for() {
    let mut f = Fixture::new();
    let id = f.create(10, "hello");
    let revision = f.latest(id).id;
    let bounds = |max| {
        change(UpdateFunction {
            scale_min: Some(0),
            scale_max: Some(max),
            ..update("hello")
        })
    };
    f.done(bounds(0));
    assert_eq!(f.task(10), TaskState::Running, "it is still being built");
    f.step(Body::FinishBuild {
        revision,
        output: output("x"),
    });
    assert_eq!(
        (f.stage(revision), f.task(10)),
        (Stage::Deploying, TaskState::Finished)
    );
    f.done(bounds(1));
    f.step(Body::Promote { revision });
    assert_eq!(f.record(id).function.serving, Some(revision));
}

#[test]
fn a_disabled_function_is_not_waited_for() {
    let mut f = Fixture::new();
    let create = CreateFunction {
        disabled: true,
        ..create_function(10, "hello")
    };
    f.done(Operation::CreateFunction(Box::new(create)));
    let id = coracle_model::FunctionId(uuid::Uuid::from_u128(10));
    let revision = f.latest(id).id;
    assert_eq!(f.task(10), TaskState::Running);
    f.step(Body::FinishBuild {
        revision,
        output: output("x"),
    });
    assert_eq!(
        (f.stage(revision), f.task(10)),
        (Stage::Deploying, TaskState::Finished)
    );

    let other = f.create(11, "other");
    let revision = f.latest(other).id;
    f.step(Body::FinishBuild {
        revision,
        output: output("y"),
    });
    f.done(change(UpdateFunction {
        disabled: Some(true),
        ..update("other")
    }));
    assert_eq!(
        (f.stage(revision), f.task(11)),
        (Stage::Deploying, TaskState::Finished)
    );
    f.done(change(UpdateFunction {
        disabled: Some(false),
        ..update("other")
    }));
    f.step(Body::Promote { revision });
    assert_eq!(f.record(other).function.serving, Some(revision));
}
