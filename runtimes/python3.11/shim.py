"""The Python shim: loads one function and calls it, as runtimes/CONTRACT.md says.

How a handler is called and what its answer means (the Node shim does the same):

| convention | called with | answer |
|---|---|---|
| kubeless | event {data, event-id, event-type, event-time, event-namespace, extension, extensions}, context {function-name, timeout, runtime, memory-limit} | text, bytes, or anything else as JSON; status and headers by event["extension"]["response"] |
| scaleway | event {path, httpMethod, headers, queryStringParameters, body, isBase64Encoded, requestContext ...}, context {memoryLimitInMb, functionName, functionVersion} | an object with statusCode is {statusCode, headers, body, isBase64Encoded}; else as kubeless |
| scf | event: the body as JSON; {} for an empty POST; else an object like scaleway's. context {request_id, memory_limit_in_mb, time_limit_in_ms, function_name ...} | always JSON; to an object like scaleway's, as scaleway |
| http | request {method, path, query, headers, body ...} | text, bytes, JSON; (status, body), (status, headers, body), or an object {status, headers, body} whose status is a number |

A handler takes none, one or both of the arguments. It may be `async`. `data` is parsed JSON when the
content type says so and it parses, else text, else (not UTF-8) bytes. A generator's or an
iterator's pieces are streamed; the head leaves with the first piece. `request` in `http` (and in
`extension`) can be read piece by piece by iterating over it, and `request.cancelled` tells whether
the caller has gone.

Design: one blocking thread a connection, which also runs the handler, because that costs the least
per call; a spare thread waits in accept, so that a new connection needs no thread to be made. The
code is loaded on the main thread, since some libraries want signals. `async` handlers of a function
with concurrency 1 run on one kept event loop, which turns only during calls; with more, the loop
has a thread of its own. Output of child processes and of native code is not tagged with a request.
"""

import sys
import time

# Some of these are not used here: they are loaded into the stem because most functions or their
# libraries need them, and are then in memory before there is a request to wait for them.
import _thread
import asyncio
import atexit
import base64
import binascii
import collections
import contextvars
import datetime
import decimal
import enum
import functools
import gc
import hashlib
import http.client
import importlib.util
import inspect
import io
import json
import logging
import os
import queue
import random
import re
import signal
import socket
import ssl
import struct
import threading
import traceback
import types
import typing
import urllib.parse
import urllib.request
import uuid

INVOKE, DATA_IN, CANCEL, CLAIM, PING = 0x01, 0x02, 0x03, 0x10, 0x11
RESPONSE, DATA_OUT, BUSY, FAULT, ACCEPT = 0x81, 0x82, 0x83, 0x84, 0x85
READY, FAILED, PONG = 0x90, 0x91, 0x92
END, HOLD = 1, 2
# On the last frame of an answer: somebody was told BUSY meanwhile.
WANTED = 4
MAX_PAYLOAD = 1 << 20
PIECE = 64 * 1024
RECEIVE = 32 * 1024
# A line longer than this is cut, so that output without line ends cannot fill the memory.
MAX_LINE = 64 * 1024

HEADER = struct.Struct("<IBBH")
pack_header = HEADER.pack
unpack_header = HEADER.unpack_from
U16 = struct.Struct("<H")
U32 = struct.Struct("<I")

BUSY_FRAME = pack_header(0, BUSY, 0, 0)
ACCEPT_FRAME = pack_header(0, ACCEPT, 0, 0)
PONG_FRAME = pack_header(0, PONG, 0, 0)

TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z").match
FORBIDDEN = re.compile("[\0\r\n]").search


class ProtocolError(Exception):
    """The peer broke the contract; the connection is closed."""


class CallerGone(ConnectionAbortedError):
    """The caller went away before the whole request had arrived."""


# --- output ---------------------------------------------------------------------------------------

# With concurrency 1 one variable is enough, and it also covers threads that the handler made.
current_request = None
request_of_context = contextvars.ContextVar("coracle_request", default=None)


def request_alone():
    return current_request


def request_of_many():
    found = request_of_context.get()
    if found is None:
        found = getattr(threading.current_thread(), "_coracle_request", None)
    return found


which_request = request_alone


class TaggedText(io.TextIOBase):
    """Writes whole lines, each prefixed with the request that it belongs to."""

    encoding = "utf-8"
    errors = "backslashreplace"
    newlines = None
    line_buffering = True

    def __init__(self, fd, name):
        super().__init__()
        self.fd = fd
        self.name = name
        self.mode = "w"
        self.pending = {}
        # Reentrant: a signal handler of the function may print while it prints.
        self.lock = threading.RLock()
        self.buffer = TaggedBytes(self)

    def write(self, text):
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        length = len(text)
        request = which_request()
        with self.lock:
            if self.pending:
                text = self.pending.pop(request, "") + text
            end = text.rfind("\n") + 1
            rest = text[end:]
            if len(rest) > MAX_LINE:
                text, end, rest = text + "\n", len(text) + 1, ""
            if rest:
                self.pending[request] = rest
            if end:
                self.lines(request, text[: end - 1])
        return length

    def lines(self, request, text):
        if request is not None:
            tag = f"\x01{request}\x02"
            text = tag + text.replace("\n", "\n" + tag) + "\n"
        elif "\x01" in text:
            # What only looks like a tag is none.
            text = text.replace("\x01", "") + "\n"
        else:
            text += "\n"
        data = text.encode("utf-8", "backslashreplace")
        try:
            while data:
                data = data[os.write(self.fd, data) :]
        except OSError:
            # Nobody reads the output any more; the function does not suffer for it.
            pass

    def end(self, request):
        """Ends a line that the request left open."""
        with self.lock:
            rest = self.pending.pop(request, None)
            if rest:
                self.lines(request, rest)

    def end_all(self):
        for request in list(self.pending):
            self.end(request)

    def flush(self):
        pass

    def fileno(self):
        return self.fd

    def writable(self):
        return True

    def isatty(self):
        return False

    def reconfigure(self, **_options):
        pass


class TaggedBytes(io.RawIOBase):
    """`sys.stdout.buffer`."""

    def __init__(self, text):
        super().__init__()
        self.text = text

    def write(self, data):
        data = bytes(data)
        self.text.write(data.decode("utf-8", "backslashreplace"))
        return len(data)

    def writable(self):
        return True

    def fileno(self):
        return self.text.fd


STDOUT = TaggedText(1, "<stdout>")
STDERR = TaggedText(2, "<stderr>")


def tag_new_threads():
    """Threads that a handler starts print under its request, also when several run at once."""
    start = threading.Thread.start

    @functools.wraps(start)
    def tagged_start(self):
        self._coracle_request = request_of_many()
        return start(self)

    threading.Thread.start = tagged_start


# --- connections ----------------------------------------------------------------------------------


class Connection:
    __slots__ = ("sock", "buffer", "answering")

    def __init__(self, sock):
        self.sock = sock
        self.buffer = b""
        # Held from the first frame of an invocation to the last byte of its answer.
        self.answering = _thread.allocate_lock()

    def frame(self):
        """The next frame as (kind, flags, payload); None when the peer closed between frames."""
        data = self.buffer
        need = 8
        while True:
            have = len(data)
            if have >= 8:
                length, kind, flags, _ = unpack_header(data)
                if length > MAX_PAYLOAD:
                    raise ProtocolError(f"a frame of {length} bytes")
                need = 8 + length
                if have == need:
                    self.buffer = b""
                    return kind, flags, data[8:]
                if have > need:
                    self.buffer = data[need:]
                    return kind, flags, data[8:need]
            missing = need - have
            more = self.sock.recv(missing if missing > RECEIVE else RECEIVE)
            if not more:
                if data:
                    raise ProtocolError("the stream ends inside a frame")
                return None
            data = data + more if data else more

    def cancelled(self):
        """Whether a CANCEL, or the end of the stream, is what comes next. Does not wait."""
        try:
            more = self.sock.recv(RECEIVE, socket.MSG_DONTWAIT)
            if not more:
                return True
            self.buffer += more
        except BlockingIOError:
            pass
        except OSError:
            return True
        return len(self.buffer) >= 8 and self.buffer[4] == CANCEL

    def skip_body(self):
        while True:
            frame = self.frame()
            if frame is None:
                raise ProtocolError("the stream ends inside a body")
            kind, flags, _ = frame
            if kind == CANCEL or (kind == DATA_IN and flags & END):
                return
            if kind != DATA_IN:
                raise ProtocolError(f"frame {kind:#x} inside a body")


class Headers(dict):
    """Names are lower case; looking one up is not particular about it."""

    __slots__ = ()

    def __getitem__(self, name):
        return dict.__getitem__(self, name.lower())

    def __contains__(self, name):
        return dict.__contains__(self, name.lower())

    def get(self, name, default=None):
        return dict.get(self, name.lower(), default)


def joined_headers(names, values):
    headers = Headers()
    for name, value in zip(names, values):
        if dict.__contains__(headers, name):
            separator = "; " if name == "cookie" else ", "
            value = dict.__getitem__(headers, name) + separator + value
        headers[name] = value
    return headers


class Request:
    """One invocation as the handler sees it."""

    __slots__ = (
        "id", "method", "target", "headers", "deadline",
        "_connection", "_ended", "_gone", "_body", "_query", "_holds_slot",
    )  # fmt: skip

    def __init__(self, connection, flags, payload):
        text = payload[4:].decode("latin-1").split("\0")
        self.id, self.method, self.target = text[:3]
        names = text[3::2]
        headers = Headers(zip(names, text[4::2]))
        if len(headers) != len(names):
            headers = joined_headers(names, text[4::2])
        self.headers = headers
        left = U32.unpack_from(payload)[0]
        # On the monotonic clock, in seconds; None: no limit.
        self.deadline = time.monotonic() + left / 1000 if left else None
        self._connection = connection
        self._ended = bool(flags & END)
        self._gone = False
        self._body = b"" if flags & END else None
        self._query = None
        self._holds_slot = True

    def __getitem__(self, name):
        if name.startswith("_"):
            raise KeyError(name)
        try:
            return getattr(self, name)
        except AttributeError:
            raise KeyError(name) from None

    @property
    def path(self):
        return urllib.parse.unquote(self.target.partition("?")[0])

    @property
    def query_string(self):
        return self.target.partition("?")[2]

    path_qs = property(lambda self: self.target)

    @property
    def query(self):
        if self._query is None:
            pairs = urllib.parse.parse_qsl(self.query_string, keep_blank_values=True)
            self._query = dict(pairs)
        return self._query

    args = query

    @property
    def content_type(self):
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def body(self):
        """All of the body; waits for the rest of it."""
        if self._body is None:
            self._body = b"".join(self)
        return self._body

    data = body

    @property
    def text(self):
        return self.body.decode("utf-8")

    def json(self):
        return json.loads(self.body)

    get_json = json

    @property
    def cancelled(self):
        if not self._gone and self._ended:
            self._gone = self._connection.cancelled()
        return self._gone

    def time_left(self):
        """Seconds until the platform ends the call; None when it does not."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def __iter__(self):
        """The pieces of the body as they arrive; each byte is given once."""
        if self._body:
            yield self._body
        while not self._ended:
            frame = self._connection.frame()
            if frame is None or frame[0] == CANCEL:
                self._ended = self._gone = True
                raise CallerGone("the caller went away before the whole request had arrived")
            kind, flags, piece = frame
            if kind != DATA_IN:
                self._ended = self._gone = True
                raise ProtocolError(f"frame {kind:#x} inside a body")
            if flags & END:
                self._ended = True
            if piece:
                yield piece


class Response:
    """Where a `kubeless` handler may set what its return value cannot say."""

    __slots__ = ("status", "headers")

    def __init__(self):
        self.status = 200
        self.headers = {}

    def __getitem__(self, name):
        return self.headers if name == "headers" else self.status if name == "status" else None

    def __setitem__(self, name, value):
        setattr(self, name, value)

    def set_header(self, name, value):
        self.headers[name] = value


class Context(dict):
    """Readable as a dict and by attribute."""

    __slots__ = ()

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


# --- answers --------------------------------------------------------------------------------------

TEXT_TYPE = b"content-type\0text/plain; charset=utf-8"
BYTES_TYPE = b"content-type\0application/octet-stream"
JSON_TYPE = b"content-type\0application/json"
JSON_TYPES = (bytes, bytearray, memoryview)


def to_json(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=jsonable).encode()


def jsonable(value):
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (uuid.UUID, decimal.Decimal)):
        return str(value)
    if isinstance(value, (set, frozenset)):
        return list(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError(f"the handler's answer holds a {type(value).__name__}, which JSON cannot")


def body_of(value):
    """The body (bytes or an iterator of pieces) and the type that goes with it."""
    kind = type(value)
    if kind is str:
        return value.encode(), TEXT_TYPE
    if kind is bytes:
        return value, BYTES_TYPE
    if value is None:
        return b"", None
    if kind is dict or kind is list:
        return to_json(value), JSON_TYPE
    if isinstance(value, str):
        return str(value).encode(), TEXT_TYPE
    if isinstance(value, JSON_TYPES):
        return bytes(value), BYTES_TYPE
    if hasattr(value, "__next__"):
        return value, TEXT_TYPE
    if hasattr(value, "__anext__"):
        return AsyncPieces(value), TEXT_TYPE
    return to_json(value), JSON_TYPE


class AsyncPieces:
    """An async iterator, pulled from a thread."""

    def __init__(self, pieces):
        self.pieces = pieces

    def __iter__(self):
        return self

    def __next__(self):
        try:
            return run_async(self.pieces.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def close(self):
        close = getattr(self.pieces, "aclose", None)
        if close:
            run_async(close())


def head_of(headers, body_type):
    """A handler's headers as the frame has them; the length is left to the shim."""
    if not headers:
        return [body_type] if body_type else []
    found = []
    typed = False
    for name, value in headers.items() if hasattr(headers, "items") else headers:
        name = str(name).lower()
        if not TOKEN(name):
            raise ValueError(f"the handler set a header with the name {name!r}")
        if name == "content-length":
            continue
        typed = typed or name == "content-type"
        for one in value if isinstance(value, (list, tuple)) else (value,):
            one = one if isinstance(one, str) else str(one)
            if FORBIDDEN(one):
                raise ValueError(f"the handler set the header {name!r} to a value with a line end")
            try:
                encoded = one.encode("latin-1")
            except UnicodeEncodeError:
                encoded = one.encode("utf-8")
            found.append(name.encode() + b"\0" + encoded)
    if body_type and not typed:
        found.append(body_type)
    return found


def status_of(value):
    try:
        status = int(value)
    except (TypeError, ValueError):
        status = 0
    if not 200 <= status <= 599:
        raise ValueError(f"the handler answered with the status {value!r}; it must be 200 to 599")
    return status


def answer(status, headers, value):
    body, body_type = body_of(value)
    return status_of(status), head_of(headers, body_type), body


def gateway_answer(result):
    """An object in the shape of an API gateway's answer."""
    body = result.get("body")
    if result.get("isBase64Encoded") and isinstance(body, (str, bytes)):
        try:
            body = base64.b64decode(body, validate=True)
        except binascii.Error:
            raise ValueError("the handler set isBase64Encoded, but its body is no base64") from None
    return answer(result["statusCode"], result.get("headers"), body)


# --- conventions ----------------------------------------------------------------------------------
#
# Each is made once, when the function is loaded, and turns a request into
# (status, header fields, bytes or an iterator of pieces).


def text_or_bytes(body):
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError:
        return body


def is_json(content_type):
    return content_type == "application/json" or content_type.endswith("+json")


def kubeless(call, function):
    context = {
        "function-name": function["name"],
        "timeout": str(function["timeout"]),
        "runtime": function["runtime"],
        "memory-limit": f"{function['memory_mib']}Mi",
    }
    namespace = function["namespace"]

    def invoke(request):
        headers = request.headers
        body = request.body
        content_type = request.content_type
        data = text_or_bytes(body) if body else ""
        if body and is_json(content_type):
            try:
                data = json.loads(body)
            except ValueError:
                pass
        response = Response()
        extension = {"request": request, "response": response}
        event = {
            "data": data,
            "event-id": headers.get("event-id") or request.id,
            "event-type": headers.get("event-type") or content_type,
            "event-time": headers.get("event-time") or now(),
            "event-namespace": headers.get("event-namespace") or namespace,
            "extension": extension,
            "extensions": extension,
        }
        result = call(event, context.copy())
        return answer(response.status, response.headers, result)

    return invoke


def now():
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def gateway_event(request, function):
    body = request.body
    encoded = False
    if body:
        try:
            body = body.decode("utf-8")
        except UnicodeDecodeError:
            body = base64.b64encode(body).decode()
            encoded = True
    else:
        body = ""
    many = urllib.parse.parse_qs(request.query_string, keep_blank_values=True)
    path = request.path
    return {
        "resource": "/",
        "path": path,
        "httpMethod": request.method,
        "headers": request.headers,
        "multiValueHeaders": None,
        "queryStringParameters": request.query,
        "queryString": request.query,
        "multiValueQueryStringParameters": many,
        "pathParameters": None,
        "stageVariables": {},
        "requestContext": {
            "accountId": function["project"],
            "resourceId": function["id"],
            "stage": "",
            "requestId": request.id,
            "resourcePath": "/",
            "authorizer": None,
            "httpMethod": request.method,
            "apiId": "",
            "path": path,
        },
        "body": body,
        "isBase64Encoded": encoded,
    }


def scaleway(call, function):
    context = Context(
        memoryLimitInMb=function["memory_mib"],
        functionName=function["name"],
        functionVersion=str(function["revision"]),
    )

    def invoke(request):
        result = call(gateway_event(request, function), Context(context))
        if isinstance(result, dict) and "statusCode" in result:
            return gateway_answer(result)
        return answer(200, None, result)

    return invoke


def scf(call, function):
    context = Context(
        memory_limit_in_mb=function["memory_mib"],
        time_limit_in_ms=function["timeout"] * 1000,
        function_name=function["name"],
        function_version=str(function["revision"]),
        namespace=function["namespace"],
        environ=";".join(f"{name}={value}" for name, value in function["env"].items()),
        tencentcloud_region="",
        tencentcloud_appid="",
        tencentcloud_uin="",
    )

    def invoke(request):
        body = request.body
        http_like = True
        event = None
        if body:
            content_type = request.content_type
            if not content_type or is_json(content_type):
                try:
                    event = json.loads(body)
                    http_like = False
                except ValueError:
                    pass
        elif request.method == "POST":
            event, http_like = {}, False
        if http_like:
            event = gateway_event(request, function)
        result = call(event, Context(context, request_id=request.id))
        if http_like:
            if isinstance(result, dict) and "statusCode" in result:
                return gateway_answer(result)
            return answer(200, None, result)
        if hasattr(result, "__next__") or hasattr(result, "__anext__"):
            return answer(200, None, result)
        return 200, [JSON_TYPE], to_json(result)

    return invoke


HTTP_ANSWER = {"status", "statusCode", "headers", "body", "isBase64Encoded"}


def http_convention(call, _function):
    def invoke(request):
        result = call(request, None)
        kind = type(result)
        if kind is tuple and result and type(result[0]) is int:
            if len(result) == 3:
                return answer(result[0], result[1], result[2])
            if len(result) == 2:
                return answer(result[0], None, result[1])
        elif kind is tuple and len(result) in (2, 3) and type(result[1]) is int:
            # The order that Flask has.
            return answer(result[1], result[2] if len(result) == 3 else None, result[0])
        elif kind is dict and HTTP_ANSWER.issuperset(result):
            status = result.get("status", result.get("statusCode"))
            if type(status) is int:
                return gateway_answer({**result, "statusCode": status})
        return answer(200, None, result)

    return invoke


CONVENTIONS = {
    "kubeless": kubeless,
    "scaleway": scaleway,
    "scf": scf,
    "http": http_convention,
}


# --- loading --------------------------------------------------------------------------------------


class LoadError(Exception):
    """The code is there, but is not what the claim says."""


def load(claim):
    """Makes the function that answers invocations."""
    function = claim["function"]
    known = {
        "project": function["project"],
        "namespace": function["namespace"],
        "name": function["name"],
        "id": function["id"],
        "revision": function["revision"],
        "runtime": claim["runtime"],
        "memory_mib": claim["memory_mib"],
        "timeout": claim["timeout_secs"],
        "env": claim["env"],
    }
    convention = CONVENTIONS.get(claim["convention"])
    if convention is None:
        raise LoadError(f"convention {claim['convention']!r} is unknown to this runtime")
    set_environment(claim, known)
    code, deps = claim["code"], claim.get("deps")
    # Only now: an earlier lookup would have remembered the directories as empty.
    sys.path[0:0] = [code, deps] if deps else [code]
    module_name, _, name = claim["entry"].replace("/", ".").rpartition(".")
    module = import_module(code, module_name)
    handler = getattr(module, name, None)
    if not callable(handler):
        file = os.path.basename(module.__file__ or module.__name__)
        what = "is no function" if handler is not None else "does not exist"
        offer = ", ".join(
            found
            for found, value in vars(module).items()
            if inspect.isfunction(value)
            and value.__module__ == module.__name__
            and not found.startswith("_")
        )
        hint = f"; it has {offer}" if offer else ""
        raise LoadError(f"handler {name!r} {what} in {file}{hint}")
    return convention(caller(handler), known)


def set_environment(claim, known):
    env = os.environ
    cores = str(max(1, -(-claim.get("cpu_millis", 1000) // 1000)))
    # Libraries otherwise start a thread for each processor of the machine, not of the limit.
    for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "VECLIB_MAXIMUM", "RAYON"):
        env[f"{name}_NUM_THREADS"] = cores
    env["CORACLE_PROJECT"] = known["project"]
    env["CORACLE_NAMESPACE"] = known["namespace"]
    env["CORACLE_FUNCTION"] = known["name"]
    env["CORACLE_REVISION"] = str(known["revision"])
    env["CORACLE_INSTANCE"] = claim["instance"]
    env["CORACLE_RUNTIME"] = known["runtime"]
    env["CORACLE_MEMORY_MIB"] = str(known["memory_mib"])
    env["FUNC_HANDLER"] = claim["entry"].rpartition(".")[2]
    env["FUNC_RUNTIME"] = known["runtime"]
    env["FUNC_TIMEOUT"] = str(known["timeout"])
    env["FUNC_MEMORY_LIMIT"] = f"{known['memory_mib']}Mi"
    env.update(claim["env"])


def import_module(code, name):
    module_name = name or "main"
    path = os.path.join(code, *module_name.split(".")) + ".py"
    if not os.path.isfile(path):
        package = os.path.join(code, *module_name.split("."), "__init__.py")
        if os.path.isfile(package):
            return importlib.import_module(module_name)
        found = sorted(entry for entry in os.listdir(code) if entry.endswith(".py"))
        has = ", ".join(found) or "no .py file"
        raise LoadError(f"there is no {module_name}.py; the code has {has}")
    if "." in module_name:
        return importlib.import_module(module_name)
    # By location: a file may have the name of a module that the shim or the library needs.
    spec = importlib.util.spec_from_file_location(module_name, path)
    module = importlib.util.module_from_spec(spec)
    if module_name not in sys.modules:
        sys.modules[module_name] = module
    spec.loader.exec_module(module)
    return module


def caller(handler):
    """Calls with as many arguments as the handler takes, and waits for what it promises."""
    count = arguments_of(handler)
    is_async = inspect.iscoroutinefunction(handler) or inspect.isasyncgenfunction(handler)

    def call(event, context):
        if is_async and CONCURRENCY > 1 and type(event) is Request:
            # Reading waits, and on the loop's thread it would hold up the other invocations.
            event.body
        if count == 2:
            result = handler(event, context)
        elif count == 1:
            result = handler(event)
        else:
            result = handler()
        if hasattr(result, "__await__"):
            result = run_async(result)
        return result

    return call


def arguments_of(handler):
    try:
        parameters = inspect.signature(handler).parameters.values()
    except (TypeError, ValueError):
        return 2
    count = 0
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            return 2
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            # A second one with a default is the handler's own business, unless it is the context.
            if count >= 1 and parameter.default is not parameter.empty and parameter.name != "context":
                break
            count += 1
    if count > 2:
        raise LoadError(f"the handler takes {count} arguments; it is called with event and context")
    return count


class Loop:
    """The kept event loop: turned by the calling thread, or by one of its own."""

    def __init__(self, own_thread):
        self.loop = asyncio.new_event_loop()
        self.threaded = own_thread
        if own_thread:
            threading.Thread(target=self.loop.run_forever, name="loop", daemon=True).start()

    def run(self, awaitable):
        if not self.threaded:
            return self.loop.run_until_complete(awaitable)
        return asyncio.run_coroutine_threadsafe(awaited(awaitable), self.loop).result()


async def awaited(awaitable):
    try:
        return await awaitable
    except StopAsyncIteration as end:
        # A future cannot carry it as it is.
        raise StreamEnd from end


class StreamEnd(Exception):
    pass


LOOP = None
LOOP_LOCK = threading.Lock()
CONCURRENCY = 1


def run_async(awaitable):
    global LOOP
    if LOOP is None:
        with LOOP_LOCK:
            if LOOP is None:
                LOOP = Loop(CONCURRENCY > 1)
    try:
        return LOOP.run(awaitable if LOOP.threaded else awaited(awaitable))
    except StreamEnd:
        raise StopAsyncIteration from None


# --- serving --------------------------------------------------------------------------------------

# One entry a free slot. Taking and giving back are single operations on a deque, so no lock; it is
# empty until a function is loaded, and for good once the shim drains.
SLOTS = collections.deque()
FUNCTION = None
CLAIMED = _thread.allocate_lock()
CONNECTIONS = set()
WORK = queue.SimpleQueue()
GIVEN_BACK = queue.SimpleQueue()
draining = False
wanted = False


def invoke(connection, flags, payload):
    global current_request, wanted
    try:
        SLOTS.pop()
    except IndexError:
        wanted = True
        connection.sock.sendall(BUSY_FRAME)
        if not flags & (END | HOLD):
            connection.skip_body()
        return
    request = None
    try:
        request = Request(connection, flags, payload)
        if CONCURRENCY == 1:
            current_request = request.id
        else:
            request_of_context.set(request.id)
        if flags & HOLD and not flags & END:
            connection.sock.sendall(ACCEPT_FRAME)
        try:
            status, headers, body = FUNCTION(request)
            if type(body) is not bytes:
                stream(connection, request, status, headers, body)
                return
        except ProtocolError:
            raise
        except BaseException as error:
            # Also when the caller has gone: the peer counts on an answer to each invocation.
            fault(connection, request, error)
            return
        reply(connection, request, status, headers, body)
    finally:
        if request is None:
            SLOTS.append(None)
        else:
            give_back(request)
    if not request._ended:
        connection.skip_body()


def give_back(request):
    """Frees the slot. Before the last byte of the answer, so that whoever has read it finds the
    slot free."""
    global current_request
    if not request._holds_slot:
        return
    request._holds_slot = False
    if STDOUT.pending:
        STDOUT.end(request.id)
    if STDERR.pending:
        STDERR.end(request.id)
    if CONCURRENCY == 1:
        current_request = None
    else:
        request_of_context.set(None)
    SLOTS.append(None)
    if draining:
        GIVEN_BACK.put(None)


def last():
    """The flags of an answer's last frame."""
    global wanted
    if not wanted:
        return END
    wanted = False
    return END | WANTED


def reply(connection, request, status, headers, body):
    length = len(body)
    if status != 204 and status != 304:
        headers.append(b"content-length\0%d" % length)
    head = U16.pack(status) + b"\0".join(headers)
    if not length:
        give_back(request)
        connection.sock.sendall(pack_header(len(head), RESPONSE, last(), 0) + head)
    elif length <= PIECE:
        give_back(request)
        connection.sock.sendall(
            pack_header(len(head), RESPONSE, 0, 0)
            + head
            + pack_header(length, DATA_OUT, last(), 0)
            + body
        )
    else:
        connection.sock.sendall(pack_header(len(head), RESPONSE, 0, 0) + head)
        view = memoryview(body)
        rest = (length - 1) // PIECE * PIECE
        for start in range(0, rest, PIECE):
            send_piece(connection.sock, view[start : start + PIECE], 0)
        give_back(request)
        send_piece(connection.sock, view[rest:], last())


def send_piece(sock, piece, flags):
    header = pack_header(len(piece), DATA_OUT, flags, 0)
    sent = sock.sendmsg((header, piece))
    if sent < 8:
        sock.sendall(header[sent:])
        sent = 8
    if sent < 8 + len(piece):
        sock.sendall(piece[sent - 8 :])


def stream(connection, request, status, headers, pieces):
    """The head leaves with the first piece, so that a failure before it is a plain failure."""
    sock = connection.sock
    head = U16.pack(status) + b"\0".join(headers)
    first = pack_header(len(head), RESPONSE, 0, 0) + head
    try:
        for piece in pieces:
            piece = piece_bytes(piece)
            if not piece:
                continue
            if request.cancelled:
                break
            for start in range(0, len(piece), PIECE):
                part = piece[start : start + PIECE]
                sock.sendall(first + pack_header(len(part), DATA_OUT, 0, 0) + part)
                first = b""
        # Also after a cancelled stream: its `finally` blocks run now, not at some collection.
        close(pieces)
    except BaseException as error:
        try:
            close(pieces)
        except BaseException:
            traceback.print_exc()
        fault(connection, request, error)
        return
    give_back(request)
    sock.sendall(first + pack_header(0, DATA_OUT, last(), 0))
    if not request._ended:
        connection.skip_body()


def close(pieces):
    closing = getattr(pieces, "close", None)
    if closing:
        closing()


def piece_bytes(piece):
    if isinstance(piece, str):
        return piece.encode()
    if isinstance(piece, JSON_TYPES):
        return bytes(piece)
    return to_json(piece) + b"\n"


def fault(connection, request, error):
    report = describe(error)
    print_error(error)
    body = to_json({"kind": "exception", **report})
    give_back(request)
    connection.sock.sendall(pack_header(len(body), FAULT, last(), 0) + body)
    if not request._ended:
        connection.skip_body()


def describe(error):
    message = str(error)
    if isinstance(error, SystemExit):
        message = f"the handler called sys.exit({message})"
    trace = [
        f"{frame.filename}:{frame.lineno} in {frame.name}" + (f": {frame.line}" if frame.line else "")
        for frame in traceback.extract_tb(own_frames_removed(error.__traceback__))[-50:]
    ]
    return {"type": type(error).__name__, "message": message[:4096], "trace": trace}


NOT_THE_USERS = (
    __file__,
    importlib.__file__,
    "<frozen importlib._bootstrap>",
    "<frozen importlib._bootstrap_external>",
)


def own_frames_removed(tb):
    while tb is not None and tb.tb_frame.f_code.co_filename in NOT_THE_USERS:
        tb = tb.tb_next
    return tb


def print_error(error):
    text = "".join(
        traceback.format_exception(type(error), error, own_frames_removed(error.__traceback__))
    )
    STDERR.write(text)


def claim(connection, payload):
    if not CLAIMED.acquire(False):
        refused = {"type": "AlreadyClaimed", "message": "this shim serves a function", "trace": []}
        send_json(connection, FAILED, refused)
        return
    answers = queue.SimpleQueue()
    WORK.put((payload, answers))
    kind, report = answers.get()
    send_json(connection, kind, report)


def send_json(connection, kind, value):
    body = to_json(value)
    connection.sock.sendall(pack_header(len(body), kind, 0, 0) + body)


def serve(connection):
    while True:
        frame = connection.frame()
        if frame is None:
            return
        kind, flags, payload = frame
        if kind == INVOKE:
            with connection.answering:
                invoke(connection, flags, payload)
        elif kind == PING:
            connection.sock.sendall(PONG_FRAME)
        elif kind == CLAIM:
            claim(connection, payload)
        elif kind != CANCEL:
            # A CANCEL that crossed the end of its answer means nothing any more.
            raise ProtocolError(f"frame {kind:#x} out of turn")


class Acceptors:
    """Threads that accept and then serve; one is always left waiting."""

    def __init__(self, listener, spare):
        self.listener = listener
        self.idle = 0
        self.lock = _thread.allocate_lock()
        for _ in range(spare):
            self.start_one()

    def start_one(self):
        with self.lock:
            self.idle += 1
        try:
            _thread.start_new_thread(self.run, ())
        except RuntimeError:
            # The function has used up its threads. Whoever serves now accepts again afterwards.
            with self.lock:
                self.idle -= 1

    def run(self):
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                if draining:
                    return
                continue
            with self.lock:
                self.idle -= 1
                last = self.idle == 0
            if last:
                self.start_one()
            connection = Connection(sock)
            CONNECTIONS.add(connection)
            try:
                serve(connection)
            except (OSError, ProtocolError):
                pass
            finally:
                CONNECTIONS.discard(connection)
                sock.close()
            with self.lock:
                if self.idle >= 2:
                    return
                self.idle += 1


def handle_claim(payload):
    """On the main thread."""
    global FUNCTION, CONCURRENCY, which_request
    started = time.monotonic_ns()
    try:
        claim = json.loads(payload)
        CONCURRENCY = claim["concurrency"]
        if CONCURRENCY > 1:
            which_request = request_of_many
            tag_new_threads()
        # An import makes many objects and hardly any garbage.
        gc.disable()
        try:
            FUNCTION = load(claim)
        finally:
            gc.enable()
        gc.freeze()
    except BaseException as error:
        print_error(error)
        STDOUT.end_all()
        STDERR.end_all()
        return FAILED, describe(error)
    SLOTS.extend([None] * CONCURRENCY)
    return READY, {"init_us": (time.monotonic_ns() - started) // 1000}


def drain(listener):
    global draining
    draining = True
    try:
        listener.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    taken = 0 if FUNCTION else CONCURRENCY
    while taken < CONCURRENCY:
        try:
            SLOTS.pop()
            taken += 1
        except IndexError:
            GIVEN_BACK.get()
    # Slots are given back before the last byte is written.
    for connection in list(CONNECTIONS):
        connection.answering.acquire()
    atexit._run_exitfuncs()
    STDOUT.end_all()
    STDERR.end_all()
    os._exit(0)


def watch_for_the_end():
    """Turns SIGTERM into work for the main thread. Not by a Python handler: one that falls between
    the main thread's look for signals and its wait would be seen only at the next piece of work. A
    blocked signal and sigwait would do as well, but child processes would inherit the block."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)

    def watch():
        while signal.SIGTERM not in os.read(read_end, 64):
            pass
        WORK.put(None)

    _thread.start_new_thread(watch, ())


def main():
    sys.stdout, sys.stderr = STDOUT, STDERR
    sys.__stdout__, sys.__stderr__ = STDOUT, STDERR
    path = os.environ.pop("CORACLE_SOCKET", "/run/fn/fn.sock")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    if os.path.exists(path):
        os.unlink(path)
    listener.bind(path)
    # Without an argument: as many as the system allows.
    listener.listen()
    watch_for_the_end()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Acceptors(listener, 2)
    gc.collect()
    gc.freeze()
    while True:
        work = WORK.get()
        if work is None:
            drain(listener)
        payload, answers = work
        answers.put(handle_claim(payload))


if __name__ == "__main__":
    main()
