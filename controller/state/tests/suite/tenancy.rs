use coracle_model::{
    Operation, ProjectId, Refusal, SecretHash, Timestamp, TokenId, TokenRole,
    operation::{CreateKey, CreateNamespace, CreateToken, UpdateNamespace},
};
use coracle_state::{Body, Effect};
use uuid::Uuid;

use crate::fixture::{Fixture, P, create_key, create_namespace, delete, update_namespace};

const OTHER: ProjectId = ProjectId(2);

fn project(name: &str) -> Operation {
    Operation::CreateProject {
        name: name.parse().unwrap(),
    }
}

fn token(n: u128, role: TokenRole) -> CreateToken {
    let id = TokenId(Uuid::from_u128(n));
    let hash = SecretHash::of("secret");
    CreateToken {
        id,
        description: String::new(),
        hash,
        role,
        expires_at: None,
    }
}

#[test]
fn every_server_has_the_default_project() {
    let mut f = Fixture::new();
    assert_eq!(
        f.state
            .projects()
            .iter()
            .map(|p| p.name.as_str())
            .collect::<Vec<_>>(),
        ["default"]
    );
    assert_eq!(
        f.refused(project("default")),
        Refusal::AlreadyExists("project default".into())
    );
    let delete = Operation::DeleteProject { project: P };
    assert!(matches!(f.refused(delete), Refusal::Conflict(_)));
}

#[test]
fn numbers_of_deleted_projects_do_not_come_back() {
    let mut f = Fixture::new();
    assert_eq!(f.done(project("team")), [Effect::ProjectChanged(OTHER)]);
    f.done(Operation::DeleteProject { project: OTHER });
    f.done(project("team"));
    assert_eq!(
        f.state.project_named(&"team".parse().unwrap()).unwrap().id,
        ProjectId(3)
    );
    let gone = Operation::DeleteProject { project: OTHER };
    assert_eq!(f.refused(gone), Refusal::NotFound("project 2".into()));
}

#[test]
fn a_project_goes_when_it_is_empty_and_takes_keys_and_tokens_along() {
    let mut f = Fixture::new();
    f.done(project("team"));
    let namespace = CreateNamespace {
        project: OTHER,
        ..create_namespace(9, "a")
    };
    f.done(Operation::CreateNamespace(namespace));
    f.done(Operation::CreateKey(CreateKey {
        project: OTHER,
        ..create_key(1, "ci", &[])
    }));
    f.done(Operation::CreateKey(create_key(2, "ci", &[])));
    f.done(Operation::CreateToken(token(1, TokenRole::Project(OTHER))));
    f.done(Operation::CreateToken(token(2, TokenRole::Project(P))));
    let delete = || Operation::DeleteProject { project: OTHER };
    assert!(matches!(f.refused(delete()), Refusal::Conflict(_)));
    let name = "a".parse().unwrap();
    f.done(Operation::DeleteNamespace {
        project: OTHER,
        name,
        task: None,
    });
    f.done(delete());
    assert_eq!(
        (f.state.keys(OTHER).count(), f.state.keys(P).count()),
        (0, 1)
    );
    assert_eq!(f.state.tokens().count(), 1);
}

#[test]
fn namespaces_have_names_of_their_own_in_each_project() {
    let mut f = Fixture::new();
    let again = Operation::CreateNamespace(create_namespace(3, "a"));
    assert_eq!(
        f.refused(again),
        Refusal::AlreadyExists("namespace a".into())
    );
    let same_id = Operation::CreateNamespace(create_namespace(1, "c"));
    assert!(matches!(f.refused(same_id), Refusal::AlreadyExists(_)));
    f.done(project("team"));
    let elsewhere = CreateNamespace {
        project: OTHER,
        ..create_namespace(3, "a")
    };
    f.done(Operation::CreateNamespace(elsewhere));
    let names: Vec<_> = f.state.namespaces(P).map(|n| n.name.to_string()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(f.state.namespaces(OTHER).count(), 1);
    let nowhere = CreateNamespace {
        project: ProjectId(9),
        ..create_namespace(4, "a")
    };
    let refusal = f.refused(Operation::CreateNamespace(nowhere));
    assert_eq!(refusal, Refusal::NotFound("project 9".into()));
}

#[test]
fn a_namespace_with_functions_stays() {
    let mut f = Fixture::new();
    f.create(10, "hello");
    let gone = || Operation::DeleteNamespace {
        project: P,
        name: "a".parse().unwrap(),
        task: None,
    };
    let Refusal::Conflict(text) = f.refused(gone()) else {
        panic!("not a conflict")
    };
    assert_eq!(
        text,
        "namespace a still holds 1 function(s): delete them first"
    );
    f.done(delete("hello", None));
    f.done(gone());
    assert_eq!(f.refused(gone()), Refusal::NotFound("namespace a".into()));
}

#[test]
fn namespaces_keep_what_an_update_does_not_give() {
    let mut f = Fixture::new();
    let description = Some("a place".to_owned());
    let update = UpdateNamespace {
        description,
        ..update_namespace("a")
    };
    f.done(Operation::UpdateNamespace(update));
    assert_eq!(
        f.done(Operation::UpdateNamespace(update_namespace("a"))),
        []
    );
    let namespace = f.state.namespace_named(P, &"a".parse().unwrap()).unwrap();
    assert_eq!(namespace.description, "a place");
    let long = UpdateNamespace {
        description: Some("x".repeat(256)),
        ..update_namespace("a")
    };
    assert!(matches!(
        f.refused(Operation::UpdateNamespace(long)),
        Refusal::Invalid(_)
    ));
    let nowhere = Operation::UpdateNamespace(update_namespace("none"));
    assert_eq!(
        f.refused(nowhere),
        Refusal::NotFound("namespace none".into())
    );
}

#[test]
fn the_last_administrator_cannot_lock_everybody_out() {
    let mut f = Fixture::new();
    let remove = |n| Operation::DeleteToken {
        id: TokenId(Uuid::from_u128(n)),
    };
    f.done(Operation::CreateToken(token(1, TokenRole::Admin)));
    f.done(Operation::CreateToken(token(2, TokenRole::Project(P))));
    let expired = CreateToken {
        expires_at: Some(Timestamp(1)),
        ..token(3, TokenRole::Admin)
    };
    f.done(Operation::CreateToken(expired));
    assert!(matches!(f.refused(remove(1)), Refusal::Conflict(_)));
    f.done(remove(2));
    f.done(remove(3));
    f.done(Operation::CreateToken(token(4, TokenRole::Admin)));
    f.done(remove(1));
    assert!(matches!(f.refused(remove(1)), Refusal::NotFound(_)));
    let taken = Operation::CreateToken(token(4, TokenRole::Admin));
    assert!(matches!(f.refused(taken), Refusal::AlreadyExists(_)));
    let nowhere = Operation::CreateToken(token(5, TokenRole::Project(ProjectId(9))));
    assert_eq!(f.refused(nowhere), Refusal::NotFound("project 9".into()));
}

#[test]
fn the_incarnation_only_rises() {
    let mut f = Fixture::new();
    let set = |incarnation| Body::SetIncarnation { incarnation };
    assert_eq!(f.step(set(2)), [Effect::IncarnationRaised(2)]);
    assert_eq!(f.step(set(2)), []);
    assert_eq!(f.step(set(1)), []);
    assert_eq!(f.state.incarnation(), 2);
}
