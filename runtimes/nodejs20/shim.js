'use strict';
/*
 * The Node.js shim: loads one function and calls it, as runtimes/CONTRACT.md says.
 *
 * How a handler is called and what its answer means (the Python shim does the same):
 *
 * | convention | called with | answer |
 * |---|---|---|
 * | kubeless | event {data, event-id, event-type, event-time, event-namespace, extension, extensions}, context {function-name, timeout, runtime, memory-limit} | text, bytes, or anything else as JSON; status and headers by event.extension.response |
 * | scaleway | event {path, httpMethod, headers, queryStringParameters, body, isBase64Encoded, requestContext ...}, context {memoryLimitInMb, functionName, functionVersion}, callback | an object with statusCode is {statusCode, headers, body, isBase64Encoded}; else as kubeless |
 * | scf | event: the body as JSON; {} for an empty POST; else an object like scaleway's. context {request_id, memory_limit_in_mb, time_limit_in_ms, function_name ...}, callback | always JSON; to an object like scaleway's, as scaleway |
 * | http | request {method, path, query, headers, body ...} | text, bytes, JSON; an object {status, headers, body} whose status is a number; a Response |
 *
 * The answer is what the handler returns, what its promise gives, or, with a third parameter, what
 * it hands to the callback. `data` is parsed JSON when the content type says so and it parses, else
 * text, else (not UTF-8) a Buffer. The pieces of an async iterable, a generator or a stream are streamed; the
 * head leaves with the first piece. A handler is called when the whole body is there. One in `http`
 * that has a true property `streaming` is called with the head, and reads the body with `for await`
 * (its `request.body` is a promise). `request.signal` is an AbortSignal that fires when the caller
 * has gone.
 *
 * The module is CommonJS or ESM. An exception that nothing caught fails the invocation during which
 * it happened, if only one runs; a rejection that nothing caught is only printed. Neither ends the
 * process. Output of child processes and of native code is not tagged with a request.
 */

const { AsyncLocalStorage } = require('node:async_hooks');
const fs = require('node:fs');
const net = require('node:net');
const path = require('node:path');
const { pathToFileURL } = require('node:url');
const util = require('node:util');
// Not used here: loaded into the stem because most functions or their packages need them, and are
// then in memory before there is a request to wait for them.
for (const name of ['crypto', 'dns', 'http', 'https', 'querystring', 'stream', 'tls', 'zlib']) {
  require(`node:${name}`);
}

const INVOKE = 0x01, DATA_IN = 0x02, CANCEL = 0x03, CLAIM = 0x10, PING = 0x11;
const RESPONSE = 0x81, DATA_OUT = 0x82, BUSY = 0x83, FAULT = 0x84, ACCEPT = 0x85;
const READY = 0x90, FAILED = 0x91, PONG = 0x92;
const END = 1, HOLD = 2;
// On the last frame of an answer: somebody was told BUSY meanwhile.
const WANTED = 4;
const MAX_PAYLOAD = 1 << 20;
const PIECE = 64 * 1024;
// A line longer than this is cut, so that output without line ends cannot fill the memory.
const MAX_LINE = 64 * 1024;
// The body that a handler has not asked for yet; beyond it the socket is not read.
const MAX_QUEUED = 1 << 20;

const TOKEN = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/;
const FORBIDDEN = /[\0\r\n]/;
const EMPTY = Buffer.alloc(0);
const utf8 = new util.TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

function frame(kind, flags, payload) {
  const out = Buffer.allocUnsafe(8 + payload.length);
  out.writeUInt32LE(payload.length, 0);
  out[4] = kind;
  out[5] = flags;
  out[6] = out[7] = 0;
  payload.copy(out, 8);
  return out;
}

const jsonFrame = (kind, flags, value) => frame(kind, flags, Buffer.from(JSON.stringify(value)));

class CallerGone extends Error {
  constructor() {
    super('the caller went away before the whole request had arrived');
    this.name = 'CallerGone';
  }
}

// --- output ----------------------------------------------------------------------------------------

// With concurrency 1 one variable is enough; with more, the context of the asynchronous call tells.
let currentRequest;
let requests;

const whichRequest = () => (requests ? requests.getStore() : currentRequest);

// Whole lines go to `stream` (synchronous for pipes), each prefixed with its request.
class Tagged {
  constructor(stream) {
    this.pending = new Map();
    this.raw = stream.write.bind(stream);
    stream.write = (chunk, encoding, callback) => {
      if (typeof encoding === 'function') [encoding, callback] = [undefined, encoding];
      this.write(typeof chunk === 'string' ? chunk : Buffer.from(chunk).toString('utf8'));
      if (callback) process.nextTick(callback);
      return true;
    };
    // Nobody reads the output any more; the function does not suffer for it.
    stream.on('error', () => {});
  }

  write(text) {
    const request = whichRequest();
    if (this.pending.size > 0) {
      text = (this.pending.get(request) ?? '') + text;
      this.pending.delete(request);
    }
    const end = text.lastIndexOf('\n');
    const rest = end < 0 ? text : text.slice(end + 1);
    if (rest.length > MAX_LINE) {
      this.lines(request, text);
      return;
    }
    if (rest !== '') this.pending.set(request, rest);
    if (end >= 0) this.lines(request, text.slice(0, end));
  }

  lines(request, text) {
    if (request !== undefined) {
      const tag = `\x01${request}\x02`;
      this.raw(tag + (text.includes('\n') ? text.replaceAll('\n', `\n${tag}`) : text) + '\n');
    } else {
      // What only looks like a tag is none.
      this.raw((text.includes('\x01') ? text.replaceAll('\x01', '') : text) + '\n');
    }
  }

  end(request) {
    const rest = this.pending.get(request);
    if (rest === undefined) return;
    this.pending.delete(request);
    this.lines(request, rest);
  }

  endAll() {
    for (const request of [...this.pending.keys()]) this.end(request);
  }
}

const stdout = new Tagged(process.stdout);
const stderr = new Tagged(process.stderr);

// --- requests --------------------------------------------------------------------------------------

class Request {
  #invocation;
  #body;
  #query;

  constructor(invocation, text) {
    this.#invocation = invocation;
    this.id = text[0];
    this.method = text[1];
    this.target = text[2];
    const headers = {};
    for (let i = 3; i + 1 < text.length; i += 2) {
      const name = text[i], before = Object.hasOwn(headers, name) ? headers[name] : undefined;
      headers[name] =
        before === undefined ? text[i + 1] : before + (name === 'cookie' ? '; ' : ', ') + text[i + 1];
    }
    this.headers = headers;
    if (invocation.ended) this.#body = EMPTY;
  }

  get path() {
    const at = this.target.indexOf('?');
    const plain = at < 0 ? this.target : this.target.slice(0, at);
    try {
      return decodeURIComponent(plain);
    } catch {
      return plain;
    }
  }

  get url() {
    return this.target;
  }

  get queryString() {
    const at = this.target.indexOf('?');
    return at < 0 ? '' : this.target.slice(at + 1);
  }

  get query() {
    this.#query ??= Object.fromEntries(new URLSearchParams(this.queryString));
    return this.#query;
  }

  get contentType() {
    return (this.headers['content-type'] ?? '').split(';', 1)[0].trim().toLowerCase();
  }

  // A Buffer, or a promise of one for a handler that is called before all of it is there.
  get body() {
    if (this.#body === undefined) {
      const { queue, ended, cut } = this.#invocation;
      if (ended && !cut && !loaded.streaming) {
        this.#body = queue.length === 1 ? queue[0] : Buffer.concat(queue);
        queue.length = 0;
      } else {
        this.#body = this.#readAll();
      }
    }
    return this.#body;
  }

  async #readAll() {
    const pieces = [];
    for await (const piece of this.#invocation.pieces()) pieces.push(piece);
    return (this.#body = Buffer.concat(pieces));
  }

  async text() {
    return (await this.body).toString('utf8');
  }

  async json() {
    return JSON.parse(await this.text());
  }

  get signal() {
    return this.#invocation.signal;
  }

  get cancelled() {
    return this.#invocation.gone;
  }

  // Milliseconds until the platform ends the call; undefined when it does not.
  timeLeft() {
    const { deadline } = this.#invocation;
    return deadline === undefined ? undefined : Math.max(0, deadline - performance.now());
  }

  async *[Symbol.asyncIterator]() {
    if (this.#body !== undefined) {
      const body = await this.#body;
      if (body.length > 0) yield body;
      return;
    }
    yield* this.#invocation.pieces();
  }
}

// --- answers ---------------------------------------------------------------------------------------

const TEXT_TYPE = 'content-type\0text/plain; charset=utf-8';
const BYTES_TYPE = 'content-type\0application/octet-stream';
const JSON_TYPE = 'content-type\0application/json';

const isBytes = (value) => value instanceof Uint8Array || value instanceof ArrayBuffer;

function toJson(value) {
  const text = JSON.stringify(value, (_, one) => (typeof one === 'bigint' ? one.toString() : one));
  if (text === undefined) throw new TypeError(`the handler answered with a ${typeof value}, which JSON cannot hold`);
  return Buffer.from(text);
}

// The body (a Buffer or an iterable of pieces) and the type that goes with it.
function bodyOf(value) {
  if (typeof value === 'string') return [Buffer.from(value), TEXT_TYPE];
  if (value === undefined || value === null) return [EMPTY, undefined];
  if (Buffer.isBuffer(value)) return [value, BYTES_TYPE];
  if (isBytes(value)) return [toBuffer(value), BYTES_TYPE];
  if (typeof value === 'object') {
    if (typeof value[Symbol.asyncIterator] === 'function') return [value, TEXT_TYPE];
    // An array is a value; what only has `next` beside it is a generator.
    if (typeof value.next === 'function' && typeof value[Symbol.iterator] === 'function') {
      return [value, TEXT_TYPE];
    }
  }
  return [toJson(value), JSON_TYPE];
}

const toBuffer = (value) =>
  value instanceof ArrayBuffer
    ? Buffer.from(value)
    : Buffer.from(value.buffer, value.byteOffset, value.byteLength);

// A handler's headers as the frame has them; the length is left to the shim.
function headOf(headers, bodyType) {
  if (!headers) return bodyType ? [bodyType] : [];
  const found = [];
  let typed = false;
  const pairs = typeof headers[Symbol.iterator] === 'function' ? headers : Object.entries(headers);
  for (const [given, value] of pairs) {
    const name = String(given).toLowerCase();
    if (!TOKEN.test(name)) throw new TypeError(`the handler set a header with the name ${JSON.stringify(name)}`);
    if (name === 'content-length') continue;
    typed ||= name === 'content-type';
    for (const one of Array.isArray(value) ? value : [value]) {
      const text = String(one);
      if (FORBIDDEN.test(text)) {
        throw new TypeError(`the handler set the header ${JSON.stringify(name)} to a value with a line end`);
      }
      found.push(`${name}\0${text}`);
    }
  }
  if (bodyType && !typed) found.push(bodyType);
  return found;
}

function answer(status, headers, value) {
  const [body, bodyType] = bodyOf(value);
  const number = Number(status);
  if (!Number.isInteger(number) || number < 200 || number > 599) {
    throw new RangeError(`the handler answered with the status ${util.inspect(status)}; it must be 200 to 599`);
  }
  return { status: number, headers: headOf(headers, bodyType), body };
}

// An object in the shape of an API gateway's answer.
function gatewayAnswer(result) {
  let { body } = result;
  if (result.isBase64Encoded && typeof body === 'string') {
    if (!/^[A-Za-z0-9+/\s]*={0,2}\s*$/.test(body)) {
      throw new TypeError('the handler set isBase64Encoded, but its body is no base64');
    }
    body = Buffer.from(body, 'base64');
  }
  return answer(result.statusCode, result.headers, body);
}

const hasStatusCode = (result) =>
  typeof result === 'object' && result !== null && result.statusCode !== undefined;

// --- conventions -----------------------------------------------------------------------------------
//
// Each is made once, when the function is loaded. `event` makes the arguments of a request whose
// body is known, `answer` reads the handler's result.

function textOrBytes(body) {
  try {
    return utf8.decode(body);
  } catch {
    return body;
  }
}

const isJson = (type) => type === 'application/json' || type.endsWith('+json');

function gatewayEvent(request, body, fn) {
  let text = textOrBytes(body);
  const encoded = typeof text !== 'string';
  if (encoded) text = body.toString('base64');
  const many = {};
  for (const [name, value] of new URLSearchParams(request.queryString)) {
    // Not by assignment: a caller may choose a name that every object has, such as `constructor`.
    if (Object.hasOwn(many, name)) many[name].push(value);
    else Object.defineProperty(many, name, { value: [value], enumerable: true, configurable: true, writable: true });
  }
  return {
    resource: '/',
    path: request.path,
    httpMethod: request.method,
    headers: request.headers,
    multiValueHeaders: null,
    queryStringParameters: request.query,
    queryString: request.query,
    multiValueQueryStringParameters: many,
    pathParameters: null,
    stageVariables: {},
    requestContext: {
      accountId: fn.project,
      resourceId: fn.id,
      stage: '',
      requestId: request.id,
      resourcePath: '/',
      authorizer: null,
      httpMethod: request.method,
      apiId: '',
      path: request.path,
    },
    body: text,
    isBase64Encoded: encoded,
  };
}

const CONVENTIONS = {
  kubeless(fn) {
    const known = {
      'function-name': fn.name,
      timeout: String(fn.timeout),
      runtime: fn.runtime,
      'memory-limit': `${fn.memory}Mi`,
    };
    return {
      callback: false,
      args(request, body) {
        const { headers, contentType } = request;
        let data = body.length > 0 ? textOrBytes(body) : '';
        if (body.length > 0 && isJson(contentType)) {
          try {
            data = JSON.parse(data);
          } catch {
            // It stays text.
          }
        }
        const response = {
          status: 200,
          headers: {},
          setHeader(name, value) {
            this.headers[name] = value;
          },
        };
        const extension = { request, response };
        return [
          {
            data,
            'event-id': headers['event-id'] ?? request.id,
            'event-type': headers['event-type'] ?? contentType,
            'event-time': headers['event-time'] ?? new Date().toISOString(),
            'event-namespace': headers['event-namespace'] ?? fn.namespace,
            extension,
            extensions: extension,
          },
          { ...known },
        ];
      },
      answer: (result, [event]) => {
        const { response } = event.extension ?? {};
        return answer(response?.status ?? 200, response?.headers, result);
      },
    };
  },

  scaleway(fn) {
    const known = {
      memoryLimitInMb: fn.memory,
      functionName: fn.name,
      functionVersion: String(fn.revision),
    };
    return {
      callback: true,
      args: (request, body) => [gatewayEvent(request, body, fn), { ...known }],
      answer: (result) => (hasStatusCode(result) ? gatewayAnswer(result) : answer(200, null, result)),
    };
  },

  scf(fn) {
    const known = {
      memory_limit_in_mb: fn.memory,
      time_limit_in_ms: fn.timeout * 1000,
      function_name: fn.name,
      function_version: String(fn.revision),
      namespace: fn.namespace,
      environ: Object.entries(fn.env).map(([name, value]) => `${name}=${value}`).join(';'),
      tencentcloud_region: '',
      tencentcloud_appid: '',
      tencentcloud_uin: '',
      callbackWaitsForEmptyEventLoop: true,
    };
    return {
      callback: true,
      args(request, body) {
        let event;
        if (body.length > 0) {
          const type = request.contentType;
          if (type === '' || isJson(type)) {
            try {
              event = { value: JSON.parse(utf8.decode(body)) };
            } catch {
              // Not JSON after all.
            }
          }
        } else if (request.method === 'POST') {
          event = { value: {} };
        }
        const context = { ...known, request_id: request.id };
        const direct = event !== undefined;
        return [direct ? event.value : gatewayEvent(request, body, fn), context, direct];
      },
      answer(result, [, , direct]) {
        if (!direct) return hasStatusCode(result) ? gatewayAnswer(result) : answer(200, null, result);
        const made = answer(200, null, result);
        if (!Buffer.isBuffer(made.body)) return made;
        return { status: 200, headers: [JSON_TYPE], body: toJson(result ?? null) };
      },
    };
  },

  http() {
    const known = new Set(['status', 'statusCode', 'headers', 'body', 'isBase64Encoded']);
    return {
      callback: false,
      mayStream: true,
      args: (request) => [request, undefined],
      answer(result) {
        if (typeof result !== 'object' || result === null) return answer(200, null, result);
        if (typeof Response === 'function' && result instanceof Response) {
          return answer(result.status, result.headers, result.body);
        }
        const status = result.status ?? result.statusCode;
        if (typeof status === 'number' && Object.keys(result).every((name) => known.has(name))) {
          return gatewayAnswer({ ...result, statusCode: status });
        }
        return answer(200, null, result);
      },
    };
  },
};

// --- loading ---------------------------------------------------------------------------------------

class LoadError extends Error {
  constructor(message) {
    super(message);
    this.name = 'LoadError';
  }
}

function setEnvironment(claim) {
  const { project, namespace, name, revision } = claim.function;
  Object.assign(process.env, {
    CORACLE_PROJECT: project,
    CORACLE_NAMESPACE: namespace,
    CORACLE_FUNCTION: name,
    CORACLE_REVISION: String(revision),
    CORACLE_INSTANCE: claim.instance,
    CORACLE_RUNTIME: claim.runtime,
    CORACLE_MEMORY_MIB: String(claim.memory_mib),
    FUNC_HANDLER: claim.entry.slice(claim.entry.lastIndexOf('.') + 1),
    FUNC_RUNTIME: claim.runtime,
    FUNC_TIMEOUT: String(claim.timeout_secs),
    FUNC_MEMORY_LIMIT: `${claim.memory_mib}Mi`,
    OMP_NUM_THREADS: String(Math.max(1, Math.ceil((claim.cpu_millis ?? 1000) / 1000))),
    ...claim.env,
  });
}

function findModule(code, name) {
  const base = path.join(code, name);
  for (const file of [`${base}.js`, `${base}.cjs`, `${base}.mjs`, path.join(base, 'index.js')]) {
    if (fs.existsSync(file)) return file;
  }
  const has = fs.readdirSync(code).filter((file) => /\.[cm]?js$/.test(file)).sort();
  throw new LoadError(`there is no ${name}.js; the code has ${has.join(', ') || 'no .js file'}`);
}

async function loadModule(file) {
  if (!file.endsWith('.mjs')) {
    try {
      return require(file);
    } catch (error) {
      const esm = ['ERR_REQUIRE_ESM', 'ERR_REQUIRE_ASYNC_MODULE'].includes(error?.code);
      const syntax = error instanceof SyntaxError && /import|export|await/.test(error.message);
      if (!esm && !syntax) throw error;
      try {
        return await import(pathToFileURL(file).href);
      } catch (second) {
        throw esm ? second : error;
      }
    }
  }
  return import(pathToFileURL(file).href);
}

async function load(claim) {
  const convention = CONVENTIONS[claim.convention];
  if (convention === undefined || !Object.hasOwn(CONVENTIONS, claim.convention)) {
    throw new LoadError(`convention ${JSON.stringify(claim.convention)} is unknown to this runtime`);
  }
  setEnvironment(claim);
  if (claim.deps) {
    // Only now: an earlier lookup could have remembered the directory as empty. ESM does not read
    // this; for it the image has a node_modules link above the code.
    process.env.NODE_PATH = path.join(claim.deps, 'node_modules');
    require('node:module').Module._initPaths();
  }
  const { function: fn } = claim;
  const at = claim.entry.lastIndexOf('.');
  const name = claim.entry.slice(at + 1);
  const file = findModule(claim.code, at < 0 ? 'main' : claim.entry.slice(0, at));
  const module = await loadModule(file);
  const places = [module, module?.default].filter((place) => place !== undefined && place !== null);
  let handler;
  for (const place of places) {
    // A function has members such as `call` and `name` that nobody exported.
    if (typeof place === 'function' && !Object.hasOwn(place, name)) continue;
    handler ??= place[name] && { call: place[name], self: place };
  }
  if (handler === undefined) {
    const alone = places.find((place) => typeof place === 'function');
    if (alone) handler = { call: alone };
  }
  if (typeof handler?.call !== 'function') {
    const offer = places.flatMap((place) =>
      Object.keys(place).filter((key) => typeof place[key] === 'function'));
    const hint = offer.length > 0 ? `; it has ${[...new Set(offer)].join(', ')}` : '';
    const what = handler === undefined ? 'is not exported by' : 'is no function in';
    throw new LoadError(`handler ${JSON.stringify(name)} ${what} ${path.basename(file)}${hint}`);
  }
  const called = convention({
    ...fn,
    runtime: claim.runtime,
    memory: claim.memory_mib,
    timeout: claim.timeout_secs,
    env: claim.env,
  });
  return {
    ...called,
    streaming: called.mayStream === true && Boolean(handler.call.streaming),
    handler: handler.self ? handler.call.bind(handler.self) : handler.call,
    takesCallback: handler.call.length >= 3,
  };
}

// --- invocations -----------------------------------------------------------------------------------

let loaded;
let claimed = false;
let concurrency = 1;
let slots = 0;
let draining = false;
let wanted = false;
const running = new Set();
const connections = new Set();

class Invocation {
  #abort;
  #waiting;

  constructor(connection, flags, payload) {
    this.connection = connection;
    // No more body will come: it ended, or the caller has gone.
    this.ended = (flags & END) !== 0;
    this.gone = false;
    this.queue = [];
    this.queued = 0;
    // The caller went before the body ended.
    this.cut = false;
    this.answered = false;
    this.wake = undefined;
    this.discard = false;
    this.headSent = false;
    const left = payload.readUInt32LE(0);
    this.deadline = left > 0 ? performance.now() + left : undefined;
    this.request = new Request(this, payload.latin1Slice(4).split('\0'));
    this.id = this.request.id;
  }

  get signal() {
    this.#abort ??= new AbortController();
    if (this.gone) this.#abort.abort();
    return this.#abort.signal;
  }

  data(flags, piece) {
    if (flags & END) this.ended = true;
    if (piece.length > 0 && !this.discard) {
      this.queue.push(piece);
      this.queued += piece.length;
      if (this.queued > MAX_QUEUED) this.connection.socket.pause();
    }
    this.wake?.();
  }

  cancel() {
    if (this.gone) return;
    this.gone = true;
    this.cut = !this.ended;
    this.ended = true;
    this.#abort?.abort();
    this.wake?.();
    this.#waiting?.();
  }

  async *pieces() {
    for (;;) {
      while (this.queue.length > 0) {
        const piece = this.queue.shift();
        this.queued -= piece.length;
        if (this.queued <= MAX_QUEUED) this.connection.socket.resume();
        yield piece;
      }
      if (this.cut) throw new CallerGone();
      if (this.ended) return;
      await new Promise((resolve) => {
        this.wake = resolve;
      });
      this.wake = undefined;
    }
  }

  run() {
    running.add(this);
    if (requests) requests.run(this.id, () => this.#call());
    else {
      currentRequest = this.id;
      this.#call();
    }
  }

  // Not an async function: a handler that answers at once costs no turn of the loop.
  #call() {
    try {
      if (loaded.streaming) return this.#invoke(EMPTY);
      const body = this.request.body;
      if (Buffer.isBuffer(body)) return this.#invoke(body);
      body.then((all) => this.#invoke(all)).catch((error) => this.fail(error));
    } catch (error) {
      this.fail(error);
    }
  }

  #invoke(body) {
    try {
      const args = loaded.args(this.request, body);
      let result;
      if (loaded.takesCallback && loaded.callback) {
        let settle;
        const called = new Promise((resolve, reject) => {
          settle = (error, value) => (error ? reject(error) : resolve(value));
        });
        result = loaded.handler(args[0], args[1], settle);
        if (typeof result?.then === 'function') {
          // An async function with a callback may use either; nothing means the callback.
          result = Promise.race([called, result.then((value) => (value === undefined ? called : value))]);
        } else if (result === undefined) {
          result = called;
        }
      } else {
        result = loaded.handler(args[0], args[1]);
      }
      if (typeof result?.then === 'function') {
        result.then((value) => this.#answer(loaded.answer(value, args))).catch((error) => this.fail(error));
      } else {
        this.#answer(loaded.answer(result, args));
      }
    } catch (error) {
      this.fail(error);
    }
  }

  #answer({ status, headers, body }) {
    if (this.answered) return;
    if (!Buffer.isBuffer(body)) {
      this.#stream(status, headers, body).catch((error) => this.fail(error));
      return;
    }
    const length = body.length;
    if (status !== 204 && status !== 304) headers.push(`content-length\0${length}`);
    const flags = last();
    const head = headFrame(status, headers, length === 0 ? flags : 0);
    this.#giveBack();
    const { socket } = this.connection;
    if (length === 0) {
      socket.write(head);
    } else if (length <= PIECE) {
      const out = Buffer.allocUnsafe(head.length + 8 + length);
      head.copy(out);
      out.writeUInt32LE(length, head.length);
      out[head.length + 4] = DATA_OUT;
      out[head.length + 5] = flags;
      out[head.length + 6] = out[head.length + 7] = 0;
      body.copy(out, head.length + 8);
      socket.write(out);
    } else {
      socket.cork();
      socket.write(head);
      for (let at = 0; at < length; at += PIECE) {
        const piece = body.subarray(at, at + PIECE);
        socket.write(frame(DATA_OUT, at + PIECE >= length ? flags : 0, piece));
      }
      socket.uncork();
    }
    this.#finish();
  }

  // The head leaves with the first piece, so that a failure before it is a plain failure.
  async #stream(status, headers, pieces) {
    const { socket } = this.connection;
    const head = () => {
      this.headSent = true;
      return headFrame(status, headers, 0);
    };
    for await (const given of pieces) {
      if (this.gone) break;
      const piece = pieceBytes(given);
      for (let at = 0; at < piece.length; at += PIECE) {
        const data = frame(DATA_OUT, 0, piece.subarray(at, at + PIECE));
        const free = socket.write(this.headSent ? data : Buffer.concat([head(), data]));
        if (!free) {
          await new Promise((resolve) => {
            this.#waiting = resolve;
            socket.once('drain', resolve);
          });
          this.#waiting = undefined;
        }
      }
    }
    if (this.answered) return;
    this.#giveBack();
    const end = frame(DATA_OUT, last(), EMPTY);
    socket.write(this.headSent ? end : Buffer.concat([head(), end]));
    this.#finish();
  }

  fail(error) {
    printError(error);
    if (this.answered) return;
    this.#giveBack();
    this.connection.socket.write(jsonFrame(FAULT, last(), { kind: 'exception', ...describe(error) }));
    this.#finish();
  }

  // Before the last byte of the answer, so that whoever has read it finds the slot free.
  #giveBack() {
    this.answered = true;
    running.delete(this);
    stdout.end(this.id);
    stderr.end(this.id);
    if (!requests) currentRequest = undefined;
    slots += 1;
  }

  #finish() {
    this.discard = true;
    this.queue.length = 0;
    this.queued = 0;
    if (this.connection.socket.isPaused()) this.connection.socket.resume();
    this.connection.finished(this);
    if (draining) endWhenIdle();
  }
}

// The flags of an answer's last frame.
function last() {
  if (!wanted) return END;
  wanted = false;
  return END | WANTED;
}

function headFrame(status, headers, flags) {
  const text = headers.join('\0');
  // Latin-1 where it can be; what cannot goes out as UTF-8.
  const encoding = /^[\0-\xff]*$/.test(text) ? 'latin1' : 'utf8';
  const length = Buffer.byteLength(text, encoding);
  const out = Buffer.allocUnsafe(10 + length);
  out.writeUInt32LE(2 + length, 0);
  out[4] = RESPONSE;
  out[5] = flags;
  out[6] = out[7] = 0;
  out.writeUInt16LE(status, 8);
  out.write(text, 10, encoding);
  return out;
}

function pieceBytes(piece) {
  if (typeof piece === 'string') return Buffer.from(piece);
  if (Buffer.isBuffer(piece)) return piece;
  if (isBytes(piece)) return toBuffer(piece);
  return Buffer.concat([toJson(piece), Buffer.from('\n')]);
}

function describe(error) {
  if (!(error instanceof Error) && !(typeof error === 'object' && error !== null && 'message' in error)) {
    return { type: typeof error, message: `the handler threw ${util.inspect(error)}`.slice(0, 4096), trace: [] };
  }
  return {
    type: String(error.name ?? 'Error'),
    message: String(error.message).slice(0, 4096),
    trace: userFrames(error).slice(0, 50),
  };
}

const NOT_THE_USERS = new RegExp(`${__filename.replace(/[.*+?^\${}()|[\]\\]/g, '\\$&')}|\\(?node:`);

function userFrames(error) {
  return String(error.stack ?? '')
    .split('\n')
    .filter((line) => /^\s+at /.test(line) && !NOT_THE_USERS.test(line))
    .map((line) => line.trim());
}

function printError(error) {
  const text = error instanceof Error ? util.inspect(error) : `Thrown: ${util.inspect(error)}`;
  const own = text.split('\n').filter((line) => !(/^\s+at /.test(line) && NOT_THE_USERS.test(line)));
  stderr.write(`${own.join('\n')}\n`);
}

// --- connections -----------------------------------------------------------------------------------

const BUSY_FRAME = frame(BUSY, 0, EMPTY);
const ACCEPT_FRAME = frame(ACCEPT, 0, EMPTY);
const PONG_FRAME = frame(PONG, 0, EMPTY);

class Connection {
  constructor(socket) {
    this.socket = socket;
    this.parts = [];
    this.have = 0;
    this.need = 8;
    // The invocation that runs, or whose body still arrives.
    this.invocation = undefined;
    // After BUSY: a body that nobody reads.
    this.skipping = false;
    connections.add(this);
    socket.on('data', (chunk) => this.receive(chunk));
    socket.on('error', () => socket.destroy());
    socket.on('close', () => {
      connections.delete(this);
      this.invocation?.cancel();
    });
  }

  receive(chunk) {
    if (this.have > 0) {
      this.parts.push(chunk);
      this.have += chunk.length;
      if (this.have < this.need) return;
      chunk = Buffer.concat(this.parts, this.have);
    }
    let at = 0;
    const { length } = chunk;
    this.need = 8;
    while (length - at >= 8) {
      const size = chunk.readUInt32LE(at);
      if (size > MAX_PAYLOAD) return this.socket.destroy();
      const end = at + 8 + size;
      if (end > length) {
        this.need = 8 + size;
        break;
      }
      this.frame(chunk[at + 4], chunk[at + 5], chunk.subarray(at + 8, end));
      if (this.socket.destroyed) return;
      at = end;
    }
    this.have = length - at;
    this.parts = this.have > 0 ? [chunk.subarray(at)] : [];
  }

  frame(kind, flags, payload) {
    const { invocation } = this;
    if (kind === INVOKE) {
      if (invocation || this.skipping) return this.socket.destroy();
      this.invoke(flags, payload);
    } else if (kind === DATA_IN) {
      if (this.skipping) this.skipping = (flags & END) === 0;
      else if (!invocation || invocation.ended) return this.socket.destroy();
      else {
        invocation.data(flags, payload);
        if (invocation.answered) this.finished(invocation);
      }
    } else if (kind === CANCEL) {
      // One that crossed the end of its answer means nothing any more.
      this.skipping = false;
      if (invocation) {
        invocation.cancel();
        if (invocation.answered) this.finished(invocation);
      }
    } else if (kind === PING) {
      this.socket.write(PONG_FRAME);
    } else if (kind === CLAIM) {
      this.claim(payload);
    } else {
      this.socket.destroy();
    }
  }

  invoke(flags, payload) {
    if (slots === 0 || draining) {
      wanted = true;
      this.socket.write(BUSY_FRAME);
      this.skipping = (flags & (END | HOLD)) === 0;
      return;
    }
    let invocation;
    try {
      invocation = new Invocation(this, flags, payload);
    } catch {
      return this.socket.destroy();
    }
    slots -= 1;
    this.invocation = invocation;
    if (flags & HOLD && !(flags & END)) this.socket.write(ACCEPT_FRAME);
    // A small body is in the same read as the head: starting after it saves the handler a wait.
    if (invocation.ended) invocation.run();
    else queueMicrotask(() => invocation.run());
  }

  finished(invocation) {
    if (this.invocation === invocation && invocation.ended) this.invocation = undefined;
  }

  claim(payload) {
    const refuse = (type, message) => this.socket.write(jsonFrame(FAILED, 0, { type, message, trace: [] }));
    if (claimed) return refuse('AlreadyClaimed', 'this shim serves a function');
    claimed = true;
    const began = process.hrtime.bigint();
    let claim;
    const reading = async () => {
      claim = JSON.parse(payload.toString('utf8'));
      concurrency = claim.concurrency;
      if (concurrency > 1) requests = new AsyncLocalStorage();
      return load(claim);
    };
    reading().then(
      (ready) => {
        loaded = ready;
        slots = concurrency;
        const micros = Number((process.hrtime.bigint() - began) / 1000n);
        this.socket.write(jsonFrame(READY, 0, { init_us: micros }));
      },
      (error) => {
        printError(error);
        this.socket.write(jsonFrame(FAILED, 0, describeLoad(error)));
      },
    );
  }
}

function describeLoad(error) {
  const report = describe(error);
  // V8 tells the place of a syntax error only in the first line of its stack.
  const place = error instanceof SyntaxError && /^(?:file:\/\/)?(\/[^\n]*):(\d+)\n/.exec(error.stack ?? '');
  if (place) report.message += ` (${path.basename(place[1])}, line ${place[2]})`;
  return report;
}

// --- the process -----------------------------------------------------------------------------------

function endWhenIdle() {
  if (running.size > 0) return;
  for (const { socket } of connections) {
    // Slots are given back before the last byte is written.
    if (socket.writableLength > 0) {
      socket.write('', endWhenIdle);
      return;
    }
  }
  stdout.endAll();
  stderr.endAll();
  process.exit(0);
}

process.on('SIGTERM', () => {
  draining = true;
  server.close();
  endWhenIdle();
});
process.on('SIGINT', () => {});
process.on('uncaughtException', (error) => {
  if (running.size === 1) {
    const [only] = running;
    only.fail(error);
  } else {
    printError(error);
  }
});
process.on('unhandledRejection', (error) => printError(error));

const socketPath = process.env.CORACLE_SOCKET ?? '/run/fn/fn.sock';
delete process.env.CORACLE_SOCKET;
fs.rmSync(socketPath, { force: true });
const server = net.createServer({ noDelay: false }, (socket) => new Connection(socket));
server.listen({ path: socketPath, backlog: 1024 });
