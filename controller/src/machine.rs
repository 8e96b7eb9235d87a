//! Between the replica, which knows bytes, and the state, which knows commands.

use std::sync::Arc;

use coracle_model::Refusal;
use coracle_replica::{Command as Entry, Machine, MachineError};
use coracle_state::{Command, Effect, State, View};
use tokio::sync::watch;

/// The state as of one point of the log. Older than the log by at most the batch being applied.
#[derive(Debug, Clone)]
pub(crate) struct Published {
    pub(crate) view: Arc<View>,
}

/// What a proposer gets back.
#[derive(Debug, Clone)]
pub(crate) struct Response {
    pub(crate) outcome: Result<(), Refusal>,
}

pub(crate) struct StateMachine {
    state: State,
    /// Since the last publication.
    effects: Vec<Effect>,
    publish: watch::Sender<Published>,
    changes: watch::Sender<Changes>,
    touched: watch::Sender<Changes>,
}

/// Which functions changed since somebody last looked. Level-triggered: whoever takes them reads
/// how they stand now from the view.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) functions: std::collections::BTreeSet<coracle_model::FunctionId>,
    /// Some node was closed, opened, drained or removed.
    pub(crate) nodes: bool,
    /// Names or everything changed (a project, a namespace, a restored snapshot).
    pub(crate) all: bool,
}

impl StateMachine {
    pub(crate) fn new() -> (Self, watch::Receiver<Published>, watch::Sender<Changes>) {
        let state = State::new();
        let published = Published {
            view: Arc::new(state.view()),
        };
        let (publish, published) = watch::channel(published);
        let (changes, _) = watch::channel(Changes::default());
        let machine = Self {
            state,
            effects: Vec::new(),
            publish,
            changes: changes.clone(),
            touched: watch::channel(Changes::default()).0,
        };
        (machine, published, changes)
    }

    /// The same once more, for whoever keeps what is named: on every member, leading or not.
    pub(crate) fn touched(&self) -> watch::Sender<Changes> {
        self.touched.clone()
    }
}

impl Machine for StateMachine {
    type Response = Response;

    fn apply(&mut self, entry: Entry<'_>) -> Result<Response, MachineError> {
        let command = Command::decode(entry.bytes)?;
        let applied = self.state.apply(command);
        self.effects.extend(applied.effects);
        Ok(Response {
            outcome: applied.outcome,
        })
    }

    fn batch_applied(&mut self, _: u64) {
        self.publish.send_replace(Published {
            view: Arc::new(self.state.view()),
        });
        let effects = std::mem::take(&mut self.effects);
        let note = |changes: &mut Changes| {
            for effect in &effects {
                match effect {
                    Effect::FunctionChanged(id) => {
                        changes.functions.insert(*id);
                    }
                    Effect::ProjectChanged(_)
                    | Effect::NamespaceChanged(_)
                    | Effect::IncarnationRaised(_) => changes.all = true,
                    Effect::RevisionReceived(id) => {
                        changes.functions.insert(id.function);
                    }
                    Effect::NodeChanged(_) => changes.nodes = true,
                    Effect::KeyChanged(_)
                    | Effect::TokenChanged(_)
                    | Effect::JoinTokenChanged(_)
                    | Effect::ClusterChanged
                    | Effect::TaskChanged(_)
                    | Effect::ArtifactUnreferenced(_) => {}
                }
            }
            !effects.is_empty()
        };
        self.touched.send_if_modified(note);
        self.changes.send_if_modified(note);
    }

    fn snapshot(&self) -> Vec<u8> {
        self.state.encode()
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), MachineError> {
        self.state = State::decode(snapshot)?;
        self.effects.clear();
        for changes in [&self.touched, &self.changes] {
            changes.send_modify(|changes| changes.all = true);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use coracle_model::{Operation, Timestamp, WriteId};
    use coracle_state::Body;

    use super::*;

    fn create_project(id: u128, name: &str) -> Vec<u8> {
        let body = Body::Operation(Operation::CreateProject {
            name: name.parse().unwrap(),
        });
        let write_id = WriteId(uuid::Uuid::from_u128(id));
        Command {
            write_id,
            at: Timestamp(7),
            body,
        }
        .encode()
        .unwrap()
    }

    #[test]
    fn a_batch_is_published_once_and_a_write_id_applies_once() {
        let (mut machine, mut published, changes) = StateMachine::new();
        let bytes = create_project(1, "acme");
        for index in 1..=2 {
            let entry = Entry {
                index,
                term: 1,
                bytes: &bytes,
            };
            assert!(machine.apply(entry).unwrap().outcome.is_ok());
            assert!(!published.has_changed().unwrap());
        }
        machine.batch_applied(2);
        let now = published.borrow_and_update().clone();
        assert_eq!(now.view.projects().len(), 2);
        assert!(changes.borrow().all);
        let again = create_project(2, "acme");
        let refused = machine
            .apply(Entry {
                index: 3,
                term: 1,
                bytes: &again,
            })
            .unwrap();
        assert!(matches!(refused.outcome, Err(Refusal::AlreadyExists(_))));
    }

    #[test]
    fn a_snapshot_gives_the_same_view_and_unknown_bytes_stop_the_replica() {
        let (mut machine, _, _) = StateMachine::new();
        let bytes = create_project(1, "acme");
        machine
            .apply(Entry {
                index: 1,
                term: 1,
                bytes: &bytes,
            })
            .unwrap();
        let (mut other, published, changes) = StateMachine::new();
        other.restore(&machine.snapshot()).unwrap();
        other.batch_applied(1);
        assert_eq!(published.borrow().view.projects().len(), 2);
        assert!(changes.borrow().all);
        assert!(
            other
                .apply(Entry {
                    index: 2,
                    term: 1,
                    bytes: b"\xff\xff"
                })
                .is_err()
        );
    }
}
