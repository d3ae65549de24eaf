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
mod project;
mod ps;
mod run;
mod secret;
mod stop;
mod validate;
mod volume;

use std::time::Duration;

use anyhow::{Context, bail};
use api::client::ClientError;
use jiff::{SignedDuration, Timestamp};

use crate::Outcome;
use crate::args::Command;
use crate::output::Table;
use crate::session::Session;

/// How often a watched listing is fetched.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// Runs a command to its end.
pub(crate) fn run(session: &mut Session, command: Command) -> anyhow::Result<Outcome> {
    match command {
        Command::Validate(args) => validate::run(session, &args),
        Command::Completion(args) => completion::run(session, &args),
        Command::Server(_) => bail!("this program was built without the server"),
        command => {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
            runtime.block_on(run_remote(session, command))
        }
    }
}

async fn run_remote(session: &mut Session, command: Command) -> anyhow::Result<Outcome> {
    match command {
        Command::Apply(args) => Box::pin(apply::run(session, *args)).await,
        Command::Attach(args) => attach::run(session, &args).await,
        Command::Delete(args) => delete::run(session, &args).await,
        Command::Event(args) => event::run(session, &args).await,
        Command::Export(args) => exchange::exports(session, &args).await,
        Command::Fleet(args) => fleet::run(session, args).await,
        Command::Import(args) => exchange::imports(session, &args).await,
        Command::Gateway(args) => gateway::run(session, args).await,
        Command::Init(args) => init::run(session, &args).await,
        Command::Offer(args) => offer::run(session, *args).await,
        Command::Login(args) => login::run(session, &args).await,
        Command::Logs(args) => logs::run(session, &args).await,
        Command::Metrics(args) => metrics::run(session, &args).await,
        Command::Project(args) => project::run(session, args).await,
        Command::Ps(args) => ps::run(session, &args).await,
        Command::Run(args) => run::run(session, args).await,
        Command::Secret(args) => secret::run(session, args).await,
        Command::Stop(args) => stop::run(session, &args).await,
        Command::Volume(args) => volume::run(session, args).await,
        Command::Validate(_) | Command::Completion(_) | Command::Server(_) => Ok(Outcome::Done),
    }
}

/// Shows a listing, again and again if it is watched. A blank line follows it, if the official listing has one.
async fn show(
    session: &mut Session,
    watch: bool,
    blank: bool,
    list: impl AsyncFn(Timestamp) -> anyhow::Result<Table>,
) -> anyhow::Result<()> {
    let mut shown = 0;
    loop {
        let table = list(session.now()).await?;
        if session.printer.terminal.out && shown != 0 {
            // Back to the first line of the last listing, and nothing left below.
            session.printer.raw(format!("\x1b[{shown}A\x1b[J").as_bytes())?;
        }
        session.printer.table(&table)?;
        if !watch {
            if blank {
                session.printer.blank()?;
            }
            return Ok(());
        }
        session.printer.flush()?;
        shown = table.render(session.printer.terminal.width, false).lines().count();
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
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
fn agreed(session: &mut Session, yes: bool, question: &str) -> anyhow::Result<bool> {
    if yes || session.printer.confirm(question)? {
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
