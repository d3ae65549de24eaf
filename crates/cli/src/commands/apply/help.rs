//! `dstack apply -h`: the options that all configurations take, or with those of one type.

use api::configurations::ConfigurationType;
use clap::{Arg, Args, Command, CommandFactory};

use crate::Outcome;
use crate::args::{Cli, RunArgs};
use crate::session::Session;

/// Options that configurations other than runs may take too.
const NAME: &str = "name";
const ENV: &str = "env";

/// Options that services do not have.
const FORWARDING: [&str; 2] = ["ports", "host"];

const HINT: &str = "\nType `dstack apply -h CONFIGURATION_TYPE` to see configuration-specific options.\n";

pub(super) fn print(session: &mut Session, kind: Option<ConfigurationType>) -> anyhow::Result<Outcome> {
    let mut cli = Cli::command();
    cli.build();
    let Some(apply) = cli.find_subcommand("apply").cloned() else { return Ok(Outcome::Done) };
    let text = session.printer.rendered(&only_for(apply, kind).render_long_help());
    session.printer.raw(text.as_bytes())?;
    if kind.is_none() {
        session.printer.line(HINT)?;
    }
    Ok(Outcome::Done)
}

/// The command without the options that the type does not have.
fn only_for(apply: Command, kind: Option<ConfigurationType>) -> Command {
    let of_runs = RunArgs::augment_args(Command::new(""));
    let of_runs: Vec<String> = of_runs.get_arguments().map(|arg| arg.get_id().to_string()).collect();
    let is_hidden = |id: &str| match kind {
        Some(ConfigurationType::Task | ConfigurationType::DevEnvironment) => false,
        Some(ConfigurationType::Service) => FORWARDING.contains(&id),
        Some(ConfigurationType::Fleet) => of_runs.iter().any(|other| other == id),
        Some(ConfigurationType::Volume | ConfigurationType::Gateway) => {
            id == ENV || of_runs.iter().any(|other| other == id)
        }
        None => id == ENV || id == NAME || of_runs.iter().any(|other| other == id),
    };
    apply.mut_args(|arg: Arg| {
        let hide = arg.is_hide_set() || is_hidden(arg.get_id().as_str());
        arg.hide(hide)
    })
}
