//! `dstack completion`: a script for the user's shell.

use clap::CommandFactory;
use clap_complete::generate;
use clap_complete::shells::{Bash, Fish, Zsh};

use crate::Outcome;
use crate::args::{Cli, CompletionArgs, Shell};
use crate::session::Session;

pub(super) fn run(session: &mut Session, args: &CompletionArgs) -> anyhow::Result<Outcome> {
    let mut script = Vec::new();
    let mut command = Cli::command();
    match args.shell {
        Shell::Bash => generate(Bash, &mut command, "dstack", &mut script),
        Shell::Zsh => generate(Zsh, &mut command, "dstack", &mut script),
        Shell::Fish => generate(Fish, &mut command, "dstack", &mut script),
    }
    session.printer.raw(&script)?;
    Ok(Outcome::Done)
}
