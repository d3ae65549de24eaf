//! A whole clone: fetched, checked out, with its submodules.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use api::agent::GitRepo;
use gix_hash::ObjectId;
use tokio::runtime::Handle;

use super::dial::Dialer;
use super::error::Error;
use super::modules;
use super::remote::{Login, Refs, Remote, Want};
use super::store::{SMALL_FILE, Store, Submodule, quote_setting};
use super::url::{Scheme, Url};
use crate::beneath::Beneath;

/// How deep submodules may lie in each other.
const DEPTH_LIMIT: usize = 10;
/// How many submodules there may be.
const COUNT_LIMIT: usize = 1000;

/// What clones have in common.
pub(super) struct Cloner {
    pub(super) runtime: Handle,
    /// The environment of the job, which may name proxies and certificates.
    pub(super) env: BTreeMap<String, String>,
    /// The home of the job's user.
    pub(super) home: PathBuf,
    /// Sent to `host` only.
    pub(super) login: Login,
    /// The host of the main repository.
    pub(super) host: String,
    /// How many submodules there have been.
    pub(super) submodules: usize,
}

/// What is checked out.
struct Checkout {
    commit: ObjectId,
    /// The branch that the commit is on.
    branch: Option<String>,
}

impl Cloner {
    /// Clones into the folder `target`, which is empty.
    pub(super) fn clone(&mut self, repo: &GitRepo, url: &Url, target: &Path) -> Result<(), String> {
        let told = |error: Error| tell(&error, url, self.login.is_set(), target);
        let (mut remote, refs, url) = self.open(url).map_err(told)?;
        let mut store = Store::create(&target.join(".git")).map_err(told)?;
        let checkout = fetch(&mut remote, &refs, repo, &mut store).map_err(told)?;
        remote.end();
        write_names(&store, repo, &refs, &checkout, &url).map_err(told)?;
        let submodules = store.check_out(&checkout.commit, target).map_err(told)?;
        self.clone_submodules(&submodules, &url, target, 1)
    }

    /// Connects in one of the ways that the address and the login allow.
    fn open(&self, url: &Url) -> Result<(Remote, Refs, Url), Error> {
        let is_own = url.host == self.host;
        let login = if is_own { self.login.clone() } else { Login::default() };
        let mut refused = None;
        for url in ways(url, &login) {
            let dialer = Dialer::new(self.env.clone());
            match Remote::open(self.runtime.clone(), dialer, &url, &login, &self.home) {
                Ok((remote, refs)) => return Ok((remote, refs, url)),
                Err(error @ (Error::Unauthorized | Error::NotFound)) => refused = refused.or(Some(error)),
                Err(error) => return Err(refused.unwrap_or(error)),
            }
        }
        Err(refused.unwrap_or(Error::Unauthorized))
    }

    fn clone_submodules(&mut self, list: &[Submodule], url: &Url, dir: &Path, depth: usize) -> Result<(), String> {
        if list.is_empty() {
            return Ok(());
        }
        let Some(text) = read_small(dir, ".gitmodules") else { return Ok(()) };
        let addresses = modules::addresses(&text);
        for submodule in list {
            // One that nobody says the address of stays an empty folder.
            let Some(address) = addresses.get(&submodule.path) else { continue };
            self.submodules += 1;
            if depth > DEPTH_LIMIT || self.submodules > COUNT_LIMIT {
                return Err(format!(
                    "the repository has too many submodules, or they lie more than {DEPTH_LIMIT} deep"
                ));
            }
            let cloned = url.join(address).and_then(|url| self.clone_submodule(submodule, &url, dir, depth));
            cloned.map_err(|error| format!("the submodule `{}`: {error}", submodule.path))?;
        }
        Ok(())
    }

    fn clone_submodule(
        &mut self,
        submodule: &Submodule,
        url: &Url,
        dir: &Path,
        depth: usize,
    ) -> Result<(), String> {
        let target = dir.join(&submodule.path);
        let has_login = self.login.is_set() && url.host == self.host;
        let told = |error: Error| tell(&error, url, has_login, &target);
        let (mut remote, refs, url) = self.open(url).map_err(told)?;
        let mut store = Store::create(&target.join(".git")).map_err(told)?;
        let id = submodule.id;
        let only = Want { ids: &[id], have: &[], depth: Some(1) };
        match remote.fetch(&only, |pack| store.receive(pack)) {
            Ok(ends) => store.set_shallow(&ends).map_err(told)?,
            // Servers may give out only what a branch or a tag leads to.
            Err(Error::Refused(_)) => {
                let (mut whole, ..) = self.open(&url).map_err(told)?;
                let mut ids: Vec<ObjectId> = refs.ids.values().copied().collect();
                ids.sort_unstable();
                ids.dedup();
                let all = Want { ids: &ids, have: &[], depth: None };
                whole.fetch(&all, |pack| store.receive(pack)).map_err(told)?;
                whole.end();
            }
            Err(error) => return Err(told(error)),
        }
        remote.end();
        if !store.has(&id).map_err(told)? {
            return Err(told(Error::Other(format!("the commit {id} is not there"))));
        }
        let settings = settings(&url, "+refs/heads/*:refs/remotes/origin/*");
        let names = names(&mut store, &refs, |_| true).map_err(told)?;
        store
            .set_config(&settings)
            .and_then(|()| store.set_packed_refs(&names))
            .and_then(|()| store.set_head(&id.to_string()))
            .map_err(told)?;
        let inner = store.check_out(&id, &target).map_err(told)?;
        self.clone_submodules(&inner, &url, &target, depth + 1)
    }
}

impl Login {
    /// Whether there is something to log in with.
    pub(super) fn is_set(&self) -> bool {
        self.token.is_some() || self.private_key.is_some()
    }
}

/// The ways to a repository. Addresses for SSH often stand for public repositories, which need no key by HTTPS.
fn ways(url: &Url, login: &Login) -> Vec<Url> {
    match (url.scheme, &login.token, &login.private_key) {
        (Scheme::Ssh, _, Some(_)) => vec![url.clone()],
        (Scheme::Ssh, ..) => vec![url.over_https()],
        (Scheme::Https, None, Some(_)) => vec![url.clone(), url.over_ssh()],
        (Scheme::Http | Scheme::Https, ..) => vec![url.clone()],
    }
}

fn fetch(remote: &mut Remote, refs: &Refs, repo: &GitRepo, store: &mut Store) -> Result<Checkout, Error> {
    if refs.ids.is_empty() {
        return Err(Error::Other("it has no commits yet".to_owned()));
    }
    let (name, tip) = named(refs, repo)?;
    let mut ids: Vec<ObjectId> = if repo.all_branches {
        refs.ids.iter().filter(|(name, _)| name.starts_with("refs/heads/")).map(|(_, id)| *id).collect()
    } else {
        Vec::new()
    };
    ids.push(tip);
    ids.sort_unstable();
    ids.dedup();
    remote.fetch(&Want { ids: &ids, have: &[], depth: None }, |pack| store.receive(pack))?;
    let branch = name.strip_prefix("refs/heads/").map(str::to_owned);
    let Some(hash) = &repo.hash else { return Ok(Checkout { commit: tip, branch }) };
    if let Some(commit) = store.find_commit(hash)? {
        return Ok(Checkout { commit, branch });
    }
    let missing = || Error::Other(format!("it has no commit `{hash}`; was it pushed?"));
    let commit = ObjectId::from_hex(hash.as_bytes()).map_err(|_| missing())?;
    // It is not on the branch. Whether the other side gives it out is for that to say.
    match remote.fetch(&Want { ids: &[commit], have: &ids, depth: None }, |pack| store.receive(pack)) {
        Ok(_) if store.has(&commit)? => Ok(Checkout { commit, branch: None }),
        Ok(_) | Err(Error::Refused(_) | Error::NotGit) => Err(missing()),
        Err(error) => Err(error),
    }
}

/// The branch or the tag that is wanted, by its full name.
fn named(refs: &Refs, repo: &GitRepo) -> Result<(String, ObjectId), Error> {
    if let Some(branch) = &repo.branch {
        let tag = format!("refs/tags/{branch}");
        if let Some(id) = refs.branch(branch) {
            return Ok((format!("refs/heads/{branch}"), id));
        }
        let id = refs.ids.get(&tag).copied();
        return id.map(|id| (tag, id)).ok_or_else(|| Error::Other(format!("it has no branch `{branch}`")));
    }
    let default =
        refs.default_branch().and_then(|branch| Some((format!("refs/heads/{branch}"), refs.branch(branch)?)));
    default.ok_or_else(|| Error::Other("it does not say which branch is the default one: set `branch`".to_owned()))
}

/// Names of what was fetched, for whoever works with the clone later.
fn names(
    store: &mut Store,
    refs: &Refs,
    is_kept: impl Fn(&str) -> bool,
) -> Result<Vec<(String, ObjectId)>, Error> {
    let mut names = Vec::new();
    for (name, id) in &refs.ids {
        let own = match name.strip_prefix("refs/heads/") {
            Some(branch) if is_kept(branch) => format!("refs/remotes/origin/{branch}"),
            Some(_) => continue,
            None => name.clone(),
        };
        if store.has(id)? {
            names.push((own, *id));
        }
    }
    Ok(names)
}

fn settings(url: &Url, fetched: &str) -> String {
    format!(
        "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = false\n\tlogallrefupdates = true\n\
         [remote \"origin\"]\n\turl = {}\n\tfetch = {}\n",
        quote_setting(&url.public()),
        quote_setting(fetched)
    )
}

fn write_names(store: &Store, repo: &GitRepo, refs: &Refs, checkout: &Checkout, url: &Url) -> Result<(), Error> {
    let mut store = store.again();
    let branch = checkout.branch.as_deref().or(repo.branch.as_deref()).or(refs.default_branch());
    let fetched = match branch {
        Some(branch) if !repo.all_branches => format!("+refs/heads/{branch}:refs/remotes/origin/{branch}"),
        _ => "+refs/heads/*:refs/remotes/origin/*".to_owned(),
    };
    let mut text = settings(url, &fetched);
    if let Some(branch) = &checkout.branch {
        let (section, merge) = (quote_setting(branch), quote_setting(&format!("refs/heads/{branch}")));
        let _ = write!(text, "[branch {section}]\n\tremote = origin\n\tmerge = {merge}\n");
        store.set_ref(&format!("refs/heads/{branch}"), &checkout.commit)?;
        store.set_head(&format!("ref: refs/heads/{branch}"))?;
    } else {
        store.set_head(&checkout.commit.to_string())?;
    }
    let user = [("name", &repo.user_name), ("email", &repo.user_email)];
    let user: Vec<_> = user.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?))).collect();
    if !user.is_empty() {
        text.push_str("[user]\n");
    }
    for (name, value) in user {
        let _ = writeln!(text, "\t{name} = {}", quote_setting(value));
    }
    store.set_config(&text)?;
    let names = names(&mut store, refs, |name| repo.all_branches || Some(name) == branch)?;
    store.set_packed_refs(&names)
}

fn read_small(dir: &Path, name: &str) -> Option<String> {
    let bytes = Beneath::open(dir).and_then(|dir| dir.read(name, SMALL_FILE)).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// What happened, and what to do about it.
fn tell(error: &Error, url: &Url, has_login: bool, target: &Path) -> String {
    const INIT: &str = "run `dstack init` with a valid `--token` or `--git-identity`";
    let refused = match error {
        Error::Unauthorized if has_login => format!("its credentials were refused: {INIT}"),
        Error::NotFound if has_login => format!("it does not exist, or is not for its credentials: {INIT}"),
        Error::Unauthorized | Error::NotFound => {
            format!("it does not exist, or is private and the server has no credentials for it: {INIT}")
        }
        Error::Io(error) if error.kind() == io::ErrorKind::StorageFull || crate::disk::is_full(error) => {
            format!("no space is left on the disk of `{}`", target.display())
        }
        Error::Io(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            format!("the job's user may not write to `{}`", target.display())
        }
        error => error.to_string(),
    };
    format!("cannot clone `{}`: {refused}", url.public())
}

/// Removes what is in a folder, but for what a file system has of its own.
pub(super) fn empty(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name() == "lost+found" {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
