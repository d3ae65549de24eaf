//! Seals what is secret at rest: AES-256-GCM, with the key's name in the sealed text, so that keys can be changed.

use std::fmt;
use std::path::{Path, PathBuf};

use aes_gcm::aead::Aead;
use aes_gcm::{Aes256Gcm, KeyInit, Nonce};
use api::ids::{JobId, RunId};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

use crate::accounts::KeyPair;
use crate::ids::Ids;
use crate::private_files;

/// What every sealed text begins with; the number is the version of the form.
const SEALED: &str = "sealed1:";

/// What a text begins with that was kept without a key, because the configuration says so.
const PLAIN: &str = "plain:";

const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 12;

/// Why a text could not be sealed or opened, or why there are no keys. Never tells anything of text or key.
#[derive(Debug, thiserror::Error)]
pub enum SealingError {
    /// It was never sealed.
    #[error("not a sealed text")]
    NotSealed,
    /// The key that sealed it is not among those configured.
    #[error("sealed with the key {0}, which is not among the configured ones")]
    UnknownKey(String),
    /// It is not what was sealed, or the key is not the one that sealed it.
    #[error("the sealed text was changed, or its key is wrong")]
    Broken,
    /// A configured key is unusable.
    #[error("encryption key `{0}`: the secret is not {KEY_BYTES} bytes in base64")]
    InvalidKey(String),
    /// The key's file is unusable.
    #[error("the file `{0}` does not hold an encryption key")]
    InvalidKeyFile(PathBuf),
    /// The key's file cannot be read or written.
    #[error("the encryption key's file `{path}`: {source}")]
    KeyFile {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// A key as it is configured.
#[derive(Clone, PartialEq, Eq)]
pub enum KeyConfig {
    /// Nothing is sealed.
    Identity,
    /// AES-256-GCM.
    Aes {
        /// A name for people.
        name: String,
        /// 32 bytes in base64.
        secret: String,
    },
}

// The secret must not be printed.
impl fmt::Debug for KeyConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyConfig::Identity => f.write_str("Identity"),
            KeyConfig::Aes { name, .. } => f.debug_struct("Aes").field("name", name).finish_non_exhaustive(),
        }
    }
}

impl KeyConfig {
    /// Whether it can be used, or why not.
    pub fn check(&self) -> Result<(), SealingError> {
        Key::new(self).map(|_| ())
    }
}

/// The name of having no key among the names of keys.
const NO_KEY: &str = "identity";

enum Key {
    Identity,
    Aes { id: String, cipher: Box<Aes256Gcm> },
}

impl Key {
    fn new(config: &KeyConfig) -> Result<Key, SealingError> {
        let KeyConfig::Aes { name, secret } = config else { return Ok(Key::Identity) };
        let bytes = STANDARD.decode(secret.trim()).map_err(|_| SealingError::InvalidKey(name.clone()))?;
        Key::aes(&bytes).ok_or_else(|| SealingError::InvalidKey(name.clone()))
    }

    fn id(&self) -> &str {
        match self {
            Key::Identity => NO_KEY,
            Key::Aes { id, .. } => id,
        }
    }

    fn aes(bytes: &[u8]) -> Option<Key> {
        let cipher = Box::new(Aes256Gcm::new_from_slice(bytes).ok()?);
        // Named by what it is and not by its name in the configuration, which may be given to another key later.
        Some(Key::Aes { id: hex::encode(&Sha256::digest(bytes)[..4]), cipher })
    }
}

/// Seals and opens secret texts. The first key seals; all of them open.
pub struct Sealer {
    first: Key,
    others: Vec<Key>,
    ids: Ids,
    /// Of which the host keys of jobs are made.
    job_seed: Vec<u8>,
}

// Keys must not be printed.
impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").field("keys", &(1 + self.others.len())).finish_non_exhaustive()
    }
}

impl Sealer {
    /// A sealer with the configured keys; where none is configured, with the one in `key_file`, made if missing.
    ///
    /// Once the file exists, its key goes on opening what it sealed.
    pub fn open(keys: &[KeyConfig], key_file: &Path, ids: &Ids) -> Result<Sealer, SealingError> {
        let mut all = keys.iter().map(Key::new).collect::<Result<Vec<_>, _>>()?;
        if all.is_empty() || key_file.exists() {
            all.push(key_of_file(key_file, ids)?);
        }
        let first = all.remove(0);
        Ok(Sealer { first, others: all, ids: ids.clone(), job_seed: vec![] })
    }

    /// A sealer with a key that nobody keeps, for tests and simulations.
    pub fn ephemeral(ids: &Ids) -> Sealer {
        let first = Key::aes(&ids.bytes::<KEY_BYTES>()).expect("the key has the cipher's length");
        Sealer { first, others: vec![], ids: ids.clone(), job_seed: vec![] }
    }

    /// A text of which the host keys of jobs are made from now on. It must be secret and stay the same.
    pub(crate) fn set_job_seed(&mut self, seed: &str) {
        self.job_seed = seed.as_bytes().to_vec();
    }

    /// The host key of a job's SSH server: always the same, and kept nowhere.
    pub fn job_host_key(&self, job: JobId) -> KeyPair {
        self.made_key(&[job.0.as_bytes()], "job@dstack")
    }

    /// The key with which this server enters a job in the place of its user: made as its host key is.
    pub fn job_entry_key(&self, job: JobId) -> KeyPair {
        self.made_key(&[b"enter ", job.0.as_bytes().as_slice()], "entry@dstack")
    }

    /// The host key of this server's SSH proxy: made as those of jobs are.
    pub fn proxy_host_key(&self) -> KeyPair {
        self.made_key(&[b"the SSH proxy's host key"], "proxy@dstack")
    }

    /// A key that follows from the seed and from what it is for.
    fn made_key(&self, purpose: &[&[u8]], comment: &str) -> KeyPair {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.job_seed).expect("a key of any length is good");
        for part in purpose {
            mac.update(part);
        }
        KeyPair::of_seed(&mac.finalize().into_bytes().into(), comment)
    }

    /// The key with which the nodes of a gang enter each other: always the same for a try of it, and kept nowhere.
    pub fn gang_key(&self, run: RunId, replica_num: u32, submission_num: u32) -> KeyPair {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.job_seed).expect("a key of any length is good");
        // No job's identifier is as long, so that no host key is ever the same.
        mac.update(b"gang");
        mac.update(run.0.as_bytes());
        mac.update(&replica_num.to_be_bytes());
        mac.update(&submission_num.to_be_bytes());
        KeyPair::of_seed(&mac.finalize().into_bytes().into(), "gang@dstack")
    }

    /// Whether what is sealed can be read without a key, because the configuration says so.
    pub fn is_plain(&self) -> bool {
        matches!(self.first, Key::Identity)
    }

    /// The name of the key that seals: made of the key itself, and telling nothing of it.
    pub fn sealing_key(&self) -> &str {
        self.first.id()
    }

    /// Whether what the key of that name sealed can be opened.
    pub fn has_key(&self, id: &str) -> bool {
        std::iter::once(&self.first).chain(&self.others).any(|key| key.id() == id)
    }

    /// Seals a text.
    pub fn seal(&self, text: &str) -> String {
        let Key::Aes { id, cipher } = &self.first else { return format!("{PLAIN}{text}") };
        let nonce = self.ids.bytes::<NONCE_BYTES>();
        let sealed = cipher.encrypt(&Nonce::from(nonce), text.as_bytes());
        let sealed = sealed.expect("secret texts are far shorter than the cipher's limit of 64 GiB");
        let mut bytes = nonce.to_vec();
        bytes.extend(sealed);
        format!("{SEALED}{id}:{}", STANDARD.encode(bytes))
    }

    /// Opens a sealed text.
    pub fn unseal(&self, sealed: &str) -> Result<String, SealingError> {
        let keys = || std::iter::once(&self.first).chain(&self.others);
        if let Some(text) = sealed.strip_prefix(PLAIN) {
            let allowed = keys().any(|key| matches!(key, Key::Identity));
            return if allowed { Ok(text.to_owned()) } else { Err(SealingError::UnknownKey(NO_KEY.to_owned())) };
        }
        let (wanted, text) =
            sealed.strip_prefix(SEALED).and_then(|rest| rest.split_once(':')).ok_or(SealingError::NotSealed)?;
        let cipher = keys().find_map(|key| match key {
            Key::Aes { id, cipher } if id == wanted => Some(cipher),
            Key::Aes { .. } | Key::Identity => None,
        });
        let cipher = cipher.ok_or_else(|| SealingError::UnknownKey(wanted.to_owned()))?;
        let bytes = STANDARD.decode(text).map_err(|_| SealingError::Broken)?;
        let (nonce, bytes) = bytes.split_first_chunk::<NONCE_BYTES>().ok_or(SealingError::Broken)?;
        let text = cipher.decrypt(&Nonce::from(*nonce), bytes).map_err(|_| SealingError::Broken)?;
        String::from_utf8(text).map_err(|_| SealingError::Broken)
    }
}

fn key_of_file(path: &Path, ids: &Ids) -> Result<Key, SealingError> {
    let failed = |source| SealingError::KeyFile { path: path.to_owned(), source };
    let made = format!("{}\n", STANDARD.encode(ids.bytes::<KEY_BYTES>()));
    match private_files::create(path, made.as_bytes()) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(error)),
    }
    // Read back in every case: another process may have made it at the same moment.
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let invalid = || SealingError::InvalidKeyFile(path.to_owned());
    let bytes = STANDARD.decode(text.trim()).map_err(|_| invalid())?;
    Key::aes(&bytes).ok_or_else(invalid)
}

/// The name of the key that sealed a text, if it is a sealed one.
pub fn key_of(sealed: &str) -> Option<&str> {
    if sealed.starts_with(PLAIN) {
        return Some(NO_KEY);
    }
    Some(sealed.strip_prefix(SEALED)?.split_once(':')?.0)
}

/// The SHA-256 of a token in hex: what a token is looked up by.
pub fn token_hash(token: &str) -> String {
    hex::encode(Sha256::digest(token))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn ids() -> Ids {
        Ids::seeded(1)
    }

    fn aes(byte: u8) -> KeyConfig {
        KeyConfig::Aes { name: format!("key {byte}"), secret: STANDARD.encode([byte; 32]) }
    }

    fn sealer(keys: &[KeyConfig]) -> Sealer {
        Sealer::open(keys, Path::new("/nonexistent/key"), &ids()).unwrap()
    }

    #[test]
    fn what_was_sealed_is_opened() {
        let sealer = sealer(&[aes(1)]);
        for text in ["", "hunter2", "größer\n\0", &"x".repeat(100_000)] {
            let sealed = sealer.seal(text);
            assert!(sealed.starts_with("sealed1:"));
            assert!(text.is_empty() || !sealed.contains(text));
            assert_eq!(sealer.unseal(&sealed).unwrap(), text);
        }
    }

    #[test]
    fn the_same_text_is_sealed_differently_each_time() {
        let sealer = sealer(&[aes(1)]);
        assert_ne!(sealer.seal("a"), sealer.seal("a"));
    }

    #[test]
    fn every_change_is_noticed() {
        let sealer = sealer(&[aes(1)]);
        let sealed = sealer.seal("hunter2");
        let (head, body) = sealed.rsplit_once(':').unwrap();
        let bytes = STANDARD.decode(body).unwrap();
        for place in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[place] ^= 1;
            let error = sealer.unseal(&format!("{head}:{}", STANDARD.encode(changed))).unwrap_err();
            assert_eq!(error.to_string(), "the sealed text was changed, or its key is wrong");
        }
        for cut in [0, 5, 12, bytes.len() - 1] {
            let error = sealer.unseal(&format!("{head}:{}", STANDARD.encode(&bytes[..cut]))).unwrap_err();
            assert!(matches!(error, SealingError::Broken), "{cut}");
        }
        assert!(matches!(sealer.unseal(&format!("{head}:?")), Err(SealingError::Broken)));
    }

    #[test]
    fn another_key_does_not_open_it() {
        let sealed = sealer(&[aes(1)]).seal("hunter2");
        let error = sealer(&[aes(2)]).unseal(&sealed).unwrap_err().to_string();
        let id = sealed.split(':').nth(1).unwrap();
        assert_eq!(error, format!("sealed with the key {id}, which is not among the configured ones"));
        // Even if it says that it is the same key.
        let other = sealer(&[aes(2)]).seal("x");
        let forged = sealed.replace(id, other.split(':').nth(1).unwrap());
        assert!(matches!(sealer(&[aes(2)]).unseal(&forged), Err(SealingError::Broken)));
    }

    #[test]
    fn what_was_never_sealed_is_refused() {
        for text in ["", "hunter2", "sealed1:", "sealed2:aa:bb", "plain"] {
            let error = sealer(&[aes(1)]).unseal(text).unwrap_err();
            assert_eq!(error.to_string(), "not a sealed text", "{text}");
        }
    }

    #[test]
    fn the_first_key_seals_and_all_of_them_open() {
        let old = sealer(&[aes(1)]).seal("hunter2");
        let both = sealer(&[aes(2), aes(1)]);
        assert_eq!(both.unseal(&old).unwrap(), "hunter2");
        let new = both.seal("hunter3");
        assert_eq!(sealer(&[aes(2)]).unseal(&new).unwrap(), "hunter3");
        assert!(sealer(&[aes(1)]).unseal(&new).is_err());
        // The names of keys tell which one is missing.
        assert_eq!(key_of(&new), Some(both.sealing_key()));
        let old_key = key_of(&old).unwrap();
        assert!(both.has_key(old_key) && !sealer(&[aes(2)]).has_key(old_key));
    }

    #[test]
    fn identity_keeps_texts_as_they_are_and_is_allowed_only_when_configured() {
        let plain = sealer(&[KeyConfig::Identity, aes(1)]);
        assert!(plain.is_plain());
        assert_eq!(plain.seal("a:b"), "plain:a:b");
        assert_eq!(
            (plain.sealing_key(), key_of("plain:a:b"), key_of("a:b")),
            ("identity", Some("identity"), None)
        );
        assert_eq!(plain.unseal("plain:a:b").unwrap(), "a:b");
        assert_eq!(plain.unseal(&sealer(&[aes(1)]).seal("x")).unwrap(), "x");
        let refused = sealer(&[aes(1)]).unseal("plain:a:b").unwrap_err();
        assert_eq!(refused.to_string(), "sealed with the key identity, which is not among the configured ones");
    }

    #[test]
    fn unusable_keys_are_named() {
        for secret in ["", "AAAA", "not base64!", &STANDARD.encode([1; 16])] {
            let key = KeyConfig::Aes { name: "k1".to_owned(), secret: secret.to_owned() };
            let error = Sealer::open(&[key], Path::new("/nonexistent/key"), &ids()).unwrap_err();
            assert_eq!(error.to_string(), "encryption key `k1`: the secret is not 32 bytes in base64");
        }
    }

    #[test]
    fn without_keys_one_is_made_and_kept_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("encryption.key");
        let sealed = Sealer::open(&[], &path, &ids()).unwrap().seal("hunter2");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let again = Sealer::open(&[], &path, &Ids::seeded(2)).unwrap();
        assert_eq!(again.unseal(&sealed).unwrap(), "hunter2");
        // A key that is configured later seals from then on; the file's goes on opening.
        let later = Sealer::open(&[aes(1)], &path, &ids()).unwrap();
        assert_eq!(later.unseal(&sealed).unwrap(), "hunter2");
        assert_eq!(sealer(&[aes(1)]).unseal(&later.seal("x")).unwrap(), "x");
        std::fs::write(&path, "spoiled").unwrap();
        let error = Sealer::open(&[], &path, &ids()).unwrap_err().to_string();
        assert!(error.ends_with("does not hold an encryption key"), "{error}");
    }

    #[test]
    fn made_keys_follow_from_the_seed_and_differ_by_their_purpose() {
        let with_seed = |seed| {
            let mut sealer = sealer(&[aes(1)]);
            sealer.set_job_seed(seed);
            sealer
        };
        let (sealer, other) = (with_seed("a"), with_seed("b"));
        let jobs = [1, 2].map(|number| JobId(uuid::Uuid::from_u128(number)));
        let keys = |sealer: &Sealer| {
            let of_jobs = jobs.iter().flat_map(|job| [sealer.job_host_key(*job), sealer.job_entry_key(*job)]);
            of_jobs.chain([sealer.proxy_host_key()]).map(|key| key.private).collect::<Vec<_>>()
        };
        let mut all = [keys(&sealer), keys(&other)].concat();
        assert_eq!(keys(&sealer), keys(&with_seed("a")));
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 10);
    }

    #[test]
    fn every_try_of_every_gang_has_a_key_of_its_own() {
        let mut sealer = Sealer::ephemeral(&ids());
        sealer.set_job_seed("seed");
        let (one, other) = (RunId(uuid::Uuid::from_u128(1)), RunId(uuid::Uuid::from_u128(2)));
        let key = |run, replica, submission| sealer.gang_key(run, replica, submission).public;
        let all = [key(one, 0, 0), key(one, 1, 0), key(one, 0, 1), key(other, 0, 0)];
        let different: std::collections::BTreeSet<&String> = all.iter().collect();
        assert_eq!(different.len(), all.len());
        assert_eq!(key(one, 0, 0), all[0]);
        assert_ne!(sealer.job_host_key(JobId(one.0)).public.replace("job@", "gang@"), all[0]);
        let mut elsewhere = Sealer::ephemeral(&ids());
        elsewhere.set_job_seed("another seed");
        assert_ne!(elsewhere.gang_key(one, 0, 0).public, all[0]);
    }

    #[test]
    fn keys_are_not_printed() {
        let text = format!("{:?} {:?}", sealer(&[aes(1), aes(2)]), aes(1));
        assert_eq!(text, "Sealer { keys: 2, .. } Aes { name: \"key 1\", .. }");
    }
}
