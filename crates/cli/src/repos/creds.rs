//! How a repository is read: the first of the ways that works.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use api::repos::RepoCreds;
use percent_encoding::percent_decode_str;
use tempfile::NamedTempFile;

use super::git::{self, Access};
use super::ssh_config::{self, HostConfig};
use super::url::RepoUrl;
use crate::session::Session;

const NO_CREDS: &str = "No valid default Git credentials found. Pass valid `--token` or `--git-identity`.";

/// The user's usual private keys.
const USUAL_KEYS: [&str; 3] = [".ssh/id_rsa", ".ssh/id_ed25519", ".ssh/id_ecdsa"];

/// Credentials that were given, or that the server has already.
#[derive(Debug, Default)]
pub(super) struct Given {
    pub(super) token: Option<String>,
    /// The file of a private key.
    pub(super) identity: Option<PathBuf>,
    /// The text of a private key.
    pub(super) private_key: Option<String>,
}

/// What the SSH configuration says about a host.
pub(super) fn host_config(session: &Session, host: &str) -> HostConfig {
    let text = std::fs::read_to_string(session.home.join(".ssh/config")).unwrap_or_default();
    ssh_config::lookup(&text, host)
}

/// Finds how to read a repository. What is given is the only thing tried, after nothing at all.
pub(super) async fn find(session: &Session, url: &RepoUrl, given: &Given) -> anyhow::Result<RepoCreds> {
    if git::can_read(session, &url.as_http(), Access::Open).await? {
        return Ok(RepoCreds { clone_url: url.as_http(), private_key: None, oauth_token: None });
    }
    if let Some(identity) = &given.identity {
        return with_key(session, url, identity).await?.context(NO_CREDS);
    }
    if let Some(key) = &given.private_key {
        let file = write_key(key)?;
        return with_key(session, url, file.path()).await?.context(NO_CREDS);
    }
    if let Some(token) = &given.token {
        return with_token(session, url, token).await?.context(NO_CREDS);
    }
    if let Some(identity) = host_config(session, &url.original_host).identity_files.first()
        && let Some(creds) = with_key(session, url, &expand(session, identity)).await?
    {
        return Ok(creds);
    }
    let known = [token_of_gh(session, &url.host), token_of_git(session, &url.host)];
    for token in known.into_iter().flatten() {
        if let Some(creds) = with_token(session, url, &token).await? {
            return Ok(creds);
        }
    }
    for key in USUAL_KEYS.iter().map(|key| session.home.join(key)).filter(|key| key.is_file()) {
        if let Some(creds) = with_key(session, url, &key).await? {
            return Ok(creds);
        }
    }
    bail!(NO_CREDS)
}

async fn with_token(session: &Session, url: &RepoUrl, token: &str) -> anyhow::Result<Option<RepoCreds>> {
    let clone_url = url.as_http();
    let works = git::can_read(session, &clone_url, Access::Token(token)).await?;
    Ok(works.then(|| RepoCreds { clone_url, private_key: None, oauth_token: Some(token.to_owned()) }))
}

async fn with_key(session: &Session, url: &RepoUrl, path: &Path) -> anyhow::Result<Option<RepoCreds>> {
    let Ok(private_key) = std::fs::read_to_string(path) else { return Ok(None) };
    let clone_url = url.as_ssh();
    let works = git::can_read(session, &clone_url, Access::Key(path)).await?;
    Ok(works.then_some(RepoCreds { clone_url, private_key: Some(private_key), oauth_token: None }))
}

fn expand(session: &Session, path: &str) -> PathBuf {
    match path.strip_prefix("~/").or_else(|| path.strip_prefix("%d/")) {
        Some(rest) => session.home.join(rest),
        None => session.resolve(path),
    }
}

/// The token that GitHub's own CLI has.
fn token_of_gh(session: &Session, host: &str) -> Option<String> {
    let text = std::fs::read_to_string(session.home.join(".config/gh/hosts.yml")).ok()?;
    let hosts: std::collections::BTreeMap<String, serde_json::Value> = serde_saphyr::from_str(&text).ok()?;
    Some(hosts.get(host)?.get("oauth_token")?.as_str()?.to_owned())
}

/// The password that `git` keeps for a host.
fn token_of_git(session: &Session, host: &str) -> Option<String> {
    let text = std::fs::read_to_string(session.home.join(".git-credentials")).ok()?;
    text.lines().find_map(|line| {
        let (login, place) = line.trim().split_once("://")?.1.split_once('@')?;
        let place = place.split('/').next()?;
        let name = place.split(':').next()?;
        let (_, password) = login.split_once(':')?;
        name.eq_ignore_ascii_case(host).then(|| percent_decode_str(password).decode_utf8_lossy().into_owned())
    })
}

/// A private key in a file that only its owner reads, and that goes when it is dropped.
fn write_key(key: &str) -> anyhow::Result<NamedTempFile> {
    let mut file = NamedTempFile::new().context("keep the private key")?;
    file.write_all(key.as_bytes()).context("keep the private key")?;
    Ok(file)
}
