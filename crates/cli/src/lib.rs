//! The commands people type.
//!
//! The program `dstack` calls [`run`]. It handles `dstack server …` itself before it does so, because this crate
//! knows no server; the command is listed here so that help and completion name it.
//!
//! Start with `args` (what can be typed) and `commands` (one file per command). `output` turns wire types into
//! tables, `printer` is the only way to print, and `session` is everything a command takes from the world.

mod args;
mod commands;
mod config;
mod files;
mod interrupts;
mod links;
mod logs;
mod names;
mod output;
mod printer;
mod profiles;
mod repos;
mod session;
mod ssh;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use clap_complete::CompleteEnv;

pub use interrupts::Interrupts;
pub use printer::{Printer, Terminal};
pub use session::Session;

/// The code of a command that failed.
const FAILURE: u8 = 1;

/// The code of a command that was typed wrong.
const USAGE: u8 = 2;

/// The code of a command whose reader went away, as shells give it to one that SIGPIPE ended.
const READER_GONE: u8 = 141;

/// The code of a command that Ctrl-C ended, as shells give it to one that SIGINT ended.
const INTERRUPTED: u8 = 130;

/// The code of a way into a job that failed, as `ssh` has it for itself.
const NO_WAY: u8 = 255;

/// What was typed makes no sense, which only the command itself could see.
#[derive(Debug)]
struct UsageError(String);

impl std::fmt::Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// How a command ended that did not fail with an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// It did what was asked.
    Done,
    /// It did not, and has said why.
    Failed,
    /// Ctrl-C ended it where nothing else is to be said.
    Interrupted,
    /// There is no way into the job, which was said.
    NoWay,
}

/// Runs the command line `args`, whose first item is the program's name. `server` says what `dstack server` takes, for
/// completion.
pub fn run(args: Vec<OsString>, server: impl Fn() -> clap::Command) -> ExitCode {
    let command = || args::Cli::command().mut_subcommand("server", |_| server().name("server"));
    let asked = CompleteEnv::with_factory(command).var(commands::COMPLETION_VARIABLE);
    let here = std::env::current_dir().ok();
    match asked.try_complete(args.clone(), here.as_deref()) {
        Ok(true) => return ExitCode::SUCCESS,
        Ok(false) => {}
        // A shell that asks shows nobody an error.
        Err(_) => return ExitCode::from(FAILURE),
    }
    match Session::of_process() {
        Ok(mut session) => ExitCode::from(run_in(&mut session, args)),
        Err(_) => ExitCode::from(FAILURE),
    }
}

/// Runs the command line `args` in `session` and answers with the exit code.
pub fn run_in(session: &mut Session, args: impl IntoIterator<Item = OsString>) -> u8 {
    let result = match args::Cli::try_parse_from(args) {
        Ok(cli) => start(session, cli),
        Err(error) => return refuse(session, &error),
    };
    let result = result.and_then(|outcome| {
        session.printer.flush()?;
        Ok(outcome)
    });
    match result {
        Ok(Outcome::Done) => 0,
        Ok(Outcome::Failed) => FAILURE,
        Ok(Outcome::Interrupted) => INTERRUPTED,
        Ok(Outcome::NoWay) => NO_WAY,
        Err(error) => report(session, &error),
    }
}

fn start(session: &mut Session, cli: args::Cli) -> anyhow::Result<Outcome> {
    if cli.version {
        session.printer.line(env!("CARGO_PKG_VERSION"))?;
        return Ok(Outcome::Done);
    }
    if let Some(command) = cli.command {
        return commands::run(session, command);
    }
    let help = session.printer.rendered(&args::Cli::command().render_help());
    session.printer.raw(help.as_bytes())?;
    Ok(Outcome::Done)
}

/// Prints what clap has to say: help, or what was typed wrong.
fn refuse(session: &mut Session, error: &clap::Error) -> u8 {
    let text = session.printer.rendered(&error.render());
    let printed = match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => session.printer.raw(text.as_bytes()),
        _ => session.printer.note(text.trim_end()),
    };
    match (printed.and_then(|()| session.printer.flush()), error.kind()) {
        (Err(_), _) => READER_GONE,
        (Ok(()), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => 0,
        // The official parser knows two kinds of wrong.
        (Ok(()), ErrorKind::UnknownArgument) => FAILURE,
        (Ok(()), _) => USAGE,
    }
}

fn report(session: &mut Session, error: &anyhow::Error) -> u8 {
    let is_gone = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    };
    if error.chain().any(is_gone) {
        return READER_GONE;
    }
    let text = match error.downcast_ref::<api::client::ClientError>() {
        // What the server says stands for itself; causes below it are not for users.
        Some(error) => error.to_string(),
        None => format!("{error:#}"),
    };
    let printed = session.printer.error(&text).and_then(|()| session.printer.flush());
    match (printed, error.is::<UsageError>()) {
        (Err(_), _) => READER_GONE,
        (Ok(()), true) => USAGE,
        (Ok(()), false) => FAILURE,
    }
}
