//! `coracle node`

mod drain;
mod token;

use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use crate::{
    api::{Api, Target, escape},
    error::CliError,
    output::{Output, table, text},
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
    /// Show one node with its instances and, while it drains, what it waits for
    Describe {
        /// Name or id
        node: String,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Close nodes: nothing new goes there, what runs stays
    Cordon {
        #[arg(required = true)]
        nodes: Vec<String>,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Open nodes again; a drain ends
    Uncordon {
        #[arg(required = true)]
        nodes: Vec<String>,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Move what runs on a node elsewhere, and wait until its last process has ended
    Drain(drain::Drain),
    /// Make a join token and print the command that joins a machine; list and revoke tokens
    Token(token::Token),
    /// Take a node out of the cluster for good; refused while it runs instances
    #[command(visible_alias = "rm")]
    Remove {
        node: String,
        /// Also while it runs instances, which end
        #[arg(long)]
        force: bool,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

impl NodeCommand {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        let api = self.target.connect()?;
        match self.verb {
            Verb::Ls { output } => {
                let answer = api.get("/api/v1/nodes").await?;
                output.list(
                    &answer,
                    &[
                        ("NAME", |v| text(v, "/name")),
                        ("STATE", |v| text(v, "/state")),
                        ("MEMORY MIB", |v| used_of(v, "memory_mib")),
                        ("CPU MILLIS", |v| used_of(v, "cpu_millis")),
                        ("INSTANCES", |v| text(v, "/instances")),
                        ("STEMS", |v| pairs(v, "stems", ':')),
                        ("VERSION", |v| text(v, "/version")),
                        ("HEARD", |v| text(v, "/reported_at")),
                        ("LABELS", |v| pairs(v, "labels", '=')),
                    ],
                )
            }
            Verb::Describe { node, output } => {
                let node = api.get(&path(&node, "")).await?;
                output.print(&node, print_human)
            }
            Verb::Cordon { nodes, output } => each(&api, &nodes, "cordon", output).await,
            Verb::Uncordon { nodes, output } => each(&api, &nodes, "uncordon", output).await,
            Verb::Drain(drain) => drain.run(&api).await,
            Verb::Token(token) => token.run(&api).await,
            Verb::Remove {
                node,
                force,
                output,
            } => {
                let body = json!({"force": force});
                let gone = api
                    .json(Method::POST, &path(&node, "/remove"), Some(&body))
                    .await?;
                output.print(&gone, |gone| outln!("node {} removed", text(gone, "/name")))
            }
        }
    }
}

fn path(node: &str, rest: &str) -> String {
    format!("/api/v1/nodes/{}{rest}", escape(node))
}

async fn each(api: &Api, nodes: &[String], verb: &str, output: Output) -> Result<(), CliError> {
    for node in nodes {
        let changed = api
            .json(Method::POST, &path(node, &format!("/{verb}")), None)
            .await?;
        output.print(&changed, |node| {
            outln!("node {} is {}", text(node, "/name"), text(node, "/state"));
        })?;
    }
    Ok(())
}

fn print_human(node: &Value) {
    outln!("Node       {} ({})", text(node, "/name"), text(node, "/id"));
    outln!("State      {}", text(node, "/state"));
    outln!("Address    {}", text(node, "/address"));
    outln!("Version    {}", text(node, "/version"));
    outln!("Labels     {}", pairs(node, "labels", '='));
    outln!(
        "Memory     {} MiB used, {} thousandths of a core",
        used_of(node, "memory_mib"),
        used_of(node, "cpu_millis")
    );
    outln!(
        "Instances  {} wanted, {} running, {} builds",
        text(node, "/instances"),
        text(node, "/running"),
        text(node, "/builds")
    );
    outln!("Stems      {}", pairs(node, "stems", ':'));
    outln!("Heard      {}", text(node, "/reported_at"));
    outln!("Joined     {}", text(node, "/joined_at"));
    if node.pointer("/drain/since").is_some() {
        outln!(
            "Draining   since {}, deadline {}, force {}",
            text(node, "/drain/since"),
            text(node, "/drain/deadline"),
            text(node, "/drain/force")
        );
        for reason in drain::waiting(node) {
            outln!("Waits for  {reason}");
        }
    }
    let placed = node.get("placed").and_then(Value::as_array);
    let placed = placed.map_or(&[][..], Vec::as_slice);
    if !placed.is_empty() {
        out!(
            "\n{}",
            table(
                placed,
                &[
                    ("FUNCTION", |v| {
                        format!("{}/{}", text(v, "/namespace"), text(v, "/function"))
                    }),
                    ("PROJECT", |v| text(v, "/project")),
                    ("INSTANCE", |v| text(v, "/id")),
                    ("REVISION", |v| text(v, "/revision")),
                    ("STATE", |v| text(v, "/state")),
                    ("SINCE", |v| text(v, "/since")),
                ],
            )
        );
    }
}

fn used_of(node: &Value, what: &str) -> String {
    let used = text(node, &format!("/used/{what}"));
    format!("{used}/{}", text(node, &format!("/allocatable/{what}")))
}

fn pairs(node: &Value, what: &str, between: char) -> String {
    let pairs = node.get(what).and_then(Value::as_object);
    let shown: Vec<String> = pairs
        .into_iter()
        .flatten()
        .map(|(key, value)| match value {
            Value::String(value) => format!("{key}{between}{value}"),
            other => format!("{key}{between}{other}"),
        })
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

    use super::pairs;

    #[test]
    fn labels_and_stems_are_one_cell() {
        let node = json!({"labels": {"disk": "ssd", "zone": "a"}, "stems": {"python3.11": 4}});
        assert_eq!(pairs(&node, "labels", '='), "disk=ssd zone=a");
        assert_eq!(pairs(&node, "stems", ':'), "python3.11:4");
        assert_eq!(pairs(&json!({"labels": {}}), "labels", '='), "-");
    }
}
