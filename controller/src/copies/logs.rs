//! Finished build logs, copied from the leader that wrote them: one that leads later has them too.

use std::time::Duration;

use coracle_model::{FunctionId, RevisionId, Stage};
use coracle_proto::v1::{self, management_client::ManagementClient};
use tokio::time::timeout;
use tonic::{Code, Status};

use crate::core::{Core, chain};

const ASK: Duration = Duration::from_secs(5);

/// Those of these functions, or of all of them. Whether all are here now.
pub(super) async fn copy(core: &Core, functions: Option<Vec<FunctionId>>) -> bool {
    let view = core.view();
    let records: Vec<_> = match functions {
        Some(ids) => ids.iter().filter_map(|id| view.function(*id)).collect(),
        None => view.functions().collect(),
    };
    let mut whole = true;
    for revision in records.iter().flat_map(|record| record.revisions()) {
        if !matches!(revision.stage, Stage::Received | Stage::Building) {
            whole &= core.copy_build_log(revision.id).await;
        }
    }
    whole
}

impl Core {
    /// A build that has ended; whether its log is here now. Where nobody has one an empty one is
    /// kept, so that nobody is asked again.
    pub(crate) async fn copy_build_log(&self, revision: RevisionId) -> bool {
        match self.build_logs.is_finished(revision).await {
            Ok(false) => {}
            Ok(true) => return true,
            Err(error) => {
                tracing::warn!(error = %chain(&error), %revision, "cannot look for a build log");
                return true;
            }
        }
        let mut nowhere = true;
        for id in self.copies.fellows.others() {
            match self.build_log_of(id, revision).await {
                Ok(log) => return self.keep_build_log(revision, log).await,
                Err(status) if status.code() == Code::NotFound => {}
                Err(status) => {
                    tracing::debug!(member = id, %revision, %status, "no build log");
                    nowhere = false;
                }
            }
        }
        if !nowhere {
            return false;
        }
        // An attempt whose leader went may have left its beginning here.
        if let Err(error) = self.build_logs.end(revision).await {
            tracing::warn!(error = %chain(&error), %revision, "build log not kept");
        }
        match self.build_logs.is_finished(revision).await {
            Ok(false) => self.keep_build_log(revision, Vec::new()).await,
            _ => true,
        }
    }

    async fn keep_build_log(&self, revision: RevisionId, log: Vec<u8>) -> bool {
        let kept = self.build_logs.keep(revision, log).await;
        if let Err(error) = &kept {
            tracing::warn!(error = %chain(error), %revision, "build log not kept");
        }
        kept.is_ok()
    }

    async fn build_log_of(&self, member: u64, revision: RevisionId) -> Result<Vec<u8>, Status> {
        let channel = self.copies.fellows.dial(member);
        let channel = channel.ok_or_else(|| Status::unavailable("its address is not known"))?;
        let request = v1::BuildLogRequest {
            revision: Some(revision.into()),
            follow: false,
            only_here: true,
        };
        let reading = async {
            let answer = ManagementClient::new(channel).build_log(request).await?;
            let (mut pieces, mut log) = (answer.into_inner(), Vec::new());
            while let Some(piece) = pieces.message().await? {
                log.extend_from_slice(&piece.data);
                if log.len() as u64 > 2 * self.config.build_log_max_bytes {
                    return Err(Status::out_of_range("it sends too much"));
                }
            }
            Ok(log)
        };
        let silent = |_| Status::deadline_exceeded("it did not answer in time");
        timeout(ASK, reading).await.map_err(silent)?
    }
}
