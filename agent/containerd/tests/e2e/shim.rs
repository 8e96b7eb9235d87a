//! A shim for tests that speaks the frames of runtimes/CONTRACT.md and does what the target of an
//! invocation says. Compiled by the harness into a static program, so that the image it runs in
//! can be empty.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    sync::{Mutex, OnceLock},
    time::Duration,
};

static CLAIM: OnceLock<String> = OnceLock::new();
static CLAIMING: Mutex<()> = Mutex::new(());

fn main() {
    // With arguments it is a program for build jobs instead: a verb and its argument.
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if let [verb, rest @ ..] = arguments.as_slice() {
        println!("{}", act("job", verb, rest.first().map_or("", String::as_str)));
        return;
    }
    let listener = UnixListener::bind("/run/fn/fn.sock").expect("the socket's directory is ours");
    println!("the stem listens");
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || serve(stream));
    }
}

fn serve(mut stream: UnixStream) {
    loop {
        let mut header = [0; 8];
        if stream.read_exact(&mut header).is_err() {
            return;
        }
        let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload).expect("the payload follows");
        match header[4] {
            0x11 => send(&mut stream, 0x92, 0, b""),
            0x10 => claim(&mut stream, payload),
            0x01 => {
                let body = invoke(&payload);
                send(&mut stream, 0x81, 0, &200_u16.to_le_bytes());
                send(&mut stream, 0x82, 1, body.as_bytes());
            }
            _ => return,
        }
    }
}

fn claim(stream: &mut UnixStream, payload: Vec<u8>) {
    let _one = CLAIMING.lock().expect("no panic while claiming");
    let text = String::from_utf8(payload).expect("JSON is UTF-8");
    let entry = between(&text, "\"entry\":\"", "\"").to_owned();
    if CLAIM.set(text).is_err() {
        return send(stream, 0x91, 0, br#"{"type":"Twice","message":"already claimed"}"#);
    }
    match entry.as_str() {
        "fails" => send(stream, 0x91, 0, br#"{"type":"ImportError","message":"no module x"}"#),
        "hangs" => std::thread::sleep(Duration::from_secs(3600)),
        "exits" => std::process::exit(3),
        _ => send(stream, 0x90, 0, br#"{"init_us":1}"#),
    }
}

/// Does what the invocation's target asks for: `/verb:argument`.
fn invoke(payload: &[u8]) -> String {
    let text = String::from_utf8_lossy(&payload[4..]);
    let parts: Vec<_> = text.split('\0').collect();
    let (request, target) = (parts[0], parts[2].trim_start_matches('/'));
    let (verb, rest) = target.split_once(':').unwrap_or((target, ""));
    act(request, verb, rest)
}

fn act(request: &str, verb: &str, rest: &str) -> String {
    let told = |result: std::io::Result<()>| match result {
        Ok(()) => "done".to_owned(),
        Err(error) => format!("{:?} {error}", error.kind()),
    };
    match verb {
        "claim" => CLAIM.get().cloned().unwrap_or_default(),
        "read" => fs::read_to_string(rest).unwrap_or_else(|error| format!("error: {error}")),
        "list" => {
            let entries = fs::read_dir(rest).into_iter().flatten().flatten();
            let mut names: Vec<_> =
                entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
            names.sort();
            names.join(" ")
        }
        "write" => told(fs::write(rest, "x")),
        "fill" => {
            let (path, mib) = rest.split_once(',').expect("path,MiB");
            let written = fs::File::create(path).and_then(|mut file| {
                let piece = vec![1; 1 << 20];
                (0..mib.parse::<usize>().expect("MiB")).try_for_each(|_| file.write_all(&piece))
            });
            told(written)
        }
        "print" => {
            println!("\x01{request}\x02{rest}");
            eprintln!("\x01{request}\x02to stderr");
            "printed".to_owned()
        }
        "flood" => {
            for number in 0..rest.parse::<u32>().expect("a number") {
                println!("\x01{request}\x02line {number}");
            }
            "flooded".to_owned()
        }
        "eat" => {
            let mut eaten = Vec::new();
            for _ in 0..rest.parse::<usize>().expect("MiB") {
                eaten.push(std::hint::black_box(vec![1_u8; 1 << 20]));
            }
            eaten.len().to_string()
        }
        "connect" => {
            let address: SocketAddr = rest.parse().expect("an address");
            told(TcpStream::connect_timeout(&address, Duration::from_secs(2)).map(drop))
        }
        "fork" => {
            let mut children = Vec::new();
            loop {
                match std::thread::Builder::new().stack_size(16384).spawn(std::thread::park) {
                    Ok(child) => children.push(child),
                    Err(error) => return format!("{} then {error}", children.len()),
                }
            }
        }
        "hang" => loop {
            std::thread::park();
        },
        "exit" => std::process::exit(rest.parse().expect("a code")),
        "run" => {
            let mut words = rest.split(' ');
            let output = std::process::Command::new(words.next().expect("a program"))
                .args(words)
                .output();
            output.map_or_else(|e| format!("error: {e}"), |o| format!("{:?}", o.status.code()))
        }
        "syscalls" => syscalls(),
        _ => format!("unknown: {verb}"),
    }
}

/// Tries what no function may do; the error numbers.
fn syscalls() -> String {
    unsafe extern "C" {
        fn syscall(number: i64, ...) -> i64;
        fn __errno_location() -> *mut i32;
    }
    let calls: [(&str, i64, [u64; 3]); 7] = [
        ("unshare", 272, [0x1000_0000, 0, 0]),
        ("mount", 165, [0, 0, 0]),
        ("umount2", 166, [c"/fn/code".as_ptr() as u64, 2, 0]),
        ("open_tree", 428, [0, 0, 0]),
        ("keyctl", 250, [0, 0, 0]),
        ("bpf", 321, [0, 0, 0]),
        ("io_uring_setup", 425, [1, 0, 0]),
    ];
    calls
        .iter()
        .map(|(name, number, [a, b, c])| {
            // SAFETY: each of these is refused before an argument is looked at.
            let result = unsafe { syscall(*number, *a, *b, *c) };
            // SAFETY: always valid.
            let errno = if result < 0 { unsafe { *__errno_location() } } else { 0 };
            format!("{name}={errno}")
        })
        .collect::<Vec<_>>()
        .join(" ")
}

fn send(stream: &mut UnixStream, kind: u8, flags: u8, payload: &[u8]) {
    let mut bytes = u32::try_from(payload.len()).expect("small").to_le_bytes().to_vec();
    bytes.extend([kind, flags, 0, 0]);
    bytes.extend(payload);
    // The other side may have gone.
    let _ = stream.write_all(&bytes);
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> &'a str {
    let Some((_, rest)) = text.split_once(start) else { return "" };
    rest.split(end).next().unwrap_or_default()
}
