//! Starting other programs, and waiting for what they do.

use std::env;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How often a condition is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// What is waited for between tries of something that needs the network.
const PAUSES: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(20)];

/// Runs a program to its end; a failure of it is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = describe(command);
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    Ok(())
}

/// Runs a program to its end and answers its standard output; a failure of it is an error with its last words.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let line = describe(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start `{line}`"))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        bail!("`{line}` failed: {}\n{}", output.status, words.trim_end());
    }
    String::from_utf8(output.stdout).with_context(|| format!("read the output of `{line}`"))
}

/// Runs a program that needs the network, which may fail for a moment; the last failure counts.
pub(crate) fn insist(mut command: impl FnMut() -> Result<Command>) -> Result<()> {
    for pause in PAUSES {
        match capture(&mut command()?) {
            Ok(_) => return Ok(()),
            Err(error) => eprintln!("{error:#}\ntrying again in {} s", pause.as_secs()),
        }
        thread::sleep(pause);
    }
    capture(&mut command()?).map(drop)
}

/// Whether a program runs and succeeds; its output goes nowhere.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

/// Where a program is, looked for as a shell would.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join(program)).find(|candidate| candidate.is_file())
}

/// Whether this is the superuser.
pub(crate) fn is_root() -> bool {
    capture(Command::new("id").arg("-u")).is_ok_and(|uid| uid.trim() == "0")
}

/// Sends a signal, by the shell's own `kill`, which every machine has.
pub(crate) fn signal(pid: u32, name: &str) -> bool {
    succeeds(Command::new("sh").args(["-c", "kill -s \"$0\" \"$1\"", name, &pid.to_string()]))
}

/// Waits until `look` finds what it looks for.
pub(crate) fn wait_for<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if deadline < Instant::now() {
            bail!("{what} did not happen within {} seconds", patience.as_secs());
        }
        thread::sleep(LOOK_AGAIN);
    }
}

/// The command line, as a person would type it.
pub(crate) fn describe(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        let arg = arg.to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+.,:/@".contains(c);
        let is_plain = !arg.is_empty() && arg.chars().all(plain);
        let written = if is_plain { arg } else { format!("'{}'", arg.replace('\'', r"'\''")).into() };
        line.push(' ');
        line.push_str(&written);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_can_be_typed_again() {
        let mut command = Command::new("dstack");
        command.args(["apply", "-f", "it's here.yml", ""]);
        assert_eq!(describe(&command), r"dstack apply -f 'it'\''s here.yml' ''");
    }

    #[test]
    fn waiting_ends_at_the_deadline() {
        let error = wait_for::<()>("nothing", Duration::ZERO, || None).unwrap_err();
        assert_eq!(error.to_string(), "nothing did not happen within 0 seconds");
    }

    #[test]
    fn a_failing_program_is_an_error_with_its_last_words() {
        let error = capture(Command::new("sh").args(["-c", "echo no luck >&2; exit 3"])).unwrap_err();
        assert!(error.to_string().ends_with("exit status: 3\nno luck"), "{error}");
    }
}
