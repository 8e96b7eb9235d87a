//! The server: each role alone, or all three in one process. The parts are the same either way;
//! only the addresses between them differ.

mod agent;
pub(crate) mod controller;
mod gateway;
mod notify;
mod signals;

use std::{future::Future, time::Duration};

use coracle_base::{Address, MemoryBus, Shutdown, telemetry};
use coracle_identity::Enrolment;
use coracle_model::ComponentRole;
use tokio::runtime::Builder;

use crate::{
    admin::Admin,
    data::{DataDir, Locked, ServerFile},
    error::CliError,
    membership::{self, Opened},
    settings::Settings,
};
use signals::Signals;

/// How long loops may take to end once nothing is left for them to do.
const END_GRACE: Duration = Duration::from_secs(5);
/// What stands in front of several gateways asks about once a second whether one is ready.
const UNREADY: Duration = Duration::from_secs(2);

pub(crate) fn up(settings: Settings) -> Result<(), CliError> {
    serve(&settings, async |settings: &Settings| {
        let data = standalone(settings)?;
        let mut admin = Admin::install()?;
        let bus = MemoryBus::new();
        let memory = || Address::Memory(bus.clone());
        let cluster = data.identity().cluster_id.clone();
        let controller =
            controller::build(settings, &data, vec![memory()], None, &mut admin).await?;
        // Before the agent: an address that is taken must not leave a containerd and a bridge behind.
        let unready = settings.unready.unwrap_or_default();
        let gateway =
            gateway::bind(settings, &data, vec![memory()], None, unready, &mut admin).await?;
        let agent =
            agent::build(settings, &data, &cluster, vec![memory()], None, &mut admin).await?;
        let signals = signals::watch()?;
        signals.show(&mut admin);
        let rest = Shutdown::new();
        let admin_address = admin.serve(settings.admin, &rest).await?;
        controller.spawn(&rest);
        agent.spawn(&rest);
        data.write_server_file(&gateway.server_file(admin_address))?;
        let fresh_token = controller.bootstrap().await?;
        announce(&data, &gateway.server_file(admin_address), fresh_token);
        notify::started(&rest);
        // Requests that are under way need the agent and the controller until they end.
        let served = gateway.run(signals, &rest).await;
        end(rest).await;
        served
    })
}

/// A data directory for all three roles: one that is of a cluster of several machines has one.
fn standalone(settings: &Settings) -> Result<DataDir, CliError> {
    let locked = Locked::take(&settings.data)?;
    let joined = Enrolment::load(&settings.data);
    if let Some(enrolment) = joined.map_err(|error| CliError::failed("identity", error))? {
        return Err(CliError::Usage(format!(
            "{} has joined cluster {}; run `coracle {}` with it, or choose another --data",
            settings.data.display(),
            enrolment.name.cluster,
            enrolment.name.component.role()
        )));
    }
    not_moved(&locked)?;
    locked.keep_alone(None)
}

fn not_moved(locked: &Locked) -> Result<(), CliError> {
    match locked.moved() {
        None => Ok(()),
        Some(to) => Err(CliError::Usage(format!(
            "the controller of {} was made the first of a cluster, in {to}; run `coracle \
             controller --data {to}` there, and `coracle agent --join` with this directory",
            locked.path().display()
        ))),
    }
}

pub(crate) fn controller(settings: Settings) -> Result<(), CliError> {
    serve(&settings, async |settings: &Settings| {
        let opened = membership::open(settings, ComponentRole::Controller).await?;
        let (data, listen, membership) = match opened {
            Opened::Member(data, membership) => {
                let listen = controller::listeners(settings, &data, &membership)?;
                (data, listen, Some(membership))
            }
            Opened::Alone(locked) => {
                not_moved(&locked)?;
                let listen = settings.listen.clone().ok_or_else(|| {
                    CliError::Usage(
                        "listen: a controller needs --listen, unix:/path or host:port".into(),
                    )
                })?;
                membership::only_here("listen", [&listen])?;
                (locked.keep_alone(None)?, vec![listen], None)
            }
        };
        let alone = membership.is_none();
        let mut admin = Admin::install()?;
        let known = membership.as_deref();
        let controller = controller::build(settings, &data, listen, known, &mut admin).await?;
        let signals = signals::watch()?;
        signals.show(&mut admin);
        let rest = Shutdown::new();
        admin.serve(settings.admin, &rest).await?;
        controller.spawn(&rest);
        if let Some(membership) = membership {
            membership.keep(&data, &rest);
        }
        notify::started(&rest);
        // In a cluster that was done when it was made, and not each controller leads.
        if alone && let Some(token) = controller.bootstrap().await? {
            announce_token(&data, &token);
        }
        let outcome = until_stopped(signals, &rest).await;
        end(rest).await;
        outcome
    })
}

pub(crate) fn agent(settings: Settings) -> Result<(), CliError> {
    serve(&settings, async |settings: &Settings| {
        let opened = membership::open(settings, ComponentRole::Agent).await?;
        let (data, controllers, membership) = match opened {
            Opened::Member(data, membership) => {
                let controllers = membership.controllers(&settings.controllers);
                (data, controllers, Some(membership))
            }
            Opened::Alone(locked) => {
                let controllers = controllers(settings)?;
                membership::only_here("listen", &settings.listen)?;
                let cluster = agent::cluster_id(&controllers).await?;
                let data = locked.keep_alone(Some(cluster.clone()))?;
                if data.identity().cluster_id != cluster {
                    return Err(CliError::Failed(format!(
                        "{} belongs to cluster {}, and the controllers are of cluster {cluster}; \
                         choose another --data",
                        settings.data.display(),
                        data.identity().cluster_id
                    )));
                }
                (data, controllers, None)
            }
        };
        let cluster = data.identity().cluster_id.clone();
        let mut admin = Admin::install()?;
        let known = membership.as_deref();
        let agent = agent::build(settings, &data, &cluster, controllers, known, &mut admin).await?;
        let signals = signals::watch()?;
        signals.show(&mut admin);
        let rest = Shutdown::new();
        admin.serve(settings.admin, &rest).await?;
        agent.spawn(&rest);
        if let Some(membership) = membership {
            membership.keep(&data, &rest);
        }
        notify::started(&rest);
        let outcome = until_stopped(signals, &rest).await;
        end(rest).await;
        outcome
    })
}

pub(crate) fn gateway(settings: Settings) -> Result<(), CliError> {
    serve(&settings, async |settings: &Settings| {
        let opened = membership::open(settings, ComponentRole::Gateway).await?;
        let (data, controllers, membership) = match opened {
            Opened::Member(data, membership) => {
                let controllers = membership.controllers(&settings.controllers);
                (data, controllers, Some(membership))
            }
            Opened::Alone(locked) => {
                let controllers = controllers(settings)?;
                (locked.keep_alone(None)?, controllers, None)
            }
        };
        let mut admin = Admin::install()?;
        let known = membership.as_deref();
        let unready = settings.unready.unwrap_or(UNREADY);
        let gateway =
            gateway::bind(settings, &data, controllers, known, unready, &mut admin).await?;
        let signals = signals::watch()?;
        signals.show(&mut admin);
        let rest = Shutdown::new();
        let admin_address = admin.serve(settings.admin, &rest).await?;
        data.write_server_file(&gateway.server_file(admin_address))?;
        if let Some(membership) = membership {
            membership.keep(&data, &rest);
        }
        notify::started(&rest);
        let served = gateway.run(signals, &rest).await;
        end(rest).await;
        served
    })
}

fn controllers(settings: &Settings) -> Result<Vec<Address>, CliError> {
    if settings.controllers.is_empty() {
        return Err(CliError::Usage(
            "controllers: this role needs --controllers, unix:/path or host:port, or --join".into(),
        ));
    }
    membership::only_here("controllers", &settings.controllers)?;
    Ok(settings.controllers.clone())
}

/// Runs a role on a multi-threaded runtime, with logging installed. Invocations have threads of
/// their own; what runs here waits more than it works.
fn serve<'a, F>(
    settings: &'a Settings,
    role: impl FnOnce(&'a Settings) -> F,
) -> Result<(), CliError>
where
    F: Future<Output = Result<(), CliError>>,
{
    telemetry::init(&settings.log, settings.log_format).map_err(CliError::Usage)?;
    Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| CliError::failed("cannot start", error))?
        .block_on(role(settings))
}

/// Waits for a signal. A part that ends before one has failed, and with it the process: one that
/// stayed would answer nothing and look alive to whatever would start it again.
async fn until_stopped(signals: Signals, rest: &Shutdown) -> Result<(), CliError> {
    let stop = Shutdown::new();
    signals.drive(stop.clone());
    tokio::select! {
        () = stop.requested() => Ok(()),
        () = rest.requested() => Err(ended_by_itself()),
    }
}

fn ended_by_itself() -> CliError {
    CliError::Failed("a part of the server ended by itself; the log says why".into())
}

async fn end(rest: Shutdown) {
    rest.request();
    if !rest.finished(END_GRACE).await {
        tracing::warn!("some tasks had not ended after {END_GRACE:?}");
    }
    tracing::info!("stopped; instances go on and are adopted by the next start");
}

fn announce(data: &DataDir, server: &ServerFile, fresh_token: Option<String>) {
    if let Some(token) = fresh_token {
        announce_token(data, &token);
    }
    tracing::info!(
        invoke = server.invoke,
        api = server.api,
        admin = server.admin,
        data = %data.path().display(),
        "coracle is up"
    );
}

/// On standard output and never in the log, which may be kept elsewhere.
fn announce_token(data: &DataDir, token: &str) {
    println!(
        "admin token (shown this once; kept in {}): {token}",
        data.path().join(crate::data::TOKEN_FILE).display()
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_part_that_ends_by_itself_ends_the_server_with_an_error() {
        let rest = Shutdown::new();
        let waiting = until_stopped(signals::watch().unwrap(), &rest);
        rest.request();
        let outcome = tokio::time::timeout(END_GRACE, waiting).await.unwrap();
        assert!(matches!(outcome, Err(CliError::Failed(_))));
    }
}
