//! The OCI runtime specification of a container: a function of values.
//!
//! Everything is on for everyone: a user namespace with ids of its own, a read-only root, bounded
//! tmpfs, no capabilities, no new privileges, a system call filter, limits with swap equal to
//! memory, and every other namespace new. What differs is the program, the mounts and the limits.

use std::{collections::BTreeMap, path::Path};

use serde_json::{Value, json};

use crate::{
    cgroup::Limits,
    seccomp,
    slots::{USER, WIDTH},
};

/// Directories and files that every image has, because the OCI runtime cannot make mount points on
/// a root whose owner is not mapped.
pub(crate) const MOUNT_POINTS: [&str; 10] = [
    "/proc",
    "/sys",
    "/dev",
    "/tmp",
    "/run/fn",
    "/fn/code",
    "/fn/deps",
    "/usr/lib/coracle",
    "/etc",
    RESOLV_CONF,
];
pub(crate) const RESOLV_CONF: &str = "/etc/resolv.conf";
pub(crate) const CODE: &str = "/fn/code";
pub(crate) const DEPENDENCIES: &str = "/fn/deps";
pub(crate) const SOCKET_DIR: &str = "/run/fn";
pub(crate) const SHIMS: &str = "/usr/lib/coracle";
pub(crate) const TMP: &str = "/tmp";

#[derive(Debug)]
pub(crate) struct Bind<'a> {
    pub(crate) source: &'a Path,
    pub(crate) target: &'a str,
    pub(crate) writable: bool,
}

#[derive(Debug)]
pub(crate) struct Input<'a> {
    /// Where the image root is bound on the host.
    pub(crate) root: &'a Path,
    pub(crate) argv: &'a [String],
    pub(crate) env: &'a BTreeMap<String, String>,
    pub(crate) cwd: &'a str,
    pub(crate) binds: &'a [Bind<'a>],
    /// The first of the user and group ids on the host.
    pub(crate) uid_base: u32,
    pub(crate) limits: &'a Limits,
    /// Bytes of `/tmp`; they count as the container's memory too.
    pub(crate) tmp_bytes: u64,
    /// Below each cgroup hierarchy's root.
    pub(crate) cgroup: &'a str,
    /// Containers of one group share the process that supervises them.
    pub(crate) shim_group: &'a str,
}

pub(crate) fn container(input: &Input<'_>) -> Value {
    let env: Vec<String> = input
        .env
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let ids = json!([{"containerID": 0, "hostID": input.uid_base, "size": WIDTH}]);
    let nothing: [&str; 0] = [];
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": USER, "gid": USER},
            "args": input.argv,
            "env": env,
            "cwd": input.cwd,
            "capabilities": {
                "bounding": nothing, "effective": nothing, "inheritable": nothing,
                "permitted": nothing, "ambient": nothing,
            },
            "noNewPrivileges": true,
            "rlimits": [
                {"type": "RLIMIT_NOFILE", "soft": 16384, "hard": 16384},
                {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
            ],
            // Before ours and the machine's own services, when the whole machine is out of memory.
            "oomScoreAdj": 500,
        },
        "root": {"path": input.root, "readonly": true},
        "hostname": "coracle",
        "mounts": mounts(input),
        "annotations": {"io.containerd.runc.v2.group": input.shim_group},
        "linux": {
            "uidMappings": ids,
            "gidMappings": ids,
            "cgroupsPath": input.cgroup,
            "namespaces": [
                {"type": "user"}, {"type": "pid"}, {"type": "network"}, {"type": "ipc"},
                {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"},
            ],
            "resources": resources(input.limits),
            "seccomp": seccomp::profile(),
            // Nothing that the host mounts later may appear inside.
            "rootfsPropagation": "rprivate",
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys",
                "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats",
                "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
                "/sys/devices/virtual/powercap", "/sys/fs/cgroup",
            ],
            "readonlyPaths": [
                "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
            ],
        },
    })
}

fn mounts(input: &Input<'_>) -> Vec<Value> {
    let kernel = |target: &str, kind: &str, options: &[&str]| json!({"destination": target, "type": kind, "source": kind, "options": options});
    let size = format!("size={}", input.tmp_bytes);
    let mut mounts = vec![
        kernel("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        kernel(
            "/dev",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        kernel(
            "/dev/pts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        kernel(
            "/dev/shm",
            "tmpfs",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=16384k"],
        ),
        kernel("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        kernel("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        kernel(
            TMP,
            "tmpfs",
            &["nosuid", "nodev", "mode=1777", size.as_str()],
        ),
    ];
    mounts.extend(input.binds.iter().map(|bind| {
        let access = if bind.writable { "rw" } else { "ro" };
        json!({
            "destination": bind.target,
            "type": "bind",
            "source": bind.source,
            "options": ["bind", access, "nosuid", "nodev", "rprivate"],
        })
    }));
    mounts
}

fn resources(limits: &Limits) -> Value {
    json!({
        "devices": [{"allow": false, "access": "rwm"}],
        // Swap here means memory and swap together. Without it swap would be unlimited.
        "memory": {"limit": limits.memory, "swap": limits.memory},
        "cpu": {
            "shares": limits.cpu_shares(),
            "quota": limits.cpu_quota(),
            "period": Limits::CPU_PERIOD,
        },
        "pids": {"limit": limits.processes},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Value {
        let limits = Limits {
            memory: 64 << 20,
            cpu_millis: 250,
            processes: 100,
        };
        container(&Input {
            root: Path::new("/images/a"),
            argv: &["/bin/true".to_owned()],
            env: &[("A".to_owned(), "1".to_owned())].into(),
            cwd: "/",
            binds: &[Bind {
                source: Path::new("/shims"),
                target: SHIMS,
                writable: false,
            }],
            uid_base: 300_000_000,
            limits: &limits,
            tmp_bytes: 1 << 20,
            cgroup: "/coracle-0123abcd/x",
            shim_group: "g",
        })
    }

    #[test]
    fn swap_is_limited_with_memory() {
        let spec = example();
        let memory = &spec["linux"]["resources"]["memory"];
        assert_eq!(memory["limit"], memory["swap"]);
        assert_eq!(memory["limit"], 64 << 20);
        assert_eq!(spec["linux"]["resources"]["cpu"]["quota"], 25_000);
    }

    #[test]
    fn every_isolation_is_on() {
        let spec = example();
        assert_eq!(spec["root"]["readonly"], true);
        assert_eq!(spec["process"]["noNewPrivileges"], true);
        for set in [
            "bounding",
            "effective",
            "inheritable",
            "permitted",
            "ambient",
        ] {
            assert_eq!(spec["process"]["capabilities"][set], json!([]), "{set}");
        }
        let kinds: Vec<_> = spec["linux"]["namespaces"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|n| n["type"].as_str().expect("a name"))
            .collect();
        assert_eq!(
            kinds,
            ["user", "pid", "network", "ipc", "uts", "mount", "cgroup"]
        );
        assert!(
            spec["linux"]["namespaces"][2]["path"].is_null(),
            "a new one, not a shared one"
        );
        assert_eq!(spec["linux"]["uidMappings"][0]["size"], 65_536);
        let binds: Vec<_> = spec["mounts"]
            .as_array()
            .expect("a list")
            .iter()
            .filter(|m| m["type"] == "bind")
            .collect();
        assert_eq!(
            binds[0]["options"],
            json!(["bind", "ro", "nosuid", "nodev", "rprivate"])
        );
    }
}
