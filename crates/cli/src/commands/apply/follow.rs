//! Following a run over its live stream: progress until it runs, its logs, and how it ended.

use anyhow::Context;
use api::client::{RunStream, RunStreamEvent, RunStreamOptions, endpoints};
use api::jobs::{JobStatus, JobSubmission};
use api::runs::{Run, RunStatus, StopRunsRequest};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::ending;
use super::progress::{Progress, Step};
use crate::Outcome;
use crate::logs::LogWriter;
use crate::output::format;
use crate::output::runs::{self, Times};
use crate::printer::{ERROR, SUCCESS};
use crate::session::{Project, Session};

/// Prints the logs of a run until it is finished.
pub(in crate::commands) async fn logs(
    session: &mut Session,
    project: &Project,
    run_name: &str,
    options: RunStreamOptions,
    several: bool,
) -> anyhow::Result<Outcome> {
    let mut stream = RunStream::open(&project.client, &project.name, run_name, options).await?;
    let mut writer = LogWriter::new(several);
    loop {
        if !stream.has_next() {
            session.printer.flush()?;
        }
        let Some(event) = stream.next().await else { break };
        match event? {
            RunStreamEvent::Log { job_num, bytes } => writer.write(&mut session.printer, job_num, &bytes)?,
            event => tell(session, &event)?,
        }
    }
    writer.finish(&mut session.printer)?;
    Ok(Outcome::Done)
}

/// Shows a submitted run until it is finished or left alone.
pub(super) async fn run(session: &mut Session, project: &Project, run: Run, yes: bool) -> anyhow::Result<Outcome> {
    let name = runs::run_name(&run).to_owned();
    let options = RunStreamOptions { logs: true, replica: 0, job: None, since: None, follow: true };
    let mut interrupts = signal(SignalKind::interrupt()).context("listen for Ctrl-C")?;
    let stream = RunStream::open(&project.client, &project.name, &name, options).await?;
    let several = 1 < run.jobs.len();
    let mut follower = Follower {
        name,
        run,
        stream,
        writer: LogWriter::new(several),
        progress: Progress::default(),
        announced: false,
        stopping: false,
    };
    let result = follower.follow(session, project, &mut interrupts, yes).await;
    follower.progress.clear();
    result
}

/// Says what happens to the stream itself.
fn tell(session: &mut Session, event: &RunStreamEvent) -> anyhow::Result<()> {
    match event {
        RunStreamEvent::Gap { job_num, bytes } => {
            session
                .printer
                .note(&format!("[{job_num}] {bytes} bytes of the log are lost: the host's store was full"))?;
        }
        RunStreamEvent::Disconnected => {
            session.printer.note("The connection to the server is lost; trying again")?;
        }
        RunStreamEvent::Reconnected => session.printer.note("The server is there again")?,
        RunStreamEvent::Run(_) | RunStreamEvent::Submission { .. } | RunStreamEvent::Log { .. } => {}
    }
    Ok(())
}

struct Follower {
    name: String,
    run: Run,
    stream: RunStream,
    writer: LogWriter,
    progress: Progress,
    /// The user was told that provisioning is over.
    announced: bool,
    /// The user wants the run to stop.
    stopping: bool,
}

impl Follower {
    async fn follow(
        &mut self,
        session: &mut Session,
        project: &Project,
        interrupts: &mut Signal,
        yes: bool,
    ) -> anyhow::Result<Outcome> {
        self.show_progress(session)?;
        loop {
            if !self.stream.has_next() {
                session.printer.flush()?;
            }
            // A flood of logs must not keep the user from stopping it.
            let event = tokio::select! {
                biased;
                _ = interrupts.recv() => {
                    if self.interrupted(session, project, interrupts, yes).await? {
                        session.printer.line("Detached")?;
                        return Ok(Outcome::Done);
                    }
                    continue;
                }
                event = self.stream.next() => event,
            };
            match event {
                Some(event) => self.handle(session, event?)?,
                None => return self.finish(session),
            }
        }
    }

    fn handle(&mut self, session: &mut Session, event: RunStreamEvent) -> anyhow::Result<()> {
        match event {
            RunStreamEvent::Log { job_num, bytes } => {
                self.announce(session)?;
                self.writer.write(&mut session.printer, job_num, &bytes)?;
            }
            RunStreamEvent::Run(run) => {
                self.run = *run;
                if is_up(&self.run) {
                    self.announce(session)?;
                } else if !self.run.status.is_finished() && self.run.status != RunStatus::Terminating {
                    // After a failure that is tried again, there is something to wait for again.
                    self.announced = false;
                    self.show_progress(session)?;
                }
            }
            RunStreamEvent::Submission { .. } => {}
            event => {
                self.progress.clear();
                self.writer.end_line(&mut session.printer)?;
                tell(session, &event)?;
            }
        }
        Ok(())
    }

    fn show_progress(&mut self, session: &mut Session) -> anyhow::Result<()> {
        self.writer.end_line(&mut session.printer)?;
        self.progress.show(&mut session.printer, &steps(&self.run))?;
        Ok(())
    }

    /// Shows once where the run ended up.
    fn announce(&mut self, session: &mut Session) -> anyhow::Result<()> {
        if self.announced {
            return Ok(());
        }
        self.announced = true;
        self.progress.clear();
        let verbose = self.run.status == RunStatus::Failed;
        let times = Times::At(session.zone.clone());
        session.printer.table(&runs::table(std::slice::from_ref(&self.run), verbose, &times))?;
        session.printer.blank()?;
        let status = self.run.status.as_str();
        session.printer.line(format!("{} provisioning completed ({status})", self.name))?;
        if let Some(url) = self.run.service.as_ref().and_then(|service| service.get("url")?.as_str()) {
            session.printer.line(format!("Service is published at:\n  {url}"))?;
        }
        Ok(())
    }

    fn finish(&mut self, session: &mut Session) -> anyhow::Result<Outcome> {
        self.announce(session)?;
        self.writer.end_line(&mut session.printer)?;
        let ending = ending::of(&self.run);
        session.printer.styled_line(&ending.title, if ending.success { SUCCESS } else { ERROR })?;
        for line in &ending.details {
            session.printer.line(line)?;
        }
        Ok(if ending.success { Outcome::Done } else { Outcome::Failed })
    }

    /// Acts on Ctrl-C. True: the run is left alone.
    async fn interrupted(
        &mut self,
        session: &mut Session,
        project: &Project,
        interrupts: &mut Signal,
        yes: bool,
    ) -> anyhow::Result<bool> {
        self.progress.clear();
        self.writer.end_line(&mut session.printer)?;
        if yes && !self.stopping {
            return Ok(true);
        }
        if !self.stopping {
            let question = format!("Stop the run {} before detaching?", self.name);
            let again = async {
                interrupts.recv().await;
            };
            match session.printer.confirm_unless(&question, again).await? {
                Some(false) => return Ok(true),
                Some(true) => return self.stop(session, project, false).await.map(|()| false),
                None => session.printer.blank()?,
            }
        }
        // The second Ctrl-C.
        self.stop(session, project, true).await?;
        Ok(false)
    }

    async fn stop(&mut self, session: &mut Session, project: &Project, abort: bool) -> anyhow::Result<()> {
        session.printer.note(if abort { "Aborting..." } else { "Stopping..." })?;
        let request = StopRunsRequest { runs_names: vec![self.name.clone()], abort };
        project.client.call(&endpoints::STOP_RUNS, &project.name, &request).await?;
        self.stopping = true;
        Ok(())
    }
}

/// Whether all nodes have got as far as running their commands.
fn is_up(run: &Run) -> bool {
    let is_started = |submission: &JobSubmission| {
        !matches!(submission.status, JobStatus::Submitted | JobStatus::Provisioning | JobStatus::Pulling)
    };
    let is_running = matches!(run.status, RunStatus::Running);
    is_running && run.jobs.iter().all(|job| job.job_submissions.last().is_some_and(is_started))
}

/// What each node is doing.
fn steps(run: &Run) -> Vec<Step> {
    let several = 1 < run.jobs.len();
    let mut steps = Vec::new();
    for job in &run.jobs {
        let Some(submission) = job.job_submissions.last() else { continue };
        let spec = &job.job_spec;
        let node = match (several, spec.replica_num) {
            (false, _) => String::new(),
            (true, 0) => spec.job_num.to_string(),
            (true, replica) => format!("{replica}/{}", spec.job_num),
        };
        steps.push(Step { node, doing: doing(submission), detail: detail(submission) });
    }
    if steps.is_empty() {
        steps.push(Step { node: String::new(), doing: runs::run_status(run), detail: String::new() });
    }
    steps
}

fn doing(submission: &JobSubmission) -> String {
    let status = runs::plain_job_status(submission);
    match (&submission.waiting_for, &submission.job_provisioning_data) {
        (Some(reason), _) => format!("{status}: {reason}"),
        (None, Some(placed)) if submission.status == JobStatus::Provisioning => {
            let place = format::place(placed.backend, &placed.region, placed.availability_zone.as_deref());
            format!("{status}{}", format::on(&placed.instance_type.name, &place))
        }
        (None, _) => status.to_owned(),
    }
}

fn detail(submission: &JobSubmission) -> String {
    let Some(progress) = &submission.image_pull_progress else { return String::new() };
    let percent = match progress.total_bytes {
        0 => String::new(),
        // Downloading and extracting are one half each.
        total => format!("{}% ", (progress.downloaded_bytes + progress.extracted_bytes) * 50 / total),
    };
    format!("{percent}({})", format::pull_progress(progress))
}
