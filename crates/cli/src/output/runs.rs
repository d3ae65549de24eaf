//! Runs and their jobs as `ps` and `apply` show them.

use std::collections::BTreeSet;

use anstyle::{AnsiColor, Style};
use api::instances::Offer;
use api::jobs::{Job, JobStatus, JobSubmission};
use api::runs::{Run, RunStatus};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::format;
use super::{Cell, Table};
use crate::printer::{ERROR, SECONDARY, STRONG, SUCCESS, WARNING};

/// How times are shown.
#[derive(Debug, Clone)]
pub(crate) enum Times {
    /// As ages, seen from this time.
    Since(Timestamp),
    /// As the hour and minute, where the table stays on the screen.
    At(TimeZone),
}

impl Times {
    /// `time` in this form.
    pub(crate) fn show(&self, time: Timestamp) -> String {
        match self {
            Times::Since(now) => format::age(time, *now),
            Times::At(zone) => format::clock(time, zone),
        }
    }
}

/// The table of runs, in the order given.
pub(crate) fn table(runs: &[Run], verbose: bool, times: &Times) -> Table {
    let layout = Layout { verbose, probes: verbose || runs.iter().any(is_replaced_by_probes) };
    let mut table = Table::new(&layout.titles());
    for run in runs {
        add_run(run, &layout, times, &mut table);
    }
    table
}

struct Layout {
    verbose: bool,
    probes: bool,
}

impl Layout {
    fn titles(&self) -> Vec<&'static str> {
        let mut titles = vec!["NAME", "BACKEND"];
        titles.extend(if self.verbose { &["RESOURCES", "INSTANCE TYPE"][..] } else { &["GPU"][..] });
        titles.extend(["PRICE", "STATUS"]);
        titles.extend(self.probes.then_some("PROBES"));
        titles.push("SUBMITTED");
        titles.extend(self.verbose.then_some("ERROR"));
        titles
    }

    fn cells(&self, row: Row) -> Vec<Cell> {
        let mut cells = vec![row.name, row.backend.into()];
        if self.verbose {
            cells.extend([row.resources.into(), row.instance_type.into()]);
        } else {
            cells.push(row.gpu.into());
        }
        cells.extend([row.price.into(), row.status]);
        if self.probes {
            cells.push(row.probes.into());
        }
        cells.push(row.submitted.into());
        if self.verbose {
            cells.push(Cell::styled(row.error, ERROR));
        }
        cells
    }
}

#[derive(Default)]
struct Row {
    name: Cell,
    backend: String,
    resources: String,
    instance_type: String,
    gpu: String,
    price: String,
    status: Cell,
    probes: String,
    submitted: String,
    error: String,
}

fn add_run(run: &Run, layout: &Layout, times: &Times, table: &mut Table) {
    let shows_deployments = shows_deployments(run, layout.verbose);
    let mut title = run_name(run).to_owned();
    if shows_deployments {
        title = format!("{title} deployment={}", run.deployment_num);
    }
    if let [job] = run.jobs.as_slice()
        && !shows_deployments
        && let Some(submission) = job.job_submissions.last()
    {
        let mut row = job_row(job, submission, layout.verbose, times);
        row.name = Cell::styled(title, STRONG);
        row.submitted = times.show(run.submitted_at);
        row.error = run_error(run, Some(submission));
        table.row(layout.cells(row));
        return;
    }
    table.row(layout.cells(Row {
        name: Cell::styled(title, STRONG),
        status: Cell::styled(run_status(run), run_style(run.status)),
        submitted: times.show(run.submitted_at),
        error: run_error(run, failure(run).map(|(_, submission)| submission)),
        ..unplaced()
    }));
    for (name, job) in job_names(run, shows_deployments).into_iter().zip(&run.jobs) {
        let Some(submission) = job.job_submissions.last() else { continue };
        let mut row = job_row(job, submission, layout.verbose, times);
        row.name = Cell::from(name);
        table.row(layout.cells(row));
    }
}

/// What was said about a job that failed, its first line. Of a command that failed, the status says it, and what was
/// said is the end of its log.
fn message(submission: &JobSubmission) -> Option<&str> {
    let exited = submission.termination_reason.as_deref() == Some("container_exited_with_error");
    let line = submission.termination_reason_message.as_deref()?.lines().next()?;
    (is_own_reason(submission) && !exited).then_some(line)
}

/// What went wrong with a job: what was said about it, or else its kind.
fn job_error(submission: &JobSubmission) -> String {
    message(submission).or(submission.error.as_deref()).unwrap_or_default().to_owned()
}

/// What went wrong with a run: of itself, such as that its retries ran out, and with the job that it failed for.
fn run_error(run: &Run, cause: Option<&JobSubmission>) -> String {
    match (&run.error, cause.and_then(message)) {
        (Some(error), Some(message)) => format!("{error}: {message}"),
        (Some(error), None) => error.clone(),
        (None, _) => cause.map(job_error).unwrap_or_default(),
    }
}

fn unplaced() -> Row {
    Row { resources: "-".to_owned(), gpu: "-".to_owned(), price: "-".to_owned(), ..Row::default() }
}

fn job_row(job: &Job, submission: &JobSubmission, verbose: bool, times: &Times) -> Row {
    let mut status = job_status(submission);
    let inactive = submission.inactivity_secs.filter(|seconds| verbose && 0 < *seconds);
    if let Some(seconds) = inactive {
        status = format!("{status} (inactive for {})", format::duration_in_parts(seconds));
    }
    let mut row = Row {
        status: Cell::styled(status, job_style(submission)),
        probes: probes(job, submission),
        submitted: times.show(submission.submitted_at),
        error: job_error(submission),
        ..unplaced()
    };
    let Some(placed) = &submission.job_provisioning_data else { return row };
    // A job that has a share of a machine pays for, and shows, only its share.
    let offer = submission.job_runtime_data.as_ref().and_then(|runtime| runtime.offer.as_ref());
    let offer = offer.filter(|offer| 1 < offer.total_blocks);
    let resources = offer.map_or(&placed.instance_type.resources, |offer| &offer.instance.resources);
    let price = format::price(offer.map_or(placed.price, |offer| offer.price));
    row.backend = format::place(placed.backend, &placed.region, None);
    row.resources = format::resources(resources, false);
    row.gpu = format::gpus(resources).unwrap_or_else(|| "-".to_owned());
    row.instance_type = format!("{}{}", placed.instance_type.name, offer.map(share).unwrap_or_default());
    row.price = if resources.spot { format!("{price} (spot)") } else { price };
    row
}

/// The share of a machine that an offer is, if it is not the whole.
pub(crate) fn share(offer: &Offer) -> String {
    match offer.total_blocks {
        0 | 1 => String::new(),
        total => format!(" ({}/{total})", offer.blocks),
    }
}

/// Reasons that say only that something else was the cause.
const CONSEQUENCES: [&str; 4] =
    ["done_by_runner", "terminated_by_server", "terminated_by_user", "aborted_by_user"];

/// The job that the others ended for: the first one that ended by itself and not well.
pub(crate) fn cause(run: &Run) -> Option<(&Job, &JobSubmission)> {
    let ended = || run.jobs.iter().filter_map(|job| Some((job, job.job_submissions.last()?)));
    let own = ended().filter(|(_, submission)| is_own_reason(submission));
    own.min_by_key(|(_, submission)| submission.finished_at.unwrap_or(submission.last_processed_at))
        .or_else(|| ended().next())
}

fn is_own_reason(submission: &JobSubmission) -> bool {
    submission.termination_reason.as_deref().is_some_and(|reason| !CONSEQUENCES.contains(&reason))
}

/// Which node it is that a run of several ended for, to follow how it ended.
pub(crate) fn of_node(run: &Run, job: &Job, submission: &JobSubmission) -> String {
    if 1 < run.jobs.len() && is_own_reason(submission) {
        format!(", node {}", job.job_spec.job_num)
    } else {
        String::new()
    }
}

/// Why a run failed: the job that the others ended for, if it ended by itself.
fn failure(run: &Run) -> Option<(&Job, &JobSubmission)> {
    if run.status != RunStatus::Failed {
        return None;
    }
    cause(run).filter(|(_, submission)| is_own_reason(submission))
}

/// A run's name.
pub(crate) fn run_name(run: &Run) -> &str {
    run.run_spec.run_name.as_deref().unwrap_or("")
}

fn is_service(run: &Run) -> bool {
    matches!(run.run_spec.configuration, api::configurations::RunConfiguration::Service(_))
}

fn shows_deployments(run: &Run, verbose: bool) -> bool {
    let differs =
        |job: &Job| job.job_submissions.last().is_some_and(|last| last.deployment_num != run.deployment_num);
    (verbose && is_service(run)) || run.jobs.iter().any(differs)
}

/// Whether a new deployment of the run takes over as its probes succeed, so that they are worth a column.
fn is_replaced_by_probes(run: &Run) -> bool {
    let has_probes = |job: &Job| job.job_submissions.last().is_some_and(|last| !last.probes.is_empty());
    shows_deployments(run, false) && run.jobs.iter().any(has_probes)
}

/// What tells the jobs of a run apart, one name per job.
fn job_names(run: &Run, shows_deployments: bool) -> Vec<String> {
    let replicas: BTreeSet<u32> = run.jobs.iter().map(|job| job.job_spec.replica_num).collect();
    let shows_replicas = 1 < replicas.len();
    let shows_groups = shows_replicas && is_service(run);
    let shows_jobs = replicas.len() < run.jobs.len();
    let mut groups: Vec<&str> = Vec::new();
    let mut names = Vec::new();
    for job in &run.jobs {
        let spec = &job.job_spec;
        let mut parts = Vec::new();
        if shows_groups {
            let is_new = groups.last() != Some(&spec.replica_group.as_str());
            if is_new {
                groups.push(&spec.replica_group);
            }
            let label = format!("group={}", groups.len() - 1);
            parts.push(if is_new { label } else { " ".repeat(label.len()) });
        }
        if shows_replicas {
            parts.push(format!("replica={}", spec.replica_num));
        }
        if shows_jobs {
            parts.push(format!("job={}", spec.job_num));
        }
        let mut name = format!("   {}", parts.join(" "));
        if shows_deployments && let Some(last) = job.job_submissions.last() {
            name = format!("{name} deployment={}", last.deployment_num);
        }
        names.push(name);
    }
    names
}

fn probes(job: &Job, submission: &JobSubmission) -> String {
    if submission.status != JobStatus::Running {
        return String::new();
    }
    let number = |value: &serde_json::Value, key: &str| value.get(key).and_then(serde_json::Value::as_u64);
    let marks = job.job_spec.probes.iter().zip(&submission.probes).map(|(spec, state)| {
        let streak = number(state, "success_streak").unwrap_or(0);
        match number(spec, "ready_after").unwrap_or(1) {
            needed if needed <= streak => "✓",
            _ if streak == 0 => "×",
            _ => "~",
        }
    });
    marks.collect()
}

/// A run's status for people. That of a job says more once it has ended: of the one that the run failed for, or of the
/// first.
pub(crate) fn run_status(run: &Run) -> String {
    if let Some((job, submission)) = failure(run) {
        return format!("{}{}", job_status(submission), of_node(run, job, submission));
    }
    let message = match &run.latest_job_submission {
        Some(last) if run.status.is_finished() => &last.status_message,
        _ => &run.status_message,
    };
    let message = Some(message.as_str()).filter(|message| !message.is_empty());
    message.unwrap_or(run.status.as_str()).to_owned()
}

/// A job's status for people, without how far it is.
pub(crate) fn plain_job_status(submission: &JobSubmission) -> &str {
    let message = Some(submission.status_message.as_str()).filter(|message| !message.is_empty());
    message.unwrap_or(submission.status.as_str())
}

/// A job's status for people.
pub(crate) fn job_status(submission: &JobSubmission) -> String {
    let status = plain_job_status(submission);
    match &submission.image_pull_progress {
        Some(progress) if submission.status == JobStatus::Pulling => {
            format!("{status} {}", format::pull_progress(progress))
        }
        _ => status.to_owned(),
    }
}

fn run_style(status: RunStatus) -> Style {
    match status {
        RunStatus::Pending | RunStatus::Submitted | RunStatus::Terminating | RunStatus::Terminated => SECONDARY,
        RunStatus::Provisioning => AnsiColor::Cyan.on_default(),
        RunStatus::Running => SUCCESS,
        RunStatus::Failed => ERROR,
        RunStatus::Done => Style::new(),
    }
}

fn job_style(submission: &JobSubmission) -> Style {
    match submission.status {
        JobStatus::Submitted | JobStatus::Terminating | JobStatus::Terminated => SECONDARY,
        JobStatus::Provisioning | JobStatus::Pulling => AnsiColor::Cyan.on_default(),
        JobStatus::Running => SUCCESS,
        JobStatus::Aborted => WARNING,
        JobStatus::Failed => ERROR,
        JobStatus::Done => Style::new(),
    }
}
