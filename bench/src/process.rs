//! What the kernel accounts to a process.

use std::{fs, path::Path, process::Command};

/// Seconds that the threads of the process have spent on a processor, by the scheduler's own
/// count: `/proc/pid/stat` only samples, a hundred times a second. Threads that have ended are not
/// in it, so it is for processes whose working threads stay.
pub(crate) fn cpu_seconds(pid: u32) -> f64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task"));
    let nanos = threads
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|thread| {
            let stat = fs::read_to_string(thread.path().join("schedstat")).ok()?;
            stat.split_whitespace().next()?.parse::<f64>().ok()
        });
    nanos.sum::<f64>() / 1e9
}

/// The process and its children.
pub(crate) fn tree(pid: u32) -> Vec<u32> {
    let mut pids = vec![pid];
    let mut next = 0;
    while next < pids.len() {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", pids[next]))
            .unwrap_or_default();
        pids.extend(
            children
                .split_whitespace()
                .filter_map(|c| c.parse::<u32>().ok()),
        );
        next += 1;
    }
    pids
}

/// A line of `/proc/pid/status` or `smaps_rollup`, in KiB.
pub(crate) fn memory_kib(pid: u32, file: &str, key: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    text.lines()
        .find_map(|line| {
            line.strip_prefix(key)?
                .trim_start_matches(':')
                .split_whitespace()
                .next()
        })
        .and_then(|n| n.parse().ok())
        .unwrap_or_default()
}

pub(crate) fn machine() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|l| l.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown processor", |(_, name)| name.trim());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let commit = Command::new("git")
        .args(["rev-parse", "--short", "HEAD"])
        .output();
    let commit = commit.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
    format!(
        "{cores} cores of {model}, kernel {}, commit {}",
        kernel.trim(),
        commit.unwrap_or_else(|_| "unknown".to_owned())
    )
}

/// True when a program of this name is on the path.
pub(crate) fn installed(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|dir| Path::new(&dir).join(program).exists())
    })
}
