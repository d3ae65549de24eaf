//! Secrets are seen by whom they are for, and by nobody else.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::containers::contained;
use crate::rig::{FLEET, Rig, Setup, TOKEN, end, pause, program, wait_for};

const SECRET: &str = "server-secret-5c1f0e";
const PASSWORD: &str = "registry-password-77ab01";
/// How each private key of SSH begins, as text and as it is written in base64.
const KEYS: [&str; 2] = [KEY_HEADING, "b3BlbnNzaC1rZXktdjE"];
/// A program that reads keys holds these words too, and no key.
const KEY_HEADING: &str = "PRIVATE KEY";

/// The command lines of all processes, until told to end.
fn watch_command_lines(ended: &AtomicBool) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    while !ended.load(Ordering::Relaxed) {
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            seen.insert(String::from_utf8_lossy(&line).replace('\0', " "));
        }
        pause(Duration::from_millis(2));
    }
    seen
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files.extend(files_below(&entry.path()));
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    files
}

fn contains(text: &[u8], word: &str) -> bool {
    text.windows(word.len()).any(|window| window == word.as_bytes())
}

/// The secrets that a text tells.
fn told_by(text: &[u8]) -> Vec<&'static str> {
    let is_program = text.starts_with(b"\x7fELF");
    let words = [SECRET, PASSWORD, TOKEN].into_iter().chain(KEYS);
    words.filter(|word| !(is_program && *word == KEY_HEADING) && contains(text, word)).collect()
}

/// Runs two nodes that know every kind of secret, and looks at everything that others could read.
fn keep_secrets(rig: &Rig, database: &dyn Fn() -> Vec<u8>) {
    rig.run(&["secret", "set", "hush", SECRET]).expect_status(0);
    rig.apply("fleet.dstack.yml", FLEET, &[]);
    let command = "if [ \"$HUSH\" = \"$(cat /shared/expected)\" ]; then echo I know it; fi; \
                   touch /shared/up-$DSTACK_NODE_RANK; until [ -e /shared/go ]; do sleep 0.05; done";
    let text = contained(rig, "discreet", 2, command)
        + "env: [\"HUSH=${{ secrets.hush }}\"]\n"
        + &format!("registry_auth: {{username: me, password: {PASSWORD}}}\n");
    rig.write("shared/expected", SECRET);
    let ended = AtomicBool::new(false);
    let lines = thread::scope(|scope| {
        let watch = scope.spawn(|| watch_command_lines(&ended));
        rig.apply("task.dstack.yml", &text, &["-R", "-d"]);
        for node in [0, 1] {
            wait_for("both nodes", Duration::from_mins(1), || {
                rig.dir.join(format!("shared/up-{node}")).exists().then_some(())
            });
        }
        assert_eq!(told_by(&database()), Vec::<&str>::new(), "the database, while the run goes on");
        rig.write("shared/go", "");
        rig.wait_for_status("discreet", "done");
        ended.store(true, Ordering::Relaxed);
        watch.join().unwrap()
    });
    for node in [0, 1] {
        assert_eq!(String::from_utf8_lossy(&rig.log("discreet", node)), "I know it\r\n", "node {node}");
    }
    let was_seen = |word: &str| lines.iter().any(|line| line.contains(word));
    assert!(was_seen(" host --home "), "command lines were seen");
    for line in &lines {
        let told = told_by(line.as_bytes());
        assert!(told.is_empty(), "a command line tells {told:?}: {line}");
    }
    assert_eq!(told_by(&database()), Vec::<&str>::new(), "the database");
    for file in files_below(&rig.dir.join("s")) {
        let text = fs::read(&file).unwrap_or_default();
        assert_eq!(told_by(&text), Vec::<&str>::new(), "{}", file.display());
    }
    let log = fs::read(rig.dir.join("server.log")).unwrap();
    assert_eq!(told_by(&log), Vec::<&str>::new(), "the server's log");
}

#[test]
fn secrets_are_nowhere_to_be_found() {
    let test = "secrets_are_nowhere_to_be_found";
    let Some(rig) = Rig::start_with(test, Setup { containers: true, ..Setup::default() }) else { return };
    let data = rig.dir.join("s/data");
    keep_secrets(&rig, &|| {
        // The log that is written ahead has the newest.
        let files = ["sqlite.db", "sqlite.db-wal"].map(|name| fs::read(data.join(name)).unwrap_or_default());
        assert!(contains(&files.concat(), "discreet"), "the run is in the database");
        files.concat()
    });
}

#[test]
fn secrets_are_nowhere_to_be_found_in_postgres() {
    let test = "secrets_are_nowhere_to_be_found_in_postgres";
    if program("DSTACK_TEST_DOCKER", test).is_none() {
        return;
    }
    let Some((rig, url)) = crate::postgres::start(test, true) else { return };
    keep_secrets(&rig, &|| {
        let dump = end(Command::new("pg_dump").arg(&url)).expect_status(0).stdout;
        assert!(contains(&dump, "discreet"), "the run is in the database");
        dump
    });
}
