//! The warm path: the gateway beside nginx, in front of the same upstream over Unix sockets.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::{
    process::{installed, machine},
    routes,
    stats::Median,
    wrk::{self, Run},
};

/// A child that ends with this value.
struct Proxy {
    name: &'static str,
    child: Child,
    url: String,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // SIGTERM first: nginx's workers outlive a killed master.
        let _ = Command::new("kill")
            .arg(self.child.id().to_string())
            .status();
        let _ = self.child.wait();
    }
}

pub(crate) fn run(binary: &Path, pairs: u32, seconds: u32) -> Result<(), String> {
    for program in ["nginx", "wrk"] {
        if !installed(program) {
            return Err(format!("{program} is missing: apt install nginx-light wrk"));
        }
    }
    println!(
        "warm: {}; {pairs} alternated pairs of {seconds} s",
        machine()
    );
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    let (http, frames) = (dir.path().join("http.sock"), dir.path().join("frames.sock"));
    let me = std::env::current_exe().map_err(|e| e.to_string())?;
    let upstream = Command::new(me)
        .arg("upstream")
        .args([&http, &frames])
        .spawn()
        .map_err(|e| e.to_string())?;
    let _upstream = Proxy {
        name: "upstream",
        child: upstream,
        url: String::new(),
    };
    let controller = dir.path().join("controller.sock");
    let serve = (controller.clone(), frames);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime
            .expect("a runtime")
            .block_on(routes::serve(&serve.0, &serve.1))
    });
    for threads in [1, 2] {
        let ours = start_gateway(binary, dir.path(), &controller, threads)?;
        let peer = start_nginx(dir.path(), &http, threads)?;
        for connections in [1, 32, 256] {
            compare(&ours, &peer, threads, connections, pairs, seconds)?;
        }
    }
    Ok(())
}

fn compare(
    ours: &Proxy,
    peer: &Proxy,
    threads: u32,
    connections: u32,
    pairs: u32,
    seconds: u32,
) -> Result<(), String> {
    let load = |proxy: &Proxy| wrk::run(&proxy.url, connections, seconds, proxy.child.id());
    // Not counted: connections, page cache, lazy set-up.
    load(ours)?;
    load(peer)?;
    let (mut mine, mut theirs) = (Vec::new(), Vec::new());
    for pair in 0..pairs {
        // Which one goes first alternates, so that a drifting machine favours neither.
        if pair % 2 == 0 {
            mine.push(load(ours)?);
            theirs.push(load(peer)?);
        } else {
            theirs.push(load(peer)?);
            mine.push(load(ours)?);
        }
    }
    println!("\n{threads} thread(s), {connections} connection(s)");
    for (proxy, runs) in [(ours, &mine), (peer, &theirs)] {
        let column = |pick: fn(&Run) -> f64| Median::of(&runs.iter().map(pick).collect::<Vec<_>>());
        println!(
            "  {:8} {} req/s, p50 {} us, p99 {} us, cpu {} us, errors {}",
            proxy.name,
            column(|r| r.per_second),
            column(|r| r.p50_us),
            column(|r| r.p99_us),
            column(|r| r.cpu_us),
            runs.iter().map(|r| r.errors).sum::<u64>(),
        );
    }
    let ratio = |pick: fn(&Run) -> f64| {
        Median::of(
            &mine
                .iter()
                .zip(&theirs)
                .map(|(a, b)| pick(a) / pick(b))
                .collect::<Vec<_>>(),
        )
    };
    println!(
        "  ratio    req/s {}, p50 {}, p99 {}, cpu {}",
        ratio(|r| r.per_second),
        ratio(|r| r.p50_us),
        ratio(|r| r.p99_us),
        ratio(|r| r.cpu_us)
    );
    Ok(())
}

fn start_gateway(
    binary: &Path,
    dir: &Path,
    controller: &Path,
    threads: u32,
) -> Result<Proxy, String> {
    let data = dir.join(format!("gateway-{threads}"));
    let child = Command::new(binary)
        .arg("gateway")
        .arg(format!("--data={}", data.display()))
        .arg(format!("--controllers=unix:{}", controller.display()))
        .args([
            "--invoke=127.0.0.1:0",
            "--api=127.0.0.1:0",
            "--admin=127.0.0.1:0",
            "--log=error",
        ])
        .arg(format!("--gateway-threads={threads}"))
        .stdout(Stdio::null())
        .spawn()
        .map_err(|error| format!("{}: {error}", binary.display()))?;
    let mut proxy = Proxy {
        name: "coracle",
        child,
        url: String::new(),
    };
    let file = data.join("server.json");
    proxy.url = wait_for("the gateway", || {
        let value: serde_json::Value = serde_json::from_slice(&fs::read(&file).ok()?).ok()?;
        Some(format!(
            "{}/fn/default/default/bench",
            value["invoke"].as_str()?
        ))
    })?;
    wait_for("the route", || answers(&proxy.url))?;
    Ok(proxy)
}

fn start_nginx(dir: &Path, upstream: &Path, workers: u32) -> Result<Proxy, String> {
    let home = dir.join(format!("nginx-{workers}"));
    fs::create_dir_all(&home).map_err(|e| e.to_string())?;
    // The upstream socket must be open to nginx's worker user.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(dir, mode).map_err(|e| e.to_string())?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(upstream, mode).map_err(|e| e.to_string())?;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").map_err(|e| e.to_string())?;
    let port = listener.local_addr().map_err(|e| e.to_string())?.port();
    drop(listener);
    let template = include_str!("../nginx.conf");
    let config = template
        .replace("@WORKERS@", &workers.to_string())
        .replace("@HOME@", &home.display().to_string())
        .replace("@PORT@", &port.to_string())
        .replace("@UPSTREAM@", &upstream.display().to_string());
    let file = home.join("nginx.conf");
    fs::write(&file, config).map_err(|e| e.to_string())?;
    let child = Command::new("nginx")
        .arg("-c")
        .arg(&file)
        .arg("-p")
        .arg(&home)
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("nginx: {error}"))?;
    let url = format!("http://127.0.0.1:{port}/fn/default/default/bench");
    let proxy = Proxy {
        name: "nginx",
        child,
        url,
    };
    wait_for("nginx", || answers(&proxy.url))?;
    Ok(proxy)
}

fn answers(url: &str) -> Option<()> {
    let output = Command::new("curl").args(["-s", url]).output().ok()?;
    (output.stdout == b"ok").then_some(())
}

fn wait_for<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> Result<T, String> {
    for _ in 0..200 {
        if let Some(value) = ready() {
            return Ok(value);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err(format!("{what} is not there after 10 s"))
}
