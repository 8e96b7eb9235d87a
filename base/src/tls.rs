//! Mutual TLS between components: who is at the other end, with certificates that can be replaced
//! while connections live.
//!
//! Nothing here knows roles. A certificate carries names (URIs in its subject alternative names);
//! what they mean, and which of them may be at the other end, is the caller's [`PeerCheck`].

use std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError,
    RootCertStore, ServerConfig, SignatureScheme,
    client::{
        ResolvesClientCert, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
    server::{
        ClientHello, NoServerSessionStorage, ParsedCertificate, ResolvesServerCert,
        WebPkiClientVerifier,
    },
    sign::CertifiedKey,
    time_provider::TimeProvider,
};
use sha2::{Digest as _, Sha256};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::clock::Clock;

/// A peer that says nothing is let go after this long.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// gRPC.
const H2: &[u8] = b"h2";

/// Decides by the names in the certificate at the other end; the error is one sentence.
pub type PeerCheck = Arc<dyn Fn(&[String]) -> Result<(), String> + Send + Sync>;

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("the certificate and its key cannot be used")]
    Credentials(#[source] rustls::Error),
    #[error("the CA certificate cannot be used")]
    Authority(#[source] rustls::Error),
    #[error("TLS cannot be set up")]
    Setup(#[source] rustls::Error),
}

/// Whose certificates are believed.
#[derive(Debug, Clone)]
pub enum Trust {
    /// This CA, in DER.
    Authority(Vec<u8>),
    /// The CA whose DER has this SHA-256, which the server has to send along: for a first contact.
    /// Only for dialling.
    Hash([u8; 32]),
}

/// What a process shows of itself: its certificate, those above it, and its key in PKCS #8, all DER.
#[derive(Clone)]
pub struct Credentials {
    pub chain: Vec<Vec<u8>>,
    pub key: Vec<u8>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

/// What a process shows and believes on its TLS connections. Clones, and what is made of them with
/// [`Tls::expecting`] and [`Tls::with_alpn`], show the same certificate, also after a replacement.
#[derive(Clone)]
pub struct Tls {
    holder: Arc<Holder>,
    client: Arc<ClientConfig>,
    /// `None` where only a CA's hash is known.
    server: Option<Arc<ServerConfig>>,
    check: PeerCheck,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// Without credentials it dials anonymously. Any name that the CA vouches for may be at the other
    /// end until [`Tls::expecting`] says otherwise. Validity is judged by `clock`.
    pub fn new(
        trust: Trust,
        own: Option<Credentials>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, TlsError> {
        let holder = Arc::new(Holder {
            provider: Arc::new(ring::default_provider()),
            current: ArcSwapOption::empty(),
        });
        let time: Arc<dyn TimeProvider> = Arc::new(Time(clock));
        let provider = &holder.provider;
        let verifier = Arc::new(ServerVerifier {
            trust: match &trust {
                Trust::Authority(der) => Anchor::Roots(Arc::new(roots(der)?)),
                Trust::Hash(hash) => Anchor::Hash(*hash),
            },
            provider: Arc::clone(provider),
        });
        let mut client =
            ClientConfig::builder_with_details(Arc::clone(provider), Arc::clone(&time))
                .with_safe_default_protocol_versions()
                .map_err(TlsError::Setup)?
                .dangerous()
                .with_custom_certificate_verifier(verifier)
                .with_client_cert_resolver(Arc::<Holder>::clone(&holder));
        // Each connection shows and checks certificates anew, so that a renewal or an expiry counts
        // at once; there are few connections, and they live long.
        client.resumption = Resumption::disabled();
        client.enable_sni = false;
        client.alpn_protocols = vec![H2.to_vec()];
        let server = match &trust {
            Trust::Authority(der) => Some(server_config(roots(der)?, &holder, time)?),
            Trust::Hash(_) => None,
        };
        let tls = Self {
            holder,
            client: Arc::new(client),
            server: server.map(Arc::new),
            check: Arc::new(|_| Ok(())),
        };
        if let Some(own) = own {
            tls.replace(own)?;
        }
        Ok(tls)
    }

    /// New connections show these from now on; those that live are left alone.
    pub fn replace(&self, own: Credentials) -> Result<(), TlsError> {
        let chain = own.chain.into_iter().map(CertificateDer::from).collect();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.key));
        let key = CertifiedKey::from_der(chain, key, &self.holder.provider)
            .map_err(TlsError::Credentials)?;
        self.holder.current.store(Some(Arc::new(key)));
        Ok(())
    }

    /// The same, for connections whose other end has to satisfy `check`. An anonymous client has no
    /// names to check: what it may do is decided by whoever serves it.
    #[must_use]
    pub fn expecting(
        &self,
        check: impl Fn(&[String]) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        Self {
            check: Arc::new(check),
            ..self.clone()
        }
    }

    /// The same, offering (or accepting) these protocols instead of HTTP/2 alone.
    #[must_use]
    pub fn with_alpn(&self, protocols: &[&[u8]]) -> Self {
        let protocols: Vec<Vec<u8>> = protocols.iter().map(|name| name.to_vec()).collect();
        let mut client = ClientConfig::clone(&self.client);
        client.alpn_protocols.clone_from(&protocols);
        let server = self.server.as_deref().map(|server| {
            let mut server = server.clone();
            server.alpn_protocols = protocols;
            Arc::new(server)
        });
        Self {
            client: Arc::new(client),
            server,
            ..self.clone()
        }
    }

    pub(crate) fn can_serve(&self) -> bool {
        self.server.is_some()
    }

    /// The handshake of whoever was dialled, at most [`HANDSHAKE`] long.
    pub(crate) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let server = self.server.clone().ok_or(io::ErrorKind::InvalidInput)?;
        let handshake = TlsAcceptor::from(server).accept(stream);
        let stream = within(handshake).await?;
        let stream = TlsStream::Server(stream);
        self.checked(stream)
    }

    /// The handshake of whoever dials, at most [`HANDSHAKE`] long.
    pub(crate) async fn connect(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        // Names in certificates are not those that are dialled; the check below is on theirs.
        let name = ServerName::try_from("coracle.invalid").expect("a valid name");
        let handshake = TlsConnector::from(Arc::clone(&self.client)).connect(name, stream);
        let stream = TlsStream::Client(within(handshake).await?);
        self.checked(stream)
    }

    fn checked(&self, stream: TlsStream<TcpStream>) -> io::Result<TlsStream<TcpStream>> {
        let names = names(&stream)?;
        if let Some(names) = &names {
            (self.check)(names).map_err(io::Error::other)?;
        }
        Ok(stream)
    }
}

async fn within<T>(handshake: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match tokio::time::timeout(HANDSHAKE, handshake).await {
        Ok(done) => done.map_err(|error| explained(&error).map_or(error, io::Error::other)),
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no TLS handshake within {HANDSHAKE:?}"),
        )),
    }
}

/// What a certificate's refusal means, for whoever reads the log; `None` where the error says enough.
fn explained(error: &io::Error) -> Option<String> {
    let inner = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    let rustls::Error::InvalidCertificate(error) = inner else {
        return None;
    };
    Some(match error {
        CertificateError::ExpiredContext { time, not_after } => format!(
            "the certificate of the other side expired at {} and this machine's clock says {}: \
             check the clocks, or enrol that side again",
            shown(not_after),
            shown(time)
        ),
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "the certificate of the other side is valid from {} and this machine's clock says \
             {}: check the clocks of both machines",
            shown(not_before),
            shown(time)
        ),
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "the certificate of the other side is not of this cluster's CA".to_owned()
        }
        CertificateError::Other(OtherError(error)) => error.to_string(),
        _ => return None,
    })
}

fn shown(time: &UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| format!("second {seconds} since 1970"))
}

/// The URIs in the certificate at the other end; `None` when it showed none.
fn names(stream: &TlsStream<TcpStream>) -> io::Result<Option<Arc<[String]>>> {
    let (_, session) = stream.get_ref();
    let Some(certificate) = session.peer_certificates().and_then(<[_]>::first) else {
        return Ok(None);
    };
    names_of(certificate).map(|names| Some(names.into()))
}

/// The URIs in a certificate, given as DER.
pub fn names_of(certificate: &[u8]) -> io::Result<Vec<String>> {
    let der = CertificateDer::from(certificate);
    let parsed = webpki::EndEntityCert::try_from(&der).map_err(io::Error::other)?;
    Ok(parsed.valid_uri_names().map(str::to_owned).collect())
}

/// What TLS says of the other end of a connection.
#[derive(Debug, Clone)]
pub struct TlsPeer {
    pub address: Option<SocketAddr>,
    /// The URIs in its certificate; `None` when it showed none.
    pub names: Option<Arc<[String]>>,
}

impl TlsPeer {
    pub(crate) fn of(stream: &TlsStream<TcpStream>) -> Self {
        Self {
            address: stream.get_ref().0.peer_addr().ok(),
            // Parsed without error when the handshake was checked.
            names: names(stream).ok().flatten(),
        }
    }
}

fn roots(der: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from(der.to_vec()))
        .map_err(TlsError::Authority)?;
    Ok(roots)
}

fn server_config(
    roots: RootCertStore,
    holder: &Arc<Holder>,
    time: Arc<dyn TimeProvider>,
) -> Result<ServerConfig, TlsError> {
    let provider = Arc::clone(&holder.provider);
    let setup =
        |error: &dyn std::error::Error| TlsError::Setup(rustls::Error::General(error.to_string()));
    // A client without a certificate may enrol and nothing else, which the service decides.
    let clients =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .map_err(|error| setup(&error))?;
    let mut server = ServerConfig::builder_with_details(provider, time)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Setup)?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(Arc::<Holder>::clone(holder));
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    server.alpn_protocols = vec![H2.to_vec()];
    Ok(server)
}

/// The certificate that is shown now.
#[derive(Debug)]
struct Holder {
    provider: Arc<CryptoProvider>,
    current: ArcSwapOption<CertifiedKey>,
}

impl ResolvesServerCert for Holder {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.load_full()
    }
}

impl ResolvesClientCert for Holder {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.current.load_full()
    }

    fn has_certs(&self) -> bool {
        self.current.load().is_some()
    }
}

#[derive(Debug)]
struct Time(Arc<dyn Clock>);

impl TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        let now = Duration::from_millis(self.0.now_millis());
        Some(UnixTime::since_unix_epoch(now))
    }
}

#[derive(Debug)]
enum Anchor {
    Roots(Arc<RootCertStore>),
    Hash([u8; 32]),
}

/// Checks a server's chain and its time. Names are checked after the handshake, see
/// [`Tls::expecting`].
#[derive(Debug)]
struct ServerVerifier {
    trust: Anchor,
    provider: Arc<CryptoProvider>,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "the CA there has the hash sha256:{}, and not the one that was given: this is another cluster, \
     or somebody is in between",
    .found.as_deref().unwrap_or("(none: it sent no CA)")
)]
struct WrongAuthority {
    found: Option<String>,
}

impl ServerVerifier {
    fn roots(
        &self,
        intermediates: &[CertificateDer<'_>],
    ) -> Result<Arc<RootCertStore>, rustls::Error> {
        let pinned = match &self.trust {
            Anchor::Roots(roots) => return Ok(Arc::clone(roots)),
            Anchor::Hash(pinned) => pinned,
        };
        let hash = |der: &CertificateDer<'_>| -> [u8; 32] { Sha256::digest(der).into() };
        let Some(authority) = intermediates.iter().find(|der| hash(der) == *pinned) else {
            let found = intermediates.last().map(|der| hex::encode(hash(der)));
            let error = OtherError(Arc::new(WrongAuthority { found }));
            return Err(CertificateError::Other(error).into());
        };
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        Ok(Arc::new(roots))
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let roots = self.roots(intermediates)?;
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &roots,
            intermediates,
            now,
            algorithms,
        )?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        None
    }
}
