//! `dstack stop`: asks a run to end, and does not wait.

use api::client::endpoints;
use api::runs::{GetRunRequest, StopRunsRequest};

use crate::Outcome;
use crate::args::StopArgs;
use crate::session::Session;

pub(super) async fn run(session: &mut Session, args: &StopArgs) -> anyhow::Result<Outcome> {
    let project = session.project(args.project.project.as_deref())?;
    let request = GetRunRequest { run_name: Some(args.run_name.clone()), id: None };
    let run = project.client.call(&endpoints::GET_RUN, &project.name, &request).await;
    super::named(run, || format!("Run {} not found", args.run_name))?;
    if !args.yes && !session.printer.confirm("Are you sure you want to stop the run?").await? {
        return Ok(Outcome::Done);
    }
    let request = StopRunsRequest { runs_names: vec![args.run_name.clone()], abort: args.abort };
    project.client.call(&endpoints::STOP_RUNS, &project.name, &request).await?;
    session.printer.line(if args.abort { "Aborted" } else { "Stopped" })?;
    Ok(Outcome::Done)
}
