//! Tasks as containers, with a real Docker engine and the image `dstack-test:latest`.
//!
//! Skipped, and said so, where `DSTACK_TEST_DOCKER` is not set.

#![cfg(test)]

mod support;

use std::os::unix::fs::MetadataExt;
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
    let mut spec = shell("ulimit -l; ulimit -n; ulimit -s");
    edit(&mut spec).devices = vec!["/dev/null".to_owned()];
    let _cleanup = Cleanup(spec.clone());
    let (state, log) = agent.run(&spec).await;
    let is_unlimited = text(&log).starts_with("unlimited\n");
    let is_said = state.warnings.iter().any(|text| text.contains("locked memory"));
    assert!(is_unlimited != is_said, "{} {:?}", text(&log), state.warnings);
    assert!(text(&log).ends_with("\n65536\n"), "{}", text(&log));
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
    let network = Network::new();
    let address = network.address("5");
    let mut spec = shell(&format!("cat /proc/net/fib_trie | grep -oF {address} | head -1"));
    edit(&mut spec).network = network.named("5");
    let _cleanup = Cleanup(spec.clone());
    let (_, log) = agent.run(&spec).await;
    agent.forget(&spec).await;
    assert_eq!(text(&log), format!("{address}\n"));
    let remove = || {
        let removed = Command::new(binary()).args(["remove-network", "--name", &network.name]).status();
        assert!(removed.unwrap().success());
        docker(&["network", "ls", "-q", "--filter", &format!("name={}", network.name)])
    };
    assert_eq!(remove(), "");
    // Once is enough, and twice does no harm.
    assert_eq!(remove(), "");
}

/// A network of this process, removed even when the test fails.
struct Network {
    name: String,
    prefix: String,
}

impl Network {
    fn new() -> Network {
        let pid = std::process::id();
        let (third, fourth) = (pid / 16 % 256, pid % 16 * 16);
        Network { name: format!("dstack-agent-test-{pid}"), prefix: format!("10.231.{third}.{fourth}") }
    }

    fn address(&self, host: &str) -> String {
        let (prefix, first) = self.prefix.rsplit_once('.').unwrap();
        let last = first.parse::<u32>().unwrap() + host.parse::<u32>().unwrap();
        format!("{prefix}.{last}")
    }

    fn named(&self, host: &str) -> ContainerNetwork {
        ContainerNetwork::Named {
            name: self.name.clone(),
            subnet: format!("{}/28", self.prefix),
            address: Some(self.address(host)),
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        docker(&["network", "rm", &self.name]);
    }
}

/// The fail points that a task in a container passes on its way, of which the two tests below take every second one.
fn fail_points() -> Vec<String> {
    let output = Command::new(binary()).arg("failpoints").output().unwrap();
    let all = String::from_utf8(output.stdout).unwrap();
    // Those of the supervisor are not armed in containers, and the others are of stops and of processes.
    let is_passed = |point: &&str| {
        !point.starts_with("job:") && !point.starts_with("stop") && *point != "launch:job-file-written"
    };
    let points: Vec<String> = all.lines().filter(is_passed).map(str::to_owned).collect();
    assert!(points.len() >= 28, "{points:?}");
    points
}

async fn survive(point: &str) {
    let mut agent = agent();
    let shared = tempfile::tempdir().unwrap();
    // Long enough that a part of its log is acknowledged before its end.
    let mut spec = shell("echo started >> /shared/ledger; seq -f 'line %.0f that must not be lost' 1 30000");
    edit(&mut spec).mounts = vec![InstanceMount {
        instance_path: shared.path().to_string_lossy().into_owned(),
        path: "/shared".to_owned(),
    }];
    let _cleanup = Cleanup(spec.clone());
    agent.hello().await;
    std::fs::write(agent.home.path().join("failpoint"), point).unwrap();
    let (state, log) = agent.run(&spec).await;
    assert_eq!(state.exit.unwrap().reason, ExitReason::Done, "{point}");
    let lines: Vec<String> = (1..=30000).map(|number| format!("line {number} that must not be lost\n")).collect();
    assert!(text(&log) == lines.concat(), "{point}: {} bytes", log.len());
    let ledger = std::fs::read_to_string(shared.path().join("ledger")).unwrap();
    assert_eq!(ledger, "started\n", "{point}");
    agent.forget(&spec).await;
    let passed = || !exists(&agent.home.path().join("failpoint"));
    eventually(&format!("{point} to be passed"), async || passed().then_some(())).await;
    agent.hello().await;
    eventually("the end of the container", async || containers_of(&spec).is_empty().then_some(())).await;
}

#[tokio::test]
async fn two_containers_of_one_machine_share_a_named_network() {
    if !enabled() {
        return;
    }
    let mut agent = agent();
    let network = Network::new();
    let on_network = |seconds: u32| {
        let mut spec = shell(&format!("grep -q '10\\.231\\.' /proc/net/fib_trie && sleep {seconds}"));
        let ContainerNetwork::Named { name, subnet, .. } = network.named("5") else { unreachable!() };
        edit(&mut spec).network = ContainerNetwork::Named { name, subnet, address: None };
        spec
    };
    let (first, second) = (on_network(600), on_network(0));
    let _cleanup = (Cleanup(first.clone()), Cleanup(second.clone()));
    agent.put(&first).await;
    agent.wait_for(&first, "running", |state| state.phase == TaskPhase::Running).await;
    let (task, _) = agent.run(&second).await;
    assert_eq!(task.exit.as_ref().and_then(|exit| exit.exit_status), Some(0), "{task:?}");
    agent.stop(&first, 0).await;
    agent.wait_sealed(&first).await;
    agent.forget(&first).await;
    agent.forget(&second).await;
}

#[tokio::test]
async fn crashes_of_the_agent_neither_lose_nor_repeat() {
    if !enabled() {
        return;
    }
    for point in fail_points().iter().step_by(2) {
        survive(point).await;
    }
}

#[tokio::test]
async fn crashes_of_the_agent_in_between_neither_lose_nor_repeat() {
    if !enabled() {
        return;
    }
    for point in fail_points().iter().skip(1).step_by(2) {
        survive(point).await;
    }
}

#[tokio::test]
async fn an_agent_that_is_not_root_runs_containers() {
    if !enabled() {
        return;
    }
    let mut agent = agent();
    agent.kill();
    // As a member of the engine's group. The program must be where that user may run it.
    let socket = std::fs::metadata("/var/run/docker.sock").unwrap();
    let program = agent.home.path().join("program");
    std::fs::copy(binary(), &program).unwrap();
    let own = Command::new("chown").args(["-R", "65534"]).arg(agent.home.path()).status().unwrap();
    assert!(own.success());
    let group = socket.gid().to_string();
    agent.wrapper = ["setpriv", "--reuid", "65534", "--regid", &group, "--clear-groups", "--"]
        .map(str::to_owned)
        .into_iter()
        .chain([program.to_string_lossy().into_owned()])
        .collect();
    agent.start();
    let mut spec = shell("echo in $(id -u); while [ ! -e /tmp/go ]; do sleep 0.05; done");
    let _cleanup = Cleanup(spec.clone());
    agent.put(&spec).await;
    agent.wait_for(&spec, "output", |state| state.log_end > 0).await;
    agent.restart();
    agent.stop(&spec, 10).await;
    assert_eq!(agent.wait_sealed(&spec).await.exit.unwrap().reason, ExitReason::Stopped);
    assert_eq!(text(&agent.read_log(spec.id, 0).await.bytes), "in 0\n");
    agent.forget(&spec).await;
    assert!(agent.task_ids().is_empty() && containers_of(&spec).is_empty());
    spec = shell("seq 1 1000000");
    let _cleanup = Cleanup(spec.clone());
    let (state, log) = agent.run(&spec).await;
    assert_eq!(state.exit.unwrap().reason, ExitReason::Done);
    assert_eq!(log.len() as u64, state.log_end);
    agent.forget(&spec).await;
}

#[tokio::test]
async fn containers_that_nobody_knows_are_removed() {
    if !enabled() {
        return;
    }
    let mut agent = agent();
    let spec = shell("echo up; sleep 1000");
    let _cleanup = Cleanup(spec.clone());
    let begin = async |agent: &mut Agent, spec: &TaskSpec| {
        agent.put(spec).await;
        agent.wait_for(spec, "output", |state| state.log_end > 0).await;
        agent.kill();
    };
    begin(&mut agent, &spec).await;
    std::fs::remove_dir_all(agent.home.path().join("tasks")).unwrap();
    agent.start();
    eventually("the end of a stranger", async || containers_of(&spec).is_empty().then_some(())).await;

    let spec = shell("echo up; sleep 1000");
    let _cleanup = Cleanup(spec.clone());
    begin(&mut agent, &spec).await;
    let remove = |home: &Path, homes: &Path| {
        let mut command = Command::new(binary());
        command.arg("remove-containers").arg("--home").arg(home).arg("--homes-below").arg(homes);
        assert!(command.status().unwrap().success());
        containers_of(&spec).len()
    };
    let home = agent.home.path().canonicalize().unwrap();
    let (nobodys, homes) = (home.join("nobody"), home.parent().unwrap().to_owned());
    assert_eq!(remove(&nobodys, &homes), 1, "its agent may come back");
    assert_eq!(remove(&home, &nobodys), 0);
    assert_eq!(remove(&home, &nobodys), 0);

    let spec = shell("echo up; sleep 1000");
    let _cleanup = Cleanup(spec.clone());
    begin(&mut agent, &spec).await;
    std::fs::rename(&home, home.with_extension("gone")).unwrap();
    let mut command = Command::new(binary());
    command.arg("remove-containers").arg("--home").arg(&nobodys).arg("--homes-below").arg(&homes);
    assert!(command.status().unwrap().success());
    std::fs::rename(home.with_extension("gone"), &home).unwrap();
    assert!(containers_of(&spec).is_empty());
}

#[tokio::test]
async fn a_worker_that_the_kernel_ends_is_told_under_its_launcher() {
    if !enabled() {
        return;
    }
    if docker(&["info", "-f", "{{.MemoryLimit}}"]) != "true" {
        eprintln!("SKIPPED: the engine cannot limit memory");
        return;
    }
    let mut agent = agent();
    let mut spec = shell("python3 -c 'held = bytearray(500 << 20)'; echo the worker ended with $?; exit 1");
    spec.share.memory_bytes = Some(100 << 20);
    let _cleanup = Cleanup(spec.clone());
    let exit = agent.run(&spec).await.0.exit.unwrap();
    assert!(exit.oom_killed, "{exit:?}");
    let message = exit.message.unwrap();
    assert!(message.contains("want of memory") && message.contains("the worker ended with 137"), "{message}");
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

    /// Asks the engine to end, as a host's init system would.
    fn terminate(&self) {
        if let Some(child) = &self.child {
            let pid = nix::unistd::Pid::from_raw(child.id() as i32);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM);
        }
    }

    /// `kill -9`, and with the engine ends what it has started for itself, but not the containers.
    async fn kill(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        let file = self.dir.path().join("exec/containerd/containerd.pid");
        let read = || std::fs::read_to_string(&file).ok().filter(|pid| !pid.trim().is_empty());
        let pid = eventually("containerd", async || read()).await;
        let _ = child.kill();
        let _ = child.wait();
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
        self.terminate();
        if let Some(mut child) = self.child.take() {
            let end = Instant::now() + DEADLINE;
            while Instant::now() < end && child.try_wait().is_ok_and(|status| status.is_none()) {
                std::thread::park_timeout(Duration::from_millis(50));
            }
            let _ = child.kill();
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

#[tokio::test]
async fn a_job_that_ends_with_its_engine_is_told_while_the_engine_is_away() {
    if !enabled() {
        return;
    }
    let mut engine = OwnEngine::start();
    engine.wait().await;
    engine.load_image();
    let mut agent = Agent::with_env(&["--docker", "auto"], &[("DOCKER_HOST", &engine.host())]);
    let check = |state: TaskState| {
        let exit = state.exit.unwrap();
        assert_eq!(exit.reason, ExitReason::HostInterrupted, "{exit:?}");
        assert!(exit.message.unwrap().contains("live-restore"));
    };
    // One that would take all of its grace, which is longer than the engine's.
    let mut spec = shell("trap '' INT TERM; echo up; while true; do sleep 0.1; done");
    spec.stop_grace_secs = 300;
    edit(&mut spec).network = ContainerNetwork::Host;
    agent.put(&spec).await;
    agent.wait_for(&spec, "output", |state| state.log_end > 0).await;
    engine.terminate();
    check(agent.wait_sealed(&spec).await);
    let exit_file = agent.home.path().join(format!("tasks/{}/run/exit.json", spec.id));
    assert!(exists(&exit_file), "the supervisor had time for its last word");
    engine.child.take().unwrap().wait().unwrap();

    // One whose supervisor has no time for a last word.
    engine.run();
    engine.wait().await;
    let mut spec = shell("echo up; sleep 1000");
    edit(&mut spec).network = ContainerNetwork::Host;
    agent.put(&spec).await;
    agent.wait_for(&spec, "output", |state| state.log_end > 0).await;
    engine.kill().await;
    for process in processes_of(spec.id) {
        kill_process(process);
    }
    check(agent.wait_sealed(&spec).await);
    let exit_file = agent.home.path().join(format!("tasks/{}/run/exit.json", spec.id));
    assert!(!exists(&exit_file));
}

/// A node that is its own peer, and the file that its server's private key is in.
fn own_peer(text: &str, keys: &Path) -> TaskSpec {
    let make_key = |name: &str| {
        let path = keys.join(name);
        let mut keygen = Command::new("ssh-keygen");
        let made = keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", "x", "-f"]).arg(&path).status();
        assert!(made.unwrap().success());
        let read = |path: &Path| std::fs::read_to_string(path).unwrap();
        (read(&path), read(&path.with_extension("pub")))
    };
    let ((private_key, public), (host_key, host_public)) = (make_key("gang"), make_key("host"));
    let mut spec = shell(text);
    spec.released = false;
    spec.cluster.node_ips = vec!["127.0.0.1".to_owned(), "127.0.0.9".to_owned()];
    spec.cluster.gpus_per_node = vec![0, 0];
    spec.ssh = Some(SshServer {
        host_key,
        authorized_keys: vec![public],
        port: SSH_PORT,
        listen: SshListen::All,
        peer_address: None,
        required: true,
        over_host: None,
        keep_alive_secs: 30,
    });
    // A key may end with any letter, also that of its comment.
    let host_public = host_public.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
    spec.gang = Some(GangAccess { private_key, host_keys: vec![host_public.clone(), host_public], ports: vec![] });
    spec
}

#[tokio::test]
async fn opensshs_client_knows_the_nodes_beside_what_the_user_has_configured() {
    if !enabled() || std::env::var_os("DSTACK_TEST_SSH").is_none() {
        return;
    }
    let mut agent = agent();
    let keys = tempfile::tempdir().unwrap();
    let text = "ssh 127.0.0.1 'echo rank $DSTACK_NODE_RANK of $DSTACK_NODES_NUM'; \
                ssh -G elsewhere | grep -x -e 'port 77' -e 'user ann'; ssh -G 127.0.0.1 | grep '^port'; \
                cd ~/.ssh; stat -c '%a %U %n' config dstack_job; echo ${OMPI_MCA_plm_rsh_agent-unset}";
    let mut spec = own_peer(text, keys.path());
    let home = agent.home.path().join("root");
    std::fs::create_dir_all(home.join(".ssh")).unwrap();
    std::fs::write(home.join(".ssh/config"), "Port 77\nHost elsewhere\n  User ann\n").unwrap();
    edit(&mut spec).mounts =
        vec![InstanceMount { instance_path: home.to_string_lossy().into_owned(), path: "/root".to_owned() }];
    let _cleanup = Cleanup(spec.clone());
    agent.put(&spec).await;
    agent.wait_for(&spec, "ready", |state| state.phase == TaskPhase::Ready).await;
    agent.go(&spec, &[SSH_PORT, 0]).await;
    let log = agent.read_log(spec.id, 0).await;
    let expected = "rank 0 of 2\nuser ann\nport 77\nport 10022\n644 root config\n600 root dstack_job\nunset\n";
    assert_eq!(support::text(&log.bytes), expected);
    assert_eq!(agent.wait_sealed(&spec).await.warnings, Vec::<String>::new());
    let config = std::fs::read_to_string(home.join(".ssh/config")).unwrap();
    assert!(config.ends_with("\nPort 77\nHost elsewhere\n  User ann\n"), "{config}");
}

#[tokio::test]
async fn users_without_a_home_have_our_own_client_and_are_told_so() {
    if !enabled() || std::env::var_os("DSTACK_TEST_SSH").is_none() {
        return;
    }
    let mut agent = agent();
    let keys = tempfile::tempdir().unwrap();
    let text = "id -un; $OMPI_MCA_plm_rsh_agent 127.0.0.1 'echo rank $DSTACK_NODE_RANK as $(id -un)'; \
                dstack-ssh 127.0.0.9 true";
    let mut spec = own_peer(text, keys.path());
    spec.user = Some("nobody".to_owned());
    let _cleanup = Cleanup(spec.clone());
    agent.put(&spec).await;
    agent.wait_for(&spec, "ready", |state| state.phase == TaskPhase::Ready).await;
    agent.go(&spec, &[SSH_PORT, 0]).await;
    let log = agent.read_log(spec.id, 0).await;
    let expected = "nobody\nrank 0 as nobody\nssh: the node 127.0.0.9 has no SSH server; the warnings of its job say \
                    why\n";
    assert_eq!(support::text(&log.bytes), expected);
    let warnings = agent.wait_sealed(&spec).await.warnings;
    let told = "the user `nobody` has no home directory, so `ssh` does not know the gang's nodes; `dstack-ssh` does, \
                and launchers of MPI use it";
    assert_eq!(warnings, [told]);
}
