//! `dstack attach --logs`: the log of one job as it is written, until the run is finished. All else that attaching is
//! for needs SSH.

use anyhow::bail;
use api::client::{RunStream, RunStreamEvent, RunStreamOptions, endpoints};
use api::runs::{GetRunRequest, Run, RunStatus};

use super::apply::follow::{print_ending, steps, tell};
use super::apply::progress::Progress;
use crate::Outcome;
use crate::args::AttachArgs;
use crate::logs::LogWriter;
use crate::output::runs::{self, Times};
use crate::session::{Project, Session};

pub(super) async fn run(session: &mut Session, args: &AttachArgs) -> anyhow::Result<Outcome> {
    if !args.logs || args.host.is_some() || args.ssh_identity.is_some() || !args.ports.is_empty() {
        bail!(
            "`dstack attach` by SSH and forwarded ports are not supported yet. Until then, follow the run with \
             `dstack attach {} --logs`",
            args.run_name
        );
    }
    let interrupts = session.interrupts.clone();
    let attached = tokio::select! {
        biased;
        () = interrupts.next() => None,
        outcome = attach(session, args) => Some(outcome?),
    };
    let Some(outcome) = attached else {
        session.printer.line("\nDetached")?;
        return Ok(Outcome::Done);
    };
    Ok(outcome)
}

async fn attach(session: &mut Session, args: &AttachArgs) -> anyhow::Result<Outcome> {
    let since = super::since(session, args.since.as_deref())?;
    let project = session.project(args.project.project.as_deref())?;
    let request = GetRunRequest { run_name: Some(args.run_name.clone()), id: None };
    let run = project.client.call(&endpoints::GET_RUN, &project.name, &request).await;
    let run = super::named(run, || format!("Run {} not found", args.run_name))?;
    let job = args.job.unwrap_or(0);
    let replica = args.replica.unwrap_or_else(|| running_replica(&run));
    let is_it = |spec: &api::jobs::JobSpec| spec.job_num == job && spec.replica_num == replica;
    if !run.jobs.is_empty() && run.jobs.iter().all(|other| !is_it(&other.job_spec)) {
        bail!("Failed to attach to run {}: it has no replica={replica} job={job}", args.run_name);
    }
    let options = RunStreamOptions { logs: true, replica, job: Some(job), since, follow: true };
    let mut attachment = Attachment { replica, job, run, waited: false, attached: false };
    attachment.follow(session, &project, options).await
}

fn running_replica(run: &Run) -> u32 {
    let is_running = |job: &&api::jobs::Job| {
        job.job_submissions.last().is_some_and(|last| last.status == api::jobs::JobStatus::Running)
    };
    run.jobs.iter().find(is_running).map_or(0, |job| job.job_spec.replica_num)
}

/// How far attaching is.
struct Attachment {
    replica: u32,
    job: u32,
    run: Run,
    /// The user has seen the run on its way.
    waited: bool,
    /// The user was told that this is the run's log.
    attached: bool,
}

impl Attachment {
    async fn follow(
        &mut self,
        session: &mut Session,
        project: &Project,
        options: RunStreamOptions,
    ) -> anyhow::Result<Outcome> {
        let name = runs::run_name(&self.run).to_owned();
        let mut writer = LogWriter::new(false);
        let mut progress = Progress::default();
        self.show(session, &mut progress)?;
        let mut stream = RunStream::open(&project.client, &project.name, &name, options).await?;
        loop {
            if !stream.has_next() {
                session.printer.flush()?;
            }
            let Some(event) = stream.next().await else { break };
            match event? {
                RunStreamEvent::Log { job_num, bytes } => {
                    self.announce(session, &mut progress)?;
                    writer.write(&mut session.printer, job_num, &bytes)?;
                }
                RunStreamEvent::Run(run) => {
                    self.run = *run;
                    self.show(session, &mut progress)?;
                }
                event => tell(session, &event)?,
            }
        }
        writer.end_line(&mut session.printer)?;
        print_ending(session, &self.run)
    }

    /// Shows how far the run is, until it is there.
    fn show(&mut self, session: &mut Session, progress: &mut Progress) -> anyhow::Result<()> {
        match self.run.status {
            _ if self.attached => Ok(()),
            RunStatus::Submitted | RunStatus::Pending | RunStatus::Provisioning => {
                self.waited = true;
                progress.show(&mut session.printer, &steps(&self.run))?;
                Ok(())
            }
            _ => self.announce(session, progress),
        }
    }

    fn announce(&mut self, session: &mut Session, progress: &mut Progress) -> anyhow::Result<()> {
        if self.attached {
            return Ok(());
        }
        self.attached = true;
        progress.clear();
        let (name, status) = (runs::run_name(&self.run), self.run.status);
        let printer = &mut session.printer;
        if self.waited {
            let times = Times::At(session.zone.clone());
            let verbose = status == RunStatus::Failed;
            printer.table(&runs::table(std::slice::from_ref(&self.run), verbose, &times))?;
            printer.line(format!("\nProvisioning {name} completed ({})", status.as_str()))?;
        }
        if status.is_finished() && status != RunStatus::Done {
            bail!("Run {name} is {}", status.as_str());
        }
        printer.line(format!("Attached to run {name} (replica={} job={})", self.replica, self.job))?;
        printer.line("Press Ctrl+C to detach...")?;
        Ok(())
    }
}
