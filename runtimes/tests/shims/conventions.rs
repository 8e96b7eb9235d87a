//! How handlers are called and what their answers mean.

use serde_json::{Value, json};

use crate::{
    client::{Answer, Claim, Language, Shim},
    for_both,
};

const JSON: &[(&str, &str)] = &[("content-type", "application/json; charset=utf-8")];

struct Case {
    name: &'static str,
    convention: &'static str,
    python: &'static str,
    node: &'static str,
    request: (
        &'static str,
        &'static str,
        &'static [(&'static str, &'static str)],
        &'static [u8],
    ),
    status: u16,
    headers: &'static [(&'static str, &'static str)],
    body: Body,
}

enum Body {
    Text(&'static str),
    Json(Value),
}

fn cases() -> Vec<Case> {
    let get = ("GET", "/", &[] as &[_], b"" as &[_]);
    vec![
        Case {
            name: "no argument, text",
            convention: "kubeless",
            python: "def main():\n    return 'Hello World'\n",
            node: "module.exports = { main() { return 'Hello World'; } };",
            request: get,
            status: 200,
            headers: &[
                ("content-type", "text/plain; charset=utf-8"),
                ("content-length", "11"),
            ],
            body: Body::Text("Hello World"),
        },
        Case {
            name: "kubeless with JSON",
            convention: "kubeless",
            python: "def main(event, context):\n    return {'name': event['data']['name'], 'fn': context['function-name'], 'timeout': context['timeout'], 'memory': context['memory-limit'], 'runtime': context['runtime']}\n",
            node: "exports.main = (event, context) => ({ name: event.data.name, fn: context['function-name'], timeout: context.timeout, memory: context['memory-limit'], runtime: context.runtime });",
            request: ("POST", "/", JSON, br#"{"name":"Ada"}"#),
            status: 200,
            headers: &[("content-type", "application/json")],
            body: Body::Json(
                json!({"name": "Ada", "fn": "hello", "timeout": "60", "memory": "128Mi", "runtime": "installed-runtime"}),
            ),
        },
        Case {
            name: "kubeless with text that only claims to be JSON",
            convention: "kubeless",
            python: "def main(event):\n    return event['data']\n",
            node: "exports.main = (event) => event.data;",
            request: ("POST", "/", JSON, b"{no json"),
            status: 200,
            headers: &[],
            body: Body::Text("{no json"),
        },
        Case {
            name: "kubeless event fields",
            convention: "kubeless",
            python: "def main(event, context):\n    return [event['event-id'], event['event-type'], event['event-namespace'], len(event['event-time']) > 15, event['data']]\n",
            node: "exports.main = (event) => [event['event-id'], event['event-type'], event['event-namespace'], event['event-time'].length > 15, event.data];",
            request: (
                "POST",
                "/",
                &[("event-type", "cron"), ("content-type", "text/x")],
                b"t",
            ),
            status: 200,
            headers: &[],
            body: Body::Json(json!(["req-1", "cron", "ns", true, "t"])),
        },
        Case {
            name: "kubeless request and response by either name",
            convention: "kubeless",
            python: "def main(event, context):\n    r = event['extension']['request']\n    out = event['extensions']['response']\n    out.status = 201\n    out.headers['X-Out'] = 'v'\n    return {'method': r.method, 'path': r.path, 'q': r.query, 'h': r.headers['X-In'], 'body': r.body.decode()}\n",
            node: "exports.main = (event) => { const r = event.extension.request; const out = event.extensions.response; out.status = 201; out.headers['X-Out'] = 'v'; return { method: r.method, path: r.path, q: r.query, h: r.headers['x-in'], body: r.body.toString() }; };",
            request: ("PUT", "/a%20b?x=1&y=%C3%A4", &[("x-in", "in")], b"B"),
            status: 201,
            headers: &[("x-out", "v")],
            body: Body::Json(
                json!({"method": "PUT", "path": "/a b", "q": {"x": "1", "y": "ä"}, "h": "in", "body": "B"}),
            ),
        },
        Case {
            name: "names that a caller chose and every object has",
            convention: "scaleway",
            python: "def main(event):\n    return [event['queryStringParameters'], event['multiValueQueryStringParameters'], event['headers']['constructor']]\n",
            node: "exports.main = (event) => [event.queryStringParameters, event.multiValueQueryStringParameters, event.headers.constructor];",
            request: (
                "GET",
                "/?constructor=1&toString=2&__proto__=3&__proto__=4",
                &[("constructor", "h")],
                b"",
            ),
            status: 200,
            headers: &[],
            body: Body::Json(json!([
                {"constructor": "1", "toString": "2", "__proto__": "4"},
                {"constructor": ["1"], "toString": ["2"], "__proto__": ["3", "4"]},
                "h",
            ])),
        },
        Case {
            name: "scaleway event and answer",
            convention: "scaleway",
            python: "def main(event, context):\n    return {'statusCode': 202, 'headers': {'X-Fn': context['functionName']}, 'body': {'m': event['httpMethod'], 'p': event['path'], 'q': event['queryStringParameters'], 'b': event['body'], 'e': event['isBase64Encoded'], 'mem': context['memoryLimitInMb']}}\n",
            node: "exports.main = (event, context, callback) => callback(null, { statusCode: 202, headers: { 'X-Fn': context.functionName }, body: { m: event.httpMethod, p: event.path, q: event.queryStringParameters, b: event.body, e: event.isBase64Encoded, mem: context.memoryLimitInMb } });",
            request: ("POST", "/p?a=b", &[], b"text"),
            status: 202,
            headers: &[("x-fn", "hello"), ("content-type", "application/json")],
            body: Body::Json(
                json!({"m": "POST", "p": "/p", "q": {"a": "b"}, "b": "text", "e": false, "mem": 128}),
            ),
        },
        Case {
            name: "scaleway with bytes both ways",
            convention: "scaleway",
            python: "def main(event, context):\n    return {'statusCode': 200, 'isBase64Encoded': event['isBase64Encoded'], 'headers': {'x-in': event['body']}, 'body': 'aGVsbG8='}\n",
            node: "exports.main = (event) => ({ statusCode: 200, isBase64Encoded: event.isBase64Encoded, headers: { 'x-in': event.body }, body: 'aGVsbG8=' });",
            request: ("POST", "/", &[], &[0xff, 0xfe]),
            status: 200,
            headers: &[("x-in", "//4=")],
            body: Body::Text("hello"),
        },
        Case {
            name: "scaleway with text",
            convention: "scaleway",
            python: "async def main(event, context):\n    return 'plain'\n",
            node: "exports.main = async () => 'plain';",
            request: get,
            status: 200,
            headers: &[("content-type", "text/plain; charset=utf-8")],
            body: Body::Text("plain"),
        },
        Case {
            name: "scf called with JSON",
            convention: "scf",
            python: "def main(event, context):\n    return {'twice': event['n'] * 2, 'id': context['request_id'], 'ms': context.time_limit_in_ms, 'fn': context['function_name'], 'mem': context['memory_limit_in_mb'], 'statusCode': 1}\n",
            node: "exports.main = async (event, context) => ({ twice: event.n * 2, id: context.request_id, ms: context.time_limit_in_ms, fn: context.function_name, mem: context.memory_limit_in_mb, statusCode: 1 });",
            request: ("POST", "/", JSON, br#"{"n":21}"#),
            status: 200,
            headers: &[("content-type", "application/json")],
            body: Body::Json(
                json!({"twice": 42, "id": "req-1", "ms": 60000, "fn": "hello", "mem": 128, "statusCode": 1}),
            ),
        },
        Case {
            name: "scf answers text as JSON",
            convention: "scf",
            python: "def main(event, context):\n    return 'hi' if event == {} else 'no'\n",
            node: "exports.main = async (event) => (Object.keys(event).length === 0 ? 'hi' : 'no');",
            request: ("POST", "/", &[], b""),
            status: 200,
            headers: &[("content-type", "application/json")],
            body: Body::Json(json!("hi")),
        },
        Case {
            name: "scf behind a URL",
            convention: "scf",
            python: "def main(event, context):\n    return {'statusCode': 203, 'body': event['httpMethod'] + event['path'] + event['queryString']['k']}\n",
            node: "exports.main = (event, context, callback) => { callback(null, { statusCode: 203, body: event.httpMethod + event.path + event.queryString.k }); };",
            request: ("GET", "/x?k=v", &[], b""),
            status: 203,
            headers: &[],
            body: Body::Text("GET/xv"),
        },
        Case {
            name: "http body, headers joined",
            convention: "http",
            python: "def main(request):\n    return request.headers['Accept'] + '|' + request.headers.get('cookie')\n",
            node: "exports.main = (request) => `${request.headers.accept}|${request.headers.cookie}`;",
            request: (
                "GET",
                "/",
                &[
                    ("accept", "a"),
                    ("cookie", "x=1"),
                    ("accept", "b"),
                    ("cookie", "y=2"),
                ],
                b"",
            ),
            status: 200,
            headers: &[],
            body: Body::Text("a, b|x=1; y=2"),
        },
        Case {
            name: "http object with status and headers",
            convention: "http",
            python: "def main(request):\n    return {'status': 404, 'headers': {'Set-Cookie': ['a=1', 'b=2'], 'Content-Length': '999'}, 'body': request.method}\n",
            node: "exports.main = (request) => ({ status: 404, headers: { 'Set-Cookie': ['a=1', 'b=2'], 'Content-Length': '999' }, body: request.method });",
            request: ("DELETE", "/", &[], b""),
            status: 404,
            headers: &[
                ("set-cookie", "a=1"),
                ("set-cookie", "b=2"),
                ("content-length", "6"),
            ],
            body: Body::Text("DELETE"),
        },
        Case {
            name: "http object that only looks like an answer",
            convention: "http",
            python: "def main(request):\n    return {'status': 'ok', 'items': []}\n",
            node: "exports.main = () => ({ status: 'ok', items: [] });",
            request: get,
            status: 200,
            headers: &[("content-type", "application/json")],
            body: Body::Json(json!({"status": "ok", "items": []})),
        },
        Case {
            name: "http reading JSON",
            convention: "http",
            python: "def main(request):\n    return {'got': request.json()['a'], 'left': 0 < request.time_left() <= 5}\n",
            node: "exports.main = async (request) => ({ got: (await request.json()).a, left: request.timeLeft() > 0 && request.timeLeft() <= 5000 });",
            request: ("POST", "/", JSON, br#"{"a":[1,2]}"#),
            status: 200,
            headers: &[],
            body: Body::Json(json!({"got": [1, 2], "left": true})),
        },
        Case {
            name: "nothing to say",
            convention: "http",
            python: "def main(request):\n    return (204, None) if request.path == '/none' else None\n",
            node: "exports.main = (request) => (request.path === '/none' ? { status: 204 } : undefined);",
            request: ("GET", "/none", &[], b""),
            status: 204,
            headers: &[],
            body: Body::Text(""),
        },
        Case {
            name: "the language's own way",
            convention: "http",
            python: "def main(request):\n    return 418, {'x-a': 'b'}, b'tea'\n",
            node: "exports.main = () => new Response('tea', { status: 418, headers: { 'x-a': 'b' } });",
            request: get,
            status: 418,
            headers: &[("x-a", "b")],
            body: Body::Text("tea"),
        },
    ]
}

fn the_table(language: Language) {
    for case in cases() {
        let name = case.name;
        let code = language.pick(case.python, case.node);
        let shim = Shim::ready(language, code, Claim::of(case.convention));
        let mut connection = shim.connect();
        let (method, target, headers, body) = case.request;
        // Twice: nothing of the first call may stick.
        for _ in 0..2 {
            let answer = connection.call(method, target, headers, body);
            if let Answer::Fault(fault) = &answer {
                panic!("{name}: {fault}");
            }
            assert_eq!(answer.status(), case.status, "{name}");
            for (header, value) in case.headers {
                assert!(answer.header(header).contains(value), "{name}: {answer:?}");
            }
            match &case.body {
                Body::Text(text) => assert_eq!(answer.text(), *text, "{name}"),
                Body::Json(value) => assert_eq!(answer.json(), *value, "{name}"),
            }
        }
    }
}

fn a_raised_error_is_a_fault_and_the_next_call_works(language: Language) {
    let code = language.pick(
        "def inner(request):\n    raise ValueError('bad ' + request.path)\n\ndef main(request):\n    return inner(request) if request.path == '/x' else 'ok'\n",
        "const inner = (request) => { throw new RangeError(`bad ${request.path}`); };\nexports.main = (request) => (request.path === '/x' ? inner(request) : 'ok');",
    );
    let shim = Shim::ready(language, code, Claim::of("http"));
    let mut connection = shim.connect();
    let answer = connection.call("GET", "/x", &[], b"");
    let fault = answer.fault();
    assert_eq!(fault["kind"], "exception");
    assert_eq!(fault["type"], language.pick("ValueError", "RangeError"));
    assert_eq!(fault["message"], "bad /x");
    let trace: Vec<_> = fault["trace"]
        .as_array()
        .unwrap()
        .iter()
        .map(Value::to_string)
        .collect();
    assert!(
        trace.len() == 2 && trace.iter().all(|l| l.contains(language.file())),
        "{trace:?}"
    );
    assert!(
        !trace.iter().any(|line| line.contains("shim.")),
        "{trace:?}"
    );
    assert_eq!(connection.call("GET", "/", &[], b"").text(), "ok");
    assert!(
        shim.line_with("bad /x")
            .contains(language.pick("ValueError", "RangeError"))
    );
}

fn answers_that_cannot_be_sent_are_faults(language: Language) {
    let code = language.pick(
        "def main(request):\n    return {'/status': (99, 'x'), '/line': (200, {'x-a': 'b\\nc: d'}, ''), '/name': (200, {'a b': 'c'}, ''), '/object': object()}[request.path]\n",
        "exports.main = (request) => ({ '/status': { status: 99 }, '/line': { status: 200, headers: { 'x-a': 'b\\nc: d' } }, '/name': { status: 200, headers: { 'a b': 'c' } }, '/object': () => 1 })[request.path];",
    );
    let shim = Shim::ready(language, code, Claim::of("http"));
    let mut connection = shim.connect();
    for path in ["/status", "/line", "/name", "/object"] {
        let answer = connection.call("GET", path, &[], b"");
        let message = answer.fault()["message"].as_str().unwrap().to_owned();
        assert!(message.contains("handler"), "{path}: {message}");
    }
}

fn exiting_is_no_way_to_answer(language: Language) {
    // In Node `process.exit` ends the process at once, and cannot be told from a wanted end.
    let code = language.pick(
        "import sys\ndef main():\n    sys.exit(3)\n",
        "exports.main = () => { setTimeout(() => { throw new Error('sys.exit later'); }); return new Promise(() => {}); };",
    );
    let shim = Shim::ready(language, code, Claim::of("http"));
    let mut connection = shim.connect();
    for _ in 0..2 {
        let answer = connection.call("GET", "/", &[], b"");
        assert!(
            answer.fault()["message"]
                .as_str()
                .unwrap()
                .contains("sys.exit")
        );
    }
}

for_both!(
    the_table,
    a_raised_error_is_a_fault_and_the_next_call_works,
    answers_that_cannot_be_sent_are_faults,
    exiting_is_no_way_to_answer,
);
