//! Runs and their jobs in the official wire form.

use std::net::{IpAddr, Ipv4Addr};

use api::agent::SSH_PORT;
use api::configurations::{RetryEvent, RunConfiguration};
use api::jobs::{
    ImagePullProgress, Job as WireJob, JobConnectionInfo, JobProvisioningData, JobStatus, JobSubmission,
    JobTerminationReason,
};
use api::runs::{Run as WireRun, RunFleet, RunStatus, RunTerminationReason};
use jiff::Timestamp;
use lifecycle::job::Job;
use lifecycle::run::effective::settle_nodes;
use lifecycle::run::{Run, StopRequest, dev_environment};

use crate::deps::Deps;
use crate::sealing::Sealer;
use crate::spec_secrets::{show_job_spec, show_run_spec};
use crate::ssh_proxy::{ProxyAddress, upstream_id};

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

/// What runs are shown with beside their rows.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a> {
    /// Opens what is sealed.
    pub sealer: &'a Sealer,
    /// Where users reach the SSH proxy, if there is one.
    pub ssh_proxy: Option<&'a ProxyAddress>,
}

impl<'a> Shown<'a> {
    /// As this server shows them.
    pub fn by(deps: &'a Deps) -> Shown<'a> {
        Shown { sealer: &deps.sealer, ssh_proxy: deps.settings.ssh_proxy.as_ref() }
    }
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
    shown_by: &Shown<'_>,
    row: &Run,
    jobs: &[Job],
    names: RunNames,
    detail: Detail,
) -> WireRun {
    let sealer = shown_by.sealer;
    let mut run_spec = row.spec.clone();
    show_run_spec(sealer, &mut run_spec);
    settle_nodes(&mut run_spec);
    let by_job: Vec<&[Job]> = jobs
        .chunk_by(|left, right| (left.replica_num, left.job_num) == (right.replica_num, right.job_num))
        .collect();
    let (status, reason) = shown_status(row);
    let mut wire_jobs = vec![];
    let mut cost = 0.0;
    for submissions in by_job.iter().filter(|_| detail.jobs) {
        let shown = &submissions[submissions.len().saturating_sub(detail.submissions)..];
        cost += shown.iter().map(|job| cost_of(now, job)).sum::<f64>();
        wire_jobs.push(job(now, shown_by, row, submissions, shown));
    }
    let fleet = row.fleet_id.zip(names.fleet).map(|(id, name)| RunFleet { id, name });
    let first = by_job.first().and_then(|submissions| submissions.last());
    WireRun {
        id: row.id,
        project_name: names.project,
        user: names.user,
        fleet,
        submitted_at: row.submitted_at,
        last_processed_at: row.state.last_processed_at.unwrap_or(row.submitted_at),
        status,
        status_message: status_message(status, &by_job),
        termination_reason: reason.map(|reason| reason.as_str().to_owned()),
        run_spec,
        latest_job_submission: first
            .filter(|_| detail.jobs && detail.submissions > 0)
            .map(|job| submission(now, row, job)),
        jobs: wire_jobs,
        cost: (cost * 10_000.0).round() / 10_000.0,
        service: None,
        deployment_num: row.state.deployment_num,
        error: reason.and_then(RunTerminationReason::error).map(str::to_owned),
        deleted: Some(row.deleted),
        next_triggered_at: None,
    }
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

/// A run's status for people. `by_job` has the submissions of each job, oldest first.
fn status_message(status: RunStatus, by_job: &[&[Job]]) -> String {
    let pulls = |submissions: &&[Job]| submissions.last().is_some_and(|job| job.status == JobStatus::Pulling);
    if !by_job.is_empty() && by_job.iter().all(pulls) && !status.is_finished() && status != RunStatus::Terminating
    {
        return "pulling".to_owned();
    }
    let waits = matches!(status, RunStatus::Submitted | RunStatus::Pending);
    let retries = |submissions: &&[Job]| {
        // A submission that is new has not ended; what counts is why the one before it did.
        let reason = submissions.iter().rev().find_map(|job| job.state.termination_reason);
        let retry = submissions.last().and_then(|job| job.spec.retry.as_ref());
        reason == Some(JobTerminationReason::FailedToStartDueToNoCapacity)
            && retry.is_some_and(|retry| retry.on_events.contains(&RetryEvent::NoCapacity))
    };
    if waits && by_job.iter().any(retries) { "retrying".to_owned() } else { status.as_str().to_owned() }
}

/// How users reach a job, while it runs and can be entered.
fn connection_info(shown_by: &Shown<'_>, run: &Run, job: &Job) -> Option<JobConnectionInfo> {
    let ports = job.state.runtime.as_ref()?.ports.as_ref()?;
    if job.status != JobStatus::Running || !ports.contains_key(&SSH_PORT) {
        return None;
    }
    let is_first = job.spec.job_num == 0 && job.spec.replica_num == 0;
    let alias = if is_first { run.name.clone() } else { job.spec.job_name.clone() };
    let proxy = shown_by.ssh_proxy;
    let ide = match &run.spec.configuration {
        RunConfiguration::DevEnvironment(environment) => environment.ide,
        RunConfiguration::Task(_) | RunConfiguration::Service(_) => None,
    };
    let working_dir = job.state.runtime.as_ref().and_then(|runtime| runtime.working_dir.as_ref());
    let link = |host: &str| ide.zip(working_dir).map(|(ide, dir)| dev_environment::ide_url(ide, host, dir));
    Some(JobConnectionInfo {
        ide_name: ide.map(|ide| dev_environment::ide_name(ide).to_owned()),
        attached_ide_url: link(&alias),
        proxied_ide_url: proxy.and_then(|proxy| link(&proxy.authority(&upstream_id(job.id)))),
        attached_ssh_command: Some(vec!["ssh".to_owned(), alias]),
        proxied_ssh_command: proxy.map(|proxy| proxy.command(&upstream_id(job.id))),
        sshproxy_hostname: proxy.map(|proxy| proxy.hostname.clone()),
        sshproxy_port: proxy.and_then(|proxy| proxy.port),
        sshproxy_upstream_id: proxy.map(|_| upstream_id(job.id)),
        ssh_host_key: Some(shown_by.sealer.job_host_key(job.id).public.trim().to_owned()),
    })
}

fn job(now: Timestamp, shown_by: &Shown<'_>, run: &Run, all: &[Job], shown: &[Job]) -> WireJob {
    let mut job_spec = all[all.len() - 1].spec.clone();
    show_job_spec(shown_by.sealer, &mut job_spec);
    job_spec.ssh_key = None;
    let job_submissions = shown.iter().map(|job| submission(now, run, job)).collect();
    let job_connection_info = shown.last().and_then(|job| connection_info(shown_by, run, job));
    WireJob { job_spec, job_submissions, job_connection_info }
}

/// One submission of a job.
pub fn submission(now: Timestamp, run: &Run, job: &Job) -> JobSubmission {
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
        inactivity_secs: inactivity_secs(now, run, job),
        status: job.status,
        status_message: submission_message(job),
        termination_reason: reason.map(|reason| reason.as_str().to_owned()),
        termination_reason_message: state.termination_message.clone(),
        exit_status: state.exit_status,
        job_provisioning_data: state.provisioning.clone().map(|data| shown_provisioning(data, job)),
        job_runtime_data: state.runtime.clone(),
        error: reason.and_then(JobTerminationReason::error).map(str::to_owned),
        probes: vec![],
        image_pull_progress: state.pull.as_ref().map(|pull| ImagePullProgress {
            downloaded_bytes: pull.downloaded_bytes,
            extracted_bytes: pull.extracted_bytes,
            total_bytes: pull.total_bytes,
            is_total_bytes_final: pull.is_total_bytes_final,
        }),
        waiting_for: state.waiting_for.clone().or_else(|| next_try(run, job)),
    }
}

/// For how long nobody has been in a dev environment that ends of it, or had been when it ended.
fn inactivity_secs(now: Timestamp, run: &Run, job: &Job) -> Option<u64> {
    let RunConfiguration::DevEnvironment(environment) = &run.spec.configuration else { return None };
    environment.inactivity_duration?;
    let state = &job.state;
    state.started_at?;
    let until = state.ended_at.unwrap_or(now);
    let absence = state.unvisited_since.map(|since| until.duration_since(since).as_secs());
    Some(absence.and_then(|secs| u64::try_from(secs).ok()).unwrap_or_default())
}

/// What a submission that ended waits for, if the run is to be tried again.
fn next_try(run: &Run, job: &Job) -> Option<String> {
    let retry = run.state.retry.filter(|_| run.status == RunStatus::Pending && job.status.is_finished())?;
    Some(format!("the next try, until {}", retry.until.strftime("%Y-%m-%d %H:%M UTC")))
}

// Clients of this API read a text and a number here, never nothing.
fn shown_provisioning(data: JobProvisioningData, job: &Job) -> JobProvisioningData {
    let ports = job.state.runtime.as_ref().and_then(|runtime| runtime.ports.as_ref());
    let port = ports.and_then(|ports| ports.get(&SSH_PORT).copied());
    let is_loopback = |name: &str| name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    // On the server's own machine clients that have nothing but OpenSSH go straight to the job.
    if let Some(port) = port.filter(|_| !data.dockerized && data.hostname.as_deref().is_some_and(is_loopback)) {
        return JobProvisioningData {
            hostname: Some(Ipv4Addr::LOCALHOST.to_string()),
            ssh_port: Some(port),
            ..data
        };
    }
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

/// Whether what is shown changes while the rows do not: the cost of what runs for money, and for how long nobody has
/// been in a job.
pub fn grows_with_time(jobs: &[Job]) -> bool {
    jobs.iter().filter(|job| !job.status.is_finished()).any(|job| {
        let costs = job.state.provisioning.as_ref().is_some_and(|data| data.price > 0.0);
        costs || job.state.unvisited_since.is_some()
    })
}

#[cfg(test)]
mod tests {
    use api::agent::PullProgress;
    use api::ids::{ProjectId, UserId};
    use lifecycle::job::JobState;
    use lifecycle::run::RunState;
    use serde_json::Value;
    use uuid::Uuid;

    use super::*;
    use crate::ids::Ids;

    /// The rows that an official answer would have been made from.
    fn rows_of(wire: &WireRun) -> (Run, Vec<Job>) {
        let project_id = ProjectId(Uuid::from_u128(1));
        let word = |text: &Option<String>| text.clone().map(|text| serde_json::from_value(text.into()).unwrap());
        let run = Run {
            id: wire.id,
            project_id,
            user_id: UserId(Uuid::from_u128(2)),
            name: wire.run_spec.run_name.clone().unwrap(),
            submitted_at: wire.submitted_at,
            priority: 0,
            status: wire.status,
            deleted: wire.deleted.unwrap(),
            stop: None,
            fleet_id: wire.fleet.as_ref().map(|fleet| fleet.id),
            spec: wire.run_spec.clone(),
            state: RunState {
                last_processed_at: Some(wire.last_processed_at),
                termination_reason: word(&wire.termination_reason),
                ..RunState::default()
            },
        };
        let jobs = wire.jobs.iter().flat_map(|job| {
            job.job_submissions.iter().map(|submission| Job {
                id: submission.id,
                run_id: wire.id,
                project_id,
                replica_num: job.job_spec.replica_num,
                job_num: job.job_spec.job_num,
                submission_num: submission.submission_num,
                submitted_at: submission.submitted_at,
                status: submission.status,
                instance_id: None,
                end: None,
                released_at: None,
                spec: job.job_spec.clone(),
                state: JobState {
                    last_processed_at: Some(submission.last_processed_at),
                    termination_reason: submission
                        .termination_reason
                        .clone()
                        .map(|text| serde_json::from_value(text.into()).unwrap()),
                    termination_message: submission.termination_reason_message.clone(),
                    exit_status: submission.exit_status,
                    provisioning: submission.job_provisioning_data.clone(),
                    runtime: submission.job_runtime_data.clone(),
                    pull: submission.image_pull_progress.as_ref().map(|pull| PullProgress {
                        downloaded_bytes: pull.downloaded_bytes,
                        extracted_bytes: pull.extracted_bytes,
                        total_bytes: pull.total_bytes,
                        is_total_bytes_final: pull.is_total_bytes_final,
                    }),
                    ..JobState::default()
                },
            })
        });
        let jobs = jobs.collect();
        (run, jobs)
    }

    /// Times as this build prints them, and without what is known to differ: attaching comes with SSH, and the cost
    /// of what runs depends on the moment.
    fn comparable(mut run: Value, is_finished: bool) -> Value {
        fn settle(value: &mut Value) {
            match value {
                Value::Object(map) => {
                    if let Some(info) = map.get_mut("job_connection_info") {
                        *info = Value::Null;
                    }
                    map.values_mut().for_each(settle);
                }
                Value::Array(items) => items.iter_mut().for_each(settle),
                Value::String(text) => {
                    if let Ok(time) = text.parse::<Timestamp>() {
                        *text = time.to_string();
                    }
                }
                Value::Null | Value::Bool(_) | Value::Number(_) => {}
            }
        }
        settle(&mut run);
        if !is_finished {
            run["cost"] = Value::Null;
        }
        run
    }

    #[test]
    fn runs_are_shown_as_the_original_shows_them() {
        let sealer = Sealer::ephemeral(&Ids::seeded(1));
        let recorded: Vec<Value> =
            serde_json::from_str(include_str!("../../tests/golden/run_views.json")).unwrap();
        assert!(recorded.len() > 10);
        for answer in recorded {
            let wire: WireRun = serde_json::from_value(answer.clone()).unwrap();
            let (row, jobs) = rows_of(&wire);
            let names = RunNames {
                project: wire.project_name.clone(),
                user: wire.user.clone(),
                fleet: wire.fleet.clone().map(|fleet| fleet.name),
            };
            let view = run(now(), &Shown { sealer: &sealer, ssh_proxy: None }, &row, &jobs, names, Detail::ALL);
            let is_finished = row.status.is_finished();
            let shown = comparable(serde_json::to_value(&view).unwrap(), is_finished);
            assert_eq!(shown, comparable(answer, is_finished), "{} {:?}", row.name, row.status);
        }
    }

    fn now() -> Timestamp {
        "2026-11-24T00:00:00Z".parse().unwrap()
    }

    /// A run whose only job ended for want of capacity and is tried again, and that job.
    fn retried() -> (Run, Job) {
        let recorded: Vec<WireRun> =
            serde_json::from_str(include_str!("../../tests/golden/run_views.json")).unwrap();
        let (mut row, mut jobs) = rows_of(recorded.iter().find(|run| run.jobs.len() == 1).unwrap());
        let mut job = jobs.remove(0);
        job.status = JobStatus::Failed;
        job.state.termination_reason = Some(JobTerminationReason::FailedToStartDueToNoCapacity);
        job.spec.retry =
            Some(api::jobs::Retry { on_events: vec![RetryEvent::NoCapacity, RetryEvent::Error], duration: 3600 });
        row.status = RunStatus::Pending;
        row.stop = None;
        (row, job)
    }

    #[test]
    fn a_run_is_retried_until_a_new_try_has_a_place() {
        let (_, ended) = retried();
        let fresh =
            Job { submission_num: 1, status: JobStatus::Submitted, state: JobState::default(), ..ended.clone() };
        let tries = [ended, fresh];
        let shown = |status, tries: &[Job]| status_message(status, &[tries]);
        assert_eq!(shown(RunStatus::Pending, &tries[..1]), "retrying");
        assert_eq!(shown(RunStatus::Submitted, &tries), "retrying");
        assert_eq!(shown(RunStatus::Submitted, &tries[1..]), "submitted");
        assert_eq!(shown(RunStatus::Provisioning, &tries), "provisioning");
        let mut other = tries;
        other[0].state.termination_reason = Some(JobTerminationReason::ContainerExitedWithError);
        assert_eq!(shown(RunStatus::Pending, &other[..1]), "pending");
    }

    #[test]
    fn a_retry_says_until_when() {
        let (mut row, job) = retried();
        assert_eq!(submission(now(), &row, &job).waiting_for, None);
        let time = |text: &str| text.parse().unwrap();
        row.state.retry = Some(lifecycle::run::RetryWait {
            not_before: time("2026-11-24T01:00:00Z"),
            until: time("2026-11-24T02:30:40Z"),
            for_capacity: true,
        });
        let waits = submission(now(), &row, &job).waiting_for;
        assert_eq!(waits.as_deref(), Some("the next try, until 2026-11-24 02:30 UTC"));
        row.status = RunStatus::Failed;
        assert_eq!(submission(now(), &row, &job).waiting_for, None);
    }

    #[test]
    fn a_run_ends_from_the_moment_that_somebody_said_so() {
        let recorded: Vec<WireRun> =
            serde_json::from_str(include_str!("../../tests/golden/run_views.json")).unwrap();
        let running = recorded.iter().find(|run| run.status == RunStatus::Running).unwrap();
        let (mut row, _) = rows_of(running);
        row.stop = Some(StopRequest::Stop);
        assert_eq!(shown_status(&row), (RunStatus::Terminating, Some(RunTerminationReason::StoppedByUser)));
        row.status = RunStatus::Done;
        row.state.termination_reason = Some(RunTerminationReason::AllJobsDone);
        assert_eq!(shown_status(&row), (RunStatus::Done, Some(RunTerminationReason::AllJobsDone)));
    }

    #[test]
    fn a_dev_environment_shows_its_link_and_for_how_long_nobody_has_been_there() {
        let recorded: Vec<WireRun> =
            serde_json::from_str(include_str!("../../tests/golden/run_views.json")).unwrap();
        let runs = |run: &&WireRun| run.status == RunStatus::Running && run.jobs.len() == 1;
        let (mut row, mut jobs) = rows_of(recorded.iter().find(runs).unwrap());
        let mut job = jobs.remove(0);
        row.spec.configuration = serde_json::from_value(serde_json::json!({
            "type": "dev-environment", "ide": "vscode", "inactivity_duration": "1h",
        }))
        .unwrap();
        job.state.started_at = Some("2026-11-23T23:00:00Z".parse().unwrap());
        let runtime = job.state.runtime.as_mut().unwrap();
        runtime.ports = Some([(SSH_PORT, 40_000)].into());
        runtime.working_dir = Some("/work".to_owned());
        let sealer = Sealer::ephemeral(&Ids::seeded(1));
        let info = connection_info(&Shown { sealer: &sealer, ssh_proxy: None }, &row, &job).unwrap();
        assert_eq!(info.ide_name.as_deref(), Some("VS Code"));
        let link = format!("vscode://vscode-remote/ssh-remote+{}/work", row.name);
        assert_eq!((info.attached_ide_url, info.proxied_ide_url), (Some(link), None));
        let proxy = ProxyAddress::parse("ssh.example.com:2222").unwrap();
        let shown_by = Shown { sealer: &sealer, ssh_proxy: Some(&proxy) };
        let link = connection_info(&shown_by, &row, &job).unwrap().proxied_ide_url;
        let host = format!("{}@ssh.example.com:2222", upstream_id(job.id));
        assert_eq!(link, Some(format!("vscode://vscode-remote/ssh-remote+{host}/work")));
        let seconds = |row: &Run, job: &Job| submission(now(), row, job).inactivity_secs;
        assert_eq!(seconds(&row, &job), Some(0));
        job.state.unvisited_since = Some("2026-11-23T23:59:00Z".parse().unwrap());
        assert_eq!(seconds(&row, &job), Some(60));
        assert!(grows_with_time(std::slice::from_ref(&job)));
        job.state.ended_at = Some("2026-11-23T23:59:30Z".parse().unwrap());
        assert_eq!(seconds(&row, &job), Some(30));
        if let RunConfiguration::DevEnvironment(environment) = &mut row.spec.configuration {
            environment.inactivity_duration = None;
        }
        assert_eq!(seconds(&row, &job), None);
    }
}
