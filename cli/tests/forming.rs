//! A cluster formed by the program's own commands, as processes on loopback. Nothing here runs
//! containers.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    fs,
    io::Read,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

fn coracle(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_coracle"));
    command.args(args).env_clear().stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    coracle(args).output().unwrap()
}

#[track_caller]
fn done(args: &[&str]) -> String {
    let output = run(args);
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {text}{errors}");
    text
}

/// One sentence on standard error, and an exit code above 0.
#[track_caller]
fn refused(args: &[&str], expected: &str) {
    let output = run(args);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{args:?} worked");
    let last = errors.trim_end().lines().last().unwrap_or_default();
    assert!(last.contains(expected), "{args:?}: {errors}");
}

/// A port that was free a moment ago.
fn free() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

/// A server in the background; its log is shown when the test fails.
struct Server {
    child: Child,
    log: PathBuf,
}

impl Server {
    fn start(dir: &Path, name: &str, args: &[&str]) -> Self {
        let log = dir.join(format!("{name}.log"));
        let file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        let child = coracle(args)
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .unwrap();
        Self { child, log }
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn stop(mut self) {
        let pid = self.child.id().to_string();
        Command::new("kill").arg(&pid).status().unwrap();
        wait("it to stop", || match self.child.try_wait() {
            Ok(Some(status)) if status.success() => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Gone already where the test stopped it.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}:\n{}", self.log.display(), self.log());
        }
    }
}

#[track_caller]
fn wait<T>(what: &str, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let turns = PATIENCE.as_millis() / POLL.as_millis();
    let mut last = String::new();
    for _ in 0..turns {
        match ask() {
            Ok(value) => return value,
            Err(status) => last = status,
        }
        std::thread::sleep(POLL);
    }
    panic!("waited in vain for {what}: {last}");
}

/// One directory for all data directories of a test.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn server(&self, name: &str, args: &[&str]) -> Server {
        Server::start(self.dir.path(), name, args)
    }

    /// A controller of a data directory that has joined.
    fn controller(&self, name: &str) -> Server {
        let (data, admin) = (self.path(name), free());
        self.server(name, &["controller", "--data", &data, "--admin", &admin])
    }

    /// A gateway from a command as `init` and `node token` print it.
    fn gateway(&self, name: &str, command: &str) -> Server {
        let (data, admin, invoke, api) = (self.path(name), free(), free(), free());
        let mut args = words(command);
        args.extend(
            [
                "--data", &data, "--admin", &admin, "--invoke", &invoke, "--api", &api,
            ]
            .map(str::to_owned),
        );
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.server(name, &args)
    }
}

/// The arguments of a printed command, without the program's name.
fn words(command: &str) -> Vec<String> {
    let words = command.split_whitespace().skip(1);
    words
        .map(|word| word.trim_matches('\'').to_owned())
        .collect()
}

/// A cluster with a controller and a gateway, and how its API is asked.
struct Cluster {
    place: Place,
    listen: String,
    admin: String,
    hash: String,
    controller: Server,
    _gateway: Server,
}

impl Cluster {
    fn form() -> Self {
        let (place, listen) = (Place::new(), free());
        let data = place.path("c1");
        let told = done(&[
            "cluster", "init", "--data", &data, "--listen", &listen, "--name", "c1",
        ]);
        let line = |start: &str| {
            let mut lines = told.lines();
            lines
                .find(|l| l.trim_start().starts_with(start))
                .unwrap()
                .to_owned()
        };
        let admin = line("admin token").rsplit(' ').next().unwrap().to_owned();
        let command = line("coracle gateway --join");
        let hash = command.rsplit(' ').next().unwrap().to_owned();
        let controller = place.controller("c1");
        let gateway = place.gateway("g1", &command);
        let cluster = Self {
            listen,
            admin,
            hash,
            controller,
            _gateway: gateway,
            place,
        };
        wait("the gateway to answer", || {
            let output = cluster.ask(&["cluster", "status"]);
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            output.status.success().then_some(()).ok_or(errors)
        });
        cluster
    }

    /// A client command at the gateway.
    fn ask(&self, args: &[&str]) -> Output {
        let data = self.place.path("g1");
        let at = ["--data", &data, "--token", &self.admin];
        run(&[args, &at].concat())
    }

    #[track_caller]
    fn told(&self, args: &[&str]) -> String {
        let output = self.ask(args);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.told(&[args, &["-o", "json"]].concat())).unwrap()
    }

    /// The command that `node token` prints for a role.
    fn token(&self, role: &str) -> String {
        self.told(&["node", "token", "--role", role])
            .trim()
            .to_owned()
    }
}

#[test]
fn a_cluster_forms_by_the_commands_it_prints() {
    let cluster = Cluster::form();
    let members = cluster.json(&["cluster", "members"]);
    assert_eq!(members[0]["name"], "c1");
    assert_eq!(members[0]["address"], cluster.listen);

    // A second gateway, with a token made through the first.
    let command = cluster.token("gateway");
    assert!(command.contains(&cluster.hash), "{command}");
    let second = cluster.place.gateway("g2", &command);
    wait("the second gateway to have a certificate", || {
        let path = cluster.place.dir.path().join("g2/server.json");
        path.exists().then_some(()).ok_or_else(|| second.log())
    });
    let tokens = cluster.json(&["node", "token", "ls"]);
    assert_eq!(tokens[0]["uses_left"], 0, "{tokens}");
    assert_eq!(tokens[0]["live"], false);
    second.stop();

    let told = cluster.told(&[
        "node", "token", "--role", "agent", "--ttl", "2h", "--uses", "3",
    ]);
    let tokens = cluster.json(&["node", "token", "ls"]);
    let id = tokens[0]["id"].as_str().unwrap().to_owned();
    assert!(told.contains(&id), "{told}");
    cluster.told(&["node", "token", "revoke", &id]);
    let left = cluster.json(&["node", "token", "ls"]);
    assert!(!left.to_string().contains(&id));
    cluster.told(&["cluster", "rotate-key"]);
    let status = cluster.json(&["cluster", "status"]);
    assert_eq!(status[0]["key_generation"], 2);
}

#[test]
fn controllers_rise_and_leave_and_a_lost_one_is_installed_anew() {
    let cluster = Cluster::form();
    let join = |name: &str, listen: &str| {
        let command = cluster.token("controller");
        assert!(command.ends_with("--advertise HOST:PORT"), "{command}");
        let (data, admin) = (cluster.place.path(name), free());
        let mut args = words(&command);
        args.truncate(7);
        let more = [
            "--listen",
            listen,
            "--data",
            &data,
            "--admin",
            &admin,
            "--node-name",
            name,
        ];
        args.extend(more.map(str::to_owned));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        cluster.place.server(name, &args)
    };
    let standings = || -> Vec<(u64, String)> {
        let members = cluster.json(&["cluster", "members"]);
        let of = |m: &Value| {
            let standing = m["standing"].as_str().unwrap().to_owned();
            (m["id"].as_u64().unwrap(), standing)
        };
        members.as_array().unwrap().iter().map(of).collect()
    };
    let voters = |expected: &[u64]| {
        let expected: Vec<_> = expected
            .iter()
            .map(|id| (*id, "voter".to_owned()))
            .collect();
        wait("the voters", || {
            let found = standings();
            (found == expected)
                .then_some(())
                .ok_or(format!("{found:?}"))
        });
    };
    let (second_at, third_at) = (free(), free());
    let second = join("c2", &second_at);
    wait("the second to be a learner", || {
        let found = standings();
        // A second voter alone would only be one more to lose.
        let expected = [(1, "voter".to_owned()), (2, "learner".to_owned())];
        (found == expected)
            .then_some(())
            .ok_or(format!("{found:?}"))
    });
    let mut third = join("c3", &third_at);
    voters(&[1, 2, 3]);
    cluster.told(&["cluster", "transfer", "2"]);
    let status = cluster.json(&["cluster", "status"]);
    assert_eq!(status[0]["leader"], 2);
    cluster.told(&["ns", "create", "kept"]);

    // The third's disk is lost. It comes back under its name, at its address, with another number.
    third.child.kill().unwrap();
    third.child.wait().unwrap();
    fs::remove_dir_all(cluster.place.path("c3")).unwrap();
    let third = wait("the third to be let in again", || {
        let mut again = join("c3", &third_at);
        wait("it to be let in or refused", || {
            let ended = again.child.try_wait().unwrap();
            let has_joined = Path::new(&cluster.place.path("c3"))
                .join("identity.json")
                .exists();
            (has_joined || ended.is_some())
                .then_some(())
                .ok_or_else(|| again.log())
        });
        match again.child.try_wait().unwrap() {
            None => Ok(again),
            Some(_) => Err(again.log()),
        }
    });
    voters(&[1, 2, 4]);
    let status = cluster.json(&["cluster", "status"]);
    assert_eq!(
        status[0]["key_generation"], 2,
        "the lost disk held the first key"
    );

    // Leading does not keep anybody in.
    cluster.told(&["cluster", "remove", "2"]);
    voters(&[1, 4]);
    let mut second = second;
    wait("the removed one to end", || {
        let ended = second.child.try_wait().unwrap();
        ended.map(|_| ()).ok_or_else(|| second.log())
    });
    let namespaces = cluster.told(&["ns", "ls"]);
    assert!(namespaces.contains("kept"), "{namespaces}");
    // What the new third signs is good: the CA's key opens with its copy of the cluster key.
    cluster.told(&["cluster", "transfer", "4"]);
    let command = cluster.token("gateway");
    let fourth = cluster.place.gateway("g4", &command);
    wait("a gateway to join at the new third", || {
        let path = cluster.place.dir.path().join("g4/server.json");
        path.exists().then_some(()).ok_or_else(|| fourth.log())
    });
    drop((third, fourth));
}

#[test]
fn a_saved_snapshot_starts_the_cluster_anew() {
    let cluster = Cluster::form();
    cluster.told(&["ns", "create", "kept"]);
    let (data, file) = (cluster.place.path("c1"), cluster.place.path("saved"));
    done(&["cluster", "snapshot", "save", &file, "--data", &data]);
    cluster.told(&["ns", "create", "later"]);
    let text = done(&["cluster", "snapshot", "inspect", &file, "-o", "json"]);
    let info: Value = serde_json::from_str(&text).unwrap();
    let info = &info[0];
    assert_eq!(info["voters"][0], 1);
    let mut damaged = fs::read(&file).unwrap();
    *damaged.last_mut().unwrap() ^= 1;
    let bad = cluster.place.path("bad");
    fs::write(&bad, damaged).unwrap();
    refused(&["cluster", "snapshot", "inspect", &bad], "cannot be used");

    let restore = ["cluster", "snapshot", "restore", &file, "--data", &data];
    refused(&restore, "in use by another coracle process");
    let Cluster {
        place,
        admin,
        controller,
        _gateway,
        ..
    } = cluster;
    controller.stop();
    refused(&restore, "holds a log already");
    let log = Path::new(&data).join("controller/log");
    fs::rename(&log, log.with_extension("away")).unwrap();
    done(&restore);
    let ask = |args: &[&str]| {
        let gateway = place.path("g1");
        let args = [args, &["--data", &gateway, "--token", &admin]].concat();
        wait("an answer", || {
            let output = run(&args);
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            output.status.success().then_some(text).ok_or(errors)
        })
    };
    let incarnation = || -> u64 {
        let text = ask(&["cluster", "status", "-o", "json"]);
        let status: Value = serde_json::from_str(&text).unwrap();
        status[0]["incarnation"].as_u64().unwrap()
    };
    let controller = place.controller("c1");
    let namespaces = ask(&["ns", "ls"]);
    assert!(
        namespaces.contains("kept") && !namespaces.contains("later"),
        "{namespaces}"
    );
    let first = incarnation();
    assert!(first > info["incarnation"].as_u64().unwrap());

    // It still signs, and the key that others may know can be changed.
    ask(&["cluster", "rotate-key"]);
    assert!(ask(&["node", "token", "--role", "gateway"]).contains("--ca-hash"));
    controller.stop();
    refused(&["cluster", "recover", "--data", &data], "only controller");
}

#[test]
fn what_is_wrong_with_a_joining_is_one_sentence_and_leaves_nothing_behind() {
    let cluster = Cluster::form();
    let place = &cluster.place;
    let hash = |digit: &str| format!("sha256:{}", digit.repeat(64));
    let new = place.path("new");
    let join = |role: &str, data: &str, token: &str, hash: &str| -> Vec<String> {
        let args = [
            role,
            "--data",
            data,
            "--join",
            &cluster.listen,
            "--token",
            token,
            "--ca-hash",
            hash,
        ];
        args.map(str::to_owned).to_vec()
    };
    let refused = |args: Vec<String>, expected: &str| {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        refused(&args, expected);
        assert!(!Path::new(&new).join("identity.json").exists());
        assert!(!Path::new(&new).join("cluster.json").exists());
    };
    refused(
        join("gateway", &new, "no-token", &cluster.hash),
        "not of the form",
    );
    let unknown = "00000000-0000-0000-0000-000000000001$x";
    refused(
        join("gateway", &new, unknown, &cluster.hash),
        "is not known",
    );
    let command = cluster.token("agent");
    let token = words(&command)[4].clone();
    refused(
        join("gateway", &new, &token, &cluster.hash),
        "lets in agents and not gateways",
    );
    refused(
        join("gateway", &new, &token, &hash("0")),
        "not the one that was given",
    );
    refused(
        join("gateway", &new, &token, "sha256:0"),
        "64 hexadecimal digits",
    );
    let mut without = join("gateway", &new, &token, &cluster.hash);
    without.truncate(5);
    refused(without, "--join needs --ca-hash");
    refused(
        join("controller", &new, &token, &cluster.hash),
        "needs --listen host:port",
    );

    // Directories that are something else.
    let of = |name: &str| place.path(name);
    let again = [
        "cluster",
        "init",
        "--data",
        &of("c1"),
        "--listen",
        "127.0.0.1:1",
    ]
    .map(str::to_owned);
    refused(again.to_vec(), "in use by another coracle process");
    let gateway = join("agent", &of("g1"), &token, &cluster.hash);
    refused(gateway, "in use by another coracle process");
    let alone = of("alone");
    fs::create_dir(&alone).unwrap();
    let identity = r#"{"cluster_id":"ffffffff","node_id":"00000000-0000-0000-0000-000000000001"}"#;
    fs::write(Path::new(&alone).join("cluster.json"), identity).unwrap();
    let command = words(&cluster.token("gateway"))[4].clone();
    refused(
        join("gateway", &alone, &command, &cluster.hash),
        "belongs to cluster ffffffff",
    );
    // And addresses without certificates.
    let plain = ["gateway", "--data", &new, "--controllers", "10.0.0.1:7000"].map(str::to_owned);
    refused(plain.to_vec(), "mutual TLS only");
    let plain = ["controller", "--data", &new, "--listen", "0.0.0.0:7000"].map(str::to_owned);
    refused(plain.to_vec(), "mutual TLS only");
}

#[test]
fn a_directory_that_has_joined_is_one_thing_only() {
    let place = Place::new();
    let (data, listen) = (place.path("c1"), free());
    let init = |data: &str, listen: &str, more: &[&str]| -> Vec<String> {
        let args = ["cluster", "init", "--data", data, "--listen", listen];
        [&args, more]
            .concat()
            .iter()
            .map(|a| (*a).to_owned())
            .collect()
    };
    let run_done = |args: Vec<String>| {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        done(&args)
    };
    let is_refused = |args: Vec<String>, expected: &str| {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        refused(&args, expected);
    };
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    is_refused(init(&data, &address, &[]), "cannot listen on");
    assert!(!Path::new(&data).join("cluster.json").exists());
    is_refused(init(&data, "0.0.0.0:7000", &[]), "--advertise host:port");
    run_done(init(&data, &listen, &[]));
    is_refused(init(&data, &listen, &[]), "has joined cluster");
    is_refused(
        vec!["up".into(), "--data".into(), data.clone()],
        "run `coracle controller`",
    );
    let as_gateway = ["gateway", "--data", &data, "--controllers", "unix:/x"];
    is_refused(
        as_gateway.map(str::to_owned).to_vec(),
        "as controller; choose another --data",
    );
    let hash = format!("sha256:{}", "0".repeat(64));
    let elsewhere = [
        "controller",
        "--data",
        &data,
        "--join",
        &listen,
        "--token",
        "t",
        "--ca-hash",
        &hash,
    ];
    is_refused(
        elsewhere.map(str::to_owned).to_vec(),
        "and not the one given",
    );
}

#[test]
fn a_server_by_itself_becomes_the_first_controller_and_loses_nothing() {
    let place = Place::new();
    let (old, socket) = (place.path("old"), place.path("old.sock"));
    let at = format!("unix:{socket}");
    let admin = free();
    let alone = place.server(
        "old",
        &[
            "controller",
            "--data",
            &old,
            "--listen",
            &at,
            "--admin",
            &admin,
        ],
    );
    let api = |name: &str, controllers: &str| {
        let data = place.path(name);
        let (admin, invoke, api) = (free(), free(), free());
        place.server(
            name,
            &[
                "gateway",
                "--data",
                &data,
                "--admin",
                &admin,
                "--invoke",
                &invoke,
                "--api",
                &api,
                "--controllers",
                controllers,
            ],
        )
    };
    let gateway = api("gateway", &at);
    let token = wait("the admin token", || {
        let token = fs::read_to_string(Path::new(&old).join("admin.token"));
        token.map_err(|error| error.to_string())
    });
    let (g, t) = (place.path("gateway"), token.trim().to_owned());
    wait("the namespace to be made", || {
        let output = run(&["ns", "create", "kept", "--data", &g, "--token", &t]);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        output.status.success().then_some(()).ok_or(errors)
    });
    let (new, listen) = (place.path("new"), free());
    let init = [
        "cluster", "init", "--data", &new, "--listen", &listen, "--from", &old,
    ];
    refused(&init, "in use by another coracle process");
    gateway.stop();
    alone.stop();
    let none = place.path("none");
    refused(
        &[
            "cluster", "init", "--data", &new, "--listen", &listen, "--from", &none,
        ],
        "holds no server",
    );
    done(&init);
    let id = |dir: &str| -> Value {
        let text = fs::read_to_string(Path::new(dir).join("cluster.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    };
    assert_eq!(id(&new)["cluster_id"], id(&old)["cluster_id"]);
    assert_ne!(id(&new)["node_id"], id(&old)["node_id"]);
    refused(&["up", "--data", &old], "was made the first of a cluster");
    refused(&init, "has joined cluster");

    // A gateway on the controller's own machine needs no certificate.
    let _controller = place.controller("new");
    let _gateway = api("gateway", &format!("unix:{new}/run/controller.sock"));
    let listed = wait("the namespace to be there", || {
        let output = run(&["ns", "ls", "--data", &g, "--token", &t]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.contains("kept").then_some(text.clone()).ok_or(text)
    });
    assert!(listed.contains("default"), "{listed}");
}

/// The node of a server that stood by itself goes on in the cluster that was made of it, over mutual
/// TLS, with its directory and its id.
#[cfg(feature = "fake-driver")]
#[test]
fn the_node_of_a_server_that_became_a_cluster_joins_it() {
    let place = Place::new();
    let (old, new, listen) = (place.path("old"), place.path("new"), free());
    let (admin, invoke, api) = (free(), free(), free());
    let mut up = vec![
        "up",
        "--data",
        &old,
        "--driver",
        "fake",
        "--node-name",
        "n1",
    ];
    up.extend(["--admin", &admin, "--invoke", &invoke, "--api", &api]);
    let alone = place.server("up", &up);
    let ask = |gateway: &str, token: &str, args: &[&str]| {
        let args = [args, &["--data", gateway, "--token", token, "-o", "json"]].concat();
        let output = run(&args);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        output.status.success().then_some(text).ok_or(errors)
    };
    let token = wait("the admin token", || {
        let token = fs::read_to_string(Path::new(&old).join("admin.token"));
        token.map_err(|error| error.to_string())
    });
    let token = token.trim();
    let ready = |gateway: &str| {
        wait("the node to be ready", || {
            let nodes: Value = serde_json::from_str(&ask(gateway, token, &["node", "ls"])?)
                .map_err(|error| error.to_string())?;
            let state = nodes[0]["state"].clone();
            if nodes.as_array().map(Vec::len) == Some(1) && state == "ready" {
                return Ok(nodes[0]["id"].as_str().unwrap_or_default().to_owned());
            }
            Err(nodes.to_string())
        })
    };
    let before = ready(&old);
    alone.stop();
    let told = done(&[
        "cluster", "init", "--data", &new, "--listen", &listen, "--from", &old,
    ]);
    let command = told
        .lines()
        .find(|line| line.contains("coracle gateway --join"));
    let _controller = place.controller("new");
    let _gateway = place.gateway("g1", command.unwrap());
    let gateway = place.path("g1");
    let made = wait("a join token", || {
        ask(&gateway, token, &["node", "token", "--role", "agent"])
    });
    let made: Value = serde_json::from_str(&made).unwrap();
    let text = |key: &str| made[key].as_str().unwrap().to_owned();
    let (join_token, hash, at) = (text("token"), text("ca_hash"), free());
    let admin = free();
    let mut agent = vec![
        "agent",
        "--data",
        &old,
        "--driver",
        "fake",
        "--node-name",
        "n1",
    ];
    agent.extend(["--admin", &admin, "--listen", &at, "--join", &listen]);
    agent.extend(["--token", &join_token, "--ca-hash", &hash]);
    let first = place.server("agent", &agent);
    assert_eq!(ready(&gateway), before);
    // A second one with its identity, from a copy of its directory, is not let in.
    let copy = place.path("copy");
    fs::create_dir(&copy).unwrap();
    fs::copy(
        Path::new(&old).join("cluster.json"),
        Path::new(&copy).join("cluster.json"),
    )
    .unwrap();
    let again: Value =
        serde_json::from_str(&ask(&gateway, token, &["node", "token", "--role", "agent"]).unwrap())
            .unwrap();
    let again = again["token"].as_str().unwrap();
    refused(
        &[
            "agent",
            "--data",
            &copy,
            "--driver",
            "fake",
            "--node-name",
            "n2",
            "--join",
            &listen,
            "--token",
            again,
            "--ca-hash",
            &hash,
        ],
        "a second one with its identity is not let in",
    );
    // Nor is one of its name.
    let other = place.path("other");
    refused(
        &[
            "agent",
            "--data",
            &other,
            "--driver",
            "fake",
            "--node-name",
            "n1",
            "--join",
            &listen,
            "--token",
            again,
            "--ca-hash",
            &hash,
        ],
        "a node of the name n1 is connected",
    );
    first.stop();
    // A restart needs nothing of that.
    let admin = free();
    let restarted = [
        "agent",
        "--data",
        &old,
        "--driver",
        "fake",
        "--node-name",
        "n1",
        "--admin",
        &admin,
        "--listen",
        &at,
    ];
    let _second = place.server("agent", &restarted);
    assert_eq!(ready(&gateway), before);
}

/// What is not a secret stays readable, and what is one is closed.
#[test]
fn secrets_are_closed_to_others() {
    use std::os::unix::fs::PermissionsExt as _;
    let place = Place::new();
    let (data, listen) = (place.path("c1"), free());
    done(&["cluster", "init", "--data", &data, "--listen", &listen]);
    for name in ["identity.json", "admin.token", "controller"] {
        let mode = fs::metadata(Path::new(&data).join(name))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o077, 0, "{name}: {mode:o}");
    }
    // Neither the CA's key nor the cluster key is in the log in the clear: the private part of a
    // P-256 key in PKCS #8 always comes after these bytes.
    let marker = [0x02, 0x01, 0x01, 0x04, 0x20];
    for entry in fs::read_dir(Path::new(&data).join("controller/log")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            let mut bytes = Vec::new();
            fs::File::open(&path)
                .unwrap()
                .read_to_end(&mut bytes)
                .unwrap();
            assert!(!bytes.windows(5).any(|w| w == marker), "{}", path.display());
        }
    }
}
