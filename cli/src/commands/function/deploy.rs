//! `coracle fn deploy`

use std::{
    io::{Read, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use clap::Args;
use coracle_model::limits;
use http::{Method, Request};
use http_body_util::BodyExt;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    api::{Api, escape, refuse_errors},
    commands::{function_path, parse_env, parse_pairs},
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
    /// Run only on nodes with this label, KEY=VALUE; may be repeated. Replaces those set before
    #[arg(long, value_name = "K=V")]
    node_label: Vec<String>,
    /// Rather run on nodes with this label, KEY=VALUE; may be repeated. Replaces those set before
    #[arg(long, value_name = "K=V")]
    prefer: Vec<String>,
    /// Spread over nodes or zones before anything else: auto, node or zone
    #[arg(long)]
    spread: Option<String>,
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
        if let Some(placement) = self.placement(existing.as_ref())? {
            body.insert("placement".to_owned(), placement);
        }
        // A runtime goes along in an update too: the server refuses another one than the function has.
        let stored = if existing.is_some() {
            api.json(Method::PATCH, &path, Some(&Value::Object(body)))
                .await?
        } else {
            let (namespace, name) = self.name.split_once('/').unwrap_or((namespace, &self.name));
            for (field, flag) in [
                ("code", "--file"),
                ("runtime", "--runtime"),
                ("handler", "--handler"),
            ] {
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

    /// What is not given stays as it is: the server replaces the whole.
    fn placement(&self, existing: Option<&Value>) -> Result<Option<Value>, CliError> {
        if self.node_label.is_empty() && self.prefer.is_empty() && self.spread.is_none() {
            return Ok(None);
        }
        let before = existing.and_then(|function| function.get("placement"));
        let mut placement = before.cloned().unwrap_or_else(|| json!({}));
        for (key, flag, labels) in [
            ("required", "--node-label", &self.node_label),
            ("preferred", "--prefer", &self.prefer),
        ] {
            if !labels.is_empty() {
                placement[key] = json!(parse_pairs(flag, labels)?);
            }
        }
        if let Some(spread) = &self.spread {
            placement["spread"] = spread.clone().into();
        }
        Ok(Some(placement))
    }

    fn body(&self) -> Result<Map<String, Value>, CliError> {
        let read = |file: &Option<PathBuf>, most: usize| {
            file.as_ref().map(|file| read_text(file, most)).transpose()
        };
        let mut body = Map::new();
        let mut put = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                body.insert(key.to_owned(), value);
            }
        };
        let code = read(&self.file, limits::CODE_TEXT_MAX_CHARS)?;
        put("code", code.map(Value::from));
        let dependencies = read(&self.dependencies, limits::DEPENDENCIES_MAX_CHARS)?;
        put("dependencies", dependencies.map(Value::from));
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

/// Refused here already: the server closes the connection on a body that is far too large, which
/// reads like a server that has gone.
fn read_text(file: &Path, most: usize) -> Result<String, CliError> {
    let wrong =
        |what: &dyn std::fmt::Display| CliError::Usage(format!("{}: {what}", file.display()));
    // Characters have four bytes at most.
    let most_bytes = most as u64 * 4;
    let mut bytes = Vec::new();
    std::fs::File::open(file)
        .and_then(|opened| opened.take(most_bytes + 1).read_to_end(&mut bytes))
        .map_err(|error| wrong(&error))?;
    let too_long = || wrong(&format_args!("is longer than {most} characters"));
    if bytes.len() as u64 > most_bytes {
        return Err(too_long());
    }
    let text = String::from_utf8(bytes).map_err(|_| wrong(&"is not UTF-8 text"))?;
    if text.chars().count() > most {
        return Err(too_long());
    }
    Ok(text)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_code_is_refused_before_it_is_sent() {
        let dir = tempfile::tempdir().unwrap();
        let check = |content: &[u8], expected: Result<usize, &str>| {
            let file = dir.path().join("main.py");
            std::fs::write(&file, content).unwrap();
            match (read_text(&file, 10), expected) {
                (Ok(text), Ok(length)) => assert_eq!(text.chars().count(), length),
                (Err(CliError::Usage(message)), Err(part)) => {
                    assert!(message.contains(part), "{message}");
                }
                (got, expected) => panic!("{got:?}, not {expected:?}"),
            }
        };
        check(b"0123456789", Ok(10));
        check("ääääääääää".as_bytes(), Ok(10));
        check(b"0123456789x", Err("longer than 10 characters"));
        check(&[b'x'; 100_000], Err("longer than 10 characters"));
        check(b"\xff\xfe", Err("not UTF-8"));
        let endless = read_text(Path::new("/dev/zero"), 10);
        assert!(matches!(endless, Err(CliError::Usage(_))), "{endless:?}");
    }
}
