//! Faults on a cluster of real processes, as commands with fixed seeds that print a table.
//!
//!     tests/faults/run.sh leader-kill --runs 20 --seed 1
//!
//! The last line is `N faults, N failed`; the exit code says the same.

mod controllers;
mod gateways;
mod nodes;
mod table;

use std::process::ExitCode;

use table::Table;

/// What can be asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    pub(crate) runs: u32,
    pub(crate) seed: u64,
}

const USAGE: &str = "usage: faults COMMAND [--runs N] [--seed N]
  leader-kill    kill -9 of the leading controller under 1,000 writes/s and warm calls
  all-kill       kill -9 of all three controllers at once, under writes
  leader-pause   SIGSTOP of the leading controller for 1 to 10 s, under writes and reads
  gateway-kill   kill -9 of a gateway under 500 calls/s to two
  gateway-roll   restart of each gateway in turn under 500 calls/s
  node-kill      kill -9 of an agent with instances: time until replacements serve
  scale          0 to N to 0 instances with 100,000 calls";

#[tokio::main]
async fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next().unwrap_or_default();
    let mut options = Options { runs: 10, seed: 1 };
    while let Some(name) = arguments.next() {
        let value = arguments.next().and_then(|text| text.parse::<u64>().ok());
        match (name.as_str(), value) {
            ("--runs", Some(runs)) => options.runs = u32::try_from(runs).unwrap_or(u32::MAX),
            ("--seed", Some(seed)) => options.seed = seed,
            _ => return usage(),
        }
    }
    let mut table = Table::new(&command);
    match command.as_str() {
        "leader-kill" => controllers::leader_kill(options, &mut table).await,
        "all-kill" => controllers::all_kill(options, &mut table).await,
        "leader-pause" => controllers::leader_pause(options, &mut table).await,
        "gateway-kill" => gateways::kill(options, &mut table).await,
        "gateway-roll" => gateways::roll(options, &mut table).await,
        "node-kill" => nodes::kill(options, &mut table).await,
        "scale" => nodes::scale(options, &mut table).await,
        _ => return usage(),
    }
    table.finish()
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}
