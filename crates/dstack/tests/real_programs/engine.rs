//! An engine for containers that dies while it has work. It is the test's own, so that its end disturbs nobody.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::containers::contained;
use crate::rig::{FLEET, IMAGE, Rig, Setup, end, pause, pin_image, program, seq, wait_for};

const START: Duration = Duration::from_mins(2);

/// An engine, with what runs its containers apart from it.
struct Engine {
    dir: TempDir,
    /// Keeps the network that engine and containers live in, so that it takes nobody's bridge away.
    network: Child,
    containerd: Child,
    dockerd: Option<Child>,
    keeps_containers: bool,
}

impl Engine {
    /// Starts one that keeps its containers over a restart, or one that does not.
    fn start(test: &str, keeps_containers: bool) -> Option<Engine> {
        program("DSTACK_TEST_DOCKER", test)?;
        if end(Command::new("unshare").args(["--net", "true"])).status != Some(0) {
            eprintln!("{test} is left out: only root can start an engine");
            return None;
        }
        // Not in memory: images need room.
        let dir = tempfile::Builder::new().prefix("en").tempdir_in("/var/tmp").unwrap();
        // Ports of containers are published on the loopback interface, which is down in a new network.
        let up = "ip link set lo up && exec sleep infinity";
        let network = Command::new("unshare").args(["--net", "sh", "-c", up]).spawn().unwrap();
        wait_for("the engine's network", START, || {
            let comm = fs::read_to_string(format!("/proc/{}/comm", network.id())).ok()?;
            (comm.trim() == "sleep").then_some(())
        });
        fs::write(
            dir.path().join("containerd.toml"),
            "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n",
        )
        .unwrap();
        let place = |name: &str| dir.path().join(name).display().to_string();
        let containerd = inside(&network, "containerd")
            .args(["--config", &place("containerd.toml"), "--address", &place("containerd.sock")])
            .args(["--root", &place("containerd"), "--state", &place("containerd-state")])
            .stdout(log(&dir, "containerd.log"))
            .stderr(log(&dir, "containerd.log"))
            .spawn()
            .unwrap();
        let mut engine = Engine { dir, network, containerd, dockerd: None, keeps_containers };
        wait_for("containerd", START, || engine.place("containerd.sock").exists().then_some(()));
        engine.run();
        let load = format!("docker save {IMAGE} | docker --host {} load", engine.host());
        pin_image();
        end(Command::new("sh").args(["-c", &load])).expect_status(0);
        Some(engine)
    }

    fn place(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn host(&self) -> String {
        format!("unix://{}", self.place("docker.sock").display())
    }

    /// Starts the engine itself, and waits until it answers.
    fn run(&mut self) {
        // A killed engine leaves its number behind, which may be another process's by now.
        let _none_the_first_time = fs::remove_file(self.place("pid"));
        let place = |name: &str| self.place(name).display().to_string();
        let mut dockerd = inside(&self.network, "dockerd");
        dockerd.args(["--containerd", &place("containerd.sock"), "--host", &self.host()]);
        dockerd.args(["--data-root", &place("data"), "--exec-root", &place("exec"), "--pidfile", &place("pid")]);
        dockerd.args(["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-masq=false"]);
        if self.keeps_containers {
            dockerd.arg("--live-restore");
        }
        dockerd.stdout(log(&self.dir, "dockerd.log")).stderr(log(&self.dir, "dockerd.log"));
        self.dockerd = Some(dockerd.spawn().unwrap());
        wait_for("the engine's first answer", START, || {
            (end(Command::new("docker").args(["--host", &self.host(), "info"])).status == Some(0)).then_some(())
        });
    }

    fn kill(&mut self) {
        let mut dockerd = self.dockerd.take().expect("the engine runs");
        dockerd.kill().unwrap();
        dockerd.wait().unwrap();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.place("dockerd.log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("the engine's last lines:\n{}", lines[lines.len().saturating_sub(20)..].join("\n"));
        }
        // Containers first, while there is somebody who knows them.
        if self.dockerd.is_some() {
            let all = format!("docker --host {0} ps -aq | xargs -r docker --host {0} rm -f", self.host());
            end(Command::new("sh").args(["-c", &all]));
            self.kill();
        }
        for child in [&mut self.containerd, &mut self.network] {
            let _gone_already = child.kill();
            let _status = child.wait();
        }
        let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
        for mount in mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)) {
            if mount.starts_with(&self.dir.path().display().to_string()) {
                end(Command::new("umount").args(["--lazy", mount]));
            }
        }
    }
}

/// A program in the engine's network.
fn inside(network: &Child, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/proc/{}/ns/net", network.id())).arg(program).stdin(Stdio::null());
    command
}

fn log(dir: &TempDir, name: &str) -> File {
    File::options().create(true).append(true).open(dir.path().join(name)).unwrap()
}

/// A rig on an engine, with two containers that note their start and write until they are told to end.
fn two_writers(test: &str, engine: &Engine) -> Option<Rig> {
    let variables = vec![("DOCKER_HOST", engine.host())];
    let rig = Rig::start_with(test, Setup { containers: true, variables })?;
    rig.apply("fleet.dstack.yml", FLEET, &[]);
    let command = "echo $DSTACK_NODE_RANK >> /shared/ledger; n=0; \
                   until [ -e /shared/go ]; do n=$((n+1)); echo line $n; sleep 0.02; done; \
                   seq 1 2000; echo $n > /shared/last-$DSTACK_NODE_RANK";
    rig.write("task.dstack.yml", &contained(&rig, "writers", 2, command));
    Some(rig)
}

fn starts(rig: &Rig) -> Vec<String> {
    let ledger = fs::read_to_string(rig.dir.join("shared/ledger")).unwrap_or_default();
    let mut starts: Vec<String> = ledger.lines().map(str::to_owned).collect();
    starts.sort_unstable();
    starts
}

#[test]
fn containers_live_through_a_crash_of_an_engine_that_keeps_them() {
    let test = "containers_live_through_a_crash_of_an_engine_that_keeps_them";
    let Some(mut engine) = Engine::start(test, true) else { return };
    let Some(rig) = two_writers(test, &engine) else { return };
    rig.run(&["apply", "-f", "task.dstack.yml", "-R", "-y", "-d"]).expect_status(0);
    rig.wait_for_status("writers", "running");
    wait_for("both starts", START, || (starts(&rig).len() == 2).then_some(()));
    engine.kill();
    pause(Duration::from_secs(1));
    assert_eq!(rig.run_status("writers"), "running", "an engine that is away proves nothing");
    engine.run();
    rig.write("shared/go", "");
    rig.wait_for_status("writers", "done");
    assert_eq!(starts(&rig), ["0", "1"]);
    assert_eq!(rig.submissions("writers"), [1, 1]);
    for node in 0..2 {
        let last = fs::read_to_string(rig.dir.join(format!("shared/last-{node}"))).unwrap();
        let lines = (1..=last.trim().parse::<u32>().unwrap())
            .flat_map(|number| ["line ".to_owned(), number.to_string(), "\r\n".to_owned()]);
        let expected = lines.collect::<String>() + &seq(2000);
        assert!(rig.log("writers", node) == expected.as_bytes(), "node {node}: the log is whole");
    }
    rig.run(&["delete", "-f", "fleet.dstack.yml", "-y"]).expect_status(0);
}

#[test]
fn an_engine_that_takes_its_containers_along_fails_the_run_and_says_what_would_help() {
    let test = "an_engine_that_takes_its_containers_along_fails_the_run_and_says_what_would_help";
    let Some(mut engine) = Engine::start(test, false) else { return };
    let Some(rig) = two_writers(test, &engine) else { return };
    let mut apply = rig.cli(&["apply", "-f", "task.dstack.yml", "-R", "-y"]);
    let apply = std::thread::spawn(move || end(&mut apply));
    wait_for("both starts", START, || (starts(&rig).len() == 2).then_some(()));
    engine.kill();
    engine.run();
    rig.wait_for_status("writers", "failed");
    let applied = apply.join().unwrap().expect_status(1);
    let applied = applied.text() + &applied.stderr;
    let event = rig.run(&["event", "--within-run", "writers"]).expect_status(0).text();
    let ps = rig.run(&["ps", "-a", "-v"]).expect_status(0).text();
    assert_eq!(starts(&rig), ["0", "1"]);
    assert_eq!(rig.submissions("writers"), [1, 1]);
    for (place, text) in [("apply", &applied), ("event", &event), ("ps", &ps)] {
        assert!(text.contains("live-restore"), "`{place}` does not tell what would help:\n{text}");
    }
    rig.run(&["delete", "-f", "fleet.dstack.yml", "-y"]).expect_status(0);
}
