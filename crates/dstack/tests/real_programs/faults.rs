//! What goes wrong on users' machines is told where users look: by `apply`, by `ps`, and by `event`.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::local::task;
use crate::rig::{Ended, Rig, Setup, end, now_nanos, wait_for};

/// A fleet of one node, for tests where the second adds nothing.
const ONE: &str = "
type: fleet
name: one
nodes: 1
resources: {cpu: 1.., memory: 256MB.., disk: 1GB..}
";

/// Applies a run that will fail.
#[track_caller]
fn apply_in_vain(rig: &Rig, text: &str) -> Ended {
    rig.write("task.dstack.yml", text);
    rig.run(&["apply", "-f", "task.dstack.yml", "-R", "-y"]).expect_status(1)
}

/// Fails unless all places where users look tell the reason.
#[track_caller]
fn assert_told(rig: &Rig, run: &str, applied: &Ended, by_apply: &[&str], by_ps: &[&str], by_event: &[&str]) {
    let ps = rig.run(&["ps", "-a", "-v"]).expect_status(0).text();
    let event = rig.run(&["event", "--within-run", run]).expect_status(0).text();
    let apply = applied.text() + &applied.stderr;
    for (place, text, words) in [("apply", &apply, by_apply), ("ps", &ps, by_ps), ("event", &event, by_event)] {
        for word in words {
            assert!(text.contains(word), "`{place}` does not tell `{word}`:\n{text}");
        }
    }
}

#[test]
fn commands_that_fail_are_told() {
    let Some(rig) = Rig::start("commands_that_fail_are_told") else { return };
    rig.apply("fleet.dstack.yml", ONE, &[]);
    let applied = apply_in_vain(&rig, &task("lame", 1, "echo so far; exit 7"));
    assert_told(
        &rig,
        "lame",
        &applied,
        &["Exited (7)"],
        &["exited (7)"],
        &["CONTAINER_EXITED_WITH_ERROR (so far)"],
    );
}

#[test]
fn a_command_that_is_not_there_is_told() {
    let Some(rig) = Rig::start("a_command_that_is_not_there_is_told") else { return };
    rig.apply("fleet.dstack.yml", ONE, &[]);
    let applied = apply_in_vain(&rig, &task("typo", 1, "pyhton3 train.py"));
    assert_told(&rig, "typo", &applied, &["Exited (127)"], &["exited (127)"], &["pyhton3: command not found"]);
}

/// A registry that answers every request with one status.
fn registry_that_says(status: &str, code: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let body = format!(r#"{{"errors":[{{"code":"{code}","message":"said the registry"}}]}}"#);
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let _whatever_was_asked = stream.read(&mut request);
            let _asker_left = stream.write_all(answer.as_bytes());
        }
    });
    address.to_string()
}

fn contained(name: &str, image: &str) -> String {
    format!(
        "type: task\nname: {name}\nimage: {image}\ncommands: [echo never]\n\
         resources: {{cpu: 1.., memory: 256MB.., disk: 1GB..}}\n"
    )
}

#[test]
fn images_that_cannot_be_had_are_told() {
    let setup = Setup { containers: true, ..Setup::default() };
    let Some(rig) = Rig::start_with("images_that_cannot_be_had_are_told", setup) else { return };
    rig.apply("fleet.dstack.yml", ONE, &[]);
    let cases = [
        ("missing", "404 Not Found", "MANIFEST_UNKNOWN", "manifest unknown"),
        ("unauthorized", "401 Unauthorized", "UNAUTHORIZED", "nauthorized"),
        ("forbidden", "403 Forbidden", "DENIED", "denied"),
    ];
    for (name, status, code, word) in cases {
        let image = format!("{}/some/image:1", registry_that_says(status, code));
        let applied = apply_in_vain(&rig, &contained(name, &image));
        assert_told(
            &rig,
            name,
            &applied,
            &[&image, word],
            &["cannot pull the image", &image],
            &["CREATING_CONTAINER_ERROR", &image, word],
        );
    }
}

#[test]
fn a_job_that_ignores_its_signals_is_killed_after_its_grace() {
    let Some(rig) = Rig::start("a_job_that_ignores_its_signals_is_killed_after_its_grace") else { return };
    rig.apply("fleet.dstack.yml", ONE, &[]);
    let command = "trap '' INT TERM HUP; echo deaf; while true; do sleep 4711; done";
    let text = task("deaf", 1, command) + "stop_duration: 2s\n";
    rig.apply("task.dstack.yml", &text, &["-R", "-d"]);
    wait_for("the trap", Duration::from_mins(1), || rig.log("deaf", 0).starts_with(b"deaf").then_some(()));
    let asked = now_nanos();
    rig.run(&["stop", "deaf", "-y"]).expect_status(0);
    rig.wait_for_status("deaf", "terminated");
    assert!(asked + Duration::from_secs(2).as_nanos() <= now_nanos(), "it had its grace");
    assert_eq!(rig.processes(&["sleep", "4711"]), Vec::<u32>::new(), "nothing of it is left");
}

#[test]
fn daemons_end_with_their_job() {
    let Some(rig) = Rig::start("daemons_end_with_their_job") else { return };
    rig.apply("fleet.dstack.yml", ONE, &[]);
    // In a session of its own, with a parent that is gone, deaf, and with no word of the job in its command line.
    let command = "(setsid sh -c 'trap \"\" INT TERM HUP; sleep 4712 & sleep 4712' >/dev/null 2>&1 &); \
                   until [ $(pgrep -cx -f 'sleep 4712') -ge 2 ]; do sleep 0.05; done; echo they run";
    let applied = rig.apply("task.dstack.yml", &task("daemons", 1, command), &["-R"]);
    assert!(applied.text().contains("they run"), "{}", applied.text());
    assert_eq!(rig.processes(&["sleep", "4712"]), Vec::<u32>::new(), "nothing of it is left");
}

/// A small file system in memory, taken away with the test.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(path: std::path::PathBuf, size: &str) -> Option<SmallDisk> {
        fs::create_dir_all(&path).unwrap();
        let options = format!("size={size},mode=0700");
        let mut mount = Command::new("mount");
        let mounted = end(mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&path));
        if mounted.status != Some(0) {
            eprintln!("this part is left out, only root may mount: {}", mounted.stderr);
            return None;
        }
        Some(SmallDisk(path))
    }

    /// Takes all room that is left.
    fn fill(&self) {
        let mut file = fs::File::create(self.0.join("ballast")).unwrap();
        let page = [1; 4096];
        while file.write_all(&page).is_ok() {}
    }

    fn relieve(&self) {
        fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        end(Command::new("umount").arg("--lazy").arg(&self.0));
    }
}

#[test]
fn a_run_waits_for_room_on_the_disk_of_its_agent() {
    let Some(mut rig) = Rig::new("a_run_waits_for_room_on_the_disk_of_its_agent", Setup::default()) else {
        return;
    };
    let Some(disk) = SmallDisk::mount(rig.dir.join("s/data/backends/local"), "16m") else { return };
    rig.start_server();
    rig.apply("fleet.dstack.yml", ONE, &[]);
    disk.fill();
    rig.apply("task.dstack.yml", &task("full", 1, "echo here"), &["-R", "-d"]);
    wait_for("the agent's refusal", Duration::from_mins(1), || {
        let log = fs::read_to_string(rig.dir.join("server.log")).unwrap();
        log.contains("No space left on device").then_some(())
    });
    disk.relieve();
    rig.wait_for_status("full", "done");
    assert_eq!(String::from_utf8_lossy(&rig.log("full", 0)), "here\r\n");
}
