//! What this machine has, as the agent's program finds it out.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::agent::HostInfo;
use tokio::process::Command;
use tokio::time::Instant;

use crate::{Error, ErrorKind, Result};

/// How long the program may take; a driver that wakes up its GPUs is slow.
const DISCOVER_TIMEOUT: Duration = Duration::from_secs(30);

/// How old the facts may be before they are found out again, beside the caller.
const FACTS_MAX_AGE: Duration = Duration::from_mins(1);

/// The facts, found out once and refreshed when they are old.
#[derive(Debug)]
pub(super) struct Facts {
    agent_binary: PathBuf,
    known: Mutex<Option<Known>>,
    asking: tokio::sync::Mutex<()>,
}

#[derive(Debug, Clone)]
struct Known {
    host: Arc<HostInfo>,
    at: Instant,
}

impl Facts {
    pub(super) fn new(agent_binary: PathBuf) -> Arc<Facts> {
        Arc::new(Facts { agent_binary, known: Mutex::new(None), asking: tokio::sync::Mutex::new(()) })
    }

    /// The facts; waits for them only the first time.
    pub(super) async fn get(self: &Arc<Facts>) -> Result<Arc<HostInfo>> {
        match self.known() {
            Some(known) => {
                if FACTS_MAX_AGE < known.at.elapsed() {
                    let facts = Arc::clone(self);
                    tokio::spawn(async move {
                        if let Err(error) = facts.refresh(FACTS_MAX_AGE).await {
                            tracing::warn!(%error, "kept the old facts about this machine");
                        }
                    });
                }
                Ok(known.host)
            }
            None => self.refresh(FACTS_MAX_AGE).await,
        }
    }

    /// Asks, unless somebody else has just asked.
    async fn refresh(&self, max_age: Duration) -> Result<Arc<HostInfo>> {
        let _turn = self.asking.lock().await;
        if let Some(known) = self.known().filter(|known| known.at.elapsed() <= max_age) {
            return Ok(known.host);
        }
        let host = Arc::new(discover(&self.agent_binary).await?);
        let known = Known { host: Arc::clone(&host), at: Instant::now() };
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(known);
        Ok(host)
    }

    fn known(&self) -> Option<Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn discover(agent_binary: &Path) -> Result<HostInfo> {
    let failed = |why: String| {
        let message = format!("`{} discover` failed: {why}", agent_binary.display());
        Error::new(ErrorKind::Unavailable, message)
    };
    let output = Command::new(agent_binary).arg("discover").stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(DISCOVER_TIMEOUT, output).await;
    let output = output.map_err(|_| failed(format!("no answer in {} s", DISCOVER_TIMEOUT.as_secs())))?;
    let output = output.map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        return Err(failed(format!("{}: {}", output.status, words.trim())));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| failed(error.to_string()))
}
