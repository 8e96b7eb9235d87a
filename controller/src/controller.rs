//! One controller: opened by [`Config::build`], running while [`Controller::run`] does.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use coracle_base::{Incoming, Shutdown};
use coracle_identity::{Component, Guard};
use coracle_model::{
    NamespaceId, Operation, ProjectId, Refusal, Timestamp, Token, WriteId,
    operation::{CreateNamespace, CreateToken},
};
use coracle_proto::v1::{
    agents_server::AgentsServer, artifact_peers_server::ArtifactPeersServer,
    cluster_server::ClusterServer, join_server::JoinServer, management_server::ManagementServer,
    peers_server::PeersServer, routing_server::RoutingServer,
};
use coracle_replica::{
    ChangeError, Ended, Fatal, Members, ReadError, Replica, SledLog, StartError,
};
use coracle_state::Body;
use tokio::{task::spawn_blocking, time::Instant};
use tonic::transport::Server;
use uuid::Uuid;

use crate::{
    api::{
        agents::Agents, cluster::Cluster, copies::ArtifactPeers, join::Join,
        management::Management, routing::Routing,
    },
    artifacts::{ArtifactError, Artifacts, FileStore, ObjectStore, Store, StoreUrl},
    backup::{self, BackupError},
    build_logs::BuildLogs,
    cluster::{self, ClusterError, Founded, Founder},
    config::Config,
    copies::{self, Copies, Fellows},
    core::{Core, WriteError, fresh_write},
    leader::{self, desk::Desk, memory::Leadership},
    machine::StateMachine,
    metrics,
    peers::{Inbound, Me, Outbound},
};

/// How long open calls may take to end at shutdown.
const DRAIN: Duration = Duration::from_secs(5);
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
const STREAMS_PER_CONNECTION: u32 = 10_000;

#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("cannot listen on {address}")]
    Listen { address: String, source: io::Error },
    #[error("cannot open the log in {path}")]
    Log {
        path: PathBuf,
        source: coracle_replica::log::Error,
    },
    #[error(
        "the log of member {member} is damaged and was set aside as {path}; the group still has a \
         majority without it, so remove member {member} from the cluster and join again from this \
         data directory's machine, under a new id: never under the old one"
    )]
    SetAside {
        member: u64,
        path: PathBuf,
        source: Box<BuildError>,
    },
    #[error(
        "the log of member {member} was set aside here before, and a member that forgot its vote must \
         not come back: join again under a new id"
    )]
    Spent { member: u64 },
    #[error("the data directory cannot be used")]
    Backup(#[from] BackupError),
    #[error("cannot open the artifact store")]
    Artifacts(#[from] ArtifactError),
    #[error("cannot open the build logs in {path}")]
    BuildLogs { path: PathBuf, source: io::Error },
    #[error("the replica did not start")]
    Replica(#[from] StartError),
}

impl BuildError {
    fn is_damage(&self) -> bool {
        match self {
            Self::Log { source, .. } | Self::Replica(StartError::Recover(Fatal::Log(source))) => {
                source.is_damage()
            }
            _ => false,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("a listener failed")]
    Serve(#[from] tonic::transport::Error),
    #[error(
        "this controller was removed from its cluster as member {0}; to come back it joins with an \
         empty data directory, under a new id"
    )]
    Removed(u64),
    /// The process should end: a replica that failed answers nothing.
    #[error("the replica ended: {0:?}")]
    Replica(Ended),
}

#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    #[error("this controller did not come to lead within {0:?}")]
    NoLeader(Duration),
    #[error("the first objects were not written")]
    Write(#[from] WriteError),
}

#[derive(Debug, thiserror::Error)]
pub enum FoundError {
    #[error(transparent)]
    Leader(BootstrapError),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
}

/// A snapshot of how it stands; cheap to take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    pub member: u64,
    pub leader: Option<u64>,
    pub term: u64,
    pub applied: u64,
    pub leading: bool,
    /// It leads and has heard its agents, or gave up waiting: it plans.
    pub planning: bool,
    pub nodes: usize,
    pub nodes_alive: usize,
    pub instances: usize,
}

impl Status {
    /// Reads and writes are answered here, or it is known who answers them.
    pub fn is_ready(&self) -> bool {
        self.leader.is_some()
    }
}

/// Clones are the same controller.
#[derive(Debug, Clone)]
pub struct Controller {
    core: Arc<Core>,
    incoming: Arc<Mutex<Vec<Incoming>>>,
    /// Until it runs.
    outbound: Arc<Mutex<Option<Outbound>>>,
    local: Arc<Vec<Option<SocketAddr>>>,
}

impl Config {
    /// Opens everything and recovers the state. Nothing is served before [`Controller::run`].
    ///
    /// Where there are other members, a log that is damaged is set aside, and its member with it:
    /// the group goes on without, and this machine joins again. A log of the only member is left
    /// where it is.
    pub async fn build(self) -> Result<Controller, BuildError> {
        let (dir, member, clock) = (self.data_dir.clone(), self.member, Arc::clone(&self.clock));
        let others = self
            .peers
            .ids()
            .into_iter()
            .chain(self.voters.iter().copied());
        let grouped = self.voters.is_empty() || others.into_iter().any(|id| id != member);
        let error = match self.open().await {
            Err(error) if grouped && error.is_damage() => error,
            opened => return opened,
        };
        let now = Timestamp(clock.now_millis());
        let aside = spawn_blocking(move || backup::set_aside(&dir, member, now));
        let path = aside
            .await
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        tracing::error!(
            error = crate::core::chain(&error),
            member,
            path = %path.display(),
            "THE LOG OF THIS MEMBER IS DAMAGED AND WAS SET ASIDE. It must not run again under this id"
        );
        Err(BuildError::SetAside {
            member,
            path,
            source: Box::new(error),
        })
    }

    async fn open(self) -> Result<Controller, BuildError> {
        let mut incoming = Vec::new();
        for address in &self.listen {
            let bound = address.listen().await;
            let failed = |source| BuildError::Listen {
                address: address.to_string(),
                source,
            };
            incoming.push(bound.map_err(failed)?);
        }
        let local = incoming.iter().map(Incoming::local_addr).collect();

        let (dir, member, limits) = (self.data_dir.clone(), self.member, self.leader.clone());
        let (url, clock) = (self.artifact_store.clone(), Arc::clone(&self.clock));
        let opened = spawn_blocking(move || {
            backup::settle(&dir)?;
            if backup::is_spent(&dir, member)? {
                return Err(BuildError::Spent { member });
            }
            let path = dir.join("log");
            let log = SledLog::open(&path, member);
            let log = log.map_err(|source| BuildError::Log { path, source })?;
            let store: Box<dyn Store> = match &url {
                StoreUrl::Own => Box::new(FileStore::open(dir.join("artifacts"))?),
                StoreUrl::Directory(path) => Box::new(ObjectStore::directory(path)?),
                StoreUrl::S3 { bucket, prefix } => Box::new(ObjectStore::s3(bucket, prefix)?),
            };
            let artifacts = Artifacts::new(store, limits.artifact_max_bytes, clock);
            let path = dir.join("build-logs");
            let build_logs = BuildLogs::open(path.clone(), limits.build_log_max_bytes);
            let build_logs = build_logs.map_err(|source| BuildError::BuildLogs { path, source })?;
            Ok::<_, BuildError>((log, artifacts, build_logs))
        });
        let (log, artifacts, build_logs) = opened
            .await
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;

        let (machine, published, changes) = StateMachine::new();
        let touched = machine.touched();
        let (seed, boot) = Uuid::new_v4().as_u64_pair();
        let group = coracle_replica::Config {
            tick: self.pace.tick,
            election_ticks: self.pace.election_ticks,
            snapshots: self.pace.snapshots,
            seed,
            boot,
            ..coracle_replica::Config::member(self.member, self.voters)
        };
        let me = Me {
            id: self.member,
            cluster_id: self.cluster_id.as_str().into(),
            table: self.peers,
            published: published.clone(),
        };
        let outbound = Outbound::new(me.clone());
        let observer = Box::new(|_: coracle_replica::Applied<'_, _>| {});
        let replica = Replica::start(group, log, machine, outbound.transport(), observer).await?;
        metrics::describe();
        let fellows = Fellows::new(me.id, replica.group(), me.table.clone());
        let core = Core {
            cluster_id: self.cluster_id,
            data_dir: self.data_dir,
            identity: self.identity,
            clock: self.clock,
            replica,
            me,
            copies: Copies::new(artifacts, fellows),
            touched,
            build_logs,
            membership: tokio::sync::Mutex::new(()),
            desk: Desk::new(self.planner, self.backoff, self.leader, published, changes),
        };
        Ok(Controller {
            core: Arc::new(core),
            incoming: Arc::new(Mutex::new(incoming)),
            outbound: Arc::new(Mutex::new(Some(outbound))),
            local: Arc::new(local),
        })
    }
}

impl Controller {
    /// The addresses that the system chose, in the order of `listen`; `None` for what is not TCP.
    pub fn local_addrs(&self) -> &[Option<SocketAddr>] {
        &self.local
    }

    /// Serves and leads until the shutdown; call it once. At the end everything is on disk and the
    /// log may be opened again. Instances go on running.
    pub async fn run(&self, shutdown: Shutdown) -> Result<(), RunError> {
        let own = shutdown.child();
        let (core, incoming) = (&self.core, std::mem::take(&mut *self.incoming()));
        leader::spawn(core, &own);
        own.spawn(
            "cluster books",
            cluster::follow_books(Arc::clone(core), own.clone()),
        );
        own.spawn("collection", copies::collect(Arc::clone(core), own.clone()));
        own.spawn("repair", copies::repair(Arc::clone(core), own.clone()));
        let outbound = self
            .outbound
            .lock()
            .expect("never poisoned: no panic while held")
            .take();
        // Ends last: the replica hands leadership over while it ends.
        let peers = shutdown.apart();
        let _ends_with_this = peers.guard();
        if let Some(outbound) = outbound {
            let carrying = outbound.run(core.replica.clone(), peers.clone());
            own.spawn("peers", carrying);
        }
        let (failed, mut failures) = tokio::sync::mpsc::channel(1);
        for listener in incoming {
            let serving = serve(Arc::clone(core), listener, own.clone(), peers.clone());
            let failed = failed.clone();
            own.spawn("controller services", async move {
                if let Err(error) = serving.await {
                    // The first one is enough to end by.
                    let _ = failed.try_send(error);
                }
            });
        }
        let outcome = tokio::select! {
            () = shutdown.requested() => Ok(()),
            Some(error) = failures.recv() => Err(RunError::Serve(error)),
            ended = core.replica.ended() => Err(RunError::Replica(ended)),
        };
        own.request();
        // Feeds end first, since open streams would hold the servers.
        core.routes.end();
        let ended = core.replica.shutdown().await;
        peers.request();
        match (outcome, ended) {
            (Ok(()), Ended::Shutdown) => Ok(()),
            (_, Ended::Removed) => Err(RunError::Removed(core.me.id)),
            (Ok(()), ended) => Err(RunError::Replica(ended)),
            (error, _) => error,
        }
    }

    /// Makes what every server has: the namespace `default`, and the first administrator's token
    /// when there is no token at all. Returns whether the token was made. Needs [`Controller::run`]
    /// to be running, and may be repeated at every start.
    pub async fn bootstrap(
        &self,
        token: Token,
        patience: Duration,
    ) -> Result<bool, BootstrapError> {
        self.leads_within(patience).await?;
        let namespace = Operation::CreateNamespace(CreateNamespace {
            id: NamespaceId(Uuid::new_v4()),
            project: ProjectId::DEFAULT,
            name: "default".parse().expect("a valid name"),
            description: String::new(),
            env: Default::default(),
            task: None,
        });
        self.ensure(fresh_write(), namespace).await?;
        if self.core.view().tokens().next().is_some() {
            return Ok(false);
        }
        self.add_token(token).await?;
        Ok(true)
    }

    async fn leads_within(&self, patience: Duration) -> Result<(), BootstrapError> {
        let mut status = self.core.replica.status();
        let leads = status.wait_for(|status| status.leading().is_some());
        match tokio::time::timeout(patience, leads).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(BootstrapError::NoLeader(patience)),
        }
    }

    /// Makes a cluster of what was a server by itself: its CA, its key, and this controller as its
    /// first. Needs [`Controller::run`] to be running.
    pub async fn found_cluster(
        &self,
        founder: Founder,
        patience: Duration,
    ) -> Result<Founded, FoundError> {
        self.leads_within(patience)
            .await
            .map_err(FoundError::Leader)?;
        Ok(self.core.found(founder).await?)
    }

    /// An operation under a fresh id. Needs [`Controller::run`] to be running.
    pub async fn operate(&self, operation: Operation) -> Result<(), WriteError> {
        self.core
            .write(fresh_write(), Body::Operation(operation))
            .await
    }

    /// Makes a token beside those that there are, for whoever holds the data directory and lost the
    /// one that was kept there. May be repeated.
    pub async fn add_token(&self, token: Token) -> Result<(), BootstrapError> {
        let token = Operation::CreateToken(CreateToken {
            id: token.id,
            description: token.description,
            hash: token.hash,
            role: token.role,
            expires_at: token.expires_at,
        });
        self.ensure(fresh_write(), token).await?;
        Ok(())
    }

    async fn ensure(&self, id: WriteId, operation: Operation) -> Result<(), WriteError> {
        match self.core.write(id, Body::Operation(operation)).await {
            Err(WriteError::Refused(Refusal::AlreadyExists(_))) => Ok(()),
            other => other,
        }
    }

    /// Who is in the group and, while this controller leads, how far they have come.
    pub async fn members(&self, within: Duration) -> Result<Members, ReadError> {
        self.core.replica.members(Instant::now() + within).await
    }

    /// The whole state as a file, for [`backup::inspect`] and [`backup::restore`]: with everything
    /// that was acknowledged before the call. Any controller can.
    pub async fn save_snapshot(&self, within: Duration) -> Result<bytes::Bytes, ReadError> {
        backup::save(&self.core, Instant::now() + within).await
    }

    /// Adds a member that receives everything and has no vote; see [`Replica::add_learner`]. Only
    /// the leader does this and the next two.
    pub async fn add_learner(&self, id: u64, within: Duration) -> Result<(), ChangeError> {
        let deadline = Instant::now() + within;
        self.core.replica.add_learner(id, deadline).await
    }

    /// Makes a learner a voter, if it has caught up and has every artifact that is named; see
    /// [`Replica::promote`].
    pub async fn promote(&self, id: u64, within: Duration) -> Result<(), ChangeError> {
        self.core.promote(id, Instant::now() + within).await
    }

    /// Removes a member for good, without a look at the artifacts; see [`Replica::remove`].
    pub async fn remove_member(&self, id: u64, within: Duration) -> Result<(), ChangeError> {
        self.core.replica.remove(id, Instant::now() + within).await
    }

    pub fn status(&self) -> Status {
        let replica = self.core.replica.status().borrow().clone();
        let memory = self.core.memory();
        Status {
            member: replica.id,
            leader: replica.leader,
            term: replica.term,
            applied: replica.applied,
            leading: replica.leading().is_some() && memory.leads(),
            planning: memory.leadership == Leadership::Leading,
            nodes: memory.nodes.len(),
            nodes_alive: memory
                .inputs
                .values()
                .filter(|node| node.alive && node.reachable)
                .count(),
            instances: memory.instances.len(),
        }
    }

    fn incoming(&self) -> std::sync::MutexGuard<'_, Vec<Incoming>> {
        self.incoming
            .lock()
            .expect("never poisoned: no panic while held")
    }
}

async fn serve(
    core: Arc<Core>,
    incoming: Incoming,
    shutdown: Shutdown,
    peers: Shutdown,
) -> Result<(), tonic::transport::Error> {
    let known = Arc::clone(&core);
    let belongs = Arc::new(move |id| known.belongs(&Component::Controller(id)));
    let inbound = Inbound::new(core.me.clone(), core.replica.clone(), belongs, peers);
    let management = Management {
        core: Arc::clone(&core),
        shutdown: shutdown.clone(),
    };
    let agents = Agents {
        core: Arc::clone(&core),
        shutdown: shutdown.clone(),
    };
    let artifacts = ArtifactPeers {
        copies: core.copies.clone(),
    };
    let asked = shutdown.clone();
    let known = Arc::clone(&core);
    let serving = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .layer(Guard::with(move |component| known.belongs(component)))
        .add_service(ClusterServer::new(Cluster {
            core: Arc::clone(&core),
        }))
        .add_service(JoinServer::new(Join {
            core: Arc::clone(&core),
        }))
        .add_service(ManagementServer::new(management))
        .add_service(AgentsServer::new(agents))
        .add_service(ArtifactPeersServer::new(artifacts))
        .add_service(PeersServer::new(inbound))
        .add_service(RoutingServer::new(Routing { core }))
        .serve_with_incoming_shutdown(incoming, async move { asked.requested().await });
    tokio::select! {
        served = serving => served,
        // A peer that does not let go of its connection does not keep us.
        () = async { shutdown.requested().await; tokio::time::sleep(DRAIN).await } => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waiting_for_a_publication_waits() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::standalone(dir.path().to_owned(), "0badcafe".into(), Vec::new());
        let core = config.build().await.unwrap().core;
        // The state was published when it was recovered; a follower of a build log that took this
        // for news would read its file without pause.
        assert!(!core.publications().has_changed().unwrap());
        assert!(core.published.has_changed().unwrap());
        core.replica.shutdown().await;
    }
}
