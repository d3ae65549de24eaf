//! What happened to one submission of a job, as lines of a log: supervisors keep no log of their own here, but events,
//! what hosts warned of, and why the job ended are all on record.

use api::events::Event;
use api::logs::{JobSubmissionLogs, LogEvent, PollLogsRequest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use lifecycle::job::Job;
use store::events::{self, EventFilter};

use super::error::Result;
use crate::deps::Deps;

/// Events of one submission that are told at most; an ordinary one has less than ten.
const MOST_EVENTS: u32 = 1000;

/// A page. Its token is how many lines were read before it.
pub(super) async fn page(
    deps: &Deps,
    job: &Job,
    request: &PollLogsRequest,
    token: Option<u64>,
) -> Result<JobSubmissionLogs> {
    let filter = EventFilter {
        targets: Some(vec![job.id.0]),
        ascending: true,
        limit: MOST_EVENTS,
        ..EventFilter::default()
    };
    let lines = lines(job, &events::list(&deps.db, &filter).await?);
    Ok(page_of(lines, request, token, job.status.is_finished()))
}

/// A line and when it was so.
type Line = (Timestamp, String);

/// All that there is to tell, in the order of time.
fn lines(job: &Job, events: &[Event]) -> Vec<Line> {
    let state = &job.state;
    let last = state.last_processed_at.unwrap_or(job.submitted_at);
    let mut lines: Vec<Line> = events.iter().map(|event| (event.recorded_at, event.message.clone())).collect();
    let placed_at = state.placed_at.unwrap_or(job.submitted_at);
    lines.extend(state.warnings.iter().map(|warning| (placed_at, format!("Warning of the host: {warning}"))));
    let on_host = [(state.started_at, "The command started"), (state.exited_at, "The command ended")];
    lines.extend(
        on_host.into_iter().filter_map(|(time, what)| Some((time?, format!("{what}, by the host's clock")))),
    );
    if let Some(status) = state.exit_status {
        lines.push((state.exited_at.unwrap_or(last), format!("Exit status: {status}")));
    }
    let ended_at = state.ended_at.unwrap_or(last);
    if let Some(reason) = state.termination_reason {
        lines.push((ended_at, format!("Ended for the reason {}", reason.as_str())));
    }
    let message = state.termination_message.iter().flat_map(|message| message.lines());
    lines.extend(message.map(|line| (ended_at, format!("| {line}"))));
    if let Some(reason) = state.waiting_for.as_ref().filter(|_| !job.status.is_finished()) {
        lines.push((last, format!("Waiting for {reason}")));
    }
    // Lines of one moment stay as they are.
    lines.sort_by_key(|(time, _)| *time);
    lines
}

/// A page of what there is. While the job lives, lines come and go between others, so that no count of lines would
/// mean the same later: they are then told as a whole, and only those of a job `is_finished` in pages.
fn page_of(
    mut lines: Vec<Line>,
    request: &PollLogsRequest,
    token: Option<u64>,
    is_finished: bool,
) -> JobSubmissionLogs {
    // Both times are exclusive.
    lines.retain(|(time, _)| {
        request.start_time.is_none_or(|start| start < *time) && request.end_time.is_none_or(|end| *time < end)
    });
    if request.descending {
        lines.reverse();
    }
    let (token, limit) = if is_finished { (token, request.limit as usize) } else { (None, usize::MAX) };
    let read = usize::try_from(token.unwrap_or(0)).unwrap_or(usize::MAX).min(lines.len());
    let rest = lines.split_off(read);
    let shown = rest.len().min(limit);
    // Behind a page of nothing would come the same page again.
    let next_token = (0 < shown && shown < rest.len()).then(|| (read + shown).to_string());
    let logs = rest.into_iter().take(shown).map(|(time, text)| event(time, &text)).collect();
    JobSubmissionLogs { logs, external_url: None, next_token }
}

fn event(time: Timestamp, text: &str) -> LogEvent {
    let line = format!("{} {text}\n", time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ"));
    LogEvent { timestamp: time, log_source: "stdout".to_owned(), message: STANDARD.encode(line) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// How many of three lines a page has, and its token.
    fn page(is_finished: bool, limit: u32, token: Option<u64>) -> (usize, Option<String>) {
        let lines = (0..3).map(|second| (Timestamp::from_second(second).unwrap(), format!("line {second}")));
        let body = json!({ "run_name": "one", "job_submission_id": uuid::Uuid::nil(), "limit": limit });
        let request: PollLogsRequest = serde_json::from_value(body).unwrap();
        let page = page_of(lines.collect(), &request, token, is_finished);
        (page.logs.len(), page.next_token)
    }

    #[test]
    fn what_is_final_is_told_in_pages() {
        assert_eq!(page(true, 2, None), (2, Some("2".to_owned())));
        assert_eq!(page(true, 2, Some(2)), (1, None));
        assert_eq!(page(true, 2, Some(9)), (0, None));
        assert_eq!(page(true, 0, None), (0, None));
    }

    #[test]
    fn what_still_changes_is_told_as_a_whole() {
        assert_eq!(page(false, 2, None), (3, None));
        assert_eq!(page(false, 2, Some(2)), (3, None));
    }
}
