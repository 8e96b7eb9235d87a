use coracle_model::{
    FunctionId, KeyId, Operation, Refusal, Timestamp, limits,
    operation::{CreateFunction, UpdateFunction, UpdateKey},
};
use coracle_state::Effect;
use uuid::Uuid;

use crate::fixture::{
    Fixture, P, change, create_function, create_key, delete, function_ref, update, update_key,
};

fn key_id(n: u128) -> KeyId {
    KeyId(Uuid::from_u128(n))
}

/// Both ends of the relation, as text.
fn relation(f: &Fixture) -> (Vec<String>, Vec<String>) {
    let keys = f.state.keys(P).flat_map(|key| {
        key.functions
            .iter()
            .map(|function| format!("{} {function}", key.name))
            .collect::<Vec<_>>()
    });
    let functions = f.state.functions().flat_map(|record| {
        let function = f.state.function_ref(&record.function);
        let names = f
            .state
            .keys_of(&record.function)
            .map(|key| key.name.clone());
        names
            .map(|name| format!("{name} {function}"))
            .collect::<Vec<_>>()
    });
    let (mut keys, mut functions): (Vec<_>, Vec<_>) = (keys.collect(), functions.collect());
    keys.sort();
    functions.sort();
    (keys, functions)
}

fn expect(f: &Fixture, pairs: &[&str]) {
    let (keys, functions) = relation(f);
    assert_eq!(keys, pairs);
    assert_eq!(functions, pairs);
}

#[test]
fn the_relation_can_be_changed_from_both_sides() {
    let mut f = Fixture::new();
    f.create(10, "one");
    f.create(11, "b/two");
    let effects = f.done(Operation::CreateKey(create_key(
        1,
        "ci",
        &["one", "b/two", "one"],
    )));
    assert_eq!(
        effects,
        [
            Effect::FunctionChanged(FunctionId(Uuid::from_u128(10))),
            Effect::FunctionChanged(FunctionId(Uuid::from_u128(11))),
            Effect::KeyChanged(key_id(1)),
        ]
    );
    expect(&f, &["ci a/one", "ci b/two"]);

    f.done(Operation::CreateKey(create_key(2, "ops", &[])));
    let keys = Some(vec!["ops".parse().unwrap()]);
    f.done(change(UpdateFunction {
        keys,
        ..update("one")
    }));
    expect(&f, &["ci b/two", "ops a/one"]);

    let functions = Some(vec![function_ref("one")]);
    f.done(Operation::UpdateKey(UpdateKey {
        functions,
        ..update_key("ci")
    }));
    expect(&f, &["ci a/one", "ops a/one"]);

    let keys = vec!["ci".parse().unwrap(), "ops".parse().unwrap()];
    let third = CreateFunction {
        keys,
        ..create_function(12, "b/three")
    };
    f.done(Operation::CreateFunction(Box::new(third)));
    expect(&f, &["ci a/one", "ci b/three", "ops a/one", "ops b/three"]);

    f.done(delete("one", None));
    expect(&f, &["ci b/three", "ops b/three"]);
    f.done(Operation::DeleteKey {
        project: P,
        name: "ops".parse().unwrap(),
    });
    expect(&f, &["ci b/three"]);
}

#[test]
fn what_is_not_given_stays() {
    let mut f = Fixture::new();
    f.create(10, "one");
    f.done(Operation::CreateKey(create_key(1, "ci", &["one"])));
    let expires_at = Some(Some(Timestamp(500)));
    let effects = f.done(Operation::UpdateKey(UpdateKey {
        expires_at,
        ..update_key("ci")
    }));
    // Gateways check the expiry, so routes change.
    assert!(effects.contains(&Effect::FunctionChanged(FunctionId(Uuid::from_u128(10)))));
    f.done(change(UpdateFunction {
        description: Some("d".into()),
        ..update("one")
    }));
    let key = f.state.key_named(P, &"ci".parse().unwrap()).unwrap();
    assert_eq!(
        (key.expires_at, key.functions.len()),
        (Some(Timestamp(500)), 1)
    );
    assert!(key.is_live(Timestamp(499)) && !key.is_live(Timestamp(500)));
    let description = Some("for the pipeline".to_owned());
    let text_only = UpdateKey {
        description,
        ..update_key("ci")
    };
    assert_eq!(
        f.done(Operation::UpdateKey(text_only)),
        [Effect::KeyChanged(key_id(1))]
    );
    let never = UpdateKey {
        expires_at: Some(None),
        ..update_key("ci")
    };
    f.done(Operation::UpdateKey(never));
    assert_eq!(f.state.key(key_id(1)).unwrap().expires_at, None);
    expect(&f, &["ci a/one"]);
}

#[test]
fn only_existing_things_are_bound_and_names_are_taken_once() {
    let mut f = Fixture::new();
    f.create(10, "one");
    let unknown = Operation::CreateKey(create_key(1, "ci", &["one", "none"]));
    let Refusal::Invalid(invalid) = f.refused(unknown) else {
        panic!("not invalid")
    };
    assert_eq!(invalid.field, "functions");
    assert_eq!(
        invalid.reason,
        "function none in namespace a does not exist"
    );
    f.done(Operation::CreateKey(create_key(1, "ci", &[])));
    for taken in [create_key(2, "ci", &[]), create_key(1, "other", &[])] {
        assert!(matches!(
            f.refused(Operation::CreateKey(taken)),
            Refusal::AlreadyExists(_)
        ));
    }
    let functions = Some(vec![function_ref("none")]);
    let unknown = UpdateKey {
        functions,
        ..update_key("ci")
    };
    assert!(matches!(
        f.refused(Operation::UpdateKey(unknown)),
        Refusal::Invalid(_)
    ));
    let missing = Operation::UpdateKey(update_key("none"));
    assert_eq!(f.refused(missing), Refusal::NotFound("key none".into()));
    let missing = Operation::DeleteKey {
        project: P,
        name: "none".parse().unwrap(),
    };
    assert_eq!(f.refused(missing), Refusal::NotFound("key none".into()));
}

#[test]
fn both_sides_are_bounded() {
    let mut f = Fixture::new();
    let most = limits::FUNCTION_KEYS_MAX;
    assert_eq!(
        most,
        limits::KEY_FUNCTIONS_MAX,
        "the test counts one number for both"
    );
    for n in 0..=most {
        let n = u128::try_from(n).unwrap();
        f.create(1000 + n, &format!("f{n}"));
        f.done(Operation::CreateKey(create_key(
            1 + n,
            &format!("k{n}"),
            &[],
        )));
    }
    let functions: Vec<_> = (0..=most).map(|n| function_ref(&format!("f{n}"))).collect();
    let keys: Vec<_> = (0..=most)
        .map(|n| format!("k{n}").parse().unwrap())
        .collect();
    let bind = |functions: &[_]| {
        let functions = Some(functions.to_vec());
        Operation::UpdateKey(UpdateKey {
            functions,
            ..update_key("k0")
        })
    };
    let give = |name: &str, keys: &[_]| {
        change(UpdateFunction {
            keys: Some(keys.to_vec()),
            ..update(name)
        })
    };
    assert!(matches!(f.refused(bind(&functions)), Refusal::Invalid(_)));
    assert!(matches!(f.refused(give("f0", &keys)), Refusal::Invalid(_)));
    f.done(bind(&functions[..most]));
    // The key is full for another function, and not for one that it has.
    assert!(matches!(
        f.refused(give(&format!("f{most}"), &keys[..1])),
        Refusal::Quota(_)
    ));
    f.done(give("f0", &keys[..most]));
    let one_more = UpdateKey {
        functions: Some(vec![function_ref("f0")]),
        ..update_key(&format!("k{most}"))
    };
    assert!(matches!(
        f.refused(Operation::UpdateKey(one_more)),
        Refusal::Quota(_)
    ));
}
