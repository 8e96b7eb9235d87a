//! `coracle cluster`

mod init;
mod offline;

use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use crate::{
    api::Target,
    error::CliError,
    output::{Output, text},
};

#[derive(Debug, Args)]
pub(crate) struct ClusterCommand {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a cluster: its CA, its key and its first controller
    Init(Box<init::Init>),
    /// Who leads, and how the controllers stand
    Status(Show),
    /// The controllers of the cluster
    Members(Show),
    /// Hand leadership to another controller
    Transfer {
        #[command(flatten)]
        target: Target,
        /// Number of the controller [default: any that has caught up]
        member: Option<u64>,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Remove a controller; one that leads hands leadership over first
    Remove {
        #[command(flatten)]
        target: Target,
        /// Number of the controller
        member: u64,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// The whole state as a file: save, inspect, restore
    #[command(subcommand)]
    Snapshot(offline::Snapshot),
    /// Make a cluster of this one controller, when the majority is gone for good
    Recover(offline::Recover),
    /// Make another cluster key and seal it to the controllers
    RotateKey(Show),
}

#[derive(Debug, Args)]
struct Show {
    #[command(flatten)]
    target: Target,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

impl ClusterCommand {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        match self.verb {
            Verb::Init(init) => init.run().await,
            Verb::Status(show) => {
                let cluster = show.target.connect()?.get("/api/v1/cluster").await?;
                show.output.list(
                    &json!({"items": [cluster]}),
                    &[
                        ("CLUSTER", |v| text(v, "/id")),
                        ("LEADER", |v| text(v, "/leader")),
                        ("TERM", |v| text(v, "/term")),
                        ("APPLIED", |v| text(v, "/applied")),
                        ("VOTERS", |v| count(v, "voter")),
                        ("LEARNERS", |v| count(v, "learner")),
                        ("KEY", |v| text(v, "/key_generation")),
                        ("CA HASH", |v| text(v, "/ca_hash")),
                    ],
                )
            }
            Verb::Members(show) => {
                let cluster = show.target.connect()?.get("/api/v1/cluster").await?;
                let members = cluster.get("members").cloned().unwrap_or_default();
                show.output.list(
                    &json!({"items": members}),
                    &[
                        ("ID", |v| text(v, "/id")),
                        ("NAME", |v| text(v, "/name")),
                        ("ADDRESS", |v| text(v, "/address")),
                        ("STANDING", standing),
                        ("ACTIVE", |v| text(v, "/active")),
                        ("LOG", |v| text(v, "/matched")),
                        ("JOINED", |v| text(v, "/joined_at")),
                    ],
                )
            }
            Verb::Transfer {
                target,
                member,
                output,
            } => {
                let api = target.connect()?;
                let body = json!({"member": member});
                let answer = api
                    .json(Method::POST, "/api/v1/cluster/transfer", Some(&body))
                    .await?;
                let told = format!("controller {} leads", text(&answer, "/leader"));
                output.done(&answer, &told)
            }
            Verb::Remove {
                target,
                member,
                output,
            } => {
                let path = format!("/api/v1/cluster/members/{member}");
                target.connect()?.json(Method::DELETE, &path, None).await?;
                let told =
                    format!("controller {member} removed; its number is not given out again");
                output.done(&json!({"id": member, "removed": true}), &told)
            }
            Verb::Snapshot(verb) => verb.run().await,
            Verb::Recover(recover) => recover.run(),
            Verb::RotateKey(show) => {
                let path = "/api/v1/cluster/rotate-key";
                let api = show.target.connect()?;
                let answer = api.json(Method::POST, path, None).await?;
                let told = format!("cluster key {} is in use", text(&answer, "/key_generation"));
                show.output.done(&answer, &told)
            }
        }
    }
}

fn standing(member: &Value) -> String {
    match member.get("leader").and_then(Value::as_bool) {
        Some(true) => "leader".to_owned(),
        _ => text(member, "/standing"),
    }
}

fn count(cluster: &Value, standing: &str) -> String {
    let members = cluster.get("members").and_then(Value::as_array);
    let of = |member: &&Value| member.get("standing").and_then(Value::as_str) == Some(standing);
    members
        .map_or(0, |members| members.iter().filter(of).count())
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_counted_by_what_they_are() {
        let member =
            |id: u64, standing: &str| json!({"id": id, "standing": standing, "leader": id == 1});
        let cluster =
            json!({"members": [member(1, "voter"), member(2, "voter"), member(3, "learner")]});
        assert_eq!(
            (count(&cluster, "voter"), count(&cluster, "learner")),
            ("2".into(), "1".into())
        );
        assert_eq!(standing(&cluster["members"][0]), "leader");
        assert_eq!(standing(&cluster["members"][2]), "learner");
    }
}
