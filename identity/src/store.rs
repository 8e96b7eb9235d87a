//! What a component keeps of its identity, in one file of its data directory.
//!
//! One file, replaced as a whole: a certificate never meets another one's key.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use coracle_base::{Clock, Credentials, Tls, TlsError, Trust};
use coracle_model::{ComponentRole, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{CaHash, Issued, KeyPair, Name, WrappingKey};

const FILE: &str = "identity.json";

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("{path} is damaged: {reason}")]
    Damaged { path: PathBuf, reason: String },
}

/// Who this component is, and how it proves it.
#[derive(Debug)]
pub struct Enrolment {
    pub name: Name,
    pub ca_certificate: Vec<u8>,
    pub issued: Issued,
    /// PKCS #8.
    pub private_key: Private,
    /// Where controllers were when it joined.
    pub controllers: Vec<String>,
    /// A controller's.
    pub controller: Option<ControllerPart>,
}

#[derive(Debug)]
pub struct ControllerPart {
    pub name: String,
    pub listen: String,
    pub advertise: String,
    pub wrapping_key: WrappingKey,
    /// The members, itself included, when it last heard of them: where it finds the others before it
    /// has their log.
    pub peers: BTreeMap<u64, String>,
}

/// Bytes that are not shown.
#[derive(Clone)]
pub struct Private(pub Vec<u8>);

impl std::fmt::Debug for Private {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Private(..)")
    }
}

impl Enrolment {
    /// `None` for a directory that has joined no cluster.
    pub fn load(data: &Path) -> Result<Option<Self>, StoreError> {
        let path = data.join(FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StoreError::Read { path, source }),
        };
        let kept: Kept = match serde_json::from_slice(&bytes) {
            Ok(kept) => kept,
            Err(error) => {
                let reason = error.to_string();
                return Err(StoreError::Damaged { path, reason });
            }
        };
        let damaged = |reason: String| StoreError::Damaged { path, reason };
        kept.open().map(Some).map_err(damaged)
    }

    /// Durable when it returns.
    pub fn save(&self, data: &Path) -> Result<(), StoreError> {
        let path = data.join(FILE);
        let text = serde_json::to_vec_pretty(&Kept::of(self)).expect("plain values serialize");
        replace(&path, &text).map_err(|source| StoreError::Write { path, source })
    }

    pub fn ca_hash(&self) -> CaHash {
        CaHash::of(&self.ca_certificate)
    }

    /// The certificate, and the CA's, which a first contact checks against its hash.
    pub fn credentials(&self) -> Credentials {
        Credentials {
            chain: vec![self.issued.certificate.clone(), self.ca_certificate.clone()],
            key: self.private_key.0.clone(),
        }
    }

    /// For connections with components of these roles.
    pub fn tls(
        &self,
        clock: Arc<dyn Clock>,
        others: &'static [ComponentRole],
    ) -> Result<Tls, TlsError> {
        let trust = Trust::Authority(self.ca_certificate.clone());
        let tls = Tls::new(trust, Some(self.credentials()), clock)?;
        Ok(tls.expecting(Name::check(&self.name.cluster, others)))
    }

    /// After two thirds of the certificate's life.
    pub fn renew_at(&self) -> Timestamp {
        let Issued {
            not_before,
            not_after,
            ..
        } = self.issued;
        Timestamp(not_before.0 + not_after.since(not_before) / 3 * 2)
    }

    /// Takes the certificate that was signed for `key`.
    pub fn renewed(&mut self, key: &KeyPair, issued: Issued) {
        self.private_key = Private(key.private());
        self.issued = issued;
    }
}

/// Write, fsync, rename, fsync the directory.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// The file; binary fields in base64.
#[derive(Serialize, Deserialize)]
struct Kept {
    name: String,
    ca_certificate: String,
    certificate: String,
    private_key: String,
    not_before: u64,
    not_after: u64,
    controllers: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    controller: Option<KeptController>,
}

#[derive(Serialize, Deserialize)]
struct KeptController {
    name: String,
    listen: String,
    advertise: String,
    wrapping_key: String,
    #[serde(default)]
    peers: BTreeMap<u64, String>,
}

impl Kept {
    fn of(enrolment: &Enrolment) -> Self {
        Self {
            name: enrolment.name.to_string(),
            ca_certificate: STANDARD.encode(&enrolment.ca_certificate),
            certificate: STANDARD.encode(&enrolment.issued.certificate),
            private_key: STANDARD.encode(&enrolment.private_key.0),
            not_before: enrolment.issued.not_before.0,
            not_after: enrolment.issued.not_after.0,
            controllers: enrolment.controllers.clone(),
            controller: enrolment.controller.as_ref().map(|part| KeptController {
                name: part.name.clone(),
                listen: part.listen.clone(),
                advertise: part.advertise.clone(),
                wrapping_key: STANDARD.encode(part.wrapping_key.secret()),
                peers: part.peers.clone(),
            }),
        }
    }

    fn open(self) -> Result<Enrolment, String> {
        let bytes = |field: &str, text: &str| {
            let decoded = STANDARD.decode(text);
            decoded.map_err(|error| format!("{field}: {error}"))
        };
        let controller = self.controller.map(|part| {
            let secret = bytes("wrapping_key", &part.wrapping_key)?;
            let secret = secret.try_into();
            Ok::<_, String>(ControllerPart {
                name: part.name,
                listen: part.listen,
                advertise: part.advertise,
                wrapping_key: WrappingKey::from_secret(
                    secret.map_err(|_| "wrapping_key: must be 32 bytes")?,
                ),
                peers: part.peers,
            })
        });
        Ok(Enrolment {
            name: self.name.parse().map_err(|e| format!("{e}"))?,
            ca_certificate: bytes("ca_certificate", &self.ca_certificate)?,
            issued: Issued {
                certificate: bytes("certificate", &self.certificate)?,
                not_before: Timestamp(self.not_before),
                not_after: Timestamp(self.not_after),
            },
            private_key: Private(bytes("private_key", &self.private_key)?),
            controllers: self.controllers,
            controller: controller.transpose()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use coracle_base::ManualClock;
    use coracle_model::MemberId;

    use super::*;
    use crate::{Authority, Component};

    #[test]
    fn what_is_kept_is_read_back_closed_to_others_and_in_time_for_renewal() {
        let now = Timestamp(1_767_225_600_000);
        let authority = Authority::create("0badcafe", now).unwrap();
        let component = Component::Controller(MemberId(3));
        let issue = |at| {
            let key = KeyPair::generate().unwrap();
            let issued = authority.issue(component, &key.public(), at).unwrap();
            (key, issued)
        };
        let (key, issued) = issue(now);
        let wrapping_key = WrappingKey::generate();
        let secret = wrapping_key.secret();
        let mut enrolment = Enrolment {
            name: Name {
                cluster: "0badcafe".into(),
                component,
            },
            ca_certificate: authority.certificate().to_vec(),
            issued,
            private_key: Private(key.private()),
            controllers: vec!["10.0.0.1:7000".into()],
            controller: Some(ControllerPart {
                name: "c3".into(),
                listen: "0.0.0.0:7000".into(),
                advertise: "10.0.0.3:7000".into(),
                wrapping_key,
                peers: [(1, "10.0.0.1:7000".to_owned())].into(),
            }),
        };
        let dir = tempfile::tempdir().unwrap();
        assert!(Enrolment::load(dir.path()).unwrap().is_none());
        enrolment.save(dir.path()).unwrap();
        let path = dir.path().join(FILE);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let days = |from: Timestamp| enrolment.renew_at().since(from) / (24 * 60 * 60 * 1_000);
        assert_eq!(days(now), 19);
        let (key, issued) = issue(now.plus_millis(1_000_000));
        enrolment.renewed(&key, issued.clone());
        enrolment.save(dir.path()).unwrap();
        let read = Enrolment::load(dir.path()).unwrap().expect("it was kept");
        assert_eq!(read.name, enrolment.name);
        assert_eq!(read.issued, issued);
        assert_eq!(
            read.controller.as_ref().unwrap().wrapping_key.secret(),
            secret
        );
        read.tls(Arc::new(ManualClock::at(now.0)), &ComponentRole::ALL)
            .expect("the key is the certificate's");
        fs::write(&path, "{}").unwrap();
        let error = Enrolment::load(dir.path()).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }));
    }
}
