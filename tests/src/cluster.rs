//! A cluster of real processes on loopback, without root: controllers, agents with the fake driver,
//! and gateways, joined by the commands that an operator would type.
//!
//! Every member has an address of its own below 127.0.0.0/8, so ports are those of the defaults and
//! two clusters never meet.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use http::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    client::{Answer, Client},
    server::{binary, signal},
    wait::eventually,
};

const START_LIMIT: Duration = Duration::from_secs(30);
const DEPLOY_LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Controller,
    Agent,
    Gateway,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Controller => "controller",
            Self::Agent => "agent",
            Self::Gateway => "gateway",
        }
    }
}

#[derive(Debug)]
struct Member {
    role: Role,
    address: String,
    flags: Vec<String>,
    child: Option<Child>,
}

/// Everything it made is removed when it is dropped, also when the test panics; then with the ends
/// of the members' logs on standard error.
#[derive(Debug)]
pub struct Cluster {
    dir: TempDir,
    net: String,
    members: BTreeMap<String, Member>,
    /// How the first gateway joins: tokens are made through gateways.
    first: Vec<String>,
    /// Extra flags by role, for members that are added from now on.
    pub flags: Vec<(Role, String)>,
    pub admin: Client,
    pub public: Client,
}

impl Cluster {
    /// Members are called c1, n1, g1 and so on.
    pub async fn start(controllers: usize, nodes: usize, gateways: usize) -> Self {
        Self::with_flags(controllers, nodes, gateways, &[]).await
    }

    pub async fn with_flags(
        controllers: usize,
        nodes: usize,
        gateways: usize,
        flags: &[(Role, &str)],
    ) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("cc")
            .tempdir_in("/var/tmp")
            .expect("tempdir");
        let mut bytes = [0; 2];
        getrandom::fill(&mut bytes).expect("random bytes");
        let net = format!("127.{}.{}", 16 + bytes[0] % 200, bytes[1]);
        let mut cluster = Self {
            dir,
            net,
            members: BTreeMap::new(),
            first: Vec::new(),
            flags: flags
                .iter()
                .map(|(role, flag)| (*role, (*flag).to_owned()))
                .collect(),
            admin: Client::new(None),
            public: Client::new(None),
        };
        cluster.found().await;
        for number in 2..=controllers {
            cluster.add(&format!("c{number}"), Role::Controller).await;
        }
        for number in 2..=gateways {
            cluster.add(&format!("g{number}"), Role::Gateway).await;
        }
        for number in 1..=nodes {
            cluster.add(&format!("n{number}"), Role::Agent).await;
        }
        cluster
    }

    /// `cluster init`, the first controller and the first gateway.
    async fn found(&mut self) {
        self.insert("c1", Role::Controller);
        let address = format!("{}:7400", self.members["c1"].address);
        let data = self.data("c1").display().to_string();
        let (status, said, error) = self.run(&[
            "cluster",
            "init",
            "--name=c1",
            &format!("--data={data}"),
            &format!("--listen={address}"),
            &format!("--advertise={address}"),
        ]);
        assert_eq!(status, 0, "{error}");
        let command = said
            .lines()
            .find_map(|line| line.trim().strip_prefix("coracle gateway "));
        let command = command.expect("it says how the first gateway joins");
        self.first = command
            .split(' ')
            .map(|word| word.replace('\'', ""))
            .collect();
        self.spawn("c1", &[]);
        self.ready("c1").await;
        self.insert("g1", Role::Gateway);
        let first = self.first.clone();
        self.spawn("g1", &first);
        self.ready("g1").await;
        let token = fs::read_to_string(self.data("c1").join("admin.token")).expect("token");
        self.admin = Client::new(Some(format!("Bearer {}", token.trim())));
    }

    /// One more member, joined with a token of its own; returns when it is ready.
    pub async fn add(&mut self, name: &str, role: Role) {
        self.insert(name, role);
        let joining = self.joining(role).await;
        self.spawn(name, &joining);
        self.ready(name).await;
    }

    /// The flags of a fresh join command for one machine.
    pub async fn joining(&self, role: Role) -> Vec<String> {
        let made = self.join_token(role, 600, 1).await;
        Self::join_flags(&made)
    }

    /// A join token as the API shows it this once.
    pub async fn join_token(&self, role: Role, ttl_seconds: u64, uses: u32) -> Value {
        let body = json!({"role": role.name(), "ttl_seconds": ttl_seconds, "uses": uses});
        let url = self.api("g1", "join-tokens");
        self.admin.json(Method::POST, &url, &body).await.ok().json()
    }

    pub fn join_flags(made: &Value) -> Vec<String> {
        let text = |field: &str| made[field].as_str().expect("text").to_owned();
        let controllers = made["controllers"].as_array().expect("a list").iter();
        let controllers: Vec<_> = controllers.filter_map(Value::as_str).collect();
        vec![
            format!("--join={}", controllers.join(",")),
            format!("--token={}", text("token")),
            format!("--ca-hash={}", text("ca_hash")),
        ]
    }

    /// A place for a member that is started by hand.
    pub fn insert(&mut self, name: &str, role: Role) {
        let number: usize = name[1..].parse().expect("a letter and a number");
        let base = match role {
            Role::Controller => 10,
            Role::Agent => 20,
            Role::Gateway => 30,
        };
        let address = format!("{}.{}", self.net, base + number);
        let mut flags = vec![
            format!("--data={}", self.data(name).display()),
            format!("--admin={address}:9090"),
            format!("--node-name={name}"),
        ];
        match role {
            Role::Controller => flags.extend([
                format!("--listen={address}:7400"),
                format!("--advertise={address}:7400"),
            ]),
            Role::Agent => flags.extend([
                format!("--listen={address}:7401"),
                format!("--advertise={address}:7401"),
                "--driver=fake".to_owned(),
            ]),
            Role::Gateway => flags.extend([
                format!("--invoke={address}:8080"),
                format!("--api={address}:8081"),
                "--gateway-threads=1".to_owned(),
                "--unready=1".to_owned(),
            ]),
        }
        let extra = self.flags.iter().filter(|(of, _)| *of == role);
        flags.extend(extra.map(|(_, flag)| flag.clone()));
        let member = Member {
            role,
            address,
            flags,
            child: None,
        };
        self.members.insert(name.to_owned(), member);
    }

    /// Starts a member's process; `more` goes behind its own flags.
    pub fn spawn(&mut self, name: &str, more: &[String]) {
        self.spawn_with(name, more, &[]);
    }

    /// The same, with flags that take the place of the member's own.
    pub fn spawn_replacing(&mut self, name: &str, flags: &[String]) {
        let own = std::mem::take(&mut self.member(name).flags);
        let of = |flag: &str| flag.split_once('=').map(|(name, _)| name.to_owned());
        let replaced: Vec<_> = flags.iter().map(|flag| of(flag)).collect();
        let kept = own.into_iter().filter(|flag| !replaced.contains(&of(flag)));
        self.member(name).flags = kept.collect();
        self.spawn(name, flags);
    }

    pub fn spawn_with(&mut self, name: &str, more: &[String], environment: &[(&str, String)]) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_file(name))
            .expect("log");
        let member = &self.members[name];
        let child = Command::new(binary())
            .arg(member.role.name())
            .args(&member.flags)
            .args(more)
            .env("CORACLE_LOG", "coracle=debug,info")
            .envs(environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("dup"))
            .stderr(log)
            .spawn()
            .expect("the binary starts");
        self.member(name).child = Some(child);
    }

    /// Starts again what was killed or stopped.
    pub async fn restart(&mut self, name: &str) {
        self.spawn(name, &[]);
        self.ready(name).await;
    }

    /// Waits until `/readyz` says so.
    pub async fn ready(&self, name: &str) {
        let url = format!("{}/readyz?verbose", self.url(name, 9090));
        let answer = eventually(
            &format!("{name} is ready"),
            START_LIMIT,
            || async {
                if self.has_ended(name) {
                    return Err(format!("{name} ended:\n{}", self.log(name)));
                }
                match self.public.try_send(Method::GET, &url, &[], "").await {
                    Ok(answer) if answer.status.is_success() => Ok(true),
                    Ok(_) | Err(_) => Ok(false),
                }
            },
            |ready| !matches!(ready, Ok(false)),
        )
        .await;
        answer.unwrap_or_else(|ended| panic!("{ended}"));
    }

    pub fn has_ended(&self, name: &str) -> bool {
        let Some(child) = &self.members[name].child else {
            return true;
        };
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.id()));
        stat.map_or(true, |stat| stat.contains(") Z "))
    }

    /// Waits for a process that ends by itself; its exit code.
    pub async fn ended(&mut self, name: &str) -> i32 {
        let _ended = eventually(
            &format!("{name} ends"),
            START_LIMIT,
            || async { self.has_ended(name) },
            |ended| *ended,
        )
        .await;
        let mut child = self.member(name).child.take().expect("it was started");
        child.wait().expect("wait").code().unwrap_or(-1)
    }

    pub fn kill(&mut self, name: &str) {
        let mut child = self.member(name).child.take().expect("it runs");
        child.kill().expect("kill");
        child.wait().expect("wait");
    }

    /// SIGTERM, and waits for a clean end.
    pub async fn terminate(&mut self, name: &str) {
        self.signal(name, Signal::TERM);
        let code = self.ended(name).await;
        assert_eq!(code, 0, "{name}:\n{}", self.log(name));
    }

    pub fn signal(&self, name: &str, with: Signal) {
        signal(self.pid(name), with);
    }

    pub fn pid(&self, name: &str) -> u32 {
        self.members[name].child.as_ref().expect("it runs").id()
    }

    pub fn data(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn log_file(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.log"))
    }

    /// The end of what a member wrote.
    pub fn log(&self, name: &str) -> String {
        let all = fs::read_to_string(self.log_file(name)).unwrap_or_default();
        let lines: Vec<&str> = all.lines().collect();
        let last = &lines[lines.len().saturating_sub(60)..];
        last.iter()
            .map(|line| format!("[{name}] {line}\n"))
            .collect()
    }

    fn member(&mut self, name: &str) -> &mut Member {
        self.members.get_mut(name).expect("a member of that name")
    }

    pub fn url(&self, name: &str, port: u16) -> String {
        format!("http://{}:{port}", self.members[name].address)
    }

    /// Of the native API, at a gateway.
    pub fn api(&self, gateway: &str, path: &str) -> String {
        format!("{}/api/v1/{path}", self.url(gateway, 8081))
    }

    /// Where a function is called, at a gateway.
    pub fn invoke(&self, gateway: &str, function: &str) -> String {
        format!("{}/fn/default/default/{function}", self.url(gateway, 8080))
    }

    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = Command::new(binary())
            .args(arguments)
            .output()
            .expect("the binary starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let status = output.status.code().unwrap_or(-1);
        (status, text(&output.stdout), text(&output.stderr))
    }

    /// The controllers as the API shows them.
    pub async fn members(&self, gateway: &str) -> Vec<Value> {
        let cluster = self
            .admin
            .get(&self.api(gateway, "cluster"))
            .await
            .ok()
            .json();
        cluster["members"].as_array().cloned().unwrap_or_default()
    }

    pub async fn nodes(&self, gateway: &str) -> Vec<Value> {
        let nodes = self
            .admin
            .get(&self.api(gateway, "nodes"))
            .await
            .ok()
            .json();
        nodes["items"].as_array().cloned().unwrap_or_default()
    }

    /// Ids of the instances that the leader knows of.
    pub async fn instances(&self, gateway: &str, name: &str) -> Vec<String> {
        let described = self.describe(gateway, name).await;
        let instances = described["instances"].as_array().map(Vec::as_slice);
        let ids = instances.unwrap_or_default().iter();
        ids.filter_map(|i| i["id"].as_str().map(str::to_owned))
            .collect()
    }

    /// The controller that leads now, by its own word.
    pub async fn leader(&self) -> String {
        eventually(
            "one controller leads",
            START_LIMIT,
            || self.leaders(),
            |leaders| leaders.len() == 1,
        )
        .await
        .remove(0)
    }

    /// Controllers that say that they lead. One that was paused may say so until it hears better.
    pub async fn leaders(&self) -> Vec<String> {
        let mut leaders = Vec::new();
        for (name, member) in &self.members {
            if member.role != Role::Controller || self.has_ended(name) {
                continue;
            }
            let url = format!("{}/metrics", self.url(name, 9090));
            let asked = self.public.try_send(Method::GET, &url, &[], "");
            let Ok(Ok(answer)) = tokio::time::timeout(Duration::from_secs(1), asked).await else {
                continue;
            };
            let leads = |line: &str| line == "coracle_controller_leading 1";
            if answer.text().lines().any(leads) {
                leaders.push(name.clone());
            }
        }
        leaders
    }

    /// Runs the client against a gateway with the admin token; status, stdout and stderr.
    pub fn cli(&self, gateway: &str, arguments: &[&str]) -> (i32, String, String) {
        let token = fs::read_to_string(self.data("c1").join("admin.token")).expect("token");
        let output = Command::new(binary())
            .args(arguments)
            .env("CORACLE_URL", self.url(gateway, 8081))
            .env("CORACLE_TOKEN", token.trim())
            .output()
            .expect("the binary starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let status = output.status.code().unwrap_or(-1);
        (status, text(&output.stdout), text(&output.stderr))
    }

    fn function_path(&self, gateway: &str, name: &str) -> String {
        self.api(
            gateway,
            &format!("projects/default/namespaces/default/functions/{name}"),
        )
    }

    /// Creates a function through a gateway and waits until it serves.
    pub async fn deploy(&self, gateway: &str, name: &str, settings: Value) {
        let mut body = json!({
            "name": name, "code": "fake", "runtime": "python3.11", "handler": "main",
        });
        if let (Value::Object(into), Value::Object(from)) = (&mut body, settings) {
            into.extend(from);
        }
        let url = self.api(gateway, "projects/default/namespaces/default/functions");
        let created = self.admin.json(Method::POST, &url, &body).await;
        let _created = created.ok();
        let _serving = eventually(
            &format!("{name} serves"),
            DEPLOY_LIMIT,
            || async { self.function(gateway, name).await["serving_revision"].clone() },
            Value::is_number,
        )
        .await;
    }

    pub async fn function(&self, gateway: &str, name: &str) -> Value {
        let url = self.function_path(gateway, name);
        self.admin.get(&url).await.ok().json()
    }

    pub async fn describe(&self, gateway: &str, name: &str) -> Value {
        let url = format!("{}/describe", self.function_path(gateway, name));
        self.admin.get(&url).await.ok().json()
    }

    pub async fn call(&self, gateway: &str, name: &str) -> Answer {
        self.public.get(&self.invoke(gateway, name)).await
    }

    /// Waits until exactly `count` instances answer.
    pub async fn ready_instances(&self, gateway: &str, name: &str, count: u64, limit: Duration) {
        let _instances = eventually(
            &format!("{name} has {count} ready instances"),
            limit,
            || async { self.function(gateway, name).await["instances"].clone() },
            |instances| instances["ready"] == count && instances["wanted"] == count,
        )
        .await;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in self.members.keys() {
                eprintln!("{}", self.log(name));
            }
        }
        for member in self.members.values_mut() {
            if let Some(mut child) = member.child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}
