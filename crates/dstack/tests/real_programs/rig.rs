//! A real server with real agents in a private directory, and command lines that speak to it.
//!
//! The programs are named by `DSTACK_TEST_*` variables, which `cargo xtask test` sets. Where they are unset, a test
//! says so and leaves itself out.

#![expect(clippy::disallowed_methods, reason = "these tests drive real programs in real time")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{env, thread};

/// The token of the server's admin.
pub(crate) const TOKEN: &str = "real-test-token";

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

/// Each server has a directory of its own, also where tests share a process.
static COUNT: AtomicU32 = AtomicU32::new(0);

/// A directory with a server, its agents and the homes of its users; all of it ends with the test.
#[derive(Debug)]
pub(crate) struct Rig {
    pub(crate) dir: PathBuf,
    dstack: PathBuf,
    agent: PathBuf,
    address: SocketAddr,
    server: Option<Child>,
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
        Rig::start_with_agent("DSTACK_TEST_AGENT", test)
    }

    /// Starts a server whose agent is the program that a variable names.
    pub(crate) fn start_with_agent(variable: &str, test: &str) -> Option<Rig> {
        let dstack = program("DSTACK_TEST_DSTACK", test)?;
        let agent = program(variable, test)?;
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        // Short names, because the paths of sockets may not be long.
        let dir = env::temp_dir().join(format!("dr{}-{number}", process::id()));
        fs::create_dir_all(dir.join("home")).expect("the temporary directory is writable");
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut rig = Rig { dir, dstack, agent, address, server: None };
        rig.start_server();
        Some(rig)
    }

    /// Starts the server, which must not run, and waits until it answers.
    pub(crate) fn start_server(&mut self) {
        assert!(self.server.is_none(), "the server runs already");
        let log = File::options().create(true).append(true).open(self.dir.join("server.log")).unwrap();
        let port = self.address.port().to_string();
        let mut command = self.cli(&["server", "--port", &port, "--token", TOKEN, "-y"]);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.server = Some(command.spawn().expect("start the server"));
        wait_for("the server's first answer", Duration::from_mins(1), || self.is_healthy().then_some(()));
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

    /// The status of a run, as the API says it.
    pub(crate) fn run_status(&self, run: &str) -> String {
        let got = self.run(&["run", "get", run, "--json"]).expect_status(0);
        let run: serde_json::Value = serde_json::from_slice(&got.stdout).expect("`--json` prints JSON");
        run["status"].as_str().expect("a run has a status").to_owned()
    }

    /// Waits until a run has a status.
    pub(crate) fn wait_for_status(&self, run: &str, status: &str) {
        let what = format!("`{status}` of run `{run}`");
        wait_for(&what, Duration::from_mins(2), || (self.run_status(run) == status).then_some(()));
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
        let _leftovers = fs::remove_dir_all(&self.dir);
    }
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
