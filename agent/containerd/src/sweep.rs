//! Adoption of what an earlier process left, and removal of everything that nobody holds.

use std::{collections::HashMap, fs, sync::Arc, time::Duration};

use coracle_driver::Survivor;

use crate::{
    client::{self, Record, Task},
    container,
    daemon::chain,
    driver::ContainerdDriver,
    labels::{self, Identity},
    logs::{self, Owner},
    machine::Machine,
};

const EVERY: Duration = Duration::from_secs(30);
const LIST_TRIES: usize = 4;
const LIST_PAUSE: Duration = Duration::from_millis(250);

impl ContainerdDriver {
    /// Instances that run and were claimed are watched again; stems and half-made containers are
    /// removed, since nobody knows how far they came.
    pub(crate) async fn adopt_all(&self) -> Result<Vec<Survivor>, client::Error> {
        let machine = &self.machine;
        let _readers = logs::hold_open(&machine.run_dir);
        let records = machine.client.containers().await?;
        let mut tasks = machine.client.tasks().await?;
        for _ in 0..LIST_TRIES {
            // An instance without a task ended, or its shim has not answered containerd in time:
            // asked again, since a wrong guess would kill it.
            let claimed = records.iter().filter(|r| self.identity(r).is_some());
            if claimed.into_iter().all(|r| tasks.contains_key(&r.id)) {
                break;
            }
            tokio::time::sleep(LIST_PAUSE).await;
            tasks = machine.client.tasks().await?;
        }
        let mut survivors = Vec::new();
        for record in records {
            if let Some(survivor) = self.adopt_one(&record, tasks.get(&record.id)) {
                survivors.push(survivor);
            }
        }
        // What is not adopted is not live, and so a leftover. An error is made up for by the next
        // sweep: given back, it would have the caller ask again, and be told of nobody any more.
        if let Err(error) = machine.sweep().await {
            tracing::warn!(error = %chain(&error), "cannot remove leftovers yet");
        }
        machine.adopted.cancel();
        Ok(survivors)
    }

    fn identity(&self, record: &Record) -> Option<(Identity, u16)> {
        let noted = || labels::decode(&self.machine.notes.read(&record.id)?);
        labels::decode(&record.labels).or_else(noted)
    }

    fn adopt_one(&self, record: &Record, task: Option<&Task>) -> Option<Survivor> {
        let machine = &self.machine;
        if machine.live().contains(&record.id) {
            return None;
        }
        let (identity, slot) = self.identity(record)?;
        let task = task.filter(|task| task.alive)?;
        let socket = container::socket(&machine.run_dir.join(&record.id));
        if !socket.exists() {
            return None;
        }
        let slot = machine.slots.claim(slot)?;
        let limit = identity.memory.bytes();
        let container = machine.take_over(record, task.pid, slot, limit, machine.to_log())?;
        let owner = Owner {
            function: identity.revision.function,
            instance: identity.id,
        };
        container.output.belongs_to(owner);
        let instance = self
            .instances
            .adopted(identity.id, identity.revision, &container);
        self.ends.watch(instance, container);
        Some(Survivor {
            id: identity.id,
            revision: identity.revision,
            runtime: identity.runtime,
            socket,
            memory: identity.memory,
            cpu: identity.cpu,
            concurrency: identity.concurrency,
            started_at: identity.started_at,
        })
    }
}

impl Machine {
    /// Removes containers, tasks without a container, and directories that are not live.
    pub(crate) async fn sweep(&self) -> Result<(), client::Error> {
        let records = self.client.containers().await?;
        let tasks = self.client.tasks().await?;
        let known: HashMap<_, _> = records.iter().map(|r| (r.id.as_str(), ())).collect();
        for id in tasks.keys().filter(|id| !known.contains_key(id.as_str())) {
            if self.is_leftover(id) {
                // containerd reaches a task only through its container's record.
                let labels = labels::encode(&labels::Role::Stem, 0);
                self.client
                    .create_container(id, b"{}".to_vec(), labels)
                    .await?;
                self.remove_leftover(id).await;
            }
        }
        for record in &records {
            if self.is_leftover(&record.id) {
                self.remove_leftover(&record.id).await;
            }
        }
        for entry in fs::read_dir(&self.run_dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            // Others keep things of theirs in this directory too.
            if labels::is_id(&name) && self.is_leftover(&name) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        self.notes.retain(|id| !self.is_leftover(id));
        Ok(())
    }

    fn is_leftover(&self, id: &str) -> bool {
        !self.live().contains(id)
    }

    async fn remove_leftover(&self, id: &str) {
        tracing::info!(container = id, "removing a leftover");
        if let Err(error) = self.discard(id).await {
            tracing::warn!(container = id, error = %chain(&error), "cannot remove a leftover");
        }
    }
}

/// Looks for leftovers now and then: a removal that failed because containerd was away is made up
/// for here. The first time is adoption's, and before that nothing is a leftover: while containerd
/// cannot be asked, what an earlier process left is not known yet.
pub(crate) async fn repeat(machine: Arc<Machine>) {
    machine.adopted.cancelled().await;
    loop {
        tokio::time::sleep(EVERY).await;
        if let Err(error) = machine.sweep().await {
            tracing::warn!(error = %chain(&error), "cannot look for leftovers");
        }
    }
}
