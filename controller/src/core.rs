//! What the services and the loops of one controller share.

use std::{ops::Deref, path::PathBuf, sync::Arc};

use coracle_base::Clock;
use coracle_model::{
    ExitReason, FunctionId, InstanceId, Operation, Refusal, Timestamp, WriteId,
    query::{FunctionRuntimeView, FunctionView},
};
use coracle_replica::{ChangeError, ChangeRefused, ProposeError, ReadError, Replica};
use coracle_state::{Body, Command, EncodeError, FunctionRecord, View};
use tokio::{sync::watch, time::Instant};
use uuid::Uuid;

use crate::{
    build_logs::BuildLogs,
    cluster::Identity,
    copies::Copies,
    leader::desk::Desk,
    machine::{Changes, Published, Response},
    metrics,
    peers::Me,
};

/// How a write ended, when it was not applied.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    TooLarge(EncodeError),
    #[error("the write was not taken")]
    Propose(#[from] ProposeError),
    #[error("this controller's disk is nearly full: {free_mib} MiB left, {kept_mib} are kept")]
    StorageFull { free_mib: u64, kept_mib: u64 },
}

/// The desk, and what takes I/O: the replica, the disk, the clock.
pub(crate) struct Core {
    pub(crate) cluster_id: String,
    pub(crate) data_dir: PathBuf,
    pub(crate) identity: Option<Identity>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) replica: Replica<Response>,
    pub(crate) me: Me,
    pub(crate) copies: Copies,
    /// Functions whose revisions may name something new.
    pub(crate) touched: watch::Sender<Changes>,
    pub(crate) build_logs: BuildLogs,
    /// Held by whoever changes who is in the group.
    pub(crate) membership: tokio::sync::Mutex<()>,
    pub(crate) desk: Desk,
}

impl Deref for Core {
    type Target = Desk;

    fn deref(&self) -> &Desk {
        &self.desk
    }
}

impl Core {
    pub(crate) fn now(&self) -> Timestamp {
        Timestamp(self.clock.now_millis())
    }

    /// For waiting on the next publication: what is published now counts as seen. A plain clone
    /// would not do, since it remembers what the original has seen, which never looks.
    pub(crate) fn publications(&self) -> watch::Receiver<Published> {
        let mut published = self.published.clone();
        published.mark_unchanged();
        published
    }

    /// Covers every write that was answered before this was called.
    pub(crate) async fn fresh_view(&self) -> Result<Arc<View>, ReadError> {
        self.replica
            .read_index(Instant::now() + self.config.read_deadline)
            .await?;
        Ok(self.view())
    }

    pub(crate) async fn write(&self, write_id: WriteId, body: Body) -> Result<(), WriteError> {
        let deadline = Instant::now() + self.config.write_deadline;
        self.write_by(write_id, body, deadline).await
    }

    pub(crate) async fn write_by(
        &self,
        write_id: WriteId,
        body: Body,
        deadline: Instant,
    ) -> Result<(), WriteError> {
        let started = Instant::now();
        let command = Command {
            write_id,
            at: self.now(),
            body,
        };
        let bytes = command.encode().map_err(WriteError::TooLarge)?;
        let outcome = self.replica.propose(bytes, deadline).await?;
        metrics::write_took(started.elapsed());
        Ok(outcome.response.outcome?)
    }

    /// A client's write. Refused while the disk is nearly full, unless it takes something away.
    pub(crate) async fn write_asked(
        &self,
        write_id: WriteId,
        operation: Operation,
        deadline: Instant,
    ) -> Result<(), WriteError> {
        if !frees(&operation) {
            self.require_space()?;
        }
        self.write_by(write_id, Body::Operation(operation), deadline)
            .await
    }

    /// Where the file system does not tell, the write itself will.
    pub(crate) fn require_space(&self) -> Result<(), WriteError> {
        let Ok(stat) = rustix::fs::statvfs(&self.data_dir) else {
            return Ok(());
        };
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let kept = self.config.disk_reserve;
        if free >= kept {
            return Ok(());
        }
        Err(WriteError::StorageFull {
            free_mib: free >> 20,
            kept_mib: kept >> 20,
        })
    }

    /// Makes a learner a voter. It counts for the majorities of artifacts from then on, so it has to
    /// have all that are named.
    pub(crate) async fn promote(&self, id: u64, deadline: Instant) -> Result<(), ChangeError> {
        let is_learner = self.replica.group().borrow().learners.contains(&id);
        // Of anybody else the replica says why not.
        if is_learner && let Err(lacking) = self.copies.holds_all(id, &self.view()).await {
            tracing::info!(member = id, reason = %lacking, "a learner stays one");
            return Err(ChangeRefused::NotReady { id }.into());
        }
        self.replica.promote(id, |_| true, deadline).await
    }

    /// A step of a loop. What did not work is tried again by the loop's next turn, from the state
    /// as it is then.
    pub(crate) async fn step(&self, body: Body) -> bool {
        let id = fresh_write();
        match self.write(id, body.clone()).await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(error = %chain(&error), ?body, "a leader's step was not written");
                false
            }
        }
    }

    pub(crate) fn function_view(&self, view: &View, record: &FunctionRecord) -> FunctionView {
        let function = &record.function;
        let memory = self.memory();
        let (ready, _) = record
            .serving()
            .map_or((0, 0), |serving| memory.counts(serving.id));
        let wanted = match record.serving() {
            Some(_) if function.disabled => 0,
            Some(_) => {
                let scaled = memory
                    .functions
                    .get(&function.id)
                    .map_or(0, |f| f.scaled.wanted);
                scaled.clamp(function.scale.min(), function.scale.max())
            }
            None => 0,
        };
        view.function_view(record, wanted, ready)
    }

    pub(crate) fn runtime_view(&self, function: FunctionId) -> FunctionRuntimeView {
        let memory = self.memory();
        let instances = memory
            .of_function(function)
            .map(|(id, instance)| instance.view(id));
        let instances = instances.collect();
        let Some(found) = memory.functions.get(&function) else {
            return FunctionRuntimeView::default();
        };
        FunctionRuntimeView {
            instances,
            decisions: found.decisions.iter().cloned().collect(),
            exits: found.exits.iter().cloned().collect(),
            shortage: found.shortage.clone(),
        }
    }
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Most of it is shared with running loops.
        f.debug_struct("Core")
            .field("cluster_id", &self.cluster_id)
            .finish_non_exhaustive()
    }
}

fn frees(operation: &Operation) -> bool {
    matches!(
        operation,
        Operation::DeleteProject { .. }
            | Operation::DeleteNamespace { .. }
            | Operation::DeleteFunction { .. }
            | Operation::DeleteKey { .. }
            | Operation::DeleteToken { .. }
            | Operation::RevokeJoinToken { .. }
    )
}

pub(crate) fn fresh_write() -> WriteId {
    WriteId(Uuid::new_v4())
}

pub(crate) fn fresh_instance() -> InstanceId {
    InstanceId(Uuid::new_v4())
}

/// An error with its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// The kind of an exit as a metric's label: bounded.
pub(crate) fn exit_kind(reason: &ExitReason) -> &'static str {
    match reason {
        ExitReason::Stopped => "stopped",
        ExitReason::TimedOut => "timed_out",
        ExitReason::OutOfMemory { .. } => "out_of_memory",
        ExitReason::Exited { .. } => "exited",
        ExitReason::Signaled { .. } => "signaled",
        ExitReason::InitFailed { .. } => "init_failed",
        ExitReason::InitTimedOut { .. } => "init_timed_out",
        ExitReason::LaunchFailed { .. } => "launch_failed",
        ExitReason::Lost => "lost",
    }
}
