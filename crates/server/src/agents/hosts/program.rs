//! The agent's program as this server has it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Mutex;

use api::ids::InstanceId;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::OnceCell;

use super::plan::Seen;
use super::{JoinError, JoinStep};

/// How often a program that does not work on a host is tried there while the host has one that does.
const TRIES: u32 = 3;

/// The program that is brought to hosts. It is read when the first host needs it, and then stays in memory.
#[derive(Debug)]
pub struct AgentProgram {
    path: PathBuf,
    loaded: OnceCell<Loaded>,
    /// How often a program did not work on a host.
    failures: Mutex<HashMap<(InstanceId, String), u32>>,
}

/// A program in memory.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) bytes: Bytes,
    /// In lower-case hex.
    pub(super) sha256: String,
}

impl AgentProgram {
    /// The program in this file, for x86_64.
    pub fn new(path: impl Into<PathBuf>) -> AgentProgram {
        AgentProgram { path: path.into(), loaded: OnceCell::new(), failures: Mutex::default() }
    }

    pub(super) async fn load(&self) -> Result<&Loaded, JoinError> {
        self.loaded.get_or_try_init(|| self.read()).await
    }

    async fn read(&self) -> Result<Loaded, JoinError> {
        let path = self.path.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let bytes = Bytes::from(std::fs::read(path)?);
            Ok(Loaded { sha256: hex::encode(Sha256::digest(&bytes)), bytes })
        });
        let read = reading.await.unwrap_or_else(|panicked| Err(std::io::Error::other(panicked)));
        read.map_err(|error| {
            let path = self.path.display();
            JoinError::passing(JoinStep::Deliver, format!("the server cannot read its agent `{path}`: {error}"))
        })
    }

    /// Notes that a program did not work on a host.
    pub(super) fn failed(&self, instance: InstanceId, sha256: &str) {
        let mut failures = self.failures.lock().expect("nobody panics while counting");
        *failures.entry((instance, sha256.to_owned())).or_default() += 1;
    }

    /// The hash of the program that a host should run: ours, unless that failed too often and the host has another.
    pub(super) fn choose(&self, instance: InstanceId, loaded: &Loaded, seen: &Seen) -> String {
        let failures = self.failures.lock().expect("nobody panics while counting");
        let tries = failures.get(&(instance, loaded.sha256.clone())).copied().unwrap_or_default();
        match seen.working_program() {
            Some(other) if TRIES <= tries => other.to_owned(),
            _ => loaded.sha256.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use uuid::Uuid;

    use super::super::plan::Installed;
    use super::*;

    #[test]
    fn a_program_that_fails_is_tried_three_times_while_there_is_another() {
        let program = AgentProgram::new("/nowhere");
        let loaded = Loaded { bytes: Bytes::new(), sha256: "b".repeat(64) };
        let old = "a".repeat(64);
        let host = InstanceId::from(Uuid::from_u128(1));
        let installed = Installed { program: old.clone(), previous: None, instance: host, start: "0".repeat(64) };
        let kept = BTreeSet::from([old[..16].to_owned()]);
        let seen = Seen { installed: Some(installed), kept, ..Seen::default() };
        for _ in 0..TRIES {
            assert_eq!(program.choose(host, &loaded, &seen), loaded.sha256);
            program.failed(host, &loaded.sha256);
        }
        assert_eq!(program.choose(host, &loaded, &seen), old);
        assert_eq!(program.choose(host, &loaded, &Seen::default()), loaded.sha256);
        assert_eq!(program.choose(Uuid::from_u128(2).into(), &loaded, &seen), loaded.sha256);
    }

    #[tokio::test]
    async fn a_program_that_cannot_be_read_is_named() {
        let error = AgentProgram::new("/nowhere/dstack-agent").load().await.unwrap_err();
        assert!(error.message.contains("`/nowhere/dstack-agent`: No such file"), "{error}");
    }
}
