//! A function's log lines, gathered from the nodes that have some.

use std::time::Duration;

use coracle_facades::port::{LogStream, PortError};
use coracle_model::LogLine;
use coracle_proto::{ConvertError, v1};
use futures_util::{StreamExt, stream};
use tokio::time::{Instant, timeout_at};
use tonic::Streaming;

/// How long a following reader waits for every node's past before it shows what it has.
const GATHER: Duration = Duration::from_millis(250);

type NodeStream = Streaming<v1::LogBatch>;

fn lines(batch: v1::LogBatch) -> Result<Vec<LogLine>, PortError> {
    let convert = |line: v1::LogLine| {
        LogLine::try_from(line).map_err(|e: ConvertError| PortError::Internal(e.to_string()))
    };
    batch.lines.into_iter().map(convert).collect()
}

fn broken(status: &tonic::Status) -> PortError {
    PortError::Unavailable(format!("a node's log broke off: {}", status.message()))
}

/// The past, merged by time and cut to the newest `tail` lines; then nothing.
pub(crate) async fn past(streams: Vec<NodeStream>, tail: usize) -> Result<LogStream, PortError> {
    let mut all = Vec::new();
    for mut stream in streams {
        loop {
            match stream.message().await {
                Ok(Some(batch)) => all.extend(lines(batch)?),
                Ok(None) => break,
                Err(status) => return Err(broken(&status)),
            }
        }
    }
    Ok(Box::pin(stream::iter([Ok(newest(all, tail))])))
}

fn newest(mut all: Vec<LogLine>, tail: usize) -> Vec<LogLine> {
    all.sort_by_key(|line| line.at_nanos);
    all.split_off(all.len().saturating_sub(tail))
}

/// The past of all nodes merged by time, as far as it arrives soon; then lines as they come. Two
/// nodes' lines of the same moment may then arrive in either order.
pub(crate) async fn follow(
    mut streams: Vec<NodeStream>,
    tail: usize,
) -> Result<LogStream, PortError> {
    if streams.len() == 1
        && let Some(only) = streams.pop()
    {
        return Ok(Box::pin(
            only.map(|batch| batch.map_err(|s| broken(&s)).and_then(lines)),
        ));
    }
    let mut merged = stream::select_all(streams);
    let mut first = Vec::new();
    let until = Instant::now() + GATHER;
    while let Ok(Some(batch)) = timeout_at(until, merged.next()).await {
        first.extend(lines(batch.map_err(|status| broken(&status))?)?);
    }
    let first = stream::iter([Ok(newest(first, tail.max(1)))]);
    let rest = merged.map(|batch| batch.map_err(|s| broken(&s)).and_then(lines));
    Ok(Box::pin(first.chain(rest)))
}
