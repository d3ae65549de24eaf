//! Following a run over its live stream: progress until it runs, its logs, and how it ended.

use std::time::Duration;

use anyhow::bail;
use api::client::{RunStream, RunStreamEvent, RunStreamOptions, RunTunnelTarget, endpoints};
use api::configurations::RunConfiguration;
use api::ids::JobId;
use api::jobs::{ImagePullProgress, Job, JobStatus, JobSubmission};
use api::runs::{Run, RunStatus, StopRunsRequest};
use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::Instant;

use super::enter::Entered;
use super::progress::{Progress, Step};
use super::{ending, enter};
use crate::Outcome;
use crate::logs::LogWriter;
use crate::output::format;
use crate::output::runs::{self, Times};
use crate::printer::{ERROR, SUCCESS};
use crate::session::{Project, Session};
use crate::ssh::{Attachment, Wishes};

/// How long log bytes wait for the news that the nodes are up, which may come a little later.
const HOLD_TIME: Duration = Duration::from_millis(200);

/// Pieces of the log that wait at most.
const HELD: usize = 1024;

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

/// Why a run is followed: what is said of it, and what Ctrl-C means.
#[derive(Debug, Clone, Copy)]
pub(in crate::commands) enum Purpose {
    /// It was just submitted.
    Submitted {
        /// Ctrl-C asks nothing and lets the run go on.
        yes: bool,
    },
    /// The user wants to see one job of a run that goes on without them.
    Attached {
        /// The replica of the job.
        replica: u32,
        /// The job's number.
        job: u32,
        /// Its log too.
        logs: bool,
        /// Only what was written at or after this time.
        since: Option<Timestamp>,
    },
}

impl Purpose {
    fn options(self) -> RunStreamOptions {
        let follow = true;
        match self {
            Purpose::Submitted { .. } => {
                RunStreamOptions { logs: true, replica: 0, job: None, since: None, follow }
            }
            Purpose::Attached { replica, job, logs, since } => {
                RunStreamOptions { logs, replica, job: Some(job), since, follow }
            }
        }
    }

    /// The job that the user can enter.
    fn target(self) -> RunTunnelTarget {
        match self {
            Purpose::Submitted { .. } => RunTunnelTarget::default(),
            Purpose::Attached { replica, job, .. } => RunTunnelTarget { replica, job },
        }
    }

    fn concerns(self, job: &Job) -> bool {
        match self {
            Purpose::Submitted { .. } => true,
            Purpose::Attached { replica, job: number, .. } => {
                job.job_spec.replica_num == replica && job.job_spec.job_num == number
            }
        }
    }
}

/// What the user has asked the server to do with the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Nothing,
    Stop,
    Abort,
}

/// Shows a run until it is finished or left alone.
pub(in crate::commands) struct Follower {
    project: Project,
    name: String,
    run: Run,
    purpose: Purpose,
    writer: LogWriter,
    progress: Progress,
    /// The user has seen the run on its way.
    waited: bool,
    /// The user was told that provisioning is over.
    announced: bool,
    /// Log bytes that came before the news that the nodes are up.
    held: Vec<(u32, Bytes)>,
    /// Until when they are held.
    held_until: Option<Instant>,
    asked: Asked,
    wishes: Wishes,
    /// The way in, while there is one.
    attachment: Option<Box<Attachment>>,
    /// The submission that a way was looked for into.
    entered: Option<JobId>,
    /// The user was told that there is none.
    warned: bool,
}

impl Follower {
    /// Follows a run. Nothing is sent or shown yet.
    pub(in crate::commands) fn new(project: Project, run: Run, purpose: Purpose, wishes: Wishes) -> Follower {
        let writer = LogWriter::new(purpose.options().job.is_none() && 1 < run.jobs.len());
        Follower {
            project,
            name: runs::run_name(&run).to_owned(),
            run,
            purpose,
            writer,
            progress: Progress::default(),
            waited: false,
            announced: false,
            held: Vec::new(),
            held_until: None,
            asked: Asked::Nothing,
            wishes,
            attachment: None,
            entered: None,
            warned: false,
        }
    }

    /// Shows the run until it is finished or Ctrl-C ends that.
    pub(in crate::commands) async fn run(mut self, session: &mut Session) -> anyhow::Result<Outcome> {
        let interrupts = session.interrupts.clone();
        // Nothing is waited for where the end has come already.
        if self.run.status.is_finished() || self.run.status == RunStatus::Terminating {
            self.announce(session).await?;
        } else {
            self.update(session).await?;
        }
        session.printer.flush()?;
        let Some(mut stream) = self.open(session).await? else { return Ok(Outcome::Done) };
        loop {
            if !stream.has_next() {
                session.printer.flush()?;
            }
            let held_until = self.held_until;
            // A flood of logs must not keep the user from stopping it.
            let event = tokio::select! {
                biased;
                () = interrupts.next() => {
                    if self.interrupted(session).await? {
                        return Ok(Outcome::Done);
                    }
                    continue;
                }
                () = until(held_until) => {
                    self.announce(session).await?;
                    continue;
                }
                event = stream.next() => event,
            };
            match event {
                Some(event) => self.handle(session, event?).await?,
                None => return self.finish(session).await,
            }
        }
    }

    /// Connects, and hears Ctrl-C meanwhile: the run goes on by itself. None: it is left alone.
    async fn open(&mut self, session: &mut Session) -> anyhow::Result<Option<RunStream>> {
        let interrupts = session.interrupts.clone();
        let (Project { client, name: project, .. }, name) = (self.project.clone(), self.name.clone());
        let mut opening = Box::pin(RunStream::open(&client, &project, &name, self.purpose.options()));
        loop {
            tokio::select! {
                biased;
                () = interrupts.next() => {
                    if self.interrupted(session).await? {
                        return Ok(None);
                    }
                }
                stream = &mut opening => return Ok(Some(stream?)),
            }
        }
    }

    async fn handle(&mut self, session: &mut Session, event: RunStreamEvent) -> anyhow::Result<()> {
        match event {
            RunStreamEvent::Log { job_num, bytes } if self.announced => {
                self.writer.write(&mut session.printer, job_num, &bytes)?;
            }
            RunStreamEvent::Log { job_num, bytes } => {
                self.held.push((job_num, bytes));
                self.held_until.get_or_insert_with(|| Instant::now() + HOLD_TIME);
                if HELD < self.held.len() {
                    self.announce(session).await?;
                }
            }
            RunStreamEvent::Run(run) => {
                self.run = *run;
                self.update(session).await?;
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

    /// Shows how far the run is, or that it is there.
    async fn update(&mut self, session: &mut Session) -> anyhow::Result<()> {
        if self.is_up() {
            // After the job was tried again, another way leads into it.
            if self.announced {
                self.enter(session).await?;
            }
            return self.announce(session).await;
        }
        match self.run.status {
            // After a failure that is tried again, there is something to wait for again.
            RunStatus::Pending | RunStatus::Submitted => self.announced = false,
            // Once the user was told, later starts, such as those of new replicas, only disturb the log.
            RunStatus::Provisioning | RunStatus::Running => {}
            // What there is to say comes with the end.
            RunStatus::Terminating | RunStatus::Terminated | RunStatus::Failed | RunStatus::Done => return Ok(()),
        }
        if !self.announced {
            self.waited = true;
            self.writer.end_line(&mut session.printer)?;
            self.progress.show(&mut session.printer, &steps(&self.run))?;
        }
        Ok(())
    }

    /// Whether all nodes that matter have got as far as running their commands.
    fn is_up(&self) -> bool {
        let is_started = |submission: &JobSubmission| {
            !matches!(submission.status, JobStatus::Submitted | JobStatus::Provisioning | JobStatus::Pulling)
        };
        let mut jobs = self.run.jobs.iter().filter(|job| self.purpose.concerns(job));
        self.run.status == RunStatus::Running && jobs.all(|job| job.job_submissions.last().is_some_and(is_started))
    }

    /// Shows once where the run ended up, and then what it has written meanwhile.
    async fn announce(&mut self, session: &mut Session) -> anyhow::Result<()> {
        self.held_until = None;
        if !self.announced {
            self.announced = true;
            self.progress.clear();
            self.enter(session).await?;
            match self.purpose {
                Purpose::Submitted { .. } => self.introduce_submitted(session)?,
                Purpose::Attached { replica, job, .. } => self.introduce_attached(session, replica, job)?,
            }
        }
        for (job_num, bytes) in std::mem::take(&mut self.held) {
            self.writer.write(&mut session.printer, job_num, &bytes)?;
        }
        Ok(())
    }

    /// Opens the way into the job once it runs, in place of one that led into an earlier submission. Only who wants
    /// nothing else is refused if there is none.
    async fn enter(&mut self, session: &mut Session) -> anyhow::Result<()> {
        let target = self.purpose.target();
        let Some(submission) = enter::running(&self.run, target) else { return Ok(()) };
        if self.entered.replace(submission) == Some(submission) {
            return Ok(());
        }
        self.attachment = None;
        let why = match enter::enter(session, &self.project, &self.run, target, &self.wishes).await {
            Entered::Made(attachment) => {
                for warning in &attachment.warnings {
                    session.printer.note(warning)?;
                }
                self.writer.rewrite_links(target.job, &attachment.forwards);
                self.attachment = Some(attachment);
                return Ok(());
            }
            Entered::Interrupted => return Ok(()),
            Entered::Refused(why) => why,
        };
        let name = &self.name;
        match self.purpose {
            Purpose::Attached { logs: false, .. } => {
                bail!("Failed to attach to run {name}: {why}. Follow its log with `dstack attach {name} --logs`")
            }
            Purpose::Submitted { .. } if !self.wants_way() => {}
            _ if self.warned => {}
            _ => session.printer.note(&format!("There is no way into run {name} by SSH: {why}"))?,
        }
        self.warned = true;
        Ok(())
    }

    /// Whether there is something to do on the way in: ports to forward, or work.
    fn wants_way(&self) -> bool {
        if matches!(self.run.run_spec.configuration, RunConfiguration::DevEnvironment(_)) {
            return true;
        }
        let job = enter::find(&self.run, self.purpose.target());
        job.and_then(|job| job.job_spec.app_specs.as_ref()).is_some_and(|apps| !apps.is_empty())
    }

    fn introduce_submitted(&self, session: &mut Session) -> anyhow::Result<()> {
        self.print_table(session)?;
        let status = self.run.status.as_str();
        session.printer.line(format!("{} provisioning completed ({status})", self.name))?;
        if let Some(url) = self.run.service.as_ref().and_then(|service| service.get("url")?.as_str()) {
            session.printer.line(format!("Service is published at:\n  {url}"))?;
        }
        if let Some(attachment) = &self.attachment {
            enter::print_ports(session, attachment)?;
        }
        Ok(())
    }

    fn introduce_attached(&self, session: &mut Session, replica: u32, job: u32) -> anyhow::Result<()> {
        let (name, status) = (&self.name, self.run.status);
        if self.waited {
            self.print_table(session)?;
            session.printer.line(format!("Provisioning {name} completed ({})", status.as_str()))?;
        }
        // Of a run that has ended before it was there, its end is all there is to say.
        if !status.is_finished() || !self.waited {
            session.printer.line(format!("Attached to run {name} (replica={replica} job={job})"))?;
            if let Some(attachment) = &self.attachment {
                enter::print_ports(session, attachment)?;
                enter::print_link(session, attachment)?;
                let alias = &attachment.alias;
                session.printer.line(format!("To connect to the run via SSH, use `ssh {alias}`."))?;
            }
            session.printer.line("Press Ctrl+C to detach...")?;
        }
        Ok(())
    }

    fn print_table(&self, session: &mut Session) -> anyhow::Result<()> {
        let verbose = self.run.status == RunStatus::Failed;
        let times = Times::At(session.zone.clone());
        session.printer.table(&runs::table(std::slice::from_ref(&self.run), verbose, &times))?;
        session.printer.blank()?;
        Ok(())
    }

    async fn finish(&mut self, session: &mut Session) -> anyhow::Result<Outcome> {
        self.announce(session).await?;
        self.writer.end_line(&mut session.printer)?;
        // It ended as the user wanted, so there is nothing to explain.
        match self.run.termination_reason.as_deref() {
            Some("stopped_by_user") if self.asked != Asked::Nothing => {
                session.printer.line("Stopped")?;
                Ok(Outcome::Done)
            }
            Some("aborted_by_user") if self.asked != Asked::Nothing => {
                session.printer.error("Aborted")?;
                Ok(Outcome::Done)
            }
            _ => print_ending(session, &self.run),
        }
    }

    /// Acts on Ctrl-C: each press wants more than the one before. True: the run is left alone.
    async fn interrupted(&mut self, session: &mut Session) -> anyhow::Result<bool> {
        self.progress.clear();
        let Purpose::Submitted { yes } = self.purpose else {
            session.printer.line("\nDetached")?;
            return Ok(true);
        };
        self.writer.end_line(&mut session.printer)?;
        let is_left = match self.asked {
            Asked::Nothing if yes => true,
            Asked::Nothing => self.ask(session).await?,
            Asked::Stop => self.stop(session, Asked::Abort).await?,
            Asked::Abort => true,
        };
        if is_left {
            session.printer.line("Detached")?;
        }
        Ok(is_left)
    }

    /// Asks whether the run is to stop. True: it is left alone.
    async fn ask(&mut self, session: &mut Session) -> anyhow::Result<bool> {
        let interrupts = session.interrupts.clone();
        let question = format!("Stop the run {} before detaching?", self.name);
        let answer = tokio::select! {
            biased;
            () = interrupts.next() => None,
            answer = session.printer.ask(&question) => Some(answer?),
        };
        match answer {
            Some(Some(true)) => self.stop(session, Asked::Stop).await,
            // Whoever cannot be asked lets it run.
            Some(Some(false) | None) => Ok(true),
            None => {
                session.printer.blank()?;
                self.stop(session, Asked::Abort).await
            }
        }
    }

    /// Has the run stopped or aborted. A press while the server takes its time turns a stop into an abort, and ends
    /// the wait for that. True: the run is left alone.
    async fn stop(&mut self, session: &mut Session, mut wanted: Asked) -> anyhow::Result<bool> {
        let interrupts = session.interrupts.clone();
        loop {
            let abort = wanted == Asked::Abort;
            session.printer.note(if abort { "Aborting..." } else { "Stopping..." })?;
            let request = StopRunsRequest { runs_names: vec![self.name.clone()], abort };
            let call = self.project.client.call(&endpoints::STOP_RUNS, &self.project.name, &request);
            let answer = tokio::select! {
                biased;
                () = interrupts.next() => None,
                answer = call => Some(answer?),
            };
            match answer {
                Some(_) => {
                    self.asked = wanted;
                    return Ok(false);
                }
                None if abort => return Ok(true),
                None => wanted = Asked::Abort,
            }
        }
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Says how a run ended.
fn print_ending(session: &mut Session, run: &Run) -> anyhow::Result<Outcome> {
    let ending = ending::of(run);
    session.printer.styled_line(&ending.title, if ending.success { SUCCESS } else { ERROR })?;
    for line in &ending.details {
        session.printer.line(line)?;
    }
    Ok(if ending.success { Outcome::Done } else { Outcome::Failed })
}

/// What each node is doing.
fn steps(run: &Run) -> Vec<Step> {
    if let Some(step) = retrying(run) {
        return vec![step];
    }
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
        steps.push(Step { node, doing: doing(run, submission), detail: detail(submission), ..Step::default() });
    }
    if steps.is_empty() {
        steps.push(Step { doing: runs::run_status(run), ..Step::default() });
    }
    steps
}

/// Why a run that waits for another try failed, and what it waits for.
fn retrying(run: &Run) -> Option<Step> {
    let (job, submission) = runs::cause(run).filter(|_| run.status == RunStatus::Pending)?;
    let why = format!("{}{}", runs::job_status(submission), runs::of_node(run, job, submission));
    let waiting = submission.waiting_for.as_ref().map(|reason| format!(", waiting for {reason}"));
    let doing = format!("retrying: {why}{}", waiting.unwrap_or_default());
    Some(Step { doing, ..Step::default() })
}

fn doing(run: &Run, submission: &JobSubmission) -> String {
    let image = submission.image_pull_progress.as_ref().filter(|_| submission.status == JobStatus::Pulling);
    let has_image = run.run_spec.configuration.common().image.is_some() || image.is_some();
    let status = match submission.status {
        // Plain processes have their files and folders made, and no image to pull.
        JobStatus::Pulling if !has_image => "preparing",
        _ => runs::plain_job_status(submission),
    };
    match (&submission.waiting_for, &submission.job_provisioning_data) {
        // The bytes of the image say the same and more.
        (Some(_), _) if image.is_some_and(is_on_its_way) => status.to_owned(),
        (Some(reason), _) => format!("{status}, waiting for {reason}"),
        (None, Some(placed)) if submission.status == JobStatus::Provisioning => {
            let place = format::place(placed.backend, &placed.region, placed.availability_zone.as_deref());
            format!("{status}{}", format::on(&placed.instance_type.name, &place))
        }
        (None, _) => status.to_owned(),
    }
}

fn is_on_its_way(image: &ImagePullProgress) -> bool {
    !image.is_total_bytes_final || image.extracted_bytes < image.total_bytes
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
