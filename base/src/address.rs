//! Where a gRPC service is served and dialled: in memory, on a Unix socket, or over TCP
//! with or without TLS.
//!
//! One process that holds all roles uses the same services over [`MemoryBus`] that separate
//! processes use over sockets, so there is no second code path.

use std::{
    fmt, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::Pin,
    str::FromStr,
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::Stream;
use hyper_util::rt::TokioIo;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::mpsc,
    task::JoinSet,
};
use tokio_rustls::TlsStream;
use tonic::transport::{Channel, Endpoint, server::Connected};

use crate::tls::{Tls, TlsPeer};

const MEMORY_BUFFER: usize = 64 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Peers that have connected and not yet shown who they are. More of them wait in the backlog of the
/// listener until one of these has, or has been let go.
const HANDSHAKES: usize = 1_024;

/// An in-process listener: whoever holds a clone can dial it.
#[derive(Clone)]
pub struct MemoryBus {
    dial: mpsc::Sender<DuplexStream>,
    accept: Arc<Mutex<Option<mpsc::Receiver<DuplexStream>>>>,
}

impl MemoryBus {
    pub fn new() -> Self {
        let (dial, accept) = mpsc::channel(64);
        Self {
            dial,
            accept: Arc::new(Mutex::new(Some(accept))),
        }
    }

    async fn connect(&self) -> io::Result<DuplexStream> {
        let (ours, theirs) = tokio::io::duplex(MEMORY_BUFFER);
        self.dial
            .send(theirs)
            .await
            .map_err(|_| io::ErrorKind::ConnectionRefused)?;
        Ok(ours)
    }
}

impl Default for MemoryBus {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryBus")
    }
}

#[derive(Debug, Clone)]
pub enum Address {
    Memory(MemoryBus),
    Unix(PathBuf),
    /// `host:port`.
    Tcp(String),
    /// `host:port`, and what is shown and believed there.
    Tls(String, Tls),
}

impl Address {
    /// Binds. A Unix socket left over from an earlier process is replaced; the caller's data
    /// directory lock is what keeps two live servers apart.
    pub async fn listen(&self) -> io::Result<Incoming> {
        match self {
            Self::Memory(bus) => {
                let accept = bus
                    .accept
                    .lock()
                    .expect("never poisoned: no panic while held")
                    .take();
                accept
                    .map(Incoming::Memory)
                    .ok_or_else(|| io::ErrorKind::AddrInUse.into())
            }
            Self::Unix(path) => {
                match std::fs::remove_file(path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
                Ok(Incoming::Unix(UnixListener::bind(path)?))
            }
            Self::Tcp(address) => Ok(Incoming::Tcp(TcpListener::bind(address).await?)),
            // One that only knows the hash of a CA can tell nobody who dials from another.
            Self::Tls(_, tls) if !tls.can_serve() => Err(io::ErrorKind::InvalidInput.into()),
            Self::Tls(address, tls) => Ok(Incoming::Tls(TlsIncoming {
                listener: TcpListener::bind(address).await?,
                tls: tls.clone(),
                handshakes: JoinSet::new(),
            })),
        }
    }

    /// The same place over TLS where it is over TCP; memory and Unix sockets stay on this machine and
    /// stay as they are.
    #[must_use]
    pub fn secured(self, tls: &Tls) -> Self {
        match self {
            Self::Tcp(address) | Self::Tls(address, _) => Self::Tls(address, tls.clone()),
            local => local,
        }
    }

    /// Whether whoever is at the other end is on this machine.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Memory(_) | Self::Unix(_) => true,
            Self::Tcp(address) | Self::Tls(address, _) => {
                let host = address.rsplit_once(':').map_or("", |(host, _)| host);
                let ip = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
                host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
            }
        }
    }

    /// A channel that connects when first used and again after it broke.
    pub fn channel(&self) -> Channel {
        self.channel_that_asks_every(Duration::from_secs(10), Duration::from_secs(5))
    }

    /// For whoever has to go elsewhere soon when the other end stops without a word.
    pub fn watchful_channel(&self) -> Channel {
        self.channel_that_asks_every(Duration::from_secs(2), Duration::from_secs(3))
    }

    fn channel_that_asks_every(&self, interval: Duration, patience: Duration) -> Channel {
        let address = self.clone();
        // The URI only fills the authority; the connector below decides where to go.
        Endpoint::from_static("http://coracle.invalid")
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(interval)
            .keep_alive_timeout(patience)
            .keep_alive_while_idle(true)
            .connect_with_connector_lazy(tower::service_fn(move |_| {
                let address = address.clone();
                async move { address.connect().await.map(TokioIo::new) }
            }))
    }

    /// One connection, for what is not gRPC.
    pub async fn connect(&self) -> io::Result<Conn> {
        match self {
            Self::Memory(bus) => bus.connect().await.map(Conn::Memory),
            Self::Unix(path) => UnixStream::connect(path).await.map(Conn::Unix),
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                tune(&stream)?;
                Ok(Conn::Tcp(stream))
            }
            Self::Tls(address, tls) => {
                let stream = TcpStream::connect(address).await?;
                tune(&stream)?;
                let named = |error: io::Error| {
                    io::Error::new(error.kind(), format!("TLS with {address}: {error}"))
                };
                let stream = tls.connect(stream).await.map_err(named)?;
                Ok(Conn::Tls(Box::new(stream)))
            }
        }
    }
}

/// Small messages do not wait for acknowledgements, and a machine that vanished without a word is
/// noticed on an idle connection and on one that waits for an answer alike.
fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(10))
        .with_interval(Duration::from_secs(5))
        .with_retries(3);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

impl Address {
    /// An address that another process gave: `https://` needs TLS, and where there is TLS nothing
    /// leaves this machine without it.
    pub fn told(text: &str, tls: Option<&Tls>) -> Result<Self, String> {
        let (text, secret) = match text.strip_prefix("https://") {
            Some(rest) => (rest, true),
            None => (text, false),
        };
        let address: Self = text.parse()?;
        match tls {
            Some(tls) => Ok(address.secured(tls)),
            None if secret => Err(format!(
                "{text:?} speaks TLS, and this process has no certificate"
            )),
            None => Ok(address),
        }
    }
}

impl FromStr for Address {
    type Err = String;
    /// `unix:/path`, `http://host:port` or `host:port`.
    fn from_str(s: &str) -> Result<Self, String> {
        if let Some(path) = s.strip_prefix("unix:") {
            return if Path::new(path).is_absolute() {
                Ok(Self::Unix(path.into()))
            } else {
                Err(format!("{s:?}: a unix: address needs an absolute path"))
            };
        }
        let tcp = s.strip_prefix("http://").unwrap_or(s).trim_end_matches('/');
        match tcp.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                Ok(Self::Tcp(tcp.to_owned()))
            }
            _ => Err(format!("{s:?}: expected unix:/path or host:port")),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(_) => f.write_str("memory:"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Tls(address, _) => write!(f, "https://{address}"),
        }
    }
}

/// Accepted connections, for tonic's `serve_with_incoming`.
#[derive(Debug)]
pub enum Incoming {
    Memory(mpsc::Receiver<DuplexStream>),
    Unix(UnixListener),
    Tcp(TcpListener),
    Tls(TlsIncoming),
}

/// Handshakes run beside each other and off the accept path: a peer that stays silent keeps nobody
/// waiting, and is let go.
#[derive(Debug)]
pub struct TlsIncoming {
    listener: TcpListener,
    tls: Tls,
    handshakes: JoinSet<Option<Conn>>,
}

impl TlsIncoming {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Conn>> {
        loop {
            match self.handshakes.poll_join_next(cx) {
                Poll::Ready(Some(Ok(Some(conn)))) => return Poll::Ready(Ok(conn)),
                // It failed, and said so in the log.
                Poll::Ready(Some(_)) => continue,
                Poll::Ready(None) | Poll::Pending => {}
            }
            if self.handshakes.len() >= HANDSHAKES {
                return Poll::Pending;
            }
            let (stream, from) = ready!(self.listener.poll_accept(cx))?;
            self.handshakes
                .spawn(handshake(self.tls.clone(), stream, from));
        }
    }
}

async fn handshake(tls: Tls, stream: TcpStream, from: SocketAddr) -> Option<Conn> {
    // Failure costs latency, and time to notice a machine that vanished.
    let _ = tune(&stream);
    match tls.accept(stream).await {
        Ok(stream) => Some(Conn::Tls(Box::new(stream))),
        Err(error) => {
            tracing::info!(%from, %error, "a TLS connection was not taken");
            None
        }
    }
}

impl Incoming {
    /// The port that the system chose, where it did.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) | Self::Tls(TlsIncoming { listener, .. }) => {
                listener.local_addr().ok()
            }
            Self::Memory(_) | Self::Unix(_) => None,
        }
    }
}

impl Stream for Incoming {
    type Item = io::Result<Conn>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(match &mut *self {
            Self::Memory(accept) => ready!(accept.poll_recv(cx)).map(|c| Ok(Conn::Memory(c))),
            Self::Unix(listener) => {
                Some(ready!(listener.poll_accept(cx)).map(|(c, _)| Conn::Unix(c)))
            }
            Self::Tcp(listener) => Some(ready!(listener.poll_accept(cx)).map(|(c, _)| {
                // Failure costs latency, and time to notice a machine that vanished.
                let _ = tune(&c);
                Conn::Tcp(c)
            })),
            Self::Tls(incoming) => Some(ready!(incoming.poll_next(cx))),
        })
    }
}

#[derive(Debug)]
pub enum Conn {
    Memory(DuplexStream),
    Unix(UnixStream),
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Who is at the other end of a connection, as far as the connection tells.
#[derive(Debug, Clone)]
pub enum Remote {
    /// This process.
    Memory,
    /// A process of this machine.
    Unix,
    Tcp(Option<SocketAddr>),
    Tls(TlsPeer),
}

impl Conn {
    pub fn remote(&self) -> Remote {
        match self {
            Self::Memory(_) => Remote::Memory,
            Self::Unix(_) => Remote::Unix,
            Self::Tcp(stream) => Remote::Tcp(stream.peer_addr().ok()),
            Self::Tls(stream) => Remote::Tls(TlsPeer::of(stream)),
        }
    }

    /// The protocol that was agreed on in the TLS handshake.
    pub fn protocol(&self) -> Option<&[u8]> {
        match self {
            Self::Tls(stream) => stream.get_ref().1.alpn_protocol(),
            _ => None,
        }
    }
}

impl Conn {
    /// The first byte that the other end sends, left where it is. `None`: it ended before one, or
    /// this is not plain TCP, which alone needs such a look: TLS agrees on a protocol.
    pub async fn peek(&self) -> io::Result<Option<u8>> {
        match self {
            Self::Memory(_) | Self::Unix(_) | Self::Tls(_) => Ok(None),
            Self::Tcp(stream) => {
                let mut first = [0];
                let length = stream.peek(&mut first).await?;
                Ok((length > 0).then_some(first[0]))
            }
        }
    }
}

macro_rules! each_conn {
    ($self:ident, $c:ident => $body:expr) => {
        match $self.get_mut() {
            Conn::Memory($c) => $body,
            Conn::Unix($c) => $body,
            Conn::Tcp($c) => $body,
            Conn::Tls($c) => $body,
        }
    };
}

impl AsyncRead for Conn {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each_conn!(self, c => Pin::new(c).poll_read(cx, buf))
    }
}

impl AsyncWrite for Conn {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        each_conn!(self, c => Pin::new(c).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each_conn!(self, c => Pin::new(c).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each_conn!(self, c => Pin::new(c).poll_shutdown(cx))
    }
}

impl Connected for Conn {
    type ConnectInfo = Remote;
    fn connect_info(&self) -> Remote {
        self.remote()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_parsed_or_refused_with_what_was_expected() {
        assert_eq!(
            "unix:/a/b".parse::<Address>().unwrap().to_string(),
            "unix:/a/b"
        );
        assert_eq!(
            "127.0.0.1:80".parse::<Address>().unwrap().to_string(),
            "http://127.0.0.1:80"
        );
        for bad in ["unix:a", "host", ":80", "host:port"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_address_that_speaks_tls_is_never_taken_for_a_plain_one() {
        let refused = Address::told("https://a:1", None).unwrap_err();
        assert!(refused.contains("TLS"), "{refused}");
        let told = |text| Address::told(text, None).unwrap().to_string();
        assert_eq!(told("http://a:1"), "http://a:1");
        assert_eq!(told("unix:/a"), "unix:/a");
    }
}
