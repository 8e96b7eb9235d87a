//! Load by wrk, with its own thread.

use std::process::Command;

use crate::process::{cpu_seconds, tree};

#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    pub(crate) per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// Of the measured process and its children.
    pub(crate) cpu_us: f64,
    pub(crate) errors: u64,
}

/// Loads `url` for `seconds`; CPU time is that of `pid` and its children per request.
pub(crate) fn run(url: &str, connections: u32, seconds: u32, pid: u32) -> Result<Run, String> {
    let cpu = || tree(pid).into_iter().map(cpu_seconds).sum::<f64>();
    let before = cpu();
    let output = Command::new("wrk")
        .args(["-t1", "--latency"])
        .arg(format!("-c{connections}"))
        .arg(format!("-d{seconds}s"))
        .arg(url)
        .output()
        .map_err(|error| format!("wrk: {error}"))?;
    let used = cpu() - before;
    let text = String::from_utf8_lossy(&output.stdout);
    let find = |prefix: &str| {
        text.lines()
            .map(str::trim)
            .find_map(|l| l.strip_prefix(prefix))
            .map(str::trim)
    };
    let per_second = find("Requests/sec:").and_then(|n| n.parse::<f64>().ok());
    let (Some(per_second), Some(p50), Some(p99)) = (per_second, find("50%"), find("99%")) else {
        return Err(format!("wrk said:\n{text}"));
    };
    let errors = text
        .lines()
        .filter(|l| l.contains("Non-2xx") || l.contains("Socket errors"))
        .flat_map(|l| l.split(|c: char| !c.is_ascii_digit()))
        .filter_map(|n| n.parse::<u64>().ok())
        .filter(|n| *n != 2)
        .sum();
    let requests = text
        .lines()
        .find_map(|l| l.trim().split_once(" requests in "))
        .and_then(|(n, _)| n.parse::<f64>().ok())
        .unwrap_or(per_second * f64::from(seconds));
    Ok(Run {
        per_second,
        p50_us: micros(p50)?,
        p99_us: micros(p99)?,
        cpu_us: used / requests * 1e6,
        errors,
    })
}

fn micros(text: &str) -> Result<f64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        other => return Err(format!("wrk's unit {other:?} in {text:?}")),
    };
    digits
        .parse::<f64>()
        .map(|n| n * unit)
        .map_err(|error| format!("{text:?}: {error}"))
}
