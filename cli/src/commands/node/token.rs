//! `coracle node token`

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use http::Method;
use serde_json::{Value, json};

use super::drain::duration;
use crate::{
    api::{Api, escape},
    error::CliError,
    output::{Output, text},
};

#[derive(Debug, Args)]
#[command(subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
pub(crate) struct Token {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// As what the machines join
    #[arg(long, value_enum, required = true)]
    role: Option<Role>,
    /// How long it lets machines in, such as 30m or 12h
    #[arg(long, default_value = "1h", value_parser = duration)]
    ttl: Duration,
    /// How many machines it lets in
    #[arg(long, default_value_t = 1)]
    uses: u32,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    Controller,
    Agent,
    Gateway,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List join tokens, those that are over too
    #[command(visible_alias = "list")]
    Ls {
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Let nobody in with it any more; whoever has joined stays
    #[command(visible_alias = "rm")]
    Revoke {
        id: String,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

impl Token {
    pub(crate) async fn run(self, api: &Api) -> Result<(), CliError> {
        match self.verb {
            Some(Verb::Ls { output }) => {
                let answer = api.get("/api/v1/join-tokens").await?;
                output.list(
                    &answer,
                    &[
                        ("ID", |v| text(v, "/id")),
                        ("ROLE", |v| text(v, "/role")),
                        ("LIVE", |v| text(v, "/live")),
                        ("USES LEFT", |v| text(v, "/uses_left")),
                        ("EXPIRES", |v| text(v, "/expires_at")),
                    ],
                )
            }
            Some(Verb::Revoke { id, output }) => {
                let path = format!("/api/v1/join-tokens/{}", escape(&id));
                api.json(Method::DELETE, &path, None).await?;
                let gone = json!({"id": id, "revoked": true});
                output.done(&gone, &format!("join token {id} revoked"))
            }
            None => {
                let role = self.role.ok_or_else(|| {
                    CliError::Usage("--role controller, agent or gateway is needed".to_owned())
                })?;
                let role = match role {
                    Role::Controller => "controller",
                    Role::Agent => "agent",
                    Role::Gateway => "gateway",
                };
                let body =
                    json!({"role": role, "ttl_seconds": self.ttl.as_secs(), "uses": self.uses});
                let made = api
                    .json(Method::POST, "/api/v1/join-tokens", Some(&body))
                    .await?;
                self.output
                    .print(&made, |made| outln!("{}", command(made)))?;
                eprintln!(
                    "lets in {} until {}; its secret is shown this once",
                    self.uses,
                    text(&made, "/expires_at")
                );
                Ok(())
            }
        }
    }
}

/// What joins a machine, as one line for a POSIX shell.
fn command(made: &Value) -> String {
    let controllers = made.get("controllers").and_then(Value::as_array);
    let controllers: Vec<&str> = controllers
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let role = text(made, "/role");
    let more = match role.as_str() {
        // What only the machine itself can know.
        "controller" | "agent" => " --listen 0.0.0.0:PORT --advertise HOST:PORT",
        _ => "",
    };
    format!(
        "coracle {role} --join {} --token '{}' --ca-hash {}{more}",
        controllers.join(","),
        text(made, "/token"),
        text(made, "/ca_hash"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_complete_and_survives_a_shell() {
        let made = json!({
            "role": "gateway",
            "controllers": ["10.0.0.1:7000", "10.0.0.2:7000"],
            "token": "id$secret",
            "ca_hash": "sha256:00",
        });
        assert_eq!(
            command(&made),
            "coracle gateway --join 10.0.0.1:7000,10.0.0.2:7000 --token 'id$secret' --ca-hash \
             sha256:00"
        );
    }
}
