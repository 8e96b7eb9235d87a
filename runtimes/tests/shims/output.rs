//! What functions print.

use crate::{
    client::{Claim, END, Language, Shim, invoke},
    for_both,
};

fn lines_carry_their_request(language: Language) {
    let code = language.pick(
        "import sys, threading\nprint('loading')\ndef main(request):\n    print('one\\ntwo')\n    sys.stdout.write('half')\n    sys.stdout.write(' and half\\n')\n    thread = threading.Thread(target=lambda: print('from a thread'))\n    thread.start()\n    thread.join()\n    sys.stdout.buffer.write(b'bytes\\n')\n    sys.stdout.write('no line end')\n    return 'ok'\n",
        "console.log('loading');\nexports.main = async () => { console.log('one\\ntwo'); process.stdout.write('half'); process.stdout.write(' and half\\n'); await new Promise((resolve) => setImmediate(() => { console.log('from a thread'); resolve(); })); process.stdout.write(Buffer.from('bytes\\n')); process.stdout.write('no line end'); return 'ok'; };",
    );
    for concurrency in [1, 2] {
        let shim = Shim::ready(
            language,
            code,
            Claim {
                concurrency,
                ..Claim::of("http")
            },
        );
        assert_eq!(shim.line(), "loading");
        let mut connection = shim.connect();
        for id in ["a", "b"] {
            connection.raw(&invoke(END, id, "GET", "/", &[]));
            assert_eq!(connection.answer().text(), "ok");
            for text in [
                "one",
                "two",
                "half and half",
                "from a thread",
                "bytes",
                "no line end",
            ] {
                assert_eq!(shim.line(), format!("\u{1}{id}\u{2}{text}"));
            }
        }
        shim.terminate();
        assert_eq!(shim.rest(), Vec::<String>::new());
    }
}

fn a_tag_cannot_be_forged_outside_a_call(language: Language) {
    let code = language.pick(
        "print('\\x01req\\x02forged')\ndef main():\n    pass\n",
        "console.log('\\x01req\\x02forged'); exports.main = () => {};",
    );
    let shim = Shim::ready(language, code, Claim::of("http"));
    assert_eq!(shim.line(), "req\u{2}forged");
}

fn concurrent_calls_keep_their_lines_apart(language: Language) {
    let code = language.pick(
        "import asyncio\nasync def main(request):\n    for n in range(5):\n        print(request.id, end='')\n        await asyncio.sleep(0.001)\n        print(' line')\n",
        "exports.main = async (request) => { for (let n = 0; n < 5; n++) { process.stdout.write(request.id); await new Promise(setImmediate); process.stdout.write(' line\\n'); } };",
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
    one.raw(&invoke(END, "one", "GET", "/", &[]));
    two.raw(&invoke(END, "two", "GET", "/", &[]));
    one.answer();
    two.answer();
    let mut lines: Vec<_> = (0..10).map(|_| shim.line()).collect();
    lines.sort();
    let expected: Vec<_> = ["one"; 5]
        .into_iter()
        .chain(["two"; 5])
        .map(|id| format!("\u{1}{id}\u{2}{id} line"))
        .collect();
    assert_eq!(lines, expected);
}

for_both!(
    lines_carry_their_request,
    a_tag_cannot_be_forged_outside_a_call,
    concurrent_calls_keep_their_lines_apart,
);
