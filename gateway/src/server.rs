//! The invocation listener: one acceptor that deals connections out to the threads in turn.
//!
//! Each thread has a single-threaded runtime of its own, and everything of a connection stays on
//! it: no work stealing, no lock and no channel on the path of a request.

use std::{
    convert::Infallible,
    net::IpAddr,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    thread::JoinHandle,
    time::Duration,
};

use bytes::Bytes;
use coracle_base::Shutdown;
use http::{HeaderValue, Request, Response, header::CONNECTION};
use http_body::Body as _;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::{rt::TokioIo, server::graceful::GracefulShutdown};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::{Builder, LocalOptions},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{MissedTickBehavior, interval},
};
use tokio_util::task::TaskTracker;

use crate::{
    body::{Cut, InBody, OutBody},
    function::Function,
    headers::Origin,
    idle::{Answer, Connections},
    local::Local,
    proxy,
    refusal::{self, Answered, Words},
    shared::Shared,
};

/// Connections on their way to a thread.
const HANDOVER: usize = 64;
/// Pieces of an answer on their way to the API listener.
const ANSWER_PIECES: usize = 4;
const SWEEP: Duration = Duration::from_secs(10);
/// After a failed accept (no file descriptors left, usually) before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The two stages of the end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop {
    /// Take nothing new, finish what runs.
    pub(crate) drain: Shutdown,
    /// Drop what still runs.
    pub(crate) hard: Shutdown,
}

/// What a thread is handed.
pub(crate) enum Work {
    Connection {
        stream: std::net::TcpStream,
        peer: IpAddr,
        permit: OwnedSemaphorePermit,
    },
    Manager(Box<ManagerCall>),
}

/// The way to each thread.
pub(crate) type Workers = Vec<mpsc::Sender<Work>>;

/// An invocation from the API listener.
pub(crate) struct ManagerCall {
    pub(crate) function: Arc<Function>,
    pub(crate) request: Request<Bytes>,
    pub(crate) reply: oneshot::Sender<Response<ManagerBody>>,
}

pub(crate) enum ManagerBody {
    Whole(Bytes),
    Pieces(mpsc::Receiver<Result<Bytes, Cut>>),
}

/// Starts the threads. Each ends when told to by `stop`.
pub(crate) fn start(
    shared: &Arc<Shared>,
    stop: &Stop,
) -> std::io::Result<(Workers, Vec<JoinHandle<()>>)> {
    let mut senders = Vec::new();
    let mut threads = Vec::new();
    for index in 0..shared.config.threads {
        let (sender, work) = mpsc::channel(HANDOVER);
        let (shared, stop) = (shared.clone(), stop.clone());
        let thread = std::thread::Builder::new()
            .name(format!("gateway-{index}"))
            .spawn(move || thread_main(shared, index, work, stop))?;
        senders.push(sender);
        threads.push(thread);
    }
    Ok((senders, threads))
}

fn thread_main(shared: Arc<Shared>, index: usize, work: mpsc::Receiver<Work>, stop: Stop) {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .expect("a thread can have a runtime unless the process is out of file descriptors");
    let local = Local::new(shared, index);
    runtime.block_on(work_off(local.clone(), work, stop));
    // Tasks that are dropped with the runtime must not spawn new ones.
    local.closing.set(true);
    drop(runtime);
}

async fn work_off(local: Rc<Local>, mut work: mpsc::Receiver<Work>, stop: Stop) {
    let graceful = GracefulShutdown::new();
    let calls = TaskTracker::new();
    let mut sweep = interval(SWEEP);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let head_timeout = local.shared.config.limits.head_timeout;
    let mut look = interval(Connections::interval(head_timeout));
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = stop.drain.requested() => break,
            _ = sweep.tick() => local.pool.borrow_mut().sweep(),
            _ = look.tick() => local.connections.look(),
            next = work.recv() => match next {
                Some(Work::Connection { stream, peer, permit }) => {
                    connection(&local, &graceful, stream, peer, permit);
                }
                Some(Work::Manager(call)) => {
                    calls.spawn_local(manager_call(local.clone(), *call));
                }
                None => break,
            },
        }
    }
    drop(work);
    calls.close();
    tokio::select! {
        () = stop.hard.requested() => {}
        () = async { tokio::join!(graceful.shutdown(), calls.wait()); } => {}
        // Heads that never end must not hold up the drain.
        () = async { loop { look.tick().await; local.connections.look(); } } => {}
    }
}

fn connection(
    local: &Rc<Local>,
    graceful: &GracefulShutdown,
    stream: std::net::TcpStream,
    peer: IpAddr,
    permit: OwnedSemaphorePermit,
) {
    let stream = match TcpStream::from_std(stream) {
        Ok(stream) => stream,
        Err(error) => {
            tracing::warn!(%error, "a connection could not be taken over");
            return;
        }
    };
    let config = &local.shared.config;
    let origin = origin(local, peer);
    let watched = local.connections.watch();
    let number = watched.number();
    let (stream, stand) = refusal::Connection::new(stream, Words::Invocation);
    let service = {
        let local = local.clone();
        service_fn(move |request: Request<hyper::body::Incoming>| {
            let (local, origin, serving) = (local.clone(), origin.clone(), watched.serving());
            let answering = stand.answering();
            async move {
                let request = request.map(InBody::Client);
                let mut response = proxy::serve(local.clone(), origin, request).await;
                if local.shared.leaving.load(Relaxed) {
                    // Closed by its client after an answer, no request is on its way into it.
                    let close = HeaderValue::from_static("close");
                    response.headers_mut().insert(CONNECTION, close);
                }
                Ok::<_, Infallible>(
                    response.map(|body| Answered::new(Answer::new(body, serving), answering)),
                )
            }
        })
    };
    let connection = http1::Builder::new()
        // `idle.rs` sees to it.
        .header_read_timeout(None)
        .max_headers(config.limits.headers_max)
        .max_buf_size(config.limits.head_max)
        .serve_connection(TokioIo::new(stream), service);
    let connection = graceful.watch(connection);
    let counted = Counted::new(&local.shared.metrics.invoke_connections);
    let task = tokio::task::spawn_local(async move {
        let _until_the_end = (counted, permit);
        // Broken heads, cut bodies and clients that leave all end here; each is the client's
        // business or was logged where it was decided.
        if let Err(error) = connection.await {
            tracing::trace!(%error, "a connection ended early");
        }
    });
    local.connections.runs(number, task.abort_handle());
}

/// One more in a gauge while it lives.
struct Counted(metrics::Gauge);

impl Counted {
    fn new(gauge: &metrics::Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

fn origin(local: &Local, peer: IpAddr) -> Rc<Origin> {
    let config = &local.shared.config;
    let https = config
        .public_url
        .as_ref()
        .is_some_and(|url| url.starts_with("https:"));
    Rc::new(Origin::new(
        peer.to_canonical(),
        https,
        config.trust_forwarded,
    ))
}

async fn manager_call(local: Rc<Local>, call: ManagerCall) {
    let ManagerCall {
        function,
        request,
        mut reply,
    } = call;
    let origin = origin(&local, IpAddr::from([127, 0, 0, 1]));
    let request = request.map(|body| InBody::Whole(Some(body).filter(|b| !b.is_empty())));
    let response = tokio::select! {
        response = proxy::serve_manager(local, function, origin, request) => response,
        // The manager's client has gone; dropping the call tells the instance.
        () = reply.closed() => return,
    };
    let (parts, body) = response.into_parts();
    let mut body = match body {
        OutBody::Whole(bytes) => {
            let body = ManagerBody::Whole(bytes.unwrap_or_default());
            // As above.
            let _ = reply.send(Response::from_parts(parts, body));
            return;
        }
        body => body,
    };
    let (pieces, receiver) = mpsc::channel(ANSWER_PIECES);
    if reply
        .send(Response::from_parts(parts, ManagerBody::Pieces(receiver)))
        .is_err()
    {
        return;
    }
    loop {
        let frame = std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx));
        let piece = tokio::select! {
            frame = frame => match frame {
                Some(Ok(frame)) => frame.into_data().map(Ok).ok(),
                Some(Err(cut)) => Some(Err(cut)),
                None => None,
            },
            () = pieces.closed() => None,
        };
        let Some(piece) = piece else { return };
        let last = piece.is_err();
        if pieces.send(piece).await.is_err() || last {
            return;
        }
    }
}

/// Accepts until the drain begins.
pub(crate) async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    workers: Workers,
    drain: Shutdown,
) {
    let permits = Arc::new(Semaphore::new(shared.config.limits.connections_max));
    let mut turn = (0..workers.len()).cycle();
    loop {
        let accepted = tokio::select! {
            () = drain.requested() => return,
            accepted = next(&listener, &permits) => accepted,
        };
        let (stream, peer, permit) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Failing to set it only costs latency.
        let _ = stream.set_nodelay(true);
        let Some(worker) = turn.next().and_then(|at| workers.get(at)) else {
            return;
        };
        match stream.into_std() {
            Ok(stream) => {
                // A thread that has ended takes nothing: the drain has begun.
                if worker
                    .send(Work::Connection {
                        stream,
                        peer,
                        permit,
                    })
                    .await
                    .is_err()
                {
                    return;
                }
            }
            Err(error) => tracing::warn!(%error, "a connection could not be handed over"),
        }
    }
}

async fn next(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, IpAddr, OwnedSemaphorePermit)> {
    let permit = permits
        .clone()
        .acquire_owned()
        .await
        .map_err(std::io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    Ok((stream, peer.ip(), permit))
}
