//! `coracle fn logs`

use bytes::{Bytes, BytesMut};
use clap::Args;
use http::{Method, Request};
use http_body_util::BodyExt;
use serde_json::Value;

use crate::{
    api::{Api, escape, refuse_errors},
    commands::function_path,
    error::CliError,
    output::{Output, text},
};

#[derive(Debug, Args)]
pub(crate) struct Logs {
    name: String,
    /// Go on with new lines as they appear
    #[arg(short, long)]
    follow: bool,
    /// How many past lines
    #[arg(long, visible_alias = "lines", default_value_t = 100)]
    tail: u32,
    /// Only the lines of one request
    #[arg(long)]
    request_id: Option<String>,
    /// Only lines after this time, such as 2026-11-22T10:00:00Z
    #[arg(long)]
    since: Option<String>,
    /// Lines as text, as one JSON object each, or as a YAML document each
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// The same as `-o json`
    #[arg(long, hide = true, conflicts_with = "output")]
    json: bool,
}

impl Logs {
    pub(crate) async fn run(self, api: &Api, namespace: &str) -> Result<(), CliError> {
        let mut path = format!(
            "{}/logs?tail={}",
            function_path(namespace, &self.name),
            self.tail
        );
        if let Some(id) = &self.request_id {
            path.push_str(&format!("&request_id={}", escape(id)));
        }
        if let Some(since) = &self.since {
            path.push_str(&format!("&since={}", escape(since)));
        }
        let path = api.in_project(&path);
        if !self.follow {
            let answer = api.get(&path).await?;
            for line in answer
                .get("lines")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
            {
                self.print(line)?;
            }
            return Ok(());
        }
        let request = Request::builder()
            .method(Method::GET)
            .header("accept", "text/event-stream");
        let path = format!("{path}&follow=true");
        let response = refuse_errors(api.send(request, &path, Bytes::new()).await?).await?;
        let mut body = response.into_body();
        let mut pending = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| CliError::failed("the log broke off", error))?;
            if let Some(data) = frame.data_ref() {
                pending.extend_from_slice(data);
                while let Some(event) = next_line(&mut pending) {
                    if let Some(line) = event_data(&event) {
                        self.print(&line)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn print(&self, line: &Value) -> Result<(), CliError> {
        let output = if self.json { Output::Json } else { self.output };
        output.item(line, |line| {
            let instance = text(line, "/instance");
            outln!(
                "{} {:8} {:8} {}",
                text(line, "/time"),
                instance.get(..8).unwrap_or(&instance),
                text(line, "/stream"),
                line.get("message")
                    .and_then(Value::as_str)
                    .unwrap_or_default()
            );
        })
    }
}

fn next_line(pending: &mut BytesMut) -> Option<Bytes> {
    let end = pending.iter().position(|b| *b == b'\n')?;
    Some(pending.split_to(end + 1).freeze())
}

/// The JSON of an event's `data:` line; other lines (comments, blank) are nothing.
fn event_data(line: &[u8]) -> Option<Value> {
    serde_json::from_slice(line.strip_prefix(b"data:")?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_out_whole_however_they_are_cut() {
        let mut pending = BytesMut::from(&b": hello\n\ndata: {\"a\""[..]);
        let mut seen = Vec::new();
        while let Some(line) = next_line(&mut pending) {
            seen.extend(event_data(&line));
        }
        assert!(seen.is_empty());
        pending.extend_from_slice(b":1}\n\n");
        let line = next_line(&mut pending).unwrap();
        assert_eq!(event_data(&line).unwrap()["a"], 1);
    }
}
