//! Pairs of SSH keys.

use ssh_key::private::{Ed25519Keypair, KeypairData};
use ssh_key::{HashAlg, LineEnding, PrivateKey, PublicKey};

use crate::ids::Ids;

/// A pair of SSH keys.
#[derive(Clone)]
pub struct KeyPair {
    /// The public key as a line, the end of the line included.
    pub public: String,
    /// The private key, in OpenSSH's form.
    pub private: String,
}

// The private key must not be printed.
impl std::fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyPair").field("public", &self.public).finish_non_exhaustive()
    }
}

impl KeyPair {
    /// A new pair of Ed25519 keys.
    pub fn generate(ids: &Ids, comment: &str) -> KeyPair {
        KeyPair::of_seed(&ids.bytes(), comment)
    }

    /// The pair of Ed25519 keys that a secret stands for.
    pub fn of_seed(seed: &[u8; 32], comment: &str) -> KeyPair {
        let pair = Ed25519Keypair::from_seed(seed);
        let key = PrivateKey::new(KeypairData::Ed25519(pair), comment);
        let key = key.expect("an unencrypted key can always be made");
        let public = key.public_key().to_openssh().expect("the comment is one line");
        let private = key.to_openssh(LineEnding::LF).expect("an unencrypted key can always be written");
        KeyPair { public: format!("{public}\n"), private: private.to_string() }
    }
}

/// What is told of a public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKeyFacts {
    /// Its algorithm.
    pub kind: String,
    /// Its fingerprint.
    pub fingerprint: String,
    /// Its comment.
    pub comment: String,
    /// The key, in one line.
    pub text: String,
}

/// Reads a public key as OpenSSH writes it; none if it is not one.
pub fn read_public_key(text: &str) -> Option<PublicKeyFacts> {
    let text = text.trim();
    let key = PublicKey::from_openssh(text).ok()?;
    Some(PublicKeyFacts {
        kind: key.algorithm().to_string(),
        fingerprint: key.fingerprint(HashAlg::Sha256).to_string(),
        comment: key.comment().to_owned(),
        text: text.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_fits_together_and_reads_back() {
        let pair = KeyPair::generate(&Ids::Random, "main@dstack");
        assert!(pair.public.starts_with("ssh-ed25519 AAAA") && pair.public.ends_with(" main@dstack\n"));
        let private = PrivateKey::from_openssh(&pair.private).unwrap();
        assert_eq!(format!("{}\n", private.public_key().to_openssh().unwrap()), pair.public);
        let facts = read_public_key(&pair.public).unwrap();
        assert_eq!((facts.kind.as_str(), facts.comment.as_str()), ("ssh-ed25519", "main@dstack"));
        assert!(facts.fingerprint.starts_with("SHA256:"));
        assert!(!format!("{pair:?}").contains("PRIVATE"));
        assert_eq!(read_public_key("ssh-ed25519 nonsense"), None);
    }

    #[test]
    fn no_two_pairs_are_alike() {
        let ids = Ids::Random;
        assert_ne!(KeyPair::generate(&ids, "a").public, KeyPair::generate(&ids, "a").public);
    }
}
