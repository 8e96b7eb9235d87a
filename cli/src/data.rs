//! The data directory: who owns it, whose cluster it is, and where the CLI finds a token.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use coracle_model::{SecretHash, Timestamp, Token, TokenId, TokenRole};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::CliError;

/// An open, locked data directory. The lock goes when the process does, however it ends.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    identity: Identity,
    _lock: File,
}

/// Made once and kept: everything that is made on the machine carries the cluster's id.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// 8 hexadecimal digits.
    pub(crate) cluster_id: String,
    pub(crate) node_id: Uuid,
}

/// Where a running server listens, for CLIs on the same machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ServerFile {
    pub(crate) api: String,
    pub(crate) invoke: String,
    pub(crate) admin: String,
    pub(crate) pid: u32,
}

pub(crate) const TOKEN_FILE: &str = "admin.token";
const SERVER_FILE: &str = "server.json";
const IDENTITY_FILE: &str = "cluster.json";
const MOVED_FILE: &str = "controller.moved";

/// A data directory that this process has to itself. What it is of is not settled yet.
#[derive(Debug)]
pub(crate) struct Locked {
    path: PathBuf,
    lock: File,
}

impl Locked {
    /// Creates what is missing.
    pub(crate) fn take(path: &Path) -> Result<Self, CliError> {
        let fail = |action: &str, error: io::Error| {
            CliError::Failed(format!("{action} {}: {error}", path.display()))
        };
        // Searchable by others: containers run under mapped uids and reach their files through it.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(path)
            .map_err(|e| fail("cannot create the data directory", e))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o711))
            .map_err(|e| fail("cannot set the mode of", e))?;
        let lock = File::create(path.join("lock")).map_err(|e| fail("cannot lock", e))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            CliError::Failed(format!(
                "{} is in use by another coracle process; stop it or choose another --data",
                path.display()
            ))
        })?;
        Ok(Self {
            path: path.to_owned(),
            lock,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What it is of, unless it is new.
    pub(crate) fn known(&self) -> Result<Option<Identity>, CliError> {
        let file = self.path.join(IDENTITY_FILE);
        match fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| {
                CliError::Failed(format!("{} is damaged: {error}", file.display()))
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(CliError::Failed(format!(
                "cannot read {}: {error}",
                file.display()
            ))),
        }
    }

    /// Settles what it is of, if that is open.
    pub(crate) fn keep(self, new: impl FnOnce() -> Identity) -> Result<DataDir, CliError> {
        let identity = match self.known()? {
            Some(identity) => identity,
            None => {
                let identity = new();
                let text = serde_json::to_vec_pretty(&identity).expect("plain values serialize");
                write_durably(&self.path.join(IDENTITY_FILE), &text, 0o644).map_err(|error| {
                    CliError::Failed(format!(
                        "cannot write into {}: {error}",
                        self.path.display()
                    ))
                })?;
                identity
            }
        };
        Ok(DataDir {
            path: self.path,
            identity,
            _lock: self.lock,
        })
    }

    /// As a server by itself.
    pub(crate) fn keep_alone(self, cluster_id: Option<String>) -> Result<DataDir, CliError> {
        self.keep(|| Identity {
            cluster_id: cluster_id.unwrap_or_else(random_hex::<4>),
            node_id: Uuid::new_v4(),
        })
    }

    /// Notes that the controller's part went elsewhere.
    pub(crate) fn note_moved(&self, to: &Path) -> io::Result<()> {
        write_durably(
            &self.path.join(MOVED_FILE),
            to.display().to_string().as_bytes(),
            0o644,
        )
    }

    /// Where the controller's part went, if it did.
    pub(crate) fn moved(&self) -> Option<String> {
        fs::read_to_string(self.path.join(MOVED_FILE)).ok()
    }
}

impl DataDir {
    /// Creates what is missing. `cluster_id` is the one to use when there is none yet.
    pub(crate) fn open(path: &Path, cluster_id: Option<String>) -> Result<Self, CliError> {
        Locked::take(path)?.keep_alone(cluster_id)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A directory below, with this mode also when it was there before with another.
    pub(crate) fn folder(&self, name: &str, mode: u32) -> Result<PathBuf, CliError> {
        let path = self.path.join(name);
        fs::create_dir_all(&path)
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(mode)))
            .map_err(|e| CliError::Failed(format!("cannot prepare {}: {e}", path.display())))?;
        Ok(path)
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The first start's token; the second value says whether it was made just now. The file is
    /// durable before any controller knows the token, so a crash in between repeats harmlessly.
    pub(crate) fn admin_token(&self, now: Timestamp) -> Result<(Token, Option<String>), CliError> {
        let path = self.path.join(TOKEN_FILE);
        let fail =
            |error: io::Error| CliError::Failed(format!("admin token {}: {error}", path.display()));
        let (text, fresh) = match fs::read_to_string(&path) {
            Ok(text) => (text.trim().to_owned(), false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let text = format!("{}${}", Uuid::new_v4(), random_hex::<32>());
                write_durably(&path, text.as_bytes(), 0o600).map_err(fail)?;
                (text, true)
            }
            Err(error) => return Err(fail(error)),
        };
        let damaged = || CliError::Failed(format!("{} is damaged", path.display()));
        let (id, secret) = text.split_once('$').ok_or_else(damaged)?;
        let token = Token {
            id: id.parse::<TokenId>().map_err(|_| damaged())?,
            description: "made at the first start".to_owned(),
            hash: SecretHash::of(secret),
            role: TokenRole::Admin,
            expires_at: None,
            created_at: now,
        };
        Ok((token, fresh.then_some(text)))
    }

    pub(crate) fn write_server_file(&self, server: &ServerFile) -> Result<(), CliError> {
        let path = self.path.join(SERVER_FILE);
        let text = serde_json::to_vec_pretty(server).expect("plain values serialize");
        write_durably(&path, &text, 0o644)
            .map_err(|e| CliError::Failed(format!("cannot write {}: {e}", path.display())))
    }
}

/// What a CLI on the same machine finds without being told.
pub(crate) fn read_server_file(data: &Path) -> Option<ServerFile> {
    serde_json::from_slice(&fs::read(data.join(SERVER_FILE)).ok()?).ok()
}

pub(crate) fn read_token(data: &Path) -> io::Result<String> {
    fs::read_to_string(data.join(TOKEN_FILE)).map(|text| text.trim().to_owned())
}

/// Write, fsync, rename, fsync the directory.
pub(crate) fn write_durably(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

pub(crate) fn random_hex<const N: usize>() -> String {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the kernel's random source answers once booted");
    hex::encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_closed_also_when_they_were_open() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path(), None).unwrap();
        fs::create_dir(dir.path().join("controller")).unwrap();
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(dir.path().join("controller"), open).unwrap();
        for name in ["controller", "other/new"] {
            let path = data.folder(name, 0o700).unwrap();
            let mode = fs::metadata(path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700, "{name}");
        }
    }

    #[test]
    fn identity_and_token_stay_and_the_lock_excludes() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDir::open(dir.path(), None).unwrap();
        let (token, shown) = first.admin_token(Timestamp(1)).unwrap();
        let shown = shown.expect("shown once");
        assert!(token.hash.matches(shown.split_once('$').unwrap().1));
        let mode = fs::metadata(dir.path().join(TOKEN_FILE))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(
            DataDir::open(dir.path(), None),
            Err(CliError::Failed(_))
        ));
        let id = first.identity().cluster_id.clone();
        drop(first);
        let second = DataDir::open(dir.path(), Some("ffffffff".into())).unwrap();
        assert_eq!(second.identity().cluster_id, id);
        assert!(second.admin_token(Timestamp(2)).unwrap().1.is_none());
    }
}
