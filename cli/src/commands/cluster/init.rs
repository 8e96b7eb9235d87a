//! `coracle cluster init`: from nothing, or from a server that stood by itself.
//!
//! All is done before the first start, so that a controller of a cluster starts one way only. Until
//! the end nothing is changed in the directory that it comes from.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::Args;
use coracle_base::{Address, Clock, MemoryBus, Shutdown, SystemClock};
use coracle_controller::{Controller, Founded, Founder};
use coracle_identity::{Component, ControllerPart, Enrolment, KeyPair, Name, Private, WrappingKey};
use coracle_model::{
    ComponentRole, MemberId, Operation, SecretHash, Timestamp, TokenId, operation::CreateJoinToken,
};
use serde_json::json;
use uuid::Uuid;

use crate::{
    data::{DataDir, Identity, Locked, TOKEN_FILE, random_hex},
    error::CliError,
    membership,
    output::Output,
    roles::controller,
    settings::{RawSettings, Settings},
};

/// One voter leads within milliseconds; a slow disk may take its time to sync.
const PATIENCE: Duration = Duration::from_secs(60);
const FIRST_TOKEN_MS: u64 = 24 * 60 * 60 * 1_000;
const CONTROLLER: &str = "controller";
const COPYING: &str = "controller.copying";

#[derive(Debug, Args)]
pub(crate) struct Init {
    /// Data directory of the first controller
    #[arg(long, env = "CORACLE_DATA", value_name = "DIR")]
    data: Option<PathBuf>,
    /// Where the controller will listen: host:port
    #[arg(long, env = "CORACLE_LISTEN", value_name = "ADDR")]
    listen: String,
    /// Where the other machines reach it: host:port [default: what --listen says]
    #[arg(long, env = "CORACLE_ADVERTISE", value_name = "ADDR")]
    advertise: Option<String>,
    /// Name of the controller [default: the host name]
    #[arg(long)]
    name: Option<String>,
    /// Data directory of a stopped server whose controller becomes the first of the cluster. Its
    /// functions, keys and tokens come along; with the rest of the directory its node can join
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

impl Init {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        let settings = RawSettings {
            data: self.data,
            listen: Some(self.listen),
            advertise: self.advertise,
            node_name: self.name,
            ..RawSettings::default()
        };
        let settings = settings.check()?;
        let (listen, advertise) = membership::addresses(&settings)?;
        if let Err(error) = std::net::TcpListener::bind(&listen) {
            return Err(CliError::Failed(format!(
                "listen: cannot listen on {listen}: {error}"
            )));
        }
        let locked = Locked::take(&settings.data)?;
        is_free(&locked)?;
        let (data, from) = match &self.from {
            None => (locked.keep_alone(None)?, None),
            Some(from) => {
                let (data, from) = copied(locked, from)?;
                (data, Some(from))
            }
        };
        let made = found(&settings, &data, &listen, &advertise).await?;
        if let Some(from) = &from {
            from.note_moved(data.path()).map_err(|error| {
                CliError::Failed(format!(
                    "the cluster is made, but {} was not marked as moved ({error}): do not start \
                     `coracle up` with it any more",
                    from.path().display()
                ))
            })?;
        }
        let value = json!({
            "cluster": made.enrolment.name.cluster,
            "ca_hash": made.enrolment.ca_hash().to_string(),
            "data": data.path(),
            "advertise": advertise,
            "admin_token": made.admin,
            "gateway_join_token": made.gateway_token,
        });
        self.output
            .print(&value, |_| made.tell(&data, &advertise, from.as_ref()))
    }
}

/// Nothing that is there is overwritten.
fn is_free(locked: &Locked) -> Result<(), CliError> {
    let data = locked.path();
    let joined = Enrolment::load(data);
    if let Some(enrolment) = joined.map_err(|error| CliError::failed("identity", error))? {
        return Err(CliError::Conflict(format!(
            "{} has joined cluster {} already",
            data.display(),
            enrolment.name.cluster
        )));
    }
    if locked.known()?.is_some() || data.join(CONTROLLER).exists() {
        return Err(CliError::Conflict(format!(
            "{} holds a server, or what an init that did not finish left behind; give an empty \
             --data, and that directory as --from if its server is to become the cluster",
            data.display()
        )));
    }
    Ok(())
}

/// The controller's part of a stopped server, in the new directory.
fn copied(locked: Locked, from: &Path) -> Result<(DataDir, Locked), CliError> {
    let none = || CliError::NotFound(format!("{} holds no server", from.display()));
    if !from.join(CONTROLLER).is_dir() {
        return Err(none());
    }
    let from = Locked::take(from)?;
    let known = from.known()?.ok_or_else(none)?;
    if let Some(to) = from.moved() {
        return Err(CliError::Conflict(format!(
            "the controller of {} was made the first of a cluster already, in {to}",
            from.path().display()
        )));
    }
    let to = locked.path();
    let copy = || -> io::Result<()> {
        match fs::remove_dir_all(to.join(COPYING)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        copy_tree(&from.path().join(CONTROLLER), &to.join(COPYING))?;
        if from.path().join(TOKEN_FILE).exists() {
            fs::copy(from.path().join(TOKEN_FILE), to.join(TOKEN_FILE))?;
            fs::File::open(to.join(TOKEN_FILE))?.sync_all()?;
        }
        fs::rename(to.join(COPYING), to.join(CONTROLLER))?;
        fs::File::open(to)?.sync_all()
    };
    copy().map_err(|error| {
        CliError::Failed(format!("cannot copy {}: {error}", from.path().display()))
    })?;
    // The machine's containers and network carry the cluster's id: it stays. The node stays behind.
    let data = locked.keep(|| Identity {
        cluster_id: known.cluster_id,
        node_id: Uuid::new_v4(),
    })?;
    Ok((data, from))
}

/// Files and directories with their modes, each on disk when it returns.
fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    fs::set_permissions(to, fs::metadata(from)?.permissions())?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy_tree(&source, &target)?;
        } else {
            fs::copy(&source, &target)?;
            fs::File::open(&target)?.sync_all()?;
        }
    }
    fs::File::open(to)?.sync_all()
}

struct Made {
    enrolment: Enrolment,
    admin: Option<String>,
    gateway_token: String,
}

async fn found(
    settings: &Settings,
    data: &DataDir,
    listen: &str,
    advertise: &str,
) -> Result<Made, CliError> {
    let bus = Address::Memory(MemoryBus::new());
    let config = controller::config(settings, data, vec![bus])?;
    let failed = |error: &dyn std::error::Error| {
        CliError::Failed(format!("controller: {}", crate::error::chain(error)))
    };
    let controller = Arc::new(config.build().await.map_err(|e| failed(&e))?);
    let shutdown = Shutdown::new();
    let running = tokio::spawn({
        let (controller, shutdown) = (Arc::clone(&controller), shutdown.clone());
        async move { controller.run(shutdown).await }
    });
    let made = first_writes(settings, data, &controller, listen, advertise).await;
    shutdown.request();
    let ended = running.await;
    let made = made?;
    ended
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
        .map_err(|e| failed(&e))?;
    let saved = made.enrolment.save(data.path());
    saved.map_err(|error| CliError::failed("identity", error))?;
    Ok(made)
}

async fn first_writes(
    settings: &Settings,
    data: &DataDir,
    controller: &Controller,
    listen: &str,
    advertise: &str,
) -> Result<Made, CliError> {
    let failed = |error: &dyn std::error::Error| {
        CliError::Failed(format!("controller: {}", crate::error::chain(error)))
    };
    let now = Timestamp(SystemClock.now_millis());
    let (token, admin) = data.admin_token(now)?;
    let bootstrapped = controller.bootstrap(token, PATIENCE).await;
    bootstrapped.map_err(|e| failed(&e))?;
    let (key, wrapping_key) = (KeyPair::generate(), WrappingKey::generate());
    let key = key.map_err(|e| failed(&e))?;
    let founder = Founder {
        name: settings.node_name.clone(),
        address: advertise.to_owned(),
        wrapping_key: wrapping_key.public(),
        public_key: key.public(),
    };
    let founded = controller.found_cluster(founder, PATIENCE).await;
    let Founded {
        ca_certificate,
        issued,
    } = founded.map_err(|e| failed(&e))?;
    // Tokens are made through a gateway, and the first gateway needs one.
    let (id, secret) = (TokenId(Uuid::new_v4()), random_hex::<32>());
    let create = CreateJoinToken {
        id,
        hash: SecretHash::of(&secret),
        role: ComponentRole::Gateway,
        expires_at: now.plus_millis(FIRST_TOKEN_MS),
        uses: 1,
    };
    let operation = Operation::CreateJoinToken(create);
    let written = controller.operate(operation).await;
    written.map_err(|e| failed(&e))?;
    Ok(Made {
        enrolment: Enrolment {
            name: Name {
                cluster: data.identity().cluster_id.clone(),
                component: Component::Controller(MemberId(controller.status().member)),
            },
            ca_certificate,
            issued,
            private_key: Private(key.private()),
            controllers: vec![advertise.to_owned()],
            controller: Some(ControllerPart {
                name: settings.node_name.clone(),
                listen: listen.to_owned(),
                advertise: advertise.to_owned(),
                wrapping_key,
                peers: [(1, advertise.to_owned())].into(),
            }),
        },
        admin,
        gateway_token: format!("{id}${secret}"),
    })
}

impl Made {
    fn tell(&self, data: &DataDir, advertise: &str, from: Option<&Locked>) {
        let (at, hash) = (data.path().display(), self.enrolment.ca_hash());
        outln!(
            "cluster {} made; its CA has the hash {hash}",
            self.enrolment.name.cluster
        );
        if let Some(token) = &self.admin {
            outln!("admin token (shown this once; kept in {at}/{TOKEN_FILE}): {token}");
        }
        outln!("start its first controller:");
        outln!("  coracle controller --data {at}");
        outln!("then a gateway, on this machine or on another (within a day):");
        outln!(
            "  coracle gateway --join {advertise} --token '{}' --ca-hash {hash}",
            self.gateway_token
        );
        outln!("and more machines with what `coracle node token --role ROLE` prints");
        if let Some(from) = from {
            outln!(
                "{} keeps its node, which joins with the same --data; its old copy of the \
                 controller is not used any more",
                from.path().display()
            );
        }
    }
}
