//! A private directory for one chore, and the promise that nothing of the chore outlives it.
//!
//! Everything a chore starts carries the directory in its environment or command line, children included, so
//! that it can be found whoever its parent is. A second process does the cleaning when the chore ends, in
//! whatever way it ends: its standard input is a pipe from the chore, and a pipe closes even on a kill.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::time::Duration;
use std::{env, io};

use anyhow::{Context, Result};

use crate::shell;

/// The variable that marks what a chore has started.
const MARK: &str = "DSTACK_XTASK_SANDBOX";

/// How long a program may take to end when asked politely.
const GRACE: Duration = Duration::from_secs(20);

/// A private directory, and the process that cleans up after it.
#[derive(Debug)]
pub(crate) struct Sandbox {
    dir: PathBuf,
    cleaner: Child,
}

impl Sandbox {
    /// Makes the directory and starts the process that will clean up.
    pub(crate) fn new() -> Result<Sandbox> {
        // Short, because the paths of sockets may not be long.
        let dir = env::temp_dir().join(format!("dstack-{}", process::id()));
        fs::create_dir(&dir).with_context(|| format!("make the directory `{}`", dir.display()))?;
        // This very program, even if cargo has replaced its file since. In a process group of its own, it
        // survives a Ctrl-C in the terminal.
        let cleaner = Command::new("/proc/self/exe")
            .arg("clean-up")
            .arg(&dir)
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()
            .context("start the process that cleans up")?;
        Ok(Sandbox { dir, cleaner })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes a directory in it.
    pub(crate) fn subdir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join(name);
        fs::create_dir_all(&dir).with_context(|| format!("make the directory `{}`", dir.display()))?;
        Ok(dir)
    }

    /// Makes a directory in it with a short name.
    pub(crate) fn short_subdir(&self) -> Result<PathBuf> {
        let mut names = (0..).map(|number| self.dir.join(format!("{number}")));
        let dir = names.find(|dir| !dir.exists()).expect("numbers do not end");
        fs::create_dir(&dir).with_context(|| format!("make the directory `{}`", dir.display()))?;
        Ok(dir)
    }

    /// A command whose process, and every process of that, ends with the sandbox.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        // Whatever the person who runs the chore has set for a server of their own must not matter.
        for (name, _) in env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"DSTACK_")) {
            command.env_remove(name);
        }
        let (name, value) = self.mark();
        command.env(name, value);
        command
    }

    /// The variable that marks a process as this sandbox's.
    pub(crate) fn mark(&self) -> (&'static str, String) {
        (MARK, self.dir.display().to_string())
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        drop(self.cleaner.stdin.take());
        if let Err(error) = self.cleaner.wait() {
            eprintln!("warning: nobody cleaned up `{}`: {error}", self.dir.display());
        }
    }
}

/// Waits for the end of standard input, then ends every process of the sandbox and removes its directory.
pub(crate) fn clean_up_when_told(dir: &Path) -> Result<()> {
    io::copy(&mut io::stdin(), &mut io::sink()).context("wait for the chore to end")?;
    // Containers carry no mark; they are children of marked processes only as long as those live.
    let mut known = members(dir);
    for name in ["TERM", "KILL"] {
        // Asked politely, a parent ends its children in the order that it needs.
        let has_parent = |pid: u32| parent_and_state(pid).is_some_and(|(parent, _)| known.contains(&parent));
        for pid in known.iter().filter(|pid| name == "KILL" || !has_parent(**pid)) {
            shell::signal(*pid, name);
        }
        let rest = || {
            known.extend(members(dir));
            known.retain(|pid| parent_and_state(*pid).is_some_and(|(_, state)| state != 'Z'));
            known.is_empty().then_some(())
        };
        if shell::wait_for("the end of all processes", GRACE, rest).is_ok() {
            break;
        }
    }
    unmount_all(dir);
    fs::remove_dir_all(dir).with_context(|| format!("remove the directory `{}`", dir.display()))
}

/// Takes away what an engine for containers has mounted in the directory.
fn unmount_all(dir: &Path) {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    // Later mounts may lie inside of earlier ones.
    for line in mounts.lines().rev() {
        let place = line.split(' ').nth(1).map(Path::new);
        if let Some(place) = place.filter(|place| place.starts_with(dir)) {
            shell::succeeds(Command::new("umount").arg("--lazy").arg(place));
        }
    }
}

/// The processes that carry the directory in their environment or command line, and their descendants.
fn members(dir: &Path) -> BTreeSet<u32> {
    let needle = dir.as_os_str().as_encoded_bytes();
    let carries = |file: PathBuf| fs::read(file).is_ok_and(|text| contains(&text, needle));
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids: BTreeSet<u32> = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    let is_marked = |pid: &u32| {
        let proc = Path::new("/proc").join(pid.to_string());
        *pid != process::id() && (carries(proc.join("environ")) || carries(proc.join("cmdline")))
    };
    let mut members: BTreeSet<u32> = pids.iter().copied().filter(is_marked).collect();
    loop {
        let is_child = |pid: &&u32| parent_and_state(**pid).is_some_and(|(parent, _)| members.contains(&parent));
        let children: Vec<u32> = pids.iter().filter(is_child).copied().collect();
        let before = members.len();
        members.extend(children);
        if members.len() == before {
            return members;
        }
    }
}

/// A process's parent and the letter of its state.
fn parent_and_state(pid: u32) -> Option<(u32, char)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((fields.next()?.parse().ok()?, state))
}

fn contains(text: &[u8], needle: &[u8]) -> bool {
    text.windows(needle.len()).any(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_by_its_environment_even_in_a_session_of_its_own() {
        let dir = env::temp_dir().join(format!("dstack-sandbox-test-{}", process::id()));
        let mut child = Command::new("setsid").args(["sleep", "600"]).env(MARK, &dir).spawn().unwrap();
        let found =
            shell::wait_for("the child's start", GRACE, || members(&dir).contains(&child.id()).then_some(()));
        child.kill().unwrap();
        child.wait().unwrap();
        found.unwrap();
        assert!(members(&dir).is_empty());
    }
}
