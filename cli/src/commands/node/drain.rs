//! `coracle node drain`

use std::{
    io::{IsTerminal, Write},
    time::Duration,
};

use clap::Args;
use http::Method;
use serde_json::{Map, Value};
use tokio::time::{Instant, sleep};

use super::path;
use crate::{
    api::Api,
    error::CliError,
    output::{Output, text},
};

const POLL: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub(crate) struct Drain {
    /// Name or id
    node: String,
    /// When it should be over, such as 90s, 10m or 2h. Without --force the command then gives up
    /// waiting and the drain goes on; with it, what is left is ended
    #[arg(long, value_parser = duration)]
    deadline: Option<Duration>,
    /// End what is left at the deadline (at once without one) although nothing replaces it yet; and
    /// drain also the last node that can hold a function with a minimum
    #[arg(long)]
    force: bool,
    /// Return once the drain has begun
    #[arg(long)]
    no_wait: bool,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

impl Drain {
    pub(crate) async fn run(self, api: &Api) -> Result<(), CliError> {
        let mut body = Map::new();
        body.insert("force".to_owned(), self.force.into());
        if let Some(deadline) = self.deadline {
            body.insert("deadline_seconds".to_owned(), deadline.as_secs().into());
        }
        let body = Value::Object(body);
        let drain = path(&self.node, "/drain");
        let mut node = api.json(Method::POST, &drain, Some(&body)).await?;
        if self.no_wait {
            return self.output.print(&node, print_state);
        }
        let give_up = self
            .deadline
            .filter(|_| !self.force)
            .map(|deadline| Instant::now() + deadline);
        let mut progress = Progress::new();
        loop {
            progress.show(&line(&node));
            match text(&node, "/state").as_str() {
                "drained" | "lost" => break,
                "draining" | "silent" => {}
                // Somebody opened it again.
                _ => {
                    progress.end();
                    return Err(CliError::Conflict(format!(
                        "node {} was opened again; its drain is over",
                        text(&node, "/name")
                    )));
                }
            }
            if give_up.is_some_and(|at| Instant::now() >= at) {
                progress.end();
                return Err(CliError::TimedOut(format!(
                    "{}; it goes on draining",
                    line(&node)
                )));
            }
            sleep(POLL).await;
            node = api.get(&path(&self.node, "")).await?;
        }
        progress.end();
        self.output.print(&node, print_state)
    }
}

fn print_state(node: &Value) {
    outln!("node {} is {}", text(node, "/name"), text(node, "/state"));
}

/// What is left, and what it waits for.
fn line(node: &Value) -> String {
    let stems = node.get("stems").and_then(Value::as_object);
    let stems: u64 = stems
        .into_iter()
        .flat_map(Map::values)
        .filter_map(Value::as_u64)
        .sum();
    let number = |key: &str| node.get(key).and_then(Value::as_u64).unwrap_or(0);
    let instances = number("instances").max(number("running"));
    let mut line = format!(
        "node {} {}: {instances} instances, {stems} stems, {} builds left",
        text(node, "/name"),
        text(node, "/state"),
        number("builds")
    );
    for reason in waiting(node) {
        line.push_str("; waits for ");
        line.push_str(reason);
    }
    line
}

pub(super) fn waiting(node: &Value) -> impl Iterator<Item = &str> {
    let reasons = node.pointer("/drain/waiting").and_then(Value::as_array);
    reasons.into_iter().flatten().filter_map(Value::as_str)
}

/// On a terminal one line that is written over; elsewhere a line for each change.
struct Progress {
    is_terminal: bool,
    last: String,
}

impl Progress {
    fn new() -> Self {
        Self {
            is_terminal: std::io::stderr().is_terminal(),
            last: String::new(),
        }
    }

    fn show(&mut self, line: &str) {
        if self.last == line {
            return;
        }
        line.clone_into(&mut self.last);
        let mut to = std::io::stderr();
        // A closed standard error must not end the command.
        let _ = if self.is_terminal {
            write!(to, "\r\x1b[K{line}").and_then(|()| to.flush())
        } else {
            writeln!(to, "{line}")
        };
    }

    fn end(&self) {
        if self.is_terminal && !self.last.is_empty() {
            let _ = writeln!(std::io::stderr());
        }
    }
}

/// A number with s, m or h; seconds without a unit.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3_600,
        other => return Err(format!("{other:?} is not s, m or h")),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| "must be a number with s, m or h, such as 10m".to_owned())?;
    Ok(Duration::from_secs(number.saturating_mul(unit)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn durations_have_units() {
        for (text, seconds) in [
            ("90", 90),
            ("90s", 90),
            ("10m", 600),
            ("2h", 7_200),
            ("0", 0),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "m", "1d", "-1s", "1.5h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn progress_says_what_is_left_and_why_it_waits() {
        let node = json!({
            "name": "a", "state": "draining", "instances": 1, "running": 3, "builds": 0,
            "stems": {"python3.11": 2, "nodejs20": 1},
            "drain": {"waiting": ["default/hello: no node has room"]},
        });
        assert_eq!(
            line(&node),
            "node a draining: 3 instances, 3 stems, 0 builds left; waits for default/hello: no node \
             has room"
        );
    }
}
