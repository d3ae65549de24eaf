//! People in front of a terminal: what Ctrl-C does while a run is followed.

use std::io::{Read as _, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::local::task;
use crate::rig::{FLEET, Rig, wait_for};

/// What Ctrl-C sends to a terminal.
const INTERRUPT: &str = "\x03";

/// A command in a terminal of its own.
pub(crate) struct Typist {
    child: Child,
    keyboard: ChildStdin,
    screen: Arc<Mutex<Vec<u8>>>,
}

impl Typist {
    /// Applies a configuration and answers nothing in advance.
    pub(crate) fn apply(rig: &Rig, file: &str) -> Typist {
        let inner = rig.cli(&["apply", "-f", file, "-R"]);
        let program = inner.get_program().to_string_lossy().into_owned();
        let words: Vec<String> = inner.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        // A shell that stays would be interrupted too, and its exit status would hide the command's.
        let line = format!("exec {program} {}", words.join(" "));
        let mut command = Command::new("script");
        // It gives the command a terminal, types what we write, and ends as the command does.
        command.args(["--quiet", "--return", "--flush", "--command", &line, "/dev/null"]);
        command.env("SHELL", "/bin/sh").current_dir(&rig.dir);
        for (name, value) in inner.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("`script` is part of every system");
        let keyboard = child.stdin.take().unwrap();
        let mut output = child.stdout.take().unwrap();
        let screen = Arc::new(Mutex::new(Vec::new()));
        let shown = screen.clone();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                shown.lock().unwrap().extend_from_slice(&bytes[..count]);
            }
        });
        Typist { child, keyboard, screen }
    }

    fn screen(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().unwrap()).into_owned()
    }

    #[track_caller]
    pub(crate) fn waits_for(&self, text: &str) {
        wait_for(text, Duration::from_mins(1), || self.screen().contains(text).then_some(()));
    }

    pub(crate) fn types(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).unwrap();
        self.keyboard.flush().unwrap();
    }

    /// Waits for the end and gives the exit status.
    #[track_caller]
    pub(crate) fn ends(&mut self) -> Option<i32> {
        let status = wait_for("the end of the command", Duration::from_mins(1), || self.child.try_wait().unwrap());
        status.code()
    }
}

impl Drop for Typist {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the screen:\n{}", self.screen());
        }
        let _gone_already = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Follows a run that would never end, until its first words are shown.
fn follow(rig: &Rig, name: &str) -> Typist {
    rig.apply("fleet.dstack.yml", FLEET, &[]);
    // The words are not in the command, which may be shown too.
    rig.write("task.dstack.yml", &task(name, 1, "echo first $(echo words); sleep 3600"));
    let mut typist = Typist::apply(rig, "task.dstack.yml");
    typist.waits_for("[y/n]");
    typist.types("y\n");
    typist.waits_for("first words");
    typist
}

#[test]
fn who_interrupts_and_says_yes_stops_the_run() {
    let Some(rig) = Rig::start("who_interrupts_and_says_yes_stops_the_run") else { return };
    let mut typist = follow(&rig, "long");
    typist.types(INTERRUPT);
    typist.waits_for("Stop the run long before detaching? [y/n]");
    typist.types("y\n");
    typist.waits_for("Stopping...");
    assert_eq!(typist.ends(), Some(0), "what they wanted has happened");
    typist.waits_for("Stopped");
    assert_eq!(rig.run_status("long"), "terminated");
}

#[test]
fn who_interrupts_and_says_no_leaves_the_run_alone() {
    let Some(rig) = Rig::start("who_interrupts_and_says_no_leaves_the_run_alone") else { return };
    let mut typist = follow(&rig, "long");
    typist.types(INTERRUPT);
    typist.waits_for("Stop the run long before detaching? [y/n]");
    typist.types("n\n");
    assert_eq!(typist.ends(), Some(0));
    typist.waits_for("Detached");
    assert_eq!(rig.run_status("long"), "running");
}

#[test]
fn who_interrupts_twice_aborts_the_run() {
    let Some(rig) = Rig::start("who_interrupts_twice_aborts_the_run") else { return };
    let mut typist = follow(&rig, "long");
    typist.types(INTERRUPT);
    typist.waits_for("Stop the run long before detaching? [y/n]");
    typist.types(INTERRUPT);
    typist.waits_for("Aborting...");
    assert_eq!(typist.ends(), Some(0));
    typist.waits_for("Aborted");
    assert_eq!(rig.run_status("long"), "terminated");
}
