//! containerd's API with what its stubs leave out: the namespace, a time limit on every call, and
//! which errors mean "it is already so".
//!
//! There are no leases here, on purpose (ADR 4): they protect snapshots and content from the garbage
//! collector, and Coracle has neither (a container's root is the unpacked image directory, bound
//! read-only). Container records are roots of the collector and stay until deleted.

use std::{collections::HashMap, fmt, future::Future, path::PathBuf, time::Duration};

use containerd_client::{
    services::v1::{
        Container, CreateContainerRequest, CreateNamespaceRequest, CreateTaskRequest,
        DeleteContainerRequest, DeleteNamespaceRequest, DeleteTaskRequest, KillRequest,
        ListContainersRequest, ListTasksRequest, Namespace, StartRequest, UpdateContainerRequest,
        WaitRequest, container::Runtime, containers_client::ContainersClient,
        namespaces_client::NamespacesClient, tasks_client::TasksClient,
        version_client::VersionClient,
    },
    tonic::{
        Code, Request, Response, Status,
        metadata::{Ascii, MetadataValue},
        transport::{Channel, Endpoint},
    },
};
use hyper_util::rt::TokioIo;
use prost_types::{Any, FieldMask};
use tokio::net::UnixStream;

/// Reading and small writes. Under heavy load containerd has been seen to stall for seconds.
const SHORT: Duration = Duration::from_secs(20);
/// Calls that start processes.
const LONG: Duration = Duration::from_secs(60);

const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
const RUNTIME: &str = "io.containerd.runc.v2";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("containerd refused {call}: {}", .status.message())]
    Refused {
        call: &'static str,
        status: Box<Status>,
    },
    #[error("containerd did not answer {call} within {} s", .after.as_secs())]
    TimedOut { call: &'static str, after: Duration },
}

impl Error {
    pub(crate) fn code(&self) -> Option<Code> {
        match self {
            Self::Refused { status, .. } => Some(status.code()),
            Self::TimedOut { .. } => None,
        }
    }

    /// The shared supervisor that a new container was to join was just ending, because the last
    /// container that it had is gone.
    pub(crate) fn is_shim_gone(&self) -> bool {
        let Self::Refused {
            call: "Tasks.Create" | "Tasks.Start",
            status,
        } = self
        else {
            return false;
        };
        let said = status.message();
        [
            "failed to start shim",
            "ttrpc: closed",
            "connection refused",
            "no such file",
        ]
        .iter()
        .any(|sign| said.contains(sign))
    }

    /// containerd cannot be reached at the moment, or did not say: nothing is known.
    pub(crate) fn is_unknown(&self) -> bool {
        matches!(
            self.code(),
            None | Some(Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded)
        )
    }
}

/// A container record of ours.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) id: String,
    pub(crate) labels: HashMap<String, String>,
}

/// A task as containerd sees it; its view may be older than the kernel's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Task {
    pub(crate) pid: u32,
    pub(crate) alive: bool,
}

#[derive(Clone)]
pub(crate) struct Client {
    channel: Channel,
    namespace: MetadataValue<Ascii>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Connects when the first call is made, and again after every loss of the connection.
    pub(crate) fn new(socket: PathBuf, namespace: &str) -> Self {
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://containerd")
            .connect_timeout(Duration::from_secs(5))
            .connect_with_connector_lazy(connector);
        let namespace = namespace.parse().expect("a cluster's namespace is ASCII");
        Self { channel, namespace }
    }

    async fn call<Q, A, F>(
        &self,
        call: &'static str,
        after: Duration,
        message: Q,
        send: impl FnOnce(Request<Q>) -> F,
    ) -> Result<A, Error>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let mut request = Request::new(message);
        request
            .metadata_mut()
            .insert("containerd-namespace", self.namespace.clone());
        match tokio::time::timeout(after, send(request)).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(Error::Refused {
                call,
                status: Box::new(status),
            }),
            Err(_) => Err(Error::TimedOut { call, after }),
        }
    }

    pub(crate) async fn version(&self) -> Result<String, Error> {
        let mut client = VersionClient::new(self.channel.clone());
        let limit = Duration::from_secs(5);
        self.call(
            "Version",
            limit,
            (),
            |q| async move { client.version(q).await },
        )
        .await
        .map(|answer| answer.version)
    }

    pub(crate) async fn create_namespace(&self, name: String) -> Result<(), Error> {
        let mut client = NamespacesClient::new(self.channel.clone());
        let namespace = Some(Namespace {
            name,
            ..Default::default()
        });
        let message = CreateNamespaceRequest { namespace };
        unless(
            Code::AlreadyExists,
            self.call("Namespaces.Create", SHORT, message, |q| async move {
                client.create(q).await
            })
            .await,
        )
    }

    pub(crate) async fn delete_namespace(&self, name: String) -> Result<(), Error> {
        let mut client = NamespacesClient::new(self.channel.clone());
        let message = DeleteNamespaceRequest { name };
        unless(
            Code::NotFound,
            self.call("Namespaces.Delete", SHORT, message, |q| async move {
                client.delete(q).await
            })
            .await,
        )
    }

    /// `spec` is the OCI runtime specification as JSON.
    pub(crate) async fn create_container(
        &self,
        id: &str,
        spec: Vec<u8>,
        labels: HashMap<String, String>,
    ) -> Result<(), Error> {
        let mut client = ContainersClient::new(self.channel.clone());
        let container = Container {
            id: id.to_owned(),
            labels,
            runtime: Some(Runtime {
                name: RUNTIME.to_owned(),
                options: None,
            }),
            spec: Some(Any {
                type_url: SPEC_TYPE.to_owned(),
                value: spec,
            }),
            ..Default::default()
        };
        let message = CreateContainerRequest {
            container: Some(container),
        };
        self.call("Containers.Create", SHORT, message, |q| async move {
            client.create(q).await
        })
        .await
        .map(drop)
    }

    /// Replaces all labels of a container.
    pub(crate) async fn label_container(
        &self,
        id: &str,
        labels: HashMap<String, String>,
    ) -> Result<(), Error> {
        let mut client = ContainersClient::new(self.channel.clone());
        let container = Container {
            id: id.to_owned(),
            labels,
            ..Default::default()
        };
        let message = UpdateContainerRequest {
            container: Some(container),
            update_mask: Some(FieldMask {
                paths: vec!["labels".to_owned()],
            }),
        };
        self.call("Containers.Update", SHORT, message, |q| async move {
            client.update(q).await
        })
        .await
        .map(drop)
    }

    /// Only when the task is deleted: containerd does not refuse, and then the task can no longer
    /// be reached.
    pub(crate) async fn delete_container(&self, id: &str) -> Result<(), Error> {
        let mut client = ContainersClient::new(self.channel.clone());
        let message = DeleteContainerRequest { id: id.to_owned() };
        unless(
            Code::NotFound,
            self.call("Containers.Delete", SHORT, message, |q| async move {
                client.delete(q).await
            })
            .await,
        )
    }

    /// Removes a container in whatever state it is, in the one order that leaves nothing: kill,
    /// wait, delete the task, delete the record.
    pub(crate) async fn remove(&self, id: &str) -> Result<(), Error> {
        if self.delete_task(id).await.is_err() {
            // It is running, or created and not started.
            if let Err(error) = self.kill_task(id).await {
                tracing::debug!(container = id, %error, "cannot kill");
            }
            let _ = self.wait_task(id).await;
            self.delete_task(id).await?;
        }
        self.delete_container(id).await
    }

    /// Every container of the namespace.
    pub(crate) async fn containers(&self) -> Result<Vec<Record>, Error> {
        // As a stream, since a thousand specifications are more than one message may hold.
        let mut client = ContainersClient::new(self.channel.clone());
        let message = ListContainersRequest::default();
        let call = "Containers.ListStream";
        let mut stream = self
            .call(call, SHORT, message, |q| async move {
                client.list_stream(q).await
            })
            .await?;
        let mut records = Vec::new();
        loop {
            let next = tokio::time::timeout(SHORT, stream.message()).await;
            match next {
                Ok(Ok(Some(message))) => records.extend(message.container.map(|c| Record {
                    id: c.id,
                    labels: c.labels,
                })),
                Ok(Ok(None)) => return Ok(records),
                Ok(Err(status)) => {
                    return Err(Error::Refused {
                        call,
                        status: Box::new(status),
                    });
                }
                Err(_) => return Err(Error::TimedOut { call, after: SHORT }),
            }
        }
    }

    /// Makes the container's namespaces and its first process, not yet running the program; its
    /// process id.
    pub(crate) async fn create_task(
        &self,
        id: &str,
        stdout: String,
        stderr: String,
    ) -> Result<u32, Error> {
        let mut client = TasksClient::new(self.channel.clone());
        let message = CreateTaskRequest {
            container_id: id.to_owned(),
            stdout,
            stderr,
            ..Default::default()
        };
        self.call("Tasks.Create", LONG, message, |q| async move {
            client.create(q).await
        })
        .await
        .map(|answer| answer.pid)
    }

    pub(crate) async fn start_task(&self, id: &str) -> Result<(), Error> {
        let mut client = TasksClient::new(self.channel.clone());
        let message = StartRequest {
            container_id: id.to_owned(),
            ..Default::default()
        };
        self.call("Tasks.Start", LONG, message, |q| async move {
            client.start(q).await
        })
        .await
        .map(drop)
    }

    /// SIGKILL, for tasks that this process holds no pidfd of.
    pub(crate) async fn kill_task(&self, id: &str) -> Result<(), Error> {
        let mut client = TasksClient::new(self.channel.clone());
        let message = KillRequest {
            container_id: id.to_owned(),
            signal: 9,
            all: true,
            ..Default::default()
        };
        unless(
            Code::NotFound,
            self.call("Tasks.Kill", LONG, message, |q| async move {
                client.kill(q).await
            })
            .await,
        )
    }

    /// The exit status of a task that has ended or is about to.
    pub(crate) async fn wait_task(&self, id: &str) -> Result<u32, Error> {
        let mut client = TasksClient::new(self.channel.clone());
        let message = WaitRequest {
            container_id: id.to_owned(),
            ..Default::default()
        };
        self.call("Tasks.Wait", SHORT, message, |q| async move {
            client.wait(q).await
        })
        .await
        .map(|answer| answer.exit_status)
    }

    pub(crate) async fn delete_task(&self, id: &str) -> Result<(), Error> {
        let mut client = TasksClient::new(self.channel.clone());
        let message = DeleteTaskRequest {
            container_id: id.to_owned(),
        };
        unless(
            Code::NotFound,
            self.call("Tasks.Delete", LONG, message, |q| async move {
                client.delete(q).await
            })
            .await,
        )
    }

    /// Every task of the namespace by its container's id.
    pub(crate) async fn tasks(&self) -> Result<HashMap<String, Task>, Error> {
        let mut client = TasksClient::new(self.channel.clone());
        let message = ListTasksRequest::default();
        let answer = self
            .call("Tasks.List", SHORT, message, |q| async move {
                client.list(q).await
            })
            .await?;
        // Created, running, paused, pausing: everything but unknown (0) and stopped (3).
        let alive = |status: i32| !matches!(status, 0 | 3);
        let task = |p: &containerd_client::types::v1::Process| Task {
            pid: p.pid,
            alive: alive(p.status),
        };
        Ok(answer
            .tasks
            .into_iter()
            .map(|p| (p.id.clone(), task(&p)))
            .collect())
    }
}

fn unless<T>(harmless: Code, result: Result<T, Error>) -> Result<(), Error> {
    match result {
        Ok(_) => Ok(()),
        Err(error) if error.code() == Some(harmless) => Ok(()),
        Err(error) => Err(error),
    }
}
