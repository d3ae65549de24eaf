//! A real server with real agents in a private directory, and command lines that speak to it.
//!
//! The programs are named by `DSTACK_TEST_*` variables, which `cargo xtask test` sets. Where they are unset, a test
//! says so and leaves itself out.

#![expect(clippy::disallowed_methods, reason = "these tests drive real programs in real time")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::hash::{BuildHasher as _, RandomState};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{env, thread};

use serde_json::Value;
use tempfile::TempDir;

/// The token of the server's admin.
pub(crate) const TOKEN: &str = "real-test-token";

/// The image that `cargo xtask test` makes, by a name that does not move, so that nobody looks for a newer one.
pub(crate) const IMAGE: &str = "dstack-test:pinned";

/// How long one command may take. Generous, because other tests use the same cores.
const COMMAND: Duration = Duration::from_mins(2);

/// How often a condition is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Two nodes that are small enough for every machine.
pub(crate) const FLEET: &str = "
type: fleet
name: pair
nodes: 2
placement: cluster
resources: {cpu: 1.., memory: 256MB.., disk: 1GB..}
";

/// The ports of our servers. Who asks for any port is given a higher one, so that nobody takes a server's port while
/// the server is away.
const PORTS: Range<u16> = 15_000..32_000;

/// What a server is started with beside the usual.
#[derive(Debug, Default)]
pub(crate) struct Setup {
    /// Its agents can also go into containers.
    pub(crate) containers: bool,
    /// Variables that the server sees and its users do not.
    pub(crate) variables: Vec<(&'static str, String)>,
}

/// A directory with a server, its agents and the homes of its users; all of it ends with the test.
#[derive(Debug)]
pub(crate) struct Rig {
    pub(crate) dir: PathBuf,
    dstack: PathBuf,
    agent: PathBuf,
    address: SocketAddr,
    variables: Vec<(&'static str, String)>,
    containers: bool,
    server: Option<Child>,
    // Removed when all processes are gone.
    _dir: TempDir,
}

/// The agent of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Agent {
    pub(crate) pid: u32,
    /// Where it keeps its tasks.
    pub(crate) home: PathBuf,
    /// The address of its node, for processes.
    pub(crate) address: String,
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) command: String,
    pub(crate) status: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Rig {
    /// Starts a server, or says why it cannot and answers nothing.
    pub(crate) fn start(test: &str) -> Option<Rig> {
        Rig::start_with(test, Setup::default())
    }

    /// Starts a server in a certain way.
    pub(crate) fn start_with(test: &str, setup: Setup) -> Option<Rig> {
        let mut rig = Rig::new(test, setup)?;
        rig.start_server();
        Some(rig)
    }

    /// Prepares everything and starts nothing.
    pub(crate) fn new(test: &str, setup: Setup) -> Option<Rig> {
        let dstack = program("DSTACK_TEST_DSTACK", test)?;
        let agent = program("DSTACK_TEST_AGENT", test)?;
        let agent = if setup.containers {
            program("DSTACK_TEST_DOCKER", test)?;
            let agent = program("DSTACK_TEST_AGENT_STATIC", test)?;
            pin_image();
            agent
        } else {
            agent
        };
        // Short names, because the paths of sockets may not be long.
        let temporary =
            tempfile::Builder::new().prefix("dr").tempdir().expect("the temporary directory is writable");
        let dir = temporary.path().to_owned();
        fs::create_dir(dir.join("home")).unwrap();
        let address = free_address();
        let Setup { containers, variables } = setup;
        Some(Rig { dir, dstack, agent, address, variables, containers, server: None, _dir: temporary })
    }

    /// Starts the server, which must not run, and waits until it answers.
    #[track_caller]
    pub(crate) fn start_server(&mut self) {
        assert!(self.start_doomed_server(), "the server ended at once");
    }

    /// Starts the server, which must not run, and waits until it answers or has ended. True: it answers.
    pub(crate) fn start_doomed_server(&mut self) -> bool {
        assert!(self.server.is_none(), "the server runs already");
        let file = |name: &str| File::options().create(true).append(true).open(self.dir.join(name)).unwrap();
        let port = self.address.port().to_string();
        let mut command = self.cli(&["server", "--port", &port, "-y"]);
        // Not on the command line, which everybody can read.
        command.env("DSTACK_SERVER_ADMIN_TOKEN", TOKEN);
        command.envs(self.variables.iter().map(|(name, value)| (*name, value)));
        // The log is for everybody; what is said to who starts the server tells the token.
        command.stdin(Stdio::null()).stdout(file("server.out")).stderr(file("server.log"));
        self.server = Some(command.spawn().expect("start the server"));
        wait_for("the server's first answer", Duration::from_mins(1), || {
            if self.server_ended() { Some(false) } else { self.is_healthy().then_some(true) }
        })
    }

    /// Lets the next servers die at the point that is written into this file.
    pub(crate) fn doom_server(&mut self) -> PathBuf {
        let order = self.dir.join("crash-order");
        self.variables.push(("DSTACK_TEST_CRASH_ORDER", order.display().to_string()));
        order
    }

    /// Starts the server again without an order to die.
    pub(crate) fn restart_server_in_peace(&mut self, order: &Path) {
        let _taken_already = fs::remove_file(order);
        if !self.server_ended() {
            self.kill_server();
        }
        self.start_server();
    }

    /// Whether the server runs no more, for whatever reason.
    pub(crate) fn server_ended(&mut self) -> bool {
        let ended = self.server.as_mut().is_none_or(|server| server.try_wait().unwrap().is_some());
        if ended {
            self.server = None;
        }
        ended
    }

    /// Kills the server as a power cut would.
    pub(crate) fn kill_server(&mut self) {
        let mut server = self.server.take().expect("the server runs");
        server.kill().unwrap();
        server.wait().unwrap();
    }

    fn is_healthy(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(self.address) else { return false };
        let request = "GET /healthcheck HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let mut answer = String::new();
        stream.write_all(request.as_bytes()).is_ok()
            && stream.read_to_string(&mut answer).is_ok()
            && answer.starts_with("HTTP/1.1 200")
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Our command line, as the user who started the server.
    pub(crate) fn cli(&self, args: &[&str]) -> Command {
        let mut command = self.command(&self.dstack, "home");
        command.args(args).env("DSTACK_SERVER_DIR", self.dir.join("s"));
        command.env("DSTACK_AGENT_BINARY", &self.agent);
        command
    }

    /// Some program with a home of its own in the private directory.
    pub(crate) fn command(&self, program: &Path, home: &str) -> Command {
        let mut command = Command::new(program);
        // Whatever is set for another server must not matter.
        for (name, _) in env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"DSTACK_")) {
            command.env_remove(name);
        }
        command.current_dir(&self.dir).env("HOME", self.dir.join(home));
        command.env("COLUMNS", "250").env("DSTACK_TEST_RIG", &self.dir);
        command
    }

    /// Runs our command line to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Ended {
        end(&mut self.cli(args))
    }

    /// Puts a file where commands run.
    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.join(name), text).unwrap();
    }

    /// Applies a configuration and expects it to end well.
    pub(crate) fn apply(&self, name: &str, text: &str, flags: &[&str]) -> Ended {
        self.write(name, text);
        self.run(&[&["apply", "-f", name, "-y"], flags].concat()).expect_status(0)
    }

    /// A run, as the API says it.
    #[track_caller]
    pub(crate) fn get_run(&self, run: &str) -> Value {
        let got = self.run(&["run", "get", run, "--json"]).expect_status(0);
        serde_json::from_slice(&got.stdout).expect("`--json` prints JSON")
    }

    /// The status of a run.
    #[track_caller]
    pub(crate) fn run_status(&self, run: &str) -> String {
        self.get_run(run)["status"].as_str().expect("a run has a status").to_owned()
    }

    /// How often each job of a run was tried.
    pub(crate) fn submissions(&self, run: &str) -> Vec<usize> {
        let run = self.get_run(run);
        let jobs = run["jobs"].as_array().expect("a run has jobs");
        jobs.iter().map(|job| job["job_submissions"].as_array().expect("a job was submitted").len()).collect()
    }

    /// The last try of a node of a run.
    pub(crate) fn submission(&self, run: &str, node: usize) -> Value {
        let run = self.get_run(run);
        let tries = run["jobs"][node]["job_submissions"].as_array().expect("the node was submitted");
        tries.last().expect("the node was submitted").clone()
    }

    /// What a node of a run has written, byte by byte.
    #[track_caller]
    pub(crate) fn log(&self, run: &str, node: usize) -> Vec<u8> {
        self.run(&["logs", run, "--job", &node.to_string()]).expect_status(0).stdout
    }

    /// Waits until a run has a status.
    #[track_caller]
    pub(crate) fn wait_for_status(&self, run: &str, status: &str) {
        let mut last = String::new();
        let what = format!("`{status}` of run `{run}`");
        wait_for(&what, Duration::from_mins(2), || {
            last = self.run_status(run);
            let is_over = ["done", "failed", "terminated"].contains(&last.as_str());
            assert!(!is_over || last == status, "run `{run}` is `{last}` and will not be `{status}`");
            (last == status).then_some(())
        });
    }

    /// The agents that run, in the order of their addresses.
    pub(crate) fn agents(&self) -> Vec<Agent> {
        let mut agents: Vec<Agent> =
            self.processes(&["dstack-agent", " host "]).into_iter().filter_map(agent).collect();
        // 127.0.0.10 comes after 127.0.0.9.
        agents.sort_by_key(|agent| agent.address.parse::<Ipv4Addr>().ok());
        agents
    }

    /// Waits until as many agents run.
    pub(crate) fn wait_for_agents(&self, count: usize) -> Vec<Agent> {
        wait_for("all agents", Duration::from_mins(1), || {
            let agents = self.agents();
            (agents.len() == count).then_some(agents)
        })
    }

    /// Processes whose command line has all of these words.
    pub(crate) fn processes(&self, words: &[&str]) -> Vec<u32> {
        let members = members(&self.dir).into_iter();
        members
            .filter(|pid| {
                let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let line = String::from_utf8_lossy(&line).replace('\0', " ");
                words.iter().all(|word| line.contains(word))
            })
            .collect()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = fs::read_to_string(self.dir.join("server.log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("the server's last lines:\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
        }
        if let Some(mut server) = self.server.take() {
            let _gone_already = server.kill();
            let _status = server.wait();
        }
        // Agents and jobs have left our process group, but not our environment.
        let deadline = Instant::now() + Duration::from_secs(10);
        while !members(&self.dir).is_empty() && Instant::now() < deadline {
            for pid in members(&self.dir) {
                kill(pid, "KILL");
            }
            thread::sleep(LOOK_AGAIN);
        }
        if self.containers {
            self.remove_containers();
        }
    }
}

impl Rig {
    /// Removes what is left in the engine: containers, which outlive their agents, and the server's network, whose
    /// addresses another server might want.
    fn remove_containers(&self) {
        let docker = |args: &[&str]| {
            let mut command = self.command(Path::new("docker"), "home");
            command.envs(self.variables.iter().map(|(name, value)| (*name, value)));
            end(command.args(args)).text()
        };
        let mut networks = BTreeSet::new();
        for launch in entries(&self.dir.join("s/data/backends/local/machines")) {
            for machine in entries(&launch) {
                for task in entries(&machine.join("agent/tasks")) {
                    let id = task.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    let found = docker(&["ps", "-aq", "--filter", &format!("label=ai.dstack.task-id={id}")]);
                    for container in found.split_whitespace() {
                        docker(&["rm", "--force", "--volumes", container]);
                    }
                }
                let record = fs::read(machine.join("machine.json")).unwrap_or_default();
                let record: Value = serde_json::from_slice(&record).unwrap_or_default();
                networks.extend(record["container_network"]["name"].as_str().map(str::to_owned));
            }
        }
        for network in networks {
            docker(&["network", "rm", &network]);
        }
    }
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

impl Ended {
    /// Fails the test unless the command ended so.
    #[track_caller]
    pub(crate) fn expect_status(self, status: i32) -> Ended {
        assert_eq!(
            self.status,
            Some(status),
            "`{}` ended otherwise\n--- stdout\n{}\n--- stderr\n{}",
            self.command,
            self.text(),
            self.stderr
        );
        self
    }

    /// Standard output as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// Runs a command to its end; one that does not end is killed and has no status.
pub(crate) fn end(command: &mut Command) -> Ended {
    let line = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("start {line}: {error}"));
    let mut stdout = child.stdout.take().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let (stdout, stderr, status) = thread::scope(|scope| {
        let stdout = scope.spawn(move || {
            let mut bytes = Vec::new();
            stdout.read_to_end(&mut bytes).map(|_| bytes).unwrap_or_default()
        });
        let stderr = scope.spawn(move || {
            let mut bytes = Vec::new();
            stderr.read_to_end(&mut bytes).map(|_| bytes).unwrap_or_default()
        });
        let deadline = Instant::now() + COMMAND;
        let status = loop {
            match child.try_wait().unwrap() {
                Some(status) => break status.code(),
                None if deadline < Instant::now() => {
                    child.kill().unwrap();
                    child.wait().unwrap();
                    break None;
                }
                None => thread::sleep(LOOK_AGAIN),
            }
        };
        (stdout.join().unwrap(), stderr.join().unwrap(), status)
    });
    Ended { command: line, status, stdout, stderr: String::from_utf8_lossy(&stderr).into_owned() }
}

/// Waits until `look` finds what it looks for, and fails the test at the deadline.
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} did not happen within {} s", patience.as_secs());
        thread::sleep(LOOK_AGAIN);
    }
}

/// Reads what an agent was started with.
fn agent(pid: u32) -> Option<Agent> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let line = String::from_utf8(line).ok()?;
    let words: Vec<&str> = line.split('\0').collect();
    let value = |flag: &str| words.iter().position(|word| *word == flag).map(|at| words[at + 1].to_owned());
    Some(Agent { pid, home: value("--home")?.into(), address: value("--address")? })
}

/// An address that nobody uses just now.
pub(crate) fn free_address() -> SocketAddr {
    let first = RandomState::new().hash_one(0) % u64::from(PORTS.end - PORTS.start);
    let mut ports = PORTS.cycle().skip(first as usize).take(PORTS.len());
    let port = ports.find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok());
    SocketAddr::from((Ipv4Addr::LOCALHOST, port.expect("some port is free")))
}

/// Lets time pass, where a moment is chosen by chance or what must not happen is watched.
pub(crate) fn pause(time: Duration) {
    thread::sleep(time);
}

/// The time as `date +%s%N` tells it.
pub(crate) fn now_nanos() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is set").as_nanos()
}

/// What a terminal makes of `seq 1 COUNT`.
pub(crate) fn seq(count: u32) -> String {
    (1..=count).flat_map(|number| [number.to_string(), "\r\n".to_owned()]).collect()
}

/// Sends a signal by the shell's own `kill`.
pub(crate) fn kill(pid: u32, signal: &str) {
    let mut command = Command::new("sh");
    command.args(["-c", "kill -s \"$0\" \"$1\"", signal, &pid.to_string()]);
    let _gone_already = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
}

/// A program that a variable names; a test without it leaves itself out.
pub(crate) fn program(variable: &str, test: &str) -> Option<PathBuf> {
    let path = env::var_os(variable).map(PathBuf::from);
    if path.is_none() {
        eprintln!("{test} is left out: {variable} is unset");
    }
    path
}

/// Gives the image of the tests its name that does not move.
#[track_caller]
pub(crate) fn pin_image() {
    end(Command::new("docker").args(["tag", "dstack-test:latest", IMAGE])).expect_status(0);
}

/// The processes that carry the directory in their environment or command line.
fn members(dir: &Path) -> BTreeSet<u32> {
    let needle = dir.as_os_str().as_encoded_bytes();
    let carries =
        |file: String| fs::read(file).is_ok_and(|text| text.windows(needle.len()).any(|window| window == needle));
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != process::id())
        .filter(|pid| carries(format!("/proc/{pid}/environ")) || carries(format!("/proc/{pid}/cmdline")))
        .collect()
}
