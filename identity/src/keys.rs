//! The cluster key, and the key pair of a controller to which it is sealed.

use std::fmt;

use crypto_box::{PublicKey, SecretKey, aead::OsRng};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Damaged, or sealed for another key.
    #[error("what is sealed does not open with this key")]
    Sealed,
}

/// Encrypts the cluster's secrets. Never leaves a controller in the clear.
#[derive(Clone)]
pub struct ClusterKey([u8; 32]);

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKey(..)")
    }
}

impl ClusterKey {
    pub fn generate() -> Self {
        Self(random())
    }

    /// `purpose` has to be given again to open it, so that one secret cannot stand in for another.
    pub fn seal(&self, purpose: &str, plain: &[u8]) -> Vec<u8> {
        let nonce: [u8; NONCE_LEN] = random();
        let mut sealed = plain.to_vec();
        self.cipher()
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(purpose.as_bytes()),
                &mut sealed,
            )
            .expect("secrets are far below the cipher's limit of 256 GiB");
        let mut whole = nonce.to_vec();
        whole.append(&mut sealed);
        whole
    }

    pub fn open(&self, purpose: &str, sealed: &[u8]) -> Result<Vec<u8>, KeyError> {
        let (nonce, rest) = sealed.split_at_checked(NONCE_LEN).ok_or(KeyError::Sealed)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| KeyError::Sealed)?;
        let mut rest = rest.to_vec();
        let plain = self
            .cipher()
            .open_in_place(nonce, Aad::from(purpose.as_bytes()), &mut rest)
            .map_err(|_| KeyError::Sealed)?;
        Ok(plain.to_vec())
    }

    /// For one controller: only the holder of its [`WrappingKey`] opens it.
    pub fn wrap(&self, to: &[u8; 32]) -> Vec<u8> {
        PublicKey::from_bytes(*to)
            .seal(&mut OsRng, &self.0)
            .expect("32 bytes are far below the cipher's limit")
    }

    fn cipher(&self) -> LessSafeKey {
        let key = UnboundKey::new(&CHACHA20_POLY1305, &self.0).expect("it has the right length");
        LessSafeKey::new(key)
    }
}

/// A controller's own X25519 key pair; it stays in its data directory.
pub struct WrappingKey(SecretKey);

impl fmt::Debug for WrappingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WrappingKey(..)")
    }
}

impl WrappingKey {
    pub fn generate() -> Self {
        Self(SecretKey::from_bytes(random()))
    }

    pub fn from_secret(bytes: [u8; 32]) -> Self {
        Self(SecretKey::from_bytes(bytes))
    }

    pub fn secret(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    pub fn public(&self) -> [u8; 32] {
        self.0.public_key().to_bytes()
    }

    pub fn unwrap(&self, wrapped: &[u8]) -> Result<ClusterKey, KeyError> {
        let bytes = self.0.unseal(wrapped).map_err(|_| KeyError::Sealed)?;
        bytes
            .try_into()
            .map(ClusterKey)
            .map_err(|_| KeyError::Sealed)
    }
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the kernel's random source answers once booted");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_opens_with_its_key_and_purpose_only() {
        let key = ClusterKey::generate();
        let sealed = key.seal("ca", b"secret");
        assert!(!sealed.windows(6).any(|w| w == b"secret"));
        assert_eq!(key.open("ca", &sealed).unwrap(), b"secret");
        assert_eq!(key.open("other", &sealed), Err(KeyError::Sealed));
        assert_eq!(
            ClusterKey::generate().open("ca", &sealed),
            Err(KeyError::Sealed)
        );
        let mut damaged = sealed;
        *damaged.last_mut().unwrap() ^= 1;
        assert_eq!(key.open("ca", &damaged), Err(KeyError::Sealed));
        assert_eq!(key.open("ca", b"short"), Err(KeyError::Sealed));
    }

    #[test]
    fn a_wrapped_key_opens_for_its_controller_only() {
        let (key, mine, other) = (
            ClusterKey::generate(),
            WrappingKey::generate(),
            WrappingKey::generate(),
        );
        let wrapped = key.wrap(&mine.public());
        let again = WrappingKey::from_secret(mine.secret());
        let sealed = key.seal("ca", b"secret");
        let opened = again.unwrap(&wrapped).unwrap();
        assert_eq!(opened.open("ca", &sealed).unwrap(), b"secret");
        assert!(other.unwrap(&wrapped).is_err());
    }
}
