//! Who belongs to a cluster.

use std::collections::BTreeMap;

use coracle_model::{
    ComponentRole, MemberId, Operation, Refusal, SecretHash, Timestamp, TokenId,
    cluster::Admission, limits, operation::CreateJoinToken,
};
use coracle_state::{Body, Effect, State};
use uuid::Uuid;

use crate::fixture::Fixture;

fn token_id(n: u128) -> TokenId {
    TokenId(Uuid::from_u128(n))
}

pub(crate) fn create(n: u128, role: ComponentRole, expires_at: u64, uses: u32) -> Operation {
    Operation::CreateJoinToken(CreateJoinToken {
        id: token_id(n),
        hash: SecretHash::of("secret"),
        role,
        expires_at: Timestamp(expires_at),
        uses,
    })
}

pub(crate) fn controller(n: u8, generation: u64) -> Admission {
    Admission::Controller {
        name: format!("c{n}"),
        address: format!("10.0.0.{n}:7000"),
        wrapping_key: [n; 32],
        wrapped: vec![n],
        generation,
        replaces: None,
    }
}

pub(crate) fn init() -> Body {
    Body::InitCluster {
        first: controller(1, 1),
        ca_certificate: b"certificate".to_vec(),
        ca_key: b"sealed".to_vec(),
    }
}

pub(crate) fn redeem(n: u128, admission: Admission) -> Body {
    Body::RedeemJoinToken {
        id: token_id(n),
        hash: SecretHash::of("secret"),
        admission,
    }
}

pub(crate) fn rotate(generation: u64, members: &[u64]) -> Body {
    Body::RotateClusterKey {
        generation,
        ca_key: b"sealed anew".to_vec(),
        wrapped: members.iter().map(|n| (MemberId(*n), vec![9])).collect(),
    }
}

fn cluster() -> Fixture {
    let mut f = Fixture::new();
    assert_eq!(f.step(init()), [Effect::ClusterChanged]);
    f
}

fn refused(f: &mut Fixture, body: Body) -> String {
    let before = f.state.view();
    let applied = f.apply(body);
    assert!(before == f.state.view() && applied.effects.is_empty());
    applied.outcome.expect_err("refused").to_string()
}

fn members(state: &State) -> Vec<u64> {
    state.members().map(|member| member.id.0).collect()
}

fn wrapped(state: &State) -> Vec<u64> {
    let secrets = state.secrets().unwrap();
    secrets.wrapped.keys().map(|id| id.0).collect()
}

#[test]
fn a_cluster_is_made_once_and_a_server_by_itself_gives_no_join_tokens() {
    let mut f = Fixture::new();
    let refusal = f.refused(create(1, ComponentRole::Agent, 1_000, 1));
    assert!(
        refusal.to_string().contains("cluster init --from"),
        "{refusal}"
    );
    assert!(refused(&mut f, redeem(1, Admission::Agent)).contains("not known"));
    f.step(init());
    assert_eq!((members(&f.state), wrapped(&f.state)), (vec![1], vec![1]));
    assert!(refused(&mut f, init()).contains("already exists"));
}

#[test]
fn a_token_lets_in_its_role_until_it_expires_or_is_used_up() {
    let mut f = cluster();
    let soon = f.now().0 + 6;
    f.done(create(1, ComponentRole::Agent, soon, 2));
    assert!(refused(&mut f, redeem(1, Admission::Gateway)).contains("agents and not gateways"));
    let wrong = Body::RedeemJoinToken {
        id: token_id(1),
        hash: SecretHash::of("guess"),
        admission: Admission::Agent,
    };
    let unknown = refused(&mut f, redeem(2, Admission::Agent));
    assert_eq!(refused(&mut f, wrong), unknown);
    assert_eq!(
        f.step(redeem(1, Admission::Agent)),
        [Effect::JoinTokenChanged(token_id(1))]
    );
    assert_eq!(f.state.join_token(token_id(1)).unwrap().uses_left, 1);
    // The time of the command decides, and no clock.
    assert_eq!(f.now().0, soon - 1);
    assert!(refused(&mut f, redeem(1, Admission::Agent)).contains("expired at"));

    f.done(create(3, ComponentRole::Gateway, 1_000, 1));
    f.step(redeem(3, Admission::Gateway));
    assert!(refused(&mut f, redeem(3, Admission::Gateway)).contains("as often as it may"));

    f.done(create(4, ComponentRole::Agent, 1_000, 9));
    f.done(Operation::RevokeJoinToken { id: token_id(4) });
    assert!(refused(&mut f, redeem(4, Admission::Agent)).contains("revoked"));
    let again = f.refused(Operation::RevokeJoinToken { id: token_id(4) });
    assert!(matches!(again, Refusal::NotFound(_)));
}

#[test]
fn tokens_are_bounded_and_those_that_are_over_make_room() {
    let mut f = cluster();
    let now = f.now().0;
    let invalid = |f: &mut Fixture, expires_at, uses| {
        let refusal = f.refused(create(1, ComponentRole::Agent, expires_at, uses));
        assert!(matches!(refusal, Refusal::Invalid(_)), "{refusal}");
    };
    invalid(&mut f, now, 1);
    invalid(&mut f, 100_000, 0);
    invalid(&mut f, 100_000, limits::JOIN_TOKEN_USES_MAX + 1);
    let last = limits::JOIN_TOKENS_MAX as u128;
    for n in 1..=last {
        f.done(create(n, ComponentRole::Agent, 100_000, 1));
    }
    let more = create(last + 1, ComponentRole::Agent, 100_000, 1);
    assert!(matches!(f.refused(more.clone()), Refusal::Quota(_)));
    f.step(redeem(7, Admission::Agent));
    f.done(more);
    assert!(f.state.join_token(token_id(7)).is_none());
}

#[test]
fn controllers_get_numbers_that_are_never_given_out_again() {
    let mut f = cluster();
    f.done(create(1, ComponentRole::Controller, 100_000, 100));
    f.step(redeem(1, controller(2, 1)));
    f.step(redeem(1, controller(3, 1)));
    assert_eq!(
        (members(&f.state), wrapped(&f.state)),
        (vec![1, 2, 3], vec![1, 2, 3])
    );
    assert_eq!(
        f.step(Body::RemoveMember {
            member: MemberId(3)
        }),
        [Effect::ClusterChanged]
    );
    assert_eq!(wrapped(&f.state), [1, 2]);
    f.step(redeem(1, controller(4, 1)));
    assert_eq!(members(&f.state), [1, 2, 4]);

    let uses = f.state.join_token(token_id(1)).unwrap().uses_left;
    assert!(refused(&mut f, redeem(1, controller(2, 1))).contains("has the address 10.0.0.2:7000"));
    let mut same_key = controller(9, 1);
    if let Admission::Controller { wrapping_key, .. } = &mut same_key {
        *wrapping_key = [2; 32];
    }
    assert!(refused(&mut f, redeem(1, same_key)).contains("already exists"));
    assert!(refused(&mut f, redeem(1, controller(5, 2))).contains("try again"));
    assert_eq!(f.state.join_token(token_id(1)).unwrap().uses_left, uses);
    for n in 5.. {
        if f.state.members().count() == limits::MEMBERS_MAX {
            assert!(refused(&mut f, redeem(1, controller(n, 1))).contains("at most"));
            break;
        }
        f.step(redeem(1, controller(n, 1)));
    }
}

#[test]
fn a_machine_that_was_installed_anew_takes_its_own_place() {
    let mut f = cluster();
    f.done(create(1, ComponentRole::Controller, 100_000, 100));
    f.step(redeem(1, controller(2, 1)));
    let anew = |key, replaces| {
        let mut admission = controller(2, 1);
        if let Admission::Controller {
            wrapping_key,
            replaces: old,
            ..
        } = &mut admission
        {
            (*wrapping_key, *old) = ([key; 32], Some(MemberId(replaces)));
        }
        redeem(1, admission)
    };
    // The address is that of the machine; whose place is not taken keeps it.
    assert!(refused(&mut f, anew(7, 1)).contains("has the address"));
    f.step(anew(7, 2));
    assert_eq!(
        (members(&f.state), wrapped(&f.state)),
        (vec![1, 3], vec![1, 3])
    );
    assert!(
        refused(&mut f, anew(8, 2)).contains("has the address"),
        "2 is gone"
    );
}

#[test]
fn the_last_controller_stays_and_those_that_are_not_cannot_go() {
    let mut f = cluster();
    let remove = |n| Body::RemoveMember {
        member: MemberId(n),
    };
    assert!(refused(&mut f, remove(1)).contains("last controller"));
    assert!(refused(&mut f, remove(2)).contains("does not exist"));
}

#[test]
fn a_new_cluster_key_is_for_exactly_the_members() {
    let mut f = cluster();
    f.done(create(1, ComponentRole::Controller, 100_000, 100));
    f.step(redeem(1, controller(2, 1)));
    for late in [
        rotate(2, &[1]),
        rotate(2, &[1, 2, 3]),
        rotate(3, &[1, 2]),
        rotate(1, &[1, 2]),
    ] {
        assert!(refused(&mut f, late).contains("try again"));
    }
    f.step(rotate(2, &[1, 2]));
    let secrets = f.state.secrets().unwrap();
    assert_eq!(secrets.generation, 2);
    assert_eq!(secrets.ca_certificate, b"certificate");
    assert_eq!(secrets.ca_key, b"sealed anew");
    let expected: BTreeMap<_, _> = [1, 2].map(|n| (MemberId(n), vec![9])).into();
    assert_eq!(secrets.wrapped, expected);
    assert!(refused(&mut f, redeem(1, controller(3, 1))).contains("try again"));
    f.step(redeem(1, controller(3, 2)));
}
