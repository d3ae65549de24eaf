//! A server of our own in a sandbox, and the command line beside it. The user's own files stay untouched.

use std::fs::{self, File};
use std::hash::{BuildHasher as _, RandomState};
use std::net::{SocketAddr, TcpListener};
use std::ops::Range;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::http::Client;
use crate::sandbox::Sandbox;
use crate::shell;
use crate::workspace::{self, Programs};

/// How long a server may take to answer.
const START: Duration = Duration::from_mins(1);

/// How long a server may take to end.
const STOP: Duration = Duration::from_secs(30);

/// The ports that servers are given.
const PORTS: Range<u16> = 15_000..32_000;

/// How many lines of the log are shown when something fails.
const LOG_TAIL: usize = 60;

/// The token of the server's admin.
pub(crate) const TOKEN: &str = "sandbox-admin-token";

/// A place for a server: its files, its port and its users' home.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    sandbox: &'a Sandbox,
    pub(crate) programs: Programs,
    pub(crate) home: PathBuf,
    server_dir: PathBuf,
    pub(crate) address: SocketAddr,
    log: PathBuf,
    /// For the server and the command line.
    variables: Vec<(&'static str, String)>,
}

/// A running server.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
}

impl<'a> Place<'a> {
    pub(crate) fn new(sandbox: &'a Sandbox, name: &str, programs: &Programs) -> Result<Place<'a>> {
        let dir = sandbox.subdir(name)?;
        let home = sandbox.subdir(&format!("{name}/home"))?;
        Ok(Place {
            sandbox,
            programs: programs.clone(),
            home,
            server_dir: sandbox.short_subdir()?,
            address: free_address()?,
            log: dir.join("server.log"),
            variables: Vec::new(),
        })
    }

    /// Sets a variable for all that is started from now on.
    pub(crate) fn set(&mut self, name: &'static str, value: String) {
        self.variables.push((name, value));
    }

    /// Writes what the server's administrator wants.
    pub(crate) fn write_config(&self, text: &str) -> Result<()> {
        fs::write(self.server_dir.join("config.yml"), text).context("write the server's configuration")
    }

    /// The command line, as the only user of this place.
    pub(crate) fn cli(&self, args: &[&str]) -> Command {
        let mut command = self.sandbox.command(&self.programs.dstack);
        command.args(args).current_dir(workspace::root()).env("HOME", &self.home);
        command.env("DSTACK_SERVER_DIR", &self.server_dir);
        command.env("DSTACK_AGENT_BINARY", &self.programs.agent);
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    /// The command that starts the server.
    pub(crate) fn server_command(&self) -> Command {
        let port = self.address.port().to_string();
        self.cli(&["server", "--port", &port, "--token", TOKEN, "-y"])
    }

    /// Starts the server and waits until it answers.
    pub(crate) fn start(&self) -> Result<Server> {
        let log = File::options().create(true).append(true).open(&self.log).context("open the server's log")?;
        let mut command = self.server_command();
        command.stdout(log.try_clone()?).stderr(log).stdin(std::process::Stdio::null());
        let child = command.spawn().context("start the server")?;
        let mut server = Server { child };
        let answers = shell::wait_for("the server's first answer", START, || match server.child.try_wait() {
            Ok(None) => self.is_healthy().then_some(true),
            _ => Some(false),
        })?;
        if !answers {
            bail!("the server ended at once");
        }
        Ok(server)
    }

    /// Whether the server answers.
    pub(crate) fn is_healthy(&self) -> bool {
        let answer = self.client().and_then(|mut client| client.get("/healthcheck"));
        answer.is_ok_and(|answer| answer.status == 200)
    }

    /// A connection to the server.
    pub(crate) fn client(&self) -> Result<Client> {
        Client::connect(self.address, TOKEN)
    }

    /// The last lines that the server wrote.
    pub(crate) fn log_tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n")
    }
}

impl Server {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks the server to end, and waits until it has.
    pub(crate) fn stop(mut self) -> Result<()> {
        shell::signal(self.child.id(), "TERM");
        shell::wait_for("the server's end", STOP, || self.child.try_wait().transpose())??;
        Ok(())
    }

    /// Ends the server without asking.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.child.kill().context("kill the server")?;
        self.child.wait().context("wait for the server's end")?;
        Ok(())
    }
}

/// An address on this machine that nobody uses just now, and that nobody is given who asks for any port: those lie
/// higher.
pub(crate) fn free_address() -> Result<SocketAddr> {
    let first = RandomState::new().hash_one(0) % u64::from(PORTS.end - PORTS.start);
    let mut ports = PORTS.cycle().skip(first as usize).take(PORTS.len());
    let port = ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).context("find a free port")?;
    Ok(SocketAddr::from(([127, 0, 0, 1], port)))
}
