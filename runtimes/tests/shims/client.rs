//! A shim as a plain process, and the other end of its socket.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use coracle_runtimes::Catalog;
use serde_json::{Value, json};

pub(crate) const INVOKE: u8 = 0x01;
pub(crate) const DATA: u8 = 0x02;
pub(crate) const CANCEL: u8 = 0x03;
pub(crate) const CLAIM: u8 = 0x10;
pub(crate) const PING: u8 = 0x11;
pub(crate) const RESPONSE: u8 = 0x81;
pub(crate) const DATA_OUT: u8 = 0x82;
pub(crate) const BUSY: u8 = 0x83;
pub(crate) const FAULT: u8 = 0x84;
pub(crate) const ACCEPT: u8 = 0x85;
pub(crate) const READY: u8 = 0x90;
pub(crate) const FAILED: u8 = 0x91;
pub(crate) const PONG: u8 = 0x92;
pub(crate) const END: u8 = 1;
pub(crate) const HOLD: u8 = 2;
pub(crate) const WANTED: u8 = 4;

/// Far beyond what any step takes; only a failing test waits for it.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Language {
    Python,
    Node,
}

impl Language {
    pub(crate) fn pick<'a>(self, python: &'a str, node: &'a str) -> &'a str {
        match self {
            Self::Python => python,
            Self::Node => node,
        }
    }

    /// Checked, so that an old Node.js is one sentence and not a puzzle.
    fn program(self) -> String {
        let variable = self.pick("CORACLE_TEST_PYTHON", "CORACLE_TEST_NODE");
        let program =
            std::env::var(variable).unwrap_or_else(|_| self.pick("python3", "node").to_owned());
        if self == Self::Node {
            let output = Command::new(&program).arg("--version").output().unwrap_or_else(|error| {
                panic!("{program} must be there for the shims' tests; {variable} may name another: {error}")
            });
            let text = String::from_utf8_lossy(&output.stdout);
            let mut numbers = text
                .trim()
                .trim_start_matches('v')
                .split('.')
                .filter_map(|n| n.parse::<u32>().ok());
            let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
            assert!(
                version >= (20, 19),
                "the shims' tests need Node.js 20.19 or later, and {program} is {text}; {variable} may name another"
            );
        }
        program
    }

    pub(crate) fn file(self) -> &'static str {
        match self {
            Self::Python => "main.py",
            Self::Node => "main.js",
        }
    }
}

pub(crate) struct Shim {
    child: Child,
    dir: tempfile::TempDir,
    output: Receiver<String>,
}

impl Shim {
    /// Starts the shim with its real command line, but for where it lies on this machine.
    pub(crate) fn start(language: Language) -> Self {
        let name = language.pick("python3.11", "nodejs20");
        let catalog = Catalog::builtin();
        let runtime = catalog
            .get(&name.parse().expect("a name"))
            .expect("built in");
        let program = language.program();
        let flags = &runtime.shim.argv[1..runtime.shim.argv.len() - 1];
        let shim = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join(name)
            .join(&runtime.shim.file);
        let dir = tempfile::tempdir().expect("a directory");
        for part in ["code", "deps"] {
            fs::create_dir(dir.path().join(part)).expect("a directory");
        }
        let mut child = Command::new(&program)
            .args(flags)
            .arg(shim)
            .env("CORACLE_SOCKET", dir.path().join("fn.sock"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("{program} must be there for the shims' tests: {error}")
            });
        let (sender, output) = channel();
        let streams: [Box<dyn Read + Send>; 2] = [
            Box::new(child.stdout.take().expect("piped")),
            Box::new(child.stderr.take().expect("piped")),
        ];
        for stream in streams {
            let sender = sender.clone();
            thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        return;
                    }
                }
            });
        }
        Self { child, dir, output }
    }

    /// Starts with `code` and claims; panics unless it gets ready.
    pub(crate) fn ready(language: Language, code: &str, claim: Claim<'_>) -> Self {
        let shim = Self::start(language);
        shim.write(&format!("code/{}", language.file()), code);
        let (kind, _, payload) = shim.claim(claim);
        assert_eq!(kind, READY, "{}", String::from_utf8_lossy(&payload));
        shim
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("below the directory")).expect("a directory");
        fs::write(path, text).expect("a file");
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    pub(crate) fn claim(&self, claim: Claim<'_>) -> Frame {
        let mut connection = self.connect();
        let body = json!({
            "function": {"project": "default", "namespace": "ns", "name": "hello",
                "id": "7d5f6d5e-0000-4000-8000-000000000000", "revision": 3},
            "instance": "7d5f6d5e-0000-4000-8000-000000000001",
            "runtime": "installed-runtime",
            "code": self.path("code"),
            "deps": if claim.deps { json!(self.path("deps")) } else { Value::Null },
            "entry": claim.entry,
            "convention": claim.convention,
            "env": claim.env,
            "memory_mib": 128,
            "timeout_secs": 60,
            "concurrency": claim.concurrency,
        });
        connection.send(CLAIM, 0, body.to_string().as_bytes());
        connection.receive()
    }

    /// Waits for the socket of a starting shim.
    pub(crate) fn connect(&self) -> Connection {
        let path = self.path("fn.sock");
        let stream = wait_for("the shim's socket", || UnixStream::connect(&path).ok());
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Connection { stream }
    }

    /// The next line of output, of either stream.
    pub(crate) fn line(&self) -> String {
        self.output
            .recv_timeout(PATIENCE)
            .expect("a line of output")
    }

    pub(crate) fn line_with(&self, text: &str) -> String {
        loop {
            let line = self.line();
            if line.contains(text) {
                return line;
            }
        }
    }

    pub(crate) fn terminate(&self) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        // SAFETY: plain system call on a child that has not been waited for.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
    }

    pub(crate) fn exit_code(mut self) -> Option<i32> {
        wait_for("the shim's end", || self.child.try_wait().expect("a child")).code()
    }

    /// All remaining lines, after the end of the process.
    pub(crate) fn rest(&self) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            match self.output.recv_timeout(PATIENCE) {
                Ok(line) => lines.push(line),
                Err(RecvTimeoutError::Disconnected) => return lines,
                Err(RecvTimeoutError::Timeout) => panic!("the output does not end: {lines:?}"),
            }
        }
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[derive(Clone)]
pub(crate) struct Claim<'a> {
    pub(crate) entry: &'a str,
    pub(crate) convention: &'a str,
    pub(crate) concurrency: u32,
    pub(crate) deps: bool,
    pub(crate) env: Value,
}

impl<'a> Claim<'a> {
    pub(crate) fn of(convention: &'a str) -> Self {
        Self {
            entry: "main",
            convention,
            concurrency: 1,
            deps: false,
            env: json!({}),
        }
    }
}

pub(crate) type Frame = (u8, u8, Vec<u8>);

pub(crate) struct Connection {
    stream: UnixStream,
}

pub(crate) fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = u32::try_from(payload.len())
        .expect("small")
        .to_le_bytes()
        .to_vec();
    out.extend([kind, flags, 0, 0]);
    out.extend(payload);
    out
}

/// `INVOKE` with request id `id` and headers as `(name, value)`.
pub(crate) fn invoke(
    flags: u8,
    id: &str,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
) -> Vec<u8> {
    let mut parts = vec![id, method, target];
    parts.extend(headers.iter().flat_map(|(name, value)| [*name, *value]));
    let mut payload = 5_000_u32.to_le_bytes().to_vec();
    payload.extend(parts.join("\0").as_bytes());
    frame(INVOKE, flags, &payload)
}

impl Connection {
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the shim reads");
    }

    pub(crate) fn send(&mut self, kind: u8, flags: u8, payload: &[u8]) {
        self.raw(&frame(kind, flags, payload));
    }

    pub(crate) fn receive(&mut self) -> Frame {
        self.try_receive().expect("a frame from the shim")
    }

    pub(crate) fn try_receive(&mut self) -> std::io::Result<Frame> {
        let mut head = [0; 8];
        self.stream.read_exact(&mut head)?;
        let length = u32::from_le_bytes(head[..4].try_into().expect("four bytes"));
        let mut payload = vec![0; usize::try_from(length).expect("fits")];
        self.stream.read_exact(&mut payload)?;
        Ok((head[4], head[5], payload))
    }

    pub(crate) fn expect(&mut self, kind: u8) -> Vec<u8> {
        let (found, _, payload) = self.receive();
        assert_eq!(found, kind, "{}", String::from_utf8_lossy(&payload));
        payload
    }

    /// Whether the shim closed the connection.
    pub(crate) fn closed(&mut self) -> bool {
        self.try_receive().is_err_and(|error| {
            !matches!(
                error.kind(),
                std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
            )
        })
    }

    /// One whole exchange.
    pub(crate) fn call(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        let mut bytes = invoke(u8::from(body.is_empty()), "req-1", method, target, headers);
        if !body.is_empty() {
            bytes.extend(frame(DATA, END, body));
        }
        self.raw(&bytes);
        self.answer()
    }

    pub(crate) fn answer(&mut self) -> Answer {
        let (kind, flags, payload) = self.receive();
        if kind == FAULT {
            return Answer::Fault(serde_json::from_slice(&payload).expect("JSON"));
        }
        assert_eq!(kind, RESPONSE);
        let status = u16::from_le_bytes([payload[0], payload[1]]);
        let text: String = payload[2..].iter().map(|byte| char::from(*byte)).collect();
        let mut fields = text.split('\0');
        let mut headers = Vec::new();
        while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
            headers.push((name.to_owned(), value.to_owned()));
        }
        let mut body = Vec::new();
        let mut ended = flags & END != 0;
        while !ended {
            let (kind, flags, piece) = self.receive();
            if kind == FAULT {
                return Answer::Cut { body };
            }
            assert_eq!(kind, DATA_OUT);
            body.extend(piece);
            ended = flags & END != 0;
        }
        Answer::Response {
            status,
            headers,
            body,
        }
    }
}

#[derive(Debug, PartialEq)]
pub(crate) enum Answer {
    Response {
        status: u16,
        headers: Vec<(String, String)>,
        body: Vec<u8>,
    },
    Fault(Value),
    /// A fault after the head had left.
    Cut {
        body: Vec<u8>,
    },
}

impl Answer {
    pub(crate) fn status(&self) -> u16 {
        match self {
            Self::Response { status, .. } => *status,
            other => panic!("no response: {other:?}"),
        }
    }

    pub(crate) fn header(&self, wanted: &str) -> Vec<&str> {
        match self {
            Self::Response { headers, .. } => headers
                .iter()
                .filter(|(name, _)| name == wanted)
                .map(|(_, value)| value.as_str())
                .collect(),
            other => panic!("no response: {other:?}"),
        }
    }

    pub(crate) fn text(&self) -> String {
        match self {
            Self::Response { body, .. } => String::from_utf8(body.clone()).expect("UTF-8"),
            other => panic!("no response: {other:?}"),
        }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text()).expect("JSON")
    }

    pub(crate) fn fault(&self) -> &Value {
        match self {
            Self::Fault(value) => value,
            other => panic!("no fault: {other:?}"),
        }
    }
}

/// Tries until there is a value; other processes decide when, so there is nothing to be woken by.
pub(crate) fn wait_for<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let step = Duration::from_millis(2);
    for _ in 0..PATIENCE.as_millis() / step.as_millis() {
        if let Some(found) = attempt() {
            return found;
        }
        thread::park_timeout(step);
    }
    panic!("waited in vain for {what}");
}
