//! Tools of the host, with their output as progress.

use std::{collections::VecDeque, process::Stdio};

use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::Command,
    sync::mpsc,
};

use super::{ImageError, Progress};

/// Lines of the end of the output that an error carries.
const KEPT_LINES: usize = 5;

/// Runs to the end; each line of both streams is a line of progress.
pub(super) async fn run(mut command: Command, say: &Progress<'_>) -> Result<(), ImageError> {
    let program = command
        .as_std()
        .get_program()
        .to_string_lossy()
        .into_owned();
    let mut child = command
        .env("LC_ALL", "C.UTF-8")
        // `chroot` and what mmdebstrap calls lie in directories that some shells leave out.
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| ImageError::Start {
            program: program.clone(),
            source,
        })?;
    let (sender, mut lines) = mpsc::channel(64);
    let readers = [
        child
            .stdout
            .take()
            .map(|out| tokio::spawn(forward(out, sender.clone()))),
        child
            .stderr
            .take()
            .map(|err| tokio::spawn(forward(err, sender))),
    ];
    let mut kept = VecDeque::new();
    while let Some(line) = lines.recv().await {
        say.line(&line).await;
        kept.push_back(line);
        if kept.len() > KEPT_LINES {
            kept.pop_front();
        }
    }
    for reader in readers.into_iter().flatten() {
        // They end with the streams; a panic there would have no output to lose.
        let _ = reader.await;
    }
    let status = child.wait().await.map_err(|source| ImageError::Io {
        action: format!("wait for {program}"),
        source,
    })?;
    if status.success() {
        return Ok(());
    }
    let said = Vec::from(kept).join(" | ");
    Err(ImageError::Command {
        program,
        status: status.to_string(),
        said,
    })
}

async fn forward(stream: impl AsyncRead + Unpin, to: mpsc::Sender<String>) {
    let mut lines = BufReader::new(stream).split(b'\n');
    while let Ok(Some(line)) = lines.next_segment().await {
        if to
            .send(String::from_utf8_lossy(&line).into_owned())
            .await
            .is_err()
        {
            return;
        }
    }
}
