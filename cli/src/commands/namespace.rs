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
    },
    /// Remove an empty namespace
    #[command(visible_alias = "delete")]
    Rm { name: String },
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
            } => {
                let body =
                    json!({"name": name, "description": description, "env": parse_env(&env)?});
                api.json(Method::POST, &api.in_project("namespaces"), Some(&body))
                    .await?;
                eprintln!("namespace {name} created");
                Ok(())
            }
            Verb::Rm { name } => {
                api.json(
                    Method::DELETE,
                    &api.in_project(&format!("namespaces/{}", escape(&name))),
                    None,
                )
                .await?;
                eprintln!("namespace {name} removed");
                Ok(())
            }
        }
    }
}
