//! The ways over this host to the SSH servers of its jobs, for clients that have nothing but OpenSSH: one marked line
//! for each key and job in the `authorized_keys` of the user as whom clients log in to the host.
//!
//! Which lines are wanted follows from the tasks alone, so every look makes the file right again, whatever a crash has
//! left: a line comes when the job's port is known, and goes when the job has ended, whether or not the server answers.

mod file;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::agent::{TaskPhase, WayOverHost};
use api::ids::JobId;
use russh::keys::PublicKey;
use tokio::sync::Notify;
use tracing::{info, warn};

use self::file::Login;
use crate::disk;
use crate::host::record::Record;
use crate::host::state::Host;
use crate::job::account::Database;

/// How soon a file that could not be changed is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(30);

/// The file in the agent's home with the names of all users in whose files lines may stand.
const USERS: &str = "authorized_users.json";

/// How many keys of one job are heeded.
const KEYS_LIMIT: usize = 16;

/// What is said to whoever wants more of the host than the way to the job. No quote may stand in it.
const REFUSAL: &str = "This key leads through this host to a job of dstack, and opens nothing else here.";

/// The first OpenSSH that understands `permitlisten`. Older ones refuse a whole line with a word that they do not know.
const PERMITLISTEN_SINCE: (u32, u32) = (7, 8);

/// The ways that are open, by their jobs.
#[derive(Debug, Default)]
pub(crate) struct Ways {
    open: Mutex<BTreeMap<JobId, Way>>,
    changed: Notify,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Way {
    over: WayOverHost,
    /// The port of the host that leads to the job's SSH server.
    port: u16,
}

impl Ways {
    /// Opens or closes the way to a task, as its record says.
    pub(crate) fn note(&self, record: &Record) {
        let way = way_of(record);
        let mut open = self.open();
        let is_news = open.get(&record.state.id) != way.as_ref();
        match way {
            Some(way) => open.insert(record.state.id, way),
            None => open.remove(&record.state.id),
        };
        drop(open);
        if is_news {
            self.changed.notify_one();
        }
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<JobId, Way>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lines that are wanted, by the user in whose file they belong.
    fn lines(&self, permitlisten: bool) -> BTreeMap<String, Vec<String>> {
        let mut lines: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (job, way) in self.open().iter() {
            let keys = way.over.keys.iter().take(KEYS_LIMIT);
            let wanted = keys.filter_map(|key| line(key, way.port, *job, permitlisten));
            lines.entry(way.over.user.clone()).or_default().extend(wanted);
        }
        lines
    }
}

/// The way to a task whose SSH server listens.
fn way_of(record: &Record) -> Option<Way> {
    let is_up = (TaskPhase::Ready..TaskPhase::Exited).contains(&record.state.phase);
    let is_up = is_up && record.state.exit.is_none() && !record.forgotten;
    let over = record.accepted.over_host.clone().filter(|_| is_up)?;
    let port = record.state.resolved.ports.get(&record.accepted.ssh_port?).copied()?;
    Some(Way { over, port })
}

/// A line that lets a key go on to one port of this host; none if it is no key. Only the key itself is taken over, as
/// we write it: what else stands in the text could open more.
fn line(key: &str, port: u16, job: JobId, permitlisten: bool) -> Option<String> {
    let mut key = PublicKey::from_openssh(key.trim()).ok()?;
    key.set_comment("");
    let key = key.to_openssh().ok()?;
    // Clients name the host as they were told, or as they like. Nobody but root may listen on the last port.
    let listen = if permitlisten { r#"permitlisten="127.0.0.1:1","# } else { "" };
    Some(format!(
        "{}port-forwarding,permitopen=\"localhost:{port}\",permitopen=\"127.0.0.1:{port}\",{listen}\
         command=\"echo '{REFUSAL}' >&2; exit 1\" {} {}{job}",
        file::FIRST_WORD,
        key.trim(),
        file::MARK
    ))
}

/// Keeps the files as they should be.
pub(crate) async fn keep(host: Arc<Host>) {
    let home = host.options.home.clone();
    let permitlisten = tokio::task::spawn_blocking(knows_permitlisten).await.unwrap_or_default();
    let mut told = BTreeMap::new();
    loop {
        let lines = host.ways.lines(permitlisten);
        let home = home.clone();
        let settling = tokio::task::spawn_blocking(move || settle(&home, &lines)).await;
        let failed = settling.unwrap_or_else(|error| BTreeMap::from([(String::new(), error.to_string())]));
        for (user, error) in failed.iter().filter(|(user, error)| told.get(*user) != Some(*error)) {
            warn!("the keys for {user} cannot be kept, so jobs cannot be reached over this host: {error}");
        }
        let all_is_well = failed.is_empty();
        told = failed;
        if all_is_well {
            host.ways.changed.notified().await;
        } else {
            // A file may be mended by whoever owns it.
            let _ = tokio::time::timeout(RETRY_AFTER, host.ways.changed.notified()).await;
        }
    }
}

/// Makes every file right that has lines or is to have some; answers what went wrong, by user.
fn settle(home: &Path, lines: &BTreeMap<String, Vec<String>>) -> BTreeMap<String, String> {
    let mut known = match remembered(home) {
        Ok(known) => known,
        Err(error) => return BTreeMap::from([(String::new(), error)]),
    };
    let new: BTreeSet<String> = lines.keys().filter(|user| !known.contains(*user)).cloned().collect();
    if !new.is_empty() {
        known.extend(new);
        // A line that nobody remembers would stay for good.
        if let Err(error) = remember(home, &known) {
            return BTreeMap::from([(String::new(), error)]);
        }
    }
    let mut failed = BTreeMap::new();
    let mut left = known.clone();
    for user in &known {
        let wanted = lines.get(user).map(Vec::as_slice).unwrap_or_default();
        match login(user).and_then(|login| file::settle(&login, wanted).map_err(|error| error.to_string())) {
            Ok(changed) => {
                if changed {
                    info!("the file of {user} has {} lines for jobs now", wanted.len());
                }
                if wanted.is_empty() {
                    left.remove(user);
                }
            }
            Err(error) => {
                failed.insert(user.clone(), error);
            }
        }
    }
    if left != known
        && let Err(error) = remember(home, &left)
    {
        warn!("{error}");
    }
    failed
}

/// Removes every line of an agent that is gone for good.
pub(crate) fn remove_all(home: &Path) -> Result<(), String> {
    let failed = settle(home, &BTreeMap::new());
    match failed.iter().next() {
        Some((user, error)) => Err(format!("the keys of jobs cannot be taken out of the file of {user}: {error}")),
        None => Ok(()),
    }
}

fn remembered(home: &Path) -> Result<BTreeSet<String>, String> {
    let path = home.join(USERS);
    match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| format!("read {}: {error}", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(format!("read {}: {error}", path.display())),
    }
}

fn remember(home: &Path, users: &BTreeSet<String>) -> Result<(), String> {
    let path = home.join(USERS);
    let bytes = serde_json::to_vec(users).unwrap_or_default();
    disk::write_atomically(&path, &bytes).map_err(|error| format!("write {}: {error}", path.display()))
}

/// Where a user's keys are. Users whom `/etc/passwd` does not know come from a directory, which the system asks.
fn login(user: &str) -> Result<Login, String> {
    let known = Database::read().passwd;
    let line = known.lines().find(|line| line.split(':').next() == Some(user)).map(str::to_owned);
    let line = match line {
        Some(line) => line,
        None => asked(user)?,
    };
    let fields: Vec<&str> = line.trim_end().split(':').collect();
    let [_, _, uid, gid, _, home, ..] = fields[..] else { return Err(format!("there is no user {user}")) };
    match (uid.parse(), gid.parse()) {
        (Ok(uid), Ok(gid)) if home.starts_with('/') => Ok(Login { home: PathBuf::from(home), uid, gid }),
        _ => Err(format!("the user {user} has no home")),
    }
}

fn asked(user: &str) -> Result<String, String> {
    let unknown = || format!("there is no user {user}");
    let mut getent = Command::new("getent");
    getent.args(["passwd", "--", user]).stdin(Stdio::null()).stderr(Stdio::null());
    let output = getent.output().map_err(|_| unknown())?;
    let text = String::from_utf8(output.stdout).map_err(|_| unknown())?;
    if output.status.success() { Ok(text) } else { Err(unknown()) }
}

/// Whether the host's SSH server understands the word, as far as it tells its version.
fn knows_permitlisten() -> bool {
    ["sshd", "/usr/sbin/sshd", "/usr/local/sbin/sshd"].iter().any(|program| {
        // Older ones do not know the option, and say their version with their complaint.
        let output = Command::new(program).arg("-V").stdin(Stdio::null()).output();
        output.is_ok_and(|output| version_of(&output.stderr).is_some_and(|version| version >= PERMITLISTEN_SINCE))
    })
}

fn version_of(words: &[u8]) -> Option<(u32, u32)> {
    let words = String::from_utf8_lossy(words);
    let (_, version) = words.split_once("OpenSSH_")?;
    let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok();
    let (major, minor) = version.split_once('.')?;
    Some((digits(major)?, digits(minor)?))
}

#[cfg(test)]
mod tests {
    use api::agent::Resolved;
    use jiff::Timestamp;

    use super::*;
    use crate::host::record::{Accepted, Entry, Line};

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";

    fn job(number: u128) -> JobId {
        JobId(uuid::Uuid::from_u128(number))
    }

    #[test]
    fn a_line_opens_one_port_and_says_whose_it_is() {
        let text = line(&format!("{KEY} ada@home\n"), 10022, job(7), true).unwrap();
        assert_eq!(
            text,
            format!(
                "restrict,port-forwarding,permitopen=\"localhost:10022\",permitopen=\"127.0.0.1:10022\",\
                 permitlisten=\"127.0.0.1:1\",command=\"echo '{REFUSAL}' >&2; exit 1\" {KEY} dstack \
                 00000000-0000-0000-0000-000000000007"
            )
        );
        assert!(file::is_ours(text.as_bytes()));
        let old = line(KEY, 10022, job(7), false).unwrap();
        assert!(!old.contains("permitlisten") && file::is_ours(old.as_bytes()));
    }

    #[test]
    fn nothing_but_a_key_gets_into_the_file() {
        for text in [
            "",
            "nonsense",
            "command=\"sh\" ssh-ed25519 AAAA",
            &format!("restrict {KEY}"),
            &format!("{KEY} me\nssh-ed25519 AAAA other"),
        ] {
            let made = line(text, 1, job(1), true);
            let is_one_plain_line =
                made.as_ref().is_none_or(|line| line.matches(KEY).count() == 1 && !line.contains('\n'));
            assert!(is_one_plain_line, "{text}: {made:?}");
        }
    }

    #[test]
    fn a_way_is_open_from_ready_to_the_end() {
        let accepted = Accepted {
            id: job(1),
            generation: 1,
            job_name: "job".to_owned(),
            container: true,
            released: false,
            ssh_port: Some(10022),
            on_host_network: false,
            over_host: Some(WayOverHost { user: "ada".to_owned(), keys: vec![KEY.to_owned()] }),
        };
        let ways = Ways::default();
        let mut record = Record::new(accepted, "boot".to_owned());
        let mut check = |entry: Option<Entry>, ports: &[u16]| {
            if let Some(entry) = entry {
                record.apply(&Line { at: Timestamp::UNIX_EPOCH, boot: "boot".to_owned(), entry });
            }
            ways.note(&record);
            let open: Vec<u16> = ways.open().values().map(|way| way.port).collect();
            assert_eq!(open, ports, "{:?}", record.state.phase);
        };
        check(None, &[]);
        check(Some(Entry::Preparing), &[]);
        let resolved = Resolved { ports: BTreeMap::from([(10022, 32_768)]), ..Resolved::default() };
        check(Some(Entry::Ready(resolved)), &[32_768]);
        check(Some(Entry::Running), &[32_768]);
        check(Some(Entry::Sealed(0)), &[]);
    }

    #[test]
    fn versions_are_found_in_what_servers_say() {
        let check = |text: &str, expected| assert_eq!(version_of(text.as_bytes()), expected, "{text}");
        check("OpenSSH_9.2p1 Debian-2+deb12u3, OpenSSL 3.0.15", Some((9, 2)));
        check("unknown option -- V\nOpenSSH_7.6p1 Ubuntu-4ubuntu0.7, OpenSSL 1.0.2n", Some((7, 6)));
        check("OpenSSH_10.0p2", Some((10, 0)));
        check("Dropbear v2022.83", None);
    }

    #[test]
    fn users_come_from_the_database_of_the_system() {
        let root = login("root").unwrap();
        assert_eq!((root.uid, root.gid), (0, 0));
        assert_eq!(login("nobody-has-this-name").unwrap_err(), "there is no user nobody-has-this-name");
    }
}
