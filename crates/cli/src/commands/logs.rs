//! `dstack logs`: what the jobs of a run have written, or are writing.

use anyhow::{Context, bail};
use api::client::{RunStreamOptions, endpoints};
use api::ids::JobId;
use api::jobs::Job;
use api::logs::{LogEvent, PollLogsRequest};
use api::runs::{GetRunRequest, Run};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;

use super::apply::follow;
use crate::Outcome;
use crate::args::LogsArgs;
use crate::logs::LogWriter;
use crate::session::{Project, Session};

/// Pieces of a log in one call at most.
const PAGE: u32 = 1000;

pub(super) async fn run(session: &mut Session, args: &LogsArgs) -> anyhow::Result<Outcome> {
    let since = super::since(session, args.since.as_deref())?;
    let project = session.project(args.project.project.as_deref())?;
    let request = GetRunRequest { run_name: Some(args.run_name.clone()), id: None };
    let run = project.client.call(&endpoints::GET_RUN, &project.name, &request).await;
    let run = super::named(run, || format!("Run {} not found", args.run_name))?;
    let jobs = jobs(&run, args)?;
    let several = 1 < jobs.len();
    if args.follow || !several && !args.diagnose {
        // A stream is many times faster than pages, but has no order among jobs.
        let options =
            RunStreamOptions { logs: true, replica: args.replica, job: args.job, since, follow: args.follow };
        return follow::logs(session, &project, &args.run_name, options, several).await;
    }
    let mut pagers: Vec<Pager> = jobs.into_iter().filter_map(|job| Pager::new(job, args, since)).collect();
    print(session, &project, &mut pagers).await?;
    Ok(Outcome::Done)
}

fn jobs<'a>(run: &'a Run, args: &LogsArgs) -> anyhow::Result<Vec<&'a Job>> {
    let is_wanted = |job: &&Job| {
        job.job_spec.replica_num == args.replica && args.job.is_none_or(|num| num == job.job_spec.job_num)
    };
    let jobs: Vec<&Job> = run.jobs.iter().filter(is_wanted).collect();
    if jobs.is_empty() && (args.job.is_some() || args.replica != 0) {
        let job = args.job.map(|num| format!(" job {num} in")).unwrap_or_default();
        bail!("Run {} has no{job} replica {}", args.run_name, args.replica);
    }
    Ok(jobs)
}

/// Prints the logs of all jobs in the order of time.
async fn print(session: &mut Session, project: &Project, pagers: &mut [Pager]) -> anyhow::Result<()> {
    let mut writer = LogWriter::new(1 < pagers.len());
    for pager in pagers.iter_mut() {
        pager.fill(project).await?;
    }
    while let Some(next) =
        (0..pagers.len()).filter(|i| pagers[*i].time().is_some()).min_by_key(|i| pagers[*i].time())
    {
        let pager = &mut pagers[next];
        let Some(event) = pager.events.next() else { continue };
        let bytes = STANDARD.decode(&event.message).context("a piece of the log is not base64")?;
        writer.write(&mut session.printer, pager.job_num, &bytes)?;
        if pager.events.as_slice().is_empty() {
            session.printer.flush()?;
            pager.fill(project).await?;
        }
    }
    writer.finish(&mut session.printer)?;
    Ok(())
}

/// The log of one job, a page at a time.
struct Pager {
    job_num: u32,
    request: PollLogsRequest,
    events: std::vec::IntoIter<LogEvent>,
    is_over: bool,
}

impl Pager {
    fn new(job: &Job, args: &LogsArgs, since: Option<Timestamp>) -> Option<Pager> {
        let submission: JobId = job.job_submissions.last()?.id;
        let request = PollLogsRequest {
            run_name: args.run_name.clone(),
            job_submission_id: submission,
            start_time: since,
            end_time: None,
            descending: false,
            next_token: None,
            limit: PAGE,
            diagnose: args.diagnose,
        };
        Some(Pager { job_num: job.job_spec.job_num, request, events: Vec::new().into_iter(), is_over: false })
    }

    fn time(&self) -> Option<Timestamp> {
        self.events.as_slice().first().map(|event| event.timestamp)
    }

    /// Fetches pages until there is something to print or nothing more.
    async fn fill(&mut self, project: &Project) -> anyhow::Result<()> {
        while !self.is_over && self.events.as_slice().is_empty() {
            let page = project.client.call(&endpoints::POLL_LOGS, &project.name, &self.request).await?;
            self.is_over = page.next_token.is_none();
            self.request.next_token = page.next_token;
            self.events = page.logs.into_iter();
        }
        Ok(())
    }
}
