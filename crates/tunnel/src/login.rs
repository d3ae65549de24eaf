//! Logging in with the keys of a target, one after the other.

use std::path::Path;
use std::sync::Arc;

use russh::client::AuthResult;
use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::{Algorithm, HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKey};
use russh::{AgentAuthError, MethodKind};
use tokio::net::UnixStream;
use tokio::sync::watch;

use crate::error::io_words;
use crate::keys::{Kind, kind_of};
use crate::session::Handle;
use crate::{Error, Result, Target};

/// Logs in, or says with which keys it was tried.
pub(crate) async fn log_in(
    handle: &mut Handle,
    target: &Target,
    ended: &watch::Receiver<Option<String>>,
) -> Result<()> {
    let mut login = Login { handle, target, ended, tried: Vec::new(), accepts: Vec::new(), agent_error: None };
    for key in &target.keys {
        let is_in = match key.kind() {
            Kind::Private(private) => login.with_private(key.name(), Arc::clone(private)).await?,
            Kind::Agent(socket) => login.with_agent(socket).await?,
        };
        if is_in {
            return Ok(());
        }
    }
    Err(login.into_error())
}

struct Login<'a> {
    handle: &'a mut Handle,
    target: &'a Target,
    ended: &'a watch::Receiver<Option<String>>,
    /// What was tried, in words.
    tried: Vec<String>,
    /// What the host would take instead.
    accepts: Vec<String>,
    agent_error: Option<Error>,
}

impl Login<'_> {
    async fn with_private(&mut self, name: &str, key: Arc<PrivateKey>) -> Result<bool> {
        self.tried.push(format!("the {} key `{name}`", kind_of(key.public_key())));
        for hash in self.hashes_for(key.public_key()).await? {
            let user = self.target.user.clone();
            let key = PrivateKeyWithHashAlg::new(Arc::clone(&key), hash);
            let result = self.handle.authenticate_publickey(user, key).await;
            if self.outcome(result.map_err(|_| self.lost())?)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn with_agent(&mut self, socket: &Path) -> Result<bool> {
        let agent = match AgentClient::connect_uds(socket).await {
            Ok(agent) => agent,
            // Other keys may still do.
            Err(error) => {
                self.agent_error = Some(agent_error(socket, &error));
                return Ok(false);
            }
        };
        self.with_agent_keys(socket, agent).await
    }

    async fn with_agent_keys(&mut self, socket: &Path, mut agent: AgentClient<UnixStream>) -> Result<bool> {
        if let Some(binding) = self.handle.agent_session_binding() {
            // Old agents do not know this, and need it for no key that they have.
            let _ = agent.bind_session(binding, false).await;
        }
        let identities = match agent.request_identities().await {
            Ok(identities) => identities,
            Err(error) => {
                self.agent_error = Some(agent_error(socket, &error));
                return Ok(false);
            }
        };
        for identity in identities {
            let AgentIdentity::PublicKey { key, comment } = identity else { continue };
            self.tried.push(format!("the {} key `{comment}` of the SSH agent", kind_of(&key)));
            for hash in self.hashes_for(&key).await? {
                let user = self.target.user.clone();
                match self.handle.authenticate_publickey_with(user, key.clone(), hash, &mut agent).await {
                    Ok(result) => {
                        if self.outcome(result)? {
                            return Ok(true);
                        }
                    }
                    Err(AgentAuthError::Send(_)) => return Err(self.lost()),
                    Err(AgentAuthError::Key(error)) => self.agent_error = Some(agent_error(socket, &error)),
                }
            }
        }
        Ok(false)
    }

    /// How an RSA key may sign, the best first, and never with SHA-1. Hosts tell what they know, which may be more
    /// than what they accept.
    async fn hashes_for(&self, key: &PublicKey) -> Result<Vec<Option<HashAlg>>> {
        if !matches!(key.algorithm(), Algorithm::Rsa { .. }) {
            return Ok(vec![None]);
        }
        let best = self.handle.best_supported_rsa_hash().await.map_err(|_| self.lost())?;
        Ok(match best {
            Some(Some(HashAlg::Sha256)) => vec![Some(HashAlg::Sha256)],
            _ => vec![Some(HashAlg::Sha512), Some(HashAlg::Sha256)],
        })
    }

    fn outcome(&mut self, result: AuthResult) -> Result<bool> {
        let AuthResult::Failure { remaining_methods, partial_success } = result else { return Ok(true) };
        if self.handle.is_closed() {
            return Err(self.lost());
        }
        let names = remaining_methods.iter().map(|method| <&str>::from(method).to_owned());
        self.accepts = names.filter(|name| *name != <&str>::from(&MethodKind::PublicKey)).collect();
        if partial_success {
            self.accepts.insert(0, "the key only together with".to_owned());
            return Err(self.no_key());
        }
        Ok(false)
    }

    /// The connection ended before the login did.
    fn lost(&self) -> Error {
        let reason = self.ended.borrow().clone().unwrap_or_else(|| "it was closed by the other side".to_owned());
        // So many keys were offered that the host had enough.
        if reason.contains("Too many authentication failures") {
            return self.no_key();
        }
        Error::HungUp { address: self.target.address(), reason }
    }

    fn no_key(&self) -> Error {
        Error::NoKeyAccepted {
            address: self.target.address(),
            user: self.target.user.clone(),
            tried: self.tried.join(", "),
            accepts: self.accepts.join(" "),
        }
    }

    fn into_error(self) -> Error {
        match self.agent_error {
            Some(error) if self.tried.is_empty() => error,
            _ => self.no_key(),
        }
    }
}

fn agent_error(socket: &Path, error: &russh::keys::Error) -> Error {
    let reason = match error {
        russh::keys::Error::IO(error) => format!("does not answer: {}", io_words(error)),
        russh::keys::Error::AgentFailure => "refuses".to_owned(),
        other => format!("fails: {other}"),
    };
    Error::Agent { socket: socket.display().to_string(), reason }
}
