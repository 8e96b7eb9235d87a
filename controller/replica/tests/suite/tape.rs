//! A state machine that keeps every command, and what tests need around it.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use coracle_replica::{
    Command, Config, LogStore, Machine, MachineError, NoPeers, Replica, StartError,
};
use tokio::time::Instant;

/// What readers see: published after each batch.
pub(crate) type View = Arc<Mutex<Vec<Vec<u8>>>>;

#[derive(Default)]
pub(crate) struct Tape {
    commands: Vec<Vec<u8>>,
    view: View,
}

impl Tape {
    pub(crate) fn new() -> (Self, View) {
        let view = View::default();
        (
            Self {
                commands: Vec::new(),
                view: view.clone(),
            },
            view,
        )
    }
}

/// The command that no version knows.
pub(crate) const UNKNOWN: &[u8] = b"from the future";

impl Machine for Tape {
    /// How many commands there are with this one.
    type Response = usize;

    fn apply(&mut self, command: Command<'_>) -> Result<usize, MachineError> {
        if command.bytes == UNKNOWN {
            return Err("unknown command".into());
        }
        self.commands.push(command.bytes.to_vec());
        Ok(self.commands.len())
    }

    fn batch_applied(&mut self, _: u64) {
        let mut view = self.view.lock().unwrap();
        let known = view.len().min(self.commands.len());
        view.truncate(known);
        view.extend(self.commands[known..].iter().cloned());
    }

    fn snapshot(&self) -> Vec<u8> {
        let lines: Vec<_> = self.commands.iter().map(|bytes| hex(bytes)).collect();
        lines.join("\n").into_bytes()
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), MachineError> {
        let text = std::str::from_utf8(snapshot)?;
        self.commands = text.lines().map(unhex).collect::<Result<_, _>>()?;
        self.view.lock().unwrap().clear();
        Ok(())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Result<Vec<u8>, MachineError> {
    let pair = |at| u8::from_str_radix(text.get(at..at + 2).ok_or("odd")?, 16).map_err(Into::into);
    (0..text.len()).step_by(2).map(pair).collect()
}

pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// A group of one over `log`, waited for until it leads.
pub(crate) async fn alone<S: LogStore>(
    config: Config,
    log: S,
) -> Result<(Replica<usize>, View), StartError> {
    let (tape, view) = Tape::new();
    let observer = Box::new(|_: coracle_replica::Applied<'_, usize>| {});
    let replica = Replica::start(config, log, tape, Box::new(NoPeers), observer).await?;
    let mut status = replica.status();
    let leads = status.wait_for(|status| status.leading().is_some());
    tokio::time::timeout_at(soon(), leads)
        .await
        .unwrap()
        .unwrap();
    Ok((replica, view))
}
