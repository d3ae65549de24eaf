//! Runs, their plans and their requests.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::configurations::{Profile, RunConfiguration};
use crate::ids::{FileArchiveId, FleetId, JobId, RunId};
use crate::instances::Offer;
use crate::jobs::{Job, JobSpec, JobSubmission};
use crate::repos::RepoData;

/// What a user submits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunSpec {
    /// The run's name; unset: the server makes one.
    #[serde(default)]
    pub run_name: Option<String>,
    /// The repository; set together with `repo_data`.
    #[serde(default)]
    pub repo_id: Option<String>,
    /// The repository's state.
    #[serde(default)]
    pub repo_data: Option<RepoData>,
    /// The uploaded code.
    #[serde(default)]
    pub repo_code_hash: Option<String>,
    /// Where the code goes.
    #[serde(default)]
    pub repo_dir: Option<String>,
    /// Uploaded files.
    #[serde(default)]
    pub file_archives: Vec<FileArchiveMapping>,
    /// Kept for old clients.
    #[serde(default)]
    pub working_dir: Option<String>,
    /// The file that the configuration came from.
    #[serde(default)]
    pub configuration_path: Option<String>,
    /// The configuration.
    pub configuration: RunConfiguration,
    /// The profile whose keys fill what the configuration leaves out.
    #[serde(default)]
    pub profile: Option<Profile>,
    /// The user's public key, byte for byte.
    #[serde(default)]
    pub ssh_key_pub: Option<String>,
}

/// An uploaded archive and where it goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FileArchiveMapping {
    /// The archive.
    pub id: FileArchiveId,
    /// Where its root goes.
    pub path: String,
}

/// The life of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the official names say it")]
pub enum RunStatus {
    Pending,
    Submitted,
    Provisioning,
    Running,
    Terminating,
    Terminated,
    Failed,
    Done,
}

impl RunStatus {
    /// Whether nothing will happen to it any more.
    pub fn is_finished(self) -> bool {
        match self {
            RunStatus::Terminated | RunStatus::Failed | RunStatus::Done => true,
            RunStatus::Pending
            | RunStatus::Submitted
            | RunStatus::Provisioning
            | RunStatus::Running
            | RunStatus::Terminating => false,
        }
    }

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            RunStatus::Pending => "pending",
            RunStatus::Submitted => "submitted",
            RunStatus::Provisioning => "provisioning",
            RunStatus::Running => "running",
            RunStatus::Terminating => "terminating",
            RunStatus::Terminated => "terminated",
            RunStatus::Failed => "failed",
            RunStatus::Done => "done",
        }
    }
}

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the official names say it")]
pub enum RunTerminationReason {
    AllJobsDone,
    JobFailed,
    RetryLimitExceeded,
    StoppedByUser,
    AbortedByUser,
    ServerError,
    GatewayError,
}

impl RunTerminationReason {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            RunTerminationReason::AllJobsDone => "all_jobs_done",
            RunTerminationReason::JobFailed => "job_failed",
            RunTerminationReason::RetryLimitExceeded => "retry_limit_exceeded",
            RunTerminationReason::StoppedByUser => "stopped_by_user",
            RunTerminationReason::AbortedByUser => "aborted_by_user",
            RunTerminationReason::ServerError => "server_error",
            RunTerminationReason::GatewayError => "gateway_error",
        }
    }

    /// The status that a run with this reason ends in.
    pub fn final_status(self) -> RunStatus {
        match self {
            RunTerminationReason::AllJobsDone => RunStatus::Done,
            RunTerminationReason::StoppedByUser | RunTerminationReason::AbortedByUser => RunStatus::Terminated,
            RunTerminationReason::JobFailed
            | RunTerminationReason::RetryLimitExceeded
            | RunTerminationReason::ServerError
            | RunTerminationReason::GatewayError => RunStatus::Failed,
        }
    }

    /// The text of the run's `error`.
    pub fn error(self) -> Option<&'static str> {
        match self {
            RunTerminationReason::RetryLimitExceeded => Some("retry limit exceeded"),
            RunTerminationReason::ServerError => Some("server error"),
            RunTerminationReason::GatewayError => Some("gateway error"),
            RunTerminationReason::AllJobsDone
            | RunTerminationReason::JobFailed
            | RunTerminationReason::StoppedByUser
            | RunTerminationReason::AbortedByUser => None,
        }
    }
}

/// The fleet that a run was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RunFleet {
    /// Its identifier.
    pub id: FleetId,
    /// Its name.
    pub name: String,
}

/// A run as clients see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Run {
    /// Its identifier.
    pub id: RunId,
    /// The project's name.
    pub project_name: String,
    /// The name of the user who submitted it.
    pub user: String,
    /// The fleet that it was given.
    #[serde(default)]
    pub fleet: Option<RunFleet>,
    /// When it was submitted.
    pub submitted_at: Timestamp,
    /// When something last happened to it.
    pub last_processed_at: Timestamp,
    /// Where it is in its life.
    pub status: RunStatus,
    /// The status as `ps` shows it.
    #[serde(default)]
    pub status_message: String,
    /// Why it ended.
    #[serde(default)]
    pub termination_reason: Option<String>,
    /// What was submitted.
    pub run_spec: RunSpec,
    /// Its jobs by replica and number.
    pub jobs: Vec<Job>,
    /// The last submission of the first job.
    #[serde(default)]
    pub latest_job_submission: Option<JobSubmission>,
    /// US dollars so far.
    #[serde(default)]
    pub cost: f64,
    /// The service's addresses.
    #[serde(default)]
    pub service: Option<serde_json::Value>,
    /// Grows with each change in place.
    #[serde(default)]
    pub deployment_num: u32,
    /// What went wrong.
    #[serde(default)]
    pub error: Option<String>,
    /// It was deleted.
    #[serde(default)]
    pub deleted: Option<bool>,
    /// When a scheduled run starts next.
    #[serde(default)]
    pub next_triggered_at: Option<Timestamp>,
}

/// What an apply would do to the resource of that name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ApplyAction {
    /// Make it anew.
    Create,
    /// Change it in place.
    Update,
}

/// The body of `runs/get_plan`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct GetRunPlanRequest {
    /// What would be submitted.
    pub run_spec: RunSpec,
    /// At most this many offers per job, up to 10,000; 50 unless told.
    #[serde(default)]
    pub max_offers: Option<u32>,
    /// Offers that cannot be had too.
    #[serde(default)]
    pub full_offers: bool,
    /// Only what no job holds.
    #[serde(default)]
    pub unallocated_resources: bool,
    /// Dearest first.
    #[serde(default)]
    pub reverse_offers: bool,
    /// Only the offers matter: fleets are ignored unless the run names some.
    #[serde(default)]
    pub for_offers_only: bool,
}

/// One job of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobPlan {
    /// The job.
    pub job_spec: JobSpec,
    /// What it could run on, cut to the number asked for.
    pub offers: Vec<Offer>,
    /// How many offers there are.
    pub total_offers: u32,
    /// The highest price, in US dollars per hour.
    pub max_price: Option<f64>,
}

/// What an apply would do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunPlan {
    /// The project's name.
    pub project_name: String,
    /// The user's name.
    pub user: String,
    /// The request's spec, untouched: clients post it to apply.
    pub run_spec: RunSpec,
    /// The spec with the server's defaults.
    #[serde(default)]
    pub effective_run_spec: Option<RunSpec>,
    /// One entry per job of the first replica.
    pub job_plans: Vec<JobPlan>,
    /// The run of that name, if there is one.
    #[serde(default)]
    pub current_resource: Option<Run>,
    /// Whether the run would be made anew or changed in place.
    pub action: ApplyAction,
    /// What the user should know before saying yes. An addition of ours; old clients ignore it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// The part of a plan that is applied.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ApplyRunPlanInput {
    /// What is submitted.
    pub run_spec: RunSpec,
    /// The run as the plan saw it.
    #[serde(default)]
    pub current_resource: Option<Run>,
}

/// The body of `runs/apply`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ApplyRunPlanRequest {
    /// The plan.
    pub plan: ApplyRunPlanInput,
    /// Apply even if the run has changed since the plan.
    pub force: bool,
}

/// The body of `runs/get`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct GetRunRequest {
    /// By name; deleted runs are hidden.
    pub run_name: Option<String>,
    /// By identifier, deleted ones too.
    pub id: Option<RunId>,
}

/// The body of `runs/list`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ListRunsRequest {
    /// Only this project.
    pub project_name: Option<String>,
    /// Only this repository.
    pub repo_id: Option<String>,
    /// Only this user's.
    pub username: Option<String>,
    /// Only those that are not finished.
    pub only_active: bool,
    /// With their jobs.
    pub include_jobs: bool,
    /// At most this many submissions per job, 0 to 10.
    pub job_submissions_limit: Option<u32>,
    /// The last page's last time.
    pub prev_submitted_at: Option<Timestamp>,
    /// The last page's last identifier.
    pub prev_run_id: Option<RunId>,
    /// At most this many, up to 100.
    pub limit: u32,
    /// Oldest first.
    pub ascending: bool,
}

impl Default for ListRunsRequest {
    fn default() -> Self {
        ListRunsRequest {
            project_name: None,
            repo_id: None,
            username: None,
            only_active: false,
            include_jobs: true,
            job_submissions_limit: None,
            prev_submitted_at: None,
            prev_run_id: None,
            limit: 100,
            ascending: false,
        }
    }
}

/// The body of `runs/stop`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct StopRunsRequest {
    /// Which; unknown and finished ones are ignored.
    pub runs_names: Vec<String>,
    /// Kill at once.
    pub abort: bool,
}

/// The body of `runs/delete`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct DeleteRunsRequest {
    /// Which; they must be finished.
    pub runs_names: Vec<String>,
}

/// A text message of a run's live stream: `GET /api/project/{project}/runs/{run}/stream`, a WebSocket.
///
/// The request carries the usual `Authorization` and `X-API-VERSION` headers. Errors before the upgrade are the usual
/// ones (an unknown run: 400 `resource_not_exists`).
///
/// Binary messages of the same socket are log bytes: the job's number as a big-endian u32, then one or more
/// [`crate::agent::LogFrame`]s with their payloads, whole frames only, at most 1 MiB a message.
///
/// # Query
///
/// | key | value | unless told |
/// |---|---|---|
/// | `logs` | `false`: status messages only | `true` |
/// | `replica` | logs of this replica only; job numbers are those of one replica | 0 |
/// | `job` | logs of this job number only | all jobs of the replica |
/// | `since` | RFC 3339: logs written at or after this time | all |
/// | `follow` | `false`: the stream ends at what is there now | `true` |
/// | `from` | where to resume: comma-separated `<submission id>:<offset>` | the start |
///
/// `from` names what the client has already: for a submission named in it, the log goes on at that offset (exactly:
/// no byte before it, none left out) and `since` is ignored. Submissions that are not named start at offset 0, or at
/// `since`. Names of unknown submissions are ignored, so that a client may name all it has seen.
///
/// # Order
///
/// 1. The first message is [`RunStreamMessage::Run`].
/// 2. Before the first log bytes of a submission on this socket comes its [`RunStreamMessage::Submission`]; bytes of
///    a job number belong to the submission announced last for that number. With a `since` or `from` the first
///    frame's offset may be greater than 0.
/// 3. Only the last submission of each job is sent, and each later one once it is made. All bytes of a submission come
///    before the next one of the same job is announced.
/// 4. When the run is finished and every log byte is sent: a last `Run` with the final status, then
///    [`RunStreamMessage::End`], then the close. With `follow=false`, `Run`, the bytes that are there, `End`, close.
///    A socket that closes without `End` was cut: the client comes back with `from`.
/// 5. A WebSocket ping at least every 15 seconds, so that both sides see a dead peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunStreamMessage {
    /// The run as it is now; sent at the start and whenever something changes.
    Run(Box<Run>),
    /// A new submission of a job begins; its log starts at offset 0.
    Submission {
        /// The job's number.
        job_num: u32,
        /// The submission.
        id: JobId,
    },
    /// Nothing more will come.
    End,
}
