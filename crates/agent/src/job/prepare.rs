//! What must be there before the command can start: user, directories, code, files, virtual environment.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use api::agent::{CodeDelivery, GitRepo};
use nix::unistd::{Gid, Uid};

use crate::git;
use crate::job::account::{Account, Database};
use crate::job::delivery::{self, Owner, Place};
use crate::job::env::{self, Facts};
use crate::job::peers::{self, Peers};
use crate::job::{python, stay};
use crate::sys::Credentials;
use crate::wire::{self, JobFile};

/// The lines that bring a job's environment back, for its user only: they hold secrets.
const PROFILE: &str = "/dstack/profile";
/// Where most images look for more of what a login shell does, and what we add there.
const PROFILE_HOOKS: &str = "/etc/profile.d";
const PROFILE_HOOK: &str = "if [ -r /dstack/profile ]; then . /dstack/profile; fi\n";

/// A command that has only to be started.
#[derive(Debug, Clone)]
pub(crate) struct Prepared {
    /// The command and its arguments.
    pub(crate) argv: Vec<String>,
    /// Its environment.
    pub(crate) env: BTreeMap<String, String>,
    /// Where it starts.
    pub(crate) working_dir: String,
    /// Whom it runs as.
    pub(crate) username: String,
    /// Who that is, where it is not who we are.
    pub(crate) credentials: Option<Credentials>,
    /// How it enters the other nodes of its gang.
    pub(crate) peers: Option<Peers>,
    /// What the user should know.
    pub(crate) warnings: Vec<String>,
}

/// Makes everything ready, or says in one sentence why it cannot be. What is to be remembered until the command starts
/// goes into the run folder `dir`.
pub(crate) fn prepare(job: &JobFile, dir: &Path) -> Result<Prepared, String> {
    let spec = &job.spec;
    let (account, credentials) = account(job)?;
    let owner = credentials.as_ref();
    let home = home(job, &account, owner);
    let base = absolute(&job.default_working_dir, "", &home)?;
    let working_dir = match &spec.working_dir {
        Some(dir) => absolute(&base, dir, &home)?,
        None => base.clone(),
    };
    let repo_dir = match &spec.code {
        Some(code) if code.git.is_some() => absolute(&working_dir, &code.repo_dir, &home)?,
        Some(code) => absolute(&base, &code.repo_dir, &home)?,
        None => working_dir.clone(),
    };
    let inherited = inherited();
    let mut facts = Facts {
        username: account.name.clone(),
        home: home.to_string_lossy().into_owned(),
        working_dir: working_dir.to_string_lossy().into_owned(),
        repo_dir: repo_dir.to_string_lossy().into_owned(),
        venv_dir: None,
    };
    let mut warnings = match &spec.code {
        Some(code) => {
            let env = env::build(job, &facts, &inherited);
            deliver_code(job, code, &Delivery { target: &repo_dir, home: &home, env, owner, dir })?
        }
        None => Vec::new(),
    };
    // Not before the code, whose directory it may be in.
    delivery::make_dirs(&working_dir, owner)?;
    if let (false, Some(owner)) = (job.container, owner) {
        check_reach(&working_dir, &account.name, owner)?;
    }
    for file in &spec.files {
        let target = absolute(&working_dir, &file.path, &home)?;
        delivery::deliver_file(file, &target, &job.blobs_dir, owner)?;
    }
    write_file(&job.hostfile, &env::hostfile(&spec.cluster), 0o644, None)?;
    if let Some(version) = &spec.python {
        let mut env = env::build(job, &facts, &inherited);
        if !job.container {
            env.extend(own_caches(&job.venv_dir, owner)?);
        }
        make_venv(job, version, &env, owner)?;
        facts.venv_dir = Some(job.venv_dir.to_string_lossy().into_owned());
    }
    let mut env = env::build(job, &facts, &inherited);
    if let Some(repo) = spec.code.as_ref().and_then(|code| code.git.as_ref()) {
        leave_credentials(repo, &job.git_dir, &mut env, owner)?;
    }
    let peers = peers::prepare(job, &account, owner, &mut env, &mut warnings);
    if job.container {
        let profile = env::profile(&env, &facts.working_dir);
        write_file(Path::new(PROFILE), &profile, 0o600, owner)?;
        hook_profile();
    }
    let argv = match &spec.stay {
        Some(stay) => stay::argv(stay, &spec.argv),
        None => spec.argv.clone(),
    };
    Ok(Prepared {
        argv,
        env,
        working_dir: facts.working_dir,
        username: account.name,
        credentials,
        peers,
        warnings,
    })
}

/// Has login shells read the job's profile, because the image's own may begin the search path anew. An image that has no
/// place for it, or is read-only, goes without.
fn hook_profile() {
    let hooks = Path::new(PROFILE_HOOKS);
    if hooks.is_dir() {
        let _ = write_file(&hooks.join("zz-dstack.sh"), PROFILE_HOOK, 0o644, None);
    }
}

/// Where a job's code goes, and whose it is.
struct Delivery<'a> {
    target: &'a Path,
    home: &'a Path,
    env: BTreeMap<String, String>,
    owner: Owner<'a>,
    /// The run folder.
    dir: &'a Path,
}

/// Brings the job's code, or clones it; answers what the user should know.
fn deliver_code(job: &JobFile, code: &CodeDelivery, to: &Delivery<'_>) -> Result<Vec<String>, String> {
    let place = delivery::claim(code, to.target, to.owner, &to.dir.join(wire::CODE_MARK))?;
    if place == Place::Kept {
        return Ok(Vec::new());
    }
    let blob = code.blob_sha256.as_ref().map(|blob| job.blobs_dir.join(blob));
    let Some(repo) = &code.git else {
        if let Some(blob) = blob {
            delivery::deliver_code(&blob, to.target, to.owner)?;
        }
        return Ok(Vec::new());
    };
    if job.container {
        // An image's folders are mostly root's, and the one for the code becomes the user's, as its files are.
        delivery::own(to.target, to.owner).map_err(|error| format!("`{}`: {error}", to.target.display()))?;
    }
    let order = git::Order {
        repo: repo.clone(),
        target: to.target.to_owned(),
        replace: place == Place::Begun,
        home: to.home.to_owned(),
        env: to.env.clone(),
    };
    git::clone(job.spec.id, &order, blob.as_deref(), to.owner)
}

/// Leaves what the job's own `git` needs for the repository.
fn leave_credentials(
    repo: &GitRepo,
    folder: &Path,
    env: &mut BTreeMap<String, String>,
    owner: Owner<'_>,
) -> Result<(), String> {
    for secret in git::credentials(repo, folder, env) {
        delivery::make_dirs(folder, owner)?;
        let closed = fs::set_permissions(folder, fs::Permissions::from_mode(0o700));
        closed.map_err(|error| format!("cannot close `{}`: {error}", folder.display()))?;
        write_file(&folder.join(secret.name), &secret.text, 0o600, owner)?;
    }
    Ok(())
}

/// The job's account, and whom to become for it if that is not who we are already.
fn account(job: &JobFile) -> Result<(Account, Option<Credentials>), String> {
    let database = Database::read();
    let uid = nix::unistd::geteuid().as_raw();
    let gid = nix::unistd::getegid().as_raw();
    let Some(user) = job.spec.user.as_deref().filter(|user| !user.is_empty()) else {
        return Ok((database.by_uid(uid, gid), None));
    };
    let account = database.resolve(user)?;
    if uid == 0 {
        let credentials = account.credentials.clone();
        return Ok((account, Some(credentials)));
    }
    if account.credentials.uid == uid {
        return Ok((account, None));
    }
    Err(format!("cannot run as `{user}`: the agent itself is not root"))
}

fn home(job: &JobFile, account: &Account, owner: Owner<'_>) -> PathBuf {
    let own = account.home.as_ref().map(PathBuf::from);
    // On a host the default is the agent's own home, which is nobody else's.
    let default = job.home_dir.clone().filter(|_| job.container || owner.is_none());
    own.or(default).unwrap_or_else(|| PathBuf::from("/"))
}

/// Says which directory keeps the job's user from the job's own, if one does. We may go anywhere, so the kernel is
/// asked as that user.
fn check_reach(path: &Path, username: &str, owner: &Credentials) -> Result<(), String> {
    let parts: Vec<&Path> = path.ancestors().collect();
    let ask = || {
        // These hold for this thread only, which ends after the question.
        nix::unistd::setfsuid(Uid::from_raw(owner.uid));
        let is_hidden_from = |part: &Path, gid: u32| {
            nix::unistd::setfsgid(Gid::from_raw(gid));
            fs::metadata(part).is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
        };
        let is_hidden = |part: &&&Path| owner.groups.iter().all(|gid| is_hidden_from(part, *gid));
        parts.iter().rev().find(is_hidden).and_then(|part| part.parent())
    };
    let closed = std::thread::scope(|scope| scope.spawn(ask).join());
    match closed.map_err(|_| "looking at the working directory panicked".to_owned())? {
        None => Ok(()),
        Some(closed) => Err(format!(
            "the user `{username}` cannot reach the working directory `{}`: `{}` is closed to it; leave `user` out, \
             or use an `image`",
            path.display(),
            closed.display()
        )),
    }
}

/// Places beside the virtual environment for what its makers would leave in the home, which is not the job's.
fn own_caches(venv: &Path, owner: Owner<'_>) -> Result<Vec<(String, String)>, String> {
    const CACHES: [(&str, &str); 3] =
        [("UV_CACHE_DIR", "uv"), ("UV_PYTHON_INSTALL_DIR", "python"), ("PIP_CACHE_DIR", "pip")];
    let parent = venv.with_file_name("caches");
    let own = |(variable, name): (&str, &str)| {
        let dir = parent.join(name);
        delivery::make_dirs(&dir, owner)?;
        Ok((variable.to_owned(), dir.to_string_lossy().into_owned()))
    };
    CACHES.into_iter().map(own).collect()
}

/// `path` as an absolute one: `~` is the home, a relative one begins at `base`.
fn absolute(base: &Path, path: &str, home: &Path) -> Result<PathBuf, String> {
    let joined = match path.strip_prefix('~') {
        Some("") => home.to_owned(),
        Some(rest) if rest.starts_with('/') => home.join(rest.trim_start_matches('/')),
        Some(_) => return Err(format!("`{path}`: only `~/` stands for a home directory")),
        None => base.join(path),
    };
    // Components drop the dots and slashes that mean nothing; `..` stays for the kernel.
    let clean: PathBuf = joined.components().collect();
    if clean.is_absolute() { Ok(clean) } else { Err(format!("`{}` is not an absolute path", clean.display())) }
}

fn make_venv(
    job: &JobFile,
    version: &str,
    env: &BTreeMap<String, String>,
    owner: Owner<'_>,
) -> Result<(), String> {
    if job.venv_dir.join("bin/python").exists() {
        return Ok(());
    }
    delivery::make_dirs(&job.venv_dir, owner)?;
    python::make_venv(version, &job.venv_dir, env, owner)
}

fn write_file(path: &Path, text: &str, mode: u32, owner: Owner<'_>) -> Result<(), String> {
    let write = || -> std::io::Result<()> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        // Restricted before the text is in it.
        fs::write(path, "")?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        fs::write(path, text)?;
        match owner {
            Some(owner) => chown(path, Some(owner.uid), Some(owner.gid)),
            None => Ok(()),
        }
    };
    write().map_err(|error| format!("cannot write `{}`: {error}", path.display()))
}

/// The supervisor's own environment, without what is not text.
fn inherited() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_absolute() {
        let check = |path: &str, expected: Option<&str>| {
            let found = absolute(Path::new("/base"), path, Path::new("/home/ann")).ok();
            assert_eq!(found.as_deref(), expected.map(Path::new), "{path}");
        };
        check("", Some("/base"));
        check("a/./b/", Some("/base/a/b"));
        check("/w", Some("/w"));
        check("~", Some("/home/ann"));
        check("~/x", Some("/home/ann/x"));
        check("~bob/x", None);
    }
}
