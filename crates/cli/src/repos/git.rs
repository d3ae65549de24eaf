//! The user's own `git`: what is checked out, what has changed, and whether a repository can be read.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::process::Command;

use crate::session::Session;

/// A folder's state.
#[derive(Debug)]
pub(super) struct Checkout {
    /// Where the branch comes from.
    pub(super) url: String,
    /// The branch there.
    pub(super) branch: String,
    /// Its last commit that is known here.
    pub(super) hash: String,
    pub(super) user_name: Option<String>,
    pub(super) user_email: Option<String>,
    /// What is not in that commit, in Git's own format.
    pub(super) diff: Vec<u8>,
}

/// What a repository is read with.
#[derive(Debug, Clone, Copy)]
pub(super) enum Access<'a> {
    /// Nothing.
    Open,
    /// A token.
    Token(&'a str),
    /// The file of a private key.
    Key(&'a Path),
}

/// Looks at the folder `dir`.
pub(super) async fn inspect(session: &Session, dir: &Path) -> anyhow::Result<Checkout> {
    let shown = dir.display();
    let Some(top) = ask(session, dir, &["rev-parse", "--show-toplevel"]).await? else {
        bail!(
            "Git repo not found: {shown}\nUse `files` to mount an arbitrary directory: \
             https://dstack.ai/docs/concepts/tasks/#files"
        );
    };
    if Path::new(&top) != dir.canonicalize().unwrap_or_else(|_| dir.to_owned()) {
        bail!("Git repo not found: {shown}\nThe repo's own folder is {top}");
    }
    let Some(head) = ask(session, dir, &["symbolic-ref", "--quiet", "HEAD"]).await? else {
        bail!("Git repo in 'detached HEAD' state: {shown}\nCheck out to a branch");
    };
    let branch = head.strip_prefix("refs/heads/").unwrap_or(&head).to_owned();
    let setting = async |name: &str| ask(session, dir, &["config", "--get", name]).await;
    let remote = setting(&format!("branch.{branch}.remote")).await?;
    let merge = setting(&format!("branch.{branch}.merge")).await?;
    let (Some(remote), Some(merge)) = (remote, merge) else { bail!("No remote branch is configured") };
    let tracked = format!("{branch}@{{upstream}}");
    let Some(hash) = ask(session, dir, &["rev-parse", "--verify", "--quiet", &tracked]).await? else {
        bail!("The remote branch of `{branch}` is not known here: run `git fetch`");
    };
    let url = setting(&format!("remote.{remote}.url")).await?;
    Ok(Checkout {
        url: url.context("No remote branch is configured")?,
        branch: merge.strip_prefix("refs/heads/").unwrap_or(&merge).to_owned(),
        user_name: setting("user.name").await?,
        user_email: setting("user.email").await?,
        diff: diff(session, dir, &hash).await?,
        hash,
    })
}

/// What is not in a commit, with files that Git does not know.
async fn diff(session: &Session, dir: &Path, hash: &str) -> anyhow::Result<Vec<u8>> {
    // What the user's settings change about the format is changed back.
    let plain =
        ["-c", "core.quotePath=true", "-c", "diff.noprefix=false", "-c", "diff.mnemonicPrefix=false", "diff"];
    let format =
        ["--binary", "--no-ext-diff", "--no-textconv", "--no-color", "--src-prefix=a/", "--dst-prefix=b/"];
    let arguments: Vec<&str> = plain.iter().chain(&format).copied().collect();
    let tracked = arguments.iter().copied().chain([hash]);
    let mut diff = output(session, dir, &tracked.collect::<Vec<_>>(), &[0]).await?;
    let untracked = output(session, dir, &["ls-files", "--others", "--exclude-standard", "-z"], &[0]).await?;
    for name in untracked.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let name = std::str::from_utf8(name).context("the name of an untracked file is not UTF-8")?;
        if name.ends_with('/') {
            // A repository of its own.
            continue;
        }
        let added = arguments.iter().copied().chain(["--no-index", "--", "/dev/null", name]);
        diff.extend(output(session, dir, &added.collect::<Vec<_>>(), &[0, 1]).await?);
    }
    Ok(diff)
}

/// Whether a repository can be read so.
pub(super) async fn can_read(session: &Session, url: &str, access: Access<'_>) -> anyhow::Result<bool> {
    let mut command = command(session, &session.directory);
    // Only what is given counts, not what the user's settings and helpers would add.
    command
        .args(["-c", "credential.helper=", "ls-remote", "--symref", "--", url, "HEAD"])
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_ASKPASS", "")
        .env("SSH_ASKPASS", "")
        .env("GIT_CONFIG_SYSTEM", "/dev/null")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_DIR", "/dev/null");
    match access {
        Access::Open => {}
        Access::Token(token) => {
            // Arguments are for everybody to see.
            let login = STANDARD.encode(format!("oauth2:{token}"));
            command
                .env("GIT_CONFIG_COUNT", "1")
                .env("GIT_CONFIG_KEY_0", "http.extraHeader")
                .env("GIT_CONFIG_VALUE_0", format!("Authorization: Basic {login}"));
        }
        Access::Key(path) => {
            let path = path.to_string_lossy().replace('\'', r"'\''");
            let options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o IdentitiesOnly=yes \
                           -o IdentityAgent=none -o BatchMode=yes -o LogLevel=ERROR";
            command.env("GIT_SSH_COMMAND", format!("ssh -F none -i '{path}' {options}"));
        }
    }
    let output = command.output().await.map_err(|error| missing(&error))?;
    Ok(output.status.success())
}

/// What `git` prints, if it succeeds and prints something.
async fn ask(session: &Session, dir: &Path, arguments: &[&str]) -> anyhow::Result<Option<String>> {
    let output = command(session, dir).args(arguments).output().await.map_err(|error| missing(&error))?;
    let text = String::from_utf8_lossy(&output.stdout).trim_end_matches('\n').to_owned();
    Ok(Some(text).filter(|text| output.status.success() && !text.is_empty()))
}

async fn output(session: &Session, dir: &Path, arguments: &[&str], accepted: &[i32]) -> anyhow::Result<Vec<u8>> {
    let output = command(session, dir).args(arguments).output().await.map_err(|error| missing(&error))?;
    if output.status.code().is_some_and(|code| accepted.contains(&code)) {
        return Ok(output.stdout);
    }
    bail!("`git` failed: {}", String::from_utf8_lossy(&output.stderr).trim())
}

fn command(session: &Session, dir: &Path) -> Command {
    let mut command = Command::new("git");
    command
        .current_dir(dir)
        .env_clear()
        .envs(session.variables.iter().filter(|(name, _)| !name.starts_with("GIT_")))
        .env("HOME", &session.home)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

fn missing(error: &std::io::Error) -> anyhow::Error {
    if error.kind() == std::io::ErrorKind::NotFound {
        return anyhow::anyhow!("`repos` need the program `git` on this machine, and it is not there");
    }
    anyhow::anyhow!("`git` cannot be run: {error}")
}
