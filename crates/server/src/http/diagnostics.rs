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
    Ok(page_of(lines, request, token))
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

fn page_of(mut lines: Vec<Line>, request: &PollLogsRequest, token: Option<u64>) -> JobSubmissionLogs {
    // Both times are exclusive.
    lines.retain(|(time, _)| {
        request.start_time.is_none_or(|start| start < *time) && request.end_time.is_none_or(|end| *time < end)
    });
    if request.descending {
        lines.reverse();
    }
    let read = usize::try_from(token.unwrap_or(0)).unwrap_or(usize::MAX).min(lines.len());
    let rest = lines.split_off(read);
    let shown = rest.len().min(request.limit as usize);
    let next_token = (shown < rest.len()).then(|| (read + shown).to_string());
    let logs = rest.into_iter().take(shown).map(|(time, text)| event(time, &text)).collect();
    JobSubmissionLogs { logs, external_url: None, next_token }
}

fn event(time: Timestamp, text: &str) -> LogEvent {
    let line = format!("{} {text}\n", time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ"));
    LogEvent { timestamp: time, log_source: "stdout".to_owned(), message: STANDARD.encode(line) }
}
