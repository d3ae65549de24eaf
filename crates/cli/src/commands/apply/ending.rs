//! How a run ended, for people.

use api::jobs::{Job, JobSubmission};
use api::runs::{Run, RunStatus};

use crate::output::format;
use crate::output::runs::{self, job_status, run_name, run_status};

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
    let Some((job, submission)) = runs::cause(run) else {
        let details = run.error.iter().cloned().collect();
        return Ending { success: false, title: format::capitalised(&run_status(run)), details };
    };
    let mut title = format::capitalised(&job_status(submission));
    if let Some(error) = &submission.error {
        title = format!("{title} ({})", format::capitalised(error));
    }
    Ending {
        success: false,
        title: format!("{title}{}", runs::of_node(run, job, submission)),
        details: details(run, job, submission),
    }
}

fn details(run: &Run, job: &Job, submission: &JobSubmission) -> Vec<String> {
    // These are often the last lines of a log, and of several logs people ask whose.
    let prefix = if 1 < run.jobs.len() { format!("[{}] ", job.job_spec.job_num) } else { String::new() };
    let message = submission.termination_reason_message.iter().flat_map(|message| message.lines());
    let mut details: Vec<String> = message.map(|line| format!("{prefix}{line}")).collect();
    details.extend(run.error.as_deref().map(format::capitalised));
    let never_ran = submission.termination_reason.as_deref() == Some("failed_to_start_due_to_no_capacity");
    // Whoever stopped a run knows why it ended.
    if !never_ran && !was_stopped(run) {
        details.push(format!("Check dstack logs -d {} for more details.", run_name(run)));
    }
    details
}

/// Whether a run ended because somebody wanted it to.
pub(super) fn was_stopped(run: &Run) -> bool {
    matches!(run.termination_reason.as_deref(), Some("stopped_by_user" | "aborted_by_user"))
}
