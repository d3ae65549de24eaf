//! The key with which the user enters jobs: the server makes it, and the user's home keeps a copy for a while.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use api::client::endpoints;
use jiff::{SignedDuration, Timestamp};

use super::Wishes;
use crate::files::{self, PRIVATE};
use crate::session::{Project, Session};

/// How long a copy is taken for what the server has.
const FRESH_TIME: SignedDuration = SignedDuration::from_mins(10);

/// The key of older clients, with which runs may still have been submitted.
const OLD_KEY: &str = "id_rsa";

/// The private key that opens a run which lets `run_key` in; unset is the key of the run's user at the server.
pub(super) async fn identity(
    session: &Session,
    project: &Project,
    run_key: Option<&str>,
    wishes: &Wishes,
) -> anyhow::Result<PathBuf> {
    if let Some(path) = &wishes.identity {
        std::fs::metadata(path).with_context(|| format!("read the private key `{}`", path.display()))?;
        return Ok(path.clone());
    }
    let folder = session.ssh_directory();
    let path = folder.join(&project.key_name);
    let fits = |path: &Path| run_key.is_none_or(|run_key| is_same(run_key, &public_key(path)));
    if is_fresh(&path, session.now()) && fits(&path) {
        return Ok(path);
    }
    fetch(project, &path).await?;
    let old = folder.join(OLD_KEY);
    match (fits(&path), old.exists() && fits(&old)) {
        (true, _) => Ok(path),
        (false, true) => Ok(old),
        (false, false) => {
            bail!("the run was submitted with another SSH key; name it with `--ssh-identity`")
        }
    }
}

async fn fetch(project: &Project, path: &Path) -> anyhow::Result<()> {
    let user = project.client.call(&endpoints::GET_MY_USER, "", &()).await?;
    let (Some(private), Some(public)) = (user.ssh_private_key, user.ssh_public_key) else {
        bail!("the server has no SSH key for the user {}", user.username);
    };
    files::replace(path, private.as_bytes(), PRIVATE)?;
    files::replace(&public_path(path), public.as_bytes(), PRIVATE)
}

fn public_path(path: &Path) -> PathBuf {
    path.with_extension("pub")
}

fn public_key(path: &Path) -> String {
    // A missing one fits no run.
    std::fs::read_to_string(public_path(path)).unwrap_or_default()
}

/// Comments and line ends tell no keys apart.
fn is_same(one: &str, other: &str) -> bool {
    let mut words = one.split_whitespace().take(2);
    let mut others = other.split_whitespace().take(2);
    one.split_whitespace().nth(1).is_some() && (words.next(), words.next()) == (others.next(), others.next())
}

fn is_fresh(path: &Path, now: Timestamp) -> bool {
    let written = std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    let written = written.and_then(|time| Timestamp::try_from(time).ok());
    written.is_some_and(|written| now.duration_since(written) < FRESH_TIME && public_path(path).exists())
}
