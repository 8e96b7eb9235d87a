//! Stem, claim, slots, end.

use serde_json::{Value, json};

use crate::{
    client::{
        ACCEPT, BUSY, CANCEL, CLAIM, Claim, Connection, DATA, END, FAILED, HOLD, INVOKE, Language,
        PING, PONG, READY, Shim, WANTED, frame, invoke,
    },
    for_both,
};

fn echo(language: Language) -> &'static str {
    language.pick(
        "def main(request):\n    return request.body\n",
        "exports.main = (request) => request.body;",
    )
}

fn a_stem_answers_pings_and_has_no_slots(language: Language) {
    let shim = Shim::start(language);
    let mut connection = shim.connect();
    connection.send(PING, 0, b"");
    connection.expect(PONG);
    connection.raw(&invoke(END, "r", "GET", "/", &[]));
    connection.expect(BUSY);
    shim.terminate();
    assert_eq!(shim.exit_code(), Some(0));
}

fn one_function_for_life(language: Language) {
    let shim = Shim::ready(language, echo(language), Claim::of("http"));
    let (kind, _, payload) = shim.claim(Claim::of("http"));
    assert_eq!(kind, FAILED);
    let said: Value = serde_json::from_slice(&payload).unwrap();
    assert_eq!(said["type"], "AlreadyClaimed");
    assert_eq!(
        shim.connect().call("POST", "/", &[], b"still there").text(),
        "still there"
    );
}

fn code_that_cannot_be_loaded_says_why(language: Language) {
    let cases = [
        (
            language.pick("import no_such_module\n", "require('no-such-module');"),
            "main",
            language.pick("ModuleNotFoundError", "Error"),
            language.pick("no_such_module", "no-such-module"),
        ),
        (
            language.pick("x = 1\ndef (\n", "let x = 1;\nlet = = 2;\n"),
            "main",
            "SyntaxError",
            "line 2",
        ),
        (
            language.pick(
                "raise OSError('at import')\n",
                "throw new Error('at import');",
            ),
            "main",
            language.pick("OSError", "Error"),
            "at import",
        ),
        (
            language.pick("def other():\n    pass\n", "exports.other = () => {};"),
            "main",
            "LoadError",
            "other",
        ),
        (
            language.pick("main = 3\n", "exports.main = 3;"),
            "main",
            "LoadError",
            "is no function",
        ),
        (
            echo(language),
            "elsewhere.main",
            "LoadError",
            language.file(),
        ),
    ];
    for (code, entry, kind, part) in cases {
        let shim = Shim::start(language);
        shim.write(&format!("code/{}", language.file()), code);
        let (found, _, payload) = shim.claim(Claim {
            entry,
            ..Claim::of("http")
        });
        assert_eq!(found, FAILED, "{code}");
        let said: Value = serde_json::from_slice(&payload).unwrap();
        let message = said["message"].as_str().unwrap();
        assert_eq!(said["type"], kind, "{said}");
        assert!(message.contains(part), "{message:?} lacks {part:?}");
        let mut connection = shim.connect();
        connection.raw(&invoke(END, "r", "GET", "/", &[]));
        connection.expect(BUSY);
        shim.terminate();
        assert_eq!(shim.exit_code(), Some(0));
    }
}

fn environment_modules_and_dependencies_are_there(language: Language) {
    let shim = Shim::start(language);
    // Named like modules that the shim itself uses.
    let (file, code) = language.pick_pair(
        ("code/json.py", "import os, dependency\ndef handle():\n    return [os.environ['A'], os.environ['CORACLE_FUNCTION'], os.environ['OMP_NUM_THREADS'], dependency.VALUE]\n"),
        ("code/net.js", "exports.handle = () => [process.env.A, process.env.CORACLE_FUNCTION, process.env.OMP_NUM_THREADS, require('dependency')];"),
    );
    shim.write(file, code);
    let (file, code) = language.pick_pair(
        ("deps/dependency.py", "VALUE = 'dep'\n"),
        (
            "deps/node_modules/dependency/index.js",
            "module.exports = 'dep';",
        ),
    );
    shim.write(file, code);
    let (kind, _, payload) = shim.claim(Claim {
        entry: language.pick("json.handle", "net.handle"),
        deps: true,
        env: json!({"A": "ä ="}),
        ..Claim::of("http")
    });
    assert_eq!(kind, READY, "{}", String::from_utf8_lossy(&payload));
    let ready: Value = serde_json::from_slice(&payload).unwrap();
    assert!(
        ready["init_us"].as_u64().is_some_and(|micros| micros > 0),
        "{ready}"
    );
    let answer = shim.connect().call("GET", "/", &[], b"");
    assert_eq!(answer.json(), json!(["ä =", "hello", "1", "dep"]));
}

fn modules_of_the_newer_kind(language: Language) {
    let code = language.pick(
        "import asyncio\nasync def main(request):\n    await asyncio.sleep(0)\n    return 'async'\n",
        "import fs from 'node:fs';\nexport const main = async () => { await null; return typeof fs.readFileSync === 'function' ? 'async' : 'no'; };\n",
    );
    let shim = Shim::ready(language, code, Claim::of("http"));
    let mut connection = shim.connect();
    for _ in 0..3 {
        assert_eq!(connection.call("GET", "/", &[], b"").text(), "async");
    }
}

fn slots_are_counted_over_connections(language: Language) {
    for concurrency in [1, 3] {
        let claim = Claim {
            concurrency,
            ..Claim::of("http")
        };
        let shim = Shim::ready(language, echo(language), claim);
        // Calls whose body does not end keep their slots.
        let mut held: Vec<_> = (0..concurrency).map(|_| shim.connect()).collect();
        for connection in &mut held {
            connection.raw(&invoke(HOLD, "held", "POST", "/", &[]));
            connection.expect(ACCEPT);
        }
        let mut other = shim.connect();
        other.raw(&invoke(HOLD, "refused", "POST", "/", &[]));
        other.expect(BUSY);
        // Without HOLD the body is under way already, and is skipped.
        let mut bytes = invoke(0, "refused", "POST", "/", &[]);
        bytes.extend(frame(DATA, 0, b"some"));
        bytes.extend(frame(DATA, END, b"thing"));
        bytes.extend(frame(PING, 0, b""));
        other.raw(&bytes);
        other.expect(BUSY);
        other.expect(PONG);
        for connection in &mut held {
            connection.send(DATA, 0, b"a");
            connection.send(DATA, END, b"b");
            assert_eq!(connection.answer().text(), "ab");
            // Whoever read the answer finds the slot free.
            assert_eq!(other.call("POST", "/", &[], b"next").text(), "next");
        }
        // That somebody was turned away is said once, with the end of the next answer.
        for connection in &mut held {
            connection.raw(&invoke(HOLD, "held", "POST", "/", &[]));
            connection.expect(ACCEPT);
        }
        other.raw(&invoke(END, "refused", "GET", "/", &[]));
        other.expect(BUSY);
        let mut wanted = Vec::new();
        for connection in &mut held {
            connection.send(DATA, END, b"x");
            wanted.push(last_flags(connection) & WANTED != 0);
        }
        other.raw(&invoke(END, "served", "GET", "/", &[]));
        wanted.push(last_flags(&mut other) & WANTED != 0);
        assert!(wanted[0], "{wanted:?}");
        assert!(wanted[1..].iter().all(|wanted| !wanted), "{wanted:?}");
    }
}

fn last_flags(connection: &mut Connection) -> u8 {
    loop {
        let (_, flags, _) = connection.receive();
        if flags & END != 0 {
            return flags;
        }
    }
}

fn concurrent_async_handlers_run_side_by_side(language: Language) {
    let code = language.pick(
        "import asyncio\nwaiting = []\nasync def main(request):\n    if request.path == '/wait':\n        future = asyncio.get_running_loop().create_future()\n        waiting.append(future)\n        return await future\n    while not waiting:\n        await asyncio.sleep(0)\n    waiting.pop().set_result('released')\n    return 'done'\n",
        "const waiting = [];\nexports.main = async (request) => { if (request.path === '/wait') return new Promise((resolve) => waiting.push(resolve)); while (waiting.length === 0) await new Promise(setImmediate); waiting.pop()('released'); return 'done'; };",
    );
    let shim = Shim::ready(
        language,
        code,
        Claim {
            concurrency: 2,
            ..Claim::of("http")
        },
    );
    let (mut one, mut two) = (shim.connect(), shim.connect());
    for _ in 0..3 {
        one.raw(&invoke(END, "one", "GET", "/wait", &[]));
        assert_eq!(two.call("GET", "/release", &[], b"").text(), "done");
        assert_eq!(one.answer().text(), "released");
    }
}

fn termination_finishes_what_runs(language: Language) {
    let shim = Shim::ready(language, echo(language), Claim::of("http"));
    let mut running = shim.connect();
    running.raw(&invoke(HOLD, "running", "POST", "/", &[]));
    running.expect(ACCEPT);
    let mut idle = shim.connect();
    idle.send(PING, 0, b"");
    idle.expect(PONG);
    shim.terminate();
    // Not told apart from a taken slot: the peer goes elsewhere either way.
    idle.raw(&invoke(END, "late", "GET", "/", &[]));
    idle.expect(BUSY);
    running.send(DATA, END, b"finished");
    assert_eq!(running.answer().text(), "finished");
    assert_eq!(shim.exit_code(), Some(0));
}

fn broken_peers_lose_their_connection_and_nothing_else(language: Language) {
    let shim = Shim::ready(language, echo(language), Claim::of("http"));
    let long = {
        let mut head = (2_u32 << 20).to_le_bytes().to_vec();
        head.extend([INVOKE, END, 0, 0]);
        head
    };
    let mut twice = invoke(0, "r", "POST", "/", &[]);
    twice.extend(invoke(END, "r", "POST", "/", &[]));
    for bytes in [frame(0x7f, 0, b""), frame(DATA, END, b"x"), long, twice] {
        let mut broken = shim.connect();
        broken.raw(&bytes);
        assert!(broken.closed(), "{bytes:?}");
    }
    let mut connection = shim.connect();
    // It means nothing between calls.
    connection.send(CANCEL, 0, b"");
    let answer = crate::client::wait_for("the slot of the broken call", || {
        connection.raw(&invoke(END, "r", "GET", "/", &[]));
        let (kind, _, _) = connection.receive();
        (kind != BUSY).then_some(kind)
    });
    assert_eq!(answer, crate::client::RESPONSE);
    connection.send(CLAIM, 0, b"not even JSON");
    connection.expect(FAILED);
}

/// Only Python's serves each connection on a thread.
#[test]
fn a_function_that_used_up_its_threads_is_still_reached() {
    let code = "import _thread\ndef refuse(*_):\n    raise RuntimeError(\"can't start new thread\")\n\
                def main(request):\n    _thread.start_new_thread = refuse\n    return 'ok'\n";
    let shim = Shim::ready(Language::Python, code, Claim::of("http"));
    let mut first = shim.connect();
    // More than the threads that wait in accept.
    for _ in 0..5 {
        assert_eq!(first.call("GET", "/", &[], b"").text(), "ok");
        assert_eq!(shim.connect().call("GET", "/", &[], b"").text(), "ok");
    }
}

impl Language {
    fn pick_pair<'a>(
        self,
        python: (&'a str, &'a str),
        node: (&'a str, &'a str),
    ) -> (&'a str, &'a str) {
        match self {
            Self::Python => python,
            Self::Node => node,
        }
    }
}

for_both!(
    a_stem_answers_pings_and_has_no_slots,
    one_function_for_life,
    code_that_cannot_be_loaded_says_why,
    environment_modules_and_dependencies_are_there,
    modules_of_the_newer_kind,
    slots_are_counted_over_connections,
    concurrent_async_handlers_run_side_by_side,
    termination_finishes_what_runs,
    broken_peers_lose_their_connection_and_nothing_else,
);
