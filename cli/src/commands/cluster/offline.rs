//! `coracle cluster snapshot` and `coracle cluster recover`: what is left when a cluster is not.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use coracle_base::{Address, Clock as _, SystemClock};
use coracle_controller::backup::{self, BackupError, BackupInfo};
use coracle_identity::{Component, Enrolment};
use coracle_model::Timestamp;
use coracle_proto::v1::{SaveSnapshotRequest, cluster_client::ClusterClient};
use serde_json::json;

use crate::{
    data::Locked,
    error::{CliError, chain},
    output::{Output, text},
    settings::RawSettings,
};

/// Of a server by itself.
const ALONE: u64 = 1;
const CONTROLLER: &str = "controller";

#[derive(Debug, Subcommand)]
pub(crate) enum Snapshot {
    /// Save the state of a running cluster to a file
    Save {
        /// File to make
        file: PathBuf,
        #[command(flatten)]
        data: Data,
        /// A controller to ask: unix:/path or host:port on this machine [default: the one of --data]
        #[arg(long, value_name = "ADDR")]
        controller: Option<Address>,
    },
    /// Check a file, and say what it holds
    Inspect {
        file: PathBuf,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Make a data directory from a file. One that has joined as a controller goes on as that one
    /// member, with the cluster's keys; an empty one becomes a server by itself, for `coracle up`
    /// or `coracle cluster init --from`
    Restore {
        file: PathBuf,
        #[command(flatten)]
        data: Data,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Data {
    /// Data directory
    #[arg(long, env = "CORACLE_DATA", value_name = "DIR")]
    data: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Recover {
    #[command(flatten)]
    data: Data,
    /// Say what the log holds, and change nothing
    #[arg(long)]
    dry_run: bool,
}

impl Data {
    fn path(self) -> Result<PathBuf, CliError> {
        let settings = RawSettings {
            data: self.data,
            ..RawSettings::default()
        };
        Ok(settings.check()?.data)
    }
}

fn failed(error: BackupError) -> CliError {
    let text = chain(&error);
    match error {
        BackupError::Missing { .. } => CliError::NotFound(text),
        BackupError::Occupied { .. } | BackupError::NotAVoter { .. } => CliError::Conflict(text),
        _ => CliError::Failed(text),
    }
}

fn now() -> Timestamp {
    Timestamp(SystemClock.now_millis())
}

/// The number of the controller that the directory is of, when it has joined a cluster as one.
fn member(data: &Path) -> Result<Option<u64>, CliError> {
    let enrolment = Enrolment::load(data);
    let enrolment = enrolment.map_err(|error| CliError::failed("identity", error))?;
    match enrolment.map(|enrolment| enrolment.name.component) {
        None => Ok(None),
        Some(Component::Controller(member)) => Ok(Some(member.0)),
        Some(Component::Agent(_) | Component::Gateway(_)) => Err(CliError::Conflict(format!(
            "{} is not a controller's",
            data.display()
        ))),
    }
}

impl Snapshot {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        match self {
            Self::Save {
                file,
                data,
                controller,
            } => save(&file, data, controller).await,
            Self::Inspect { file, output } => {
                let info = backup::inspect(&file).map_err(failed)?;
                show(&info, output)
            }
            Self::Restore { file, data } => restore(&file, &data.path()?),
        }
    }
}

async fn save(file: &Path, data: Data, controller: Option<Address>) -> Result<(), CliError> {
    if file.exists() {
        return Err(CliError::Conflict(format!(
            "{} exists already",
            file.display()
        )));
    }
    let address = match controller {
        Some(address) => address,
        None => Address::Unix(data.path()?.join("run/controller.sock")),
    };
    let unreachable = |status: tonic::Status| {
        CliError::Failed(format!("the controller at {address}: {}", status.message()))
    };
    let mut client = ClusterClient::new(address.channel());
    let answer = client.save_snapshot(SaveSnapshotRequest {}).await;
    let mut pieces = answer.map_err(unreachable)?.into_inner();
    let mut bytes = Vec::new();
    while let Some(piece) = pieces.message().await.map_err(unreachable)? {
        bytes.extend_from_slice(&piece.data);
    }
    backup::write_backup(file, &bytes).map_err(failed)?;
    let info = backup::inspect(file).map_err(failed)?;
    eprintln!(
        "saved: cluster {}, {} functions, as of entry {}; sha256 {}",
        info.cluster_id, info.functions, info.index, info.digest
    );
    Ok(())
}

fn show(info: &BackupInfo, output: Output) -> Result<(), CliError> {
    let value = json!({
        "cluster_id": info.cluster_id,
        "version": info.version,
        "taken_at": info.taken_at.0,
        "member": info.member,
        "index": info.index,
        "term": info.term,
        "incarnation": info.incarnation,
        "voters": info.voters,
        "learners": info.learners,
        "bytes": info.bytes,
        "sha256": info.digest,
        "projects": info.projects,
        "functions": info.functions,
        "tokens": info.tokens,
        "nodes": info.nodes,
    });
    output.list(
        &json!({"items": [value]}),
        &[
            ("CLUSTER", |v| text(v, "/cluster_id")),
            ("INDEX", |v| text(v, "/index")),
            ("TERM", |v| text(v, "/term")),
            ("INCARNATION", |v| text(v, "/incarnation")),
            ("FUNCTIONS", |v| text(v, "/functions")),
            ("NODES", |v| text(v, "/nodes")),
            ("BYTES", |v| text(v, "/bytes")),
            ("SHA256", |v| text(v, "/sha256")),
        ],
    )
}

fn restore(file: &Path, data: &Path) -> Result<(), CliError> {
    let locked = Locked::take(data)?;
    let joined = member(data)?;
    let controller = data.join(CONTROLLER);
    if joined.is_none() && (locked.known()?.is_some() || controller.exists()) {
        return Err(CliError::Conflict(format!(
            "{} holds a server already; give an empty --data",
            data.display()
        )));
    }
    // The file is checked before anything is made of it.
    let info = backup::inspect(file).map_err(failed)?;
    let kept = match joined {
        Some(_) => None,
        None => Some(locked.keep_alone(None)?.folder(CONTROLLER, 0o700)?),
    };
    let folder = kept.as_deref().unwrap_or(&controller);
    let keys = match joined {
        Some(_) => backup::Keys::Keep,
        None => backup::Keys::Drop,
    };
    backup::restore(file, folder, joined.unwrap_or(ALONE), keys, now()).map_err(failed)?;
    eprintln!(
        "restored: {} functions, as of entry {} of cluster {}. Their code and dependencies are not in \
         the file: put the artifacts of a controller, or the shared artifact store, in place",
        info.functions, info.index, info.cluster_id
    );
    if joined.is_some() {
        eprintln!("next: start this controller; all others join anew, under new numbers");
    } else {
        let data = data.display();
        eprintln!(
            "next: `coracle up --data {data}` for a server by itself, or `coracle cluster init --from \
             {data}` for a cluster, which all machines join anew"
        );
    }
    Ok(())
}

impl Recover {
    pub(crate) fn run(self) -> Result<(), CliError> {
        let data = self.data.path()?;
        if !data.is_dir() {
            return Err(CliError::NotFound(format!(
                "{} is not there",
                data.display()
            )));
        }
        let _locked = Locked::take(&data)?;
        let (folder, member) = (data.join(CONTROLLER), member(&data)?.unwrap_or(ALONE));
        let found = backup::survey(&folder, member).map_err(failed)?;
        let lost: Vec<_> = found.others.iter().map(ToString::to_string).collect();
        let lost = lost.join(", ");
        eprintln!(
            "controller {member}: its log ends at entry {}, of which {} are not known to be on a \
             majority; {} functions",
            found.last_index, found.doubtful, found.functions
        );
        if found.others.is_empty() {
            return Err(CliError::Conflict(
                "this is the only controller: there is no majority to be lost".to_owned(),
            ));
        }
        if self.dry_run {
            eprintln!(
                "nothing was changed. Recover the controller whose log ends last, once the others \
                 ({lost}) are gone for good"
            );
            return Ok(());
        }
        let done = backup::recover(&folder, member, now()).map_err(failed)?;
        eprintln!(
            "RECOVERED: controller {member} is the cluster now, alone.\n\
             LOST: whatever was acknowledged after entry {} of the log. This controller never heard \
             of it, so nobody can say what it was.\n\
             KEPT: the last {} entries before that, although they may never have been acknowledged.\n\
             NEVER START AGAIN as they were: controllers {lost}. Empty their data directories, and \
             join them anew; they get new numbers.\n\
             The log as it was is in {}. The cluster runs as incarnation {}; orders of earlier leaders \
             are refused. Change the cluster key with `coracle cluster rotate-key`.",
            done.last_index,
            done.doubtful,
            done.kept.display(),
            done.incarnation,
        );
        Ok(())
    }
}
