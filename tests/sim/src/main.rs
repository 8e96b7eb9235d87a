//! `coracle-sim --seeds N --from SEED [--events N] [--trace] [--plant BUG]`

use std::process::ExitCode;

use coracle_sim::{Options, Planted, run};

const USAGE: &str = "usage: coracle-sim --seeds N --from SEED [--events N] [--trace] [--plant BUG]

  --seeds N     how many, one after the other (1)
  --from SEED   the first (0)
  --events N    events before the faults of a seed end (10000)
  --trace       prints every event and what the real parts log
  --plant BUG   with a planted bug: votes, acknowledgements, deduplication, stamp,
                collection, retry

The last line is `N seeds, N failed`.";

struct Arguments {
    seeds: u64,
    from: u64,
    options: Options,
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut parsed = Arguments {
        seeds: 1,
        from: 0,
        options: Options::seed(0),
    };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        let number = |text: String| {
            text.parse::<u64>()
                .map_err(|_| format!("{text} is not a number"))
        };
        match word.as_str() {
            "--seeds" => parsed.seeds = number(value()?)?,
            "--from" => parsed.from = number(value()?)?,
            "--events" => parsed.options.events = number(value()?)?,
            "--trace" => parsed.options.trace = true,
            "--plant" => parsed.options.planted = Some(value()?.parse::<Planted>()?),
            other => return Err(format!("unknown argument {other}")),
        }
    }
    Ok(parsed)
}

fn main() -> ExitCode {
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(wrong) => {
            eprintln!("{wrong}\n{USAGE}");
            return ExitCode::from(64);
        }
    };
    let Arguments {
        seeds,
        from,
        options,
    } = arguments;
    if options.trace {
        tracing_subscriber::fmt()
            .with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG)
            .without_time()
            .init();
    } else {
        // What panics is told with its seed.
        std::panic::set_hook(Box::new(|_| {}));
    }
    let mut failed = 0;
    for seed in from..from.saturating_add(seeds) {
        match run(Options { seed, ..options }) {
            Ok(tally) if seeds == 1 => println!("seed {seed}: {tally:?}"),
            Ok(_) => {}
            Err(what) => {
                failed += 1;
                println!(
                    "seed {seed} failed: {what}\n  replay: tests/sim/run.sh --from {seed} --seeds 1 --events {} --trace",
                    options.events
                );
            }
        }
    }
    println!("{seeds} seeds, {failed} failed");
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
