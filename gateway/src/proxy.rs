//! One invocation, from a request's head to its answer's head.

use std::{ops::Range, rc::Rc, sync::Arc, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use coracle_model::{ExitReason, Timestamp};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, request::Parts};
use tokio::time::{Instant, timeout, timeout_at};

use crate::{
    access,
    admission::{self, Patience, Slot},
    body::{InBody, OutBody, Prepared},
    demand::Presence,
    frames::{self, END, Frame, HOLD, kind},
    function::{Function, Route},
    headers::{self, Origin, Phases},
    instance::Instance,
    local::{Local, Trace},
    lookup,
    metrics::{self, FunctionMetrics},
    respond::{Code, Error},
    running::{Running, Streaming, dispatch_after},
    upstream::{Broken, Conn, Unreached},
    verdict::{self, Verdict},
};

/// A caller of a function that ran too long waits this long for it to be dead before it hears.
const KILL_WAIT: Duration = Duration::from_secs(1);

/// A first answer is held back at most this long for what the node says of the start, which was
/// on its way before the answer was.
const BIRTH_WAIT: Duration = Duration::from_millis(5);

/// A request whose function is known and may be called.
struct Call {
    local: Rc<Local>,
    function: Arc<Function>,
    /// Fixed when the request arrived, so that one invocation has one set of limits.
    route: Arc<Route>,
    parts: Parts,
    /// The part of the path that the function sees.
    path: Range<usize>,
    origin: Rc<Origin>,
    id: Rc<str>,
    /// When the caller's trace context cannot be continued.
    fresh_trace: Option<Trace>,
    arrived: Instant,
}

/// A request from the invocation listener.
pub(crate) async fn serve(
    local: Rc<Local>,
    origin: Rc<Origin>,
    request: Request<InBody>,
) -> Response<OutBody> {
    let arrived = Instant::now();
    let (parts, body) = request.into_parts();
    let id = request_id(&local, &parts.headers);
    let mut called = None;
    let result = match find(&local, &parts) {
        Ok((function, path)) => {
            called = Some(function.clone());
            Box::pin(invoke(
                &local, function, path, parts, body, origin, &id, arrived, false,
            ))
            .await
        }
        Err(error) => Err(error),
    };
    answer(&local, called.as_deref(), &id, arrived, result)
}

/// A request from the API listener: the path is the function's own, and keys are not asked.
pub(crate) async fn serve_manager(
    local: Rc<Local>,
    function: Arc<Function>,
    origin: Rc<Origin>,
    request: Request<InBody>,
) -> Response<OutBody> {
    let arrived = Instant::now();
    let (parts, body) = request.into_parts();
    let id = request_id(&local, &parts.headers);
    let path = 0..parts.uri.path().len();
    let called = function.clone();
    let result = Box::pin(invoke(
        &local, function, path, parts, body, origin, &id, arrived, true,
    ))
    .await;
    answer(&local, Some(&called), &id, arrived, result)
}

fn request_id(local: &Local, headers: &HeaderMap) -> Rc<str> {
    headers::accept_request_id(headers)
        .and_then(|value| value.to_str().ok())
        .map_or_else(|| local.fresh_id(), Rc::from)
}

fn answer(
    local: &Local,
    function: Option<&Function>,
    id: &str,
    arrived: Instant,
    result: Result<Response<OutBody>, Error>,
) -> Response<OutBody> {
    let mut response = result.unwrap_or_else(|error| {
        metrics::count_error(error.code);
        tracing::debug!(request = id, %error, "answered in the function's place");
        error.into_response(id)
    });
    if let Some(function) = function {
        FunctionMetrics::of(&local.shared, function).answered(response.status(), arrived.elapsed());
    }
    if let Ok(value) = HeaderValue::from_str(id) {
        response.headers_mut().insert(headers::REQUEST_ID, value);
    }
    response
}

fn find(local: &Local, parts: &Parts) -> Result<(Arc<Function>, Range<usize>), Error> {
    if parts.method == Method::CONNECT {
        return Err(Error::new(Code::NotImplemented, "CONNECT is not supported").closing());
    }
    if parts.headers.get_all(http::header::HOST).iter().count() > 1 {
        return Err(Error::new(Code::BadRequest, "more than one Host header").closing());
    }
    let config = &local.shared.config;
    let nothing = || Error::new(Code::NotFound, "no function has this address");
    if lookup::is_noise(parts.uri.path()) {
        return Err(nothing());
    }
    let names = local.names();
    let found = lookup::lookup(
        &names,
        config.base_domain.as_deref(),
        &parts.uri,
        &parts.headers,
    );
    found.map(|f| (f.function, f.path)).ok_or_else(|| {
        if local.shared.table.is_empty_for_want_of_a_feed() {
            return Error::new(Code::NoController, "no routes have arrived yet").retry_after(1);
        }
        nothing()
    })
}

#[allow(
    clippy::too_many_arguments,
    reason = "the fields of a Call, which it makes"
)]
async fn invoke(
    local: &Rc<Local>,
    function: Arc<Function>,
    path: Range<usize>,
    parts: Parts,
    body: InBody,
    origin: Rc<Origin>,
    id: &Rc<str>,
    arrived: Instant,
    manager: bool,
) -> Result<Response<OutBody>, Error> {
    let route = function.route().clone();
    let limits = &local.shared.config.limits;
    if !manager {
        let now = Timestamp(if route.key_required {
            local.shared.config.clock.now_millis()
        } else {
            0
        });
        access::check(&route, &parts.headers, now)?;
    }
    if route.disabled {
        return Err(Error::new(Code::Disabled, "the function is disabled"));
    }
    if route.no_instances {
        return Err(Error::new(
            Code::NoInstances,
            "the function's maximum is no instance",
        ));
    }
    if route.revision.is_none() {
        return Err(
            Error::new(Code::NotDeployed, "no revision of the function serves yet").retry_after(1),
        );
    }
    let presence = Presence::new(function.clone(), local.thread, arrived);
    let body = Prepared::read(body, limits.body_max, limits.body_idle_timeout)
        .await
        .map_err(|failed| failed.into_error(limits.body_max))?;
    let fresh_trace = (!headers::has_trace(&parts.headers)).then(|| local.fresh_trace());
    let call = Call {
        local: local.clone(),
        function,
        route,
        parts,
        path,
        origin,
        id: id.clone(),
        fresh_trace,
        arrived,
    };
    call.run(presence, body).await
}

/// What came before a request got its slot.
#[derive(Debug, Clone, Copy)]
struct Wait {
    time: Duration,
    /// No instance answered when it arrived.
    cold: bool,
}

/// How one attempt at an instance ended.
enum Attempt {
    Answered(Response<OutBody>),
    /// Nothing of the request has been consumed: another instance may take it.
    Again(Presence, Prepared),
}

impl Call {
    async fn run(
        self,
        mut presence: Presence,
        mut body: Prepared,
    ) -> Result<Response<OutBody>, Error> {
        let mut patience = Patience::new(self.arrived, &self.route);
        let mut again = false;
        loop {
            let slot =
                admission::admit(&self.local.shared, &self.function, &mut patience, again).await?;
            let now = Instant::now();
            let deadline = patience.deadline_from(now, &self.route);
            let wait = Wait {
                time: now.saturating_duration_since(self.arrived),
                cold: patience.cold,
            };
            match self
                .attempt(slot, presence, body, deadline, wait, now)
                .await?
            {
                Attempt::Answered(response) => return Ok(response),
                Attempt::Again(kept, unread) => {
                    (presence, body, again) = (kept, unread, true);
                }
            }
        }
    }

    /// Made when the answer is there: the node's word on the start has had the time of the run to
    /// arrive when the feed was faster. Where it has not, all of the start is one phase.
    async fn phases(&self, instance: &Instance, wait: Wait, run: Duration) -> Phases {
        if !wait.cold || instance.learned_at < self.arrived {
            return Phases {
                queue: wait.time,
                run,
                ..Phases::default()
            };
        }
        let phases = match instance.birth_within(BIRTH_WAIT).await {
            Some(birth) => Phases::of_start(wait.time, birth),
            None => {
                let ordered = self.function.ordered_in(instance.id).unwrap_or_default();
                let schedule = ordered.min(wait.time);
                Phases {
                    schedule: Some(schedule),
                    start: Some(wait.time - schedule),
                    ..Phases::default()
                }
            }
        };
        Phases { run, ..phases }
    }

    async fn attempt(
        &self,
        slot: Slot,
        presence: Presence,
        body: Prepared,
        deadline: Instant,
        wait: Wait,
        began: Instant,
    ) -> Result<Attempt, Error> {
        let Some(conn) = self.connect(&slot, deadline).await else {
            return Ok(Attempt::Again(presence, body));
        };
        let mut conn = conn;
        let (head, whole) = self.encode(&body, deadline, began);
        if let Err(unsent) = conn.send(&whole).await {
            tracing::debug!(instance = %slot.instance.id, written = unsent.written,
                error = %unsent.error, "a request could not be sent");
            self.local.pool.borrow_mut().drop_instance(&slot.instance);
            if unsent.written >= head {
                let relayed = conn.is_relayed();
                return Err(self.instance_failed(slot.instance.clone(), relayed).await);
            }
            // The whole head never left, so nothing can have run.
            if !conn.kept {
                self.unreachable(&slot);
            }
            return Ok(Attempt::Again(presence, body));
        }
        self.local.keep(whole);
        let mut running = Running::new(
            self.local.clone(),
            self.id.clone(),
            deadline,
            conn,
            slot,
            presence,
        );
        let mut body = Some(body);
        loop {
            let frame = match running.frame().await {
                Some(Ok(Ok(frame))) => frame,
                Some(Ok(Err(broken))) => return Err(self.broken(&mut running, &broken).await),
                Some(Err(failed)) => {
                    // The pump has told the instance; dropping `running` waits for its end.
                    return Err(failed.into_error(self.local.shared.config.limits.body_max));
                }
                None => return Err(self.expired(&mut running).await),
            };
            match frame.kind {
                kind::BUSY => {
                    let (Some(presence), Some(body)) = (running.refused(), body.take()) else {
                        return Err(bad_response("the instance said BUSY after ACCEPT"));
                    };
                    return Ok(Attempt::Again(presence, body));
                }
                kind::ACCEPT => match body.take() {
                    Some(Prepared::Held { first, rest }) => running.pump(first, rest),
                    _ => {
                        running.broke();
                        return Err(bad_response("the instance said ACCEPT unasked"));
                    }
                },
                kind::FAULT => {
                    running.finish(frame.flags);
                    return Err(fault(&self.id, &frame.payload));
                }
                kind::RESPONSE => {
                    let run = began.elapsed();
                    let phases = match running.slot() {
                        Some(slot) => self.phases(&slot.instance, wait, run).await,
                        None => Phases::default(),
                    };
                    return self.respond(running, frame, phases).map(Attempt::Answered);
                }
                _ => {
                    running.broke();
                    return Err(bad_response("the instance broke the contract"));
                }
            }
        }
    }

    async fn connect(&self, slot: &Slot, deadline: Instant) -> Option<Conn> {
        let kept = self.local.pool.borrow_mut().take(&slot.instance);
        if kept.is_some() {
            return kept;
        }
        self.local.shared.metrics.dials.increment(1);
        let dial = Conn::dial(&slot.instance, &self.local.shared.nodes);
        match timeout_at(deadline, dial).await {
            Ok(Ok(conn)) => Some(conn),
            Ok(Err(why)) => {
                tracing::info!(instance = %slot.instance.id, node = %slot.instance.node,
                    error = %why, "an instance cannot be reached");
                match why {
                    Unreached::Unknown => self.function.forget(slot.instance.id),
                    Unreached::Full => dispatch_after(slot, slot.instance.busy()),
                    Unreached::Io(_) | Unreached::Nowhere | Unreached::Ending => {
                        self.unreachable(slot);
                    }
                }
                None
            }
            Err(_) => None,
        }
    }

    fn unreachable(&self, slot: &Slot) {
        self.local.shared.metrics.unreachable.increment(1);
        let pause = slot.instance.unreachable();
        dispatch_after(slot, pause);
    }

    /// The request as frames, and how many bytes of them are the head.
    fn encode(&self, body: &Prepared, deadline: Instant, now: Instant) -> (usize, BytesMut) {
        let (flags, extra) = match body {
            Prepared::Buffered(bytes) if bytes.is_empty() => (END, 0),
            Prepared::Buffered(bytes) => (0, bytes.len() + 8),
            Prepared::Held { .. } => (HOLD, 0),
        };
        let left = deadline.saturating_duration_since(now).as_millis();
        let left = u32::try_from(left).unwrap_or(u32::MAX).max(1);
        let mut buf = self.local.scratch();
        buf.reserve(1024 + extra);
        frames::encode(&mut buf, kind::INVOKE, flags, |buf| {
            buf.put_u32_le(left);
            buf.put_slice(self.id.as_bytes());
            buf.put_u8(0);
            buf.put_slice(self.parts.method.as_str().as_bytes());
            buf.put_u8(0);
            let path = &self.parts.uri.path()[self.path.clone()];
            if !path.starts_with('/') {
                buf.put_u8(b'/');
            }
            buf.put_slice(path.as_bytes());
            if let Some(query) = self.parts.uri.query() {
                buf.put_u8(b'?');
                buf.put_slice(query.as_bytes());
            }
            headers::write_request(
                buf,
                &self.parts.headers,
                &self.origin,
                &self.id,
                self.fresh_trace.as_ref().map(Trace::as_slice),
                self.route.key_required,
            );
        });
        let head = buf.len();
        if let Prepared::Buffered(bytes) = body
            && !bytes.is_empty()
        {
            frames::encode(&mut buf, kind::REQUEST_DATA, END, |buf| {
                buf.put_slice(bytes)
            });
        }
        (head, buf)
    }

    fn respond(
        &self,
        mut running: Running,
        frame: Frame,
        phases: Phases,
    ) -> Result<Response<OutBody>, Error> {
        let (ends, flags) = (frame.ends(), frame.flags);
        let (status, mut headers, length) = match frames::parse_response(frame.payload) {
            Ok(parsed) => parsed,
            Err(violation) => {
                running.broke();
                return Err(bad_response(violation.0));
            }
        };
        headers.insert(headers::SERVER_TIMING, phases.header());
        let bodiless = self.parts.method == Method::HEAD
            || status == StatusCode::NO_CONTENT
            || status == StatusCode::NOT_MODIFIED;
        let body = if ends {
            running.finish(flags);
            OutBody::Whole(None)
        } else {
            // The first piece is usually in the same read, and then so is the end: such an answer
            // has a length and leaves in one write.
            match running.buffered() {
                Ok(Some(Frame {
                    kind: kind::DATA,
                    flags,
                    payload,
                })) if flags & END != 0 => {
                    running.finish(flags);
                    OutBody::from(payload)
                }
                Ok(Some(Frame {
                    kind: kind::DATA,
                    payload,
                    ..
                })) => {
                    let first = Some(payload).filter(|p| !p.is_empty());
                    OutBody::Streaming(Box::new(Streaming::new(running, first, length)))
                }
                Ok(None) => OutBody::Streaming(Box::new(Streaming::new(running, None, length))),
                Ok(Some(frame)) => {
                    running.broke();
                    return Err(match frame.kind {
                        kind::FAULT => fault(&self.id, &frame.payload),
                        _ => bad_response("the instance broke the contract"),
                    });
                }
                Err(violation) => {
                    running.broke();
                    return Err(bad_response(violation.0));
                }
            }
        };
        let body = match (bodiless, length) {
            // A stream that nobody will read is cancelled by being dropped.
            (true, Some(length)) if status != StatusCode::NO_CONTENT => OutBody::Promised(length),
            (true, _) => OutBody::Whole(None),
            (false, _) => body,
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Ok(response)
    }

    async fn broken(&self, running: &mut Running, broken: &Broken) -> Error {
        let instance = running.slot().map(|slot| slot.instance.clone());
        let relayed = running.is_relayed();
        if let Some(slot) = running.slot() {
            tracing::info!(instance = %slot.instance.id, request = &*self.id, %broken,
                "an instance failed in the middle of a request");
            // Its other requests find out for themselves; new ones wait for the node's word.
            if !matches!(broken, Broken::Violation(_)) {
                self.unreachable(slot);
            }
        }
        running.broke();
        match (broken, instance) {
            (Broken::Violation(violation), _) => bad_response(violation.0),
            (Broken::Closed | Broken::Io(_), Some(instance)) => {
                self.instance_failed(instance, relayed).await
            }
            (Broken::Closed | Broken::Io(_), None) => ended(None),
        }
    }

    /// Its node has a moment to say why.
    async fn instance_failed(&self, instance: Arc<Instance>, relayed: bool) -> Error {
        let node = instance.node;
        let verdict = verdict::ask(self.local.shared.clone(), self.function.clone(), instance);
        // On the runtime that carries the connections to nodes, where it goes on when the caller
        // leaves: the instance is forgotten then all the same.
        let verdict = self.local.shared.control.spawn(verdict).await;
        match verdict.unwrap_or(Verdict::NoAnswer) {
            Verdict::Ended(reason) => ended(reason.as_ref()),
            Verdict::GoesOn if relayed => relay_failed(
                &self.local.shared.nodes.name(node),
                "broke off; the instance goes on",
            ),
            Verdict::NoAnswer if relayed => relay_failed(
                &self.local.shared.nodes.name(node),
                "broke off, and the agent does not answer",
            ),
            Verdict::GoesOn | Verdict::NoAnswer => ended(None),
        }
    }

    /// Kill first, answer second.
    async fn expired(&self, running: &mut Running) -> Error {
        let alone = running
            .slot()
            .is_some_and(|slot| slot.instance.concurrency == 1);
        if let Some(stopping) = running.expire().filter(|_| alone) {
            // A node that does not answer must not keep the caller waiting for ever.
            let _ = timeout(KILL_WAIT, stopping).await;
        }
        Error::new(
            Code::Timeout,
            format!(
                "the function did not answer within its timeout of {} seconds",
                self.route.timeout.as_secs()
            ),
        )
    }
}

fn ended(reason: Option<&ExitReason>) -> Error {
    let message = "the instance ended before it had answered";
    match reason {
        Some(reason) => Error::new(Code::InstanceFailed, format!("{message}: {reason}")),
        None => Error::new(Code::InstanceFailed, message),
    }
}

fn relay_failed(node: &str, how: &str) -> Error {
    Error::new(
        Code::RelayFailed,
        format!("the connection through the agent of node {node} {how}"),
    )
}

fn bad_response(what: &'static str) -> Error {
    Error::new(Code::BadResponse, what)
}

/// What the handler raised: kind and message for the caller, who has to be able to tell a missing
/// key from a missing table. The trace stays in the function's logs.
fn fault(id: &str, payload: &Bytes) -> Error {
    let fault: serde_json::Value = serde_json::from_slice(payload).unwrap_or_default();
    let text = |key: &str| {
        fault
            .get(key)
            .and_then(serde_json::Value::as_str)
            .unwrap_or_default()
    };
    tracing::debug!(request = id, fault = %fault, "the handler raised");
    let message = match (text("type"), text("message")) {
        ("", "") => "the handler raised".to_owned(),
        ("", message) => message.to_owned(),
        (kind, "") => kind.to_owned(),
        (kind, message) => format!("{kind}: {message}"),
    };
    let mut end = message.len().min(4096);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    Error::new(Code::FunctionError, message[..end].to_owned())
}
