//! Several nodes: one is lost and comes back, one is emptied, one is removed.

use std::time::Duration;

use coracle_model::node::{NodeChange, NodeState};
use tonic::Code;

use crate::{agent::Agent, fixture::*};

const DRAIN: NodeChange = NodeChange::Drain {
    deadline: None,
    force: false,
};

fn impatient(config: &mut coracle_controller::Config) {
    config.leader.node_grace = Duration::from_millis(300);
    config.leader.collect_deadline = Duration::from_millis(200);
    // A test's machine may be slow for a moment: that the leader did not look is not to matter.
    config.leader.tick = Duration::from_millis(100);
}

/// The one of the two that has an instance, and the other.
async fn by_load(agents: [&Agent; 2]) -> (&Agent, &Agent) {
    wait("an instance", || async {
        match agents.map(|agent| agent.live().len()) {
            [0, 0] => Err("none".to_owned()),
            [_, 0] => Ok((agents[0], agents[1])),
            _ => Ok((agents[1], agents[0])),
        }
    })
    .await
}

#[tokio::test]
async fn a_lost_nodes_instances_are_replaced_and_what_it_brings_back_is_reconciled() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::with(dir.path(), impatient).await;
    let (one, two) = (Agent::numbered(1), Agent::numbered(2));
    let sessions = [
        one.connect(&server.channel).await,
        two.connect(&server.channel).await,
    ];
    server.create("hello", 1, 3).await;
    let id = server.serving("hello", 1).await.function.id;
    let (home, other) = by_load([&one, &two]).await;
    let kept = home.live()[0];
    let [first, second] = sessions;
    let (cut, _stays) = if home.id() == one.id() {
        (first, second)
    } else {
        (second, first)
    };
    cut.cut();
    server.stands(home.id(), NodeState::Silent).await;
    let lost = server.stands(home.id(), NodeState::Lost).await;
    assert_eq!(
        lost.node.name,
        server.node(home.id()).await.unwrap().node.name
    );
    let mut routes = server.routes().await;
    let route = routes
        .until(id, |route| open(route) == 1 && route.instances.len() == 1)
        .await;
    assert_eq!(route.instances[0].node, wire(other.id()));
    assert!(
        home.live().contains(&kept),
        "it runs on where nobody can reach it"
    );

    let _back = home.connect(&server.channel).await;
    server.stands(home.id(), NodeState::Ready).await;
    // The minimum is one, and idle ones above it go once the autoscaler has settled.
    wait("one of the two to go", || async {
        let live = one.live().len() + two.live().len();
        if live == 1 {
            Ok(())
        } else {
            Err(live.to_string())
        }
    })
    .await;
    server.stop().await;
}

fn wire(id: coracle_model::NodeId) -> bytes::Bytes {
    use coracle_proto::Wire as _;
    id.to_wire()
}

#[tokio::test]
async fn a_drained_node_is_emptied_make_before_break_and_takes_nothing_until_it_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let (one, two) = (Agent::numbered(1), Agent::numbered(2));
    let _sessions = [
        one.connect(&server.channel).await,
        two.connect(&server.channel).await,
    ];
    server.create("hello", 2, 2).await;
    let id = server.serving("hello", 1).await.function.id;
    let mut routes = server.routes().await;
    routes.until(id, |route| open(route) == 2).await;

    let write = fresh_write();
    assert_eq!(server.change_node(write, one.id(), DRAIN).await, None);
    // From here on at least two answer in whatever the gateways are told.
    let all_on_two = loop {
        let route = routes.routes.values().next().unwrap();
        assert!(open(route) >= 2, "{route:?}");
        if route.instances.iter().all(|i| i.node == wire(two.id())) {
            break route.clone();
        }
        routes.step().await;
    };
    assert_eq!(open(&all_on_two), 2);
    let done = server.stands(one.id(), NodeState::Drained).await;
    assert!(done.cordoned && done.draining.is_some() && done.instances == 0);
    assert_eq!(
        server.change_node(write, one.id(), DRAIN).await,
        None,
        "the same write again"
    );

    // The other is now the last one that can hold it.
    let refusal = server
        .change_node(fresh_write(), two.id(), DRAIN)
        .await
        .unwrap();
    assert!(
        refusal
            .message
            .contains("the last one that can hold function default/hello"),
        "{refusal:?}"
    );
    assert_eq!(server.node(two.id()).await.unwrap().state, NodeState::Ready);
    assert_eq!(
        server
            .change_node(fresh_write(), one.id(), NodeChange::Uncordon)
            .await,
        None
    );
    assert_eq!(server.node(one.id()).await.unwrap().state, NodeState::Ready);
    server.stop().await;
}

#[tokio::test]
async fn a_removed_node_stays_out_and_a_reinstalled_one_takes_its_old_place() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::with(dir.path(), impatient).await;
    let one = Agent::numbered(1);
    let session = one.connect(&server.channel).await;
    server.create("hello", 1, 1).await;
    server.serving("hello", 1).await;

    let twin = Agent::named(2, "node-1");
    let taken = twin.refused(&server.channel).await;
    assert_eq!(taken.code(), Code::AlreadyExists);
    assert!(
        taken.message().contains("another node of the name node-1"),
        "{taken}"
    );
    let remove = |force| NodeChange::Remove { force };
    let refusal = server
        .change_node(fresh_write(), one.id(), remove(false))
        .await
        .unwrap();
    assert!(refusal.message.contains("runs 1 instance"), "{refusal:?}");

    session.cut();
    server.stands(one.id(), NodeState::Lost).await;
    let _session = twin.connect(&server.channel).await;
    wait("the old node to give way", || async {
        let nodes: Vec<_> = server.nodes().await.iter().map(|n| n.node.id).collect();
        if nodes == [twin.id()] {
            Ok(())
        } else {
            Err(format!("{nodes:?}"))
        }
    })
    .await;
    let stale = one.refused(&server.channel).await;
    assert_eq!(stale.code(), Code::PermissionDenied, "{stale}");

    let write = fresh_write();
    assert_eq!(
        server.change_node(write, twin.id(), remove(true)).await,
        None
    );
    assert_eq!(
        server.change_node(write, twin.id(), remove(true)).await,
        None,
        "repeated"
    );
    assert!(server.nodes().await.is_empty());
    assert_eq!(
        twin.refused(&server.channel).await.code(),
        Code::PermissionDenied
    );
    wait("its instances to end", || async {
        if twin.live().is_empty() {
            Ok(())
        } else {
            Err(format!("{:?}", twin.live()))
        }
    })
    .await;
    server.stop().await;
}

/// Records outlive the leader: the next one waits for both nodes, and says who has not spoken.
#[tokio::test]
async fn a_new_leader_waits_for_registered_nodes_and_not_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (Agent::numbered(1), Agent::numbered(2));
    {
        let server = Server::start(dir.path()).await;
        let sessions = [
            one.connect(&server.channel).await,
            two.connect(&server.channel).await,
        ];
        server.create("hello", 4, 4).await;
        server.serving("hello", 1).await;
        sessions.into_iter().for_each(|session| session.cut());
        server.stop().await;
    }
    let placed = [one.live().len(), two.live().len()];
    assert_eq!(placed[0] + placed[1], 4);
    let server = Server::with(dir.path(), |config| {
        config.leader.collect_deadline = Duration::from_millis(300);
        config.leader.node_grace = Duration::from_secs(3);
    })
    .await;
    let _one = one.connect(&server.channel).await;
    wait("the deadline", || async {
        let status = server.controller.status();
        if status.planning {
            Ok(())
        } else {
            Err(format!("{status:?}"))
        }
    })
    .await;
    server.stands(two.id(), NodeState::Silent).await;
    let ordered = one.ordered().len();
    // Something written now has gone through several plans when it is done.
    let task = server.create("other", 0, 1).await;
    server.ended(task).await;
    assert_eq!(
        one.ordered().len(),
        ordered + 1,
        "what the silent node may run is not replaced"
    );
    server.stands(two.id(), NodeState::Lost).await;
    wait("replacements", || async {
        let live = one.live().len();
        if live >= 4 {
            Ok(())
        } else {
            Err(live.to_string())
        }
    })
    .await;
    server.stop().await;
}
