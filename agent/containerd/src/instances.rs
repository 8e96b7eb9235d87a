//! Which instances there are, and how launching and stopping one at the same time comes out.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use coracle_driver::{LaunchError, Launched, Origin, Stop};
use coracle_model::{ExitReason, InstanceId, RevisionId};
use tokio::sync::watch;

use crate::container::Container;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Phase {
    Launching,
    Running(PathBuf),
    Gone(ExitReason),
}

#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) id: InstanceId,
    pub(crate) revision: RevisionId,
    phase: watch::Sender<Phase>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    container: Option<Arc<Container>>,
    /// Wanted before there was a container.
    stop: Option<ExitReason>,
}

impl Instance {
    fn new(id: InstanceId, revision: RevisionId, phase: Phase) -> Self {
        Self {
            id,
            revision,
            phase: watch::Sender::new(phase),
            inner: Mutex::default(),
        }
    }

    /// Says which container it is going to be; refused when it was stopped meanwhile.
    pub(crate) fn attach(&self, container: &Arc<Container>) -> Result<(), ExitReason> {
        let mut inner = self.lock();
        if let Some(reason) = &inner.stop {
            return Err(reason.clone());
        }
        inner.container = Some(Arc::clone(container));
        Ok(())
    }

    /// Why it should end, if it was told to.
    pub(crate) fn stop_asked(&self) -> Option<ExitReason> {
        self.lock().stop.clone()
    }

    /// The container was of no use; another one may follow.
    pub(crate) fn detach(&self) {
        self.lock().container = None;
    }

    pub(crate) fn set(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    /// What a repeated order gets: the same instance, once it answers.
    pub(crate) async fn joined(&self) -> Result<Launched, LaunchError> {
        let mut phase = self.phase.subscribe();
        let settled = phase.wait_for(|phase| *phase != Phase::Launching).await;
        match settled.map(|phase| phase.clone()) {
            Ok(Phase::Running(socket)) => Ok(Launched {
                socket,
                origin: Origin::Running,
                start: Duration::ZERO,
                init: Duration::ZERO,
            }),
            Ok(Phase::Gone(reason)) => Err(LaunchError::Function(reason)),
            _ => Err(LaunchError::Function(ExitReason::Lost)),
        }
    }

    /// Ends it and waits until nothing of it is left.
    pub(crate) async fn stop(&self, how: Stop) {
        let (reason, grace) = match how {
            Stop::Gracefully(grace) => (ExitReason::Stopped, grace),
            Stop::DeadlinePassed => (ExitReason::TimedOut, Duration::ZERO),
        };
        let container = {
            let mut inner = self.lock();
            inner.stop.get_or_insert(reason.clone());
            inner.container.clone()
        };
        let gone = async {
            let mut phase = self.phase.subscribe();
            let _ = phase
                .wait_for(|phase| matches!(phase, Phase::Gone(_)))
                .await;
        };
        tokio::pin!(gone);
        if let Some(container) = container {
            // What has not loaded its code yet has nothing to finish.
            if !grace.is_zero() && matches!(*self.phase.borrow(), Phase::Running(_)) {
                container.terminate(reason.clone());
                if tokio::time::timeout(grace, &mut gone).await.is_ok() {
                    return;
                }
            }
            container.kill(reason);
        }
        gone.await;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Instances(Mutex<HashMap<InstanceId, Arc<Instance>>>);

impl Instances {
    /// A new entry, or the one there is: an order that is repeated is the same order.
    pub(crate) fn begin(&self, id: InstanceId, revision: RevisionId) -> (Arc<Instance>, bool) {
        let mut all = self.lock();
        if let Some(instance) = all.get(&id) {
            return (Arc::clone(instance), false);
        }
        let instance = Arc::new(Instance::new(id, revision, Phase::Launching));
        all.insert(id, Arc::clone(&instance));
        (instance, true)
    }

    pub(crate) fn adopted(
        &self,
        id: InstanceId,
        revision: RevisionId,
        container: &Arc<Container>,
    ) -> Arc<Instance> {
        let phase = Phase::Running(container.socket());
        let instance = Arc::new(Instance::new(id, revision, phase));
        instance.lock().container = Some(Arc::clone(container));
        self.lock().insert(id, Arc::clone(&instance));
        instance
    }

    pub(crate) fn get(&self, id: InstanceId) -> Option<Arc<Instance>> {
        self.lock().get(&id).cloned()
    }

    /// Ends the entry; whoever waits for the instance learns why.
    pub(crate) fn end(&self, instance: &Instance, reason: ExitReason) {
        self.lock().remove(&instance.id);
        instance.set(Phase::Gone(reason));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<InstanceId, Arc<Instance>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
