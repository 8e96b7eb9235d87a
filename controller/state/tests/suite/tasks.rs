use coracle_model::{
    Operation, ProjectId, Refusal, TaskState, limits,
    operation::{CreateNamespace, UpdateNamespace},
    task::{TaskSubject, TaskVerb},
};

use crate::fixture::{
    Fixture, P, create_namespace, delete, function_ref, task_id, update_namespace,
};

#[test]
fn of_namespaces_they_are_finished_at_once() {
    let mut f = Fixture::new();
    let project = P;
    let name = || "c".parse().unwrap();
    let task = |n| Some(task_id(n));
    f.done(Operation::CreateNamespace(CreateNamespace {
        task: task(20),
        ..create_namespace(3, "c")
    }));
    let update = UpdateNamespace {
        task: task(21),
        ..update_namespace("c")
    };
    f.done(Operation::UpdateNamespace(update));
    f.done(Operation::DeleteNamespace {
        project,
        name: name(),
        task: task(22),
    });
    let verbs = [TaskVerb::Create, TaskVerb::Update, TaskVerb::Delete];
    for (n, verb) in [20, 21, 22].into_iter().zip(verbs) {
        let task = f.state.task(task_id(n)).unwrap();
        assert_eq!(
            (&task.state, task.verb, task.project),
            (&TaskState::Finished, verb, P)
        );
        assert_eq!(task.subject, TaskSubject::Namespace { name: "c".into() });
        assert_eq!(task.finished_at, Some(task.created_at));
    }
    let newest_first: Vec<_> = f.state.tasks(Some(P)).iter().map(|task| task.id).collect();
    assert_eq!(newest_first, [task_id(22), task_id(21), task_id(20)]);
    assert_eq!(f.state.tasks(Some(ProjectId(2))).len(), 0);
}

#[test]
fn the_subject_names_the_function() {
    let mut f = Fixture::new();
    let id = f.create(10, "b/hello");
    let task = f.state.task(task_id(10)).unwrap();
    let function = function_ref("b/hello");
    assert_eq!(
        task.subject,
        TaskSubject::Function {
            namespace: function.namespace.to_string(),
            name: function.name.to_string(),
            id: id.to_string(),
        }
    );
    assert_eq!(task.revision, Some(f.latest(id).id));
}

#[test]
fn acknowledged_once_and_only_inside_their_project() {
    let mut f = Fixture::new();
    f.create(10, "hello");
    let acknowledge = |project, n| Operation::AcknowledgeTask {
        project,
        id: task_id(n),
    };
    f.done(acknowledge(P, 10));
    let first = f.state.task(task_id(10)).unwrap().acknowledged_at;
    assert_eq!(first, Some(f.now()));
    assert_eq!(f.done(acknowledge(P, 10)), []);
    assert_eq!(f.state.task(task_id(10)).unwrap().acknowledged_at, first);
    for wrong in [acknowledge(ProjectId(2), 10), acknowledge(P, 11)] {
        assert!(matches!(f.refused(wrong), Refusal::NotFound(_)));
    }
}

#[test]
fn the_oldest_finished_ones_are_forgotten_and_the_waiting_ones_are_not() {
    let mut f = Fixture::new();
    f.create(10, "waits");
    let kept = u128::try_from(limits::TASKS_KEPT).unwrap();
    for n in 0..=kept {
        f.create(100_000 + n, "comes");
        f.done(delete("comes", None));
    }
    assert_eq!(f.state.tasks(None).len(), limits::TASKS_KEPT + 1);
    assert_eq!(f.task(10), TaskState::Running);
    assert!(f.state.task(task_id(100_000)).is_none());
    assert!(f.state.task(task_id(100_001)).is_some());
}
