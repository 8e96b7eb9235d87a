//! `coracle key`: keys that callers of functions present, and credentials for clouds' clients.

use clap::{Args, Subcommand, ValueEnum};
use http::Method;
use serde_json::{Value, json};

use crate::{
    api::{Api, Target, escape},
    error::CliError,
    output::{Output, fields, text},
};

#[derive(Debug, Args)]
pub(crate) struct KeyCommand {
    #[command(flatten)]
    target: Target,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a function key, or with --cloud credentials with which that cloud's clients reach
    /// this server
    Create {
        /// Name of the function key
        #[arg(required_unless_present = "cloud")]
        name: Option<String>,
        /// Function that the key opens, NAMESPACE/NAME; may be repeated
        #[arg(short, long = "function", conflicts_with = "cloud")]
        functions: Vec<String>,
        /// When it stops working, such as 2027-01-01T00:00:00Z
        #[arg(long)]
        expires: Option<String>,
        /// Cloud whose clients get the credentials
        #[arg(long, value_enum)]
        cloud: Option<Cloud>,
        #[arg(short, long, value_enum, default_value_t)]
        output: KeyOutput,
    },
    /// List function keys, or management tokens with --tokens
    #[command(visible_alias = "list")]
    Ls {
        #[arg(long)]
        tokens: bool,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Remove a function key; it stops working at once
    #[command(visible_alias = "delete")]
    Rm {
        name: String,
        /// The name is the id of a management token
        #[arg(long)]
        token_id: bool,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Cloud {
    Gcore,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum KeyOutput {
    /// The secret alone
    #[default]
    Plain,
    /// `export NAME=value` lines
    Env,
    Table,
    Json,
    Yaml,
}

impl KeyOutput {
    /// `variables`: what `env` and, for credentials, the others show.
    fn print(
        self,
        secret: &str,
        variables: &[(&'static str, String)],
        value: &Value,
    ) -> Result<(), CliError> {
        let other = match self {
            Self::Plain => {
                outln!("{secret}");
                return Ok(());
            }
            Self::Env => {
                for (name, value) in variables {
                    outln!("export {name}={}", quote(value));
                }
                return Ok(());
            }
            Self::Table => Output::Table,
            Self::Json => Output::Json,
            Self::Yaml => Output::Yaml,
        };
        other.print(value, |value| out!("{}", fields(value)))
    }
}

impl KeyCommand {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        let api = self.target.connect()?;
        match self.verb {
            Verb::Create {
                cloud: Some(cloud),
                expires,
                output,
                ..
            } => create_credentials(&api, cloud, expires, output).await,
            Verb::Create {
                name,
                functions,
                expires,
                output,
                ..
            } => {
                let name = name.unwrap_or_default();
                create_function_key(&api, &name, &functions, expires, output).await
            }
            Verb::Ls {
                tokens: true,
                output,
            } => {
                let answer = api.get("/api/v1/tokens").await?;
                output.list(
                    &answer,
                    &[
                        ("ID", |v| text(v, "/id")),
                        ("ROLE", |v| text(v, "/role")),
                        ("EXPIRES", |v| text(v, "/expires_at")),
                        ("DESCRIPTION", |v| text(v, "/description")),
                    ],
                )
            }
            Verb::Ls { output, .. } => {
                let answer = api.list(&api.in_project("keys")).await?;
                output.list(
                    &answer,
                    &[
                        ("NAME", |v| text(v, "/name")),
                        ("STATUS", status_cell),
                        ("EXPIRES", |v| text(v, "/expires_at")),
                        ("FUNCTIONS", functions_cell),
                    ],
                )
            }
            Verb::Rm {
                name,
                token_id,
                output,
            } => {
                let path = if token_id {
                    format!("/api/v1/tokens/{}", escape(&name))
                } else {
                    api.in_project(&format!("keys/{}", escape(&name)))
                };
                api.json(Method::DELETE, &path, None).await?;
                let gone = json!({"name": name, "removed": true});
                output.done(&gone, &format!("{name} removed"))
            }
        }
    }
}

fn status_cell(key: &Value) -> String {
    match key.get("live").and_then(Value::as_bool) {
        Some(true) => "live".to_owned(),
        Some(false) => "expired".to_owned(),
        None => "-".to_owned(),
    }
}

fn functions_cell(key: &Value) -> String {
    let functions = key.get("functions").and_then(Value::as_array);
    let shown: Vec<String> = functions
        .into_iter()
        .flatten()
        .map(|f| format!("{}/{}", text(f, "/namespace"), text(f, "/name")))
        .collect();
    if shown.is_empty() {
        "-".to_owned()
    } else {
        shown.join(" ")
    }
}

async fn create_function_key(
    api: &Api,
    name: &str,
    functions: &[String],
    expires: Option<String>,
    output: KeyOutput,
) -> Result<(), CliError> {
    let functions: Vec<Value> = functions
        .iter()
        .map(|f| {
            let (namespace, name) = f.split_once('/').unwrap_or(("default", f));
            json!({"namespace": namespace, "name": name})
        })
        .collect();
    let body = json!({"name": name, "functions": functions, "expires_at": expires});
    let key = api
        .json(Method::POST, &api.in_project("keys"), Some(&body))
        .await?;
    let secret = text(&key, "/secret");
    output.print(&secret, &[("CORACLE_FUNCTION_KEY", secret.clone())], &key)?;
    eprintln!("key {name} created; its secret is shown this once. Send it as X-API-Key.");
    Ok(())
}

async fn create_credentials(
    api: &Api,
    cloud: Cloud,
    expires: Option<String>,
    output: KeyOutput,
) -> Result<(), CliError> {
    let project = api
        .get(&format!("/api/v1/projects?search={}", escape(&api.project)))
        .await?;
    let id = project
        .pointer("/items")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .find(|p| p.get("name").and_then(Value::as_str) == Some(&api.project))
        .and_then(|p| p.get("id").and_then(Value::as_u64))
        .ok_or_else(|| CliError::NotFound(format!("project {} does not exist", api.project)))?;
    let Cloud::Gcore = cloud;
    let body = json!({
        "description": "gcore clients",
        "role": "project",
        "project": api.project,
        "expires_at": expires,
    });
    let token = api
        .json(Method::POST, "/api/v1/tokens", Some(&body))
        .await?;
    let secret = text(&token, "/token");
    let variables = gcore_variables(api.base(), &secret, id);
    let map: serde_json::Map<String, Value> = variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.clone().into()))
        .collect();
    output.print(&secret, &variables, &Value::Object(map))
}

/// What Gcore's SDKs, CLI and Terraform provider read.
fn gcore_variables(base: &str, secret: &str, project: u64) -> Vec<(&'static str, String)> {
    vec![
        ("GCORE_API_KEY", secret.to_owned()),
        ("GCORE_BASE_URL", base.to_owned()),
        ("GCORE_CLOUD_PROJECT_ID", project.to_string()),
        ("GCORE_CLOUD_REGION_ID", "1".to_owned()),
        ("GCLOUD_CLIENT_TYPE", "api-token".to_owned()),
        ("GCLOUD_API_URL", format!("{base}/cloud")),
        ("GCLOUD_API_TOKEN", secret.to_owned()),
        ("GCLOUD_PROJECT", project.to_string()),
        ("GCLOUD_REGION", "1".to_owned()),
        ("GCORE_API_ENDPOINT", base.to_owned()),
        ("GCORE_PERMANENT_TOKEN", secret.to_owned()),
    ]
}

/// For a POSIX shell: tokens hold a `$`.
fn quote(value: &str) -> String {
    format!("'{}'", value.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Those that the clients' own documents name.
    #[test]
    fn gcores_clients_find_every_variable_that_they_read() {
        let made = gcore_variables("http://h:1", "id$secret", 7);
        let of = |name: &str| {
            let mut found = made.iter().filter(|(n, _)| *n == name);
            let (_, value) = found.next().unwrap_or_else(|| panic!("{name} is missing"));
            assert!(found.next().is_none(), "{name} is there once");
            value.as_str()
        };
        for (name, value) in [
            ("GCORE_API_KEY", "id$secret"),
            ("GCORE_BASE_URL", "http://h:1"),
            ("GCORE_CLOUD_PROJECT_ID", "7"),
            ("GCORE_CLOUD_REGION_ID", "1"),
            ("GCLOUD_API_URL", "http://h:1/cloud"),
            ("GCLOUD_API_TOKEN", "id$secret"),
        ] {
            assert_eq!(of(name), value, "{name}");
        }
    }

    #[test]
    fn values_survive_a_shell() {
        assert_eq!(quote("a$b"), "'a$b'");
        assert_eq!(quote("a'b"), r"'a'\''b'");
    }
}
