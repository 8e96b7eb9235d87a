//! Snapshots to one member, each on a connection of its own, so that they delay no heartbeat.

use std::time::Duration;

use bytes::Bytes;
use coracle_proto::v1::{self, snapshot_frame::Body};
use futures_util::stream;
use sha2::{Digest as _, Sha256};
use tokio::{sync::mpsc, time::timeout};

use super::{PIECE_BYTES, lane::Line};
use crate::metrics;

/// For a snapshot of a gigabyte over a slow line.
const PATIENCE: Duration = Duration::from_secs(10 * 60);

pub(super) async fn run(line: Line, mut queue: mpsc::Receiver<Bytes>) {
    let shutdown = line.shutdown.clone();
    let work = async {
        while let Some(snapshot) = queue.recv().await {
            let bytes = snapshot.len();
            let outcome = send(&line, snapshot).await;
            match &outcome {
                Ok(()) => tracing::info!(to = line.to, bytes, "snapshot sent"),
                Err(reason) => tracing::warn!(to = line.to, bytes, reason, "snapshot not sent"),
            }
            metrics::snapshot_sent(outcome.is_ok());
            line.replica.report_snapshot(line.to, outcome.is_ok()).await;
        }
    };
    tokio::select! {
        () = shutdown.requested() => {}
        () = work => {}
    }
}

async fn send(line: &Line, snapshot: Bytes) -> Result<(), String> {
    let mut client = line.client().ok_or("its address is not known")?;
    let hello = v1::SnapshotHello {
        hello: Some(line.hello()),
        bytes: snapshot.len() as u64,
        digest: Sha256::digest(&snapshot).to_vec().into(),
    };
    let hello = v1::SnapshotFrame {
        body: Some(Body::Hello(hello)),
    };
    let frames = stream::unfold((Some(hello), snapshot), |(hello, mut rest)| async move {
        if let Some(hello) = hello {
            return Some((hello, (None, rest)));
        }
        if rest.is_empty() {
            return None;
        }
        let piece = rest.split_to(PIECE_BYTES.min(rest.len()));
        let frame = v1::SnapshotFrame {
            body: Some(Body::Data(piece)),
        };
        Some((frame, (None, rest)))
    });
    match timeout(PATIENCE, client.snapshot(frames)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(status)) => Err(status.to_string()),
        Err(_) => Err("it took too long".to_owned()),
    }
}
