//! `~/.dstack/ssh/config` and what belongs to it: one entry per job that is attached, the keys that the jobs show,
//! and the line in the user's own configuration that includes it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use api::client::RunTunnelTarget;
use api::ids::JobId;

use super::owner::Owner;
use super::plain;
use crate::files::{self, PRIVATE};
use crate::session::Session;

/// The line of the user's configuration.
const INCLUDE: &str = "Include ~/.dstack/ssh/config";

/// What is included, for those who write it in their own way.
const INCLUDED: &str = "~/.dstack/ssh/config";

/// The comment that makes an entry ours. What follows are the processes that need it.
const MARK: &str = "    # attached by ";

/// An entry's line with the name of its pinned key.
const KEY_ALIAS: &str = "    HostKeyAlias ";

/// One job, as `ssh` is to see it.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// What stands behind `ssh`.
    pub(super) alias: String,
    /// The project.
    pub(super) project: String,
    /// The run.
    pub(super) run: String,
    /// The job in it.
    pub(super) target: RunTunnelTarget,
    /// The submission whose key is pinned.
    pub(super) submission: JobId,
    /// The user's private key.
    pub(super) identity: PathBuf,
    /// The key that the job's SSH server shows, as a line of `authorized_keys`.
    pub(super) host_key: String,
}

/// The files.
#[derive(Debug, Clone)]
pub(super) struct SshConfig {
    folder: PathBuf,
    users: PathBuf,
}

/// A part of a configuration: an entry, or what stands before the first one.
struct Block {
    text: String,
    /// Its names.
    host: Option<String>,
    /// The processes that need it. None: it is not ours.
    owners: Option<Vec<Owner>>,
}

impl SshConfig {
    pub(super) fn of(session: &Session) -> SshConfig {
        SshConfig { folder: session.ssh_directory(), users: session.home.join(".ssh") }
    }

    /// The configuration with the entries.
    pub(super) fn path(&self) -> PathBuf {
        self.folder.join("config")
    }

    fn known_hosts(&self) -> PathBuf {
        self.folder.join("known_hosts")
    }

    /// Adds an entry in place of any other of its name, and drops those whose owners are gone.
    pub(super) fn add(&self, entry: &Entry, program: &Path, owner: &Owner) -> anyhow::Result<()> {
        let body = self.body(entry, program)?;
        let pin = format!("{} {}", key_alias(entry.submission), public_key(&entry.host_key)?);
        self.change(Some(&pin), |blocks| {
            let mut owners = vec![owner.clone()];
            for block in blocks.extract_if(.., |block| block.host.as_deref() == Some(&entry.alias)) {
                // Another process may have attached to the same job, and needs it as long.
                if without_mark(&block.text) == body {
                    owners.extend(block.owners.into_iter().flatten().filter(|other| other != owner));
                }
            }
            blocks.push(Block { text: marked(&body, &owners), host: Some(entry.alias.clone()), owners: None });
        })
    }

    /// Takes away an entry that `owner` needs no more.
    pub(super) fn remove(&self, alias: &str, owner: &Owner) -> anyhow::Result<()> {
        self.change(None, |blocks| {
            for block in blocks.iter_mut().filter(|block| block.host.as_deref() == Some(alias)) {
                if let Some(owners) = &mut block.owners {
                    owners.retain(|other| other != owner);
                }
            }
        })
    }

    /// Has the user's own configuration include the entries, if it does not yet. All else in it stays as it is.
    pub(super) fn include(&self) -> anyhow::Result<()> {
        let path = self.users.join("config");
        // Whoever keeps their configuration elsewhere and links to it goes on to do so.
        let path = path.canonicalize().unwrap_or(path);
        let text = files::read(&path)?;
        if text.lines().any(|line| self.is_included_by(line)) {
            return Ok(());
        }
        if !self.users.exists() {
            let made = DirBuilder::new().mode(0o700).create(&self.users);
            made.with_context(|| format!("make `{}`", self.users.display()))?;
        }
        let mode = std::fs::metadata(&path).map_or(PRIVATE, |metadata| metadata.permissions().mode() & 0o7777);
        let gap = if text.is_empty() { "" } else { "\n" };
        files::replace(&path, format!("{INCLUDE}\n{gap}{text}").as_bytes(), mode)
    }

    fn is_included_by(&self, line: &str) -> bool {
        let mut words = line.split([' ', '\t', '=', '"']).filter(|word| !word.is_empty());
        let is_include = words.next().is_some_and(|word| word.eq_ignore_ascii_case("include"));
        is_include && words.any(|word| word == INCLUDED || Path::new(word) == self.path())
    }

    /// Changes the entries, alone among all processes, and keeps the pinned keys in step.
    fn change(&self, pin: Option<&str>, change: impl FnOnce(&mut Vec<Block>)) -> anyhow::Result<()> {
        std::fs::create_dir_all(&self.folder).with_context(|| format!("make `{}`", self.folder.display()))?;
        let path = self.folder.join("config.lock");
        let lock = File::create(&path).and_then(|file| file.lock().map(|()| file));
        let _lock = lock.with_context(|| format!("lock `{}`", path.display()))?;
        let before = files::read(&self.path())?;
        let mut blocks = blocks(&before);
        change(&mut blocks);
        let mut text = String::new();
        for mut block in blocks {
            let Some(owners) = &mut block.owners else {
                text.push_str(&block.text);
                continue;
            };
            owners.retain(|owner| !owner.is_gone());
            if !owners.is_empty() {
                text.push_str(&marked(&without_mark(&block.text), owners));
            }
        }
        self.pin(&text, pin)?;
        if text == before { Ok(()) } else { files::replace(&self.path(), text.as_bytes(), PRIVATE) }
    }

    /// Keeps the keys that some entry needs, and adds one.
    fn pin(&self, entries: &str, pin: Option<&str>) -> anyhow::Result<()> {
        let needed: BTreeSet<&str> = entries.lines().filter_map(|line| line.strip_prefix(KEY_ALIAS)).collect();
        let before = files::read(&self.known_hosts())?;
        let name = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
        let added = pin.map(name);
        let is_kept = |line: &&str| needed.contains(name(line).as_str()) && Some(name(line)) != added;
        let mut text = String::new();
        for line in before.lines().filter(is_kept).chain(pin) {
            text.push_str(line);
            text.push('\n');
        }
        if text == before { Ok(()) } else { files::replace(&self.known_hosts(), text.as_bytes(), PRIVATE) }
    }

    /// An entry without its mark.
    fn body(&self, entry: &Entry, program: &Path) -> anyhow::Result<String> {
        let RunTunnelTarget { replica, job } = entry.target;
        let (alias, run) = (plain(&entry.alias, "job")?, plain(&entry.run, "run")?);
        let program = shell_word(text_of(program)?);
        let project = shell_word(&entry.project);
        let mut body = format!("Host {alias}\n");
        let mut line = |text: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(body, "    {text}");
        };
        line("User root".to_owned());
        line(format!(
            "ProxyCommand {program} ssh-proxy --project {project} --replica {replica} --job {job} {run}"
        ));
        line(format!("IdentityFile {}", config_word(&entry.identity)?));
        line("IdentitiesOnly yes".to_owned());
        line("StrictHostKeyChecking yes".to_owned());
        line(format!("HostKeyAlias {}", key_alias(entry.submission)));
        line(format!("UserKnownHostsFile {}", config_word(&self.known_hosts())?));
        Ok(body)
    }
}

/// The name under which a submission's key is pinned. Another submission has another key.
fn key_alias(submission: JobId) -> String {
    format!("dstack-{submission}")
}

/// The algorithm and the key of a public line, nothing else of which may get into a file of ours.
fn public_key(line: &str) -> anyhow::Result<String> {
    let is_word = |word: &str| word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=-@.".contains(&byte));
    let mut words = line.split_whitespace();
    match (words.next(), words.next()) {
        (Some(algorithm), Some(key)) if is_word(algorithm) && is_word(key) => Ok(format!("{algorithm} {key}")),
        _ => bail!("the server names no usable key of the job's SSH server"),
    }
}

fn text_of(path: &Path) -> anyhow::Result<&str> {
    let text = path.to_str().filter(|text| !text.contains(['\n', '\r', '"']));
    text.with_context(|| format!("the path `{}` cannot stand in an SSH configuration", path.display()))
}

/// A path as one word of a configuration, where `%` begins something else.
fn config_word(path: &Path) -> anyhow::Result<String> {
    Ok(format!("\"{}\"", text_of(path)?.replace('%', "%%")))
}

/// A word of a command that `ssh` gives to a shell.
fn shell_word(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''").replace('%', "%%"))
}

/// Takes a configuration apart. Together the blocks' texts are the whole of it.
fn blocks(text: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    for line in text.split_inclusive('\n') {
        let mut words = line.split([' ', '\t', '=']).filter(|word| !word.is_empty());
        let keyword = words.next().unwrap_or_default().trim().to_ascii_lowercase();
        if matches!(keyword.as_str(), "host" | "match") || blocks.is_empty() {
            let is_host = keyword == "host";
            let rest = words.collect::<Vec<_>>().join(" ").trim().to_owned();
            blocks.push(Block { text: String::new(), host: is_host.then_some(rest), owners: None });
        }
        let Some(block) = blocks.last_mut() else { continue };
        if let Some(owners) = line.strip_prefix(MARK) {
            block.owners = Some(owners.split_whitespace().filter_map(Owner::parse).collect());
        }
        block.text.push_str(line);
    }
    blocks
}

/// An entry with the processes that need it.
fn marked(body: &str, owners: &[Owner]) -> String {
    let owners: Vec<String> = owners.iter().map(Owner::to_string).collect();
    let (head, rest) = body.split_once('\n').unwrap_or((body, ""));
    format!("{head}\n{MARK}{}\n{rest}", owners.join(" "))
}

fn without_mark(text: &str) -> String {
    text.split_inclusive('\n').filter(|line| !line.starts_with(MARK)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(host_key: &str) -> Entry {
        Entry {
            alias: "long".to_owned(),
            project: "it's 100%".to_owned(),
            run: "long".to_owned(),
            target: RunTunnelTarget::default(),
            submission: "80b0f384-8ca7-4baa-bf48-2e3cf3f42b7b".parse().unwrap(),
            identity: "/keys/50% of it".into(),
            host_key: host_key.to_owned(),
        }
    }

    fn config(home: &Path) -> SshConfig {
        SshConfig { folder: home.join(".dstack/ssh"), users: home.join(".ssh") }
    }

    #[test]
    fn an_entry_stays_until_its_last_owner_leaves() {
        let home = tempfile::tempdir().unwrap();
        let config = config(home.path());
        let owners = [Owner::parse("1@first").unwrap(), Owner::parse("2@second").unwrap()];
        for owner in &owners {
            config.add(&entry("ssh-ed25519 AAAA job"), Path::new("/a b/dstack"), owner).unwrap();
        }
        let text = files::read(&config.path()).unwrap();
        assert!(text.starts_with("Host long\n    # attached by 2@second 1@first\n"), "{text}");
        let line =
            "    ProxyCommand '/a b/dstack' ssh-proxy --project 'it'\\''s 100%%' --replica 0 --job 0 long\n";
        assert!(text.contains(line) && text.contains("    IdentityFile \"/keys/50%% of it\"\n"), "{text}");
        config.remove("long", &owners[1]).unwrap();
        assert!(files::read(&config.path()).unwrap().contains("    # attached by 1@first\n"));
        assert!(files::read(&config.known_hosts()).unwrap().ends_with(" ssh-ed25519 AAAA\n"));
        config.remove("long", &owners[0]).unwrap();
        assert_eq!(files::read(&config.path()).unwrap() + &files::read(&config.known_hosts()).unwrap(), "");
    }

    #[test]
    fn what_the_server_says_gets_nowhere_else() {
        let home = tempfile::tempdir().unwrap();
        let config = config(home.path());
        let owner = Owner::of_process();
        let program = Path::new("/dstack");
        config.add(&entry("ssh-ed25519 AAAA\nevil ssh-ed25519 BBBB"), program, &owner).unwrap();
        assert_eq!(files::read(&config.known_hosts()).unwrap().lines().count(), 1);
        for key in ["", "ssh-ed25519", "ssh-ed25519 a\"b"] {
            assert!(config.add(&entry(key), program, &owner).is_err(), "{key}");
        }
        for name in ["", "-oProxyCommand=x", "a b", "a\nb", "*"] {
            let entry = Entry { alias: name.to_owned(), ..entry("ssh-ed25519 AAAA") };
            assert!(config.add(&entry, program, &owner).is_err(), "{name}");
        }
    }

    #[test]
    fn an_include_of_any_form_is_found_and_a_link_is_followed() {
        let home = tempfile::tempdir().unwrap();
        let config = config(home.path());
        let path = home.path().join(".ssh/config");
        config.include().unwrap();
        assert_eq!(files::read(&path).unwrap(), "Include ~/.dstack/ssh/config\n");
        let forms = ["include  \"~/.dstack/ssh/config\"", "Include other ~/.dstack/ssh/config"];
        let absolute = format!("Include {}", config.path().display());
        for form in forms.into_iter().chain([absolute.as_str()]) {
            std::fs::write(&path, form).unwrap();
            config.include().unwrap();
            assert_eq!(files::read(&path).unwrap(), form);
        }
        let elsewhere = home.path().join("dotfiles");
        std::fs::write(&elsewhere, "# Include ~/.dstack/ssh/config\n").unwrap();
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        config.include().unwrap();
        assert!(path.is_symlink());
        assert!(files::read(&elsewhere).unwrap().starts_with("Include ~/.dstack/ssh/config\n\n# Include"));
    }
}
