//! `coracle fn deploy`

use std::{io::Write, path::PathBuf, time::Duration};

use bytes::Bytes;
use clap::Args;
use http::{Method, Request};
use http_body_util::BodyExt;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    api::{Api, escape, refuse_errors},
    commands::{function_path, parse_env},
    error::CliError,
    output::{Output, text},
};

const POLL: Duration = Duration::from_millis(300);

/// What is not given stays as it is when the function exists, else gets the server's default.
#[derive(Debug, Args)]
pub(crate) struct Deploy {
    /// NAME or NAMESPACE/NAME; the namespace is created when it does not exist
    name: String,
    /// File with the code
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Runtime, such as python3.11 or nodejs20
    #[arg(short, long)]
    runtime: Option<String>,
    /// Function in the file that answers
    #[arg(long)]
    handler: Option<String>,
    /// How it is called: kubeless, scaleway, scf or http
    #[arg(long)]
    convention: Option<String>,
    /// requirements.txt or package.json
    #[arg(short, long, value_name = "FILE")]
    dependencies: Option<PathBuf>,
    /// Variable, KEY=VALUE; replaces all that were set before
    #[arg(short, long)]
    env: Vec<String>,
    #[arg(long)]
    description: Option<String>,
    /// Memory limit in MiB
    #[arg(long)]
    memory: Option<u32>,
    /// Thousandths of a core
    #[arg(long)]
    cpu: Option<u32>,
    /// Seconds that one request may take
    #[arg(long)]
    timeout: Option<u32>,
    /// Requests at once in one instance
    #[arg(long)]
    concurrency: Option<u32>,
    /// Instances kept at all times
    #[arg(long)]
    min: Option<u32>,
    /// Most instances; 0: it may not run
    #[arg(long)]
    max: Option<u32>,
    /// egress or none
    #[arg(long)]
    network: Option<String>,
    /// Callers must present a key (`coracle key create`)
    #[arg(long)]
    require_key: Option<bool>,
    /// Return once the change is stored
    #[arg(long)]
    no_wait: bool,
    /// Seconds to wait until it runs
    #[arg(long, default_value_t = 600)]
    wait: u64,
    /// The endpoint, or the function as it is stored
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

impl Deploy {
    pub(crate) async fn run(self, api: &Api, namespace: &str) -> Result<(), CliError> {
        let path = api.in_project(&function_path(namespace, &self.name));
        let existing = match api.get(&path).await {
            Ok(value) => Some(value),
            Err(CliError::NotFound(_)) => None,
            Err(error) => return Err(error),
        };
        let mut body = self.body()?;
        // A runtime goes along in an update too: the server refuses another one than the function has.
        let stored = if existing.is_some() {
            api.json(Method::PATCH, &path, Some(&Value::Object(body)))
                .await?
        } else {
            let (namespace, name) = self.name.split_once('/').unwrap_or((namespace, &self.name));
            for (field, flag) in [("code", "--file"), ("runtime", "--runtime")] {
                if !body.contains_key(field) {
                    return Err(CliError::Usage(format!("a new function needs {flag}")));
                }
            }
            ensure_namespace(api, namespace).await?;
            body.insert("name".to_owned(), name.into());
            let path = api.in_project(&format!("namespaces/{}/functions", escape(namespace)));
            api.json(Method::POST, &path, Some(&Value::Object(body)))
                .await?
        };
        if self.no_wait {
            return self.output.print(&stored, |_| ());
        }
        let revision = stored
            .pointer("/revision/number")
            .and_then(Value::as_u64)
            .unwrap_or(1);
        let deadline = Instant::now() + Duration::from_secs(self.wait);
        show_build_log(api, &path, revision, deadline).await?;
        let done = wait_until_final(api, &path, revision, deadline).await?;
        self.output
            .print(&done, |done| outln!("{}", text(done, "/endpoint")))
    }

    fn body(&self) -> Result<Map<String, Value>, CliError> {
        let read = |file: &Option<PathBuf>| {
            file.as_ref()
                .map(|file| {
                    std::fs::read_to_string(file)
                        .map_err(|error| CliError::Usage(format!("{}: {error}", file.display())))
                })
                .transpose()
        };
        let mut body = Map::new();
        let mut put = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                body.insert(key.to_owned(), value);
            }
        };
        put("code", read(&self.file)?.map(Value::from));
        put("dependencies", read(&self.dependencies)?.map(Value::from));
        put("runtime", self.runtime.clone().map(Value::from));
        put("handler", self.handler.clone().map(Value::from));
        put("convention", self.convention.clone().map(Value::from));
        put("description", self.description.clone().map(Value::from));
        put("memory_mib", self.memory.map(Value::from));
        put("cpu_millis", self.cpu.map(Value::from));
        put("timeout_seconds", self.timeout.map(Value::from));
        put("concurrency", self.concurrency.map(Value::from));
        put("network", self.network.clone().map(Value::from));
        put("key_required", self.require_key.map(Value::from));
        if !self.env.is_empty() {
            put("env", Some(json!(parse_env(&self.env)?)));
        }
        let bounds: Map<String, Value> = [("min", self.min), ("max", self.max)]
            .into_iter()
            .filter_map(|(key, value)| Some((key.to_owned(), value?.into())))
            .collect();
        if !bounds.is_empty() {
            put("scale", Some(Value::Object(bounds)));
        }
        Ok(body)
    }
}

async fn ensure_namespace(api: &Api, namespace: &str) -> Result<(), CliError> {
    let body = json!({"name": namespace});
    match api
        .json(Method::POST, &api.in_project("namespaces"), Some(&body))
        .await
    {
        Ok(_) | Err(CliError::Conflict(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Copies the build's output to standard error while it runs.
async fn show_build_log(
    api: &Api,
    path: &str,
    revision: u64,
    deadline: Instant,
) -> Result<(), CliError> {
    let path = format!("{path}/build-log?follow=true&revision={revision}");
    let request = Request::builder().method(Method::GET);
    let response = refuse_errors(api.send(request, &path, Bytes::new()).await?).await?;
    let mut body = response.into_body();
    loop {
        match timeout_at(deadline, body.frame()).await {
            Ok(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    // A closed standard error must not end the deployment.
                    let _ = std::io::stderr().write_all(data);
                }
            }
            Ok(Some(Err(error))) => return Err(CliError::failed("the build log broke off", error)),
            Ok(None) => return Ok(()),
            Err(_) => return Err(timed_out()),
        }
    }
}

fn timed_out() -> CliError {
    CliError::TimedOut("still not running; `coracle fn describe` says why".to_owned())
}

fn may_not_run(function: &Value) -> Option<&'static str> {
    if function.get("disabled") == Some(&Value::Bool(true)) {
        return Some("is disabled");
    }
    let max = function.pointer("/scale/max").and_then(Value::as_u64);
    (max == Some(0)).then_some("may have no instance")
}

async fn wait_until_final(
    api: &Api,
    path: &str,
    revision: u64,
    deadline: Instant,
) -> Result<Value, CliError> {
    loop {
        let value = api.get(path).await?;
        if value.pointer("/revision/number").and_then(Value::as_u64) != Some(revision) {
            return Err(CliError::Conflict(
                "superseded by a newer update".to_owned(),
            ));
        }
        let reason = || text(&value, "/revision/reason");
        match text(&value, "/revision/stage").as_str() {
            "running" => return Ok(value),
            "deploying" if let Some(why) = may_not_run(&value) => {
                eprintln!("built; it {why}, and proves itself when it may run");
                return Ok(value);
            }
            "build_failed" => return Err(CliError::Failed(format!("build failed: {}", reason()))),
            "deploy_failed" => {
                return Err(CliError::Failed(format!("deploy failed: {}", reason())));
            }
            "abandoned" => {
                return Err(CliError::Conflict(
                    "superseded by a newer update".to_owned(),
                ));
            }
            _ if Instant::now() >= deadline => return Err(timed_out()),
            _ => sleep(POLL).await,
        }
    }
}
