//! Hosts that are joined over SSH, with a real `sshd` and the real agent: an `sshd` of each test's own on this
//! machine, and folders of its own in place of the machine's.
//!
//! Skipped, and said so, where `DSTACK_TEST_SSHD` and `DSTACK_TEST_AGENT` do not name them. The tests are root, make
//! users, and mount small disks.

#![cfg(test)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use api::ids::{InstanceId, ServerId};
use nix::fcntl::{Flock, FlockArg};
use server::agents::hosts::{
    AgentProgram, HostAccess, JoinError, JoinStep, Joined, Left, Roots, join, leave, visit,
};
use server::clock::Clock;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use tunnel::{Key, Limits, Target};
use uuid::Uuid;

/// How long anything may take on a machine that does much else.
const PATIENCE: Duration = Duration::from_mins(1);

#[tokio::test]
async fn a_fresh_host_is_joined_found_again_and_left_as_it_was() {
    let Some(site) = Site::start("").await else { return };
    let access = site.access();
    let (joined, steps) = site.join(&access, &site.agent).await;
    let joined = joined.unwrap();
    assert_eq!(steps, [JoinStep::Connect, JoinStep::Check, JoinStep::Deliver, JoinStep::Start, JoinStep::Greet]);
    assert_eq!(joined.warnings, Vec::<String>::new());
    assert_eq!(joined.keys.keys().collect::<Vec<_>>(), [&access.target.address()]);
    let pid = site.agent_pid().unwrap();
    assert_eq!(environment(pid).get("TOKEN").map(String::as_str), Some("it's $HOME\nand more"));

    let mut known = access.clone();
    known.target.known_host = joined.keys.into_values().next();
    let (again, steps) = site.join(&known, &site.agent).await;
    again.unwrap();
    assert_eq!(steps, [JoinStep::Connect, JoinStep::Check, JoinStep::Greet]);
    assert_eq!(site.agent_pid(), Some(pid), "nothing was to be done");

    // Whoever was there before looks only when something is wrong.
    known.was_joined = true;
    let (again, steps) = site.join(&known, &site.agent).await;
    again.unwrap();
    assert_eq!(steps, [JoinStep::Connect, JoinStep::Greet]);
    assert_eq!(site.agent_pid(), Some(pid));
    let is_loop = |pid: &i32| arguments(*pid).iter().any(|word| word.ends_with("/loop"));
    processes_with(&site.state()).into_iter().filter(is_loop).for_each(kill);
    kill(pid);
    let (again, steps) = site.join(&known, &site.agent).await;
    again.unwrap();
    let all = [JoinStep::Connect, JoinStep::Greet, JoinStep::Check, JoinStep::Start, JoinStep::Greet];
    assert_eq!(steps, all);
    assert_ne!(site.agent_pid(), Some(pid));

    assert_eq!(leave(&known, &Clock::System).await, Ok(Left::Removed));
    assert_eq!(site.agent_pid(), None);
    assert!(!site.path("state").exists() && !site.path("programs").exists());
    assert_eq!(leave(&known, &Clock::System).await, Ok(Left::Nothing));
}

#[tokio::test]
async fn a_visit_finds_the_agent_of_whichever_instance_and_changes_nothing() {
    let Some(site) = Site::start("").await else { return };
    let access = site.access();
    assert!(visit(&access, &Clock::System).await.unwrap().is_none());
    assert!(!site.path("state").exists() && !site.path("programs").exists());
    site.join(&access, &site.agent).await.0.unwrap();
    let pid = site.agent_pid().unwrap();
    let stranger = HostAccess { instance: InstanceId(Uuid::nil()), others: BTreeSet::new(), ..access.clone() };
    assert!(visit(&stranger, &Clock::System).await.unwrap().is_some());
    assert_eq!(site.agent_pid(), Some(pid));
    // The one that joined it finds all as it was.
    let (again, steps) = site.join(&access, &site.agent).await;
    again.unwrap();
    assert_eq!(steps, [JoinStep::Connect, JoinStep::Check, JoinStep::Greet]);
    let other = HostAccess { server: ServerId(Uuid::from_u128(77)), ..access };
    assert!(visit(&other, &Clock::System).await.unwrap().is_none(), "an agent of another server is none of ours");
}

#[tokio::test]
async fn an_update_restarts_the_agent_and_keeps_the_program_before() {
    let Some(site) = Site::start("").await else { return };
    let access = site.access();
    let agent = fs::read(std::env::var_os("DSTACK_TEST_AGENT").unwrap()).unwrap();
    let mut pids = BTreeSet::new();
    for version in ["one", "two", "three"] {
        let program = site.program(version, &[&agent, version.as_bytes()].concat());
        let (joined, _) = site.join(&access, &program).await;
        joined.unwrap();
        pids.insert(site.agent_pid().unwrap());
    }
    assert_eq!(pids.len(), 3);
    assert_eq!(fs::read_dir(site.path("programs")).unwrap().count(), 2);
    // What it is told changes its start, too.
    let moved = HostAccess { address: Some("127.0.0.2".to_owned()), was_joined: true, ..access };
    let program = AgentProgram::new(site.path("three"));
    let (joined, steps) = site.join(&moved, &program).await;
    joined.unwrap();
    assert!(steps.contains(&JoinStep::Start) && !steps.contains(&JoinStep::Deliver), "{steps:?}");
}

#[tokio::test]
async fn a_program_that_does_not_work_gives_way_to_the_one_before() {
    let Some(site) = Site::start("").await else { return };
    let access = site.access();
    site.join(&access, &site.agent).await.0.unwrap();
    let broken =
        b"#!/bin/sh\n[ $1 = --version ] && echo dstack-agent 9 && exit\necho this is no agent >&2\nsleep 1\nexit 3\n";
    let broken = site.program("broken", broken);
    let error = site.join(&access, &broken).await.0.unwrap_err();
    assert_eq!((error.step, error.is_final), (JoinStep::Start, false), "{error}");
    assert!(error.message.contains("the one before runs again"), "{error}");
    assert!(error.message.contains("this is no agent"), "{error}");
    let pid = site.agent_pid().unwrap();
    let (joined, steps) = site.join(&access, &site.agent).await;
    joined.unwrap();
    assert!(!steps.contains(&JoinStep::Start), "{steps:?}");
    assert_eq!(site.agent_pid(), Some(pid));
}

#[tokio::test]
async fn a_program_that_does_not_start_touches_nothing_and_is_tried_three_times() {
    let Some(site) = Site::start("").await else { return };
    let access = site.access();
    let unfit = site.program("unfit", b"#!/bin/sh\necho this is no agent >&2\nexit 3\n");
    let error = site.join(&access, &unfit).await.0.unwrap_err();
    assert!(error.message.contains("does not start: this is no agent"), "{error}");
    assert!(processes_with(&site.state()).is_empty());
    site.join(&access, &site.agent).await.0.unwrap();
    let pid = site.agent_pid();
    for _ in 0..2 {
        let error = site.join(&access, &unfit).await.0.unwrap_err();
        assert!(error.message.contains("was not updated"), "{error}");
    }
    let (joined, steps) = site.join(&access, &unfit).await;
    assert!(joined.unwrap().warnings[0].contains("keeps the agent that it has"));
    assert_eq!(steps, [JoinStep::Connect, JoinStep::Check, JoinStep::Greet]);
    assert_eq!(site.agent_pid(), pid);
}

#[tokio::test]
async fn an_agent_that_is_killed_comes_back() {
    let Some(site) = Site::start("").await else { return };
    site.join(&site.access(), &site.agent).await.0.unwrap();
    let pid = site.agent_pid().unwrap();
    kill(pid);
    eventually("the agent is back", || site.agent_pid().is_some_and(|other| other != pid)).await;
    // And when whatever starts it again is killed as well, by the next join.
    for process in processes_with(&site.state()) {
        kill(process);
    }
    eventually("the agent is gone", || site.agent_pid().is_none()).await;
    let (joined, steps) = site.join(&site.access(), &site.agent).await;
    joined.unwrap();
    assert!(!steps.contains(&JoinStep::Deliver), "{steps:?}");
}

#[tokio::test]
async fn what_was_cut_off_or_damaged_is_repaired_by_the_next_join() {
    let Some(site) = Site::start("").await else { return };
    let access = site.access();
    site.join(&access, &site.agent).await.0.unwrap();
    let program = fs::read_dir(site.path("programs")).unwrap().next().unwrap().unwrap().path();
    let damages: [(&str, &dyn Fn()); 4] = [
        ("the record", &|| fs::remove_file(site.state().join("installed")).unwrap()),
        ("the start", &|| fs::write(site.state().join("start"), "exit 1\n").unwrap()),
        ("the stop", &|| fs::write(site.state().join("stop"), "").unwrap()),
        ("the program", &|| {
            fs::remove_file(&program).unwrap();
            fs::write(&program, "half of it").unwrap();
        }),
    ];
    for (what, damage) in damages {
        damage();
        let joined = site.join(&access, &site.agent).await.0;
        joined.unwrap_or_else(|error| panic!("{what}: {error}"));
    }
}

#[tokio::test]
async fn a_host_of_another_instance_is_cleaned_unless_that_one_is_wanted() {
    let Some(site) = Site::start("").await else { return };
    let first = site.access();
    site.join(&first, &site.agent).await.0.unwrap();
    let trace = site.state().join("home/trace");
    fs::write(&trace, "").unwrap();
    let second = HostAccess { instance: Uuid::from_u128(8).into(), ..first.clone() };
    let wanted = HostAccess { others: BTreeSet::from([first.instance]), ..second.clone() };
    let error = site.join(&wanted, &site.agent).await.0.unwrap_err();
    assert!(error.is_final && error.message.contains("a host belongs to one fleet"), "{error}");
    assert!(trace.exists());
    site.join(&second, &site.agent).await.0.unwrap();
    assert!(!trace.exists());
}

#[tokio::test]
async fn a_host_of_another_server_is_refused_until_that_one_is_removed() {
    let Some(site) = Site::start("").await else { return };
    let first = site.access();
    site.join(&first, &site.agent).await.0.unwrap();
    let second = HostAccess { server: Uuid::from_u128(2).into(), ..first.clone() };
    let error = site.join(&second, &site.agent).await.0.unwrap_err();
    assert!(error.is_final && error.message.contains(&first.server.to_string()), "{error}");
    // As the message says.
    run("sh", &[site.state().join("remove").to_str().unwrap()]);
    site.join(&second, &site.agent).await.0.unwrap();
    assert_eq!(leave(&second, &Clock::System).await, Ok(Left::Removed));
}

#[tokio::test]
async fn leaving_ends_what_still_runs_of_a_job() {
    let Some(site) = Site::start("").await else { return };
    let access = site.access();
    site.join(&access, &site.agent).await.0.unwrap();
    let job = "6a0e7a3c-6b5d-4f8e-9c1a-3f2b1d4e5f60";
    fs::create_dir_all(site.state().join("home/tasks").join(job)).unwrap();
    let mut process = Command::new("sleep").arg("600").env("DSTACK_JOB_ID", job).spawn().unwrap();
    assert_eq!(leave(&access, &Clock::System).await, Ok(Left::Removed));
    assert!(!process.wait().unwrap().success());
}

#[tokio::test]
async fn a_user_without_rights_is_told_what_to_do() {
    let Some(site) = Site::start("").await else { return };
    let user = User::new("/bin/sh");
    let error = site.join(&site.access_of(&user), &site.agent).await.0.unwrap_err();
    assert!(error.is_final && error.step == JoinStep::Check);
    assert!(error.message.contains("asks for a password"), "{error}");
    assert!(error.message.contains(&format!("`{} ALL=(ALL) NOPASSWD: ALL`", user.name)), "{error}");
}

#[tokio::test]
async fn sudo_with_a_terminal_one_session_and_a_strange_shell_are_enough() {
    let Some(site) = Site::start("MaxSessions 1\nAllowTcpForwarding no").await else { return };
    let user = User::new("/usr/bin/fish");
    user.sudo("Defaults:% use_pty\n% ALL=(ALL) NOPASSWD: ALL");
    let access = site.access_of(&user);
    site.join(&access, &site.agent).await.0.unwrap();
    let pid = site.agent_pid().unwrap();
    let (joined, _) = site.join(&access, &site.agent).await;
    assert_eq!(site.agent_pid(), Some(pid));
    drop(joined.unwrap());
    assert_eq!(leave(&access, &Clock::System).await, Ok(Left::Removed));
    assert_eq!(site.agent_pid(), None);
}

#[tokio::test]
async fn the_docker_group_is_enough() {
    let Some(site) = Site::start("").await else { return };
    if !fs::read_to_string("/etc/group").unwrap().lines().any(|line| line.starts_with("docker:")) {
        eprintln!("SKIPPED: there is no group `docker`");
        return;
    }
    let user = User::new("/bin/sh");
    run("usermod", &["-aG", "docker", &user.name]);
    let access = site.access_of(&user);
    site.join(&access, &site.agent).await.0.unwrap();
    let state = user.home.join(".dstack/agent").join(access.server.to_string());
    assert!(state.join("installed").exists());
    assert!(!site.path("state").exists());
    assert_eq!(leave(&access, &Clock::System).await, Ok(Left::Removed));
    assert!(!user.home.join(".dstack/agent").exists());
    assert!(processes_with(&state).is_empty());
}

#[tokio::test]
async fn full_disks_are_named() {
    let Some(site) = Site::start("").await else { return };
    let access = site.access();
    for (folder, size) in [("programs", "1m"), ("state", "16k")] {
        let disk = Disk::mount(&site.path(folder), size);
        if folder == "state" {
            let mut file = File::create(site.path("state/filler")).unwrap();
            while file.write_all(&[0; 1024]).is_ok() {}
        }
        let error = site.join(&access, &site.agent).await.0.unwrap_err();
        assert!(error.message.contains(&format!("the disk of `{}` is full", access.target.address())), "{error}");
        assert!(!error.is_final);
        drop(disk);
    }
    site.join(&access, &site.agent).await.0.unwrap();
}

#[tokio::test]
async fn a_host_that_does_not_answer_may_come_back_and_one_with_another_key_is_refused() {
    let Some(site) = Site::start("").await else { return };
    let mut access = site.access();
    let (joined, _) = site.join(&access, &site.agent).await;
    access.target.known_host = joined.unwrap().keys.into_values().next();
    let other = Site::start("").await.unwrap();
    access.target.port = other.port;
    access.target.keys.clone_from(&other.access().target.keys);
    let error = site.join(&access, &site.agent).await.0.unwrap_err();
    assert!(error.is_final && error.message.contains("has changed"), "{error}");
    assert!(matches!(leave(&access, &Clock::System).await, Ok(Left::HostGone(_))));
    access.target.port = free_port();
    let error = site.join(&access, &site.agent).await.0.unwrap_err();
    assert_eq!((error.step, error.is_final), (JoinStep::Connect, false), "{error}");
}

#[tokio::test]
async fn a_clock_that_is_wrong_is_told_of() {
    let Some(site) = Site::start("").await else { return };
    let clock = Clock::manual(jiff::Timestamp::UNIX_EPOCH);
    let joined = join(&site.access(), &site.agent, &clock, &|_| ()).await.unwrap();
    assert!(joined.warnings.iter().any(|warning| warning.contains("s ahead")), "{:?}", joined.warnings);
}

/// A host, and a server's view of it.
struct Site {
    dir: TempDir,
    port: u16,
    sshd: Child,
    key: Key,
    server: ServerId,
    agent: AgentProgram,
}

impl Site {
    /// A host with more settings of its `sshd`; none where there is nothing to test with.
    async fn start(settings: &str) -> Option<Site> {
        let (Some(sshd), Some(agent)) =
            (std::env::var_os("DSTACK_TEST_SSHD"), std::env::var_os("DSTACK_TEST_AGENT"))
        else {
            eprintln!("SKIPPED: set DSTACK_TEST_SSHD and DSTACK_TEST_AGENT to join hosts");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        // The server insists on this folder, which the package makes when its service starts.
        fs::create_dir_all("/run/sshd").unwrap();
        for name in ["host_key", "login"] {
            let path = dir.path().join(name);
            run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", path.to_str().unwrap()]);
        }
        let key = Key::parse("login", &fs::read_to_string(dir.path().join("login")).unwrap()).unwrap();
        let (sshd, port) = launch(Path::new(&sshd), dir.path(), settings).await;
        let server = ServerId::from(Uuid::from_u128(1));
        Some(Site { dir, port, sshd, key, server, agent: AgentProgram::new(agent) })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn state(&self) -> PathBuf {
        self.path("state").join(self.server.to_string())
    }

    fn access(&self) -> HostAccess {
        let mut target = Target::new("127.0.0.1", "root", vec![self.key.clone()]);
        target.port = self.port;
        let folder = |name: &str| self.path(name).display().to_string();
        let units = folder("units");
        HostAccess {
            target,
            limits: Limits { connect: PATIENCE, dead_after: PATIENCE, open: PATIENCE, ..Limits::default() },
            instance: InstanceId::from(Uuid::from_u128(7)),
            server: self.server,
            address: Some("127.0.0.1".to_owned()),
            cloud: None,
            first_start: None,
            known_keys: BTreeMap::new(),
            env: BTreeMap::from([("TOKEN".to_owned(), "it's $HOME\nand more".to_owned())]),
            others: BTreeSet::new(),
            was_joined: false,
            roots: Roots { programs: folder("programs"), state: folder("state"), units, ..Roots::default() },
        }
    }

    fn access_of(&self, user: &User) -> HostAccess {
        let mut access = self.access();
        access.target.user.clone_from(&user.name);
        access
    }

    /// Also gives the steps.
    async fn join(
        &self,
        access: &HostAccess,
        program: &AgentProgram,
    ) -> (Result<Joined, JoinError>, Vec<JoinStep>) {
        let steps = Mutex::new(Vec::new());
        let told = |step| steps.lock().unwrap().push(step);
        let joined = join(access, program, &Clock::System, &told).await;
        (joined, steps.into_inner().unwrap())
    }

    fn program(&self, name: &str, bytes: &[u8]) -> AgentProgram {
        fs::write(self.path(name), bytes).unwrap();
        AgentProgram::new(self.path(name))
    }

    fn agent_pid(&self) -> Option<i32> {
        let is_agent = |pid: &i32| arguments(*pid).get(1).is_some_and(|role| role == "host");
        let mut found: Vec<i32> = processes_with(&self.state()).into_iter().filter(is_agent).collect();
        // A program that the agent is about to start has its arguments for a moment.
        let agents = found.clone();
        found.retain(|pid| parent(*pid).is_none_or(|parent| !agents.contains(&parent)));
        assert!(found.len() <= 1, "several agents run: {found:?}");
        found.first().copied()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // What starts agents goes first.
        let _ = fs::write(self.state().join("stop"), "");
        for state in fs::read_dir(self.path("state")).into_iter().flatten().flatten() {
            let mut processes = processes_with(&state.path());
            processes.sort_by_key(|pid| !arguments(*pid).iter().any(|word| word.ends_with("/loop")));
            processes.into_iter().for_each(kill);
        }
        let _ = self.sshd.kill();
        let _ = self.sshd.wait();
    }
}

async fn launch(program: &Path, dir: &Path, settings: &str) -> (Child, u16) {
    for _ in 0..5 {
        let port = free_port();
        let dir_text = dir.display();
        // Of two settings, the first counts. Root gets a home of its own, because shells run what this machine's begins
        // with: that may wait for a lock which a command that was cut has left.
        let config = format!(
            "{settings}\nPort {port}\nListenAddress 127.0.0.1\nHostKey {dir_text}/host_key\nPidFile none\n\
             AuthorizedKeysFile {dir_text}/login.pub\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n\
             KbdInteractiveAuthentication no\nPermitRootLogin yes\nMaxStartups 100\n\
             Match User root\nSetEnv HOME={dir_text}\n"
        );
        fs::write(dir.join("config"), config).unwrap();
        let log = File::create(dir.join("log")).unwrap();
        let mut server = Command::new(program);
        server.args(["-D", "-e", "-f"]).arg(dir.join("config")).stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = server.stderr(log).spawn().unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                return (child, port);
            }
            // Somebody else may have taken the port meanwhile.
            if child.try_wait().unwrap().is_some() {
                break;
            }
            assert!(Instant::now() < deadline, "the server does not start");
            sleep(Duration::from_millis(10)).await;
        }
    }
    panic!("the server does not start: {}", fs::read_to_string(dir.join("log")).unwrap());
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// The processes with this folder in their arguments, but for those of a connection.
fn processes_with(folder: &Path) -> Vec<i32> {
    let folder = folder.to_str().unwrap();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_ours = |pid: &i32| {
        let arguments = arguments(*pid);
        let names = |word: &String| word.starts_with(folder);
        arguments.iter().any(names) && !arguments.iter().any(|word| word == "connect")
    };
    pids.filter(is_ours).collect()
}

fn parent(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

fn arguments(pid: i32) -> Vec<String> {
    words(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default())
}

fn environment(pid: i32) -> BTreeMap<String, String> {
    let variables = words(&fs::read(format!("/proc/{pid}/environ")).unwrap());
    variables.iter().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

fn words(bytes: &[u8]) -> Vec<String> {
    bytes.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

fn kill(pid: i32) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
}

/// A small disk, until it is dropped.
struct Disk(PathBuf);

impl Disk {
    fn mount(path: &Path, size: &str) -> Disk {
        fs::create_dir_all(path).unwrap();
        run("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "none", path.to_str().unwrap()]);
        Disk(path.to_owned())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        run("umount", &["-l", self.0.to_str().unwrap()]);
    }
}

/// A user of this machine, until it is dropped.
struct User {
    name: String,
    home: PathBuf,
    _dir: TempDir,
}

static USERS: AtomicU16 = AtomicU16::new(0);

impl User {
    fn new(shell: &str) -> User {
        let _lock = users_lock();
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let home = dir.path().join("home");
        let name = format!("dstack-h{}-{}", std::process::id(), USERS.fetch_add(1, Ordering::Relaxed));
        let home_text = home.to_str().unwrap();
        // This password fits nothing, but the account is not locked.
        run(
            "useradd",
            &[
                "-p",
                "*",
                "-K",
                "MAIL_DIR=/nonexistent",
                "-m",
                "-k",
                "/nonexistent",
                "-d",
                home_text,
                "-s",
                shell,
                &name,
            ],
        );
        User { name, home, _dir: dir }
    }

    /// Says what the user may do with `sudo`. `%` stands for the name.
    fn sudo(&self, rules: &str) {
        let path = Path::new("/etc/sudoers.d").join(&self.name);
        fs::write(&path, rules.replace('%', &self.name) + "\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o440)).unwrap();
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let _lock = users_lock();
        let _ = fs::remove_file(Path::new("/etc/sudoers.d").join(&self.name));
        let _ = Command::new("userdel").args(["-f", &self.name]).stderr(Stdio::null()).status();
    }
}

/// Only one at a time may change the list of users.
fn users_lock() -> Flock<File> {
    let path = std::env::temp_dir().join("dstack-test-users.lock");
    Flock::lock(File::create(path).unwrap(), FlockArg::LockExclusive).unwrap()
}
