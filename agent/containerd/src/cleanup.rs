//! Removing everything of a cluster from the machine.

use std::{path::Path, time::Duration};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    cgroup::Hierarchy,
    client::Client,
    daemon::{self, Daemon, chain},
    images::Images,
    names::ClusterId,
    network::Network,
};

/// What could not be removed; everything else was.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    #[error("cannot remove the containers of this cluster")]
    Containers(#[from] crate::client::Error),
    #[error("cannot end the private containerd")]
    Daemon(#[from] daemon::Error),
    #[error("some of its processes do not end")]
    Unkillable,
    #[error("cannot remove {}", path.display())]
    Io {
        path: std::path::PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// Ends all containers of a cluster and removes its bridge, firewall rules, cgroups, image binds,
/// `run/` and private containerd. Images, artifacts and logs in the data directory stay. No driver
/// of the cluster may be running. Safe to repeat.
pub async fn cleanup(
    cluster: &ClusterId,
    data_dir: &Path,
    containerd_socket: Option<&Path>,
) -> Result<(), CleanupError> {
    let mut sockets = vec![daemon::machine_socket().to_owned()];
    sockets.extend(containerd_socket.map(Path::to_owned));
    let private = Daemon::private_socket(data_dir);
    if private.parent().is_some_and(Path::exists) {
        // It may have ended while its containers run on; only a daemon can remove those.
        match Daemon::ensure(Some(&private), data_dir).await {
            Ok(_) => sockets.push(private),
            Err(error) => tracing::warn!(error = %chain(&error), "cannot start it to clean up"),
        }
    }
    if let Ok(cgroups) = Hierarchy::detect() {
        cgroups.lift_quotas(&cluster.cgroup_parent());
    }
    let mut failed = None;
    for socket in sockets {
        let client = Client::new(socket, &cluster.namespace());
        if client.version().await.is_err() {
            continue;
        }
        if let Err(error) = remove_containers(&client, cluster).await {
            failed = Some(error);
        }
    }
    if let Some(error) = failed {
        return Err(error.into());
    }
    Daemon::shutdown(data_dir).await?;
    let id = cluster.clone();
    let killed = tokio::task::spawn_blocking(move || {
        let killed = kill_remains(&id);
        Network::remove(&id);
        if let Ok(cgroups) = Hierarchy::detect() {
            cgroups.remove(&id.cgroup_parent());
        }
        Images::remove(&id.machine_dir());
        killed
    });
    if !killed.await.unwrap_or(false) {
        return Err(CleanupError::Unkillable);
    }
    let run_dir = data_dir.join("run");
    match std::fs::remove_dir_all(&run_dir) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(CleanupError::Io {
            path: run_dir,
            source,
        }),
        _ => Ok(()),
    }
}

/// Kills what containerd had half made when its client or itself was killed: processes in the
/// cluster's cgroups, and shims of its namespace that no daemon knows. False if some stay.
fn kill_remains(cluster: &ClusterId) -> bool {
    for _ in 0..500 {
        let mut remains = shims(&cluster.namespace());
        if let Ok(cgroups) = Hierarchy::detect() {
            remains.extend(cgroups.processes(&cluster.cgroup_parent()));
        }
        if remains.is_empty() {
            return true;
        }
        for pid in remains {
            tracing::debug!(%pid, "killing what is left");
            let _ = Pid::from_raw(pid).map(|pid| kill_process(pid, Signal::KILL));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

/// Shims that were started for a namespace, by their arguments.
fn shims(namespace: &str) -> Vec<i32> {
    let ours = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let args: Vec<_> = line.split(|byte| *byte == 0).collect();
        args.first()
            .is_some_and(|program| program.ends_with(b"containerd-shim-runc-v2"))
            && args
                .windows(2)
                .any(|pair| pair == [b"-namespace", namespace.as_bytes()])
    };
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .filter(ours)
        .collect()
}

async fn remove_containers(
    client: &Client,
    cluster: &ClusterId,
) -> Result<(), crate::client::Error> {
    for id in client.tasks().await?.into_keys() {
        // A task whose record is gone can be reached again with any record of its name.
        let _ = client
            .create_container(&id, b"{}".to_vec(), [].into())
            .await;
    }
    for record in client.containers().await? {
        client.remove(&record.id).await?;
    }
    client.delete_namespace(cluster.namespace()).await
}
