//! `coracle ns`

use clap::{Args, Subcommand};
use http::Method;
use serde_json::json;

use super::parse_env;
use crate::{
    api::{Target, escape},
    error::CliError,
    output::{Output, text},
};

#[derive(Debug, Args)]
pub(crate) struct NamespaceCommand {
    #[command(flatten)]
    target: Target,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List namespaces
    #[command(visible_alias = "list")]
    Ls {
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Create a namespace
    Create {
        name: String,
        #[arg(long, default_value = "")]
        description: String,
        /// Variable for every function in it, KEY=VALUE
        #[arg(short, long)]
        env: Vec<String>,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Remove an empty namespace
    #[command(visible_alias = "delete")]
    Rm {
        name: String,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

impl NamespaceCommand {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        let api = self.target.connect()?;
        match self.verb {
            Verb::Ls { output } => {
                let answer = api.list(&api.in_project("namespaces")).await?;
                output.list(
                    &answer,
                    &[
                        ("NAME", |v| text(v, "/name")),
                        ("CREATED", |v| text(v, "/created_at")),
                        ("DESCRIPTION", |v| text(v, "/description")),
                    ],
                )
            }
            Verb::Create {
                name,
                description,
                env,
                output,
            } => {
                let body =
                    json!({"name": name, "description": description, "env": parse_env(&env)?});
                let made = api
                    .json(Method::POST, &api.in_project("namespaces"), Some(&body))
                    .await?;
                output.done(&made, &format!("namespace {name} created"))
            }
            Verb::Rm { name, output } => {
                api.json(
                    Method::DELETE,
                    &api.in_project(&format!("namespaces/{}", escape(&name))),
                    None,
                )
                .await?;
                let gone = json!({"name": name, "removed": true});
                output.done(&gone, &format!("namespace {name} removed"))
            }
        }
    }
}
