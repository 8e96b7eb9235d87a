//! `coracle version`

use clap::Args;
use serde_json::json;

use crate::{
    api::Target,
    error::CliError,
    output::{Output, text},
};

#[derive(Debug, Args)]
pub(crate) struct Version {
    #[command(flatten)]
    target: Target,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

impl Version {
    /// A server that does not answer is no failure: the client's version is still printed.
    pub(crate) async fn run(self) -> Result<(), CliError> {
        let server = match self.target.connect() {
            Ok(api) => api.get("/api/v1/version").await.ok(),
            Err(_) => None,
        };
        let value = json!({
            "client": env!("CARGO_PKG_VERSION"),
            "server": server.and_then(|v| v.get("version").cloned()),
        });
        self.output.print(&value, |v| {
            outln!(
                "client  {}\nserver  {}",
                text(v, "/client"),
                text(v, "/server")
            );
        })
    }
}
