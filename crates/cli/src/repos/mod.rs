//! Git repositories on the user's side: what a run takes along, and what the server must know to read it.

mod creds;
mod git;
mod ssh_config;
mod url;

use std::path::{Path, PathBuf};

use anyhow::bail;
use api::client::endpoints;
use api::configurations::RepoSpec;
use api::repos::{GetRepoRequest, InitRepoRequest, RepoData, RepoHeadWithCreds};
use sha2::{Digest, Sha256};

use self::creds::Given;
use self::git::Checkout;
use self::url::RepoUrl;
use crate::args::{RepoArgs, RunArgs};
use crate::session::{Project, Session};

/// A repository that a run takes along.
#[derive(Debug)]
pub(crate) struct Repo {
    /// Its identifier.
    pub(crate) id: String,
    /// Its state.
    pub(crate) data: RepoData,
    /// What is not committed.
    pub(crate) diff: Vec<u8>,
}

impl Repo {
    /// The hash of what is not committed, if there is something.
    pub(crate) fn code_hash(&self) -> Option<String> {
        (!self.diff.is_empty()).then(|| hex::encode(Sha256::digest(&self.diff)))
    }
}

/// Where a repository is.
#[derive(Debug)]
pub(crate) enum Source {
    /// On a server.
    Url(String),
    /// In a folder of the user's.
    Folder(PathBuf),
}

/// A repository and where it was found.
struct Found {
    url: RepoUrl,
    checkout: Option<Checkout>,
}

/// Where the repository of a run is, if it has one. `folder` is that of the configuration.
pub(crate) fn locate(
    session: &Session,
    args: &RunArgs,
    configured: Option<&RepoSpec>,
    folder: &Path,
) -> anyhow::Result<Option<Source>> {
    let source = match (&args.repo.repo, configured) {
        _ if args.no_repo => None,
        (Some(typed), _) => Some(source_of(session, typed, &session.directory)),
        (None, Some(RepoSpec { url: Some(url), .. })) => Some(Source::Url(url.clone())),
        (None, Some(RepoSpec { local_path: Some(path), .. })) => {
            Some(Source::Folder(local(session, path, folder)?))
        }
        (None, _) => None,
    };
    if source.is_none() && (args.repo_branch.is_some() || args.repo_hash.is_some()) {
        bail!(
            "`--repo-branch` and `--repo-hash` choose a state of a repository, and this run has none: name one with \
             `repos` or `--repo`"
        );
    }
    Ok(source)
}

/// The repository of a run, made known to the server if it is not.
pub(crate) async fn prepare(
    session: &Session,
    project: &Project,
    args: &RunArgs,
    configured: Option<&RepoSpec>,
    source: Source,
) -> anyhow::Result<Repo> {
    let found = find(session, source).await?;
    let known = get(project, &found.url.id()).await?;
    let mut given = given(session, &args.repo);
    let is_typed = given.token.is_some() || given.identity.is_some();
    let creds_known = known.and_then(|head| head.repo_creds);
    let is_new = creds_known.is_none();
    if let Some(creds) = creds_known.filter(|_| !is_typed) {
        given = Given { token: creds.oauth_token, private_key: creds.private_key, identity: None };
    }
    let creds = creds::find(session, &found.url, &given).await?;
    if is_typed || is_new {
        init(project, &found.url, creds).await?;
    }
    let configured = configured.filter(|_| args.repo.repo.is_none());
    let branch = args.repo_branch.clone().or_else(|| configured?.branch.clone());
    let hash = args.repo_hash.clone().or_else(|| configured?.hash.clone());
    Ok(repo_of(found, branch, hash))
}

/// Makes a repository known to the server, with the credentials that work.
pub(crate) async fn make_known(session: &Session, project: &Project, args: &RepoArgs) -> anyhow::Result<()> {
    let source = match &args.repo {
        Some(typed) => source_of(session, typed, &session.directory),
        None => Source::Folder(session.directory.clone()),
    };
    let found = find(session, source).await?;
    let creds = creds::find(session, &found.url, &given(session, args)).await?;
    init(project, &found.url, creds).await
}

/// The state of a folder wins over what is configured: its diff is against its own commit.
fn repo_of(found: Found, branch: Option<String>, hash: Option<String>) -> Repo {
    let (id, name) = (found.url.id(), found.url.name());
    match found.checkout {
        Some(checkout) => Repo {
            id,
            data: RepoData::Remote {
                repo_name: Some(name),
                repo_branch: Some(checkout.branch),
                repo_hash: Some(checkout.hash),
                repo_config_name: checkout.user_name,
                repo_config_email: checkout.user_email,
            },
            diff: checkout.diff,
        },
        None => Repo {
            id,
            data: RepoData::Remote {
                repo_name: Some(name),
                repo_branch: branch,
                repo_hash: hash,
                repo_config_name: None,
                repo_config_email: None,
            },
            diff: Vec::new(),
        },
    }
}

fn given(session: &Session, args: &RepoArgs) -> Given {
    let identity = args.git_identity.as_ref().map(|path| match path.strip_prefix("~/") {
        Some(rest) => session.home.join(rest),
        None => session.resolve(path),
    });
    Given { token: args.token.clone(), identity, private_key: None }
}

fn source_of(session: &Session, text: &str, folder: &Path) -> Source {
    match RepoUrl::parse(text, |_| ssh_config::HostConfig::default()) {
        Ok(_) => Source::Url(text.to_owned()),
        Err(_) => Source::Folder(joined(session, text, folder)),
    }
}

fn joined(session: &Session, path: &str, folder: &Path) -> PathBuf {
    match path.strip_prefix('~') {
        Some("") => session.home.clone(),
        Some(rest) if rest.starts_with('/') => session.home.join(rest.trim_start_matches('/')),
        _ => folder.join(path),
    }
}

fn local(session: &Session, path: &str, folder: &Path) -> anyhow::Result<PathBuf> {
    let joined = joined(session, path, folder);
    if !joined.exists() {
        bail!("Invalid repo path: {path} -> {}", joined.display());
    }
    Ok(joined)
}

async fn find(session: &Session, source: Source) -> anyhow::Result<Found> {
    let (text, checkout) = match source {
        Source::Url(url) => (url, None),
        Source::Folder(dir) => {
            if !dir.exists() {
                bail!("Path does not exist: {}", dir.display());
            }
            if !dir.is_dir() {
                bail!("Path is not a directory: {}", dir.display());
            }
            let checkout = git::inspect(session, &dir).await?;
            (checkout.url.clone(), Some(checkout))
        }
    };
    let url = RepoUrl::parse(&text, |host| creds::host_config(session, host)).map_err(anyhow::Error::msg)?;
    Ok(Found { url, checkout })
}

async fn get(project: &Project, id: &str) -> anyhow::Result<Option<RepoHeadWithCreds>> {
    let request = GetRepoRequest { repo_id: id.to_owned(), include_creds: true };
    match project.client.call(&endpoints::GET_REPO, &project.name, &request).await {
        Ok(head) => Ok(Some(head)),
        Err(error) if error.is_not_exists() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn init(project: &Project, url: &RepoUrl, creds: api::repos::RepoCreds) -> anyhow::Result<()> {
    let info = RepoData::Remote {
        repo_name: Some(url.name()),
        repo_branch: None,
        repo_hash: None,
        repo_config_name: None,
        repo_config_email: None,
    };
    let request = InitRepoRequest { repo_id: url.id(), repo_info: info, repo_creds: Some(creds) };
    project.client.call(&endpoints::INIT_REPO, &project.name, &request).await?;
    Ok(())
}
