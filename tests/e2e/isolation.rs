//! What a function can see and reach from inside its container.

use coracle_tests::Server;
use serde_json::{Value, json};

const PROBE: &str = r#"
import json, os, socket

def attempt(action):
    try:
        return repr(action())
    except Exception as error:
        return "refused: " + type(error).__name__ + " " + str(getattr(error, "errno", ""))

def status(key):
    for line in open("/proc/self/status"):
        if line.startswith(key + ":"):
            return line.split(":", 1)[1].strip()

def connect(host, port):
    with socket.create_connection((host, port), timeout=2) as s:
        return "connected"

def marks():
    found = set()
    for top in ("/fn", "/run", "/tmp", "/var", "/build", "/mnt", "/opt", "/root", "/usr/lib/coracle"):
        for folder, _, names in os.walk(top):
            for name in names:
                try:
                    text = open(os.path.join(folder, name), errors="replace").read()
                except OSError:
                    continue
                found.update(line for line in text.splitlines() if line.startswith("MARK = "))
    return sorted(found)

def main(event=None, context=None):
    port = int(os.environ["HOST_PORT"])
    gateways = [l.split()[2] for l in open("/proc/net/route").read().splitlines()[1:] if l.split()[1] == "00000000"]
    bridge = socket.inet_ntoa(bytes.fromhex(gateways[0])[::-1]) if gateways else None
    return json.dumps({
        "uid": os.getuid(),
        "uid_map": open("/proc/self/uid_map").read().split(),
        "capabilities": status("CapEff"),
        "bounding": status("CapBnd"),
        "no_new_privileges": status("NoNewPrivs"),
        "seccomp": status("Seccomp"),
        "write_root": attempt(lambda: open("/x", "w")),
        "write_code": attempt(lambda: open("/fn/code/x", "w")),
        "write_run": attempt(lambda: open("/run/fn/x", "w")),
        "write_tmp": attempt(lambda: open("/tmp/x", "w").write("x")),
        "mount": attempt(lambda: os.unshare(0x10000000)) if hasattr(os, "unshare") else "refused: none",
        "pids": len([p for p in os.listdir("/proc") if p.isdigit()]),
        "code": marks(),
        "fds": [os.readlink("/proc/self/fd/" + f) for f in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd/" + f)],
        "sockets": attempt(lambda: os.listdir("/run/containerd")),
        "host_loopback": attempt(lambda: connect("127.0.0.1", port)),
        "host_bridge": attempt(lambda: connect(bridge, port)) if bridge else "refused: no route",
        "metadata": attempt(lambda: connect("169.254.169.254", 80)),
        "interfaces": sorted(l.split(":")[0].strip() for l in open("/proc/net/dev").read().splitlines()[2:]),
        "sys_write": attempt(lambda: open("/proc/sys/kernel/hostname", "w").write("x")),
    })
"#;

async fn probe(server: &Server, name: &str, network: &str, port: u16) -> Value {
    let env = json!({"HOST_PORT": port.to_string()});
    let settings = json!({"network": network, "env": env, "timeout_seconds": 30});
    let code = format!("{PROBE}\nMARK = '{name}'\n");
    let deployed = server.deploy(name, &code, settings).await;
    assert_eq!(deployed["revision"]["stage"], "running", "{deployed:#}");
    let text = server.call(name).await.ok().text();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[tokio::test]
async fn a_function_is_alone_in_its_container() {
    let server = Server::start().await;
    // A listener of the host on every address, as careless services have.
    let listener = tokio::net::TcpListener::bind("0.0.0.0:0")
        .await
        .expect("bind");
    let port = listener.local_addr().expect("bound").port();
    let first = probe(&server, "first", "egress", port).await;
    let refused = |seen: &Value, what: &str| {
        let text = seen[what].as_str().unwrap_or_default();
        assert!(text.contains("refused"), "{what}: {seen:#}");
    };
    assert_ne!(first["uid"], 0);
    assert_ne!(
        first["uid_map"][1], "0",
        "root inside is nobody outside: {first:#}"
    );
    assert_eq!(first["capabilities"], "0000000000000000");
    assert_eq!(first["no_new_privileges"], "1");
    assert_eq!(first["seccomp"], "2");
    for what in [
        "write_root",
        "write_code",
        "write_run",
        "mount",
        "sockets",
        "host_loopback",
        "host_bridge",
        "metadata",
        "sys_write",
    ] {
        refused(&first, what);
    }
    assert!(
        !first["write_tmp"]
            .as_str()
            .unwrap_or("refused")
            .contains("refused"),
        "{first:#}"
    );
    assert!(
        first["pids"].as_u64() <= Some(4),
        "only its own processes: {first:#}"
    );

    let second = probe(&server, "second", "none", port).await;
    // It has an interface, as every stem has, but the host's end of it is down.
    for what in ["host_bridge", "metadata"] {
        refused(&second, what);
    }
    assert_ne!(
        first["uid_map"][1], second["uid_map"][1],
        "a range of ids each"
    );
    assert_eq!(first["code"], json!(["MARK = 'first'"]));
    assert_eq!(second["code"], json!(["MARK = 'second'"]));
}

#[tokio::test]
async fn claims_leave_the_hosts_mounts_as_they_were_and_down_leaves_nothing() {
    let mut server = Server::start().await;
    let mounts = || {
        std::fs::read_to_string("/proc/self/mountinfo")
            .expect("mountinfo")
            .lines()
            .count()
    };
    server
        .deploy("first", "def main():\n    return 'x'\n", json!({}))
        .await;
    server.call("first").await.ok();
    let before = mounts();
    for n in 0..5 {
        let name = format!("more-{n}");
        server
            .deploy(&name, "def main():\n    return 'x'\n", json!({}))
            .await;
        server.call(&name).await.ok();
    }
    // Containers of their own have a few mounts on the host (their shim's); claims add none.
    let growth = mounts().saturating_sub(before);
    assert!(
        growth <= 2 * 12,
        "{growth} more mounts after five functions"
    );

    server.terminate().await;
    assert!(
        !server.container_processes("").is_empty(),
        "instances outlive the server"
    );
    let links = || {
        String::from_utf8(
            std::process::Command::new("ip")
                .args(["-o", "link"])
                .output()
                .expect("ip")
                .stdout,
        )
        .expect("text")
    };
    let id = server.cluster_id();
    assert!(links().contains(&id));
    server.down();
    assert!(
        server.container_processes("").is_empty(),
        "every process is gone"
    );
    assert!(!links().contains(&id), "{}", links());
    let rules = std::process::Command::new("iptables-save")
        .output()
        .expect("iptables")
        .stdout;
    assert!(
        !String::from_utf8_lossy(&rules).contains(&id),
        "no rule is left"
    );
}
