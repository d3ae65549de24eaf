//! `dstack ps`: the runs of a project.

use api::client::endpoints;
use api::jobs::JobStatus;
use api::runs::{ListRunsRequest, Run};
use serde::Serialize;

use crate::Outcome;
use crate::args::{Format, PsArgs};
use crate::output::runs::{self, Times};
use crate::printer::SECONDARY;
use crate::session::{Project, Session};

#[derive(Serialize)]
struct Listing<'a> {
    project: &'a str,
    runs: &'a [Run],
}

pub(super) async fn run(session: &mut Session, args: &PsArgs) -> anyhow::Result<Outcome> {
    let project = session.project(args.project.project.as_deref())?;
    if args.format.format() == Format::Json {
        super::refuse_watch(args.watch)?;
        let runs = list(&project, args).await?;
        session.printer.json(&Listing { project: &project.name, runs: &runs })?;
        return Ok(Outcome::Done);
    }
    if args.watch {
        let table = async |now| Ok(runs::table(&list(&project, args).await?, args.verbose, &Times::Since(now)));
        super::show(session, true, false, table).await?;
        return Ok(Outcome::Done);
    }
    let runs = list(&project, args).await?;
    let times = Times::Since(session.now());
    session.printer.table(&runs::table(&runs, args.verbose, &times))?;
    for waits in runs.iter().filter_map(waits_for) {
        session.printer.styled_line(&waits, SECONDARY)?;
    }
    tell_notes(session, &project).await?;
    Ok(Outcome::Done)
}

/// What a run waits for that has no machines yet, as its first node tells it.
fn waits_for(run: &Run) -> Option<String> {
    let submission = run.jobs.first()?.job_submissions.last()?;
    let is_early = matches!(submission.status, JobStatus::Submitted | JobStatus::Provisioning);
    let reason = submission.waiting_for.as_ref().filter(|_| is_early && !run.status.is_finished())?;
    Some(format!("{} waits for {reason}", runs::run_name(run)))
}

/// What else users of the project should know, such as machines of a backend that was let go. Servers of others do not
/// tell, and nobody misses it.
async fn tell_notes(session: &mut Session, project: &Project) -> anyhow::Result<()> {
    if let Ok(told) = project.client.call(&endpoints::PROJECT_NOTES, &project.name, &()).await {
        for note in told.notes {
            session.printer.warning(&note)?;
        }
    }
    Ok(())
}

async fn list(project: &Project, args: &PsArgs) -> anyhow::Result<Vec<Run>> {
    let request = ListRunsRequest {
        project_name: Some(project.name.clone()),
        only_active: !args.all && args.last.is_none(),
        job_submissions_limit: Some(1),
        limit: args.last.unwrap_or(100),
        ..ListRunsRequest::default()
    };
    let runs = project.client.call(&endpoints::LIST_RUNS, &project.name, &request).await?;
    if !runs.is_empty() || !request.only_active {
        return Ok(runs);
    }
    // Nothing is active, so the last one that was is what the user looks for.
    let last = ListRunsRequest { only_active: false, limit: 1, ..request };
    Ok(project.client.call(&endpoints::LIST_RUNS, &project.name, &last).await?)
}
