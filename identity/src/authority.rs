//! The cluster's CA: makes itself once, and signs certificates for public keys.

use std::{fmt, time::Duration};

use coracle_model::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
    SignatureAlgorithm, string::Ia5String,
};
use time::OffsetDateTime;

use crate::Name;

/// A certificate's life. A component that is up renews after two thirds of it; one that was off for
/// longer than the rest joins again.
pub const LIFETIME: Duration = Duration::from_secs(30 * 24 * 60 * 60);
const CA_LIFETIME: Duration = Duration::from_secs(20 * 365 * 24 * 60 * 60);
/// Clocks may differ by this much.
const BACKDATED: Duration = Duration::from_secs(5 * 60);
/// An uncompressed point of P-256.
const POINT: usize = 65;

#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("the public key is not an uncompressed point of P-256")]
    PublicKey,
    #[error("the key cannot be used")]
    Key(#[source] rcgen::Error),
    #[error("the certificate was not made")]
    Certificate(#[source] rcgen::Error),
}

/// A fresh P-256 key of a component, or of the CA.
pub struct KeyPair(rcgen::KeyPair);

impl KeyPair {
    pub fn generate() -> Result<Self, AuthorityError> {
        let made = rcgen::KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256);
        made.map(Self).map_err(AuthorityError::Key)
    }

    /// What a certificate is asked for with.
    pub fn public(&self) -> Vec<u8> {
        self.0.der_bytes().to_vec()
    }

    /// PKCS #8.
    pub fn private(&self) -> Vec<u8> {
        self.0.serialize_der()
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyPair(..)")
    }
}

/// A signed certificate and when it is valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    pub certificate: Vec<u8>,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
}

/// Holds the CA's private key; kept only while it signs.
pub struct Authority {
    cluster: String,
    certificate: Vec<u8>,
    key: rcgen::KeyPair,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes the CA of a new cluster.
    pub fn create(cluster: &str, now: Timestamp) -> Result<Self, AuthorityError> {
        let KeyPair(key) = KeyPair::generate()?;
        let mut params = ca_params(cluster);
        (params.not_before, params.not_after) = validity(now, CA_LIFETIME);
        let made = params.self_signed(&key);
        let made = made.map_err(AuthorityError::Certificate)?;
        Ok(Self {
            cluster: cluster.to_owned(),
            certificate: made.der().to_vec(),
            key,
        })
    }

    /// From what [`Authority::certificate`] and [`Authority::private_key`] gave.
    pub fn open(
        cluster: &str,
        certificate: Vec<u8>,
        private_key: &[u8],
    ) -> Result<Self, AuthorityError> {
        Ok(Self {
            cluster: cluster.to_owned(),
            certificate,
            key: rcgen::KeyPair::try_from(private_key).map_err(AuthorityError::Key)?,
        })
    }

    /// DER.
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// PKCS #8.
    pub fn private_key(&self) -> Vec<u8> {
        self.key.serialize_der()
    }

    /// A certificate for `component` of this cluster, which holds the private key of `public_key`.
    /// That it does is not proven here: without the private key the certificate is of no use.
    pub fn issue(
        &self,
        component: crate::Component,
        public_key: &[u8],
        now: Timestamp,
    ) -> Result<Issued, AuthorityError> {
        let name = Name {
            cluster: self.cluster.clone(),
            component,
        };
        let uri = Ia5String::try_from(name.to_string()).map_err(AuthorityError::Certificate)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, component.role().as_str());
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.serial_number = Some(SerialNumber::from(serial().to_vec()));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // Components are servers and clients of each other.
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = validity(now, LIFETIME);
        let issuer_params = ca_params(&self.cluster);
        let issuer = Issuer::from_params(&issuer_params, &self.key);
        let made = params.signed_by(&Point::new(public_key)?, &issuer);
        Ok(Issued {
            certificate: made.map_err(AuthorityError::Certificate)?.der().to_vec(),
            not_before: millis(params.not_before),
            not_after: millis(params.not_after),
        })
    }
}

/// All that certificates and their issuer have to agree on; made anew from the cluster's id.
fn ca_params(cluster: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("Coracle cluster {cluster}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

/// Certificates count in whole seconds.
fn validity(now: Timestamp, lifetime: Duration) -> (OffsetDateTime, OffsetDateTime) {
    let seconds = i64::try_from(now.0 / 1_000).unwrap_or(i64::MAX);
    let now = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    (
        now.saturating_sub(time::Duration::try_from(BACKDATED).unwrap_or_default()),
        now.saturating_add(time::Duration::try_from(lifetime).unwrap_or_default()),
    )
}

fn millis(time: OffsetDateTime) -> Timestamp {
    Timestamp(u64::try_from(time.unix_timestamp()).unwrap_or(0) * 1_000)
}

fn serial() -> [u8; 16] {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the kernel's random source answers once booted");
    // Positive, and as long as it says.
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    bytes
}

/// Somebody else's public key.
struct Point<'a>(&'a [u8]);

impl<'a> Point<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self, AuthorityError> {
        if bytes.len() == POINT && bytes[0] == 4 {
            Ok(Self(bytes))
        } else {
            Err(AuthorityError::PublicKey)
        }
    }
}

impl PublicKeyData for Point<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}
