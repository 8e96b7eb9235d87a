//! A machine for one test: its own data directory, containerd, cluster and image.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use coracle_base::SystemClock;
use coracle_containerd::{
    ClusterId, Config, ContainerdDriver, Daemon, EgressPolicy, ShimCommand, StemLimits, cleanup,
};
use coracle_driver::{InstanceDriver, LaunchOrder, LogSink, StemTarget};
use coracle_model::{
    Concurrency, Convention, Digest, Env, FunctionId, Handler, InstanceSpec, LogLine, LogLineRef,
    Memory, MilliCpu, Network, RevisionId, RuntimeName, Timeout,
};

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Keeps every line.
#[derive(Debug, Default)]
pub(crate) struct Lines(Mutex<Vec<LogLine>>);

impl LogSink for Lines {
    fn line(&self, _: FunctionId, line: LogLineRef<'_>) {
        self.0.lock().expect("no panic while held").push(LogLine {
            at_nanos: line.at_nanos,
            instance: line.instance,
            stream: line.stream,
            request: line.request.map(str::to_owned),
            message: line.message.to_owned(),
        });
    }
}

impl Lines {
    pub(crate) fn all(&self) -> Vec<LogLine> {
        self.0.lock().expect("no panic while held").clone()
    }
}

pub(crate) struct Host {
    root: PathBuf,
    /// Removed at the end.
    dir: Option<tempfile::TempDir>,
    pub(crate) cluster: ClusterId,
    pub(crate) lines: Arc<Lines>,
}

impl Host {
    /// Its temporary directory can be entered by root only, as a data directory below `/root`.
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("cor")
            .tempdir()
            .expect("a directory");
        let id = uuid::Uuid::new_v4().simple().to_string();
        let host = Self {
            root: dir.path().to_owned(),
            dir: Some(dir),
            cluster: id[..8].parse().expect("hexadecimal"),
            lines: Arc::default(),
        };
        host.make_image();
        host.write("code/main.txt", "the code");
        host.write("deps/lib.txt", "the dependencies");
        host
    }

    /// Names this host for [`Host::again`].
    pub(crate) fn name(&self) -> String {
        format!("{}:{}", self.cluster, self.root.display())
    }

    /// The same host in another process, which removes nothing.
    pub(crate) fn again(name: &str) -> Self {
        let (cluster, root) = name.split_once(':').expect("a host's name");
        Self {
            root: root.into(),
            dir: None,
            cluster: cluster.parse().expect("an id"),
            lines: Arc::default(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("below the directory")).expect("created");
        fs::write(&path, text).expect("written");
    }

    fn make_image(&self) {
        for dir in [
            "proc",
            "sys",
            "dev",
            "tmp",
            "run/fn",
            "fn/code",
            "fn/deps",
            "usr/lib/coracle",
            "etc",
            "work",
        ] {
            fs::create_dir_all(self.path("image").join(dir)).expect("created");
        }
        // runc gives a tmpfs the mode of the directory below it, whatever the options say.
        let tmp = self.path("image/tmp");
        fs::set_permissions(tmp, fs::Permissions::from_mode(0o1777)).expect("set");
        self.write("image/etc/resolv.conf", "");
        self.write("image/etc/secret", "root only");
        let secret = self.path("image/etc/secret");
        fs::set_permissions(secret, fs::Permissions::from_mode(0o600)).expect("set");
        fs::create_dir_all(self.path("shims")).expect("created");
        let init = self.path("shims/init");
        fs::write(&init, coracle_init::INIT).expect("written");
        fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).expect("set");
        fs::copy(shim(), self.path("shims/test")).expect("copied");
    }

    pub(crate) fn config(&self) -> Config {
        let data_dir = self.path("data");
        Config {
            cluster: self.cluster.clone(),
            containerd_socket: Some(Daemon::private_socket(&data_dir)),
            data_dir,
            shims_dir: self.path("shims"),
            commands: [(
                runtime(),
                ShimCommand {
                    argv: vec!["/usr/lib/coracle/test".into()],
                    env: [("FROM_RUNTIME".to_owned(), "yes".to_owned())].into(),
                    min_memory: Memory::from_mib(32).expect("in bounds"),
                },
            )]
            .into(),
            resolvers: Vec::new(),
            egress: EgressPolicy::default(),
            stems: StemLimits {
                interval: Duration::from_millis(50),
                concurrent_claims: 4,
            },
            clock: Arc::new(SystemClock),
            logs: self.lines.clone(),
        }
    }

    pub(crate) async fn start(&self) -> Arc<ContainerdDriver> {
        let driver = ContainerdDriver::start(self.config())
            .await
            .unwrap_or_else(|error| {
                let log = fs::read_to_string(self.path("data/containerd/containerd.log"));
                panic!("{error:?}\n{}", log.unwrap_or_default())
            });
        assert!(
            driver.adopt().await.expect("listed").is_empty(),
            "nothing was there before"
        );
        driver
    }

    pub(crate) fn spec(&self) -> InstanceSpec {
        InstanceSpec {
            id: uuid::Uuid::new_v4().into(),
            revision: RevisionId {
                function: uuid::Uuid::new_v4().into(),
                number: 1,
            },
            project: "default".parse().expect("a name"),
            namespace: "ns".parse().expect("a name"),
            function: "hello".parse().expect("a name"),
            runtime: runtime(),
            handler: Handler::new("main", Convention::Http).expect("a handler"),
            env: Env::new([("KEY".to_owned(), "value".to_owned())].into()).expect("small"),
            memory: Memory::from_mib(64).expect("in bounds"),
            cpu: MilliCpu::new(500).expect("in bounds"),
            concurrency: Concurrency::ONE,
            network: Network::Egress,
            timeout: Timeout::from_secs(10).expect("in bounds"),
            init_timeout: Timeout::from_secs(5).expect("in bounds"),
            code: Digest::of(b"code"),
            dependencies: Some(Digest::of(b"deps")),
        }
    }

    pub(crate) fn order(&self, spec: InstanceSpec) -> LaunchOrder {
        LaunchOrder {
            spec,
            rootfs: self.path("image"),
            code: self.path("code"),
            dependencies: Some(self.path("deps")),
        }
    }

    pub(crate) fn stems(&self, driver: &ContainerdDriver, count: u32) {
        let target = StemTarget {
            count,
            rootfs: self.path("image"),
        };
        driver.set_stems([(runtime(), target)].into());
    }

    pub(crate) async fn wait_for_stems(&self, driver: &ContainerdDriver, count: u32) {
        until("stems", || {
            let have = driver.stems().get(&runtime()).copied().unwrap_or(0);
            if have == count {
                Ok(())
            } else {
                Err(format!("{have} of {count} stems"))
            }
        })
        .await;
    }

    /// Removes everything and sees that nothing is left on the machine.
    pub(crate) async fn finish(self, driver: Arc<ContainerdDriver>) {
        drop(driver);
        cleanup(&self.cluster, &self.path("data"), None)
            .await
            .expect("cleaned up");
        self.assert_clean();
    }

    /// Ids of the containers that match a filter of `ctr`'s, or of all.
    pub(crate) fn containers(&self, filter: &str) -> Vec<String> {
        let socket = Daemon::private_socket(&self.path("data"));
        let (socket, namespace) = (
            socket.to_string_lossy().into_owned(),
            format!("coracle-{}", self.cluster),
        );
        let mut args = vec!["-a", &socket, "-n", &namespace, "containers", "ls", "-q"];
        args.extend(Some(filter).filter(|f| !f.is_empty()));
        run("ctr", &args).lines().map(str::to_owned).collect()
    }

    /// Directories of containers; others in there are the driver's own.
    pub(crate) fn container_dirs(&self) -> usize {
        let entries = fs::read_dir(self.path("data/run")).expect("there");
        entries
            .flatten()
            .filter(|entry| entry.file_name().len() == 12 && entry.path().is_dir())
            .count()
    }

    pub(crate) fn assert_clean(&self) {
        let id = self.cluster.to_string();
        let contains = |text: &str, what: &str| assert!(!text.contains(&id), "{what}: {text}");
        contains(&run("iptables-save", &[]), "firewall");
        contains(&run("ip", &["link"]), "interfaces");
        contains(
            &fs::read_to_string("/proc/self/mountinfo").expect("readable"),
            "mounts",
        );
        let dir = self.root.to_string_lossy().into_owned();
        for process in processes() {
            contains(&process, "process");
            assert!(!process.contains(&dir), "process: {process}");
        }
        for hierarchy in fs::read_dir("/sys/fs/cgroup").expect("mounted").flatten() {
            assert!(
                !hierarchy.path().join(format!("coracle-{id}")).exists(),
                "cgroup"
            );
        }
        assert!(!Path::new(&format!("/run/coracle-{id}")).exists());
        assert!(!self.path("data/run").exists() && !self.path("data/containerd").exists());
    }
}

/// A test that fails leaves no processes behind either.
impl Drop for Host {
    fn drop(&mut self) {
        if !std::thread::panicking() || self.dir.is_none() {
            return;
        }
        let (cluster, data) = (self.cluster.clone(), self.path("data"));
        let clean = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().expect("a runtime");
            runtime.block_on(cleanup(&cluster, &data, None))
        });
        let _ = clean.join();
    }
}

pub(crate) fn runtime() -> RuntimeName {
    "test1".parse().expect("a name")
}

pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .output()
        .expect("installed");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Command lines of all processes.
pub(crate) fn processes() -> Vec<String> {
    fs::read_dir("/proc")
        .expect("mounted")
        .flatten()
        .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| !line.is_empty())
        .collect()
}

/// Waits for a condition of a value.
pub(crate) async fn until<T>(what: &str, mut check: impl FnMut() -> Result<T, String>) -> T {
    let end = tokio::time::Instant::now() + PATIENCE;
    loop {
        match check() {
            Ok(value) => return value,
            Err(last) => assert!(tokio::time::Instant::now() < end, "{what}: still {last}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// One invocation of an instance that lives.
pub(crate) async fn ask(socket: &Path, target: &str) -> String {
    invoke(socket, target)
        .await
        .unwrap_or_else(|error| panic!("{target}: {error}"))
}

/// One invocation; the answer's body.
pub(crate) async fn invoke(socket: &Path, target: &str) -> io::Result<String> {
    let (socket, target) = (socket.to_owned(), target.to_owned());
    tokio::task::spawn_blocking(move || invoke_now(&socket, &target))
        .await
        .expect("no panic")
}

fn invoke_now(socket: &Path, target: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut payload = 0_u32.to_le_bytes().to_vec();
    payload.extend(format!("request-1\0GET\0/{target}").as_bytes());
    let mut frame = u32::try_from(payload.len())
        .expect("small")
        .to_le_bytes()
        .to_vec();
    frame.extend([0x01, 0x01, 0, 0]);
    frame.extend(payload);
    stream.write_all(&frame)?;
    let mut body = Vec::new();
    loop {
        let mut header = [0; 8];
        stream.read_exact(&mut header)?;
        let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let mut payload = vec![0; usize::try_from(length).expect("small")];
        stream.read_exact(&mut payload)?;
        if header[4] == 0x82 {
            body.extend(payload);
        }
        if header[5] & 1 == 1 {
            return Ok(String::from_utf8(body).expect("text"));
        }
    }
}

/// The test shim, compiled once for the whole run.
fn shim() -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/shim.rs");
    let output = dir.join("e2e-shim");
    let fresh = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    if fresh(&output) < fresh(&source) {
        // Tests are processes of their own: each compiles to a name of its own, and the last wins.
        let own = dir.join(format!("e2e-shim-{}", std::process::id()));
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let compiled = Command::new(rustc)
            .args([
                "--edition=2024",
                "-C",
                "target-feature=+crt-static",
                "-C",
                "opt-level=1",
                "-o",
            ])
            .arg(&own)
            .arg(&source)
            .status();
        assert!(
            compiled.expect("rustc runs").success(),
            "the test shim does not compile"
        );
        fs::rename(&own, &output).expect("renamed");
    }
    output
}

/// Runs `work` and says how long it took.
pub(crate) async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    #[expect(clippy::disallowed_methods, reason = "a test measures real time")]
    let began = Instant::now();
    (work.await, began.elapsed())
}
