//! `dstack completion`: a script that has the user's shell ask this program what can be typed next.

use anyhow::Context;
use clap_complete::env::Shells;

use crate::Outcome;
use crate::args::{CompletionArgs, Shell};
use crate::session::Session;

/// The variable by which the script says that it asks.
pub(crate) const VARIABLE: &str = "COMPLETE";

/// The program's name; shells find it as they find every program.
const PROGRAM: &str = "dstack";

pub(super) fn run(session: &mut Session, args: &CompletionArgs) -> anyhow::Result<Outcome> {
    let shell = match args.shell {
        Shell::Bash => "bash",
        Shell::Zsh => "zsh",
        Shell::Fish => "fish",
    };
    let shells = Shells::builtins();
    let shell = shells.completer(shell).with_context(|| format!("nothing is known of the shell `{shell}`"))?;
    let mut script = Vec::new();
    shell.write_registration(VARIABLE, PROGRAM, PROGRAM, PROGRAM, &mut script)?;
    session.printer.raw(&script)?;
    Ok(Outcome::Done)
}
