//! `coracle fn describe`

use clap::Args;
use serde_json::Value;

use crate::{
    api::Api,
    commands::function_path,
    error::CliError,
    output::{Output, table, text},
};

#[derive(Debug, Args)]
pub(crate) struct Describe {
    name: String,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

impl Describe {
    pub(crate) async fn run(self, api: &Api, namespace: &str) -> Result<(), CliError> {
        let path = api.in_project(&function_path(namespace, &self.name));
        let all = api.get(&format!("{path}/describe")).await?;
        self.output.print(&all, print_human)
    }
}

fn print_human(all: &Value) {
    let f = &all["function"];
    outln!("Function   {}/{}", text(f, "/namespace"), text(f, "/name"));
    outln!("Endpoint   {}", text(f, "/endpoint"));
    outln!(
        "Revision   {} {}, serving {}",
        text(f, "/revision/number"),
        text(f, "/revision/stage"),
        text(f, "/serving_revision")
    );
    for (label, pointer) in [
        ("Reason", "/revision/reason"),
        ("Build", "/revision/message"),
    ] {
        if text(f, pointer) != "-" {
            outln!("{label:10} {}", text(f, pointer));
        }
    }
    outln!(
        "Instances  {} ready of {} wanted, {} to {} allowed",
        text(f, "/instances/ready"),
        text(f, "/instances/wanted"),
        text(f, "/scale/min"),
        text(f, "/scale/max")
    );
    if text(all, "/shortage") != "-" {
        outln!("Short      {}", text(all, "/shortage"));
    }
    section(
        all,
        "instances",
        "Instances",
        &[
            ("ID", |v| text(v, "/id")),
            ("REVISION", |v| text(v, "/revision")),
            ("STATE", |v| text(v, "/state")),
            ("SINCE", |v| text(v, "/since")),
            ("PLACED", |v| text(v, "/placement")),
        ],
    );
    section(
        all,
        "exits",
        "Last exits",
        &[
            ("AT", |v| text(v, "/at")),
            ("REVISION", |v| text(v, "/revision")),
            ("REASON", |v| text(v, "/reason")),
            ("NEXT TRY", |v| text(v, "/retry_at")),
        ],
    );
    section(
        all,
        "decisions",
        "Scaling",
        &[
            ("AT", |v| text(v, "/at")),
            ("DECISION", |v| text(v, "/reason")),
        ],
    );
}

fn section(all: &Value, key: &str, heading: &str, columns: &[crate::output::Column]) {
    let rows = all
        .get(key)
        .and_then(Value::as_array)
        .map_or(&[][..], Vec::as_slice);
    if !rows.is_empty() {
        out!("\n{heading}\n{}", table(rows, columns));
    }
}
