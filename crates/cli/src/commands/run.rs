//! `dstack run get`: a run as JSON.

use api::client::endpoints;
use api::runs::GetRunRequest;
use clap::CommandFactory;

use crate::Outcome;
use crate::args::{Cli, RunCommand, RunCommandArgs};
use crate::session::Session;

pub(super) async fn run(session: &mut Session, args: RunCommandArgs) -> anyhow::Result<Outcome> {
    let Some(RunCommand::Get(get)) = args.command else { return help(session) };
    let id = super::identifier(get.id.as_deref())?;
    let project = session.project(args.project.project.as_deref())?;
    let request = GetRunRequest { run_name: get.name.clone(), id };
    let run = project.client.call(&endpoints::GET_RUN, &project.name, &request).await;
    let run = super::named(run, || format!("Run {} not found", get.name.or(get.id).unwrap_or_default()))?;
    session.printer.json_laid_out(&run)?;
    Ok(Outcome::Done)
}

fn help(session: &mut Session) -> anyhow::Result<Outcome> {
    let mut command = Cli::command();
    command.build();
    if let Some(run) = command.find_subcommand_mut("run") {
        let text = session.printer.rendered(&run.render_help());
        session.printer.raw(text.as_bytes())?;
    }
    Ok(Outcome::Done)
}
