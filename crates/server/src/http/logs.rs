//! Logs of jobs, a page at a time. A page's token is the offset in the log where the next page begins.

use api::ids::JobId;
use api::logs::{JobSubmissionLogs, LogEvent, PollLogsRequest};
use axum::extract::State;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};

use super::auth::ProjectMember;
use super::diagnostics;
use super::error::{Error, Result, check_bounds};
use super::extract::Json;
use crate::deps::Deps;
use crate::logs::{LogChunk, LogStore};

/// The most pieces of a page.
const MOST_EVENTS: u32 = 1000;

/// The most log bytes of a page.
const PAGE_BYTES: usize = 4 * 1024 * 1024;

/// How far back a page in descending order looks at first, in bytes.
const FIRST_WINDOW_BYTES: u64 = 256 * 1024;

pub async fn poll(
    State(deps): State<Deps>,
    member: ProjectMember,
    Json(request): Json<PollLogsRequest>,
) -> Result<Json<JobSubmissionLogs>> {
    check_bounds("limit", request.limit, 0, MOST_EVENTS)?;
    let token = request.next_token.as_deref().map(parse_token).transpose()?;
    let job = store::jobs::get(&deps.db, request.job_submission_id).await?;
    let Some(job) = job.filter(|job| job.value.project_id == member.project.id) else {
        return Ok(Json(JobSubmissionLogs::default()));
    };
    if request.diagnose {
        return Ok(Json(diagnostics::page(&deps, &job.value, &request, token).await?));
    }
    let logs = deps.logs.clone();
    let page = move || page(&logs, &request, token);
    let page = tokio::task::spawn_blocking(page).await.map_err(Error::internal)?;
    page.map(Json).map_err(Error::internal)
}

fn parse_token(token: &str) -> Result<u64> {
    token
        .parse()
        .map_err(|_| Error::bad_request(format!("Invalid next_token: {token}. Must be a non-negative integer.")))
}

fn page(logs: &LogStore, request: &PollLogsRequest, token: Option<u64>) -> std::io::Result<JobSubmissionLogs> {
    let job = request.job_submission_id;
    // Both times are exclusive.
    let start = request.start_time.map_or(0, |time| logs.offset_after(job, time));
    let end = match request.end_time {
        Some(time) => logs.offset_after(job, just_before(time)),
        None => logs.end(job).length,
    };
    let limit = request.limit as usize;
    let (events, next) = if request.descending {
        let end = token.map_or(end, |token| token.min(end));
        let (chunks, next) = last_chunks(logs, job, start, end, limit)?;
        (chunks.iter().map(|chunk| event(chunk, 0)).collect(), next)
    } else {
        let mut position = token.map_or(start, |token| token.max(start));
        let (chunks, next) = first_chunks(logs, job, position, end, limit)?;
        let events = chunks.iter().map(|chunk| {
            let lost = if chunk.gap_before { chunk.offset.saturating_sub(position) } else { 0 };
            position = end_of(chunk);
            event(chunk, lost)
        });
        (events.collect(), next)
    };
    Ok(JobSubmissionLogs { logs: events, external_url: None, next_token: next.map(|offset| offset.to_string()) })
}

/// A piece as clients see it; where bytes before it are lost, it says how many.
fn event(chunk: &LogChunk, lost: u64) -> LogEvent {
    let message = if lost > 0 {
        let told = format!("\r\n[{lost} bytes of output were lost]\r\n");
        STANDARD.encode([told.as_bytes(), &chunk.bytes].concat())
    } else {
        STANDARD.encode(&chunk.bytes)
    };
    LogEvent {
        timestamp: Timestamp::from_microsecond(chunk.time_micros).unwrap_or(Timestamp::UNIX_EPOCH),
        log_source: "stdout".to_owned(),
        message,
    }
}

// The log's times are whole microseconds.
fn just_before(time: Timestamp) -> Timestamp {
    time.checked_sub(SignedDuration::from_micros(1)).unwrap_or(Timestamp::MIN)
}

/// The first pieces of a range, and where the next ones begin if there are more.
fn first_chunks(
    logs: &LogStore,
    job: JobId,
    start: u64,
    end: u64,
    limit: usize,
) -> std::io::Result<(Vec<LogChunk>, Option<u64>)> {
    if end <= start {
        return Ok((vec![], None));
    }
    let room = usize::try_from(end - start).unwrap_or(usize::MAX).min(PAGE_BYTES);
    let mut chunks: Vec<LogChunk> =
        logs.read(job, start, room)?.chunks.into_iter().filter(|chunk| chunk.offset < end).collect();
    chunks.truncate(limit);
    let next = match chunks.last() {
        Some(last) => end_of(last),
        // Without room for a single piece the client asks again; without any piece the rest is lost.
        None if limit == 0 => start,
        None => end,
    };
    Ok((chunks, (next < end).then_some(next)))
}

fn end_of(chunk: &LogChunk) -> u64 {
    chunk.offset + chunk.bytes.len() as u64
}

/// The last pieces of a range, the last one first, and where the ones before them end if there are more.
fn last_chunks(
    logs: &LogStore,
    job: JobId,
    start: u64,
    end: u64,
    limit: usize,
) -> std::io::Result<(Vec<LogChunk>, Option<u64>)> {
    let mut window = FIRST_WINDOW_BYTES;
    loop {
        let from = end.saturating_sub(window).max(start);
        let room = usize::try_from(end - from.min(end)).unwrap_or(usize::MAX);
        let mut chunks = logs.read(job, from, room)?.chunks;
        chunks.retain(|chunk| chunk.offset < end);
        let is_all = from == start;
        let is_most = window as usize >= PAGE_BYTES;
        // The first piece may have begun before the window.
        let whole = if is_all { 0 } else { 1.min(chunks.len().saturating_sub(1)) };
        if !is_all && !is_most && chunks.len() < limit + whole {
            window *= 4;
            continue;
        }
        let first = whole.max(chunks.len().saturating_sub(limit));
        let mut chunks = chunks.split_off(first.min(chunks.len()));
        let next = chunks.first().map_or(if limit == 0 { end } else { start }, |chunk| chunk.offset);
        chunks.reverse();
        return Ok((chunks, (start < next).then_some(next)));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use uuid::Uuid;

    use super::*;

    const JOB: JobId = JobId(Uuid::from_u128(7));

    /// A log of `count` lines `line N`, one each second.
    fn lines(folder: &tempfile::TempDir, count: u32) -> LogStore {
        let logs = LogStore::open(folder.path().to_owned()).unwrap();
        let mut offset = 0;
        for number in 0..count {
            let line = format!("line {number}\r\n");
            logs.append(JOB, offset, i64::from(number) * 1_000_000, line.as_bytes()).unwrap();
            offset += line.len() as u64;
        }
        logs
    }

    fn poll(logs: &LogStore, extra: &serde_json::Value) -> (Vec<String>, Option<String>) {
        let mut body = json!({ "run_name": "one", "job_submission_id": JOB });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let request: PollLogsRequest = serde_json::from_value(body).unwrap();
        let token = request.next_token.as_deref().map(|token| parse_token(token).unwrap());
        let page = page(logs, &request, token).unwrap();
        let text = page.logs.iter().map(|event| {
            let bytes = STANDARD.decode(&event.message).unwrap();
            String::from_utf8(bytes).unwrap().trim_end().to_owned()
        });
        (text.collect(), page.next_token)
    }

    fn numbered(numbers: impl Iterator<Item = u32>) -> Vec<String> {
        numbers.map(|number| format!("line {number}")).collect()
    }

    #[test]
    fn pages_follow_each_other_both_ways() {
        let folder = tempfile::tempdir().unwrap();
        let logs = lines(&folder, 20);
        for (descending, expected) in [(false, numbered(0..20)), (true, numbered((0..20).rev()))] {
            let mut all = vec![];
            let mut token = None;
            loop {
                let (page, next) =
                    poll(&logs, &json!({ "limit": 8, "next_token": token, "descending": descending }));
                assert!(page.len() <= 8);
                all.extend(page);
                token = next;
                if token.is_none() {
                    break;
                }
            }
            assert_eq!(all, expected);
        }
    }

    #[test]
    fn times_are_exclusive() {
        let folder = tempfile::tempdir().unwrap();
        let logs = lines(&folder, 10);
        let range = json!({ "start_time": "1970-01-01T00:00:02Z", "end_time": "1970-01-01T00:00:06Z" });
        assert_eq!(poll(&logs, &range), (numbered(3..6), None));
        let mut descending = range;
        descending["descending"] = json!(true);
        descending["limit"] = json!(2);
        let (page, token) = poll(&logs, &descending);
        assert_eq!(page, numbered([5, 4].into_iter()));
        descending["next_token"] = json!(token);
        assert_eq!(poll(&logs, &descending), (numbered([3].into_iter()), None));
    }

    #[test]
    fn a_long_log_is_read_from_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let logs = LogStore::open(folder.path().to_owned()).unwrap();
        let block = vec![b'x'; 30_000];
        for number in 0..400_u64 {
            logs.append(JOB, number * 30_000, number as i64 * 1_000_000, &block).unwrap();
        }
        let (page, token) = poll(&logs, &json!({ "limit": 1000, "descending": true }));
        assert!(page.len() > 100 && page.iter().all(|text| text.len() == 30_000));
        assert_eq!(token.unwrap().parse::<u64>().unwrap(), (400 - page.len() as u64) * 30_000);
        assert_eq!(poll(&logs, &json!({ "limit": 0 })), (vec![], Some("0".to_owned())));
    }

    #[test]
    fn lost_bytes_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let logs = LogStore::open(folder.path().to_owned()).unwrap();
        logs.append(JOB, 0, 0, b"one").unwrap();
        logs.append(JOB, 100, 1_000_000, b"two").unwrap();
        let (page, token) = poll(&logs, &json!({}));
        assert_eq!(page, ["one", "\r\n[97 bytes of output were lost]\r\ntwo"]);
        assert_eq!(token, None);
    }

    #[test]
    fn tokens_are_numbers() {
        for token in ["abc", "-1", "1.5"] {
            let error = parse_token(token).unwrap_err().to_string();
            assert!(
                error.contains(&format!("Invalid next_token: {token}. Must be a non-negative integer.")),
                "{error}"
            );
        }
    }
}
