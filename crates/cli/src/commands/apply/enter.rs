//! The way into a run that is followed, and what the user is told of it.

use api::client::{RunTunnelTarget, endpoints};
use api::ids::JobId;
use api::jobs::{Job, JobStatus};
use api::runs::{GetRunRequest, Run, RunStatus};

use crate::session::{Project, Session};
use crate::ssh::{Attachment, Wishes};

/// What came of looking for a way in.
pub(super) enum Entered {
    /// There is one.
    Made(Box<Attachment>),
    /// There is none, and why.
    Refused(String),
    /// Ctrl-C came first; it is heard where the run is followed.
    Interrupted,
}

/// Opens the way into a job of `run`. The run can be followed without one, so nothing of it is an error.
pub(super) async fn enter(
    session: &Session,
    project: &Project,
    run: &Run,
    target: RunTunnelTarget,
    wishes: &Wishes,
) -> Entered {
    let interrupts = session.interrupts.clone();
    let made = tokio::select! {
        biased;
        () = interrupts.next() => {
            interrupts.press();
            return Entered::Interrupted;
        }
        made = make(session, project, run, target, wishes) => made,
    };
    match made {
        Ok(Some(attachment)) => Entered::Made(Box::new(attachment)),
        Ok(None) => Entered::Refused("the job has no SSH server".to_owned()),
        Err(error) => Entered::Refused(match error.downcast_ref::<api::client::ClientError>() {
            Some(error) => error.to_string(),
            None => format!("{error:#}"),
        }),
    }
}

async fn make(
    session: &Session,
    project: &Project,
    run: &Run,
    target: RunTunnelTarget,
    wishes: &Wishes,
) -> anyhow::Result<Option<Attachment>> {
    // The live stream may leave out how users reach a job.
    let is_known = find(run, target).is_some_and(|job| job.job_connection_info.is_some());
    if is_known {
        return Attachment::make(session, project, run, target, wishes).await;
    }
    let request = GetRunRequest { run_name: run.run_spec.run_name.clone(), id: None };
    let run = project.client.call(&endpoints::GET_RUN, &project.name, &request).await?;
    Attachment::make(session, project, &run, target, wishes).await
}

/// The job that is meant.
pub(super) fn find(run: &Run, target: RunTunnelTarget) -> Option<&Job> {
    run.jobs.iter().find(|job| job.job_spec.replica_num == target.replica && job.job_spec.job_num == target.job)
}

/// The submission in which the job runs.
pub(super) fn running(run: &Run, target: RunTunnelTarget) -> Option<JobId> {
    let last = find(run, target)?.job_submissions.last()?;
    (run.status == RunStatus::Running && last.status == JobStatus::Running).then_some(last.id)
}

/// Says which ports lead into the job.
pub(super) fn print_ports(session: &mut Session, attachment: &Attachment) -> anyhow::Result<()> {
    if !attachment.forwards.is_empty() {
        session.printer.line("Forwarded ports (local -> remote):")?;
    }
    for forward in &attachment.forwards {
        session.printer.line(format!("  - {}:{} -> {}", forward.host, forward.local, forward.container))?;
    }
    Ok(())
}

/// Says with which link an IDE opens the job, if it is a dev environment.
pub(super) fn print_link(session: &mut Session, attachment: &Attachment) -> anyhow::Result<()> {
    let Some((ide, link)) = &attachment.ide else { return Ok(()) };
    session.printer.line(format!("To open in {ide}, use link below:\n\n  {link}\n"))?;
    Ok(())
}
