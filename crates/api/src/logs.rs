//! Logs of jobs, a page at a time.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::JobId;

/// The body of `logs/poll`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct PollLogsRequest {
    /// The run.
    pub run_name: String,
    /// The submission of its job.
    pub job_submission_id: JobId,
    /// Later than this.
    #[serde(default)]
    pub start_time: Option<Timestamp>,
    /// Earlier than this.
    #[serde(default)]
    pub end_time: Option<Timestamp>,
    /// Newest first.
    #[serde(default)]
    pub descending: bool,
    /// Where the last page ended.
    #[serde(default)]
    pub next_token: Option<String>,
    /// At most this many, up to 1,000; 100 unless told.
    #[serde(default = "default_limit")]
    pub limit: u32,
    /// The supervisor's own log instead of the job's.
    #[serde(default)]
    pub diagnose: bool,
}

fn default_limit() -> u32 {
    100
}

/// A piece of a log, as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LogEvent {
    /// When it was written.
    pub timestamp: Timestamp,
    /// `stdout` or `stderr`.
    pub log_source: String,
    /// The bytes in base64.
    pub message: String,
}

/// A page of a log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JobSubmissionLogs {
    /// The pieces.
    pub logs: Vec<LogEvent>,
    /// Where else to look.
    pub external_url: Option<String>,
    /// Where the next page begins; unset at the end.
    pub next_token: Option<String>,
}
