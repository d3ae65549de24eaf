//! Tasks as containers, with a real Docker engine and the image `dstack-test:latest`.
//!
//! Skipped, and said so, where `DSTACK_TEST_DOCKER` is not set.

#![cfg(test)]

mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use api::agent::*;
use support::*;
use tokio::time::{Instant, sleep};

const IMAGE: &str = "dstack-test:latest";

/// Whether there is an engine to test with.
fn enabled() -> bool {
    let enabled = std::env::var_os("DSTACK_TEST_DOCKER").is_some();
    if !enabled {
        eprintln!("SKIPPED: set DSTACK_TEST_DOCKER to test with a Docker engine");
    }
    enabled
}

fn docker(arguments: &[&str]) -> String {
    let output = Command::new("docker").args(arguments).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn containers_of(spec: &TaskSpec) -> Vec<String> {
    let filter = format!("label=ai.dstack.task-id={}", spec.id);
    docker(&["ps", "-aq", "--filter", &filter]).lines().map(str::to_owned).collect()
}

/// An image's tag that does not move, so that nothing tries to pull it.
fn image() -> String {
    docker(&["tag", IMAGE, "dstack-test:pinned"]);
    "dstack-test:pinned".to_owned()
}

fn container(argv: &[&str]) -> TaskSpec {
    let mut spec = process(argv);
    spec.runtime = Runtime::Docker(Box::new(ContainerSpec {
        image: image(),
        registry_auth: None,
        privileged: false,
        shm_size_bytes: None,
        network: ContainerNetwork::Bridge,
        mounts: Vec::new(),
        devices: Vec::new(),
        home_dir: None,
    }));
    spec
}

fn shell(text: &str) -> TaskSpec {
    container(&["/bin/sh", "-c", text])
}

fn edit(spec: &mut TaskSpec) -> &mut ContainerSpec {
    match &mut spec.runtime {
        Runtime::Docker(container) => container,
        Runtime::Process => panic!("not a container"),
    }
}

fn agent() -> Agent {
    Agent::new(&["--docker", "auto"])
}

/// Removes a test's containers even when it fails.
struct Cleanup(TaskSpec);

impl Drop for Cleanup {
    fn drop(&mut self) {
        for id in containers_of(&self.0) {
            docker(&["rm", "-f", "-v", &id]);
        }
    }
}

#[tokio::test]
async fn a_container_runs_to_its_end_with_exactly_its_output() {
    if !enabled() {
        return;
    }
    let mut agent = agent();
    let hello = agent.hello().await;
    assert!(hello.host.docker.is_some(), "{:?}", hello.host.docker_error);
    let mut spec = shell("echo in $(cat /proc/1/comm) at $PWD as $USER; exit 3");
    spec.working_dir = Some("/some/where".to_owned());
    let _cleanup = Cleanup(spec.clone());
    let (state, log) = agent.run(&spec).await;
    assert_eq!(text(&log), "in dstack-agent at /some/where as root\n");
    assert_eq!(state.exit.unwrap().exit_status, Some(3));
    assert_eq!(containers_of(&spec).len(), 1);
    agent.forget(&spec).await;
    assert!(containers_of(&spec).is_empty());
}

#[tokio::test]
async fn a_container_is_up_before_go_and_waits() {
    if !enabled() {
        return;
    }
    let mut agent = agent();
    let mut spec = shell("echo ran");
    spec.released = false;
    let _cleanup = Cleanup(spec.clone());
    agent.put(&spec).await;
    let state = agent.wait_for(&spec, "ready", |state| state.phase == TaskPhase::Ready).await;
    let id = state.resolved.container_id.unwrap();
    assert_eq!(docker(&["inspect", "-f", "{{.State.Running}}", &id]), "true");
    assert!(docker(&["inspect", "-f", "{{.Name}}", &id]).starts_with("/train-0-0-"));
    assert_eq!(state.log_end, 0);
    agent.order(&spec, "go").await;
    assert_eq!(text(&agent.read_log(spec.id, 0).await.bytes), "ran\n");
    agent.forget(&spec).await;
}

#[tokio::test]
async fn without_commands_the_images_own_run() {
    if !enabled() {
        return;
    }
    let mut agent = agent();
    let own = "FROM dstack-test:latest\nENV OF_IMAGE=kept\nWORKDIR /srv\n\
               ENTRYPOINT [\"/bin/sh\", \"-c\"]\nCMD [\"echo $OF_IMAGE; pwd\"]\n";
    let mut build = Command::new("docker")
        .args(["build", "-q", "-t", "dstack-test:own-command", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut build.stdin.take().unwrap(), own.as_bytes()).unwrap();
    assert!(build.wait().unwrap().success());
    let mut spec = container(&[]);
    edit(&mut spec).image = "dstack-test:own-command".to_owned();
    let _cleanup = Cleanup(spec.clone());
    let (_, log) = agent.run(&spec).await;
    assert_eq!(text(&log), "kept\n/srv\n");
}

#[tokio::test]
async fn user_mounts_files_and_environment_are_as_ordered() {
    if !enabled() {
        return;
    }
    let mut agent = agent();
    let shared = agent.home.path().join("made/on/demand");
    let mut spec = shell(
        "id -u; id -g; echo $HOME; stat -c %U:%G . ; touch mine; cat $DSTACK_MPI_HOSTFILE; \
         stat -c '%a %u' /dstack/profile; echo data > /shared/file; df -k /dev/shm | tail -1 | \
         tr -s ' ' | cut -d' ' -f2; [ -e /dstack/task/job.json ] || echo no secrets",
    );
    spec.user = Some("nobody:100".to_owned());
    spec.working_dir = Some("/srv/here".to_owned());
    spec.cluster.node_ips = vec!["10.1.1.1".to_owned()];
    edit(&mut spec).home_dir = Some("/home/default".to_owned());
    edit(&mut spec).shm_size_bytes = Some(32 << 20);
    edit(&mut spec).mounts =
        vec![InstanceMount { instance_path: shared.to_string_lossy().into_owned(), path: "/shared".to_owned() }];
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::create_dir_all(&shared).unwrap();
    std::fs::set_permissions(&shared, mode).unwrap();
    let _cleanup = Cleanup(spec.clone());
    let (state, log) = agent.run(&spec).await;
    let expected = "65534\n100\n/home/default\nnobody:users\n10.1.1.1\n600 65534\n32768\nno secrets\n";
    assert_eq!(text(&log), expected);
    assert_eq!(state.exit.unwrap().reason, ExitReason::Done);
    assert_eq!(state.resolved.username.as_deref(), Some("nobody"));
    assert_eq!(std::fs::read_to_string(shared.join("file")).unwrap(), "data\n");
}

#[tokio::test]
async fn a_virtual_environment_is_made_in_the_container() {
    if !enabled() {
        return;
    }
    let mut agent = agent();
    let mut spec = shell("command -v python; echo $VIRTUAL_ENV");
    spec.python = Some("3.11".to_owned());
    let _cleanup = Cleanup(spec.clone());
    let (state, log) = agent.run(&spec).await;
    match state.exit.unwrap() {
        exit if exit.reason == ExitReason::Done => {
            assert_eq!(text(&log), "/dstack/venv/bin/python\n/dstack/venv\n");
        }
        // An image without the venv module must say so.
        exit => assert!(exit.message.unwrap().contains("venv"), "{}", text(&log)),
    }
    let mut missing = shell("true");
    missing.python = Some("3.99".to_owned());
    let _cleanup = Cleanup(missing.clone());
    let (state, _) = agent.run(&missing).await;
    let exit = state.exit.unwrap();
    assert_eq!(exit.reason, ExitReason::ExecutorError);
    assert!(exit.message.unwrap().contains("python: 3.99"));
}

#[tokio::test]
async fn a_stop_ends_the_container_and_all_in_it() {
    if !enabled() {
        return;
    }
    let mut agent = agent();
    let spec = shell(
        "trap '' TERM INT; setsid sh -c 'trap \"\" TERM; sleep 1000' & echo up; while true; do sleep 0.1; done",
    );
    let _cleanup = Cleanup(spec.clone());
    agent.put(&spec).await;
    agent.wait_for(&spec, "output", |state| state.log_end > 0).await;
    agent.stop(&spec, 1).await;
    let exit = agent.wait_sealed(&spec).await.exit.unwrap();
    assert_eq!((exit.reason, exit.signal), (ExitReason::Stopped, Some(9)));
    assert!(processes_of(spec.id).is_empty());
}

#[tokio::test]
async fn what_the_host_forbids_is_left_out_and_said() {
    if !enabled() {
        return;
    }
    let mut agent = agent();
    let mut spec = shell("ulimit -l; ulimit -n");
    edit(&mut spec).devices = vec!["/dev/null".to_owned()];
    let _cleanup = Cleanup(spec.clone());
    let (state, log) = agent.run(&spec).await;
    let is_unlimited = text(&log).starts_with("unlimited\n");
    let is_said = state.warnings.iter().any(|text| text.contains("locked memory"));
    assert!(is_unlimited != is_said, "{} {:?}", text(&log), state.warnings);
}

#[tokio::test]
async fn an_image_that_cannot_be_had_is_told() {
    if !enabled() {
        return;
    }
    let mut agent = agent();
    let mut spec = shell("true");
    edit(&mut spec).image = "localhost:1/no/such:image".to_owned();
    edit(&mut spec).registry_auth =
        Some(RegistryAuth { username: "user".to_owned(), password: "s3cr3t-password".to_owned() });
    let _cleanup = Cleanup(spec.clone());
    let (state, _) = agent.run(&spec).await;
    let exit = state.exit.unwrap();
    assert_eq!(exit.reason, ExitReason::CreatingContainerError);
    assert!(exit.message.unwrap().contains("localhost:1/no/such:image"));
    assert!(!agent.log().contains("s3cr3t"));
}

#[tokio::test]
async fn a_named_network_gives_the_address_that_was_ordered() {
    if !enabled() {
        return;
    }
    let mut agent = agent();
    let mut spec = shell("cat /proc/net/fib_trie | grep -o '10\\.231\\.77\\.5' | head -1");
    edit(&mut spec).network = ContainerNetwork::Named {
        name: "dstack-agent-test".to_owned(),
        subnet: "10.231.77.0/24".to_owned(),
        address: "10.231.77.5".to_owned(),
    };
    let _cleanup = Cleanup(spec.clone());
    let (_, log) = agent.run(&spec).await;
    agent.forget(&spec).await;
    docker(&["network", "rm", "dstack-agent-test"]);
    assert_eq!(text(&log), "10.231.77.5\n");
}

#[tokio::test]
async fn crashes_of_the_agent_neither_lose_nor_repeat() {
    if !enabled() {
        return;
    }
    let points = [
        "preparing:before",
        "launch:before",
        "container:pull",
        "container:create",
        "container:created",
        "container:started",
        "launch:after",
        "ready:before",
        "ready:after",
        "running:before",
        "running:after",
        "go:after",
        "started:before",
        "exited:after",
        "sealed:before",
        "forgotten:after",
        "forgotten:removed",
    ];
    for point in points {
        let mut agent = agent();
        let shared = tempfile::tempdir().unwrap();
        let mut spec = shell("echo started >> /shared/ledger; seq 1 20000");
        edit(&mut spec).mounts = vec![InstanceMount {
            instance_path: shared.path().to_string_lossy().into_owned(),
            path: "/shared".to_owned(),
        }];
        let _cleanup = Cleanup(spec.clone());
        std::fs::write(agent.home.path().join("failpoint"), point).unwrap();
        let (state, log) = agent.run(&spec).await;
        assert_eq!(state.exit.unwrap().reason, ExitReason::Done, "{point}");
        let lines: Vec<String> = (1..=20000).map(|number| number.to_string()).collect();
        let expected = lines.join("\n") + "\n";
        assert!(text(&log) == expected, "{point}: {} bytes", log.len());
        let ledger = std::fs::read_to_string(shared.path().join("ledger")).unwrap();
        assert_eq!(ledger, "started\n", "{point}");
        agent.forget(&spec).await;
        assert!(!exists(&agent.home.path().join("failpoint")), "{point} was not passed");
        assert!(containers_of(&spec).is_empty(), "{point}");
    }
}

/// A Docker engine of the test's own, so that ending it disturbs nobody.
struct OwnEngine {
    dir: tempfile::TempDir,
    child: Option<std::process::Child>,
}

impl OwnEngine {
    fn start() -> OwnEngine {
        let dir = tempfile::Builder::new().prefix("engine").tempdir_in("/var/tmp").unwrap();
        let mut engine = OwnEngine { dir, child: None };
        engine.run();
        engine
    }

    fn host(&self) -> String {
        format!("unix://{}/docker.sock", self.dir.path().display())
    }

    fn run(&mut self) {
        let dir = self.dir.path();
        let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
        let log = std::fs::File::options().create(true).append(true).open(dir.join("log")).unwrap();
        // A killed engine leaves its number behind, which may be another process's by now.
        let _ = std::fs::remove_file(dir.join("pid"));
        // In a network of its own, or it would take the other engine's bridge away.
        let child = Command::new("unshare")
            .args(["--net", "dockerd"])
            .args(["--data-root", &path("data"), "--exec-root", &path("exec")])
            .args(["--pidfile", &path("pid"), "-H", &self.host()])
            .args(["--bridge=none", "--iptables=false", "--ip-masq=false"])
            .stderr(log.try_clone().unwrap())
            .stdout(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    async fn wait(&self) {
        let end = Instant::now() + 2 * DEADLINE;
        while !self.docker(&["info"]) {
            let log = || std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            assert!(Instant::now() < end, "the engine does not come up: {}", log());
            sleep(Duration::from_millis(100)).await;
        }
    }

    fn docker(&self, arguments: &[&str]) -> bool {
        let status = Command::new("docker")
            .args(["-H", &self.host()])
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        status.unwrap().success()
    }

    fn load_image(&self) {
        let script = format!("docker save {} | docker -H {} load", image(), self.host());
        assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success());
    }

    /// `kill -9`, and with the engine ends what it has started for itself, but not the containers.
    async fn kill(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        let _ = child.kill();
        let _ = child.wait();
        let file = self.dir.path().join("exec/containerd/containerd.pid");
        let pid = std::fs::read_to_string(&file).unwrap();
        let stat = format!("/proc/{}/stat", pid.trim());
        eventually("the end of containerd", async || {
            let stat = std::fs::read_to_string(&stat).unwrap_or_default();
            (stat.is_empty() || stat.contains(") Z ")).then_some(())
        })
        .await;
        // A number without a process, which a new engine would wait for.
        let _ = std::fs::remove_file(file);
    }
}

impl Drop for OwnEngine {
    fn drop(&mut self) {
        if let Some(child) = &self.child {
            let pid = nix::unistd::Pid::from_raw(child.id() as i32);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM);
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
        unmount_below(self.dir.path());
    }
}

/// Mounts that a killed engine left behind.
fn unmount_below(dir: &Path) {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let prefix = dir.to_string_lossy().into_owned();
    for line in mounts.lines().rev() {
        if let Some(path) = line.split(' ').nth(1).filter(|path| path.starts_with(&prefix)) {
            let _ = Command::new("umount").args(["-l", path]).status();
        }
    }
}

#[tokio::test]
async fn an_engine_that_is_killed_interrupts_the_job_and_says_what_would_help() {
    if !enabled() {
        return;
    }
    let mut engine = OwnEngine::start();
    engine.wait().await;
    engine.load_image();
    let ledger = tempfile::tempdir().unwrap();
    let mut agent = Agent::with_env(&["--docker", "auto"], &[("DOCKER_HOST", &engine.host())]);
    let mut spec = shell("echo started >> /shared/ledger; echo up; sleep 1000");
    edit(&mut spec).network = ContainerNetwork::Host;
    edit(&mut spec).mounts = vec![InstanceMount {
        instance_path: ledger.path().to_string_lossy().into_owned(),
        path: "/shared".to_owned(),
    }];
    agent.put(&spec).await;
    agent.wait_for(&spec, "output", |state| state.log_end > 0).await;
    engine.kill().await;
    // An engine that is away is no reason to give the job up.
    let state = agent.state(spec.id).await.unwrap();
    assert!(state.exit.is_none());
    engine.run();
    engine.wait().await;
    let exit = agent.wait_sealed(&spec).await.exit.unwrap();
    assert_eq!(exit.reason, ExitReason::HostInterrupted, "{exit:?}");
    assert!(exit.message.unwrap().contains("live-restore"));
    assert_eq!(std::fs::read_to_string(ledger.path().join("ledger")).unwrap(), "started\n");
    assert!(processes_of(spec.id).is_empty());
    agent.forget(&spec).await;
}
