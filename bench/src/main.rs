//! Measurements beside named peers, each in one run. `bench/run.sh` prepares and starts them.

#![forbid(unsafe_code)]

mod by_hand;
mod cold;
mod idle;
mod process;
mod routes;
mod stats;
mod upstream;
mod warm;
mod wrk;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    measurement: Measurement,
}

#[derive(Debug, Subcommand)]
enum Measurement {
    /// The gateway beside nginx, same upstream
    Warm {
        #[arg(long, default_value_t = 10)]
        pairs: u32,
        #[arg(long, default_value_t = 2)]
        seconds: u32,
    },
    /// Real handlers through the gateway: Python and Node
    Handlers {
        #[arg(long, default_value_t = 5)]
        runs: u32,
        #[arg(long, default_value_t = 3)]
        seconds: u32,
    },
    /// First calls of functions never called before
    Cold {
        #[arg(long, default_value_t = 200)]
        functions: usize,
    },
    /// Containers from scratch, beside the same ones by hand through containerd
    Scratch {
        #[arg(long, default_value_t = 20)]
        pairs: usize,
    },
    /// Memory after idling
    Idle {
        #[arg(long, default_value_t = 10)]
        minutes: u64,
    },
    /// The upstream of `warm`
    #[command(hide = true)]
    Upstream { http: PathBuf, frames: PathBuf },
}

fn main() -> ExitCode {
    let runtime = || tokio::runtime::Runtime::new().expect("a runtime");
    let outcome = match Arguments::parse().measurement {
        Measurement::Warm { pairs, seconds } => {
            let binary = std::env::var_os("CORACLE_TEST_BINARY").map(PathBuf::from);
            binary
                .ok_or_else(|| "start this with bench/run.sh".to_owned())
                .and_then(|binary| warm::run(&binary, pairs, seconds))
        }
        Measurement::Handlers { runs, seconds } => {
            runtime().block_on(cold::handlers(runs, seconds))
        }
        Measurement::Cold { functions } => runtime().block_on(cold::run(functions)),
        Measurement::Scratch { pairs } => runtime().block_on(by_hand::run(pairs)),
        Measurement::Idle { minutes } => {
            runtime().block_on(idle::run(minutes));
            Ok(())
        }
        Measurement::Upstream { http, frames } => {
            upstream::serve(http, frames).map_err(|error| error.to_string())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}
