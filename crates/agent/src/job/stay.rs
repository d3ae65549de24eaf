//! The process of a job that stays: it runs the job's command, greets, and waits for the job's end.
//!
//! It leads the session of the job's terminal. If the command did, the terminal would be hung up at its end, and with it
//! all that the command left running on it. Nothing of the image is needed to wait.

use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, ExitStatus};

use api::agent::Stay;
use nix::sys::signal::{SigSet, Signal};

use crate::sys;

/// What stands for the job's directory in a greeting, and the variable that has it.
const PLACE: &str = "$DSTACK_WORKING_DIR";
/// What shells answer where a command cannot be run.
const CANNOT_RUN: u8 = 127;

/// The command line of a job that stays after `command`.
pub(super) fn argv(stay: &Stay, command: &[String]) -> Vec<String> {
    let own = ["/proc/self/exe".to_owned(), "stay".to_owned(), format!("--greeting={}", stay.greeting)];
    let separator = (!command.is_empty()).then(|| "--".to_owned());
    own.into_iter().chain(separator).chain(command.iter().cloned()).collect()
}

/// Runs the command, greets, and waits to be told to end. A command that fails ends the job as it would without us.
pub(crate) fn run(greeting: &str, command: &[String]) -> ExitCode {
    // Signals to the whole job are for the command first: its end is ours.
    let ends: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    let _ = ends.thread_block();
    if let [program, arguments @ ..] = command {
        let mut command = Command::new(program);
        command.args(arguments);
        sys::unblock_signals(&mut command);
        match command.status() {
            Ok(status) if status.success() => {}
            Ok(status) => return ExitCode::from(code(status)),
            Err(error) => {
                say(&format!("cannot start `{program}`: {error}\n"));
                return ExitCode::from(CANNOT_RUN);
            }
        }
    }
    say(&greeting.replace(PLACE, &std::env::var(&PLACE[1..]).unwrap_or_default()));
    match ends.wait() {
        Ok(signal) => ExitCode::from(128_u8.saturating_add(signal as u8)),
        Err(_) => ExitCode::FAILURE,
    }
}

fn code(status: ExitStatus) -> u8 {
    let by_signal = status.signal().map(|signal| signal.saturating_add(128));
    let code = status.code().or(by_signal).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

fn say(text: &str) {
    // A terminal that is gone is nobody's to read.
    let _ = io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_told_from_our_own_arguments() {
        let stay = Stay { greeting: "-- hello".to_owned() };
        let ours = ["/proc/self/exe", "stay", "--greeting=-- hello"];
        assert_eq!(argv(&stay, &[]), ours);
        let command = ["/bin/sh", "-i", "-c", "a"].map(str::to_owned);
        assert_eq!(argv(&stay, &command)[ours.len()..], ["--", "/bin/sh", "-i", "-c", "a"]);
    }

    #[test]
    fn the_end_of_a_command_is_told_as_shells_do() {
        assert_eq!(code(ExitStatus::from_raw(3 << 8)), 3);
        assert_eq!(code(ExitStatus::from_raw(Signal::SIGTERM as i32)), 143);
    }
}
