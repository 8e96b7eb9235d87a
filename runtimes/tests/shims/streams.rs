//! Bodies in pieces, both ways, and callers that go away.

use crate::{
    client::{
        ACCEPT, Answer, CANCEL, Claim, DATA, DATA_OUT, END, FAULT, HOLD, Language, RESPONSE, Shim,
        invoke,
    },
    for_both,
};

fn pieces_go_both_ways_while_both_bodies_are_open(language: Language) {
    let code = language.pick(
        "def main(request):\n    for piece in request:\n        yield b'<' + piece + b'>'\n    yield 'end'\n",
        "exports.main = async function* (request) { for await (const piece of request) yield `<${piece}>`; yield 'end'; };\nexports.main.streaming = true;",
    );
    let shim = Shim::ready(language, code, Claim::of("http"));
    let mut connection = shim.connect();
    for _ in 0..2 {
        connection.raw(&invoke(HOLD, "r", "POST", "/", &[]));
        connection.expect(ACCEPT);
        for (at, piece) in ["one", "two", "three"].into_iter().enumerate() {
            connection.send(DATA, 0, piece.as_bytes());
            if at == 0 {
                connection.expect(RESPONSE);
            }
            assert_eq!(
                connection.expect(DATA_OUT),
                format!("<{piece}>").into_bytes()
            );
        }
        connection.send(DATA, END, b"");
        assert_eq!(connection.expect(DATA_OUT), b"end");
        let (kind, flags, payload) = connection.receive();
        assert_eq!((kind, flags, payload.len()), (DATA_OUT, END, 0));
    }
}

fn large_bodies_arrive_whole(language: Language) {
    let code = language.pick(
        "def main(request):\n    return request.body[::-1]\n",
        "exports.main = (request) => Buffer.from(request.body).reverse();",
    );
    let shim = Shim::ready(language, code, Claim::of("http"));
    let mut connection = shim.connect();
    // No multiple of any piece's size, and no period of 256.
    let body: Vec<u8> = (0..3_500_001_u32)
        .map(|n| u8::try_from(n % 251).unwrap())
        .collect();
    connection.raw(&invoke(0, "r", "POST", "/", &[]));
    for piece in body.chunks(100_000) {
        connection.send(DATA, 0, piece);
    }
    connection.send(DATA, END, b"");
    let Answer::Response {
        body: got, headers, ..
    } = connection.answer()
    else {
        panic!("a fault")
    };
    assert!(headers.contains(&("content-length".to_owned(), "3500001".to_owned())));
    assert!(got.iter().rev().eq(body.iter()));
}

fn a_body_that_nobody_reads_is_dropped(language: Language) {
    let code = language.pick(
        "def main(request):\n    return 'done'\n",
        "exports.main = () => 'done';\nexports.main.streaming = true;",
    );
    let shim = Shim::ready(language, code, Claim::of("http"));
    let mut connection = shim.connect();
    for _ in 0..2 {
        connection.raw(&invoke(0, "r", "POST", "/", &[]));
        assert_eq!(connection.answer().text(), "done");
        for _ in 0..40 {
            connection.send(DATA, 0, &[0; 65_536]);
        }
        connection.send(DATA, END, b"");
    }
    assert_eq!(connection.call("GET", "/", &[], b"").text(), "done");
}

fn an_error_in_the_middle_cuts_the_answer(language: Language) {
    let code = language.pick(
        "def main(request):\n    if request.path == '/first':\n        raise ValueError('first')\n    yield 'a'\n    raise ValueError('later')\n",
        "exports.main = function* (request) { if (request.path === '/first') throw new Error('first'); yield 'a'; throw new Error('later'); };",
    );
    let shim = Shim::ready(language, code, Claim::of("http"));
    let mut connection = shim.connect();
    for _ in 0..2 {
        assert_eq!(
            connection.call("GET", "/", &[], b""),
            Answer::Cut {
                body: b"a".to_vec()
            }
        );
        // Before the head has left it is an answer of its own.
        assert_eq!(
            connection.call("GET", "/first", &[], b"").fault()["message"],
            "first"
        );
    }
}

fn a_cancelled_stream_ends_and_cleans_up(language: Language) {
    let code = language.pick(
        "def main(request):\n    if request.path == '/':\n        return 'free'\n    return endless()\n\ndef endless():\n    try:\n        while True:\n            yield 'x' * 1000\n    finally:\n        print('cleaned up')\n",
        "async function* endless() { try { for (;;) { yield 'x'.repeat(1000); await new Promise(setImmediate); } } finally { console.log('cleaned up'); } }\nexports.main = (request) => (request.path === '/' ? 'free' : endless());",
    );
    let shim = Shim::ready(language, code, Claim::of("http"));
    let mut connection = shim.connect();
    connection.raw(&invoke(END, "r", "GET", "/endless", &[]));
    connection.expect(RESPONSE);
    connection.expect(DATA_OUT);
    connection.send(CANCEL, 0, b"");
    loop {
        let (kind, flags, _) = connection.receive();
        assert_eq!(kind, DATA_OUT);
        if flags & END != 0 {
            break;
        }
    }
    assert!(shim.line_with("cleaned up").contains('r'));
    assert_eq!(connection.call("GET", "/", &[], b"").text(), "free");
}

fn a_caller_that_closes_frees_the_slot(language: Language) {
    let code = language.pick(
        "def main(request):\n    if request.path == '/':\n        return 'free'\n    return endless()\n\ndef endless():\n    while True:\n        yield 'x' * 1000\n",
        "async function* endless() { for (;;) { yield 'x'.repeat(1000); await new Promise(setImmediate); } }\nexports.main = (request) => (request.path === '/' ? 'free' : endless());",
    );
    let shim = Shim::ready(language, code, Claim::of("http"));
    let mut gone = shim.connect();
    gone.raw(&invoke(END, "r", "GET", "/endless", &[]));
    gone.expect(RESPONSE);
    drop(gone);
    let mut connection = shim.connect();
    crate::client::wait_for("a free slot", || {
        connection.raw(&invoke(END, "r", "GET", "/", &[]));
        let (kind, _, _) = connection.receive();
        (kind == RESPONSE).then(|| connection.expect(DATA_OUT))
    });
}

fn a_cancelled_upload_is_told_to_the_handler(language: Language) {
    let code = language.pick(
        "def main(request):\n    return str(len(request.body))\n",
        "exports.main = async (request) => String((await request.body).length);\nexports.main.streaming = true;",
    );
    let shim = Shim::ready(language, code, Claim::of("http"));
    let mut connection = shim.connect();
    for _ in 0..2 {
        connection.raw(&invoke(HOLD, "r", "POST", "/", &[]));
        connection.expect(ACCEPT);
        connection.send(DATA, 0, b"part");
        connection.send(CANCEL, 0, b"");
        let (kind, _, payload) = connection.receive();
        assert_eq!(kind, FAULT);
        assert!(String::from_utf8_lossy(&payload).contains("the caller went away"));
    }
    assert_eq!(connection.call("POST", "/", &[], b"12345").text(), "5");
}

fn a_handler_can_ask_whether_the_caller_has_gone(language: Language) {
    let code = language.pick(
        "import time\ndef main(request):\n    print('started')\n    while not request.cancelled:\n        time.sleep(0.001)\n    print('noticed')\n    return 'late'\n",
        "exports.main = (request) => new Promise((resolve) => { console.log('started'); request.signal.addEventListener('abort', () => { console.log('noticed'); resolve('late'); }); });",
    );
    let shim = Shim::ready(language, code, Claim::of("http"));
    let mut connection = shim.connect();
    connection.raw(&invoke(END, "r", "GET", "/", &[]));
    shim.line_with("started");
    connection.send(CANCEL, 0, b"");
    shim.line_with("noticed");
    assert_eq!(connection.answer().text(), "late");
}

for_both!(
    pieces_go_both_ways_while_both_bodies_are_open,
    large_bodies_arrive_whole,
    a_body_that_nobody_reads_is_dropped,
    an_error_in_the_middle_cuts_the_answer,
    a_cancelled_stream_ends_and_cleans_up,
    a_caller_that_closes_frees_the_slot,
    a_cancelled_upload_is_told_to_the_handler,
    a_handler_can_ask_whether_the_caller_has_gone,
);
