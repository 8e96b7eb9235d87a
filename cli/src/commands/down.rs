//! `coracle down`

use std::path::PathBuf;

use clap::Args;

use crate::{
    data::DataDir,
    error::{CliError, chain},
    settings,
};

#[derive(Debug, Args)]
pub(crate) struct Down {
    /// Data directory of the server
    #[arg(long, env = "CORACLE_DATA", value_name = "DIR")]
    data: Option<PathBuf>,
    /// containerd's socket, if the server was given one
    #[arg(long, env = "CORACLE_CONTAINERD", value_name = "PATH")]
    containerd: Option<PathBuf>,
    /// Remove the data directory too: functions, logs, images, the token
    #[arg(long)]
    purge: bool,
}

impl Down {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        let path = match self.data {
            Some(data) => std::path::absolute(&data).unwrap_or(data),
            None => settings::default_data().map_err(CliError::Usage)?,
        };
        if !path.join("cluster.json").exists() {
            eprintln!("{} holds no server; nothing to remove", path.display());
            return Ok(());
        }
        // Refused while the server runs: it would make again what is removed here.
        let data = DataDir::open(&path, None)?;
        let cluster = data.identity().cluster_id.clone();
        let id = cluster
            .parse()
            .map_err(|error| CliError::Failed(format!("{}: {}", path.display(), chain(&error))))?;
        coracle_containerd::cleanup(&id, &path, self.containerd.as_deref())
            .await
            .map_err(|error| CliError::failed("cannot clean up", error))?;
        if self.purge {
            std::fs::remove_dir_all(&path)
                .map_err(|error| CliError::Failed(format!("{}: {error}", path.display())))?;
        }
        eprintln!("cluster {cluster}: everything it had on this machine is removed");
        Ok(())
    }
}
