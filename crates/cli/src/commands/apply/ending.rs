//! How a run ended, for people.

use api::jobs::{Job, JobSubmission};
use api::runs::{Run, RunStatus};

use crate::output::format;
use crate::output::runs::{job_status, run_name, run_status};

/// Reasons that say only that something else was the cause.
const CONSEQUENCES: [&str; 4] =
    ["done_by_runner", "terminated_by_server", "terminated_by_user", "aborted_by_user"];

/// What is said of a finished run.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ending {
    /// The run did what it was for.
    pub success: bool,
    /// The short form.
    pub title: String,
    /// The reasons and what to do, a line each.
    pub details: Vec<String>,
}

/// How a finished run ended.
pub(super) fn of(run: &Run) -> Ending {
    if run.status == RunStatus::Done {
        return Ending { success: true, title: "Done".to_owned(), details: Vec::new() };
    }
    let several = 1 < run.jobs.len();
    let Some((job, submission)) = cause(run) else {
        let details = run.error.iter().cloned().collect();
        return Ending { success: false, title: format::capitalised(&run_status(run)), details };
    };
    let mut title = format::capitalised(&job_status(submission));
    if let Some(error) = &submission.error {
        title = format!("{title} ({})", format::capitalised(error));
    }
    if several && is_own_reason(submission) {
        title = format!("{title}, node {}", job.job_spec.job_num);
    }
    let mut details = Vec::new();
    if let Some(message) = &submission.termination_reason_message {
        details.extend(message.lines().map(str::to_owned));
    }
    let never_ran = submission.termination_reason.as_deref() == Some("failed_to_start_due_to_no_capacity");
    if !never_ran {
        details.push(format!("Check dstack logs -d {} for more details.", run_name(run)));
    }
    Ending { success: false, title, details }
}

/// The job that the others ended for: the first one that ended by itself and not well.
fn cause(run: &Run) -> Option<(&Job, &JobSubmission)> {
    let last = |job: &'_ Job| job.job_submissions.len().checked_sub(1);
    let ended = || run.jobs.iter().filter_map(|job| Some((job, &job.job_submissions[last(job)?])));
    let own = ended().filter(|(_, submission)| is_own_reason(submission));
    own.min_by_key(|(_, submission)| submission.finished_at.unwrap_or(submission.last_processed_at))
        .or_else(|| ended().next())
}

fn is_own_reason(submission: &JobSubmission) -> bool {
    submission.termination_reason.as_deref().is_some_and(|reason| !CONSEQUENCES.contains(&reason))
}
