//! `coracle fn invoke`

use std::{
    io::{IsTerminal, Read},
    path::PathBuf,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use clap::Args;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Map, Value, json};

use crate::{
    api::{Api, collect, refuse_errors},
    commands::function_path,
    error::CliError,
    output::{Output, write_bytes},
};

/// On answers that the platform made; functions cannot set it.
const PLATFORM_ERROR: &str = "x-coracle-error";

#[derive(Debug, Args)]
pub(crate) struct Invoke {
    name: String,
    /// Path and query behind the function, such as /items?page=2
    #[arg(long, default_value = "")]
    path: String,
    /// HTTP method [default: GET without a body, POST with one]
    #[arg(short, long)]
    method: Option<String>,
    // Not `--data`: that is the data directory, for every client command.
    /// Body
    #[arg(short = 'd', long)]
    body: Option<String>,
    /// Body from a file; `-` is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "body")]
    body_file: Option<PathBuf>,
    /// Header, `Name: value`; may be repeated
    #[arg(short = 'H', long = "header")]
    headers: Vec<String>,
    /// Print status and headers to standard error
    #[arg(short, long)]
    include: bool,
    /// The answer's body as it is, or the whole answer: status, headers, body
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// Exit with 7 when the answer is 400 or above
    #[arg(long)]
    fail: bool,
}

impl Invoke {
    pub(crate) async fn run(self, api: &Api, namespace: &str) -> Result<(), CliError> {
        let body = self.read_body()?;
        let method = self
            .method
            .as_deref()
            .unwrap_or(if body.is_empty() { "GET" } else { "POST" })
            .to_ascii_uppercase();
        let mut request = Request::builder().method(method.as_str());
        for header in &self.headers {
            let (name, value) = header.split_once(':').ok_or_else(|| {
                CliError::Usage(format!(
                    "--header {header:?} is not of the form Name: value"
                ))
            })?;
            request = request.header(name.trim(), value.trim());
        }
        let path = format!(
            "{}/invoke{}{}",
            api.in_project(&function_path(namespace, &self.name)),
            if self.path.is_empty() || self.path.starts_with(['/', '?']) {
                ""
            } else {
                "/"
            },
            self.path
        );
        let response = api.send(request, &path, body).await?;
        if response.headers().contains_key(PLATFORM_ERROR) {
            // The function was not reached, or gave no answer of its own.
            refuse_errors(response).await?;
            return Err(CliError::Failed("the call failed".to_owned()));
        }
        let status = response.status();
        if self.include {
            eprintln!("{:?} {status}", response.version());
            for (name, value) in response.headers() {
                eprintln!("{name}: {}", String::from_utf8_lossy(value.as_bytes()));
            }
        }
        if self.output == Output::Table {
            let mut body = response.into_body();
            while let Some(frame) = body.frame().await {
                let frame =
                    frame.map_err(|error| CliError::failed("the answer broke off", error))?;
                if let Some(data) = frame.data_ref() {
                    write_bytes(data);
                }
            }
            if std::io::stdout().is_terminal() {
                outln!();
            }
        } else {
            self.output.print(&whole(response).await?, |_| ())?;
        }
        if status.is_client_error() || status.is_server_error() {
            eprintln!("coracle: the function answered {status}");
            if self.fail {
                return Err(CliError::FunctionFailed(status.as_u16()));
            }
        }
        Ok(())
    }

    fn read_body(&self) -> Result<Bytes, CliError> {
        if let Some(body) = &self.body {
            return Ok(Bytes::from(body.clone()));
        }
        let Some(file) = &self.body_file else {
            return Ok(Bytes::new());
        };
        if file.as_os_str() != "-" {
            return std::fs::read(file)
                .map(Bytes::from)
                .map_err(|error| CliError::Usage(format!("{}: {error}", file.display())));
        }
        let mut stdin = std::io::stdin();
        if stdin.is_terminal() {
            eprintln!("reading the body from the terminal; end it with Ctrl-D");
        }
        let mut body = Vec::new();
        stdin
            .read_to_end(&mut body)
            .map_err(|error| CliError::failed("cannot read standard input", error))?;
        Ok(body.into())
    }
}

/// A body that is text as such, and another one in base64.
async fn whole(response: Response<Incoming>) -> Result<Value, CliError> {
    let status = response.status().as_u16();
    let mut headers = Map::new();
    for (name, value) in response.headers() {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        match headers.get_mut(name.as_str()) {
            Some(Value::String(before)) => *before = format!("{before}, {value}"),
            _ => drop(headers.insert(name.to_string(), value.into())),
        }
    }
    let bytes = collect(response).await?;
    let mut answer = json!({"status": status, "headers": headers});
    match std::str::from_utf8(&bytes) {
        Ok(text) => answer["body"] = text.into(),
        Err(_) => answer["body_base64"] = STANDARD.encode(&bytes).into(),
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use axum::{Router, http::StatusCode, routing::get};

    use super::*;

    async fn call(name: &str) -> Result<(), CliError> {
        let problem = r#"{"detail": "function none does not exist"}"#;
        let functions = "/api/v1/projects/default/namespaces/n/functions";
        let router = Router::new()
            .route(
                &format!("{functions}/none/invoke"),
                get((
                    StatusCode::NOT_FOUND,
                    [(PLATFORM_ERROR, "not_found")],
                    problem,
                )),
            )
            .route(
                &format!("{functions}/own/invoke"),
                get((StatusCode::NOT_FOUND, "no such page")),
            );
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let api = Api::at(listener.local_addr().unwrap());
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        let invoke = Invoke {
            name: name.to_owned(),
            path: String::new(),
            method: None,
            body: None,
            body_file: None,
            headers: Vec::new(),
            include: false,
            output: Output::Table,
            fail: false,
        };
        let outcome = invoke.run(&api, "n").await;
        server.abort();
        outcome
    }

    #[tokio::test]
    async fn the_platforms_refusal_fails_and_the_functions_own_404_is_an_answer() {
        assert!(matches!(
            call("none").await,
            Err(CliError::NotFound(message)) if message == "function none does not exist"
        ));
        assert!(call("own").await.is_ok());
    }
}
