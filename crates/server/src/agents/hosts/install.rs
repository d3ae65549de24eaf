//! The scripts that are run on a host, and what they answer.

use std::time::Duration;

use api::agent::{MAGIC_LINE, MAGIC_SEARCH_LIMIT};
use tokio::io::AsyncReadExt;
use tokio::time::timeout;
use tunnel::{Command, Error, File, Session, Status, Stream, push_file};

use super::layout::{Layout, Place, program_name};
use super::plan::{Seen, Wanted};
use super::program::Loaded;
use super::shell::variables;
use super::{HostAccess, JoinError, JoinStep};

const COMMON: &str = include_str!("common.sh");
const LOOK: &str = include_str!("look.sh");
const INSTALL: &str = include_str!("install.sh");
const REMOVE: &str = include_str!("remove.sh");

/// How long an agent may take to answer after its start.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// How long the scripts may take. Installing may stop one agent, wait for the next, and bring the first one back.
const LOOK_TIME: Duration = Duration::from_secs(30);
const INSTALL_TIME: Duration = Duration::from_mins(2);
const REMOVE_TIME: Duration = Duration::from_mins(2);

/// A host that we are logged in to.
#[derive(Debug)]
pub(super) struct Host<'a> {
    pub(super) access: &'a HostAccess,
    pub(super) session: &'a Session,
    pub(super) place: Place,
}

/// What came of installing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Installation {
    Works,
    /// The program does not work there. If there was one before, it runs again.
    Fails(JoinError),
}

/// What there was to remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    Removed,
    Nothing,
}

/// Why the agent did not say its first line.
#[derive(Debug)]
pub(super) struct Silent {
    pub(super) error: JoinError,
    /// Starting it again may help.
    pub(super) may_be_down: bool,
}

impl Host<'_> {
    /// Looks at what is there. Changes nothing.
    pub(super) async fn look(&self, sha256: &str) -> Result<(Layout, Seen), JoinError> {
        let Place { programs, root, .. } = &self.place;
        let named =
            variables([("server", self.access.server.to_string().as_str()), ("wanted", program_name(sha256))]);
        let script = format!("programs={programs}\nroot={root}\n{named}state=$root/$server\n{COMMON}{LOOK}");
        let command = self.command(script).named(self.on("look at the agent")).within(LOOK_TIME);
        let said = self.say(JoinStep::Check, command).await?;
        let seen = Seen::read(&said).map_err(|reason| self.senseless(JoinStep::Check, &reason))?;
        let layout = Layout {
            programs: seen.programs.clone(),
            root: seen.root.clone(),
            units: self.access.roots.units.clone(),
            server: self.access.server,
            systemd: self.place.systemd,
        };
        Ok((layout, seen))
    }

    /// Brings the program.
    pub(super) async fn deliver(&self, layout: &Layout, program: &Loaded) -> Result<(), JoinError> {
        let file = File {
            bytes: program.bytes.clone(),
            sha256: program.sha256.clone(),
            path: layout.program(&program.sha256),
            mode: 0o755,
            privilege: self.place.privilege,
        };
        let pushed = push_file(self.session, &file).await;
        pushed.map(|_| ()).map_err(|error| JoinError::new(JoinStep::Deliver, &error))
    }

    /// Writes everything but the program, and starts the agent, or the one before if it does not answer.
    pub(super) async fn install(
        &self,
        layout: &Layout,
        wanted: &Wanted,
        seen: &Seen,
    ) -> Result<Installation, JoinError> {
        let previous = seen.working_program().map(|sha256| layout.program(sha256)).unwrap_or_default();
        let values = variables([
            ("program", layout.program(&wanted.program).as_str()),
            ("previous", &previous),
            ("magic", MAGIC_LINE.trim_end()),
            ("patience", &PATIENCE.as_secs().to_string()),
            ("start_text", &wanted.start_text),
            ("loop_text", &layout.loop_text()),
            ("unit_text", &layout.unit_text()),
            ("remove_text", &remove_script(layout)),
            ("record_text", &wanted.record(seen).text()),
        ]);
        let script = format!("{}{values}{COMMON}{INSTALL}main\n", layout.variables());
        let command = self.fed(script).named(self.on("start the agent")).within(INSTALL_TIME);
        let said = self.say(JoinStep::Start, command).await?;
        let (answer, words) = said.trim().split_once(' ').unwrap_or((said.trim(), ""));
        let agent = format!("the agent on `{}`", self.session.address());
        let silent = format!("{agent} does not answer within {} s", PATIENCE.as_secs());
        let words = words.trim().trim_end_matches(';');
        let fails = |what: &str| Ok(Installation::Fails(self.trouble(what, words)));
        match answer {
            "done" => Ok(Installation::Works),
            "unfit" if previous.is_empty() => fails(&format!("{agent} does not start")),
            "unfit" => fails(&format!("{agent} was not updated, because the new one does not start")),
            "restored" => fails(&format!("{silent} after its update, so the one before runs again")),
            "broken" => fails(&silent),
            "failed" => Err(self.failed(words)),
            _ => Err(self.senseless(JoinStep::Start, &format!("it says `{}`", said.trim()))),
        }
    }

    /// Removes everything that this server has put there, with all tasks.
    pub(super) async fn remove(&self, layout: &Layout) -> Result<Left, JoinError> {
        let command = self.fed(remove_script(layout)).named(self.on("remove the agent")).within(REMOVE_TIME);
        let said = self.say(JoinStep::Start, command).await?;
        let (answer, words) = said.trim().split_once(' ').unwrap_or((said.trim(), ""));
        match answer {
            "done" => Ok(Left::Removed),
            "nothing" => Ok(Left::Nothing),
            "failed" => Err(self.failed(words)),
            _ => Err(self.senseless(JoinStep::Start, &format!("it says `{}`", said.trim()))),
        }
    }

    /// Connects to the agent, up to its first frame.
    pub(super) async fn greet(&self, program: &str, socket: &str) -> Result<Stream, Silent> {
        let words = [program, "connect", "--socket", socket];
        let command = Command::program(words).named(self.on("reach the agent")).privilege(self.place.privilege);
        let lost = |error: &Error| Silent { error: JoinError::new(JoinStep::Greet, error), may_be_down: false };
        let mut stream = self.session.stream(command.within(PATIENCE)).await.map_err(|error| lost(&error))?;
        match timeout(PATIENCE, skip_to_magic(&mut stream)).await {
            Ok(Ok(true)) => return Ok(stream),
            Ok(Ok(false)) => {}
            Ok(Err(error)) => {
                let error = JoinError::passing(JoinStep::Greet, error.to_string());
                return Err(Silent { error, may_be_down: false });
            }
            Err(_) => {
                let words = format!("did not answer within {} s", PATIENCE.as_secs());
                return Err(Silent { error: self.silent(&words, &stream.stderr()), may_be_down: true });
            }
        }
        let exit = stream.exit().await.map_err(|error| lost(&error))?;
        let words = match exit.status {
            Status::Exited(0) => "says nothing that we know".to_owned(),
            status => format!("cannot be reached ({status})"),
        };
        Err(Silent { error: self.silent(&words, &exit.stderr), may_be_down: true })
    }

    fn silent(&self, words: &str, stderr: &str) -> JoinError {
        let tail = if stderr.is_empty() { String::new() } else { format!(": {stderr}") };
        let message = format!("the agent on `{}` {words}{tail}", self.session.address());
        JoinError::passing(JoinStep::Greet, message)
    }

    /// What is done, for errors that do not name the host.
    fn on(&self, what: &str) -> String {
        format!("{what} on {}", self.session.address())
    }

    fn command(&self, script: String) -> Command {
        Command::new(script).privilege(self.place.privilege)
    }

    /// A script of any length and with secrets, which must not stand among a process's arguments. It calls its `main`
    /// at its end, so that a part of it does nothing.
    fn fed(&self, script: String) -> Command {
        self.command("script=$(cat) && eval \"$script\"".to_owned()).stdin(script)
    }

    async fn say(&self, step: JoinStep, command: Command) -> Result<String, JoinError> {
        let output = self.session.exec(command).await.map_err(|error| JoinError::new(step, &error))?;
        let stdout = output.success().map_err(|error| JoinError::new(step, &error))?;
        Ok(String::from_utf8_lossy(&stdout).into_owned())
    }

    fn failed(&self, words: &str) -> JoinError {
        self.trouble(&format!("the agent cannot be set up on `{}`", self.session.address()), words)
    }

    /// What happened, and the host's words about it; a full disk explains everything else.
    fn trouble(&self, what: &str, words: &str) -> JoinError {
        let is_full = ["No space left", "Disk quota exceeded"].iter().any(|full| words.contains(full));
        let full = format!("the disk of `{}` is full", self.session.address());
        let what = if is_full { &full } else { what };
        JoinError::passing(JoinStep::Start, format!("{what}: {}", words.trim()))
    }

    fn senseless(&self, step: JoinStep, reason: &str) -> JoinError {
        let reason: String = reason.chars().take(500).collect();
        let message = format!("`{}` gives an answer that makes no sense: {reason}", self.session.address());
        JoinError::passing(step, message)
    }
}

/// Whether the agent says its first line in time. Nothing after it is read.
pub(super) async fn listens(stream: &mut Stream) -> bool {
    matches!(timeout(PATIENCE, skip_to_magic(stream)).await, Ok(Ok(true)))
}

/// Whether the magic line came. Nothing after it is read.
async fn skip_to_magic(stream: &mut (impl AsyncReadExt + Unpin)) -> std::io::Result<bool> {
    let magic = MAGIC_LINE.as_bytes();
    let mut seen = Vec::new();
    while seen.len() < MAGIC_SEARCH_LIMIT {
        let mut byte = [0];
        if stream.read(&mut byte).await? == 0 {
            return Ok(false);
        }
        seen.push(byte[0]);
        if seen.ends_with(magic) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Also left on the host, for whoever owns it.
fn remove_script(layout: &Layout) -> String {
    format!("# Removes the agent of a dstack server, with its jobs.\n{}{COMMON}{REMOVE}main\n", layout.variables())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::super::layout::tests::layout;
    use super::*;

    #[test]
    fn every_shell_can_read_the_scripts() {
        let remove = remove_script(&layout());
        let install = format!("{COMMON}{INSTALL}main\n");
        let look = format!("{COMMON}{LOOK}");
        for shell in ["sh", "bash", "dash", "busybox"] {
            for script in [&remove, &install, &look, &layout().loop_text()] {
                let mut command = Command::new(shell);
                command.args((shell == "busybox").then_some("sh")).args(["-n", "-c", script]);
                // Not every machine has every shell.
                let Ok(output) = command.output() else { continue };
                assert!(output.status.success(), "{shell}: {}", String::from_utf8_lossy(&output.stderr));
            }
        }
    }

    #[tokio::test]
    async fn a_first_line_is_found_behind_others_and_nothing_after_it_is_lost() {
        let check = async |said: &str| {
            let mut bytes = said.as_bytes();
            let found = skip_to_magic(&mut bytes).await.unwrap();
            (found, String::from_utf8_lossy(bytes).into_owned())
        };
        assert_eq!(check(&format!("Welcome\n{MAGIC_LINE}PRI")).await, (true, "PRI".to_owned()));
        assert!(!check("Welcome\n").await.0);
        assert!(!check(&"x".repeat(2 * MAGIC_SEARCH_LIMIT)).await.0);
    }
}
