//! `coracle node`

use clap::{Args, Subcommand};
use serde_json::Value;

use crate::{
    api::Target,
    error::CliError,
    output::{Output, text},
};

#[derive(Debug, Args)]
pub(crate) struct NodeCommand {
    #[command(flatten)]
    target: Target,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the nodes with what they have and what is used
    #[command(visible_alias = "list")]
    Ls {
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

impl NodeCommand {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        let Verb::Ls { output } = self.verb;
        let answer = self.target.connect()?.get("/api/v1/nodes").await?;
        output.list(
            &answer,
            &[
                ("NAME", |v| text(v, "/name")),
                ("STATE", state),
                ("MEMORY MIB", |v| used_of(v, "memory_mib")),
                ("CPU MILLIS", |v| used_of(v, "cpu_millis")),
                ("INSTANCES", |v| text(v, "/instances")),
                ("STEMS", stems),
                ("VERSION", |v| text(v, "/version")),
            ],
        )
    }
}

fn state(node: &Value) -> String {
    let is = |what: &str| node.get(what).and_then(Value::as_bool);
    match (is("alive"), is("schedulable")) {
        (Some(true), Some(true)) => "ready",
        (Some(true), Some(false)) => "unschedulable",
        (Some(false), _) => "lost",
        _ => "-",
    }
    .to_owned()
}

fn used_of(node: &Value, what: &str) -> String {
    let used = text(node, &format!("/used/{what}"));
    format!("{used}/{}", text(node, &format!("/allocatable/{what}")))
}

fn stems(node: &Value) -> String {
    let stems = node.get("stems").and_then(Value::as_object);
    let shown: Vec<String> = stems
        .into_iter()
        .flatten()
        .map(|(runtime, count)| format!("{runtime}:{count}"))
        .collect();
    if shown.is_empty() {
        "-".to_owned()
    } else {
        shown.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::state;

    #[test]
    fn the_state_tells_a_lost_node_from_one_that_takes_nothing_new() {
        let of = |alive, schedulable| state(&json!({"alive": alive, "schedulable": schedulable}));
        assert_eq!(of(true, true), "ready");
        assert_eq!(of(true, false), "unschedulable");
        assert_eq!(of(false, true), "lost");
    }
}
