//! A job: one node of one replica of a run. A row is one submission of it.
//!
//! ```text
//! submitted ──▶ provisioning ──▶ pulling ──▶ running ──▶ terminating ──▶ done | failed | terminated | aborted
//!   │  has a slot    its agent has it  all ready,      its task ended, or
//!   │  on a machine                    released        the run wants it ended
//!   └──────────── no capacity, or the run wants it ended ────▶ terminating
//! ```

mod decide;
mod machine;

pub use decide::{Effect, Inactivity, JobDecision, Seen, Surroundings, decide};

use api::agent::{ClusterInfo, PullProgress, TaskPhase};
use api::ids::{InstanceId, JobId, ProjectId, RunId};
use api::jobs::{JobProvisioningData, JobRuntimeData, JobSpec, JobStatus, JobTerminationReason};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The grace of a job whose configuration turns the limit off, in seconds: longer than any run.
const UNLIMITED_GRACE_SECS: u64 = 365 * 24 * 3600;

/// Seconds between the polite signal and the kill, as a job's configuration wants it.
pub fn stop_grace_secs(spec: &JobSpec) -> u64 {
    spec.stop_duration.unwrap_or(UNLIMITED_GRACE_SECS)
}

/// A submission's row.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Its identifier; the agent's task has the same.
    pub id: JobId,
    /// Its run.
    pub run_id: RunId,
    /// Its project.
    pub project_id: ProjectId,
    /// Its replica.
    pub replica_num: u32,
    /// Its number in the replica.
    pub job_num: u32,
    /// Its try, from 0.
    pub submission_num: u32,
    /// When it was made.
    pub submitted_at: Timestamp,
    /// Where it is in its life.
    pub status: JobStatus,
    /// Where it runs. Written when the gang is placed.
    pub instance_id: Option<InstanceId>,
    /// The run wants it ended. Written by the run's reconciler.
    pub end: Option<EndOrder>,
    /// All peers are ready, so its command may start. Written by the run's reconciler.
    pub released_at: Option<Timestamp>,
    /// What it does; secrets in it are sealed.
    pub spec: JobSpec,
    /// What is only carried.
    pub state: JobState,
}

/// Why the run wants a job ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndOrder {
    /// The job ends with this reason, unless it has one of its own already.
    pub reason: JobTerminationReason,
    /// For people.
    pub message: Option<String>,
    /// Seconds between the polite signal and the kill; 0 kills at once.
    pub grace_secs: u64,
}

/// The part of a submission that no query asks for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct JobState {
    /// When something last happened to it; unset: when it was submitted.
    pub last_processed_at: Option<Timestamp>,
    /// When it was given a machine.
    pub placed_at: Option<Timestamp>,
    /// How far its task is, as last seen.
    pub phase: Option<TaskPhase>,
    /// When its command started, by its host's clock.
    pub started_at: Option<Timestamp>,
    /// When its command ended, by its host's clock.
    pub exited_at: Option<Timestamp>,
    /// When it began to end, by the server's clock.
    pub ended_at: Option<Timestamp>,
    /// Why it ended.
    pub termination_reason: Option<JobTerminationReason>,
    /// Why it ended, for people.
    pub termination_message: Option<String>,
    /// Its command's exit status.
    pub exit_status: Option<i32>,
    /// How far its image is.
    pub pull: Option<PullProgress>,
    /// Since when nobody has been in it, by the server's clock, where that will end it.
    pub unvisited_since: Option<Timestamp>,
    /// What it waits for, in words.
    pub waiting_for: Option<String>,
    /// What the host said about limits that it cannot keep.
    pub warnings: Vec<String>,
    /// Where it runs, as clients see it.
    pub provisioning: Option<JobProvisioningData>,
    /// How it uses its machine, as clients see it.
    pub runtime: Option<JobRuntimeData>,
    /// The addresses of all nodes, once each has one. The gang's first node remembers them for all: a thousand nodes
    /// that each remember a thousand addresses are too much to carry about.
    pub cluster: Option<ClusterInfo>,
    /// Its agent may have been told of it.
    pub given: bool,
    /// The blocks of the machine that it holds.
    pub blocks: Vec<u32>,
    /// Its agent was told to stop it, with this grace in seconds.
    pub stop_sent: Option<u64>,
    /// The last order, if its agent refused it.
    pub refused: Option<Refused>,
    /// Since when its machine does not answer or is missing, if that is why it ended.
    pub lost_since: Option<Timestamp>,
    /// How much of the log of a task that is over had come when it last grew, as the server saw it.
    pub log_wait: Option<LogWait>,
}

/// An order that an agent refused, and refuses each time it is repeated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// When it was refused first.
    pub since: Timestamp,
    /// What the agent said.
    pub message: String,
    /// It makes no sense to the agent, so that no repetition helps.
    pub for_good: bool,
}

/// A log whose rest is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogWait {
    /// Since when nothing has come.
    pub since: Timestamp,
    /// When the waiting began.
    pub from: Timestamp,
    /// The bytes that have come.
    pub received: u64,
}
