//! A session: a shell, a command or sftp, run as a child with what the client sends as its input.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use super::pty::{self, ProgramSide, Terminal, TerminalRequest, Window};
use super::transport::{Connection, Exit, Inlet, Lane, Outlet, Output};
use super::{Server, shell};
use crate::sys;

/// How much a client may say about its environment.
const VARIABLES_LIMIT: usize = 256;
const VARIABLE_BYTES_LIMIT: usize = 64 * 1024;
/// How much is read of a terminal at once.
const READ_BYTES: usize = 16 * 1024;
/// How much of what a terminal still holds at its program's end is sent, and how long more of it may take to come.
const LAST_WORDS: usize = 1 << 20;
const LAST_WORDS_WAIT: Duration = Duration::from_millis(100);
/// What a shell answers where the command cannot be run.
const CANNOT_RUN: u32 = 127;

/// What a session runs.
#[derive(Debug)]
pub(super) enum Program {
    /// The shell of a login.
    Shell,
    /// A command, by the shell.
    Command(Vec<u8>),
    /// Our own server of files.
    Sftp,
}

/// A channel on which a program runs, or will.
#[derive(Debug)]
pub(super) struct Session {
    lane: Option<Lane>,
    variables: BTreeMap<String, String>,
    terminal: Option<TerminalRequest>,
    running: Option<Running>,
}

/// The handles of a program that was started.
#[derive(Debug)]
struct Running {
    group: Pid,
    terminal: Option<Terminal>,
}

impl Session {
    /// A session that has yet to say what it is for.
    pub(super) fn new(lane: Lane) -> Session {
        Session { lane: Some(lane), variables: BTreeMap::new(), terminal: None, running: None }
    }

    /// Sets a variable of the program to come.
    pub(super) fn set_variable(&mut self, name: &str, value: &str) -> bool {
        let is_sane = !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0');
        let size: usize = self.variables.iter().map(|(name, value)| name.len() + value.len()).sum();
        let has_room = self.variables.len() < VARIABLES_LIMIT
            && size + name.len() + value.len() <= VARIABLE_BYTES_LIMIT
            && self.lane.is_some();
        if is_sane && has_room {
            self.variables.insert(name.to_owned(), value.to_owned());
        }
        is_sane && has_room
    }

    /// Has the program to come run on a terminal.
    pub(super) fn ask_terminal(&mut self, request: TerminalRequest) -> bool {
        let is_early = self.lane.is_some();
        self.terminal = Some(request);
        is_early
    }

    /// Starts the program; answers whether the session is now taken by one, or by the message why there is none.
    pub(super) fn start(&mut self, program: &Program, connection: &Arc<Connection>) -> bool {
        let Some(lane) = self.lane.take() else {
            return false;
        };
        let started = self.launch(program, connection);
        match started {
            Ok(launched) => {
                self.running = Some(Running { group: launched.pid, terminal: launched.terminal.clone() });
                tokio::spawn(launched.run(lane, connection.server.clone()));
            }
            Err(told) => {
                tokio::spawn(refuse(lane, told));
            }
        }
        true
    }

    fn launch(&self, program: &Program, connection: &Arc<Connection>) -> Result<Launched, String> {
        let server = &connection.server;
        if server.is_ending.load(Ordering::Acquire) {
            return Err("the job has ended\r\n".to_owned());
        }
        let (path, arguments) = match program {
            Program::Sftp => ("/proc/self/exe".into(), vec!["sftp".into()]),
            Program::Shell | Program::Command(_) => {
                let path = server.shell().ok_or_else(|| shell::NO_SHELL.to_owned())?;
                let arguments = match program {
                    Program::Command(text) => shell::command(text),
                    _ => shell::login(&path),
                };
                (path, arguments)
            }
        };
        let told = |error: io::Error| format!("cannot start `{}`: {error}\r\n", path.display());
        let terminal = self.terminal.as_ref().filter(|_| !matches!(program, Program::Sftp));
        let terminal = terminal.map(pty::open).transpose().map_err(told)?;
        let mut command = std::process::Command::new(&path);
        command.args(arguments).env_clear().envs(self.environment(connection, terminal.as_ref()));
        command.current_dir(server.start_dir());
        if matches!(program, Program::Shell)
            && let Some(search) = server.orders.env.get("PATH")
        {
            command.env(shell::PATH_VARIABLE, search);
        }
        let terminal = connect_output(&mut command, terminal).map_err(told)?;
        sys::prepare_child(&mut command, terminal.is_some(), None);
        let child = Command::from(command).spawn().map_err(told)?;
        // The child leads a session, and so a group, of its own.
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
        let pid = pid.ok_or_else(|| "the program ended at once\r\n".to_owned())?;
        server.groups().insert(pid);
        Ok(Launched { pid, child, terminal })
    }

    fn environment(
        &self,
        connection: &Connection,
        terminal: Option<&(Terminal, ProgramSide)>,
    ) -> BTreeMap<String, String> {
        let server = &connection.server;
        let mut env = server.orders.env.clone();
        let (remote, local) = (connection.remote, connection.local);
        let mut set = |name: &str, value: String| {
            env.insert(name.to_owned(), value);
        };
        set("USER", server.orders.username.clone());
        set("LOGNAME", server.orders.username.clone());
        set("HOME", server.home.to_string_lossy().into_owned());
        let client = format!("{} {}", remote.ip().to_canonical(), remote.port());
        set("SSH_CLIENT", format!("{client} {}", local.port()));
        set("SSH_CONNECTION", format!("{client} {} {}", local.ip().to_canonical(), local.port()));
        if let Some(shell) = server.shell() {
            set("SHELL", shell.to_string_lossy().into_owned());
        }
        if let (Some(request), Some((_, side))) = (&self.terminal, terminal) {
            set("TERM", request.term.clone());
            if let Some(name) = &side.name {
                set("SSH_TTY", name.to_string_lossy().into_owned());
            }
        }
        let agent = connection.agent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(agent) = &*agent {
            set("SSH_AUTH_SOCK", agent.path().to_string_lossy().into_owned());
        }
        env.extend(self.variables.clone());
        env
    }

    /// Changes the size of the terminal.
    pub(super) fn resize(&mut self, window: Window) {
        if let Some(terminal) = self.running.as_ref().and_then(|running| running.terminal.as_ref()) {
            terminal.resize(window);
        }
    }

    /// Sends a signal to the program and whatever it started.
    pub(super) fn signal(&self, name: &str, server: &Server) {
        let signal = format!("SIG{name}").parse::<Signal>();
        if let (Some(running), Ok(signal)) = (&self.running, signal)
            && server.groups().contains(&running.group)
        {
            let _ = killpg(running.group, signal);
        }
    }
}

/// Gives the program its input and outputs: the terminal, or pipes.
fn connect_output(
    command: &mut std::process::Command,
    terminal: Option<(Terminal, ProgramSide)>,
) -> io::Result<Option<Terminal>> {
    let Some((terminal, side)) = terminal else {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        return Ok(None);
    };
    command.stdin(side.file.try_clone()?).stdout(side.file.try_clone()?).stderr(side.file);
    Ok(Some(terminal))
}

/// A program that was started.
struct Launched {
    pid: Pid,
    child: Child,
    terminal: Option<Terminal>,
}

impl Launched {
    /// Carries its input and outputs, and tells how it ended.
    async fn run(mut self, lane: Lane, server: Arc<Server>) {
        let Lane { inlet, outlet } = lane;
        let closed = inlet.closed().clone();
        let work = async {
            let status = match self.terminal.take() {
                Some(terminal) => on_terminal(&mut self.child, terminal, &inlet, &outlet).await,
                None => on_pipes(&mut self.child, inlet, &outlet).await,
            };
            // Before the end of the output: a client that sends nothing more may close the channel at that.
            if let Ok(status) = status {
                outlet.tell_exit(exit(status)).await;
            }
            outlet.finish().await;
            outlet.close().await;
        };
        tokio::select! {
            () = work => {}
            // The pipes or the terminal are gone with us; a program that wants to may live on without them.
            () = closed.cancelled() => {}
        }
        // Its number stays its own until it was waited for.
        let _ = self.child.wait().await;
        server.groups().remove(&self.pid);
    }
}

async fn on_terminal(
    child: &mut Child,
    terminal: Terminal,
    inlet: &Inlet,
    outlet: &Outlet,
) -> io::Result<ExitStatus> {
    let ended = CancellationToken::new();
    let wait = async {
        let status = child.wait().await;
        ended.cancel();
        status
    };
    let print = print_terminal(terminal.clone(), outlet, &ended);
    let type_in = ended.run_until_cancelled(inlet.pump(terminal.clone()));
    let (status, (), _) = tokio::join!(wait, print, type_in);
    status
}

/// Sends what is printed until the program has ended and its last words are out. Others that keep its terminal open are
/// not waited for.
async fn print_terminal(mut terminal: Terminal, outlet: &Outlet, ended: &CancellationToken) {
    let mut buffer = BytesMut::new();
    let mut last_words = LAST_WORDS;
    loop {
        buffer.reserve(READ_BYTES);
        let read = tokio::select! {
            biased;
            read = terminal.read_buf(&mut buffer) => read,
            () = idle_after(ended) => return,
        };
        if ended.is_cancelled() {
            last_words = last_words.saturating_sub(buffer.len());
        }
        let is_over = !read.is_ok_and(|length| length > 0) || last_words == 0;
        if outlet.send(Output::Standard, buffer.split().freeze()).await.is_err() || is_over {
            return;
        }
    }
}

async fn idle_after(ended: &CancellationToken) {
    ended.cancelled().await;
    tokio::time::sleep(LAST_WORDS_WAIT).await;
}

async fn on_pipes(child: &mut Child, inlet: Arc<Inlet>, outlet: &Outlet) -> io::Result<ExitStatus> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feeding = tokio::spawn(async move {
        match stdin {
            Some(stdin) => inlet.pump(stdin).await,
            None => inlet.discard(),
        }
    });
    let output = async {
        if let Some(stdout) = stdout {
            outlet.pump(Output::Standard, stdout).await;
        }
    };
    let errors = async {
        if let Some(stderr) = stderr {
            outlet.pump(Output::Error, stderr).await;
        }
    };
    // All output comes before the end, also that of others who share it.
    tokio::join!(output, errors);
    let status = child.wait().await;
    feeding.abort();
    status
}

async fn refuse(lane: Lane, told: String) {
    lane.inlet.discard();
    let _ = lane.outlet.send(Output::Error, Bytes::from(told)).await;
    lane.outlet.tell_exit(Exit::Status(CANNOT_RUN)).await;
    lane.outlet.finish().await;
    lane.outlet.close().await;
}

fn exit(status: ExitStatus) -> Exit {
    if let Some(code) = status.code() {
        return Exit::Status(code.unsigned_abs());
    }
    let signal = status.signal().and_then(|signal| Signal::try_from(signal).ok());
    match signal.map(Signal::as_str).and_then(|name| name.strip_prefix("SIG")) {
        Some(name) => Exit::Signal { name, dumped: status.core_dumped() },
        None => Exit::Status(255),
    }
}
