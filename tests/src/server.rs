//! A real server with a containerd of its own.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use http::Method;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::{
    client::{Answer, Client},
    wait::eventually,
};

const START_LIMIT: Duration = Duration::from_secs(30);
/// A build with dependencies fetches them from a registry.
const DEPLOY_LIMIT: Duration = Duration::from_secs(120);

#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Extra flags of `coracle up`.
    pub flags: Vec<String>,
    /// Controller, agent and gateway as three processes; `CORACLE_TEST_APART=1` makes it the
    /// default, so that the whole suite runs both ways.
    pub apart: bool,
    /// Another binary than the one under test, such as a release.
    pub binary: Option<PathBuf>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        let apart = std::env::var_os("CORACLE_TEST_APART").is_some_and(|value| value == "1");
        Self {
            flags: Vec::new(),
            apart,
            binary: None,
        }
    }
}

/// Everything it made is removed when it is dropped, also when the test panics.
#[derive(Debug)]
pub struct Server {
    dir: TempDir,
    options: ServerOptions,
    containerd: Option<Child>,
    processes: Vec<Child>,
    addresses: Value,
    token: String,
    /// Native API, with the admin token.
    pub admin: Client,
    /// Invocations, without credentials.
    pub public: Client,
}

pub(crate) fn binary() -> PathBuf {
    std::env::var_os("CORACLE_TEST_BINARY")
        .expect("tests/run.sh sets CORACLE_TEST_BINARY")
        .into()
}

impl Server {
    pub async fn start() -> Self {
        Self::with(ServerOptions::default()).await
    }

    pub async fn with_flags(flags: &[&str]) -> Self {
        let flags = flags.iter().map(|f| (*f).to_owned()).collect();
        Self::with(ServerOptions {
            flags,
            ..ServerOptions::default()
        })
        .await
    }

    pub async fn with(options: ServerOptions) -> Self {
        // Containers reach their files through every parent, under mapped uids; and socket paths
        // must stay below 108 bytes.
        let dir = tempfile::Builder::new()
            .prefix("ct")
            .tempdir_in("/var/tmp")
            .expect("tempdir");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o711);
        fs::set_permissions(dir.path(), mode).expect("chmod");
        let mut server = Self {
            dir,
            options,
            containerd: None,
            processes: Vec::new(),
            addresses: Value::Null,
            token: String::new(),
            admin: Client::new(None),
            public: Client::new(None),
        };
        server.start_containerd().await;
        server.start_processes().await;
        server
    }

    /// What the next start runs; `None`: the binary under test.
    pub fn use_binary(&mut self, binary: Option<PathBuf>) {
        self.options.binary = binary;
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn data(&self) -> PathBuf {
        self.path("data")
    }

    pub fn containerd_socket(&self) -> PathBuf {
        self.path("c/containerd.sock")
    }

    pub async fn start_containerd(&mut self) {
        let home = self.path("c");
        fs::create_dir_all(&home).expect("mkdir");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o711);
        fs::set_permissions(&home, mode).expect("chmod");
        let show = |name: &str| home.join(name).display().to_string();
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = \
             [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n",
            show("root"),
            show("state"),
            show("containerd.sock"),
            show("containerd.ttrpc")
        );
        fs::write(home.join("config.toml"), config).expect("write");
        let log = File::create(home.join("containerd.out")).expect("create");
        let child = Command::new("containerd")
            .arg("--config")
            .arg(home.join("config.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("dup"))
            .stderr(log)
            .spawn()
            .expect("containerd is installed by tests/run.sh");
        self.containerd = Some(child);
        let socket = self.containerd_socket();
        eventually(
            "containerd answers",
            START_LIMIT,
            || async { tokio::net::UnixStream::connect(&socket).await.is_ok() },
            |answers| *answers,
        )
        .await;
    }

    pub fn kill_containerd(&mut self) {
        let mut child = self.containerd.take().expect("containerd runs");
        child.kill().expect("kill");
        child.wait().expect("wait");
    }

    /// Starts the server (again); waits until it is ready.
    pub async fn start_processes(&mut self) {
        for data in [self.data(), self.path("gateway")] {
            let _ = fs::remove_file(data.join("server.json"));
        }
        if self.options.apart {
            self.start_apart();
        } else {
            let mut flags = self.listeners();
            flags.extend(self.agent_flags());
            self.spawn("up", &self.data(), &flags);
        }
        let data = self.data();
        let gateway_data = if self.options.apart {
            self.path("gateway")
        } else {
            data.clone()
        };
        let file = gateway_data.join("server.json");
        self.addresses = eventually(
            "the server says where it listens",
            START_LIMIT,
            || async {
                fs::read(&file)
                    .ok()
                    .and_then(|b| serde_json::from_slice(&b).ok())
            },
            |found: &Option<Value>| found.is_some() || self.has_ended(),
        )
        .await
        .unwrap_or_else(|| panic!("the server ended:\n{}", self.log()));
        // As three processes, the gateway may be there before the controller has made it.
        let token = data.join("admin.token");
        self.token = eventually(
            "the admin token is there",
            START_LIMIT,
            || async { fs::read_to_string(&token).unwrap_or_default() },
            |text| !text.trim().is_empty() || self.has_ended(),
        )
        .await
        .trim()
        .to_owned();
        self.admin = Client::new(Some(format!("Bearer {}", self.token)));
        let ready = format!("{}/readyz?verbose", self.address("admin"));
        let _ready = eventually(
            "the server is ready",
            START_LIMIT,
            || self.public.try_send(Method::GET, &ready, &[], ""),
            |answer| answer.as_ref().is_ok_and(|a| a.status.is_success()),
        )
        .await;
    }

    fn listeners(&self) -> Vec<String> {
        [
            "--invoke=127.0.0.1:0",
            "--api=127.0.0.1:0",
            "--admin=127.0.0.1:0",
        ]
        .map(str::to_owned)
        .into()
    }

    fn agent_flags(&self) -> Vec<String> {
        let images = std::env::var("CORACLE_TEST_IMAGES").expect("tests/run.sh sets it");
        let mut flags = vec![
            format!("--containerd={}", self.containerd_socket().display()),
            format!("--images={images}"),
        ];
        flags.extend(self.options.flags.iter().cloned());
        flags
    }

    fn start_apart(&mut self) {
        let listen = format!("unix:{}", self.path("controller.sock").display());
        let admin = "--admin=127.0.0.1:0".to_owned();
        let scaling = |flag: &&String| {
            [
                "--idle-after",
                "--stable-window",
                "--panic-window",
                "--stems",
            ]
            .iter()
            .any(|name| flag.starts_with(name))
        };
        let mut controller = vec![format!("--listen={listen}"), admin.clone()];
        controller.extend(self.options.flags.iter().filter(scaling).cloned());
        self.spawn("controller", &self.data(), &controller);
        let mut agent = vec![format!("--controllers={listen}"), admin];
        agent.extend(self.agent_flags());
        self.spawn("agent", &self.path("agent"), &agent);
        let mut gateway = vec![format!("--controllers={listen}")];
        gateway.extend(self.listeners());
        self.spawn("gateway", &self.path("gateway"), &gateway);
    }

    fn spawn(&mut self, role: &str, data: &Path, flags: &[String]) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.path(&format!("{role}.out")))
            .expect("log");
        let child = Command::new(self.options.binary.clone().unwrap_or_else(binary))
            .arg(role)
            .arg(format!("--data={}", data.display()))
            .args(flags)
            .env("CORACLE_LOG", "coracle=debug,info")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("dup"))
            .stderr(log)
            .spawn()
            .expect("the binary starts");
        self.processes.push(child);
    }

    fn has_ended(&self) -> bool {
        self.processes.iter().any(|child| {
            let stat = fs::read_to_string(format!("/proc/{}/stat", child.id()));
            stat.map_or(true, |stat| stat.contains(") Z "))
        })
    }

    /// The end of what the server's processes wrote.
    pub fn log(&self) -> String {
        let mut text = String::new();
        for role in ["up", "controller", "agent", "gateway"] {
            let all = fs::read_to_string(self.path(&format!("{role}.out"))).unwrap_or_default();
            let lines: Vec<&str> = all.lines().collect();
            let last = lines.len().saturating_sub(80);
            text.extend(
                lines[last..]
                    .iter()
                    .map(|line| format!("[{role}] {line}\n")),
            );
        }
        text
    }

    pub fn pids(&self) -> Vec<u32> {
        self.processes.iter().map(Child::id).collect()
    }

    /// SIGKILL to every process of the server; containerd and the instances stay.
    pub fn kill(&mut self) {
        for mut child in self.processes.drain(..) {
            child.kill().expect("kill");
            child.wait().expect("wait");
        }
    }

    /// SIGTERM, and waits for a clean end.
    pub async fn terminate(&mut self) {
        self.ask_to_stop();
        self.has_stopped().await;
    }

    /// SIGTERM to every process of the server.
    pub fn ask_to_stop(&self) {
        for child in self.processes.iter().rev() {
            signal(child.id(), Signal::TERM);
        }
    }

    /// Waits for a clean end of what was asked to stop.
    pub async fn has_stopped(&mut self) {
        for mut child in self.processes.drain(..).rev() {
            let mut ended = None;
            for _ in 0..600 {
                ended = child.try_wait().expect("wait");
                if ended.is_some() {
                    break;
                }
                sleep(Duration::from_millis(50)).await;
            }
            let status = ended.expect("the server ends within 30 s of SIGTERM");
            assert!(status.success(), "the server ended with {status}");
        }
    }

    /// `http://host:port` of the `invoke`, `api` or `admin` listener.
    #[track_caller]
    pub fn address(&self, listener: &str) -> String {
        self.addresses[listener]
            .as_str()
            .expect("server.json names it")
            .to_owned()
    }

    pub fn token(&self) -> &str {
        &self.token
    }

    pub fn url(&self, function: &str) -> String {
        format!("{}/fn/default/default/{function}", self.address("invoke"))
    }

    pub fn api(&self, path: &str) -> String {
        format!("{}/api/v1/{path}", self.address("api"))
    }

    fn function_path(&self, name: &str) -> String {
        self.api(&format!(
            "projects/default/namespaces/default/functions/{name}"
        ))
    }

    /// Runs the client with this server's address and token; returns status, stdout and stderr.
    pub fn cli(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = Command::new(binary())
            .args(arguments)
            .env("CORACLE_URL", self.address("api"))
            .env("CORACLE_TOKEN", &self.token)
            .output()
            .expect("the binary starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.code().unwrap_or(-1),
            text(&output.stdout),
            text(&output.stderr),
        )
    }

    /// Creates a function through the native API and waits until its first revision is decided.
    pub async fn deploy(&self, name: &str, code: &str, settings: Value) -> Value {
        let mut body = json!({
            "name": name, "code": code, "runtime": "python3.11", "handler": "main",
        });
        merge(&mut body, settings);
        let url = self.api("projects/default/namespaces/default/functions");
        let created = self.admin.json(Method::POST, &url, &body).await.ok().json();
        let number = created["revision"]["number"].as_u64().expect("a revision");
        self.decided(name, number).await
    }

    /// Changes a function and waits until the new revision is decided.
    pub async fn update(&self, name: &str, patch: Value) -> Value {
        let url = self.function_path(name);
        let stored = self
            .admin
            .json(Method::PATCH, &url, &patch)
            .await
            .ok()
            .json();
        self.decided(
            name,
            stored["revision"]["number"].as_u64().expect("a revision"),
        )
        .await
    }

    async fn decided(&self, name: &str, number: u64) -> Value {
        let stages = ["running", "build_failed", "deploy_failed", "abandoned"];
        eventually(
            &format!("revision {number} of {name} is decided"),
            DEPLOY_LIMIT,
            || async { self.function(name).await },
            |f| {
                f["revision"]["number"] == number
                    && stages.iter().any(|stage| f["revision"]["stage"] == *stage)
            },
        )
        .await
    }

    pub async fn function(&self, name: &str) -> Value {
        self.admin.get(&self.function_path(name)).await.ok().json()
    }

    pub async fn describe(&self, name: &str) -> Value {
        self.admin
            .get(&format!("{}/describe", self.function_path(name)))
            .await
            .ok()
            .json()
    }

    /// Waits until exactly `count` instances answer.
    pub async fn ready_instances(&self, name: &str, count: u64, limit: Duration) {
        eventually(
            &format!("{name} has {count} ready instances"),
            limit,
            || async { self.function(name).await["instances"].clone() },
            |instances| instances["ready"] == count && instances["wanted"] == count,
        )
        .await;
    }

    pub async fn call(&self, name: &str) -> Answer {
        self.public.get(&self.url(name)).await
    }

    /// Log lines of a function, oldest first.
    pub async fn logs(&self, name: &str) -> Vec<String> {
        let url = format!("{}/logs?tail=1000", self.function_path(name));
        let answer = self.admin.get(&url).await.ok().json();
        let lines = answer["lines"].as_array().cloned().unwrap_or_default();
        lines
            .iter()
            .filter_map(|l| l["message"].as_str().map(str::to_owned))
            .collect()
    }

    /// Host pids of the processes that run inside this server's containers, by their command line.
    pub fn container_processes(&self, containing: &str) -> Vec<u32> {
        let parent = format!("/coracle-{}/", self.cluster_id());
        let mut pids = Vec::new();
        for entry in fs::read_dir("/proc").expect("/proc").flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else {
                continue;
            };
            let read = |name: &str| fs::read_to_string(entry.path().join(name)).unwrap_or_default();
            if read("cgroup").contains(&parent) && read("cmdline").contains(containing) {
                pids.push(pid);
            }
        }
        pids.sort_unstable();
        pids
    }

    /// Ids of the instances that the leader knows of.
    pub async fn instances(&self, name: &str) -> Vec<String> {
        let described = self.describe(name).await;
        let instances = described["instances"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        instances
            .iter()
            .filter_map(|i| i["id"].as_str().map(str::to_owned))
            .collect()
    }

    /// Waits until a first instance answers the platform, without calling the function.
    pub async fn call_starts(&self, name: &str) {
        eventually(
            &format!("{name} is deployed"),
            Duration::from_secs(10),
            || async { self.function(name).await["serving_revision"].clone() },
            Value::is_number,
        )
        .await;
    }

    /// The sum of a metric over its labels.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = self
            .public
            .get(&format!("{}/metrics", self.address("admin")))
            .await
            .ok()
            .text();
        let samples = text.lines().filter(|l| l.starts_with(name));
        samples
            .filter_map(|l| l.rsplit_once(' ')?.1.parse::<f64>().ok())
            .sum()
    }

    /// What the kept logs of all functions take on disk.
    pub fn log_bytes(&self) -> u64 {
        fn size(path: &Path) -> u64 {
            let Ok(entries) = fs::read_dir(path) else {
                return fs::metadata(path).map_or(0, |m| m.len());
            };
            entries.flatten().map(|entry| size(&entry.path())).sum()
        }
        size(&self.agent_data().join("agent/logs"))
    }

    pub fn cluster_id(&self) -> String {
        let text = fs::read_to_string(self.cluster_file()).expect("cluster.json");
        let value: Value = serde_json::from_str(&text).expect("JSON");
        value["cluster_id"].as_str().expect("cluster_id").to_owned()
    }

    /// `coracle down`: takes what a stopped server left off the machine.
    pub fn down(&self) {
        let data = self.agent_data();
        let output = Command::new(binary())
            .arg("down")
            .arg(format!("--data={}", data.display()))
            .arg(format!(
                "--containerd={}",
                self.containerd_socket().display()
            ))
            .output()
            .expect("the binary starts");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Of the process that is or holds the agent.
    pub fn agent_data(&self) -> PathBuf {
        if self.options.apart {
            self.path("agent")
        } else {
            self.data()
        }
    }

    /// Of the process that is or holds the gateway.
    pub fn gateway_pid(&self) -> u32 {
        self.processes.last().expect("the server runs").id()
    }

    fn cluster_file(&self) -> PathBuf {
        self.agent_data().join("cluster.json")
    }
}

pub fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .expect("a pid");
    kill_process(pid, signal).expect("the process lives");
}

fn merge(into: &mut Value, from: Value) {
    let (Value::Object(into), Value::Object(from)) = (into, from) else {
        return;
    };
    into.extend(from);
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        for mut child in self.processes.drain(..) {
            let _ = child.kill();
            let _ = child.wait();
        }
        let data = self.agent_data();
        let down = Command::new(binary())
            .args(["down", "--purge"])
            .arg(format!("--data={}", data.display()))
            .arg(format!(
                "--containerd={}",
                self.containerd_socket().display()
            ))
            .output();
        if let Ok(output) = down
            && !output.status.success()
        {
            eprintln!("down: {}", String::from_utf8_lossy(&output.stderr));
        }
        if let Some(mut child) = self.containerd.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
