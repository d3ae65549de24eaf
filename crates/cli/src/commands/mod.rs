//! The commands, one file each.

mod apply;
mod attach;
mod completion;
mod delete;
mod event;
mod exchange;
mod fleet;
mod gateway;
mod init;
mod login;
mod logs;
mod metrics;
mod offer;
mod preset;
mod project;
mod ps;
mod run;
mod secret;
mod ssh_proxy;
mod stop;
mod validate;
mod volume;
mod why;

pub(crate) use completion::VARIABLE as COMPLETION_VARIABLE;

use std::time::Duration;

use anyhow::{Context, bail};
use api::client::ClientError;
use jiff::{SignedDuration, Timestamp};

use crate::Outcome;
use crate::args::Command;
use crate::output::Table;
use crate::printer::{Printer, Terminal};
use crate::session::Session;

/// How often a watched listing is fetched.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// Runs a command to its end.
pub(crate) fn run(session: &mut Session, command: Command) -> anyhow::Result<Outcome> {
    match command {
        Command::Completion(args) => completion::run(session, &args),
        Command::Server(_) => bail!("this program was built without the server"),
        command => {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
            let outcome = runtime.block_on(run_remote(session, command));
            // What was dropped may still block a thread, such as the search for an address.
            runtime.shutdown_background();
            outcome
        }
    }
}

async fn run_remote(session: &mut Session, command: Command) -> anyhow::Result<Outcome> {
    if let Command::SshProxy(args) = &command {
        // Ctrl-C ends it, as it ends the `ssh` that runs it.
        return ssh_proxy::run(session, args).await;
    }
    session.interrupts.listen()?;
    // What Ctrl-C means to a run that is followed is theirs to say.
    match command {
        Command::Apply(args) => return Box::pin(apply::run(session, *args)).await,
        Command::Attach(args) => return attach::run(session, &args).await,
        _ => {}
    }
    let left = if is_watch(&command) { Outcome::Done } else { Outcome::Interrupted };
    let run = async |session: &mut Session| Box::pin(run_interruptible(session, command)).await;
    Ok(match unless_interrupted(session, run).await? {
        Ok(outcome) => outcome,
        Err(Interrupted::AtQuestion) => Outcome::Failed,
        Err(Interrupted::AtWork) => left,
    })
}

async fn run_interruptible(session: &mut Session, command: Command) -> anyhow::Result<Outcome> {
    match command {
        Command::Delete(args) => delete::run(session, &args).await,
        Command::Event(args) => event::run(session, &args).await,
        Command::Export(args) => exchange::exports(session, args).await,
        Command::Fleet(args) => fleet::run(session, args).await,
        Command::Import(args) => exchange::imports(session, args).await,
        Command::Gateway(args) => gateway::run(session, args).await,
        Command::Init(args) => init::run(session, &args).await,
        Command::Offer(args) => offer::run(session, *args).await,
        Command::Login(args) => login::run(session, &args).await,
        Command::Logs(args) => logs::run(session, &args).await,
        Command::Metrics(args) => metrics::run(session, &args).await,
        Command::Preset(args) => preset::run(session, &args),
        Command::Project(args) => project::run(session, args).await,
        Command::Ps(args) => ps::run(session, &args).await,
        Command::Run(args) => run::run(session, args).await,
        Command::Secret(args) => secret::run(session, args).await,
        Command::Stop(args) => stop::run(session, &args).await,
        Command::Validate(args) => validate::run(session, &args).await,
        Command::Volume(args) => volume::run(session, args).await,
        Command::Why(args) => why::run(session, &args).await,
        Command::Apply(_)
        | Command::Attach(_)
        | Command::Completion(_)
        | Command::Server(_)
        | Command::SshProxy(_) => Ok(Outcome::Done),
    }
}

/// Whether Ctrl-C is the ordinary end of a command.
fn is_watch(command: &Command) -> bool {
    match command {
        Command::Event(args) => args.filters.watch,
        Command::Fleet(args) => args.list.watch,
        Command::Gateway(args) => args.list.watch,
        Command::Logs(_) => true,
        Command::Metrics(args) => args.watch,
        Command::Ps(args) => args.watch,
        Command::Volume(args) => args.list.watch,
        _ => false,
    }
}

/// Where Ctrl-C came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Interrupted {
    /// Instead of an answer; the user was told.
    AtQuestion,
    /// Anywhere else.
    AtWork,
}

/// Does something until Ctrl-C, which drops it where it is.
async fn unless_interrupted<T>(
    session: &mut Session,
    work: impl AsyncFnOnce(&mut Session) -> anyhow::Result<T>,
) -> anyhow::Result<Result<T, Interrupted>> {
    let interrupts = session.interrupts.clone();
    let done = tokio::select! {
        biased;
        () = interrupts.next() => None,
        result = work(session) => Some(result?),
    };
    match done {
        Some(value) => Ok(Ok(value)),
        None if session.printer.is_asking() => {
            session.printer.line("\nCancelled by user")?;
            Ok(Err(Interrupted::AtQuestion))
        }
        None => Ok(Err(Interrupted::AtWork)),
    }
}

/// Shows a listing, again and again if it is watched. A blank line follows it, if the official listing has one.
async fn show(
    session: &mut Session,
    watch: bool,
    blank: bool,
    list: impl AsyncFn(Timestamp) -> anyhow::Result<Table>,
) -> anyhow::Result<()> {
    let mut shown: Vec<usize> = Vec::new();
    loop {
        let table = list(session.now()).await?;
        let printer = &mut session.printer;
        if !watch {
            printer.table(&table)?;
            if blank {
                printer.blank()?;
            }
            return Ok(());
        }
        if printer.terminal.out {
            printer.measure();
            shown = show_in_place(printer, &table, &shown)?;
        } else {
            if !shown.is_empty() {
                printer.blank()?;
            }
            printer.table(&table)?;
            shown = vec![0];
        }
        printer.flush()?;
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

/// Replaces the listing whose lines were so long by this one, cut to what the terminal shows. What scrolls out of a
/// terminal can be replaced no more.
fn show_in_place(printer: &mut Printer, table: &Table, before: &[usize]) -> anyhow::Result<Vec<usize>> {
    let Terminal { width, height, colour, .. } = printer.terminal;
    // A terminal that was made narrower has broken the lines that were too long for it.
    let rows = |length: &usize| width.filter(|width| 0 < *width).map_or(1, |width| length.div_ceil(width).max(1));
    let up: usize = before.iter().map(rows).sum();
    if up != 0 {
        // Back to the first line of the last listing, and nothing left below.
        printer.raw(format!("\x1b[{up}A\x1b[J").as_bytes())?;
    }
    let text = table.render(width, colour);
    let mut lines: Vec<&str> = text.lines().collect();
    // The cursor stands in the row below.
    let room = height.map_or(usize::MAX, |height| height.saturating_sub(1).max(1));
    if room < lines.len() {
        lines.truncate(room - 1);
        lines.push("…");
    }
    for line in &lines {
        printer.line(line)?;
    }
    let plain = |line: &&str| anstream::adapter::strip_str(line).to_string().chars().count();
    Ok(lines.iter().map(plain).collect())
}

/// JSON is for programs, which have no use for a listing that never ends.
fn refuse_watch(watch: bool) -> anyhow::Result<()> {
    if watch {
        bail!("JSON output is not supported together with --watch");
    }
    Ok(())
}

/// Turns the server's "there is none" into `message`.
fn named<T>(result: Result<T, ClientError>, message: impl FnOnce() -> String) -> anyhow::Result<T> {
    match result {
        Ok(value) => Ok(value),
        Err(error) if error.is_not_exists() => bail!(message()),
        Err(error) => Err(error.into()),
    }
}

/// Asks, and says goodbye if the answer is no.
async fn agreed(session: &mut Session, yes: bool, question: &str) -> anyhow::Result<bool> {
    if yes || session.printer.confirm(question).await? {
        return Ok(true);
    }
    session.printer.line("\nExiting...")?;
    Ok(false)
}

/// A time that is given as an age, such as `5m`, or as itself.
fn since(session: &Session, text: Option<&str>) -> anyhow::Result<Option<Timestamp>> {
    let Some(text) = text else { return Ok(None) };
    if let Ok(age) = api::configurations::Seconds::parse(text) {
        let age = SignedDuration::from_secs(age.0);
        return session.now().checked_sub(age).map(Some).with_context(|| format!("`{text}` is too long ago"));
    }
    match text.parse() {
        Ok(time) => Ok(Some(time)),
        Err(_) => bail!("Invalid datetime format"),
    }
}

/// Reads an identifier that was typed.
fn identifier<T: std::str::FromStr>(text: Option<&str>) -> anyhow::Result<Option<T>> {
    let Some(text) = text else { return Ok(None) };
    match text.parse() {
        Ok(id) => Ok(Some(id)),
        Err(_) => bail!("Invalid UUID format: {text}"),
    }
}
