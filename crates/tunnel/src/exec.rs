//! Running a command: its input, its output, its end, and what a login shell does to all of them.

use std::mem;
use std::time::Duration;

use russh::client::Msg;
use russh::{ChannelMsg, ChannelWriteHalf, Sig};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::command::{Command, Output, Privilege, Status};
use crate::session::{OpenChannel, Session};
use crate::stream::{Ending, Stream, status_of};
use crate::words::{MarkFinder, TailBytes, last_lines};
use crate::{Error, Result, SudoProblem};

/// How long ending a command that took too long may take.
const TIME_TO_END: Duration = Duration::from_secs(10);

/// Ends a process and what it started: its group, which the SSH server made for it and which `sudo` leads.
const END: &str = r#"
stat=$(cat "/proc/$process/stat" 2>/dev/null)
set -- ${stat##*) }
kill -s TERM -- "-${3:-$process}" 2>/dev/null || kill -s TERM "$process"
"#;

/// Which messages of a channel carry the error output.
pub(crate) const STDERR: u32 = 1;

impl Session {
    /// Runs a command to its end. That it fails is no error here; see [`Output::success`].
    ///
    /// If the future is dropped, the channel is closed; the command may go on.
    pub async fn exec(&self, command: Command) -> Result<Output> {
        let mut channel = self.open_session().await?;
        let mut process = None;
        if let Ok(result) = timeout(command.time, self.converse(&mut channel, &command, &mut process)).await {
            return result;
        }
        if command.privilege == Privilege::User {
            // Quick where it works: OpenSSH does it for all users but root. It would end `sudo` only.
            let _ = channel.both().1.signal(Sig::TERM).await;
        }
        drop(channel);
        if let Some(process) = process {
            tokio::spawn(self.clone().end(process, command.privilege));
        }
        Err(Error::CommandTimedOut { command: command.name, limit: command.time })
    }

    /// Ends a command that was left behind, as well as it goes: it would keep one of the host's sessions.
    async fn end(self, process: u32, privilege: Privilege) {
        let command = Command::new(format!("process={process}\n{END}")).privilege(privilege);
        let ending = async {
            let mut channel = self.open_session().await?;
            self.converse(&mut channel, &command, &mut None).await
        };
        if let Err(error) = timeout(TIME_TO_END, ending).await.unwrap_or(Err(self.lost("it is silent"))) {
            tracing::debug!("process {process} on {} may still run: {error}", self.address());
        }
    }

    /// Starts a command and joins a stream to its input and output. The command's time is for its start.
    pub async fn stream(&self, command: Command) -> Result<Stream> {
        let mut channel = self.open_session().await?;
        match timeout(command.time, self.start(&mut channel, &command)).await {
            Ok(Ok(first)) => Ok(Stream::start(self.clone(), channel, first)),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::CommandTimedOut { command: command.name, limit: command.time }),
        }
    }

    /// `process` becomes the command's, as soon as it is known.
    async fn converse(
        &self,
        channel: &mut OpenChannel,
        command: &Command,
        process: &mut Option<u32>,
    ) -> Result<Output> {
        let (read, write) = channel.both();
        self.request(write, command).await?;
        let (started, starts) = oneshot::channel();
        let mut collected = Collected::new(started);
        let collecting = async {
            while let Some(message) = read.wait().await {
                if collected.take(message, command, self)? {
                    return collected.into_output(command, self);
                }
                *process = collected.finder.process();
            }
            Err(self.lost("it was closed while a command ran"))
        };
        let feeding = async {
            // Without input, the end of it is told at once: a login shell that reads must not wait for it.
            if !command.stdin.is_empty() && starts.await.is_ok() {
                // A command may end without reading all.
                let _ = write.data_bytes(command.stdin.clone()).await;
            }
            let _ = write.eof().await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            output = collecting => output,
            () = feeding => Err(self.lost("it was closed while a command ran")),
        }
    }

    /// Sends a command and waits until it has begun. Gives back what it has printed by then.
    async fn start(&self, channel: &mut OpenChannel, command: &Command) -> Result<Vec<u8>> {
        let (read, write) = channel.both();
        self.request(write, command).await?;
        let (started, _) = oneshot::channel();
        let mut collected = Collected::new(started);
        while let Some(message) = read.wait().await {
            if collected.take(message, command, self)? {
                return Err(collected
                    .into_output(command, self)
                    .map_or_else(|error| error, |_| self.lost("a command ended before it began")));
            }
            if collected.finder.process().is_some() {
                return Ok(collected.stdout);
            }
        }
        Err(self.lost("it was closed while a command started"))
    }

    async fn request(&self, write: &ChannelWriteHalf<Msg>, command: &Command) -> Result<()> {
        write.exec(true, command.envelope()).await.map_err(|_| self.lost("it was closed"))
    }
}

/// What has come from a command so far.
struct Collected {
    finder: MarkFinder,
    started: Option<oneshot::Sender<()>>,
    stdout: Vec<u8>,
    stderr: TailBytes,
    status: Status,
    is_refused: bool,
}

impl Collected {
    fn new(started: oneshot::Sender<()>) -> Collected {
        Collected {
            finder: MarkFinder::default(),
            started: Some(started),
            stdout: Vec::new(),
            stderr: TailBytes::default(),
            status: Status::Unknown,
            is_refused: false,
        }
    }

    /// Takes one message; true if it was the last.
    fn take(&mut self, message: ChannelMsg, command: &Command, session: &Session) -> Result<bool> {
        match message {
            ChannelMsg::Data { data } => {
                let ours = self.finder.feed(&data);
                self.stdout.extend_from_slice(&ours);
                if self.finder.process().is_some()
                    && let Some(started) = self.started.take()
                {
                    // Nobody waits for it where there is no input.
                    let _ = started.send(());
                }
                if self.finder.is_overdue() {
                    return Err(self.shell_refused(session));
                }
                if command.stdout_limit < self.stdout.len() {
                    let (command, limit) = (command.name.clone(), command.stdout_limit);
                    return Err(Error::OutputTooLong { command, limit });
                }
            }
            ChannelMsg::ExtendedData { data, ext: STDERR } => self.stderr.push(&data),
            ChannelMsg::Failure => {
                self.is_refused = true;
                return Ok(true);
            }
            ChannelMsg::Close => return Ok(true),
            other => {
                if let Some(status) = status_of(&other) {
                    self.status = status;
                }
            }
        }
        Ok(false)
    }

    fn into_output(mut self, command: &Command, session: &Session) -> Result<Output> {
        if self.finder.process().is_none() {
            let stderr = self.stderr.clone().into_bytes();
            if command.privilege == Privilege::Sudo
                && let Some(problem) = sudo_problem(&String::from_utf8_lossy(&stderr))
            {
                let (address, user) = (session.address().to_owned(), session.user().to_owned());
                return Err(Error::Sudo { address, user, problem });
            }
            return Err(self.shell_refused(session));
        }
        Ok(Output {
            command: command.name.clone(),
            status: self.status,
            stdout: self.stdout,
            stderr: self.stderr.into_bytes(),
        })
    }

    fn shell_refused(&mut self, session: &Session) -> Error {
        let said = if self.is_refused {
            "the SSH server refuses the request".to_owned()
        } else {
            let stderr = mem::take(&mut self.stderr).into_bytes();
            last_lines(&[self.finder.noise(), b"\n", &stderr].concat())
        };
        Error::ShellRefused { address: session.address().to_owned(), user: session.user().to_owned(), said }
    }
}

/// What `sudo`, or the shell in its place, complains about.
pub(crate) fn sudo_problem(stderr: &str) -> Option<SudoProblem> {
    let says = |words: &[&str]| words.iter().any(|words| stderr.contains(words));
    if says(&["sudo': No such file", "sudo: No such file", "sudo: not found", "‘sudo’: No such file"]) {
        return Some(SudoProblem::Missing);
    }
    if says(&["must have a tty"]) {
        return Some(SudoProblem::NeedsTerminal);
    }
    if says(&["password is required", "is required to read the password"]) {
        return Some(SudoProblem::NeedsPassword);
    }
    if says(&["not in the sudoers file", "is not allowed to", "may not run sudo"]) {
        return Some(SudoProblem::NotAllowed);
    }
    let own = stderr.lines().filter_map(|line| line.trim().strip_prefix("sudo: ")).next_back();
    own.map(|words| SudoProblem::Other(words.to_owned()))
}

/// How a stream's command ended, for whoever wants an error if it failed.
pub(crate) fn failure(command: String, ending: &Ending) -> Error {
    Error::CommandFailed {
        command,
        status: ending.status.clone(),
        stderr: last_lines(&ending.stderr.clone().into_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_of_sudo_are_told_apart() {
        let check = |stderr: &str, expected| assert_eq!(sudo_problem(stderr), expected, "{stderr}");
        check("Welcome\nsudo: a password is required\n", Some(SudoProblem::NeedsPassword));
        check("env: 'sudo': No such file or directory\n", Some(SudoProblem::Missing));
        check("env: can't execute 'sudo': No such file or directory\n", Some(SudoProblem::Missing));
        check("sudo: sorry, you must have a tty to run sudo\n", Some(SudoProblem::NeedsTerminal));
        check("ada is not in the sudoers file.\n", Some(SudoProblem::NotAllowed));
        check("sudo: unable to resolve\nsudo: PAM broke\n", Some(SudoProblem::Other("PAM broke".to_owned())));
        check("Welcome to sudoku\n", None);
    }
}
