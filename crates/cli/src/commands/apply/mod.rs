//! `dstack apply`: shows what a configuration would change, asks, and does it.

mod archives;
mod configure;
mod ending;
mod fleet;
pub(super) mod follow;
mod ignore;
mod interpolate;
pub(super) mod options;
mod progress;
mod run;
pub(super) mod source;

use anyhow::bail;
use api::configurations::Configuration;
use clap::CommandFactory;

use crate::Outcome;
use crate::args::{ApplyArgs, Cli, RunArgs};
use crate::session::Session;
use source::ConfigurationFile;

/// What is said before a plan is left unapplied.
const USE_FORCE: &str = "Use --force to apply anyway.";

pub(super) async fn run(session: &mut Session, args: ApplyArgs) -> anyhow::Result<Outcome> {
    if args.help.is_some() {
        return help(session);
    }
    let file = ConfigurationFile::read(session, args.file.as_deref())?;
    let ConfigurationFile { configuration, path, folder } = file;
    match configuration.into_run() {
        Ok(configuration) => run::apply(session, &args, configuration, path, &folder).await,
        Err(other) if args.run != RunArgs::default() => {
            bail!("Unrecognized arguments: a {} takes only `-n` and `-e` beside the general ones", other.kind())
        }
        Err(Configuration::Fleet(configuration)) => fleet::apply(session, &args, *configuration, path).await,
        Err(other) => bail!("{}s are not supported yet by this version of dstack", other.kind()),
    }
}

fn help(session: &mut Session) -> anyhow::Result<Outcome> {
    let mut command = Cli::command();
    command.build();
    if let Some(apply) = command.find_subcommand_mut("apply") {
        let text = apply.render_long_help();
        let text = if session.printer.terminal.colour { text.ansi().to_string() } else { text.to_string() };
        session.printer.raw(text.as_bytes())?;
    }
    Ok(Outcome::Done)
}
