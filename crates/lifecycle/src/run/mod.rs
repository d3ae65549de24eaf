//! A run: what a user submits.
//!
//! ```text
//! submitted ──▶ provisioning ──▶ running ──▶ terminating ──▶ done | failed | terminated
//!     ▲  a job has a machine     a job runs      ▲
//!     │                                          │ all jobs ended well, one failed for good,
//!  pending ◀── a job failed and may be retried ──┘ or the user said stop
//! ```
//!
//! A run passes `terminating` before every final status, and a final status is final. One that ends because a job
//! failed is judged again once all of its jobs have ended, for only then it is known what the first one failed of.

mod decide;
pub mod dev_environment;
pub mod effective;
pub mod interpolation;
mod job_specs;

pub use decide::{RunDecision, decide};
pub use job_specs::{for_processes, job_specs, wanted_spot};

use api::configurations::RetryEvent;
use api::ids::{FleetId, JobId, ProjectId, RunId, UserId};
use api::jobs::JobTerminationReason;
use api::runs::{RunSpec, RunStatus, RunTerminationReason};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A run's row.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// Its identifier.
    pub id: RunId,
    /// Its project.
    pub project_id: ProjectId,
    /// Who submitted it.
    pub user_id: UserId,
    /// Its name.
    pub name: String,
    /// When it was submitted.
    pub submitted_at: Timestamp,
    /// 0 to 100; higher goes first.
    pub priority: i64,
    /// Where it is in its life.
    pub status: RunStatus,
    /// It was deleted, or replaced by a run of the same name.
    pub deleted: bool,
    /// The user wants it ended. Written by requests only.
    pub stop: Option<StopRequest>,
    /// The fleet that its jobs were given.
    pub fleet_id: Option<FleetId>,
    /// What was submitted, with the server's defaults; secrets in it are sealed.
    pub spec: RunSpec,
    /// What is only carried.
    pub state: RunState,
}

/// How a user wants a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopRequest {
    /// With the grace that the configuration gives.
    Stop,
    /// At once.
    Abort,
}

/// The part of a run that no query asks for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunState {
    /// When something last happened to it; unset: when it was submitted.
    pub last_processed_at: Option<Timestamp>,
    /// Why it ends.
    pub termination_reason: Option<RunTerminationReason>,
    /// The job whose end made the run end, or wait to be tried again.
    pub cause: Option<Cause>,
    /// Grows with each change in place.
    pub deployment_num: u32,
    /// How many times its jobs have been submitted again.
    pub attempt: u32,
    /// What a pending run waits for.
    pub retry: Option<RetryWait>,
    /// The jobs are to be submitted again as soon as all of them have ended.
    pub retrying: Option<Retrying>,
    /// The fleet that the jobs of the last attempt were given.
    pub previous_fleet: Option<FleetId>,
    /// When a job of an earlier attempt that had a place was last heard of.
    pub last_placed_at: Option<Timestamp>,
    /// The submitter may use this server's own machine.
    pub user_is_admin: bool,
}

/// The first thing that went wrong in a gang; what peers suffer later is a consequence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// The job.
    pub job_id: JobId,
    /// Its rank.
    pub job_num: u32,
    /// Why it ended.
    pub reason: JobTerminationReason,
    /// For people.
    pub message: Option<String>,
    /// When it ended, by its host's clock.
    pub at: Timestamp,
}

/// Why a run is tried again. What peers do while they are ended changes nothing of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retrying {
    /// What happened.
    pub event: RetryEvent,
    /// The end of the time for retries.
    pub until: Timestamp,
}

/// What a pending run waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryWait {
    /// Its jobs are submitted again not before this.
    pub not_before: Timestamp,
    /// The run fails when it has not been placed by this.
    pub until: Timestamp,
    /// It waits for capacity, so an instance that falls free serves it before `not_before` too.
    pub for_capacity: bool,
}
