//! Runs and their jobs in the official wire form.

use api::configurations::RetryEvent;
use api::jobs::{
    ImagePullProgress, Job as WireJob, JobProvisioningData, JobStatus, JobSubmission, JobTerminationReason,
};
use api::runs::{Run as WireRun, RunFleet, RunStatus, RunTerminationReason};
use jiff::Timestamp;
use lifecycle::job::Job;
use lifecycle::run::effective::settle_nodes;
use lifecycle::run::{Run, StopRequest};

use crate::sealing::{Sealer, SealingError};
use crate::spec_secrets::{unseal_job_spec, unseal_run_spec};

/// What a job without a fleet says; clients show it in short.
const NO_FLEET: &str = "No matching fleet found";

/// The names that a run's row has only the identifiers of.
#[derive(Debug, Clone)]
pub struct RunNames {
    /// The project's.
    pub project: String,
    /// The user's.
    pub user: String,
    /// The fleet's, once it was given one.
    pub fleet: Option<String>,
}

/// How much of a run is shown.
#[derive(Debug, Clone, Copy)]
pub struct Detail {
    /// With its jobs.
    pub jobs: bool,
    /// At most this many of each job's last submissions.
    pub submissions: usize,
}

impl Detail {
    /// Everything.
    pub const ALL: Detail = Detail { jobs: true, submissions: usize::MAX };
}

/// A run. `jobs` has all of its submissions by replica, number and submission.
pub fn run(
    now: Timestamp,
    sealer: &Sealer,
    row: &Run,
    jobs: &[Job],
    names: RunNames,
    detail: Detail,
) -> Result<WireRun, SealingError> {
    let mut run_spec = row.spec.clone();
    unseal_run_spec(sealer, &mut run_spec)?;
    settle_nodes(&mut run_spec);
    let by_job: Vec<&[Job]> =
        jobs.chunk_by(|left, right| (left.replica_num, left.job_num) == (right.replica_num, right.job_num)).collect();
    let (status, reason) = shown_status(row);
    let latest: Vec<&Job> = by_job.iter().filter_map(|submissions| submissions.last()).collect();
    let mut wire_jobs = vec![];
    let mut cost = 0.0;
    for submissions in by_job.iter().filter(|_| detail.jobs) {
        let shown = &submissions[submissions.len().saturating_sub(detail.submissions)..];
        cost += shown.iter().map(|job| cost_of(now, job)).sum::<f64>();
        wire_jobs.push(job(sealer, row, submissions, shown)?);
    }
    let fleet = row.fleet_id.zip(names.fleet).map(|(id, name)| RunFleet { id, name });
    let first = by_job.first().and_then(|submissions| submissions.last());
    Ok(WireRun {
        id: row.id,
        project_name: names.project,
        user: names.user,
        fleet,
        submitted_at: row.submitted_at,
        last_processed_at: row.state.last_processed_at.unwrap_or(row.submitted_at),
        status,
        status_message: status_message(status, &latest),
        termination_reason: reason.map(|reason| reason.as_str().to_owned()),
        run_spec,
        latest_job_submission: first
            .filter(|_| detail.jobs && detail.submissions > 0)
            .map(|job| submission(row, job)),
        jobs: wire_jobs,
        cost: (cost * 10_000.0).round() / 10_000.0,
        service: None,
        deployment_num: row.state.deployment_num,
        error: reason.and_then(RunTerminationReason::error).map(str::to_owned),
        deleted: Some(row.deleted),
        next_triggered_at: None,
    })
}

/// The status and the reason. A run that is to be stopped ends from the moment that somebody said so.
pub fn shown_status(row: &Run) -> (RunStatus, Option<RunTerminationReason>) {
    let begins_to_end = !row.status.is_finished() && row.status != RunStatus::Terminating;
    match row.stop {
        Some(StopRequest::Stop) if begins_to_end => {
            (RunStatus::Terminating, Some(RunTerminationReason::StoppedByUser))
        }
        Some(StopRequest::Abort) if begins_to_end => {
            (RunStatus::Terminating, Some(RunTerminationReason::AbortedByUser))
        }
        Some(StopRequest::Stop | StopRequest::Abort) | None => (row.status, row.state.termination_reason),
    }
}

fn status_message(status: RunStatus, latest: &[&Job]) -> String {
    let all_pull = !latest.is_empty() && latest.iter().all(|job| job.status == JobStatus::Pulling);
    if all_pull && !status.is_finished() && status != RunStatus::Terminating {
        return "pulling".to_owned();
    }
    let waits = matches!(status, RunStatus::Submitted | RunStatus::Pending);
    let retries = latest.iter().any(|job| {
        let no_capacity =
            job.state.termination_reason == Some(JobTerminationReason::FailedToStartDueToNoCapacity);
        let retry = job.spec.retry.as_ref();
        no_capacity && retry.is_some_and(|retry| retry.on_events.contains(&RetryEvent::NoCapacity))
    });
    if waits && retries { "retrying".to_owned() } else { status.as_str().to_owned() }
}

fn job(sealer: &Sealer, run: &Run, all: &[Job], shown: &[Job]) -> Result<WireJob, SealingError> {
    let mut job_spec = all[all.len() - 1].spec.clone();
    unseal_job_spec(sealer, &mut job_spec)?;
    job_spec.ssh_key = None;
    let job_submissions = shown.iter().map(|job| submission(run, job)).collect();
    Ok(WireJob { job_spec, job_submissions, job_connection_info: None })
}

/// One submission of a job.
pub fn submission(run: &Run, job: &Job) -> JobSubmission {
    let state = &job.state;
    let last_processed_at = state.last_processed_at.unwrap_or(job.submitted_at);
    let reason = state.termination_reason;
    JobSubmission {
        id: job.id,
        submission_num: job.submission_num,
        // A change in place never makes the jobs of a task anew, so they are always of the run's last deployment.
        deployment_num: run.state.deployment_num,
        submitted_at: job.submitted_at,
        last_processed_at,
        finished_at: job.status.is_finished().then_some(last_processed_at),
        inactivity_secs: None,
        status: job.status,
        status_message: submission_message(job),
        termination_reason: reason.map(|reason| reason.as_str().to_owned()),
        termination_reason_message: state.termination_message.clone(),
        exit_status: state.exit_status,
        job_provisioning_data: state.provisioning.clone().map(shown_provisioning),
        job_runtime_data: state.runtime.clone(),
        error: reason.and_then(JobTerminationReason::error).map(str::to_owned),
        probes: vec![],
        image_pull_progress: state.pull.as_ref().map(|pull| ImagePullProgress {
            downloaded_bytes: pull.downloaded_bytes,
            extracted_bytes: pull.extracted_bytes,
            total_bytes: pull.total_bytes,
            is_total_bytes_final: pull.is_total_bytes_final,
        }),
        waiting_for: state.waiting_for.clone(),
    }
}

// Clients of this API read a text and a number here, never nothing.
fn shown_provisioning(data: JobProvisioningData) -> JobProvisioningData {
    JobProvisioningData {
        hostname: Some(data.hostname.unwrap_or_default()),
        ssh_port: Some(data.ssh_port.unwrap_or(22)),
        ..data
    }
}

fn submission_message(job: &Job) -> String {
    let reason = job.state.termination_reason;
    let message = match (job.status, reason) {
        (JobStatus::Done, _) => Some("exited (0)".to_owned()),
        (JobStatus::Failed, Some(JobTerminationReason::ContainerExitedWithError)) => {
            Some(job.state.exit_status.map_or_else(|| "error".to_owned(), |status| format!("exited ({status})")))
        }
        (JobStatus::Failed, Some(JobTerminationReason::FailedToStartDueToNoCapacity)) => {
            let no_fleet = job.state.termination_message.as_ref().is_some_and(|text| text.contains(NO_FLEET));
            Some(if no_fleet { "no fleets" } else { "no capacity" }.to_owned())
        }
        (JobStatus::Failed, Some(JobTerminationReason::InterruptedByNoCapacity)) => Some("interrupted".to_owned()),
        (JobStatus::Failed, _) => Some("error".to_owned()),
        (JobStatus::Terminated, Some(JobTerminationReason::TerminatedByUser)) => Some("stopped".to_owned()),
        _ => None,
    };
    message.unwrap_or_else(|| job.status.as_str().to_owned())
}

/// US dollars that a submission has cost so far.
fn cost_of(now: Timestamp, job: &Job) -> f64 {
    let Some(provisioning) = &job.state.provisioning else { return 0.0 };
    let until = if job.status.is_finished() { job.state.last_processed_at.unwrap_or(now) } else { now };
    let hours = until.duration_since(job.submitted_at).as_secs_f64() / 3600.0;
    provisioning.price * hours.max(0.0)
}

/// Whether what is shown changes while the rows do not: the cost of what runs for money.
pub fn grows_with_time(jobs: &[Job]) -> bool {
    jobs.iter().any(|job| {
        !job.status.is_finished() && job.state.provisioning.as_ref().is_some_and(|data| data.price > 0.0)
    })
}
