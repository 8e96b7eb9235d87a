//! `coracle fn`

mod deploy;
mod describe;
mod invoke;
mod logs;

use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use super::function_path;
use crate::{
    api::{Target, escape},
    error::CliError,
    output::{Output, fields, text},
};

#[derive(Debug, Args)]
pub(crate) struct FunctionCommand {
    #[command(flatten)]
    target: Target,
    /// Namespace
    #[arg(
        short,
        long,
        env = "CORACLE_NAMESPACE",
        global = true,
        default_value = "default"
    )]
    namespace: String,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Create or update a function and wait until it runs
    Deploy(Box<deploy::Deploy>),
    /// List functions
    #[command(visible_alias = "list")]
    Ls {
        /// Of all namespaces
        #[arg(short = 'A', long)]
        all: bool,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Show a function as it is stored
    Get {
        name: String,
        #[arg(short, long, value_enum, default_value_t = Output::Yaml)]
        output: Output,
    },
    /// Explain what a function does now: instances, failures, scaling decisions
    Describe(describe::Describe),
    /// Call a function; a body comes from --body or --body-file
    #[command(visible_alias = "call")]
    Invoke(invoke::Invoke),
    /// Show a function's output
    Logs(logs::Logs),
    /// Remove functions
    #[command(visible_alias = "delete")]
    Rm {
        #[arg(required = true)]
        names: Vec<String>,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

impl FunctionCommand {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        let api = self.target.connect()?;
        let namespace = self.namespace;
        match self.verb {
            Verb::Deploy(deploy) => deploy.run(&api, &namespace).await,
            Verb::Ls { all, output } => {
                let path = if all {
                    "functions".to_owned()
                } else {
                    format!("namespaces/{}/functions", escape(&namespace))
                };
                let answer = api
                    .list(&api.in_project(&format!("{path}?order_by=name.asc")))
                    .await?;
                output.list(
                    &answer,
                    &[
                        ("NAMESPACE", |v| text(v, "/namespace")),
                        ("NAME", |v| text(v, "/name")),
                        ("RUNTIME", |v| text(v, "/runtime")),
                        ("STAGE", |v| text(v, "/revision/stage")),
                        ("READY", |v| {
                            let ready = text(v, "/instances/ready");
                            format!("{ready}/{}", text(v, "/instances/wanted"))
                        }),
                        ("ENDPOINT", |v| text(v, "/endpoint")),
                    ],
                )
            }
            Verb::Get { name, output } => {
                let value = api
                    .get(&api.in_project(&function_path(&namespace, &name)))
                    .await?;
                output.print(&value, |v| out!("{}", fields(v)))
            }
            Verb::Describe(describe) => describe.run(&api, &namespace).await,
            Verb::Invoke(invoke) => invoke.run(&api, &namespace).await,
            Verb::Logs(logs) => logs.run(&api, &namespace).await,
            Verb::Rm { names, output } => {
                let mut removed = Vec::new();
                for name in names {
                    let path = api.in_project(&function_path(&namespace, &name));
                    let gone = api.json(Method::DELETE, &path, None).await;
                    if let Err(error) = gone {
                        // What is gone is gone, and has to be told.
                        output.print(&Value::Array(removed), |_| ())?;
                        return Err(error);
                    }
                    let (namespace, own) = name.split_once('/').unwrap_or((&namespace, &name));
                    removed.push(json!({"namespace": namespace, "name": own, "removed": true}));
                    eprintln!("function {name} removed");
                }
                output.print(&Value::Array(removed), |_| ())
            }
        }
    }
}
