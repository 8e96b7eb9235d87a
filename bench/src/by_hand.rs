//! A container from scratch: ours with no stem waiting, beside the same container made by hand,
//! from the same OCI specification through the same containerd, without network and logs.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use containerd_client::{
    connect,
    services::v1::{
        Container, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest,
        DeleteTaskRequest, KillRequest, ListContainersRequest, StartRequest, WaitRequest,
        container::Runtime, containers_client::ContainersClient, tasks_client::TasksClient,
    },
    tonic::{Request, transport::Channel},
    with_namespace,
};
use coracle_tests::{Client, Server};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use crate::{
    process::machine,
    stats::{Median, quantile},
};

const PING: [u8; 8] = [0, 0, 0, 0, 0x11, 0, 0, 0];

pub(crate) async fn run(pairs: usize) -> Result<(), String> {
    println!("scratch: {}; {pairs} alternated pairs", machine());
    let flags = [
        "--stems=0",
        "--idle-after=1",
        "--stable-window=1",
        "--panic-window=1",
    ];
    let server = Server::with_flags(&flags).await;
    for n in 0..pairs {
        let code = format!("def main():\n    return 'x'\n# {n}\n");
        server
            .deploy(&format!("f-{n}"), &code, json!({"memory_mib": 128}))
            .await;
    }
    // One that stays lends its specification.
    let kept = json!({"memory_mib": 128, "scale": {"min": 1, "max": 1}});
    server
        .deploy("kept", "def main():\n    return 'x'\n", kept)
        .await;
    server
        .ready_instances(&format!("f-{}", pairs - 1), 0, Duration::from_secs(60))
        .await;
    let peer = Peer::new(&server).await?;
    let client = Client::new(None);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for n in 0..pairs {
        let url = server.url(&format!("f-{n}"));
        if n % 2 == 0 {
            ours.push(start_phase(&client, &url).await);
            theirs.push(peer.start(n).await?);
        } else {
            theirs.push(peer.start(n).await?);
            ours.push(start_phase(&client, &url).await);
        }
    }
    for (name, samples) in [("coracle", &ours), ("by hand", &theirs)] {
        let mut sorted = samples.clone();
        sorted.sort_by(f64::total_cmp);
        println!(
            "  {name:8} {} ms, p99 {:.0}",
            Median::of(samples),
            quantile(&sorted, 0.99)
        );
    }
    let ratios: Vec<f64> = ours.iter().zip(&theirs).map(|(a, b)| a / b).collect();
    println!("  ratio    {}", Median::of(&ratios));
    Ok(())
}

/// From the order to the claimed container, as the answer's `Server-Timing` says, in ms.
async fn start_phase(client: &Client, url: &str) -> f64 {
    let answer = client.get(url).await.ok();
    answer
        .phase("start")
        .unwrap_or_else(|| panic!("no start in {:?}", answer.headers))
}

struct Peer {
    channel: Channel,
    namespace: String,
    /// Of the container that lends it.
    spec: Value,
    lender: String,
    run: PathBuf,
}

impl Peer {
    async fn new(server: &Server) -> Result<Self, String> {
        let channel = connect(server.containerd_socket())
            .await
            .map_err(|e| e.to_string())?;
        let namespace = format!("coracle-{}", server.cluster_id());
        let request = ListContainersRequest::default();
        let listed = ContainersClient::new(channel.clone())
            .list(with_namespace!(request, namespace))
            .await
            .map_err(|status| status.to_string())?;
        let lender = listed
            .into_inner()
            .containers
            .into_iter()
            .next()
            .ok_or("no container")?;
        let spec = lender.spec.ok_or("a container without a specification")?;
        let spec = serde_json::from_slice(&spec.value).map_err(|e| e.to_string())?;
        Ok(Self {
            channel,
            namespace,
            spec,
            lender: lender.id,
            run: server.data().join("run"),
        })
    }

    /// From the first call to the shim's first answer, in ms; the container is removed again.
    async fn start(&self, n: usize) -> Result<f64, String> {
        let id = format!("{:012x}", 0xbe_0000_0000 + n);
        let directory = self.run.join(format!("hand-{n}"));
        let lent = self.run.join(&self.lender).join("fn");
        let owner = fs::metadata(&lent).map_err(|e| e.to_string())?;
        fs::create_dir_all(&directory).map_err(|e| e.to_string())?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))
            .and_then(|()| chown(&directory, Some(owner.uid()), Some(owner.gid())))
            .map_err(|e| e.to_string())?;
        let text = self.spec.to_string();
        let text = text.replace(
            &lent.display().to_string(),
            &directory.display().to_string(),
        );
        let text = text.replace(&self.lender, &id);
        #[expect(clippy::disallowed_methods, reason = "measuring, not deciding")]
        let began = Instant::now();
        self.create(&id, text)
            .await
            .map_err(|status| status.to_string())?;
        wait_for_pong(&directory.join("fn.sock")).await?;
        let took = began.elapsed().as_secs_f64() * 1e3;
        self.remove(&id)
            .await
            .map_err(|status| status.to_string())?;
        let _ = fs::remove_dir_all(&directory);
        Ok(took)
    }

    async fn create(&self, id: &str, spec: String) -> Result<(), tonic::Status> {
        let container = Container {
            id: id.to_owned(),
            runtime: Some(Runtime {
                name: "io.containerd.runc.v2".to_owned(),
                options: None,
            }),
            spec: Some(prost_types::Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".to_owned(),
                value: spec.into_bytes(),
            }),
            ..Container::default()
        };
        let request = CreateContainerRequest {
            container: Some(container),
        };
        ContainersClient::new(self.channel.clone())
            .create(with_namespace!(request, self.namespace))
            .await?;
        let mut tasks = TasksClient::new(self.channel.clone());
        let request = CreateTaskRequest {
            container_id: id.to_owned(),
            ..CreateTaskRequest::default()
        };
        tasks
            .create(with_namespace!(request, self.namespace))
            .await?;
        let request = StartRequest {
            container_id: id.to_owned(),
            ..StartRequest::default()
        };
        tasks
            .start(with_namespace!(request, self.namespace))
            .await?;
        Ok(())
    }

    async fn remove(&self, id: &str) -> Result<(), tonic::Status> {
        let mut tasks = TasksClient::new(self.channel.clone());
        let id = || id.to_owned();
        let request = KillRequest {
            container_id: id(),
            signal: 9,
            all: true,
            ..KillRequest::default()
        };
        tasks.kill(with_namespace!(request, self.namespace)).await?;
        let request = WaitRequest {
            container_id: id(),
            ..WaitRequest::default()
        };
        tasks.wait(with_namespace!(request, self.namespace)).await?;
        let request = DeleteTaskRequest { container_id: id() };
        tasks
            .delete(with_namespace!(request, self.namespace))
            .await?;
        let request = DeleteContainerRequest { id: id() };
        ContainersClient::new(self.channel.clone())
            .delete(with_namespace!(request, self.namespace))
            .await?;
        Ok(())
    }
}

/// As readiness is for stems: the user process answers.
async fn wait_for_pong(socket: &Path) -> Result<(), String> {
    for _ in 0..5_000 {
        if let Ok(mut stream) = UnixStream::connect(socket).await {
            let mut pong = [0; 8];
            stream.write_all(&PING).await.map_err(|e| e.to_string())?;
            stream
                .read_exact(&mut pong)
                .await
                .map_err(|e| e.to_string())?;
            return Ok(());
        }
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
    Err(format!("nothing answers at {}", socket.display()))
}
